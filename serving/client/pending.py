"""The timesteps of a client that are not answered or not durable, and the futures of their callers."""

import numpy as np

from tidegate.client.errors import ClientError
from tidegate.client.message import Message
from tidegate.client.moves import same_layout
from tidegate.client.resend_buffer import ResendBuffer, SingleTimestep
from tidegate.client.results import Answers, BlockResults, Deliver, Group, Waiter, answer_lost, deliver, log, split_rows
from tidegate.client.table import StreamTable, cumcount
from tidegate.client.types import Model, Prediction
from tidegate.core.spec import Array, Ints, Output

# The results number of single timesteps. In their rows, `place` is the key in `PendingTimesteps._singles`.
SINGLE_TIMESTEPS = 0


class PendingTimesteps(StreamTable):
    """A resend buffer for each model, and the results that are not complete. `errors` has the error of each unusable stream."""

    def __init__(self, buffer_max: int, deliver: Deliver = deliver) -> None:
        super().__init__(buffer_max)
        self._deliver = deliver
        self.errors: dict[int, ClientError] = {}
        self._buffers: list[ResendBuffer] = []
        self._blocks: dict[int, BlockResults] = {}
        self._blocks_made = 0
        self._singles: dict[int, SingleTimestep] = {}
        self._singles_made = 0

    def buffer_of(self, model: Model, rows_max: int, *, may_move: bool = False) -> ResendBuffer:
        """Returns the buffer for streams of a model. A message may have `rows_max` of its rows.

        Streams that may move share the buffer of all versions: a moved stream keeps its timesteps where they are.
        """
        for buffer in self._buffers:
            if buffer.may_move and may_move and same_layout(buffer.model, model):
                if buffer.model.batch_invariant:  # answers are compared only if all versions give the same bits again
                    buffer.model = model
                buffer.rows_max = rows_max
                return buffer
            if not (buffer.may_move or may_move) and buffer.model.id == model.id:
                buffer.model, buffer.rows_max = model, rows_max
                return buffer
        self._buffers.append(ResendBuffer(model, rows_max, may_move=may_move))
        return self._buffers[-1]

    def add_single(
        self, buffer: ResendBuffer, stream: int, values: bytes, waiter: Waiter, group: Group | None = None
    ) -> None:
        """Appends one timestep of a usable stream."""
        buffer.queue_single((stream, values, waiter, group))
        self._next_at[stream] += 1

    def add(self, buffer: ResendBuffer, results: BlockResults, place: int, streams: Ints, values: Array) -> None:
        """Appends rows, from `place` of their results on. The rows of one result are added in order.

        Rows of unusable streams fail with their error at once.
        """
        self._flush_singles(buffer)
        places = np.arange(place, place + len(streams))
        if not (usable := self.usable[streams]).all():
            for row in np.flatnonzero(~usable).tolist():
                stream = int(streams[row])
                results.fail(place + row, self.errors[stream], 0, int(self.durable_steps[stream]))
            places, streams, values = places[usable], streams[usable], values[usable]
            self._forget_settled(results)
        steps = self.next_steps[streams] + cumcount(streams)
        np.add.at(self.next_steps, streams, 1)
        if not len(streams):
            return
        if not results.id:
            self._blocks_made += 1
            results.id = self._blocks_made
            self._blocks[results.id] = results
        buffer.append(results.id, places, streams, steps, values)

    def abandon(self, results: BlockResults, rows: int) -> None:
        """Gives up the last rows of results, which were never added because their caller was cancelled."""
        results.drop_last(rows)
        self._forget_settled(results)

    def _flush_singles(self, buffer: ResendBuffer) -> None:
        """Moves the queued single timesteps into the columns."""
        if not (singles := buffer.take_singles()):
            return
        named, packed, _, _ = zip(*singles, strict=True)
        streams = np.array(named, np.int64)
        values = np.frombuffer(b"".join(packed), buffer.layout.row_dtype).reshape(len(streams), -1)
        turns = cumcount(streams)
        steps = self.next_steps[streams] - 1
        if turns.any():  # several timesteps of one stream: next_steps counts all of them already
            steps += 1 + turns - np.bincount(streams)[streams]
        first = self._register(singles)
        buffer.append(SINGLE_TIMESTEPS, np.arange(first, self._singles_made), streams, steps, values)

    def _register(self, singles: list[SingleTimestep]) -> int:
        """Keeps single timesteps until they are settled. Returns the key of the first."""
        first = self._singles_made
        self._singles_made += len(singles)
        self._singles.update(enumerate(singles, first))
        return first

    def _settle_rows(self, message: Message, at: Ints, rows: Ints, answers: Answers) -> None:
        """Gives callers the answers in these rows. `at` has the places of the rows in the buffer."""
        places = message.buffer["place"][at]
        for number, part in message.buffer.split_by_results(at):
            if number == SINGLE_TIMESTEPS:
                self._settle_single_rows(message.buffer.model.outputs, places[part], rows[part], answers)
            else:
                results = self._blocks[number]
                results.settle(places[part], rows[part], answers)
                self._forget_settled(results)

    def _settle_single_rows(self, outputs: tuple[Output, ...], places: Ints, rows: Ints, answers: Answers) -> None:
        count = len(answers.steps)
        packed = (
            zip(*(split_rows(column, count) for column in answers.outputs), strict=True) if outputs else [()] * count
        )
        duplicates = [False] * count if answers.plain else (answers.duplicates | answers.forgotten).tolist()
        columns = zip(answers.steps.tolist(), packed, answers.durable_steps.tolist(), duplicates, strict=True)
        predictions = [
            Prediction(step, outputs, parts, durable, repeated) for step, parts, durable, repeated in columns
        ]
        waiters = [self._singles.pop(place)[2] for place in places.tolist()]
        if answers.plain and len(rows) == count:
            self._deliver(list(zip(waiters, predictions, strict=True)))
            return
        for waiter, row in zip(waiters, rows.tolist(), strict=True):
            if answers.forgotten[row] and not waiter.done():
                waiter.set_exception(answer_lost(predictions[row].step))
            deliver([(waiter, predictions[row])])

    def _fail(self, buffer: ResendBuffer, at: int, error: ClientError, step: int = 0, *, shared: bool = False) -> bool:
        """Settles one row of the buffer with an error, as `BlockResults.fail`. Returns whether a caller got the error."""
        number, place, stream = (int(buffer[column][at]) for column in ("results", "place", "stream"))
        if number == SINGLE_TIMESTEPS:
            _, _, waiter, _ = self._singles.pop(place)
            if waiter.done():
                log.warning("a timestep whose caller was cancelled was refused: %s", error)
                return False
            waiter.set_exception(error)
        else:
            results = self._blocks[number]
            results.fail(place, error, step, int(self.durable_steps[stream]), shared=shared)
            self._forget_settled(results)
        return True

    def _group(self, buffer: ResendBuffer, at: int) -> Group | None:
        """The group of an unsettled timestep, None when it has none."""
        return self._singles[int(buffer["place"][at])][3] if buffer["results"][at] == SINGLE_TIMESTEPS else None

    def _dropped_rows(self, buffer: ResendBuffer, at: int) -> list[int]:
        """The places of a dropped timestep and of the later timesteps of its group."""
        if (group := self._group(buffer, at)) is None:
            return [at]
        group.failed = True
        later = np.flatnonzero((buffer["stream"] == buffer["stream"][at]) & (buffer["step"] >= buffer["step"][at]))
        return [other for other in later.tolist() if self._group(buffer, other) is group]

    def _renumber(self, buffer: ResendBuffer, touched: Ints) -> None:
        """Numbers the unanswered timesteps of these streams again, without gaps."""
        streams, steps = buffer["stream"], buffer["step"]
        later = np.isin(streams, touched) & (steps > self.answered[streams])
        steps[later] = self.answered[streams[later]] + 1 + cumcount(streams[later])
        self.next_steps[touched] = self.answered[touched] + 1
        np.add.at(self.next_steps, streams[later], 1)

    def _forget_settled(self, results: BlockResults) -> None:
        if not results.pending:
            self._blocks.pop(results.id, None)
