"""Many streams of one model: a view of a session with arrays in and out, one row per stream.

What concerns one stream touches no other: it is refused, held back or lost alone, and its rows say so.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tidegate.client.errors import ClientError
from tidegate.client.inputs import Some, Timesteps, columns, split_block
from tidegate.client.results import BlockResults
from tidegate.client.types import Predictions
from tidegate.client.view import Rows, View, pipeline
from tidegate.core.spec import Ints

Pending = asyncio.Future[Predictions]


class Block(View):
    """Many open streams. Made by `Client.block`. Streams go by their place, from 0 in the order they were named.

    Attributes:
        model: what runs them.
        owner: the token by which the server knows that it is the same client who opens them again.

    """

    single_stream = False
    _are, _were, _them = "the streams are", "the streams were", "them"

    def __repr__(self) -> str:
        return f"<Block of {len(self._members)} streams, {self.reconnects} reconnects>"

    @property
    def refused(self) -> dict[int, ClientError]:
        """Of the streams that could not be opened, why not."""
        return self._refused

    @property
    def lost(self) -> dict[int, ClientError]:
        """Of the streams that can no longer be used, why not."""
        return self._lost

    @property
    def stream_ids(self) -> list[str]:
        """The streams' names."""
        return [member.stream_id for member in self._members]

    @property
    def kinds(self) -> list[str]:
        """How each was found: "new", "resumed" or "taken_over"; empty where it was refused."""
        return [member.kind for member in self._members]

    @property
    def next_steps(self) -> Ints:
        """The number that the next timestep of each stream will have."""
        return self._next_steps

    @property
    def durable_steps(self) -> Ints:
        """Of each stream, the last timestep whose state is stored, as far as the server has told."""
        return self._durable_steps

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
        async for predictions in pipeline(
            "blocks", blocks, lambda block: self._submit(*split_block(block)), lambda: self.window
        ):
            yield predictions

    async def _submit(self, x: Timesteps, rows: Sequence[int] | Ints | None) -> Pending:
        """Puts timesteps in line, as there is room; gives a future of their answers."""
        self._session.check_process()
        values, places = columns(x, rows, len(self._members), self.model.features)
        streams = self._indices[places]
        async with self._submit_lock:
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
                        await self._session.wait_for_room()
                        self._check()
            except BaseException:
                if not pending.cancel():
                    pending.exception()  # it is being raised
                self._window.abandon(results, len(streams) - place)
                raise
        return pending
