"""What `Stream` and `Block` share: streams of a session that open and end together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from tidegate.client import arguments
from tidegate.client.errors import ClientError, InvalidTimestep, StreamLost
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.session import Session
from tidegate.client.tensors import StreamInputs
from tidegate.client.types import Model
from tidegate.core.spec import Ints
from tidegate.v1 import tidegate_pb2 as pb

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Rows = Iterable[Row] | AsyncIterable[Row]


class View:
    """Open streams of a session. A stream is identified by its place in the view."""

    model: Model
    single_stream: bool
    _noun: ClassVar[str]  # names the view in error messages

    def __init__(
        self,
        session: Session,
        stream_ids: Sequence[str],
        options: pb.OpenStreams,
        inputs: Sequence[StreamInputs] = (),
    ) -> None:
        self.owner = options.owner
        self._refused: dict[int, ClientError] = {}
        self._lost: dict[int, ClientError] = {}
        self._session = session
        self._window = session.window
        self._buffer: ResendBuffer
        self._calls: set[int] = set()  # the calls on which one of the streams was opened
        self._unopened = set(range(len(stream_ids)))  # places of streams that are not yet opened or refused
        self._remaining = len(stream_ids)  # streams that are neither lost nor closed
        self._ready = asyncio.Event()  # every stream was opened or refused
        self._ended_event = asyncio.Event()  # every stream is lost, closed or detached
        self._submit_lock = asyncio.Lock()  # callers submit one after the other
        self._closing = False
        self._error: ClientError | None = None  # what ended all of the streams
        self._error_reported = False  # whether it was raised to a caller
        self._final_steps: tuple[Ints, Ints] | None = None  # next and durable steps of detached streams
        self._members = session.open(options, stream_ids, self, inputs)
        self._indices = np.array([member.stream for member in self._members], np.int64)

    @property
    def reconnects(self) -> int:
        """How often the streams were opened again after a disconnect."""
        return max(0, len(self._calls) - 1)

    @property
    def window(self) -> int:
        """How many timesteps of a stream may be in flight, as reported by the server."""
        return self._window.window

    @property
    def _next_steps(self) -> Ints:
        return self._final_steps[0] if self._final_steps else self._window.next_steps[self._indices]

    @property
    def _durable_steps(self) -> Ints:
        return self._final_steps[1] if self._final_steps else self._window.durable_steps[self._indices]

    async def start(self) -> None:
        """Waits until every stream is open or refused. Called by `Client.open` and `Client.block`.

        Raises:
            StreamRefused: no stream could be opened; the error of the first.

        """
        await self._ready.wait()
        if not self._calls:  # a stream that was opened and then lost raises its error when it is used
            self._check()
            raise next(iter(self._refused.values()))

    async def close(self, *, forget: bool = False) -> None:
        """Closes the streams. Does nothing when called again.

        Waits until every timestep is answered and stored. Opens the streams again where that is necessary.

        Args:
            forget: the server deletes the streams and their state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: all streams ended with an error that no call has raised yet. The error of a single stream of a block is in
                its `lost`.

        """
        self._session.check_process()
        if not self._closing:
            forget = arguments.boolean("forget", forget)
            self._closing = True
            self._session.close(self._members, forget=forget)
        await self._ended_event.wait()
        if self._error is not None and not self._error_reported:
            self._check()

    def detach(self) -> None:
        """Gives the streams up at once; the server parks them. Timesteps in flight may be applied or not."""
        if self._final_steps is None:
            self._final_steps = self._next_steps, self._durable_steps
            self._error_reported = True
            self._error = self._error or StreamLost(f"the {self._noun} was left; open it again to continue")
            self._session.detach(self._members)
            self._ended_event.set()

    def _check(self) -> None:
        """Raises the error that ended the streams, or StreamLost while they are being closed."""
        if self._error is not None:
            self._error_reported = True
            raise self._error.with_traceback(None)  # else the traceback would grow with each call
        if self._closing:
            raise StreamLost(f"the {self._noun} is being closed; open it again to continue")

    def on_opened(self, place: int, buffer: ResendBuffer, call: int) -> None:
        """Notes that a stream is open, for the first time or again."""
        if not self._calls and (model := self._members[place].model) is not None:
            self.model = model
        self._buffer = buffer
        self._calls.add(call)
        self._unopened.discard(place)
        if not self._unopened:
            self._ready.set()

    def on_lost(self, place: int, error: ClientError, *, notified: bool, shared: bool) -> None:
        """Notes that a stream is lost."""
        (self._lost if self._members[place].kind else self._refused)[place] = error
        if shared or self.single_stream:
            self._error = error
            self._error_reported |= notified
        self.on_closed(place)

    def on_closed(self, place: int) -> None:
        """Notes that a stream is closed or lost."""
        self._remaining -= 1
        self._unopened.discard(place)
        if not self._unopened:
            self._ready.set()
        if not self._remaining:
            if self._error is None and self._closing:
                self._error_reported = True
                self._error = StreamLost(f"the {self._noun} is closed; open it again to continue")
            self._ended_event.set()


async def pipeline(
    field: str,
    rows: Rows[Row],
    submit: Callable[[Row], Awaitable["asyncio.Future[Answer]"]],
    window: Callable[[], int],
) -> AsyncIterator[Answer]:
    """Submits row after row, up to `window` ahead, and yields each answer in order as soon as it is there.

    The error of an invalid row comes after the answers to the earlier rows, and no later row is read.

    Raises:
        InvalidArgument: the argument `field` is not iterable.

    """
    source = aiter(rows) if isinstance(rows, AsyncIterable) else iterate(field, rows)
    reading: asyncio.Future[Row] | None = None
    pending: deque[asyncio.Future[Answer]] = deque()
    ended = False
    try:
        while pending or not ended:
            if pending and (ended or pending[0].done() or len(pending) >= window()):
                yield await pending[0]
                pending.popleft()
                continue
            if isinstance(source, AsyncIterator):
                reading = reading or asyncio.ensure_future(anext(source))
                waiting: list[asyncio.Future[Any]] = [reading, *list(pending)[:1]]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    continue
                read, reading = reading.result, None
            else:
                read = source.__next__
            try:
                row = read()
            except (StopIteration, StopAsyncIteration):
                ended = True
                continue
            try:
                pending.append(await submit(row))
            except InvalidTimestep as error:
                ended = True
                pending.append(asyncio.get_running_loop().create_future())
                pending[-1].set_exception(error)
    finally:
        await _abandon(pending, reading)


async def _abandon(pending: Iterable["asyncio.Future[Answer]"], reading: "asyncio.Future[Row] | None") -> None:
    """Cancels what is pending, and drops the errors of it."""
    for answer in pending:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # the first one was raised to the caller
    if reading is not None:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # nobody waits for this row


def iterate(field: str, rows: Iterable[Row]) -> Iterator[Row]:
    """`iter(rows)`; raises InvalidArgument with the name of the argument when it is not iterable."""
    try:
        return iter(rows)
    except TypeError:
        raise arguments.invalid(field, rows, "something to iterate over") from None
