"""The messages of `protos/inference/inference.proto`, in a descriptor pool of their own.

Protobuf's default pool takes each name once. Triton's client library registers the same names there, so a program that
imports both would fail. `inference.binpb` is the compiled proto; `make protos` writes it.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE_NAME = "inference.GRPCInferenceService"

# A descriptor pool; protobuf's own stubs do not know all of its methods.
Pool = Any

POOL: Pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("inference.binpb").read_bytes()).file:
    POOL.Add(_file)


def message_class(name: str) -> Any:
    """The class of a message. It is built at run time, so its fields have no types."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


InferParameter = message_class("InferParameter")
ModelConfig = message_class("ModelConfig")
ModelConfigResponse = message_class("ModelConfigResponse")
ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
ModelMetadataResponse = message_class("ModelMetadataResponse")
ModelReadyResponse = message_class("ModelReadyResponse")
ModelStatistics = message_class("ModelStatistics")
ModelStatisticsResponse = message_class("ModelStatisticsResponse")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")
RepositoryIndexResponse = message_class("RepositoryIndexResponse")
RepositoryModelLoadResponse = message_class("RepositoryModelLoadResponse")
RepositoryModelUnloadResponse = message_class("RepositoryModelUnloadResponse")
ServerLiveResponse = message_class("ServerLiveResponse")
ServerMetadataResponse = message_class("ServerMetadataResponse")
ServerReadyResponse = message_class("ServerReadyResponse")
StatisticDuration = message_class("StatisticDuration")
