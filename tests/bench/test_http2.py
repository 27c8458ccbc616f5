"""The light client against grpc.aio servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.timeouts import TIMEOUT_S
from tidegate.bench import http2
from tidegate.bench.http2 import Call, CallStatus, Connection, length_prefixed
from tidegate.bench.light_client import client_error

METHOD = "/a.Service/Method"
Handler = Callable[[Any], Any]


@asynccontextmanager
async def server(handle: Handler) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """Runs a server with one method, a stream of bytes in both directions."""

    async def run(_: Any, context: Any) -> None:
        await handle(context)

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(run)

    # Small fixed windows: the tests must not depend on what grpc measures of the network.
    options = [("grpc.so_reuseport", 0), ("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
    made = grpc.aio.server(options=options)
    made.add_generic_rpc_handlers((Handlers(),))
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield f"127.0.0.1:{port}", made
    finally:
        await made.stop(None)


class RecordedCall:
    """Collects what a call receives."""

    def __init__(self, connection: Connection) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Future[CallStatus] = asyncio.get_running_loop().create_future()
        self.call: Call = connection.call(METHOD, self.messages.put_nowait, self.ended.set_result)


async def echo(context: Any) -> None:
    """Answers each message with itself."""
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def mute(context: Any) -> None:
    """Reads nothing and sends nothing."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("size", [0, 1, 16_384 - 5, 16_384, 65_535, 1_000_000])
async def test_messages_of_any_size_come_back(size: int) -> None:
    """Also those that are larger than a frame or a window."""
    async with server(echo) as (address, _):
        connection = await Connection.open(address)
        recorded = RecordedCall(connection)
        messages = [bytes([number]) * size for number in range(3)]
        for message in messages:
            recorded.call.send(length_prefixed(message))
        assert [await recorded.messages.get() for _ in messages] == messages
        recorded.call.half_close()
        assert (await recorded.ended).code == 0
        connection.close()


async def test_calls_on_one_connection_do_not_mix() -> None:
    """Each gets its own answer, while others wait for flow control."""
    async with server(echo) as (address, _):
        connection = await Connection.open(address)
        calls = [RecordedCall(connection) for _ in range(20)]
        for number, recorded in enumerate(calls):
            recorded.call.send(length_prefixed(bytes([number]) * 100_000), last=True)
        for number, recorded in enumerate(calls):
            assert await recorded.messages.get() == bytes([number]) * 100_000
            assert (await recorded.ended).code == 0
        connection.close()


async def test_windows_are_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the call and of the connection: they can carry more than their first size."""
    monkeypatch.setattr(http2, "WINDOW_MAX", 100_000)
    monkeypatch.setattr(http2, "WINDOW_UPDATE_BYTES", 50_000)
    async with server(echo) as (address, _):
        connection = await Connection.open(address)
        recorded = RecordedCall(connection)
        for _ in range(20):
            recorded.call.send(length_prefixed(bytes(60_000)))
            assert len(await recorded.messages.get()) == 60_000
        connection.close()


async def test_data_that_a_server_does_not_read_waits() -> None:
    """Nothing is sent beyond the window."""
    async with server(mute) as (address, _):
        connection = await Connection.open(address)
        recorded = RecordedCall(connection)
        sent = 0
        while not recorded.call.blocked:
            recorded.call.send(length_prefixed(bytes(1000)))
            sent += 1005
            await asyncio.sleep(0)
        assert sent < 1_000_000
        connection.close()


async def test_a_client_that_does_not_read_gets_no_more_than_a_window() -> None:
    """It keeps the default windows and sends no WINDOW_UPDATE."""
    written: list[int] = []

    async def flood(context: Any) -> None:
        while len(written) < 1000:
            await context.write(bytes(10_000))
            written.append(10_000)

    async with server(flood) as (address, _):
        connection = await Connection.open(address, reads=False)
        recorded = RecordedCall(connection)
        received = 0
        while received < 60_000:
            received += len(await recorded.messages.get()) + 5
        # By now everything has arrived that fits into the window.
        for _ in range(100):
            await asyncio.sleep(0)
        assert received + sum(len(recorded.messages.get_nowait()) for _ in range(recorded.messages.qsize())) <= 65_535
        assert not recorded.ended.done()
        connection.close()


def details(reason: str) -> bytes:
    """Returns the status details of a call that Tidegate ends."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain="tidegate.v1", reason=reason))
    return status_pb2.Status(code=8, message="no", details=[detail]).SerializeToString()  # type: ignore[no-any-return]


@pytest.mark.parametrize("words", ["no room", "a % and a ü", "long " * 500])
async def test_the_status_of_a_call_is_parsed(words: str) -> None:
    """Code, message and details of any length. Other headers are skipped."""

    async def refuse(context: Any) -> None:
        trailers = (
            ("a-header", "of another"),
            ("grpc-status-details-bin", details("TOO_MANY_STREAMS")),
            ("z", "z" * 200),
        )
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words, trailers)

    async with server(refuse) as (address, _):
        connection = await Connection.open(address)
        status = await RecordedCall(connection).ended
        assert (status.code, status.message) == (8, words)
        assert client_error(status).reason == "TOO_MANY_STREAMS"
        connection.close()


async def test_a_cancelled_call_receives_nothing_more() -> None:
    """The other calls of its connection continue."""
    async with server(echo) as (address, _):
        connection = await Connection.open(address)
        cut, other = RecordedCall(connection), RecordedCall(connection)
        cut.call.send(length_prefixed(b"a"))
        cut.call.cancel()
        other.call.send(length_prefixed(b"b"))
        assert await other.messages.get() == b"b"
        assert cut.messages.empty()
        assert not cut.ended.done()
        connection.close()


async def test_a_server_that_disconnects_ends_calls() -> None:
    """Running calls and later ones. The code is UNAVAILABLE, or that of the server."""
    async with server(echo) as (address, made):
        connection = await Connection.open(address)
        recorded = RecordedCall(connection)
        recorded.call.send(length_prefixed(b"a"))
        await recorded.messages.get()
        await made.stop(None)
        assert (await recorded.ended).code in (1, 14)
        while connection._closed is None:  # noqa: ASYNC110 - the connection notifies only its calls
            await asyncio.sleep(0)
        assert (await RecordedCall(connection).ended).code == 14
        connection.close()  # GOAWAY may come long before the end of the connection
