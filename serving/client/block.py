"""Many streams of one model: a view of a session that takes and gives arrays, a row a stream.

What concerns one stream touches no other: it is refused, held back or lost alone, and its rows say so.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client import arguments
from serving.client.buffer import Buffer
from serving.client.errors import ClientError, StreamLost
from serving.client.inputs import Some, Timesteps, columns, parts_of
from serving.client.results import BlockResults
from serving.client.session import Session
from serving.client.source import Rows, Source
from serving.client.types import Model, Predictions
from serving.core.spec import Ints

Pending = asyncio.Future[Predictions]


class Block:
    """Many open streams. Made by `Client.block`. Streams go by their place, from 0 in the order they were named.

    Attributes:
        model: what runs them.
        owner: the token by which the server knows that it is the same client who opens them again.
        refused: of the streams that could not be opened, why not.
        lost: of the streams that can no longer be used, why not.
        reconnects: how often they were opened again after a break.

    """

    model: Model
    alone = False

    def __init__(self, session: Session, stream_ids: Sequence[str], ask: pb.OpenStreams) -> None:
        self.refused: dict[int, ClientError] = {}
        self.lost: dict[int, ClientError] = {}
        self.owner = ask.owner
        self._session = session
        self._window = session.window
        self._buffer: Buffer
        self._calls: set[int] = set()
        self._waiting = set(range(len(stream_ids)))  # to be opened or refused
        self._left = len(stream_ids)  # neither lost nor closed
        self._ready = asyncio.Event()  # every stream was opened or refused
        self._over = asyncio.Event()
        self._door = asyncio.Lock()  # callers put their rows in line one after the other
        self._closing = False
        self._ended: ClientError | None = None
        self._final: tuple[Ints, Ints] | None = None  # once nobody uses the streams
        self._told = False  # whether anybody knows of it
        self._indices = session.join(ask, stream_ids, self)
        self._members = [session.member(stream) for stream in self._indices.tolist()]

    def __repr__(self) -> str:
        return f"<Block of {len(self._members)} streams, {self.reconnects} reconnects>"

    @property
    def stream_ids(self) -> list[str]:
        """The streams' names."""
        return [member.stream_id for member in self._members]

    @property
    def kinds(self) -> list[str]:
        """How each was found: "new", "resumed" or "taken_over"; empty where it was refused."""
        return [member.kind for member in self._members]

    @property
    def reconnects(self) -> int:
        """How often the streams were opened again after a break."""
        return max(0, len(self._calls) - 1)

    @property
    def next_steps(self) -> Ints:
        """The number that the next timestep of each stream will have."""
        return self._final[0] if self._final else self._window.next_steps[self._indices]

    @property
    def durable_steps(self) -> Ints:
        """Of each stream, the last timestep whose state is stored, as far as the server has told."""
        return self._final[1] if self._final else self._window.durable_steps[self._indices]

    @property
    def window(self) -> int:
        """How many timesteps of a stream may be in flight; the server says."""
        return self._window.window

    async def step(self, x: Timesteps, rows: Sequence[int] | Ints | None = None) -> Predictions:
        """Sends timesteps of many streams and waits for their predictions. Several calls may be in flight.

        What becomes of a row concerns its stream alone: it raises nothing, and is in `errors`. A row that was refused was not
        applied, and timesteps of its stream behind it move up. Breaks of the connection are mended unseen. Waits for room
        while a stream has `buffer_max` timesteps that the server has not stored. When cancelled, rows that had room are
        applied all the same, and `next_steps` has counted them.

        Args:
            x: (streams, features) the next timestep of every stream; NaN means missing, None does not. Rows of streams that are refused or
                lost say so in `errors`.
            rows: (n,) the places of the streams that the rows of x are for, when not of all; then x is (n, features). A
                stream may stand there several times: its timesteps in the order they stand.

        Raises:
            InvalidTimestep: x or rows are no numbers, do not have these shapes, or name streams that there are not; nothing was sent.
            StreamLost, StreamRefused: none of the streams can be used any longer from here.

        """
        return await (await self._submit(x, rows))

    async def predict(self, blocks: Rows[Timesteps | Some]) -> AsyncIterator[Predictions]:
        """Sends block after block, as many ahead as the server remembers answers for, and yields the answers in order.

        A block is what `step` takes: x, or a tuple (x, rows). Blocks of an asynchronous iterable may come as slowly as they
        like: an answer is yielded as soon as it is there. When left early, blocks that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `blocks` is nothing that can be iterated over.
            InvalidTimestep: a block does not have the shape that it should. Nothing of it was sent, and no block behind it was read.
            StreamLost, StreamRefused: none of the streams can be used any longer from here.

        """
        source = Source("blocks", blocks)
        async for predictions in source.answers(lambda block: self._submit(*parts_of(block)), lambda: self.window):
            yield predictions

    async def start(self) -> None:
        """Waits until every stream is open or refused; called by `Client.block`.

        Raises:
            StreamRefused: none could be opened; the reason of the first.

        """
        await self._ready.wait()
        if not self._calls:
            self._check()
            raise next(iter(self.refused.values()))

    async def close(self, *, forget: bool = False) -> None:
        """Ends the streams. Does nothing the second time.

        Waits until every timestep is answered and the server has stored them all, opening the streams again if need be.

        Args:
            forget: the server drops the streams and their state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: what ended them all before that, unless it was raised to somebody already. What ended one of them is in `lost`.

        """
        self._session.check()
        if not self._closing:
            forget = arguments.flag("forget", forget)
            self._closing = True
            self._session.close(self._members, forget=forget)
        await self._over.wait()
        if self._ended is not None and not self._told:
            self._check()

    def leave(self) -> None:
        """Lets go of the streams at once; the server parks them. Timesteps in flight may be applied or not."""
        if self._final is None:
            self._final = self.next_steps, self.durable_steps
            self._told = True
            self._ended = self._ended or StreamLost("the streams were left; open them again to go on")
            self._session.leave(self._members)
            self._over.set()

    # What the session tells --------------------------------------------------------------------------------------------

    def on_opened(self, place: int, buffer: Buffer, call: int) -> None:
        """One of the streams is open, for the first time or again."""
        if not self._calls:
            self.model = buffer.model
        self._buffer = buffer
        self._calls.add(call)
        self._waiting.discard(place)
        if not self._waiting:
            self._ready.set()

    def on_lost(self, place: int, error: ClientError, *, told: bool, whole: bool) -> None:
        """One of the streams can no longer be used."""
        if self._members[place].kind:
            self.lost[place] = error
        else:
            self.refused[place] = error
            self._waiting.discard(place)
        if whole:
            self._ended = error
            self._told |= told
        self._end_one()

    def on_closed(self, place: int) -> None:  # noqa: ARG002 - of the protocol
        """One of the streams is closed."""
        self._end_one()

    def _end_one(self) -> None:
        self._left -= 1
        if not self._waiting:
            self._ready.set()
        if not self._left:
            if self._ended is None and self._closing:
                self._told = True
                self._ended = StreamLost("the streams are closed; open them again to go on")
            self._over.set()

    # Sending -----------------------------------------------------------------------------------------------------------

    async def _submit(self, x: Timesteps, rows: Sequence[int] | Ints | None) -> Pending:
        """Puts timesteps in line, as there is room; gives a future of their answers."""
        self._session.check()
        values, places = columns(x, rows, len(self._members), self.model.features)
        streams = self._indices[places]
        async with self._door:
            self._check()
            pending: Pending = asyncio.get_running_loop().create_future()
            results = BlockResults(self.model.outputs, len(streams), pending)
            place = 0
            try:
                while place < len(streams):
                    if room := self._window.room(streams[place:]):
                        part = slice(place, place + room)
                        self._window.add(self._buffer, results, place, streams[part], values[part])
                        place += room
                        self._session.wake()
                    else:
                        await self._session.room()
                        self._check()
            except BaseException:
                if not pending.cancel():
                    pending.exception()  # it is being raised
                self._window.abandon(results, len(streams) - place)
                raise
        return pending

    def _check(self) -> None:
        """Raises what has ended the block, if anything has."""
        if self._ended is not None:
            self._told = True
            raise self._ended.with_traceback(None)  # or it would grow with every call that is made in vain
        if self._closing:
            raise StreamLost("the streams are being closed; open them again to go on")
