"""Rounds: all sides are measured in turn, several times, so that disturbances of the machine affect all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One side in one round of one case. A case is what is varied, for example "128 streams"."""

    case: str
    round: int
    side: str
    load_average: float
    figures: dict[str, float]


def interleave(rounds: int, sides: Sequence[T]) -> Iterator[tuple[int, T]]:
    """Yields A B C A B C ...: the number of the round, from 1, and the side."""
    for number in range(1, rounds + 1):
        for side in sides:
            yield number, side


class Results:
    """All measurements, and their medians."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Adds a sample."""
        self.samples.append(sample)

    def median(self, case: str, side: str, figure: str) -> float | None:
        """Returns the median over the rounds; None when the side has no such number."""
        mine = self._by_round(case, side, figure).values()
        return median(mine) if mine else None

    def ratio(self, case: str, side: str, base: str, figure: str) -> float | None:
        """Returns the median over the rounds of a side's number divided by the base's in the same round; None when unknown."""
        mine, theirs = self._by_round(case, side, figure), self._by_round(case, base, figure)
        # In a short time the CPU time of the base can be zero: the kernel counts in hundredths of a second.
        both = [number for number in mine.keys() & theirs.keys() if theirs[number]]
        return median(mine[number] / theirs[number] for number in both) if both else None

    def as_json(self) -> list[dict[str, Any]]:
        """Returns all samples as dictionaries."""
        return [asdict(sample) for sample in self.samples]

    def _by_round(self, case: str, side: str, figure: str) -> dict[int, float]:
        return {
            sample.round: sample.figures[figure]
            for sample in self.samples
            if sample.case == case and sample.side == side and figure in sample.figures
        }
