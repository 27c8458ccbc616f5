"""The base of the streaming calls: reading, ending on request, and notifications.

The call's own coroutine reads requests and writes answers. A notification is written only while that coroutine reads or
waits for something else, so one of the two writes at a time. A call with more writers must serialize them itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

from tidegate.core.access import Caller
from tidegate.core.errors import WrongOrder

# A client opens its stream in the turn in which it makes the call. A call without a stream is of no use to anybody.
OPEN_SECONDS = 30.0

log = logging.getLogger("tidegate.call")

# grpc ships no types; this stands for grpc.aio.ServicerContext.
Context = Any
T = TypeVar("T")


class Call:
    """One call.

    Attributes:
        reading: whether its own coroutine reads, or waits in `wait_interruptibly`.
        notification: the task that writes a notification, while there is one.
        ended: why the call was asked to end.
        caller: who makes it.
        left_unsaved: how many streams the store did not save before the call had to end.

    """

    def __init__(self, context: Context, caller: Caller) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.context = context
        self.caller = caller
        self._read_ahead_task: asyncio.Task[Any] | None = None  # reads the next message
        self.reading = False
        self.notification: asyncio.Task[None] | None = None
        self.ended: Exception | None = None
        self.left_unsaved = 0

    def end(self, reason: Exception) -> None:
        """Ends the call with `reason` when the pending request is answered."""
        if self.ended is None:
            self.ended = reason
            if self.reading:
                self._task.cancel()

    async def read(self) -> Any:
        """The next message in the form that the method's handler reads; None when the client has half-closed.

        Raises:
            Exception: why the call was asked to end.

        """
        message = await self.wait_interruptibly(
            self.context.read if self._read_ahead_task is None else self._take_read_ahead
        )
        return None if message is grpc.aio.EOF else message

    async def read_within(self, seconds: float, what: str) -> Any:
        """The next message as for `read`; for a call that holds nothing yet, and must not do so for ever.

        Raises WrongOrder when none comes in time; `what` names it. Further what `read` raises.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self.read()
        except TimeoutError:
            raise WrongOrder(f"the call sent no {what} within {seconds:g} s") from None

    def read_ahead(self) -> None:
        """Starts to read the next message, which `read` returns. At most one message is read ahead."""
        assert self._read_ahead_task is None
        self._read_ahead_task = asyncio.create_task(self.context.read())

    @property
    def has_next(self) -> bool:
        """Whether the next message, or the end, was read ahead and has arrived."""
        return self._read_ahead_task is not None and self._read_ahead_task.done()

    def stop_reading(self) -> None:
        """Cancels what is read ahead. Only at the end of the call: what the client has sent is not answered."""
        read, self._read_ahead_task = self._read_ahead_task, None
        if read is not None:
            read.cancel()
            read.add_done_callback(log_failure)

    async def _take_read_ahead(self) -> Any:
        read, self._read_ahead_task = self._read_ahead_task, None
        assert read is not None
        return await read

    async def wait_interruptibly(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Waits for something that may take long.

        The end of the call interrupts it, and notifications may be written meanwhile.

        Raises:
            Exception: why the call was asked to end.

        """
        if self.ended is not None:
            raise self.ended
        self.reading = True
        try:
            return await operation()
        except asyncio.CancelledError:
            if self.ended is None:
                raise  # the client has disconnected
            self._task.uncancel()
            raise self.ended from None
        finally:
            self.reading = False
            if self.notification is not None:
                await self._wait_for_notification()

    def start_notification(self, notification: Coroutine[Any, Any, None]) -> None:
        """Starts to write a notification. Only while the call reads and no other notification is written."""
        assert self.reading
        assert self.notification is None
        self.notification = asyncio.create_task(self._run_notification(notification))

    async def _run_notification(self, notification: Coroutine[Any, Any, None]) -> None:
        await notification
        self.notification = (
            None  # the call may read for long and have more notifications; an error stays for `_wait_for_notification`
        )

    async def _wait_for_notification(self) -> None:
        """Waits until the notification is written: only one may write at a time."""
        notification, self.notification = self.notification, None
        assert notification is not None
        try:
            await asyncio.wait([notification])
        except asyncio.CancelledError:
            notification.add_done_callback(
                log_failure
            )  # the client has disconnected meanwhile, and nobody waits any longer
            raise
        if (
            not notification.cancelled()
            and (error := notification.exception()) is not None
            and not self.context.cancelled()
        ):
            raise error


def log_failure(task: asyncio.Task[Any]) -> None:
    """Logs the error of a read or write that nobody waits for. An error because the call has ended is ignored."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, (grpc.aio.InternalError, grpc.aio.UsageError)):
        log.error("a call failed to read ahead, or to write a notification", exc_info=error)
