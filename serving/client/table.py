"""What a client knows about its streams, in columns. Each stream has an index, which another stream reuses later."""

from collections.abc import Sequence

import numpy as np

from tidegate.client.results import Bools
from tidegate.core.spec import Array, Ints

INITIAL_CAPACITY = 16


class StreamTable:
    """The columns.

    Attributes:
        answered: of each stream, number of the last timestep whose answer was handed over.
        durable_steps: the largest that the server has told of each.
        next_steps: the number that the next timestep of each will have.
        first: number of the first timestep that came from here.
        usable: whether a stream can be used: it is neither refused, lost nor closed.
        in_use: how many are usable.
        begun: whether it was ever open.
        open: whether timesteps may be sent on this call.
        handles: what stands for each on this call; 0 while nothing does.

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
        self._held: Bools = np.zeros(0, np.bool_)  # whether it shall wait a little
        self._grow(INITIAL_CAPACITY)

    def add_streams(self, count: int) -> Ints:
        """Takes so many streams in, which are to be opened; gives their indices."""
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
        kept_from = max(self._start_at[stream], min(self._answered_at[stream], self._durable_at[stream]) + 1)
        return bool(self._next_at[stream] - kept_from < self.buffer_max)

    def room(self, streams: Ints) -> int:
        """For how many of these rows, one a stream each, there is room, from the first on."""
        room = self.buffer_max - (self.next_steps[streams] - self.first_kept(streams))
        full = (cumcount(streams) >= room) & self.usable[streams]
        return int(full.argmax()) if full.any() else len(streams)

    def first_kept(self, streams: Ints) -> Ints:
        """Of each stream, number of the first timestep that is kept."""
        kept_from = np.minimum(self.answered[streams], self.durable_steps[streams]) + 1
        first: Ints = np.maximum(self.start_steps[streams], kept_from)
        return first

    def unanswered(self) -> dict[int, int]:
        """The streams with timesteps in flight, and the number of the first of each that is not answered."""
        streams = np.flatnonzero(self._in_flight)
        return dict(zip(streams.tolist(), (self.answered[streams] + 1).tolist(), strict=True))

    def mark_durable(self, streams: Ints, durable_steps: Ints) -> None:
        """The server has told what is durable."""
        np.maximum.at(self.durable_steps, streams, durable_steps)

    def hold(self, streams: Ints | Sequence[int]) -> None:
        """Sends nothing of these streams until they are released, or opened again."""
        self._held[streams] = True

    def release(self, streams: Ints | Sequence[int]) -> None:
        """Goes on with these streams."""
        self._held[streams] = False

    def _grow(self, capacity: int) -> None:
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray):
                longer: Array = np.zeros(capacity, column.dtype)
                longer[: len(column)] = column
                setattr(self, name, longer)
        # One number is read and written through these in a tenth of the time that numpy takes to find out what is wanted.
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
    """How often each row's stream stands before it."""
    if len(streams) < 2 or np.all(streams[1:] > streams[:-1]):
        return np.zeros(len(streams), np.int64)
    sorted_at = np.argsort(streams, kind="stable")
    in_turn = streams[sorted_at]
    starts = np.flatnonzero(np.r_[True, in_turn[1:] != in_turn[:-1]])
    cumcount = np.empty(len(streams), np.int64)
    cumcount[sorted_at] = np.arange(len(streams)) - np.repeat(starts, np.diff(np.r_[starts, len(streams)]))
    return cumcount
