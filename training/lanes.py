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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

PADDING = -1


@dataclass(frozen=True)
class Plan:
    """One epoch.

    Attributes:
        rows: (time, lanes) the row of the series, or `PADDING`; `time` is a multiple of `chunk`.
        scored: (time, lanes) whether it counts for the loss: neither padding nor burn-in.
        fresh: (chunks, lanes) whether the lane's state is zero when the chunk begins.
        chunk: timesteps that gradients reach back.
    """

    rows: Rows
    scored: Bools
    fresh: Bools
    chunk: int

    @property
    def chunks(self) -> int:
        """How many optimiser steps the epoch has."""
        return len(self.fresh)


def plan_epoch(
    stretches: Sequence[tuple[int, int]],
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
    runs = [_runs(stretches, lane, lanes, offset) for offset in [_offset(stretches, rng)] for lane in range(lanes)]
    chunks = max(sum(-(-(end - first) // chunk) for first, end in lane) for lane in runs)
    plan = Plan(
        rows=np.full((chunks * chunk, lanes), PADDING, np.int64),
        scored=np.zeros((chunks * chunk, lanes), np.bool_),
        fresh=np.zeros((chunks, lanes), np.bool_),
        chunk=chunk,
    )
    for lane, pieces in enumerate(runs):
        at = 0
        for first, end in pieces:
            size = end - first
            cold = rng.random() < cold_share
            # A run that is shorter than the burn-in still teaches with its second half.
            skipped = 0 if cold else min(burn_in, size // 2)
            plan.rows[at : at + size, lane] = np.arange(first, end)
            plan.scored[at + skipped : at + size, lane] = True
            plan.fresh[at // chunk, lane] = True
            at += -(-size // chunk) * chunk
    return plan


def _offset(stretches: Sequence[tuple[int, int]], rng: np.random.Generator) -> int:
    return int(rng.integers(sum(end - first for first, end in stretches)))


def _runs(stretches: Sequence[tuple[int, int]], lane: int, lanes: int, offset: int) -> list[tuple[int, int]]:
    """The runs of one lane: its equal share of all rows, seen as a ring that begins at `offset`."""
    total = sum(end - first for first, end in stretches)
    begin, stop = (lane * total // lanes + offset, (lane + 1) * total // lanes + offset)
    runs, passed = [], 0
    # Twice around, because a lane may run over the end of the ring.
    for first, end in [*stretches, *stretches]:
        low, high = max(begin, passed), min(stop, passed + end - first)
        if low < high:
            runs.append((first + low - passed, first + high - passed))
        passed += end - first
    return runs
