"""The due time of each timestep, computed before anything is sent. A slow server cannot delay it.

Rules:
1. There is no clock here: times are seconds since the start of the load.
2. The same seed gives the same times.
3. `constant`: every call has a fixed interval and a random phase, so that the calls are not all due at once.
   `poisson`: all calls together are one Poisson process. Each arrival belongs to a random call, so each call is a
   Poisson process too.
"""

from collections.abc import Iterator

import numpy as np

from tidegate.bench.plan import Arrivals
from tidegate.core.spec import Array

# Times that are computed at once: enough to be cheap, few enough (half a millisecond) to delay nothing.
TIMES_PER_DRAW = 4096


class Schedule:
    """The due times of the calls of one process.

    Args:
        calls: the number of calls.
        interval_s: the mean interval between the messages of a call, in seconds.
        arrivals: constant or poisson.
        seed: of the random numbers.
    """

    def __init__(self, calls: int, interval_s: float, arrivals: Arrivals, seed: tuple[int, ...]) -> None:
        self._calls = calls
        self._interval_s = interval_s
        self._rng = np.random.default_rng(seed)
        self._chunks = self._constant() if arrivals == "constant" else self._poisson()
        self._times: list[float] = []
        self._call_indices: list[int] = []
        self._next = 0

    def pop_due(self, until: float) -> Iterator[tuple[float, int]]:
        """Yields the time and the call of everything that is due until then, in order. Each is returned once."""
        while (now := self.next_s) <= until:
            call_indices = self._call_indices[self._next]
            self._next += 1
            yield now, call_indices

    @property
    def next_s(self) -> float:
        """The next due time."""
        if self._next == len(self._times):
            times, call_indices = next(self._chunks)
            self._times, self._call_indices, self._next = times.tolist(), call_indices.tolist(), 0
        return self._times[self._next]

    def _constant(self) -> Iterator[tuple[Array, Array]]:
        phases = self._rng.uniform(0.0, self._interval_s, self._calls)
        order = np.argsort(phases)
        periods = max(1, TIMES_PER_DRAW // self._calls)
        first = 0
        while True:
            starts = self._interval_s * np.arange(first, first + periods)  # (beats,)
            yield (starts[:, None] + phases[order]).ravel(), np.tile(order, periods)
            first += periods

    def _poisson(self) -> Iterator[tuple[Array, Array]]:
        now = 0.0
        while True:
            times = now + np.cumsum(self._rng.exponential(self._interval_s / self._calls, TIMES_PER_DRAW))
            yield times, self._rng.integers(self._calls, size=TIMES_PER_DRAW)
            now = float(times[-1])
