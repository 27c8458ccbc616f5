"""What a row costs a model, and what follows from it: how many rows the event loop runs at a time, and whether it does.

Costs are time of the processor. What other processes take of it makes no row dearer, and smaller pieces would give nobody more.
"""

# A piece keeps the loop for about so long: no longer than a lone timestep takes from client to client, so others hardly notice.
HOLD_SECONDS = 0.0005
# A batch of fewer rows costs as much as one of so many: the weights are read once for all of them, and so is the code. With an LSTM
# of 512 units, 4 MB of weights, a row costs 15 us in a batch of 256, 20 in one of 32, 22 in one of 16, 38 in one of 8, 242 alone.
ROWS_MIN = 16
# So even of a slow model so many rows go together, unless they keep the loop for longer than any other work in it may.
HOLD_SECONDS_MAX = 4 * HOLD_SECONDS
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
        row_seconds: of a row in a batch as large as `rows_max` lets it be.

    """

    def __init__(self, alone_seconds: float = 0.0) -> None:
        self.alone_seconds = alone_seconds
        # Dearer than a row in a batch will be. Batches grow as they are found to be cheaper.
        self.row_seconds = alone_seconds or HOLD_SECONDS / ROWS_MIN

    def __repr__(self) -> str:
        return f"<RowCost {self.alone_seconds * 1e6:.1f} us alone, {self.row_seconds * 1e6:.1f} us in a batch>"

    @property
    def in_thread(self) -> bool:
        """Whether one row alone keeps the loop for too long, so that batches, however large, are run beside it."""
        return self.alone_seconds >= HOLD_SECONDS

    @property
    def rows_max(self) -> int:
        """The most rows that the loop runs at a time."""
        least = min(ROWS_MIN, int(HOLD_SECONDS_MAX / self.row_seconds))
        return max(1, least, int(HOLD_SECONDS / self.row_seconds))

    def took(self, rows: int, seconds: float) -> None:
        """Takes note of what a batch of so many rows took."""
        if rows == 1:
            self.alone_seconds = _mean(self.alone_seconds, seconds)
        # A batch that is much smaller than it may be tells what a batch costs, and not what a row does.
        elif self.in_thread or 2 * rows >= self.rows_max or seconds > HOLD_SECONDS:
            self.row_seconds = _mean(self.row_seconds, seconds / rows)


def _mean(mean: float, seconds: float) -> float:
    return mean + WEIGHT * (min(seconds, COUNTED_MAX * mean) - mean) if mean else seconds
