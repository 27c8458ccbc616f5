"""The timesteps of all streams of one model that a client may have to send again: in columns, in order of arrival.

Rows are appended at the end. Compaction removes the rows that are no longer needed, and changes the places of the others.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from tidegate.client.results import Bools, Group, Waiter
from tidegate.client.types import Model
from tidegate.core.spec import Array, Ints, Output

# The buffer is compacted when it is twice as long as after the last compaction, so the amortized cost of a row is small.
# Shorter buffers are not worth it.
COMPACT_ROWS_MIN = 4096
INITIAL_ROWS = 64
# So many answers to single timesteps are kept until their checksums are computed, at once.
ANSWERS_MAX = 256
WORD_BYTES = 4

# A timestep with a caller of its own: stream, packed values, the caller's future, group.
SingleTimestep = tuple[int, bytes, Waiter, Group | None]


class ResendBuffer:
    """The columns. Writing to `buffer[name]` changes the buffer.

    `results` and `place` say which result a row belongs to. `stream`, `step` and `values` are the timestep; a `step` of 0 marks
    a removed row. `check` is the checksum of the answer, valid where `checked` is True. Single timesteps are queued outside the
    columns until `take_singles`.

    Attributes:
        model: the model of the streams, as the server described it last; any version of it when they may move.
        layout: that of its rows.
        may_move: whether the server may move the streams to another version.
        rows_max: how many rows a message may have.
        unsent_from: all rows before this place have been sent.

    """

    def __init__(self, model: Model, rows_max: int, *, may_move: bool = False) -> None:
        self.model = model
        self.may_move = may_move
        self.layout = model.layout
        self.rows_max = rows_max
        self.unsent_from = 0
        self._count = 0
        self._compact_at = COMPACT_ROWS_MIN
        self._columns: dict[str, Array] = {
            **{name: np.empty(0, np.int64) for name in ("results", "place", "stream", "step")},
            "check": np.empty(0, np.uint64),
            "checked": np.empty(0, np.bool_),
            "values": self.layout.zeros(0),
        }
        self._grow(INITIAL_ROWS)
        self._singles: list[SingleTimestep] = []
        # Queues a single timestep. Adding many at once to the columns costs a tenth of adding each alone.
        self.queue_single: Callable[[SingleTimestep], None] = self._singles.append
        # Answers to single timesteps whose checksums are not in the columns yet, for the same reason.
        self._answers: list[tuple[int, Sequence[bytes]]] = []
        self._outputs = model.outputs
        self._output_bytes = [int(np.prod(output.shape)) * output.dtype.itemsize for output in model.outputs]
        self._factors = _factors(sum(_word_count(output) for output in model.outputs))

    def __len__(self) -> int:
        """How many rows there are."""
        return self._count

    def __getitem__(self, column: str) -> Array:
        self._flush_answers()
        return self._columns[column][: self._count]

    @property
    def lone_stream(self) -> int | None:
        """The stream of the only unsent timestep, when there is exactly one and it is queued outside the columns."""
        return self._singles[0][0] if len(self._singles) == 1 and self.unsent_from == self._count else None

    @property
    def has_unsent(self) -> bool:
        """Whether timesteps may be left to send."""
        return self.unsent_from < self._count or bool(self._singles)

    def take_singles(self) -> list[SingleTimestep]:
        """Returns the queued single timesteps and empties the queue."""
        singles = self._singles.copy()
        self._singles.clear()
        return singles

    def append(self, results: int, places: Ints | int, streams: Ints | int, steps: Ints | int, values: Array) -> int:
        """Appends rows, or one row. Returns the place of the first."""
        begin = self._count
        at: int | slice
        if isinstance(places, int):
            end, at = begin + 1, begin
        else:
            end = begin + len(places)
            at = slice(begin, end)
        if end > len(self._columns["step"]):
            self._grow(max(end, 2 * begin))
        columns = self._columns
        columns["results"][at] = results
        columns["place"][at] = places
        columns["stream"][at] = streams
        columns["step"][at] = steps
        columns["values"][at] = values
        columns["checked"][at] = False
        self._count = end
        return begin

    @property
    def needs_compaction(self) -> bool:
        """Whether the buffer is long enough for a compaction."""
        return self._count > self._compact_at

    def compact(self, keep: Bools) -> Ints:
        """Removes all rows but these. Returns the new place of each row, -1 for removed ones."""
        self._flush_answers()
        moved: Ints = np.where(keep, np.cumsum(keep) - 1, -1)
        self.unsent_from = int(np.count_nonzero(keep[: self.unsent_from]))
        self._columns = {name: column[: self._count][keep] for name, column in self._columns.items()}
        self._count = len(self._columns["step"])
        self._grow(max(INITIAL_ROWS, 2 * self._count))
        self._compact_at = max(COMPACT_ROWS_MIN, 2 * self._count)
        return moved

    def split_by_results(self, at: Ints) -> list[tuple[int, slice]]:
        """Groups rows by the result that they belong to: pairs of a result's number and the slice of `at`."""
        numbers = self["results"][at]
        if len(at) and (numbers == numbers[0]).all():
            return [(int(numbers[0]), slice(0, len(at)))]
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(at)]
        return [(int(numbers[begin]), slice(begin, end)) for begin, end in pairwise(cuts) if begin < end]

    def checksums(self, outputs: Sequence[Array]) -> Array:
        """A checksum of each row's outputs, to compare a replayed answer with the delivered one without keeping that.

        It is a sum of 32-bit words (bytes for types of one byte or two), each times an odd factor of its own. Rows that differ in one word
        always differ in the sum; other rows collide with a probability of at most 2 ** -32.
        """
        rows, sums, begin = len(outputs[0]) if outputs else 0, None, 0
        for output in outputs:
            flat = output.reshape(rows, -1)
            bits = flat.view(np.uint8 if flat.dtype.itemsize < WORD_BYTES else np.uint32).astype(np.uint64)
            part = bits @ self._factors[begin : begin + bits.shape[1]]
            sums = part if sums is None else sums + part
            begin += bits.shape[1]
        return np.zeros(0, np.uint64) if sums is None else sums

    def set_answer(self, place: int, packed: Sequence[bytes]) -> bool:
        """Stores the checksum of the packed outputs of one row. Returns False when they do not fit the model."""
        if [len(part) for part in packed] != self._output_bytes:
            return False
        self._answers.append((place, packed))
        if len(self._answers) == ANSWERS_MAX:
            self._flush_answers()
        return True

    def _flush_answers(self) -> None:
        """Moves the checksums of answers to single timesteps into the columns."""
        if not self._answers:
            return
        places, packed = zip(*self._answers, strict=True)
        self._answers.clear()
        at = np.array(places)
        columns = zip(self._outputs, zip(*packed, strict=True), strict=True)
        outputs = [np.frombuffer(b"".join(parts), output.dtype).reshape(len(at), -1) for output, parts in columns]
        if outputs:
            self._columns["check"][at] = self.checksums(outputs)
        self._columns["checked"][at] = True

    def _grow(self, rows: int) -> None:
        for name, column in self._columns.items():
            longer = np.empty((rows, *column.shape[1:]), column.dtype)
            longer[: self._count] = column[: self._count]
            self._columns[name] = longer


def _word_count(output: Output) -> int:
    size = int(np.prod(output.shape)) * output.dtype.itemsize
    return size if output.dtype.itemsize < WORD_BYTES else size // WORD_BYTES


def _factors(count: int) -> Array:
    """Pseudo-random odd numbers: SplitMix64 of 1, 2, 3, ... (Steele, Lea and Flood, 2014)."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
