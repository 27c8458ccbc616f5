"""What tools learn from a server without the proto file, under both names of the protocol."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.calls import ending_of, raw_channel
from tests.servers import address_of, run_server
from tests.timeouts import TIMEOUT_S
from tests.tools import find_tool

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
SERVICE = "tidegate.v1.TidegateService"
KSERVE = "inference.GRPCInferenceService"
SYMBOLS = [
    KSERVE,
    f"{KSERVE}.ModelInfer",
    "inference.ModelInferRequest.parameters",
    SERVICE,
    f"{SERVICE}.PredictOne",
    "tidegate.v1.Open.resume_from",
    "tidegate.v1.Error.Reason",
    "google.rpc.ErrorInfo",
    "google.rpc.RetryInfo",
    "google.rpc.BadRequest",
    "google.rpc.Status",
    "google.protobuf.Duration",
    "grpc.health.v1.Health",
    V1,
    V1ALPHA,
]
NOT_FOUND, INVALID_ARGUMENT = (code.value[0] for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT))


@pytest.fixture(params=[V1, V1ALPHA])
def protocol(request: pytest.FixtureRequest) -> str:
    """Each name of the protocol's service."""
    return str(request.param)


@pytest.fixture
async def channel(sum_root: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to a running server."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        yield channel


async def ask(channel: grpc.aio.Channel, protocol: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    """The answer to one request."""
    call = channel.stream_stream(
        f"/{protocol}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    async with asyncio.timeout(TIMEOUT_S):
        await call.write(reflection_pb2.ServerReflectionRequest(**request))
        response = await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
    return response


def names_in(file: descriptor_pb2.FileDescriptorProto) -> set[str]:
    """The full names of a file's services, methods, messages, fields and enums."""
    names = set()
    for service in file.service:
        names |= {service.name, *(f"{service.name}.{method.name}" for method in service.method)}
    for message in file.message_type:
        names |= {message.name, *(f"{message.name}.{part.name}" for part in (*message.field, *message.enum_type))}
    return {f"{file.package}.{name}" for name in names}


async def test_the_services_are_listed(channel: grpc.aio.Channel, protocol: str) -> None:
    """All services, including reflection's own two names."""
    listed = (await ask(channel, protocol, list_services="")).list_services_response.service
    assert {service.name for service in listed} == {SERVICE, KSERVE, "grpc.health.v1.Health", V1, V1ALPHA}


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_a_symbol_is_found_with_all_that_its_file_imports(
    channel: grpc.aio.Channel, protocol: str, symbol: str
) -> None:
    """Services, methods, messages, and the types of error details: a tool can show these too."""
    response = await ask(channel, protocol, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    assert symbol in set().union(*map(names_in, files))
    assert {name for file in files for name in file.dependency} <= {file.name for file in files}


@pytest.mark.parametrize("symbol", ["", ".", "tidegate.v2.TidegateService", f"{SERVICE}.PredictTwo"])
async def test_a_symbol_that_is_not_known_is_not_found(channel: grpc.aio.Channel, protocol: str, symbol: str) -> None:
    """Within the call, which continues."""
    assert (await ask(channel, protocol, file_containing_symbol=symbol)).error_response.error_code == NOT_FOUND


async def test_a_request_that_asks_for_nothing_is_invalid(channel: grpc.aio.Channel, protocol: str) -> None:
    """Within the call, which continues."""
    assert (await ask(channel, protocol)).error_response.error_code == INVALID_ARGUMENT


async def test_garbage_is_invalid(channel: grpc.aio.Channel, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a reason for the client, and nothing in the log of the server."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    ending = await ending_of(channel.unary_stream(f"/{protocol}/ServerReflectionInfo")(b"\xff\xff this is no message"))
    assert (ending.code, ending.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert not caplog.records


async def run_curl(protocol: str, *arguments: str) -> str:
    """The output of `buf curl`, which has no proto file and asks the server under that name of the protocol."""
    buf = find_tool("buf", "buf-bin is in the extra dev")
    name = protocol.removesuffix(".ServerReflection").replace(".reflection.", "-")
    options = ["--protocol=grpc", "--http2-prior-knowledge", "--reflect", f"--reflect-protocol={name}"]
    process = await asyncio.create_subprocess_exec(
        buf, "curl", *options, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(3 * TIMEOUT_S):  # a program of 45 MB has to start first
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_tool_calls_a_method_found_by_reflection(sum_root: Path, protocol: str) -> None:
    """Another implementation of a reflection client: it encodes the request from JSON and shows the answer."""
    async with run_server(sum_root) as server:
        url = f"http://{address_of(server)}/{SERVICE}/DescribeModel"
        answer: dict[str, Any] = json.loads(await run_curl(protocol, "--data", '{"name": "toy"}', url))
    assert answer["model"]["name"] == "toy"
