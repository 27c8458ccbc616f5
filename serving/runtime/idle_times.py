"""How long each live stream has been idle, in columns: thousands of streams are checked at once."""

import numpy as np

from tidegate.core.slots import FREE_SLOT_STEP, Slots
from tidegate.core.spec import Ints

# The step of a row whose idle time starts again: no row has it, used or free.
RESTARTED = FREE_SLOT_STEP - 1


class IdleTimes:
    """How long each row of the slots has been at the same timestep."""

    def __init__(self, capacity: int) -> None:
        self._step = np.full(capacity, FREE_SLOT_STEP, np.int64)
        self._since = np.full(capacity, np.inf)

    def end(self, row: int) -> None:
        """Starts the idle time of a row again: it belongs to another stream now, or to one that was woken."""
        self._step[row] = RESTARTED

    def rows(self, step: Ints, now: float, longer_than: float) -> list[int]:
        """The rows that have been idle for longer than that."""
        moved = step != self._step
        self._step[moved] = step[moved]
        self._since[moved] = now
        silent: list[int] = np.flatnonzero((now - self._since > longer_than) & (step != FREE_SLOT_STEP)).tolist()
        return silent


class IdleTimesByModel(dict[Slots, IdleTimes]):
    """The idle times of each model, made when they are first needed."""

    def __missing__(self, slots: Slots) -> IdleTimes:
        times = self[slots] = IdleTimes(slots.capacity)
        return times
