"""One streaming call, seen from a client: requests are asked for, responses are read, and its end is a typed error.

It knows nothing of timesteps. grpc's own task writes: it takes one request after the other from here, so a caller that is
cancelled interrupts no write, and writing never waits for reading nor reading for writing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

import grpc

from serving.client.errors import ClientError, ServerUnavailable, StreamLost, StreamRefused, error_of, lost_by


class CallEnded(Exception):
    """The call is over; `error` says why, and the stream decides whether to open it again."""

    def __init__(self, error: ClientError) -> None:
        self.error = error
        super().__init__(str(error))


class Call:
    """One call.

    Args:
        method: of the stub: `Predict` or `PredictBlocks`.
        first: the first request; nothing follows before `opened`. None when `take` gives all.
        take: gives the next request, None when there is none now.
        sleep: waits so many seconds.
        again: whether what it opens was open before: then a refusal of the open is a loss.

    """

    def __init__(
        self,
        method: Callable[[Any], Any],
        first: Any,
        take: Callable[[], Any],
        sleep: Callable[[float], Awaitable[None]],
        *,
        again: bool = False,
    ) -> None:
        self._take = take
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._first = first
        self._pause_s = 0.0
        self._over = False  # nothing more is sent
        self._wanted: asyncio.Future[None] | None = None  # whoever has a request may wake the writer
        self._watchdog: asyncio.TimerHandle | None = None
        self._why: ClientError | None = None  # this side ended the call
        self.opened = first is None
        self._answered = again
        self._call = method(self)

    def wake(self) -> None:
        """There may be something to send."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def pause(self, seconds: float) -> None:
        """Sends nothing for so long."""
        self._pause_s = seconds
        self.wake()

    def half_close(self) -> None:
        """Sends nothing more; what is under way may still be answered."""
        self._over = True
        self.wake()

    def cut_after(self, seconds: float, what: str) -> None:
        """Ends the call when `what` has not come by then. Reads have no time-out of their own: grpc leaks by them."""
        self.spare()
        error = ServerUnavailable(f"no {what} within {seconds:g} s", "DEADLINE_EXCEEDED")
        self._watchdog = self._loop.call_later(seconds, self.cut, error)

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
        return response

    async def finish(self, seconds: float) -> None:
        """Reads to the end, which is near; cuts when it is not."""
        self.cut_after(seconds, "end of the call")
        try:
            while True:
                await self.read()
        except CallEnded:
            pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next request; called by grpc, once the one before is written."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while not self._over:
            if self._pause_s:
                seconds, self._pause_s = self._pause_s, 0.0
                await self._sleep(seconds)
                continue
            if self.opened:
                try:
                    request = self._take()
                except Exception as bug:  # grpc would log it at debug level and cancel the call
                    self._why = lost_by(bug)
                    raise
                if request is not None:
                    return request
                if self._over:
                    break
            self._wanted = self._loop.create_future()
            await self._wanted
        raise StopAsyncIteration
