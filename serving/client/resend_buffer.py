"""The kept timesteps of all streams of one model, in columns, in the order of arrival.

It grows at its end, and is swept now and then of the rows that have left it. A row is named by its place, which a sweep changes.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from struct import Struct
from typing import Any

import numpy as np

from tidegate.client.results import Bools, Group, Waiter
from tidegate.client.types import Model
from tidegate.core.spec import Array, Floats, Ints

# Rows that have left are swept out when the buffer is twice as long as after the last sweep, so that sweeping costs a row
# next to nothing. A shorter one is not worth it.
COMPACT_ROWS_MIN = 4096
INITIAL_ROWS = 64
UINT64_MAX = 2**64 - 1

# A timestep that has a caller of its own: its stream and its values, who waits for it, and the group that it belongs to.
SingleTimestep = tuple[int, bytes, Waiter, Group | None]


class ResendBuffer:
    """Rows, by the names of their columns: what is written to a column stays.

    `results` and `place` say whose a row is, `stream`, `step` and `values` what it is; `step` is 0 when it has left for good. `check` is
    the checksum of its answer, which counts when it is `checked`. Single timesteps are gathered beside them until `take_singles`.

    Attributes:
        model: what runs the streams, as its server described it last.
        rows_max: how many rows a message may have.
        unsent_from: nothing before this place is left to be sent.

    """

    def __init__(self, model: Model, rows_max: int) -> None:
        self.model = model
        self.rows_max = rows_max
        self.unsent_from = 0
        self._count = 0
        self._compact_at = COMPACT_ROWS_MIN
        self._columns: dict[str, Array] = {
            **{name: np.empty(0, np.int64) for name in ("results", "place", "stream", "step")},
            "check": np.empty(0, np.uint64),
            "checked": np.empty(0, np.bool_),
            "values": np.empty((0, len(model.features)), np.float32),
        }
        self._grow(INITIAL_ROWS)
        self._singles: list[SingleTimestep] = []
        self._word_count = [_word_count(output.dtype, output.shape) for output in model.outputs]
        self._factors = _factors(sum(self._word_count))
        self._factor_list: list[int] = self._factors.tolist()
        self._unpack = [
            Struct(f"<{count}{'B' if output.dtype.itemsize == 1 else 'I'}").unpack
            for output, count in zip(model.outputs, self._word_count, strict=True)
        ]

    def __len__(self) -> int:
        """How many rows there are."""
        return self._count

    def __getitem__(self, column: str) -> Array:
        return self._columns[column][: self._count]

    @property
    def lone_stream(self) -> int | None:
        """The stream of the only timestep that is to be sent, when there is only one, and it was gathered."""
        return self._singles[0][0] if len(self._singles) == 1 and self.unsent_from == self._count else None

    @property
    def has_unsent(self) -> bool:
        """Whether something may be left to be sent."""
        return self.unsent_from < self._count or bool(self._singles)

    def queue_single(self, single: SingleTimestep) -> None:
        """Puts a single timestep beside the rows, which are put together once in a while: a row each would cost ten times as much."""
        self._singles.append(single)

    def take_singles(self) -> list[SingleTimestep]:
        """The single timesteps since the last time."""
        singles, self._singles = self._singles, []
        return singles

    def append(self, results: int, places: Ints | int, streams: Ints | int, steps: Ints | int, values: Floats) -> int:
        """Puts rows at the end, or one; gives the place of the first."""
        begin = self._count
        end = begin + (1 if isinstance(places, int) else len(places))
        if end > len(self._columns["step"]):
            self._grow(max(end, 2 * begin))
        columns = self._columns
        columns["results"][begin:end] = results
        columns["place"][begin:end] = places
        columns["stream"][begin:end] = streams
        columns["step"][begin:end] = steps
        columns["values"][begin:end] = values
        columns["checked"][begin:end] = False
        self._count = end
        return begin

    @property
    def needs_compaction(self) -> bool:
        """Whether it is time for a sweep."""
        return self._count > self._compact_at

    def compact(self, keep: Bools) -> Ints:
        """Drops the rows that do not stay; gives the new place of each, -1 for those that are gone."""
        moved: Ints = np.where(keep, np.cumsum(keep) - 1, -1)
        self.unsent_from = int(np.count_nonzero(keep[: self.unsent_from]))
        self._columns = {name: column[: self._count][keep] for name, column in self._columns.items()}
        self._count = len(self._columns["step"])
        self._grow(max(INITIAL_ROWS, 2 * self._count))
        self._compact_at = max(COMPACT_ROWS_MIN, 2 * self._count)
        return moved

    def split_by_results(self, at: Ints) -> list[tuple[int, slice]]:
        """The results that rows at these places belong to, and which of the rows do."""
        numbers = self["results"][at]
        if len(at) and (numbers == numbers[0]).all():
            return [(int(numbers[0]), slice(0, len(at)))]
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(at)]
        return [(int(numbers[begin]), slice(begin, end)) for begin, end in pairwise(cuts) if begin < end]

    def checksums(self, outputs: Sequence[Array]) -> Array:
        """One number for the bits of each row's outputs, so that a replay is held against what was delivered without keeping it.

        A sum of its words, each times an odd number of its own. Rows that differ in one word never have the same; others by a chance
        of one in 2 ** 32 or less, as long as a word has no more than 32 bits.
        """
        rows, sums, begin = len(outputs[0]) if outputs else 0, None, 0
        for output in outputs:
            flat = output.reshape(rows, -1)
            bits = flat.view(np.uint8 if flat.dtype.itemsize == 1 else np.uint32).astype(np.uint64)
            part = bits @ self._factors[begin : begin + bits.shape[1]]
            sums = part if sums is None else sums + part
            begin += bits.shape[1]
        return np.zeros(0, np.uint64) if sums is None else sums

    def set_checksum(self, place: int, packed: Sequence[bytes]) -> None:
        """Keeps the same for the packed outputs of one row."""
        words = [word for unpack, part in zip(self._unpack, packed, strict=True) for word in unpack(part)]
        self._columns["check"][place] = sum(map(mul, words, self._factor_list)) & UINT64_MAX
        self._columns["checked"][place] = True

    def _grow(self, rows: int) -> None:
        for name, column in self._columns.items():
            longer = np.empty((rows, *column.shape[1:]), column.dtype)
            longer[: self._count] = column[: self._count]
            self._columns[name] = longer


def _word_count(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    size = int(np.prod(shape)) * dtype.itemsize
    return size if dtype.itemsize == 1 else size // 4


def _factors(count: int) -> Array:
    """Odd numbers without a pattern: SplitMix64 of their places (Steele, Lea and Flood, 2014)."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
