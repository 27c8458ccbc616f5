"""One streaming call, as a client sees it: it sends requests, reads responses, and ends with a typed error.

It knows nothing of timesteps. grpc's own task writes: it takes one request after the other from here, so a caller that is
cancelled interrupts no write, and writing never waits for reading nor reading for writing.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import grpc

from tidegate.client.errors import ClientError, ServerUnavailable, StreamLost, StreamRefused, bug_error, status_error


class CallEnded(Exception):
    """The call is over; `error` says why, and the session decides whether to make another one."""

    def __init__(self, error: ClientError) -> None:
        self.error = error
        super().__init__(str(error))


class Call:
    """One call.

    Args:
        method: of the stub.
        take: gives the next request, None when there is none now.
        again: whether something of what it opens was open before: then its refusal is a loss.

    Attributes:
        over: whether nothing more is sent.

    """

    def __init__(self, method: Callable[[Any], Any], next_request: Callable[[], Any], *, reopens: bool) -> None:
        self._next_request = next_request
        self._loop = asyncio.get_running_loop()
        self.half_closed = False
        self._writer_waiter: asyncio.Future[None] | None = None  # whoever has a request may wake the writer
        self._watchdog: asyncio.TimerHandle | None = None
        self._error: ClientError | None = None  # this side ended the call
        self._last_read_at = self._loop.time()
        self._had_response = reopens
        self._call = method(self)

    def wake(self) -> None:
        """There may be something to send."""
        if self._writer_waiter is not None and not self._writer_waiter.done():
            self._writer_waiter.set_result(None)

    def half_close(self) -> None:
        """Sends nothing more; what is in flight may still be answered."""
        self.half_closed = True
        self.wake()

    def set_timeout(self, seconds: float, what: str) -> None:
        """Ends the call when `what` has not come, nor anything else, for so long. Reads have no time-out: grpc leaks by them."""
        self.clear_timeout()
        self._last_read_at = self._loop.time()
        self._watchdog = self._loop.call_later(seconds, self._check_timeout, seconds, what)

    def _check_timeout(self, seconds: float, what: str) -> None:
        if (quiet_s := self._loop.time() - self._last_read_at) < seconds:
            self._watchdog = self._loop.call_later(seconds - quiet_s, self._check_timeout, seconds, what)
        else:
            self.cancel(ServerUnavailable(f"no {what} within {seconds:g} s", "DEADLINE_EXCEEDED"))

    def clear_timeout(self) -> None:
        """What was waited for has come."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def cancel(self, error: ClientError) -> None:
        """Ends the call at once; it is over for everybody."""
        self._error = self._error or error
        self.clear_timeout()
        self.half_close()
        self._call.cancel()

    async def read(self) -> Any:
        """The next response.

        Raises:
            CallEnded: there is none.

        """
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            default = StreamLost if self._had_response else StreamRefused
            raise CallEnded(status_error(error.code(), error.details(), error.trailing_metadata(), default)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task but the call was cancelled: by `cut`, or with its channel.
            raise CallEnded(self._error or ServerUnavailable("the call was cancelled", "CANCELLED")) from None
        if response is grpc.aio.EOF:
            raise CallEnded(self._error or ServerUnavailable("the server ended the call", "OK"))
        self._had_response = True
        self._last_read_at = self._loop.time()
        return response

    async def finish(self, seconds: float) -> None:
        """Reads to the end, which is near; cuts when it is not."""
        self.half_close()
        self.set_timeout(seconds, "end of the call")
        try:
            while True:
                await self.read()
        except CallEnded:
            self.clear_timeout()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next request; called by grpc, once the one before is written."""
        while not self.half_closed:
            try:
                request = self._next_request()
            except Exception as bug:  # grpc would log it at debug level and cancel the call
                self._error = bug_error(bug)
                raise
            if request is not None:
                return request
            if self.half_closed:
                break
            self._writer_waiter = self._loop.create_future()
            await self._writer_waiter
        raise StopAsyncIteration
