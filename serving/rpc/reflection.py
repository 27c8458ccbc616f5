"""Server reflection: tools such as grpcurl can describe the services without the proto file.

grpcio-reflection implements the protocol as `grpc.reflection.v1alpha`. Newer tools ask for `grpc.reflection.v1` first.
The two differ only in the name of their package: services, messages, fields and numbers are the same. So one servicer
answers both.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1_SERVICE_NAME = "grpc.reflection.v1.ServerReflection"
SERVICE_NAMES = (V1_SERVICE_NAME, reflection.SERVICE_NAME)


class Pool:
    """Descriptor pools as one. Unlike those of protobuf, it can also find the file of a method: grpcurl asks for it.

    What an earlier pool has hides what a later one has under the same name.
    """

    def __init__(self, pools: Sequence[Any]) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Any:
        """Everything else asks one pool after the other."""

        def find(*arguments: Any) -> Any:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], name)(*arguments)

        return find

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  # protobuf's name
        """The file that defines a message, a field, an enum, a service or a method.

        Raises KeyError when there is none.
        """
        for pool in self._pools:
            try:
                return pool.FindFileContainingSymbol(symbol)
            except KeyError:
                pass
            try:
                return pool.FindMethodByName(symbol).containing_service.file
            except KeyError:
                pass
        raise KeyError(symbol)


def add_to_server(services: Iterable[str], server: grpc.aio.Server, pools: Sequence[Any] = ()) -> None:
    """Makes the server describe these services, and the two of reflection itself.

    `services` are full names, such as "grpc.health.v1.Health". Their generated code must be imported: descriptions come
    from these descriptor pools, and from the default one.
    """
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES), Pool((*pools, descriptor_pool.Default())))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": method}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods) for name in SERVICE_NAMES])


def _describe_v1() -> None:
    """Registers a description of v1: it is v1alpha under another name. Calling it again changes nothing.

    Compared with src/proto/grpc/reflection/v1/reflection.proto of gRPC.
    """
    v1alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    text = text_format.MessageToString(v1alpha).replace("v1alpha", "v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
