"""What the streaming calls share: they read, are asked to end meanwhile, and are told on the side.

A call's own coroutine reads and answers. What is told beside that is told only while it reads, or waits for something of
its own, so one of the two writes. A call that has still others write sees to it that one at a time does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

log = logging.getLogger("tidegate.call")

# grpc ships no types: a grpc.aio.ServicerContext, for the reader's eye.
Context = Any
T = TypeVar("T")


class Call:
    """One call.

    Attributes:
        reading: whether its own coroutine reads, or waits as if it did.
        telling: the task that writes beside that coroutine, while there is one.
        ended: why the call was asked to end.
        left_unsaved: streams that the store did not take before the call had to end.

    """

    def __init__(self, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.context = context
        self._ahead: asyncio.Task[Any] | None = None  # reads the next message
        self.reading = False
        self.telling: asyncio.Task[None] | None = None
        self.ended: Exception | None = None
        self.left_unsaved = 0

    def end(self, reason: Exception) -> None:
        """Ends the call with `reason` once what is under way is answered."""
        if self.ended is None:
            self.ended = reason
            if self.reading:
                self._task.cancel()

    async def read(self) -> Any:
        """The next message as the method's handler has it read, None when the client has sent its last.

        Raises:
            Exception: why the call was asked to end.

        """
        message = await self.wait(self._next_message)
        return None if message is grpc.aio.EOF else message

    def read_ahead(self) -> None:
        """Begins to read the next message; `read` gives it. At most one is read ahead."""
        assert self._ahead is None
        self._ahead = asyncio.create_task(self.context.read())

    @property
    def has_next(self) -> bool:
        """Whether the next message, or the end, was read ahead and is here."""
        return self._ahead is not None and self._ahead.done()

    def read_no_more(self) -> None:
        """Ends what was read ahead. For the end of the call: what the client had sent is not answered."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            ahead.add_done_callback(look_at)

    async def _next_message(self) -> Any:
        ahead, self._ahead = self._ahead, None
        return await (self.context.read() if ahead is None else ahead)

    async def wait(self, begin: Callable[[], Awaitable[T]]) -> T:
        """What comes of something that may take long, and that the end of the call breaks off; others may tell meanwhile.

        Raises:
            Exception: why the call was asked to end.

        """
        if self.ended is not None:
            raise self.ended
        self.reading = True
        try:
            return await begin()
        except asyncio.CancelledError:
            if self.ended is None:
                raise  # the client went away
            self._task.uncancel()
            raise self.ended from None
        finally:
            self.reading = False
            if self.telling is not None:
                await self._told()

    def tell_beside(self, telling: Coroutine[Any, Any, None]) -> None:
        """Has something told while the call reads. Only when it reads, and nothing is being told."""
        assert self.reading
        assert self.telling is None
        self.telling = asyncio.create_task(self._beside(telling))

    async def _beside(self, telling: Coroutine[Any, Any, None]) -> None:
        await telling
        self.telling = None  # the call may go on reading for long, and have more to tell; an error is kept for `_told`

    async def _told(self) -> None:
        """Waits for what is being told: only one may write at a time."""
        telling, self.telling = self.telling, None
        assert telling is not None
        try:
            await asyncio.wait([telling])
        except asyncio.CancelledError:
            telling.add_done_callback(look_at)  # the client has gone while it was told, and nobody waits any longer
            raise
        if not telling.cancelled() and (error := telling.exception()) is not None and not self.context.cancelled():
            raise error


def look_at(task: asyncio.Task[Any]) -> None:
    """Looks at how a read or a write went that nobody waits for. One that met the end of its call is no news."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, (grpc.aio.InternalError, grpc.aio.UsageError)):
        log.error("a call failed to read or write beside its answers", exc_info=error)
