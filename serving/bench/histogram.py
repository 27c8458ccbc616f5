"""A latency histogram with a resolution of one percent. Histograms of several processes can be merged.

Each bucket is 1 % wider than the one before it, so the middle of a bucket is within 0.5 % of every value in it.
Timesteps without an answer are counted too: they are slower than all others. A quantile that falls among them is
unknown.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from tidegate.core.spec import Ints

Floats64 = npt.NDArray[np.float64]
# No answer over a socket is faster.
LOWEST_S = 1e-6
GROWTH = 1.01
# The last bucket is at 1,180 s. No run waits that long for an answer.
BUCKETS = 2100

_SCALE = 1.0 / math.log(GROWTH)


class Histogram:
    """Counts by bucket. `unanswered` counts timesteps that have no latency."""

    __slots__ = ("counts", "max_s", "unanswered")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS  # a list: changing one element of an array costs three times as much
        self.max_s = 0.0
        self.unanswered = 0

    def __len__(self) -> int:
        """The number of answered timesteps."""
        return sum(self.counts)

    def add(self, seconds: float, count: int = 1) -> None:
        """Adds a latency, `count` times."""
        self.counts[bucket_index(seconds)] += count
        self.max_s = max(self.max_s, seconds)

    def add_many(self, buckets: Ints, seconds: Floats64, counts: Floats64) -> None:
        """Adds latencies whose buckets are known, each with its count."""
        if not len(buckets):
            return
        sums = np.bincount(buckets, counts)
        for bucket in np.flatnonzero(sums).tolist():
            self.counts[bucket] += int(sums[bucket])
        self.max_s = max(self.max_s, float(seconds.max()))

    def merge(self, other: Self) -> None:
        """Adds the content of another histogram."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.max_s = max(self.max_s, other.max_s)
        self.unanswered += other.unanswered

    def quantile(self, fraction: float) -> float | None:
        """Returns a quantile of the latency in seconds, exact to 1 %; None when it is unknown."""
        answered = len(self)
        rank = max(1, math.ceil(fraction * (answered + self.unanswered)))
        if rank > answered:
            return None
        index = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(LOWEST_S * GROWTH ** (index + 0.5)), self.max_s)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yields the upper bound in seconds and the count of each bucket that is not empty."""
        for index, count in enumerate(self.counts):
            if count:
                yield LOWEST_S * GROWTH ** (index + 1), count

    def __getstate__(self) -> tuple[Mapping[int, int], float, int]:
        """Returns a short form, as it is sent every second."""
        counts = {index: count for index, count in enumerate(self.counts) if count}
        return counts, self.max_s, self.unanswered

    def __setstate__(self, state: tuple[Mapping[int, int], float, int]) -> None:
        counts, self.max_s, self.unanswered = state
        self.counts = [0] * BUCKETS
        for index, count in counts.items():
            self.counts[index] = count


def bucket_index(seconds: float) -> int:
    """Returns the index of the bucket for a latency."""
    if seconds <= LOWEST_S:
        return 0
    bucket = int(math.log(seconds / LOWEST_S) * _SCALE)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def bucket_indices(seconds: Floats64) -> Ints:
    """Returns what `bucket_index` does for each of many latencies."""
    indices: Ints = (np.log(np.maximum(seconds, LOWEST_S) / LOWEST_S) * _SCALE).astype(np.int64)
    return np.minimum(indices, BUCKETS - 1)
