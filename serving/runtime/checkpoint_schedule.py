"""When state is stored, which lag is too long, and how much processor time storing takes."""

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# After a checkpoint, the processor is left to predictions for this multiple of the processor time that the checkpoint
# took, including the store's thread. To store ten thousand streams in SQLite takes a tenth of a second of a core. A
# factor of 2 brings checkpoints closer together, and they take a third of a core instead of a quarter.
PAUSE_FACTOR = 3
# The estimated duration of the next checkpoint, as a multiple of the processor time of the last: beside predictions a
# checkpoint waits for the processor as long as it uses it.
NEXT_ROUND_FACTOR = 2


@dataclass(frozen=True, slots=True)
class CheckpointSchedule:
    """Times in seconds, and a monotonic clock.

    State is stored every `interval_s`. A silent stream leaves its slot after `park_after_s`. The store lags when a
    change waits longer than `interval_s`: when the lag exceeds `ready_lag_s` the server is not ready, and when it
    exceeds `lag_max_s` new timesteps are refused.
    """

    interval_s: float
    park_after_s: float
    ready_lag_s: float
    lag_max_s: float
    clock: Callable[[], float] = perf_counter

    def ready(self, unsaved_s: float) -> bool:
        """Whether the store keeps up, when the oldest change has waited for so long."""
        return unsaved_s <= self.interval_s + self.ready_lag_s

    def too_late(self, unsaved_s: float) -> bool:
        """Whether new timesteps are refused, when the oldest change has waited for so long."""
        return unsaved_s > self.interval_s + self.lag_max_s

    def pause_s(self, took_s: float, used_s: float, unsaved_s: float) -> float:
        """How long to pause after a checkpoint.

        `took_s` is how long the checkpoint took, `used_s` how much processor time it used. Only processor time makes
        the pause longer: a checkpoint that waited for a slow disk delayed nobody. `unsaved_s` is how long the oldest
        change has waited. If possible, the next checkpoint ends before that lag makes the server not ready.
        """
        wanted = max(self.interval_s - took_s, PAUSE_FACTOR * used_s)
        allowed = self.interval_s + self.ready_lag_s - unsaved_s - NEXT_ROUND_FACTOR * used_s
        return max(0.0, min(wanted, allowed))


class CpuMeter(Generic[T]):
    """Awaits a coroutine and measures the processor time between its waits.

    `used_s` is the processor time that it has used in this thread so far, without that of other tasks.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], clock: Callable[[], float] = thread_time) -> None:
        self._coroutine = coroutine
        self._clock = clock
        self.used_s = 0.0

    def __await__(self) -> Generator[Any, Any, T]:
        """Returns or raises what the coroutine does."""
        go_on: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            started = self._clock()
            try:
                waits_for = go_on(value)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.used_s += self._clock() - started
            try:
                value = yield waits_for
                go_on = self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - passed to the coroutine
                go_on, value = self._coroutine.throw, error
