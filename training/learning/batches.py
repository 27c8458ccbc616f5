"""Batches for truncated back-propagation through time: which rows the network learns from when, with its state carried.

A server carries the state of a stream for days. A network trained on short windows with zero state has never seen such a
state. So an epoch cuts the series into a few long parts. They are the elements of a batch, side by side, and are walked in
chunks. The state is carried from chunk to chunk; only the gradient is cut.

Laws:
1. Every row is in exactly one place of an epoch.
2. A *sequence* is consecutive rows without a time gap, in one batch element. It begins at the head of a chunk, with a zero
   state. (A recurrent kernel cannot reset one element within a chunk, so the chunk before is padded.)
3. The first rows of a sequence warm up the state and do not count (burn-in). Some random sequences count from their first
   row: a new stream has a zero state as well, and its first forecasts matter.
4. The cuts move from epoch to epoch, so that no row is always one with a zero state.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tidegate.training.data.series import Span

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]  # series are far below 2^31 rows

PADDING = -1
EVERYTHING = slice(None)

# A long segment is validated in pieces side by side; otherwise 300,000 rows would be walked one by one. There are about so
# many pieces, and none is shorter than this. Rows before a piece warm up its state. A segment shorter than two pieces is
# not cut, and is walked as a server would.
MAX_PIECES = 64
PIECE_ROWS = 4096
WARM_UP_ROWS = 512
# Timesteps of a validation chunk: enough to pay for the call, few enough to be small in memory and to waste little padding.
VALIDATION_CHUNK = 128


@dataclass(frozen=True)
class Sequences:
    """Sequences of consecutive rows, sorted by batch element. All are (sequences,)."""

    element: Ints
    first: Ints
    length: Ints
    burn_in: Ints  # how many of the first rows do not count


@dataclass(frozen=True)
class Plan:
    """What is walked in which order. A *cell* is one chunk of one batch element: rows of one sequence, then padding.

    Only cells are kept, not rows: a plan is small beside the series.

    Attributes:
        first: (chunks, batch) the first row of the cell.
        length: (chunks, batch) how many rows the cell has.
        burn_in: (chunks, batch) how many of the first rows do not count for the loss.
        reset: (chunks, batch) whether the state is set to zero when the chunk begins.
        chunk: timesteps of a chunk, which a gradient reaches back.
    """

    first: Rows
    length: Rows
    burn_in: Rows
    reset: Bools
    chunk: int

    @property
    def chunks(self) -> int:
        """How many optimizer steps the epoch has."""
        return len(self.reset)

    @property
    def batch_size(self) -> int:
        """How many elements a batch has."""
        return int(self.reset.shape[1])

    def rows(self, part: slice = EVERYTHING) -> Rows:
        """(chunks, chunk, batch) the row of the series, or `PADDING`, for these chunks."""
        step = np.arange(self.chunk, dtype=np.int32)[:, None]
        return np.where(step < self.length[part, None], self.first[part, None] + step, np.int32(PADDING))

    def loss_mask(self, part: slice = EVERYTHING) -> Bools:
        """(chunks, chunk, batch) whether a timestep counts for the loss: neither padding nor burn-in."""
        step = np.arange(self.chunk, dtype=np.int32)[:, None]
        mask: Bools = (step >= self.burn_in[part, None]) & (step < self.length[part, None])
        return mask

    @classmethod
    def of(cls, sequences: Sequences, batch_size: int, chunk: int) -> Self:
        """Lay out the sequences, each from the head of a chunk on."""
        cells = -(-sequences.length // chunk)  # of each sequence
        passed = np.cumsum(cells) - cells
        per_element = np.bincount(sequences.element, cells, batch_size).astype(np.int64)
        # The first chunk of the sequence in its element.
        begin = passed - (np.cumsum(per_element) - per_element)[sequences.element]
        source = np.repeat(np.arange(len(cells)), cells)  # the sequence of each cell
        before = (np.arange(len(source)) - passed[source]) * chunk  # rows of the sequence before the cell
        place = (begin[source] + before // chunk, sequences.element[source])
        shape = (int(per_element.max()), batch_size)
        first, length, burn_in = np.zeros((3, *shape), np.int32)
        plan = cls(first, length, burn_in, np.zeros(shape, np.bool_), chunk)
        plan.first[place] = sequences.first[source] + before
        plan.length[place] = np.minimum(sequences.length[source] - before, chunk)
        plan.burn_in[place] = np.clip(sequences.burn_in[source] - before, 0, chunk)
        plan.reset[place] = before == 0
        return plan


def plan_epoch(
    segments: Sequence[Span], *, batch_size: int, chunk: int, burn_in: int, cold_share: float, rng: np.random.Generator
) -> Plan:
    """Lay out the rows of the segments for one epoch.

    Args:
        segments: rows (first, end) without a time gap.
        batch_size: elements of the batch.
        chunk: timesteps per optimizer step.
        burn_in: rows at the head of a sequence that do not count.
        cold_share: share of the sequences that count from their first row.
        rng: draws the cuts and the sequences that count from their first row.
    """
    element, first, length = _cut(np.asarray(segments, np.int64), batch_size, rng)
    cold = rng.random(len(length)) < cold_share
    # A sequence shorter than the burn-in still counts with its second half.
    skipped = np.where(cold, 0, np.minimum(burn_in, length // 2))
    return Plan.of(Sequences(element, first, length, skipped), batch_size, chunk)


def plan_validation(segments: Sequence[Span]) -> Plan:
    """Every row once, as in serving: each segment begins with a zero state, and all its rows count.

    Segments lie side by side. A long one is cut into pieces; the rows before a piece warm up its state.
    """
    total = sum(end - first for first, end in segments)
    pieces = [piece for segment in segments for piece in _pieces(segment, total)]
    batch_size = min(len(pieces), MAX_PIECES)
    load = [(0, element) for element in range(batch_size)]
    placed = []
    for first, end, burn_in in sorted(pieces, key=lambda piece: piece[0] - piece[1]):  # the longest first
        rows, element = heapq.heappop(load)
        placed.append((element, first, end - first, burn_in))
        heapq.heappush(load, (rows + end - first, element))
    sequences = Sequences(*np.array(sorted(placed), np.int64).T)
    return Plan.of(sequences, batch_size, min(VALIDATION_CHUNK, int(sequences.length.max())))


def _pieces(segment: Span, total: int) -> list[tuple[int, int, int]]:
    """(first, end, burn-in) of each piece of a segment; its share of all rows determines how many there are."""
    first, end = segment
    count = max((end - first) // max(PIECE_ROWS, total // MAX_PIECES), 1)
    cuts = [first + (end - first) * index // count for index in range(count + 1)]
    warm_ups = [0] + [WARM_UP_ROWS] * (count - 1)
    return [(low - warm_up, high, warm_up) for low, high, warm_up in zip(cuts[:-1], cuts[1:], warm_ups, strict=True)]


def _cut(segments: Ints, batch_size: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """The sequences (element, first row, length): all rows as a ring from a random offset on, in equal shares.

    A share is cut where a segment ends.
    """
    first, length = segments[:, 0], np.diff(segments).ravel()
    passed = np.cumsum(length) - length  # rows of the ring before each segment
    total = int(length.sum())
    offset = int(rng.integers(total))
    shares = np.arange(batch_size) * total // batch_size + offset
    starts = np.concatenate([passed, passed + total])  # twice around: a share may run over the end of the ring
    cuts = np.unique(np.concatenate([shares, starts[(starts > offset) & (starts < offset + total)]]))
    # With fewer rows than elements some shares are empty. Of those that begin together the last one has the row.
    element = np.searchsorted(shares, cuts, side="right") - 1
    segment = np.searchsorted(passed, cuts % total, side="right") - 1
    return element, first[segment] + cuts % total - passed[segment], np.diff(cuts, append=offset + total)
