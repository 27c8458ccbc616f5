"""The base of the streaming calls: notifications, and clients that disconnect during one."""

import asyncio
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tests.access import ANYBODY, ANYBODY_GETS_IN
from tests.timeouts import TIMEOUT_S
from tidegate.rpc.call import Call
from tidegate.rpc.predict_blocks import PredictBlocksCall
from tidegate.rpc.servicer import PredictCall
from tidegate.rpc.stream_quota import StreamQuota


class Context:
    """A client that sends a message on request, and does not read until it disconnects."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.gone = asyncio.Event()
        self.writing = asyncio.Event()

    async def read(self) -> bytes:
        """The next message."""
        await self.sent.wait()
        return b"message"

    async def write(self, _: bytes) -> None:
        """Waits for a reader that never comes."""
        self.writing.set()
        await self.gone.wait()
        raise grpc.aio.InternalError("the call has ended")

    def cancelled(self) -> bool:
        """Whether the client has disconnected."""
        return self.gone.is_set()


def predict_call(context: Context) -> tuple[Call, Callable[[], None]]:
    """A `Predict` call, and what makes it send a notification."""
    call = PredictCall(context, ANYBODY, StreamQuota(8))
    call.lease = SimpleNamespace(durable_step=call.client_buffer_max)  # type: ignore[assignment]
    return call, call.on_durable


def block_call(context: Context) -> tuple[Call, Callable[[], None]]:
    """A `PredictBlocks` call, and what makes it send a notification."""
    call = PredictBlocksCall(SimpleNamespace(), ANYBODY_GETS_IN, context, ANYBODY, StreamQuota(8), 1024)  # type: ignore[arg-type]
    call._endings.append((1, SimpleNamespace()))  # type: ignore[arg-type]
    call._send_notifications = lambda: context.write(b"")  # type: ignore[method-assign]
    return call, call._on_stored


@pytest.mark.parametrize("make", [predict_call, block_call])
async def test_a_client_that_disconnects_during_a_notification_leaves_no_error(
    make: Callable[[Context], tuple[Call, Callable[[], None]]],
) -> None:
    """Its call is cancelled while it waits for a notification to be written.

    The result of that write is examined nevertheless.
    """
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    context = Context()
    calls: list[tuple[Call, Callable[[], None]]] = []

    async def handle() -> None:
        calls.append(make(context))
        await calls[0][0].read()

    handling = asyncio.create_task(handle())
    await asyncio.sleep(0)  # it reads
    calls[0][1]()
    async with asyncio.timeout(TIMEOUT_S):
        await context.writing.wait()
    context.sent.set()
    for _ in range(3):
        await asyncio.sleep(0)  # it has read, and waits for the notification
    handling.cancel()
    await asyncio.gather(handling, return_exceptions=True)
    context.gone.set()
    for _ in range(3):
        await asyncio.sleep(0)  # the notification fails because the call has ended
    del calls[:], handling
    gc.collect()
    assert not complaints


async def test_a_message_that_was_read_ahead_is_the_next() -> None:
    """Reading ahead changes when a message is read, and nothing else."""
    context = Context()
    call = Call(context, ANYBODY)
    call.read_ahead()
    await asyncio.sleep(0)
    assert not call.has_next
    context.sent.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert call.has_next
    assert await call.read() == b"message"
    assert not call.has_next


async def test_a_call_that_is_asked_to_end_gives_up_what_it_reads_ahead() -> None:
    """It ends with the reason, and its read ends too: gRPC does not allow a read that outlives its call."""
    context = Context()
    calls: list[Call] = []

    async def handle() -> None:
        calls.append(Call(context, ANYBODY))
        calls[0].read_ahead()
        await calls[0].read()

    handling = asyncio.create_task(handle())
    for _ in range(2):
        await asyncio.sleep(0)  # it reads
    others = asyncio.all_tasks() - {handling, asyncio.current_task()}
    calls[0].end(RuntimeError("enough"))
    with pytest.raises(RuntimeError, match="enough"):
        await handling
    assert len(others) == 1
    assert all(task.cancelled() for task in others)
