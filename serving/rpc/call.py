"""What the streaming calls share: they read, are asked to end meanwhile, and are told on the side.

A call's own coroutine reads and answers. What is told beside that is told only while it reads, so one at a time writes.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import grpc

from serving.core.errors import TidegateError

log = logging.getLogger("tidegate.call")

# grpc ships no types: a grpc.aio.ServicerContext, for the reader's eye.
Context = Any


class Call:
    """One call. `telling` is the task that writes beside the call's own coroutine, while there is one."""

    def __init__(self, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.context = context
        self.reading = False
        self.telling: asyncio.Task[None] | None = None
        self.ended: TidegateError | None = None
        self.left_unsaved = 0  # streams that the store did not take before the call had to end

    def end(self, reason: TidegateError) -> None:
        """Ends the call with `reason` once what is under way is answered."""
        if self.ended is None:
            self.ended = reason
            if self.reading:
                self._task.cancel()

    async def read(self) -> Any:
        """The next message as the method's handler has it read, None when the client has sent its last.

        Raises:
            TidegateError: why the call was asked to end.

        """
        if self.ended is not None:
            raise self.ended
        self.reading = True
        try:
            message = await self.context.read()
        except asyncio.CancelledError:
            if self.ended is None:
                raise  # the client went away
            self._task.uncancel()
            raise self.ended from None
        finally:
            self.reading = False
            if self.telling is not None:
                await self._told()
        return None if message is grpc.aio.EOF else message

    def tell_beside(self, telling: Coroutine[Any, Any, None]) -> None:
        """Has something told while the call reads. Only when it reads, and nothing is being told."""
        assert self.reading
        assert self.telling is None
        self.telling = asyncio.create_task(telling)

    async def _told(self) -> None:
        """Waits for what is being told: only one may write at a time."""
        telling, self.telling = self.telling, None
        assert telling is not None
        try:
            await asyncio.wait([telling])
        except asyncio.CancelledError:
            telling.add_done_callback(_look_at)  # the client has gone while it was told, and nobody waits any longer
            raise
        if not telling.cancelled() and (error := telling.exception()) is not None and not self.context.cancelled():
            raise error


def _look_at(telling: asyncio.Task[None]) -> None:
    """Looks at how telling went that nobody waits for. A write that met the end of its call is no news."""
    error = None if telling.cancelled() else telling.exception()
    if error is not None and not isinstance(error, grpc.aio.InternalError):
        log.error("a call failed to tell its client what happened beside its answers", exc_info=error)
