"""What a hostile client tries, and that the server and other clients notice nothing."""

import asyncio
import http.client
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import RawBlocks, RawCall, raw_channel
from tests.kserve.calls import StreamInfer, infer_request, parameters_of
from tests.servers import address_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client
from tidegate.rpc import predict_blocks, servicer
from tidegate.rpc.kserve import messages as kserve
from tidegate.runtime import metrics_server
from tidegate.runtime.process import measure
from tidegate.runtime.server import Server

PREDICT = "/tidegate.v1.TidegateService/Predict"
BLOCKS = "/tidegate.v1.TidegateService/PredictBlocks"
ONE = "/tidegate.v1.TidegateService/PredictOne"
INFER, STREAM_INFER = (f"/{kserve.SERVICE_NAME}/{method}" for method in ("ModelInfer", "ModelStreamInfer"))
# Calls that stream and calls that do not, of both protocols.
METHODS = [PREDICT, BLOCKS, ONE, INFER, STREAM_INFER]
# Descriptors that come and go for other reasons: connections of this test, files that are read again.
DESCRIPTORS_SPARE = 8


@asynccontextmanager
async def bystander(server: Server) -> AsyncIterator[None]:
    """A client whose stream is answered before, while and after something happens, with the right sums.

    At the end no connection is left over.
    """
    before = descriptors()
    async with _stepping(server):
        yield
    await eventually(lambda: descriptors() <= before + DESCRIPTORS_SPARE, "the end of connections")


def descriptors() -> int:
    """How many descriptors the server has open: it runs in this process."""
    return int(measure(os.getpid())["process_open_fds"])


@asynccontextmanager
async def _stepping(server: Server) -> AsyncIterator[None]:
    async with Client(address_of(server)) as client, client.open("bystander") as stream:
        stop = asyncio.Event()

        async def step() -> None:
            while not stop.is_set():
                await stream.step([1.0])
                await asyncio.sleep(0.005)

        stepping = asyncio.create_task(step())
        try:
            yield
        finally:
            stop.set()
            await stepping
        count = stream.next_step
        assert (await stream.step([1.0]))["sum"].item() == count


@pytest.mark.parametrize("method", [PREDICT, BLOCKS])
async def test_a_call_that_never_opens_a_stream_ends(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Thousands of them would hold memory for nothing."""
    monkeypatch.setattr(servicer, "OPEN_SECONDS", 0.05)
    monkeypatch.setattr(predict_blocks, "OPEN_SECONDS", 0.05)
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(server):
        calls = [channel.stream_stream(method)() for _ in range(50)]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="no open within") as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_quiet_call_with_streams_does_not_end(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor may be silent for hours."""
    monkeypatch.setattr(servicer, "OPEN_SECONDS", 0.05)
    monkeypatch.setattr(predict_blocks, "OPEN_SECONDS", 0.05)
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        single, blocks = RawCall(channel), RawBlocks(channel)
        await single.open("a")
        (handle,) = (await blocks.open("b")).handles
        await asyncio.sleep(0.2)
        assert (await single.step(1)).WhichOneof("kind") == "prediction"
        assert not (await blocks.block([handle], [[1]])).errors


@pytest.mark.parametrize("method", METHODS)
async def test_a_decompression_bomb_takes_no_memory(sum_root: Path, method: str) -> None:
    """Zeros that take a thousandth of the space are refused before they are unpacked."""
    options = [("grpc.max_send_message_length", -1)]
    async with run_server(sum_root) as server, bystander(server):
        before = measure_peak()
        async with grpc.aio.insecure_channel(
            address_of(server), options=options, compression=grpc.Compression.Gzip
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send_one(channel, method, bytes(64 << 20))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The client of this test has the message itself, twice: as it is, and compressed.
        assert measure_peak() - before < 3 * (64 << 20)


async def send_one(channel: grpc.aio.Channel, method: str, message: bytes, **options: Any) -> None:
    """A call with one message, whatever the method; raises how it ends."""
    call = channel.stream_stream(method)(one_message(message), timeout=TIMEOUT_S, **options)
    async for _ in call:
        pass


async def one_message(message: bytes) -> AsyncIterator[bytes]:
    """The only message of a call."""
    yield message


def measure_peak() -> float:
    """The resident memory of this process."""
    return measure(os.getpid())["process_resident_memory_bytes"]


@pytest.mark.parametrize("method", METHODS)
async def test_huge_metadata_is_refused(sum_root: Path, method: str) -> None:
    """GRPC's own limit is 16 KiB a call."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(server):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send_one(channel, method, b"", metadata=[("x", "y" * 100_000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", [PREDICT, BLOCKS, STREAM_INFER])
async def test_calls_that_are_cancelled_at_once_leave_nothing(sum_root: Path, method: str) -> None:
    """The rapid reset of HTTP/2: thousands of calls, each cancelled in the turn in which it is made."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(server):
        for _ in range(20):
            calls: list[Any] = [channel.stream_stream(method)() for _ in range(100)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
        await eventually(lambda: len(server._servicer._calls) == 1, "the end of the calls")
        assert live(server) == 1


async def test_a_flood_of_opens_ends_at_the_limit(sum_root: Path) -> None:
    """The connection has its share of live streams, and the bystander keeps its own."""
    async with run_server(sum_root, live_max=64) as server, raw_channel(server) as channel, bystander(server):
        blocks = RawBlocks(channel)
        opened = await blocks.open(*(f"s{number}" for number in range(500)))
        assert sum(handle > 0 for handle in opened.handles) == 56
        assert {error.error.reason for error in opened.errors} == {12}  # REASON_TOO_MANY_STREAMS


async def test_a_flood_of_sequences_ends_at_the_limit(sum_root: Path) -> None:
    """The same over the KServe protocol: each start beyond it is refused with its reason."""
    async with run_server(sum_root, live_max=64) as server, raw_channel(server) as channel, bystander(server):
        call = StreamInfer(channel)
        await call.send(*(infer_request(number, 1.0, start=True) for number in range(1, 301)))
        answers = [await call.read() for _ in range(300)]
        refused = [answer for answer in answers if answer.error_message]
        assert len(answers) - len(refused) == 56
        assert {parameters_of(answer.infer_response)["reason"] for answer in refused} == {"TOO_MANY_STREAMS"}


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"PRI * HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["silent", "half a preface", "http 1", "tls", "no settings"],
)
async def test_connections_that_never_get_to_a_call_harm_nobody(sum_root: Path, first: bytes) -> None:
    """A slow loris: a hundred connections that send a byte now and then. Calls of others are answered meanwhile."""
    async with run_server(sum_root) as server, bystander(server):
        with ExitStack() as stack:
            slow = [socket.create_connection(("127.0.0.1", server.grpc_port), TIMEOUT_S) for _ in range(100)]
            for connection in slow:
                stack.enter_context(connection)
                connection.sendall(first)
            for _ in range(5):
                for connection in slow:
                    with suppress(ConnectionError):  # the server may have closed it
                        connection.sendall(b"x")
                async with Client(address_of(server)) as another:
                    assert [model.name for model in await another.models()] == ["toy"]


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
async def test_slow_readers_of_metrics_do_not_pile_up(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Each takes a thread, so there are only so many; the next scrape after them is answered."""
    monkeypatch.setattr(metrics_server, "REQUESTS_MAX", 4)
    async with run_server(sum_root) as server:
        port = server.metrics_port
        slow = [socket.create_connection(("127.0.0.1", port), TIMEOUT_S) for _ in range(8)]
        try:
            closed = await asyncio.to_thread(count_closed, slow)
            assert closed == 4
        finally:
            for connection in slow:
                connection.close()
        assert await asyncio.to_thread(ask, port, path) == 200


async def test_a_flood_of_scrapes_does_not_stop_timesteps(sum_root: Path) -> None:
    """Each is answered or turned away, at once; the next scrape after it is answered."""
    async with run_server(sum_root) as server, bystander(server):
        for _ in range(3):
            with ExitStack() as stack:
                for _ in range(60):
                    connection = socket.create_connection(("127.0.0.1", server.metrics_port), TIMEOUT_S)
                    stack.enter_context(connection)
                    with suppress(ConnectionError):
                        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert await asyncio.to_thread(ask, server.metrics_port, "/metrics") == 200


def count_closed(connections: list[socket.socket]) -> int:
    """How many of these connections the server closes; the others stay open."""
    closed = 0
    for connection in connections:
        connection.settimeout(0.5)
        with suppress(TimeoutError):
            closed += connection.recv(1) == b""
    return closed


def ask(port: int, path: str) -> int:
    """The status of a path; it is tried again while the server is full."""
    for _ in range(100):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (ConnectionError, http.client.BadStatusLine):
            continue
        finally:
            connection.close()
    raise AssertionError("it is always full")
