"""The state of each stream, in columns. A stream has an index, which is reused after it has left."""

from collections.abc import Sequence

import numpy as np

from tidegate.client.results import Bools
from tidegate.core.spec import Array, Ints

INITIAL_CAPACITY = 16


class StreamTable:
    """The columns, indexed by stream.

    Attributes:
        answered: the number of the last timestep whose answer was delivered.
        durable_steps: the largest durable step that the server has reported.
        next_steps: the number of the next timestep.
        start_steps: the number of the first timestep sent by this client.
        usable: False for a stream that was refused, lost or closed.
        usable_count: the number of usable streams.
        ever_opened: whether the stream was ever open.
        open: whether timesteps may be sent on the current call.
        handles: the handle on the current call; 0 for none.

    """

    def __init__(self, buffer_max: int) -> None:
        self.buffer_max = buffer_max
        self.usable_count = 0
        self._count = 0  # indices that were ever given
        self._free_indices: list[int] = []
        self.answered: Ints = np.zeros(0, np.int64)
        self.durable_steps: Ints = np.zeros(0, np.int64)
        self.next_steps: Ints = np.zeros(0, np.int64)
        self.start_steps: Ints = np.zeros(0, np.int64)
        self.handles: Ints = np.zeros(0, np.int64)
        self._cursor: Ints = np.zeros(0, np.int64)  # number of the next timestep to send
        self._applied: Ints = np.zeros(0, np.int64)  # the last that the server is known to have applied
        self._in_flight: Ints = np.zeros(0, np.int64)
        self.usable: Bools = np.zeros(0, np.bool_)
        self.ever_opened: Bools = np.zeros(0, np.bool_)
        self.open: Bools = np.zeros(0, np.bool_)
        self._held: Bools = np.zeros(0, np.bool_)  # whether its timesteps wait a little
        self._grow(INITIAL_CAPACITY)

    def add_streams(self, count: int) -> Ints:
        """Adds streams that are to be opened. Returns their indices."""
        reused = [self._free_indices.pop() for _ in range(min(count, len(self._free_indices)))]
        fresh = range(self._count, self._count + count - len(reused))
        self._count += len(fresh)
        if self._count > len(self.usable):
            self._grow(max(INITIAL_CAPACITY, 2 * self._count))
        streams = np.array([*reused, *fresh], np.int64)
        for column in (self.answered, self.durable_steps, self.handles, self._applied, self._in_flight):
            column[streams] = 0
        for column in (self.next_steps, self.start_steps, self._cursor):
            column[streams] = 1
        self.ever_opened[streams] = self.open[streams] = self._held[streams] = False
        self.usable[streams] = True
        self.usable_count += count
        return streams

    def has_room(self, stream: int) -> bool:
        """Whether a stream may keep one more timestep."""
        next_step, most = self._next_at[stream], self.buffer_max
        if next_step - self._answered_at[stream] <= most and next_step - self._durable_at[stream] <= most:
            return True
        return next_step - self._start_at[stream] < most

    def room(self, streams: Ints) -> int:
        """The number of rows, from the first on, for which there is room. Each row is a timestep of the stream given."""
        room = self.buffer_max - (self.next_steps[streams] - self.first_kept(streams))
        full = (cumcount(streams) >= room) & self.usable[streams]
        return int(full.argmax()) if full.any() else len(streams)

    def first_kept(self, streams: Ints) -> Ints:
        """The number of the first timestep that each stream keeps."""
        kept_from = np.minimum(self.answered[streams], self.durable_steps[streams]) + 1
        first: Ints = np.maximum(self.start_steps[streams], kept_from)
        return first

    def unanswered(self) -> dict[int, int]:
        """The streams with timesteps in flight, and the number of the first unanswered timestep of each."""
        streams = np.flatnonzero(self._in_flight)
        return dict(zip(streams.tolist(), (self.answered[streams] + 1).tolist(), strict=True))

    def mark_durable(self, streams: Ints, durable_steps: Ints) -> None:
        """Notes the durable steps that the server has reported."""
        np.maximum.at(self.durable_steps, streams, durable_steps)

    def hold(self, streams: Ints | Sequence[int]) -> None:
        """Stops sending timesteps of these streams until they are released or opened again."""
        self._held[streams] = True

    def release(self, streams: Ints | Sequence[int]) -> None:
        """Ends `hold`."""
        self._held[streams] = False

    def _grow(self, capacity: int) -> None:
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray):
                longer: Array = np.zeros(capacity, column.dtype)
                longer[: len(column)] = column
                setattr(self, name, longer)
        # A memoryview reads and writes one number in a tenth of the time that numpy's indexing takes.
        self._next_at: memoryview = self.next_steps.data
        self._answered_at: memoryview = self.answered.data
        self._durable_at: memoryview = self.durable_steps.data
        self._start_at: memoryview = self.start_steps.data
        self._cursor_at: memoryview = self._cursor.data
        self._applied_at: memoryview = self._applied.data
        self._in_flight_at: memoryview = self._in_flight.data
        self._open_at: memoryview = self.open.data
        self._held_at: memoryview = self._held.data


def cumcount(streams: Ints) -> Ints:
    """How many earlier rows have the same stream, for each row; as `GroupBy.cumcount` of pandas."""
    if len(streams) < 2 or np.all(streams[1:] > streams[:-1]):
        return np.zeros(len(streams), np.int64)
    sorted_at = np.argsort(streams, kind="stable")
    in_turn = streams[sorted_at]
    starts = np.flatnonzero(np.r_[True, in_turn[1:] != in_turn[:-1]])
    counts = np.empty(len(streams), np.int64)
    counts[sorted_at] = np.arange(len(streams)) - np.repeat(starts, np.diff(np.r_[starts, len(streams)]))
    return counts
