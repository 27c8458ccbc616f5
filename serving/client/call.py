"""One streaming call, as a client sees it: it sends requests, reads responses, and ends with a typed error.

It knows nothing of timesteps. grpc's own task writes: it takes one request after the other from here, so a caller that is
cancelled interrupts no write, and writing never waits for reading nor reading for writing.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import grpc

from tidegate.client.errors import ClientError, ServerUnavailable, StreamLost, StreamRefused, error_of, lost_by


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

    def __init__(self, method: Callable[[Any], Any], take: Callable[[], Any], *, again: bool) -> None:
        self._take = take
        self._loop = asyncio.get_running_loop()
        self.over = False
        self._wanted: asyncio.Future[None] | None = None  # whoever has a request may wake the writer
        self._watchdog: asyncio.TimerHandle | None = None
        self._why: ClientError | None = None  # this side ended the call
        self._heard_at = self._loop.time()
        self._answered = again
        self._call = method(self)

    def wake(self) -> None:
        """There may be something to send."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def half_close(self) -> None:
        """Sends nothing more; what is in flight may still be answered."""
        self.over = True
        self.wake()

    def cut_after(self, seconds: float, what: str) -> None:
        """Ends the call when `what` has not come, nor anything else, for so long. Reads have no time-out: grpc leaks by them."""
        self.spare()
        self._heard_at = self._loop.time()
        self._watchdog = self._loop.call_later(seconds, self._look, seconds, what)

    def _look(self, seconds: float, what: str) -> None:
        if (quiet_s := self._loop.time() - self._heard_at) < seconds:
            self._watchdog = self._loop.call_later(seconds - quiet_s, self._look, seconds, what)
        else:
            self.cut(ServerUnavailable(f"no {what} within {seconds:g} s", "DEADLINE_EXCEEDED"))

    def spare(self) -> None:
        """What was waited for has come."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def cut(self, why: ClientError) -> None:
        """Ends the call at once; it is over for everybody."""
        self._why = self._why or why
        self.spare()
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
            otherwise = StreamLost if self._answered else StreamRefused
            raise CallEnded(error_of(error.code(), error.details(), error.trailing_metadata(), otherwise)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task but the call was cancelled: by `cut`, or with its channel.
            raise CallEnded(self._why or ServerUnavailable("the call was cancelled", "CANCELLED")) from None
        if response is grpc.aio.EOF:
            raise CallEnded(self._why or ServerUnavailable("the server ended the call", "OK"))
        self._answered = True
        self._heard_at = self._loop.time()
        return response

    async def finish(self, seconds: float) -> None:
        """Reads to the end, which is near; cuts when it is not."""
        self.half_close()
        self.cut_after(seconds, "end of the call")
        try:
            while True:
                await self.read()
        except CallEnded:
            self.spare()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next request; called by grpc, once the one before is written."""
        while not self.over:
            try:
                request = self._take()
            except Exception as bug:  # grpc would log it at debug level and cancel the call
                self._why = lost_by(bug)
                raise
            if request is not None:
                return request
            if self.over:
                break
            self._wanted = self._loop.create_future()
            await self._wanted
        raise StopAsyncIteration
