"""What the parent and its client processes say to each other.

Parent: `Task`, then `Go`, and perhaps `Stop`. Client process: `Ready`, then `Seconds` now and then, then `Report`; and again.
All times are of `time.monotonic`, which the processes of a machine share.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from serving.bench.counts import Counts, SecondCounts
from serving.bench.encoding import Encoding
from serving.bench.plan import Plan
from serving.core.spec import Floats


@dataclass(frozen=True, slots=True)
class Task:
    """What a process is to do; `values` is (rows, features), sent round and round.

    `speech` makes that of a lane from its streams' names, the values and an offset among them; None: as the plan says.
    """

    plan: Plan
    process: int
    calls: list[int]
    prefix: str
    values: Floats
    make_encoding: Callable[[list[str], Floats, int], Encoding] | None = None

    @property
    def connections(self) -> int:
        """How many its lanes are spread over."""
        return min(self.plan.connections, len(self.calls))

    def streams(self) -> Iterator[tuple[list[str], int]]:
        """Of each lane the names of its streams, and where among the values the first begins."""
        first = 0
        for index, rows in enumerate(self.calls):
            rng = np.random.default_rng((self.plan.seed, self.process, index))
            yield (
                [f"{self.prefix}{self.process}-{first + row}" for row in range(rows)],
                int(rng.integers(len(self.values))),
            )
            first += rows


@dataclass(frozen=True, slots=True)
class Ready:
    """Streams are open, but for those that were refused, by reason; `why` was said of the first of them."""

    streams: int
    refused: Counter[str]
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class RunTimes:
    """The load starts, is measured from `begin` and ends at `end`."""

    start: float
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Stop:
    """It ends already now."""

    end: float


@dataclass(frozen=True, slots=True)
class SecondsDone:
    """Those before this one are over; by number, and those before 0 are the warm-up."""

    before: int
    seconds: Mapping[int, SecondCounts]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was seen up to `end`.

    `left` streams could not be forgotten at the server; `why` was said of the first one that was refused or lost.
    """

    counts: Counts
    seconds: Mapping[int, SecondCounts]
    end: float
    cpu_s: float
    left: int
    first_error: str
