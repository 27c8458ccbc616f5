"""What a row costs, and so how many rows the event loop runs at a time, and whether it runs them at all.

Costs are processor time. Other processes on the machine do not make a row more expensive, and smaller batches would not
help then.
"""

from collections.abc import Callable

from tidegate.core.errors import ModelFailed
from tidegate.core.input_layout import InputLayout
from tidegate.core.model import Model

# A batch blocks the event loop for about so long: no longer than a single timestep takes from client to client, so
# others hardly notice.
LOOP_SECONDS_MAX = 0.0005
# The same when nobody waits for the loop, see `runtime.senders`: the fixed cost of a batch matters little then.
LOOP_SECONDS_MAX_ALONE = 4 * LOOP_SECONDS_MAX
# The most rows of a batch in the thread: the next timestep waits for all of them.
THREAD_ROWS_MAX = 256
# A batch has a fixed cost: code and weights must be loaded from memory. A single row costs little else. With a batch
# that takes this multiple of a single row's time, the fixed cost is at most a quarter of it. For example, an LSTM with
# 512 units, 4 MB of weights, takes 240 us for a single row, 22 us for each of 16, 17 for each of 55, and 15 for each of
# 256.
SINGLE_ROW_FACTOR = 4
# The estimated cost of a row in a batch before the first batch, as a part of what it costs alone. From four rows on it
# is usually less.
FIRST_GUESS = 1 / 4
# The rows of the first batch of an unknown model: small models do not notice, and large models are recognized.
ROWS_FIRST = 16
# The cost of a single row is the minimum of this number of runs. The first ones are slow because the caches are cold.
SINGLE_ROW_RUNS = 5
# A batch size that comes again has bound memory, which saves more than a tenth. So sizes are rounded to steps of a
# quarter to an eighth of themselves, and do not follow each small change of the cost.
STEP_BITS = 3
# The weight of a batch in the moving averages: about twenty batches form an average, so a pause of Python in one of
# them matters little.
WEIGHT = 0.1
# The largest value that counts, as a multiple of the average, for the same reason.
COUNTED_MAX = 4


class RowCost:
    """Moving averages of the cost of a row, in seconds.

    Args:
        single_row_seconds: the measured time of a single row; 0 when unknown.

    Attributes:
        hung: whether a run took so long that it was ended: the next may block the loop as long.
        single_row_seconds: the cost of a batch with one row.
        row_seconds: the cost of a row in a batch of about `rows_max` rows.

    """

    def __init__(self, alone_seconds: float = 0.0) -> None:
        self.hung = False
        self.single_row_seconds = alone_seconds
        self.row_seconds = alone_seconds * FIRST_GUESS or LOOP_SECONDS_MAX / ROWS_FIRST

    def __repr__(self) -> str:
        return f"<RowCost {self.single_row_seconds * 1e6:.1f} us for a single row, {self.row_seconds * 1e6:.1f} us in a batch>"

    @property
    def needs_thread(self) -> bool:
        """Whether a single row blocks the event loop for too long, so that batches of any size run in the thread."""
        return self.hung or self.single_row_seconds >= LOOP_SECONDS_MAX

    @property
    def batch_seconds_max(self) -> float:
        """How long a batch may block the event loop, unless it runs in the thread."""
        return max(LOOP_SECONDS_MAX, SINGLE_ROW_FACTOR * self.single_row_seconds)

    @property
    def rows_max(self) -> int:
        """The largest number of rows that the event loop runs at a time."""
        return self._rows_within(self.batch_seconds_max)

    @property
    def rows_max_alone(self) -> int:
        """The same of a call that holds up nobody else."""
        return self._rows_within(max(LOOP_SECONDS_MAX_ALONE, self.batch_seconds_max))

    def _rows_within(self, seconds: float) -> int:
        rows = max(1, int(seconds / self.row_seconds))
        return rows - rows % size_step(rows)

    def record(self, rows: int, seconds: float) -> None:
        """Records how long a batch of this number of rows took."""
        if rows == 1:
            # When single rows have become slow, the thread is used after a few of them: the next may block the loop for
            # long.
            self.single_row_seconds = _mean(self.single_row_seconds, seconds, COUNTED_MAX * LOOP_SECONDS_MAX)
        # A batch that is much smaller than the limit measures the fixed cost rather than that of a row.
        elif 2 * rows >= self.rows_max or seconds > self.batch_seconds_max:
            self.row_seconds = _mean(self.row_seconds, seconds / rows)


def size_step(rows: int) -> int:
    """The step between batch sizes of about `rows` rows."""
    return 1 << max(0, rows.bit_length() - STEP_BITS)


def _mean(mean: float, seconds: float, counted_max: float = 0.0) -> float:
    return mean + WEIGHT * (min(seconds, max(COUNTED_MAX * mean, counted_max)) - mean) if mean else seconds


def measure_single_row(model: Model, clock: Callable[[], float]) -> float:
    """The time of a single row, in seconds by the clock; 0 when the model fails on zeros."""
    x, state = InputLayout(model.spec.inputs).zeros(1), model.initial_state(1)
    times = []
    for _ in range(SINGLE_ROW_RUNS):
        started = clock()
        try:
            model.step(x, state)
        except ModelFailed:
            return 0.0
        times.append(clock() - started)
    return min(times)
