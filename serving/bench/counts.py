"""What a client process measures, per second and in total. The counts of several processes can be merged.

A timestep belongs to the measured time when it was *due* in it. Its latency counts from then, whenever the answer came.
Rates count the answers of a second.

What is counted for each timestep is kept and added up many at a time: a program that measures a client must not cost as
much as the client.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Self

import numpy as np

from tidegate.bench.histogram import Histogram, bucket_indices

# The answers that are added up at once. It takes numpy 0.1 us an answer and about 0.1 ms in all: no answer waits long for that.
ADDED_UP_AT = 1024


@dataclass(slots=True)
class SecondCounts:
    """One second: what became due, was answered and was refused in it, and the latencies of its answers."""

    offered: int = 0
    answered: int = 0
    refused: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Self) -> None:
        """Adds the counts of another process in the same second."""
        self.offered += other.offered
        self.answered += other.answered
        self.refused += other.refused
        self.latency.merge(other.latency)


class Counts:
    """The counts of one process, or of all processes.

    Attributes:
        latency: from the due time to the answer, of timesteps that were due in the measured time.
        service: the same from the last time of sending, without the waits after refusals.
        lateness: how late this process noticed that something was due. That is a delay of the client, not of the server.
        refused: dropped timesteps by reason.
        retried: timesteps that were sent again, by reason.
        unsent: timesteps that were due and never sent.
        lost: streams that ended too early, by reason.
    """

    def __init__(self) -> None:
        self.begin = self.end = float("inf")
        self.latency = Histogram()
        self.service = Histogram()
        self.lateness = Histogram()
        self.refused: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.unsent = 0
        self.lost: Counter[str] = Counter()
        self._seconds: dict[int, SecondCounts] = {}
        self._second_end = float("-inf")  # the end of the second in `_current`
        self._current = SecondCounts()
        # of each answer since they were added up last: when it came, when it was due, when it was sent, and its rows
        self._answers = array("d")

    def set_measured_time(self, begin: float, end: float) -> None:
        """Sets the measured time. What came before counts as warm-up: in seconds with negative numbers."""
        self._add_up()
        self.begin, self.end = begin, end

    def add_offered(self, due: float, rows: int) -> None:
        """Adds timesteps that became due."""
        if due < self.end:
            self._second(due).offered += rows

    def add_lateness(self, due: float, now: float) -> None:
        """Adds how late it was noticed that something was due."""
        if self._is_measured(due):
            self.lateness.add(now - due)

    def add_unsent(self, due: float, rows: int) -> None:
        """Adds timesteps that were due and are not sent."""
        if self._is_measured(due):
            self.unsent += rows
            self.latency.unanswered += rows

    def add_answered(self, now: float, due: float, sent: float, rows: int) -> None:
        """Adds answered timesteps. They are in the histograms after the next `pop_seconds` or `merge`."""
        self._answers.extend((now, due, sent, rows))
        if len(self._answers) >= 4 * ADDED_UP_AT:
            self._add_up()

    def _add_up(self) -> None:
        """Adds the answers that were kept to the histograms."""
        if not self._answers:
            return
        now, due, sent, rows = np.array(self._answers).reshape(-1, 4).T
        del self._answers[:]
        latency, service = now - due, now - sent
        buckets = bucket_indices(latency)
        measured = (due >= self.begin) & (due < self.end)
        self.latency.add_many(buckets[measured], latency[measured], rows[measured])
        self.service.add_many(bucket_indices(service[measured]), service[measured], rows[measured])
        in_time = now < self.end
        numbers = np.floor(now - self.begin)
        for number in np.unique(numbers[in_time]).tolist():
            here = in_time & (numbers == number)
            second = self._second(self.begin + number)
            second.answered += int(rows[here].sum())
            second.latency.add_many(buckets[here], latency[here], rows[here])

    def add_refused(self, now: float, due: float, refused: Mapping[str, int]) -> None:
        """Adds timesteps that were refused and are not sent again."""
        rows = sum(refused.values())
        if now < self.end:
            self._second(now).refused += rows
        if self._is_measured(due):
            self.refused.update(refused)

    def add_unanswered(self, due: float, rows: int) -> None:
        """Adds timesteps that were sent, or wait to be, and are given up."""
        if self._is_measured(due):
            self.latency.unanswered += rows

    def pop_seconds(self, before: int) -> dict[int, SecondCounts]:
        """Removes and returns the counts of the seconds that are over."""
        self._add_up()
        over = [number for number in self._seconds if number < before]
        self._second_end = float("-inf")
        return {number: self._seconds.pop(number) for number in over}

    def merge(self, other: Self) -> None:
        """Adds the totals of another process. The counts per second are sent separately."""
        self._add_up()
        other._add_up()
        self.latency.merge(other.latency)
        self.service.merge(other.service)
        self.lateness.merge(other.lateness)
        self.refused.update(other.refused)
        self.retried.update(other.retried)
        self.lost.update(other.lost)
        self.unsent += other.unsent

    def _is_measured(self, due: float) -> bool:
        return self.begin <= due < self.end

    def _second(self, time_s: float) -> SecondCounts:
        if self._second_end - 1.0 <= time_s < self._second_end:
            return self._current
        number = floor(time_s - self.begin)
        self._second_end = self.begin + number + 1
        if number not in self._seconds:
            self._seconds[number] = SecondCounts()
        self._current = self._seconds[number]
        return self._current
