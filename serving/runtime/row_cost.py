"""What a row costs a model, and what follows from it: how many rows the event loop runs at a time, and whether it does.

Costs are time of the processor. What other processes take of it makes no row dearer, and smaller batches would give nobody more.
"""

from collections.abc import Callable

import numpy as np

from serving.core.errors import ModelFailed
from serving.core.model import Model

# A batch keeps the loop for about so long: no longer than a lone timestep takes from client to client, so others hardly notice.
HOLD_SECONDS = 0.0005
# A batch has a price that does not depend on its rows: the code and the weights have to come from memory. One row alone costs little
# else. So a batch takes so many times what that does, or the price would be more than a quarter of it: an LSTM of 512 units, 4 MB of
# weights, takes 240 us for a row alone, 22 for each of 16, 17 for each of 55, and 15 for each of 256.
ALONE_TIMES = 4
# What a row in a batch is taken to cost before there was one, as a part of what it costs alone: less, as a rule, from four rows on.
FIRST_GUESS = 1 / 4
# The rows of a first batch of which nothing is known: the smallest models do not notice, the largest are found out.
ROWS_FIRST = 16
# The best of so many runs is what one row costs; the first are slow, since nothing is in the caches.
ALONE_RUNS = 5
# Batches of one size go through memory that is bound to the model, which saves a tenth and more; so sizes come in steps of an eighth
# to a sixteenth of themselves, and do not follow each little change of what a row costs.
STEP_BITS = 4
# How much a batch counts in the running means: some twenty make a mean, so one that met a pause of Python's does not.
WEIGHT = 0.1
# The most that a batch counts as, times the mean, for the same reason.
COUNTED_MAX = 4


class RowCost:
    """Running means of what a row costs, in seconds.

    Args:
        alone_seconds: what one row alone was measured to take; 0 when that is not known.

    Attributes:
        alone_seconds: of a batch of one row.
        row_seconds: of a row in a batch that is about as large as `rows_max` lets it be.

    """

    def __init__(self, alone_seconds: float = 0.0) -> None:
        self.alone_seconds = alone_seconds
        self.row_seconds = alone_seconds * FIRST_GUESS or HOLD_SECONDS / ROWS_FIRST

    def __repr__(self) -> str:
        return f"<RowCost {self.alone_seconds * 1e6:.1f} us alone, {self.row_seconds * 1e6:.1f} us in a batch>"

    @property
    def in_thread(self) -> bool:
        """Whether one row alone keeps the loop for too long, so that batches, however large, are run beside it."""
        return self.alone_seconds >= HOLD_SECONDS

    @property
    def hold_seconds(self) -> float:
        """How long a batch keeps the loop: at most `ALONE_TIMES` times `HOLD_SECONDS`, unless it is for the thread."""
        return max(HOLD_SECONDS, ALONE_TIMES * self.alone_seconds)

    @property
    def rows_max(self) -> int:
        """The most rows that the loop runs at a time."""
        rows = max(1, int(self.hold_seconds / self.row_seconds))
        return rows - rows % step_of(rows)

    def took(self, rows: int, seconds: float) -> None:
        """Takes note of what a batch of so many rows took."""
        if rows == 1:
            # Whose rows have become slow is for the thread after a few of them: the next may keep the loop for ever.
            self.alone_seconds = _mean(self.alone_seconds, seconds, COUNTED_MAX * HOLD_SECONDS)
        # A batch that is much smaller than it may be tells what a batch costs, and not what a row does.
        elif 2 * rows >= self.rows_max or seconds > self.hold_seconds:
            self.row_seconds = _mean(self.row_seconds, seconds / rows)


def step_of(rows: int) -> int:
    """By how much the sizes of batches differ, when they are about so large."""
    return 1 << max(0, rows.bit_length() - STEP_BITS)


def _mean(mean: float, seconds: float, counted_max: float = 0.0) -> float:
    return mean + WEIGHT * (min(seconds, max(COUNTED_MAX * mean, counted_max)) - mean) if mean else seconds


def time_alone(model: Model, clock: Callable[[], float]) -> float:
    """What the model takes for one row alone, in seconds by the clock; 0 when it fails on zeros."""
    x, state = np.zeros((1, len(model.spec.features)), np.float32), model.initial_state(1)
    taken = []
    for _ in range(ALONE_RUNS):
        begun = clock()
        try:
            model.step(x, state)
        except ModelFailed:
            return 0.0
        taken.append(clock() - begun)
    return min(taken)
