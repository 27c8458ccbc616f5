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
from tidegate.client.types import Model
from tidegate.core.spec import Ints
from tidegate.v1 import tidegate_pb2 as pb

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Rows = Iterable[Row] | AsyncIterable[Row]


class View:
    """Open streams; they go by their place."""

    model: Model
    single_stream: bool
    # What errors call the streams: subject and verb, in the present and in the past, and object.
    _are: ClassVar[str]
    _were: ClassVar[str]
    _them: ClassVar[str]

    def __init__(self, session: Session, stream_ids: Sequence[str], ask: pb.OpenStreams) -> None:
        self.owner = ask.owner
        self._refused: dict[int, ClientError] = {}
        self._lost: dict[int, ClientError] = {}
        self._session = session
        self._window = session.window
        self._buffer: ResendBuffer
        self._calls: set[int] = set()  # on which one of them was opened
        self._unopened = set(range(len(stream_ids)))  # to be opened or refused
        self._remaining = len(stream_ids)  # neither lost nor closed
        self._ready = asyncio.Event()  # every stream was opened or refused
        self._ended_event = asyncio.Event()
        self._submit_lock = asyncio.Lock()  # callers put their timesteps in line one after the other
        self._closing = False
        self._ended: ClientError | None = None
        self._error_reported = False  # whether anybody knows of it
        self._final_steps: tuple[Ints, Ints] | None = None  # next and durable steps, once nobody uses the streams
        self._members = session.open(ask, stream_ids, self)
        self._indices = np.array([member.stream for member in self._members], np.int64)

    @property
    def reconnects(self) -> int:
        """How often they were opened again after a break."""
        return max(0, len(self._calls) - 1)

    @property
    def window(self) -> int:
        """How many timesteps of a stream may be in flight; the server says."""
        return self._window.window

    @property
    def _next_steps(self) -> Ints:
        return self._final_steps[0] if self._final_steps else self._window.next_steps[self._indices]

    @property
    def _durable_steps(self) -> Ints:
        return self._final_steps[1] if self._final_steps else self._window.durable_steps[self._indices]

    async def start(self) -> None:
        """Waits until every stream is open or refused; called by `Client.open` and `Client.block`.

        Raises:
            StreamRefused: none could be opened; the reason of the first.

        """
        await self._ready.wait()
        if not self._calls:  # one that was opened and has been lost since is entered: its error comes with its use
            self._check()
            raise next(iter(self._refused.values()))

    async def close(self, *, forget: bool = False) -> None:
        """Ends what was opened. Does nothing the second time.

        Waits until every timestep is answered and the server has stored them all, opening the streams again if need be.

        Args:
            forget: the server drops the streams and their state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: what ended all of it before that, unless it was raised to somebody already. What ended one stream of a
                block is in its `lost`.

        """
        self._session.check_process()
        if not self._closing:
            forget = arguments.boolean("forget", forget)
            self._closing = True
            self._session.close(self._members, forget=forget)
        await self._ended_event.wait()
        if self._ended is not None and not self._error_reported:
            self._check()

    def detach(self) -> None:
        """Lets go of the streams at once; the server parks them. Timesteps in flight may be applied or not."""
        if self._final_steps is None:
            self._final_steps = self._next_steps, self._durable_steps
            self._error_reported = True
            self._ended = self._ended or StreamLost(f"{self._were} left; open {self._them} again to go on")
            self._session.detach(self._members)
            self._ended_event.set()

    def _check(self) -> None:
        """Raises what has ended the streams, if anything has."""
        if self._ended is not None:
            self._error_reported = True
            raise self._ended.with_traceback(None)  # or it would grow with every call that is made in vain
        if self._closing:
            raise StreamLost(f"{self._are} being closed; open {self._them} again to go on")

    def on_opened(self, place: int, buffer: ResendBuffer, call: int) -> None:
        """One of the streams is open, for the first time or again."""
        if not self._calls:
            self.model = buffer.model
        self._buffer = buffer
        self._calls.add(call)
        self._unopened.discard(place)
        if not self._unopened:
            self._ready.set()

    def on_lost(self, place: int, error: ClientError, *, notified: bool, shared_error: bool) -> None:
        """One of the streams can no longer be used."""
        (self._lost if self._members[place].kind else self._refused)[place] = error
        if shared_error or self.single_stream:
            self._ended = error
            self._error_reported |= notified
        self.on_closed(place)

    def on_closed(self, place: int) -> None:
        """One of the streams is closed; or lost, as far as that is the same."""
        self._remaining -= 1
        self._unopened.discard(place)
        if not self._unopened:
            self._ready.set()
        if not self._remaining:
            if self._ended is None and self._closing:
                self._error_reported = True
                self._ended = StreamLost(f"{self._are} closed; open {self._them} again to go on")
            self._ended_event.set()


async def pipeline(
    field: str,
    rows: Rows[Row],
    submit: Callable[[Row], Awaitable["asyncio.Future[Answer]"]],
    window: Callable[[], int],
) -> AsyncIterator[Answer]:
    """Submits row after row, so many ahead, and yields the answers in order, each as soon as it is there.

    A row that is no timestep is told after the answers to those before it, and nothing is read behind it.

    Raises:
        InvalidArgument: the argument called `field` cannot be iterated over.

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
                reading = reading or asyncio.ensure_future(_next(source))
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
    """Nobody waits for these any more, nor for what went wrong with them."""
    for answer in pending:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # raised to the caller for the first of them
    if reading is not None:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # the row comes too late


def iterate(field: str, rows: Iterable[Row]) -> Iterator[Row]:
    """What can be iterated over; raises InvalidArgument, which names the field, when it cannot."""
    try:
        return iter(rows)
    except TypeError:
        raise arguments.invalid(field, rows, "something to iterate over") from None


async def _next(rows: AsyncIterator[Row]) -> Row:
    return await anext(rows)
