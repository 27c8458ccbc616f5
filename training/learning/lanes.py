"""Which rows are learned from when: carried-state batches for truncated back-propagation through time.

A server carries a stream's state for days. A network trained on windows that all begin with zero state has never seen
such a state. So the series is cut into a few long *lanes*, which lie side by side as a batch and are walked in chunks;
the state is carried from chunk to chunk and only the gradient is cut.

Laws:
1. Every row is in exactly one place of an epoch.
2. A *run* of a lane holds consecutive rows with no time gap; it begins at the head of a chunk, with a zero state. (A
   recurrent kernel cannot reset one lane of a batch in mid-sequence, so the chunk before is filled up with padding.)
3. The first rows of a run only warm the state up and do not count, except in some runs, chosen by chance: a stream that
   has just been opened has a cold state as well, and its first forecasts matter too.
4. Where lanes begin moves from epoch to epoch, so that no row is always a cold one.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from training.data.series import Span

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]  # series are far below 2^31 rows

PADDING = -1
EVERYTHING = slice(None)

# A long stretch is validated in pieces side by side, or 300,000 rows would be walked one by one: about so many pieces, none
# shorter than this, the state of each warmed up with rows before it. Below twice a piece's length nothing is cut, and the
# walk is that of a server.
PIECES_MAX = 64
PIECE_ROWS = 4096
RUN_UP_ROWS = 512
# Timesteps of a validation chunk: enough to pay for the call, few enough to be small in memory and to waste little padding.
WALK_CHUNK = 128


@dataclass(frozen=True)
class Runs:
    """Consecutive rows of the series, each run in one lane; sorted by lane. All (runs,)."""

    lane: Ints
    first: Ints
    size: Ints
    skipped: Ints  # how many of the rows, the first, do not count


@dataclass(frozen=True)
class Plan:
    """What is walked in which order. A *cell* is one chunk of one lane: rows of a single run, then padding.

    Only cells are kept, not rows: a plan is small beside the series.

    Attributes:
        head: (chunks, lanes) the cell's first row.
        size: (chunks, lanes) how many rows the cell has.
        skipped: (chunks, lanes) how many of them, the first, do not count for the loss.
        fresh: (chunks, lanes) whether the lane's state is zero when the chunk begins.
        chunk: timesteps that gradients reach back.
    """

    head: Rows
    size: Rows
    skipped: Rows
    fresh: Bools
    chunk: int

    @property
    def chunks(self) -> int:
        """How many optimiser steps the epoch has."""
        return len(self.fresh)

    @property
    def lanes(self) -> int:
        """How many lanes lie side by side."""
        return int(self.fresh.shape[1])

    def rows(self, part: slice = EVERYTHING) -> Rows:
        """(chunks, chunk, lanes) the row of the series, or `PADDING`, for these chunks."""
        at = np.arange(self.chunk, dtype=np.int32)[:, None]
        return np.where(at < self.size[part, None], self.head[part, None] + at, np.int32(PADDING))

    def scored(self, part: slice = EVERYTHING) -> Bools:
        """(chunks, chunk, lanes) whether a timestep counts for the loss: neither padding nor burn-in."""
        at = np.arange(self.chunk, dtype=np.int32)[:, None]
        counts: Bools = (at >= self.skipped[part, None]) & (at < self.size[part, None])
        return counts

    @classmethod
    def of(cls, runs: Runs, lanes: int, chunk: int) -> Self:
        """Lay runs out, each from the head of a chunk on."""
        cells = -(-runs.size // chunk)  # of each run
        passed = np.cumsum(cells) - cells
        of_lane = np.bincount(runs.lane, cells, lanes).astype(np.int64)
        begin = passed - (np.cumsum(of_lane) - of_lane)[runs.lane]  # the run's first chunk in its lane
        run = np.repeat(np.arange(len(cells)), cells)
        before = (np.arange(len(run)) - passed[run]) * chunk  # rows of the run before the cell
        place = (begin[run] + before // chunk, runs.lane[run])
        shape = (int(of_lane.max()), lanes)
        head, size, skipped = np.zeros((3, *shape), np.int32)
        plan = cls(head, size, skipped, np.zeros(shape, np.bool_), chunk)
        plan.head[place] = runs.first[run] + before
        plan.size[place] = np.minimum(runs.size[run] - before, chunk)
        plan.skipped[place] = np.clip(runs.skipped[run] - before, 0, chunk)
        plan.fresh[place] = before == 0
        return plan


def plan_epoch(
    stretches: Sequence[Span],
    *,
    lanes: int,
    chunk: int,
    burn_in: int,
    cold_share: float,
    rng: np.random.Generator,
) -> Plan:
    """Lay the rows of the stretches out in lanes.

    Args:
        stretches: runs of rows (first, end) without a time gap.
        lanes: rows of the batch.
        chunk: timesteps per optimiser step.
        burn_in: rows at the head of a run that do not count.
        cold_share: share of the runs that count from their first row.
        rng: says where lanes begin and which runs are cold.
    """
    lane, first, size = _ring(np.asarray(stretches, np.int64), lanes, rng)
    cold = rng.random(len(size)) < cold_share
    # A run that is shorter than the burn-in still teaches with its second half.
    skipped = np.where(cold, 0, np.minimum(burn_in, size // 2))
    return Plan.of(Runs(lane, first, size, skipped), lanes, chunk)


def plan_walk(stretches: Sequence[Span]) -> Plan:
    """Every row once, as in serving: from a fresh state at the head of each stretch, all rows counting from there on.

    Stretches lie side by side; a long one is cut into pieces that warm their state up with the rows before them.
    """
    pieces = [
        piece for stretch in stretches for piece in _pieces(stretch, sum(end - first for first, end in stretches))
    ]
    lanes = min(len(pieces), PIECES_MAX)
    load = [(0, lane) for lane in range(lanes)]
    placed = []
    for first, end, skipped in sorted(pieces, key=lambda piece: piece[0] - piece[1]):  # the longest first
        rows, lane = heapq.heappop(load)
        placed.append((lane, first, end - first, skipped))
        heapq.heappush(load, (rows + end - first, lane))
    runs = Runs(*np.array(sorted(placed), np.int64).T)
    return Plan.of(runs, lanes, min(WALK_CHUNK, int(runs.size.max())))


def _pieces(stretch: Span, total: int) -> list[tuple[int, int, int]]:
    """(first, end, how many do not count) of each piece of a stretch, whose share of all rows says how many there are."""
    first, end = stretch
    count = max((end - first) // max(PIECE_ROWS, total // PIECES_MAX), 1)
    borders = [first + (end - first) * index // count for index in range(count + 1)]
    run_ups = [0] + [RUN_UP_ROWS] * (count - 1)
    return [(low - run_up, high, run_up) for low, high, run_up in zip(borders[:-1], borders[1:], run_ups, strict=True)]


def _ring(stretches: Ints, lanes: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """The runs (lane, first row, size): all rows as a ring from a chance offset on, in equal shares, cut where stretches end."""
    first, length = stretches[:, 0], np.diff(stretches).ravel()
    passed = np.cumsum(length) - length  # rows of the ring before each stretch
    total = int(length.sum())
    offset = int(rng.integers(total))
    shares = np.arange(lanes) * total // lanes + offset
    starts = np.concatenate([passed, passed + total])  # twice around: a lane may run over the end of the ring
    cuts = np.unique(np.concatenate([shares, starts[(starts > offset) & (starts < offset + total)]]))
    # With fewer rows than lanes some shares are empty; of those that begin together the last one has the row.
    lane = np.searchsorted(shares, cuts, side="right") - 1
    stretch = np.searchsorted(passed, cuts % total, side="right") - 1
    return lane, first[stretch] + cuts % total - passed[stretch], np.diff(cuts, append=offset + total)
