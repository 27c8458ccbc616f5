"""Requests that cannot be decoded, and the size of refusals."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.calls import Ending, RawCall, ending_of, raw_channel, read_ending
from tests.graphs import running_sum, write_model
from tests.servers import run_server
from tests.timeouts import TIMEOUT_S
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

GARBAGE = b"\xff\xff this is no message"
UNARY = [
    *(
        f"/tidegate.v1.TidegateService/{name}"
        for name in ("ListModels", "DescribeModel", "ListStreams", "DescribeStream")
    ),
    *(
        f"/tidegate.v1.TidegateService/{name}"
        for name in ("DeleteStream", "ExportStream", "ImportStream", "ForkStream")
    ),
    "/grpc.health.v1.Health/Check",
]
STREAMS = [
    *("/tidegate.v1.TidegateService/Predict", "/tidegate.v1.TidegateService/PredictBlocks"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
# The metadata that gRPC accepts by default.
METADATA_BYTES_MAX = 8192
LONG = "\U0001f527" * 64


async def ask(channel: grpc.aio.Channel, method: str, data: bytes) -> Ending:
    """The status of a unary call with these bytes."""
    call = channel.unary_unary(method)(data)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await call
    except grpc.aio.AioRpcError as error:
        return read_ending(error.code(), error.details(), error.trailing_metadata())
    return read_ending(grpc.StatusCode.OK, "", ())


@pytest.mark.parametrize("method", UNARY)
async def test_garbage_to_a_unary_call_is_invalid(
    sum_root: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a reason and a message for the client, and nothing in the log of the server."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        caplog.set_level(logging.INFO)
        caplog.clear()
        ending = await ask(channel, method, GARBAGE)
        assert (ending.code, ending.reason, ending.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            ("request",),
        )
        assert "got bytes that are not a request" in ending.message
        assert not caplog.records


@pytest.mark.parametrize("method", [*STREAMS, "/grpc.health.v1.Health/Watch"])
async def test_garbage_to_a_streaming_call_is_invalid(
    sum_root: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As for a unary call."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        caplog.set_level(logging.INFO)
        caplog.clear()
        call = channel.unary_stream(method)(GARBAGE)
        ending = await ending_of(call)
        assert (ending.code, ending.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert not caplog.records


async def test_what_can_be_read_is_answered_as_before(sum_root: Path) -> None:
    """Health, its watch and a call without fields, all of which are empty messages."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert (await ask(channel, "/grpc.health.v1.Health/Check", b"")).code is grpc.StatusCode.OK
        assert (await ask(channel, "/tidegate.v1.TidegateService/ListModels", b"")).code is grpc.StatusCode.OK
        assert (await ask(channel, "/tidegate.v1.TidegateService/Nothing", b"")).code is grpc.StatusCode.UNIMPLEMENTED
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watch.read() == b"\x08\x01"
        watch.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server of many models with long names; it takes a second to start, so there is one for all tests."""
    models = tmp_path_factory.mktemp("crowded")
    for number in range(40):
        write_model(models, running_sum(), f"{number:03}" + "n" * 200)
    async with run_server(models, live_max=8) as server:
        yield server


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("DescribeModel", pb.DescribeModelRequest(name="no such model")),
        ("DescribeModel", pb.DescribeModelRequest(name="\U0001f527" * 100_000)),
        ("DescribeModel", pb.DescribeModelRequest()),
        ("DescribeStream", pb.DescribeStreamRequest(stream_id=LONG)),
        ("DescribeStream", pb.DescribeStreamRequest(stream_id="\U000e0001" * 64)),
        ("DescribeStream", pb.DescribeStreamRequest(stream_id="\U0001f527" * 100_000)),
        ("ForkStream", pb.ForkStreamRequest(stream_id=LONG, new_stream_id="\U000e0001" * 64)),
        ("ImportStream", pb.ImportStreamRequest(checkpoint=b"\xff" * 100_000)),
    ],
)
async def test_a_refusal_fits_into_what_metadata_may_weigh(crowded: Server, method: str, request_: Any) -> None:
    """With any names and any number of models: a long message is cut, and keeps its own code."""
    async with raw_channel(crowded) as channel:
        call = channel.unary_unary(f"/tidegate.v1.TidegateService/{method}")(request_.SerializeToString())
        async with asyncio.timeout(TIMEOUT_S):
            code, trailers = await call.code(), await call.trailing_metadata()
        assert code.name in ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
        # Each byte of the message may take three, and each three bytes of the details take four. Names count too.
        details = dict(trailers or ())["grpc-status-details-bin"]
        assert 3 * len((await call.details()).encode()) + len(details) * 4 / 3 + 200 < METADATA_BYTES_MAX


@pytest.mark.asyncio(loop_scope="module")
async def test_the_error_for_an_unknown_model_lists_some_served_ones(crowded: Server) -> None:
    """Eight by name, the others as a number."""
    async with raw_channel(crowded) as channel:
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(model="pump")))
        message = (await call.ending()).message
    assert "'pump' is not served; served are 000nnn" in message
    assert message.endswith(" and 32 more")
    assert message.count("nnn, ") + message.count("..., ") == 7
