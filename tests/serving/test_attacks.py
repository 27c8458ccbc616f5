"""What a hostile client tries, and that the server and other clients notice nothing."""

import asyncio
import http.client
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import RawBlocks, RawCall, raw_channel
from tests.servers import address_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client
from tidegate.rpc import predict_blocks, servicer
from tidegate.runtime import metrics_server
from tidegate.runtime.process import measure
from tidegate.runtime.server import Server

PREDICT = "/tidegate.v1.TidegateService/Predict"
BLOCKS = "/tidegate.v1.TidegateService/PredictBlocks"
ONE = "/tidegate.v1.TidegateService/PredictOne"


@asynccontextmanager
async def bystander(server: Server) -> AsyncIterator[None]:
    """A client whose stream is answered before, while and after something happens."""
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


async def test_a_decompression_bomb_takes_no_memory(sum_root: Path) -> None:
    """A gigabyte of zeros in a megabyte is refused before it is unpacked."""
    options = [("grpc.max_send_message_length", -1)]
    async with run_server(sum_root) as server, bystander(server):
        before = measure_peak()
        async with grpc.aio.insecure_channel(
            address_of(server), options=options, compression=grpc.Compression.Gzip
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(ONE)(bytes(64 << 20), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The client of this test has the message itself, twice: as it is, and compressed.
        assert measure_peak() - before < 3 * (64 << 20)


def measure_peak() -> float:
    """The resident memory of this process."""
    return measure(os.getpid())["process_resident_memory_bytes"]


async def test_huge_metadata_is_refused(sum_root: Path) -> None:
    """GRPC's own limit is 16 KiB a call."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(server):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(ONE)(b"", metadata=[("x", "y" * 100_000)], timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_calls_that_are_cancelled_at_once_leave_nothing(sum_root: Path) -> None:
    """The rapid reset of HTTP/2: thousands of calls, each cancelled in the turn in which it is made."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(server):
        for _ in range(20):
            calls: list[Any] = [channel.stream_stream(PREDICT)() for _ in range(100)]
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
