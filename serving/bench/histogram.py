"""Latencies by bucket, to one percent, whatever their size; those of several processes add up.

Buckets grow by 1 %, so a bucket's middle is within 0.5 % of whatever is in it. What was never answered is counted too: it
is slower than everything that was, and a percentile that falls among it is not known.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np

from serving.core.spec import Array

# Nothing over a socket is quicker.
LOWEST_S = 1e-6
GROWTH = 1.01
# The last one is at 1,180 s: longer than a run waits for an answer.
BUCKETS = 2100

_SCALE = 1.0 / math.log(GROWTH)


class Histogram:
    """Counts by bucket; `unanswered` are those without a latency."""

    __slots__ = ("counts", "longest_s", "unanswered")

    def __init__(self) -> None:
        self.counts: Array = np.zeros(BUCKETS, np.int64)
        self.longest_s = 0.0
        self.unanswered = 0

    def __len__(self) -> int:
        """All that were answered."""
        return int(self.counts.sum())

    def add(self, seconds: float, count: int = 1) -> None:
        """So many that took that long."""
        self.counts[_bucket(seconds)] += count
        self.longest_s = max(self.longest_s, seconds)

    def merge(self, other: Self) -> None:
        """Adds what another one holds."""
        self.counts += other.counts
        self.longest_s = max(self.longest_s, other.longest_s)
        self.unanswered += other.unanswered

    def quantile(self, share: float) -> float | None:
        """The latency in seconds that a share of all did not exceed, to 1 %; None when it is not known."""
        answered = len(self)
        rank = max(1, math.ceil(share * (answered + self.unanswered)))
        if rank > answered:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(LOWEST_S * GROWTH ** (place + 0.5)), self.longest_s)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Upper bound in seconds and count of each bucket that is not empty."""
        for place in np.flatnonzero(self.counts).tolist():
            yield LOWEST_S * GROWTH ** (place + 1), int(self.counts[place])

    def __getstate__(self) -> tuple[Mapping[int, int], float, int]:
        """As little as says it: it travels once a second."""
        places = np.flatnonzero(self.counts)
        return dict(zip(places.tolist(), self.counts[places].tolist(), strict=True)), self.longest_s, self.unanswered

    def __setstate__(self, state: tuple[Mapping[int, int], float, int]) -> None:
        counts, self.longest_s, self.unanswered = state
        self.counts = np.zeros(BUCKETS, np.int64)
        self.counts[list(counts)] = list(counts.values())


def _bucket(seconds: float) -> int:
    if seconds <= LOWEST_S:
        return 0
    return min(BUCKETS - 1, int(math.log(seconds / LOWEST_S) * _SCALE))
