"""Messages of a call that are done beside its own coroutine.

It does not know what they ask for. Its laws:
1. They are done one at a time, in the order in which they came.
2. At most `WAITING_MAX` wait; who brings one more waits until there is room.
3. One that fails is told to `failed`, and none is done after it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# A message may have 4 MiB: a call that floods has the server keep 64 MiB. Who opens more at once puts more into a message.
WAITING_MAX = 16


class Background(Generic[T]):
    """Does messages, one after the other, in a task that begins with the first.

    Args:
        do: does one message, to the end.
        failed: is called once, with what `do` raised.

    """

    def __init__(self, do: Callable[[T], Awaitable[None]], failed: Callable[[Exception], None]) -> None:
        self._do = do
        self._failed = failed
        self._waiting: asyncio.Queue[T] = asyncio.Queue(WAITING_MAX)
        self._left = 0  # not done: those that wait, and the one that is being done
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Background: {self._left} left>"

    @property
    def idle(self) -> bool:
        """Whether all that was put has been done."""
        return not self._left

    async def put(self, message: T) -> None:
        """Has a message done after those before it; waits until there is room."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(self._ended)
        await self._waiting.put(message)
        self._left += 1

    async def finish(self) -> None:
        """Waits until all that was put has been done; without end, when one of them fails."""
        await self._waiting.join()

    def cancel(self) -> None:
        """Breaks off what is being done, and does nothing more."""
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Waits until nothing is under way any more, once it is cancelled or has failed.

        Who is cancelled meanwhile waits all the same: what follows may rely on it.
        """
        if self._task is not None:
            await end_of(self._task)

    async def _work(self) -> None:
        while True:
            await self._do(await self._waiting.get())
            self._left -= 1
            self._waiting.task_done()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._failed(error)


async def end_of(task: asyncio.Task[Any]) -> None:
    """Waits until a task has ended, whatever comes of it; who is cancelled meanwhile waits all the same."""
    again: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            again = error
    if again is not None:
        raise again
