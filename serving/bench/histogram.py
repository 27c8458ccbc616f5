"""Latencies by bucket, to one percent, whatever their size; those of several processes add up.

Buckets grow by 1 %, so a bucket's middle is within 0.5 % of whatever is in it. What was never answered is counted too: it
is slower than everything that was, and a percentile that falls among it is not known.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np

# Nothing over a socket is quicker.
LOWEST_S = 1e-6
GROWTH = 1.01
# The last one is at 1,180 s: longer than a run waits for an answer.
BUCKETS = 2100

_SCALE = 1.0 / math.log(GROWTH)


class Histogram:
    """Counts by bucket; `unanswered` are those without a latency."""

    __slots__ = ("counts", "max_s", "unanswered")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS  # a list: to add to one place of an array costs three times as much
        self.max_s = 0.0
        self.unanswered = 0

    def __len__(self) -> int:
        """All that were answered."""
        return sum(self.counts)

    def add(self, seconds: float, count: int = 1) -> None:
        """So many that took that long."""
        self.add_to_bucket(bucket_index(seconds), seconds, count)

    def add_to_bucket(self, bucket: int, seconds: float, count: int) -> None:
        """The same, where it is known already which bucket that is."""
        self.counts[bucket] += count
        self.max_s = max(self.max_s, seconds)

    def merge(self, other: Self) -> None:
        """Adds what another one holds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.max_s = max(self.max_s, other.max_s)
        self.unanswered += other.unanswered

    def quantile(self, fraction: float) -> float | None:
        """The latency in seconds that a share of all did not exceed, to 1 %; None when it is not known."""
        answered = len(self)
        rank = max(1, math.ceil(fraction * (answered + self.unanswered)))
        if rank > answered:
            return None
        index = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(LOWEST_S * GROWTH ** (index + 0.5)), self.max_s)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Upper bound in seconds and count of each bucket that is not empty."""
        for index, count in enumerate(self.counts):
            if count:
                yield LOWEST_S * GROWTH ** (index + 1), count

    def __getstate__(self) -> tuple[Mapping[int, int], float, int]:
        """As little as says it: it travels once a second."""
        counts = {index: count for index, count in enumerate(self.counts) if count}
        return counts, self.max_s, self.unanswered

    def __setstate__(self, state: tuple[Mapping[int, int], float, int]) -> None:
        counts, self.max_s, self.unanswered = state
        self.counts = [0] * BUCKETS
        for index, count in counts.items():
            self.counts[index] = count


def bucket_index(seconds: float) -> int:
    """The bucket that a latency is in."""
    if seconds <= LOWEST_S:
        return 0
    bucket = int(math.log(seconds / LOWEST_S) * _SCALE)
    return bucket if bucket < BUCKETS else BUCKETS - 1
