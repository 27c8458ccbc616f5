"""When each timestep is due, drawn before anything is sent: what a server does cannot move it.

Laws:
1. No clock: times are seconds from the start of the load.
2. The same seed draws the same times, however they are taken.
3. Constant: every lane keeps its own beat, at a phase of its own, so that they do not all come at once. Poisson: the lanes
   together are one Poisson process and each arrival belongs to any of them, which makes each lane one too.
"""

from collections.abc import Iterator

import numpy as np

from serving.bench.plan import Arrivals
from serving.core.spec import Array

# Drawn at once: long enough to cost little for each, short enough (half a millisecond) to hold nothing up.
TIMES_PER_DRAW = 4096


class Schedule:
    """The due times of a process's lanes.

    Args:
        lanes: how many.
        interval_s: between the messages of a lane, on average.
        arrivals: how they follow each other.
        seed: of this process.

    """

    def __init__(self, calls: int, interval_s: float, arrivals: Arrivals, seed: tuple[int, ...]) -> None:
        self._calls = calls
        self._interval_s = interval_s
        self._arrivals = arrivals
        self._rng = np.random.default_rng(seed)
        self._chunks = self._constant() if arrivals == "constant" else self._poisson()
        self._times: list[float] = []
        self._call_indices: list[int] = []
        self._next = 0

    def pop_due(self, until: float) -> Iterator[tuple[float, int]]:
        """What is due up to then and was not taken before: time and lane, in order."""
        while (now := self.next_s) <= until:
            call_indices = self._call_indices[self._next]
            self._next += 1
            yield now, call_indices

    @property
    def next_s(self) -> float:
        """When the next one is due."""
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
