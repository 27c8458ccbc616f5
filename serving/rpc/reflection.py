"""Server reflection: tools such as grpcurl find out what is served without the proto file.

grpcio-reflection speaks the protocol as `grpc.reflection.v1alpha`; newer tools ask for `grpc.reflection.v1` first. The two
differ in the name of their package alone: services, messages, fields and numbers are the same. So one servicer answers both.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1_SERVICE_NAME = "grpc.reflection.v1.ServerReflection"
SERVICE_NAMES = (V1_SERVICE_NAME, reflection.SERVICE_NAME)


class Pool:
    """The default pool of descriptors, which also knows in which file a method is: grpcurl asks for it to describe one."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        """All else, which the servicer looks up as in any pool."""
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  # protobuf's name
        """The file that defines a message, a field, an enum, a service or a method; KeyError when there is none."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def add_to_server(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Has the server describe these services, and the two of reflection itself.

    `services` are full names, such as "grpc.health.v1.Health". What they are made of has been imported: a description is
    looked up among all protobuf code that the process has loaded.
    """
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES), Pool())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": method}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods) for name in SERVICE_NAMES])


def _describe_v1() -> None:
    """Makes v1 known, so that it can be described too: it is v1alpha under another name. Doing it again changes nothing.

    Compared with src/proto/grpc/reflection/v1/reflection.proto of gRPC.
    """
    v1alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    text = text_format.MessageToString(v1alpha).replace("v1alpha", "v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
