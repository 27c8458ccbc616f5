"""Many streams of one model: a view of a session with arrays in and out, one row per stream.

What happens to one stream does not affect the others. It may be refused, held or lost, and the error is in its rows.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tidegate.client.errors import ClientError
from tidegate.client.inputs import Some, Timesteps, split_block
from tidegate.client.results import BlockResults
from tidegate.client.tensors import block_rows
from tidegate.client.types import Predictions
from tidegate.client.view import Rows, View, pipeline
from tidegate.core.spec import Ints

Pending = asyncio.Future[Predictions]


class Block(View):
    """Many open streams. Made by `Client.block`. A stream is identified by its place, from 0 in the order of the names.

    Attributes:
        model: the model of the streams; when some have moved, `versions` has the version of each.
        owner: the token by which the server recognizes this client when it opens the streams again.

    """

    single_stream = False
    _noun = "block"

    def __repr__(self) -> str:
        return f"<Block of {len(self._members)} streams, {self.reconnects} reconnects>"

    @property
    def refused(self) -> dict[int, ClientError]:
        """The errors of the streams that could not be opened, by place."""
        return self._refused

    @property
    def lost(self) -> dict[int, ClientError]:
        """The errors of the streams that can no longer be used, by place."""
        return self._lost

    @property
    def stream_ids(self) -> list[str]:
        """The streams' names."""
        return [member.stream_id for member in self._members]

    @property
    def kinds(self) -> list[str]:
        """How each stream was opened: "new", "resumed" or "taken_over"; empty for a refused one."""
        return [member.kind for member in self._members]

    @property
    def versions(self) -> list[str]:
        """The version that runs each stream now; empty for a refused one."""
        return ["" if member.model is None else member.model.version for member in self._members]

    @property
    def moved(self) -> list[str]:
        """How each stream came to its state when it moved to another version last; see `Stream.moved`."""
        return [member.moved for member in self._members]

    @property
    def next_steps(self) -> Ints:
        """The number of the next timestep of each stream."""
        return self._next_steps

    @property
    def durable_steps(self) -> Ints:
        """The last timestep of each stream whose state is stored, as far as the server has reported."""
        return self._durable_steps

    async def step(self, x: Timesteps, rows: Sequence[int] | Ints | None = None) -> Predictions:
        """Sends timesteps of many streams and waits for their predictions. Several calls may be in flight.

        The error of a row is in `errors` and is not raised. A refused row was not applied, and later timesteps of its stream move up by
        one. Reconnects when the connection breaks. Waits while the resend buffer of a stream has `buffer_max` timesteps that the server
        has not stored. Cancelling does not undo rows for which there was room: they are applied, and `next_steps` counts them.

        Args:
            x: (streams, features) the next timestep of every stream; NaN means missing, None is refused. Rows of unusable streams get
                the stream's error. For a model with other inputs: a mapping from their names to arrays (streams, *shape), or one
                such array where it has a single one.
            rows: (n,) the places of the streams that the rows of x are for; then x is (n, features). A stream may be named several
                times: its timesteps are applied in that order. None for all streams.

        Raises:
            InvalidTimestep: x or rows are not numbers, have other shapes, or name unknown streams; nothing was sent.
            StreamLost, StreamRefused: none of the streams can be used any longer.

        """
        return await (await self._submit(x, rows))

    async def predict(self, blocks: Rows[Timesteps | Some]) -> AsyncIterator[Predictions]:
        """Sends block after block, as many ahead as the server allows, and yields the answers in order.

        A block is what `step` takes: x, or a tuple (x, rows). An asynchronous iterable may be slow: each answer is yielded as soon as it
        is there. When the loop is left early, blocks that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `blocks` is not iterable.
            InvalidTimestep: a block has a wrong shape. Nothing of it was sent, and no later block was read.
            StreamLost, StreamRefused: none of the streams can be used any longer.

        """
        async for predictions in pipeline(
            "blocks", blocks, lambda block: self._submit(*split_block(block)), lambda: self.window
        ):
            yield predictions

    async def _submit(self, x: Timesteps, rows: Sequence[int] | Ints | None) -> Pending:
        """Submits timesteps as there is room. Returns the future of their answers."""
        self._session.check_process()
        values, places = block_rows(x, rows, len(self._members), self.model)
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
                    pending.exception()  # the error is raised here
                self._window.abandon(results, len(streams) - place)
                raise
        return pending
