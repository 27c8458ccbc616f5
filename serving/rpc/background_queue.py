"""Messages of a call that are handled beside the call's own coroutine.

The queue does not know what the messages mean. Its rules:
1. Messages are handled one at a time, in the order in which they came.
2. At most `QUEUE_MAX` messages wait. `put` waits until there is room.
3. When a message fails, `on_error` gets the error, and no later message is handled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# A message may have 4 MiB, so a call that floods the server takes 64 MiB. To open more streams at once, put more of
# them in a message.
QUEUE_MAX = 16


class BackgroundQueue(Generic[T]):
    """Handles messages one after the other, in a task that starts with the first.

    Args:
        handle: handles one message completely.
        on_error: called once, with what `handle` raised.

    """

    def __init__(self, handle: Callable[[T], Awaitable[None]], on_error: Callable[[Exception], None]) -> None:
        self._handle = handle
        self._on_error = on_error
        self._queue: asyncio.Queue[T] = asyncio.Queue(QUEUE_MAX)
        self._unfinished = 0  # messages that wait, and the one that is being handled
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<BackgroundQueue: {self._unfinished} unfinished>"

    @property
    def idle(self) -> bool:
        """Whether every message was handled."""
        return not self._unfinished

    async def put(self, message: T) -> None:
        """Queues a message; waits until there is room."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._ended)
        await self._queue.put(message)
        self._unfinished += 1

    async def join(self) -> None:
        """Waits until every message was handled; for ever, when one of them fails."""
        await self._queue.join()

    def cancel(self) -> None:
        """Cancels the message that is being handled, and handles no more."""
        if self._task is not None:
            self._task.cancel()

    async def wait_stopped(self) -> None:
        """Waits until the task has stopped, after it was cancelled or has failed.

        A caller that is cancelled meanwhile waits all the same, because what follows relies on it.
        """
        if self._task is not None:
            await wait_for_end(self._task)

    async def _run(self) -> None:
        while True:
            await self._handle(await self._queue.get())
            self._unfinished -= 1
            self._queue.task_done()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._on_error(error)


async def wait_for_end(task: asyncio.Future[Any]) -> None:
    """Waits until a task has ended, with any result. A caller that is cancelled meanwhile waits all the same."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
