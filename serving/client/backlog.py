"""The timesteps that a client keeps, and who waits for their answers."""

import numpy as np

from serving.client.buffer import Buffer
from serving.client.errors import ClientError
from serving.client.message import Message
from serving.client.results import Answers, BlockResults, Deliver, Group, Results, Waiter, deliver
from serving.client.table import StreamTable, rank
from serving.client.types import Model
from serving.core.spec import Floats, Ints


class Backlog(StreamTable):
    """A buffer for each model, and the results that are not settled.

    Attributes:
        why: the error of each stream that is refused or lost.

    """

    def __init__(self, buffer_max: int, deliver: Deliver = deliver) -> None:
        super().__init__(buffer_max)
        self._deliver = deliver
        self.why: dict[int, ClientError] = {}
        self._buffers: list[Buffer] = []
        self._results: dict[int, Results] = {}
        self._results_made = 0

    # What callers want -------------------------------------------------------------------------------------------------

    def buffer_of(self, model: Model, rows_max: int) -> Buffer:
        """The buffer for streams of a model, of which a message may have so many rows."""
        for buffer in self._buffers:
            if buffer.model.id == model.id:
                buffer.model, buffer.rows_max = model, rows_max
                return buffer
        self._buffers.append(Buffer(model, rows_max, self._deliver))
        return self._buffers[-1]

    def add_single(
        self, buffer: Buffer, stream: int, values: bytes, waiter: Waiter, group: Group | None = None
    ) -> None:
        """Puts one timestep of a usable stream at the end."""
        buffer.gather(stream, values, waiter, group)
        self._next_at[stream] += 1

    def add(self, buffer: Buffer, results: Results, place: int, streams: Ints, values: Floats) -> None:
        """Puts rows, from `place` of their results on, at the end. Results are added one after the other.

        Rows of streams that cannot be used are settled with their error at once.
        """
        self._take_gathered(buffer)
        places = np.arange(place, place + len(streams))
        if not (usable := self.usable[streams]).all():
            for row in np.flatnonzero(~usable).tolist():
                stream = int(streams[row])
                results.fail(place + row, self.why[stream], 0, int(self.durable_steps[stream]))
            places, streams, values = places[usable], streams[usable], values[usable]
            self._forget_settled(results)
        steps = self.next_steps[streams] + rank(streams)
        np.add.at(self.next_steps, streams, 1)
        if len(streams):
            buffer.append(self._number(results), places, streams, steps, values)

    def abandon(self, results: BlockResults, rows: int) -> None:
        """So many of the last rows of results are never added: their caller has gone."""
        results.leave(rows)
        self._forget_settled(results)

    def _take_gathered(self, buffer: Buffer) -> None:
        """Gives single timesteps that came since the last time their places among the rows."""
        if not buffer.gathered:
            return
        gathered, packed, results = buffer.take_gathered()
        streams = np.array(gathered, np.int64)
        values = np.frombuffer(b"".join(packed), "<f4").reshape(len(streams), -1)
        turns = rank(streams)
        steps = self.next_steps[streams] - 1
        if turns.any():  # a stream several times: they were all counted when they came
            steps += 1 + turns - np.bincount(streams)[streams]
        buffer.append(self._number(results), np.arange(len(streams)), streams, steps, values)

    def _number(self, results: Results) -> int:
        """The number of results that are kept."""
        if not results.number:
            self._results_made += 1
            results.number = self._results_made
            self._results[results.number] = results
        return results.number

    # Settling ----------------------------------------------------------------------------------------------------------

    def _settle(self, message: Message, at: Ints, rows: Ints, answers: Answers) -> None:
        """Gives results the answers in these rows, by the rows' places in the buffer."""
        places = message.buffer["place"][at]
        for number, part in message.buffer.runs(at):
            results = self._results[number]
            results.settle(places[part], rows[part], answers)
            self._forget_settled(results)

    def _fail(self, buffer: Buffer, at: int, error: ClientError, step: int = 0, *, whole: bool = False) -> bool:
        """Settles the row at a place of the buffer with an error; `step` is its number if it was applied. Whether anybody is told."""
        results, stream = self._results[int(buffer["results"][at])], int(buffer["stream"][at])
        told = results.fail(int(buffer["place"][at]), error, step, int(self.durable_steps[stream]), whole=whole)
        self._forget_settled(results)
        return told

    def _forget_settled(self, results: Results) -> None:
        if not results.left:
            self._results.pop(results.number, None)
