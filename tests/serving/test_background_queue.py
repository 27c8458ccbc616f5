"""Messages of a call that are handled in the background: one at a time, in order, and never lost without an error."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.access import ANYBODY, ANYBODY_GETS_IN
from tests.timeouts import TIMEOUT_S
from tidegate.rpc import background_queue as queue_module
from tidegate.rpc.background_queue import BackgroundQueue
from tidegate.rpc.multi_stream_call import MultiStreamCall
from tidegate.rpc.stream_quota import StreamQuota


class Work:
    """Records which messages have started and ended; each waits until it is released."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self.failures: list[Exception] = []
        self.permits = asyncio.Semaphore(0)
        self.cleared = asyncio.Event()
        self.cleared.set()
        self.line: BackgroundQueue[int] = BackgroundQueue(self.do, self.failures.append)

    async def do(self, number: int) -> None:
        """Handles one message: fails for number 13; when cancelled, ends only once `cleared` is set."""
        self.begun.append(number)
        try:
            await self.permits.acquire()
        except asyncio.CancelledError:
            await self.cleared.wait()
            raise
        if number == 13:
            raise ValueError(number)
        self.done.append(number)


async def turns() -> None:
    """Lets all tasks run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_is_done_after_the_other() -> None:
    """Messages are handled in order, and the queue is idle when all are done."""
    work = Work()
    assert work.line.idle
    for number in range(3):
        await work.line.put(number)
    await turns()
    assert (work.begun, work.line.idle) == ([0], False)
    finishing = asyncio.create_task(work.line.join())
    for _ in range(2):
        work.permits.release()
    await turns()
    assert (work.begun, work.done, finishing.done()) == ([0, 1, 2], [0, 1], False)
    work.permits.release()
    async with asyncio.timeout(TIMEOUT_S):
        await finishing
    assert work.line.idle


async def test_who_brings_more_than_may_wait_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`put` waits until another message has started."""
    monkeypatch.setattr(queue_module, "QUEUE_MAX", 2)
    work = Work()
    await work.line.put(0)
    await turns()
    for number in (1, 2):
        await work.line.put(number)
    putting = asyncio.create_task(work.line.put(3))
    await turns()
    assert not putting.done()
    work.permits.release()
    async with asyncio.timeout(TIMEOUT_S):
        await putting
    assert work.begun == [0, 1]


async def test_a_failure_is_reported() -> None:
    """After a failure no message is handled."""
    work = Work()
    for number in (13, 14):
        await work.line.put(number)
    work.permits.release()
    await turns()
    assert [str(error) for error in work.failures] == ["13"]
    assert work.begun == [13]


async def test_what_is_broken_off_has_ended_before_anything_follows() -> None:
    """Also when the waiting task is cancelled again: a stream that is being opened must not join a call that is over."""
    work = Work()
    work.cleared.clear()
    for number in range(2):
        await work.line.put(number)
    await turns()
    work.line.cancel()
    ending = asyncio.create_task(work.line.wait_stopped())
    await turns()
    ending.cancel()
    await turns()
    assert not ending.done()
    work.cleared.set()
    await asyncio.wait([ending], timeout=TIMEOUT_S)
    assert ending.cancelled()
    assert (work.begun, work.done, work.failures) == ([0], [], [])


async def test_a_line_that_never_began_has_ended() -> None:
    """Most calls need no task."""
    work = Work()
    work.line.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        await work.line.wait_stopped()


async def test_an_answer_that_is_being_written_is_written_whole() -> None:
    """An answer is completed although its writer is cancelled: a slow client gets it, and then what follows."""
    written: list[bytes] = []
    reads = asyncio.Event()

    class Context:
        """A client that reads on request."""

        async def write(self, response: bytes) -> None:
            """Waits for the client."""
            await reads.wait()
            written.append(response)

    backend: Any = SimpleNamespace()
    call = MultiStreamCall(backend, ANYBODY_GETS_IN, Context(), ANYBODY, StreamQuota(8), 1024)
    writing = asyncio.create_task(call._write_shielded(b"answer"))
    await turns()
    writing.cancel()
    next_ = asyncio.create_task(call._write(b"next"))
    await turns()
    assert not writing.done()
    reads.set()
    async with asyncio.timeout(TIMEOUT_S):
        await next_
    assert written == [b"answer", b"next"]
    await asyncio.wait([writing], timeout=TIMEOUT_S)
    assert writing.cancelled()
