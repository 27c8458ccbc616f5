"""What was seen of a load, second by second and in all; what several processes saw adds up.

A timestep belongs to the measured time when it was *due* in it, and its latency counts from then, whenever it was answered.
Rates belong to the second in which an answer came.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Self

from serving.bench.histogram import Histogram


@dataclass(slots=True)
class Second:
    """One second: what became due, what was answered and what was refused in it, and the latencies of its answers."""

    offered: int = 0
    answered: int = 0
    refused: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Self) -> None:
        """Adds what another process saw in the same second."""
        self.offered += other.offered
        self.answered += other.answered
        self.refused += other.refused
        self.latency.merge(other.latency)


class Tally:
    """What one process saw, or all together.

    Attributes:
        latency: of what was due in the measured time.
        lateness: how late this side was in noticing that something was due; its own fault, not the server's.
        refused: timesteps that were let go, by reason.
        again: timesteps that went again.
        unsent: timesteps that were due and never sent.
        lost: streams that ended before the bench did, by reason.

    """

    def __init__(self) -> None:
        self.begin = self.end = float("inf")
        self.latency = Histogram()
        self.lateness = Histogram()
        self.refused: Counter[str] = Counter()
        self.again = 0
        self.unsent = 0
        self.lost: Counter[str] = Counter()
        self._seconds: dict[int, Second] = {}

    def measure(self, begin: float, end: float) -> None:
        """Says which time is measured; what was seen before counts for the seconds before 0 only."""
        self.begin, self.end = begin, end

    def due(self, at: float, rows: int) -> None:
        """Timesteps became due."""
        if at < self.end:
            self._second(at).offered += rows

    def late(self, due: float, now: float) -> None:
        """It was noticed only now that something was due then."""
        if self._counts(due):
            self.lateness.add(now - due)

    def dropped(self, due: float, rows: int) -> None:
        """Timesteps were due and will not be sent."""
        if self._counts(due):
            self.unsent += rows
            self.latency.unanswered += rows

    def answered(self, now: float, due: float, rows: int) -> None:
        """Timesteps were answered."""
        if now < self.end:
            second = self._second(now)
            second.answered += rows
            second.latency.add(now - due, rows)
        if self._counts(due):
            self.latency.add(now - due, rows)

    def let_go(self, now: float, due: float, refused: Mapping[str, int]) -> None:
        """Timesteps were refused and do not go again."""
        rows = sum(refused.values())
        if now < self.end:
            self._second(now).refused += rows
        if self._counts(due):
            self.refused.update(refused)

    def unanswered(self, due: float, rows: int) -> None:
        """Timesteps were sent, or wait to be, and it is too late for them."""
        if self._counts(due):
            self.latency.unanswered += rows

    def take_seconds(self, before: int) -> dict[int, Second]:
        """The seconds that are over; they are not kept."""
        over = [number for number in self._seconds if number < before]
        return {number: self._seconds.pop(number) for number in over}

    def merge(self, other: Self) -> None:
        """Adds what another process saw in all; its seconds travel by themselves."""
        self.latency.merge(other.latency)
        self.lateness.merge(other.lateness)
        self.refused.update(other.refused)
        self.lost.update(other.lost)
        self.again += other.again
        self.unsent += other.unsent

    def _counts(self, due: float) -> bool:
        return self.begin <= due < self.end

    def _second(self, at: float) -> Second:
        number = floor(at - self.begin)
        second = self._seconds.get(number)
        if second is None:
            second = self._seconds[number] = Second()
        return second
