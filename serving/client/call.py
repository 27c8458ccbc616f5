"""One streaming call: it sends requests, reads responses, and ends with a typed error.

The call does not know what its messages mean. A task of grpc writes: it takes the requests from here one by one. So a cancelled
caller never interrupts a write, and reading and writing never wait for each other.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import grpc

from tidegate.client.errors import ClientError, ServerUnavailable, StreamLost, StreamRefused, bug_error, status_error


class CallEnded(Exception):
    """The call has ended with `error`. The session decides whether to make another one."""

    def __init__(self, error: ClientError) -> None:
        self.error = error
        super().__init__(str(error))


class Call:
    """A call.

    Args:
        method: the method of the stub.
        next_request: returns the next request, None when there is none now.
        reopens: whether one of its streams was open before; then a refused open means that the stream is lost.

    Attributes:
        half_closed: whether this side sends no more requests.

    """

    def __init__(self, method: Callable[[Any], Any], next_request: Callable[[], Any], *, reopens: bool) -> None:
        self._next_request = next_request
        self._loop = asyncio.get_running_loop()
        self.half_closed = False
        self._writer_waiter: asyncio.Future[None] | None = None  # the writer, while it waits for a request
        self._watchdog: asyncio.TimerHandle | None = None
        self._error: ClientError | None = None  # the reason when this side ended the call
        self._last_read_at = self._loop.time()
        self._had_response = reopens
        self._call = method(self)

    def wake(self) -> None:
        """Tells the writer that there may be a request to send."""
        if self._writer_waiter is not None and not self._writer_waiter.done():
            self._writer_waiter.set_result(None)

    def half_close(self) -> None:
        """Stops sending. Requests in flight may still be answered."""
        self.half_closed = True
        self.wake()

    def set_timeout(self, seconds: float, what: str) -> None:
        """Ends the call when nothing is read within the time; `what` names the awaited message. In grpc, a read with a time-out leaks."""
        self.clear_timeout()
        self._last_read_at = self._loop.time()
        self._watchdog = self._loop.call_later(seconds, self._check_timeout, seconds, what)

    def _check_timeout(self, seconds: float, what: str) -> None:
        if (quiet_s := self._loop.time() - self._last_read_at) < seconds:
            self._watchdog = self._loop.call_later(seconds - quiet_s, self._check_timeout, seconds, what)
        else:
            self.cancel(ServerUnavailable(f"no {what} within {seconds:g} s", "DEADLINE_EXCEEDED"))

    def clear_timeout(self) -> None:
        """Clears the time-out."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def cancel(self, error: ClientError) -> None:
        """Ends the call at once with this error."""
        self._error = self._error or error
        self.clear_timeout()
        self.half_close()
        self._call.cancel()

    async def read(self) -> Any:
        """Reads the next response.

        Raises:
            CallEnded: the call has ended.

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
            # The call was cancelled, not this task: by `cancel`, or with its channel.
            raise CallEnded(self._error or ServerUnavailable("the call was cancelled", "CANCELLED")) from None
        if response is grpc.aio.EOF:
            raise CallEnded(self._error or ServerUnavailable("the server ended the call", "OK"))
        self._had_response = True
        self._last_read_at = self._loop.time()
        return response

    async def finish(self, seconds: float) -> None:
        """Reads until the call ends, and cancels it when that takes longer than this."""
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
        """Returns the next request. Called by grpc when the one before is written."""
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
