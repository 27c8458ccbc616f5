"""How often state is stored, how late is too late, and what storing it costs."""

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# After a round the processor is left to predictions for so many times as long as the round used it, the store's thread included: storing
# ten thousand streams in SQLite takes a tenth of a second of a core, and shall not be done for all of the time. With 2 such rounds
# come closer together, and take a third of a core instead of a quarter.
REST_FACTOR = 3
# What the next round may take, as a multiple of the processor time of the last: beside predictions a round waits as long for the
# processor as it uses it.
NEXT_ROUND_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """Times, in seconds, and the clock that tells them, a monotonic one.

    State is stored every `every_s`; a silent stream leaves its slot after `park_after_s`. A store is behind when a change waits
    longer than `every_s`: by `ready_lag_s`, and the server is not ready; by `lag_max_s`, and new timesteps are refused.
    """

    every_s: float
    park_after_s: float
    ready_lag_s: float
    lag_max_s: float
    clock: Callable[[], float] = perf_counter

    def ready(self, unsaved_s: float) -> bool:
        """Whether the store keeps up, when the oldest change has waited so long."""
        return unsaved_s <= self.every_s + self.ready_lag_s

    def too_late(self, unsaved_s: float) -> bool:
        """Whether new timesteps are to be refused, when the oldest change has waited so long."""
        return unsaved_s > self.every_s + self.lag_max_s

    def rest_s(self, took_s: float, used_s: float, unsaved_s: float) -> float:
        """How long to rest after a round.

        `took_s` is how long the round took, `used_s` how much processor time. Only the second earns it a longer rest: a round that
        waited for a slow disk held nobody up. `unsaved_s` is how long the oldest change has waited now: the next round ends before
        that makes the server not ready, if it can.
        """
        wanted = max(self.every_s - took_s, REST_FACTOR * used_s)
        allowed = self.every_s + self.ready_lag_s - unsaved_s - NEXT_ROUND_FACTOR * used_s
        return max(0.0, min(wanted, allowed))


class Work(Generic[T]):
    """Awaits a coroutine, and measures what it does between its waits.

    `used_s` is the processor time that it has used in this thread so far, what others did there meanwhile not counted.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], clock: Callable[[], float] = thread_time) -> None:
        self._coroutine = coroutine
        self._clock = clock
        self.used_s = 0.0

    def __await__(self) -> Generator[Any, Any, T]:
        """What the coroutine returns or raises."""
        go_on: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            begun = self._clock()
            try:
                waits_for = go_on(value)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.used_s += self._clock() - begun
            try:
                value = yield waits_for
                go_on = self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                go_on, value = self._coroutine.throw, error
