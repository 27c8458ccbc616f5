"""The messages between the parent and its client processes.

For each run the parent sends `Task`, then `RunTimes`, and possibly `Stop`. A client process sends `Ready`, then
`SecondsDone` about every second, then `Report`. All times are times of `time.monotonic`, which is the same for all
processes of a machine.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tidegate.bench.counts import Counts, SecondCounts
from tidegate.bench.encoding import Encoding
from tidegate.bench.plan import Plan
from tidegate.core.spec import Floats


@dataclass(frozen=True, slots=True)
class Task:
    """What a client process does in a run.

    Attributes:
        plan: the settings of the run.
        process: the number of the client process.
        calls: the number of streams of each call.
        prefix: of the stream ids.
        values: (rows, features), sent in a loop.
        make_encoding: makes the encoding of a call from the ids of its streams, the values and the index of the first
            row; None for the encoding that the plan asks for.
    """

    plan: Plan
    process: int
    calls: list[int]
    prefix: str
    values: Floats
    make_encoding: Callable[[list[str], Floats, int], Encoding] | None = None

    @property
    def connections(self) -> int:
        """The number of connections for the calls."""
        return min(self.plan.connections, len(self.calls))

    def streams(self) -> Iterator[tuple[list[str], int]]:
        """Yields the stream ids of each call, and the index of the row of values that its first stream sends first."""
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
    """The streams are open, except for those that were refused.

    `refused` counts them by reason. `first_error` is the message of the first refusal.
    """

    streams: int
    refused: Counter[str]
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class RunTimes:
    """When the load starts, when the measurement begins, and when both end."""

    start: float
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The load ends at this time."""

    end: float


@dataclass(frozen=True, slots=True)
class SecondsDone:
    """The counts of seconds that are over: those before `before`. Negative numbers are the warm-up."""

    before: int
    seconds: Mapping[int, SecondCounts]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a process measured, up to the time `end`.

    `left` is the number of streams that could not be deleted on the server. `first_error` is the message of the first
    stream that was refused or lost.
    """

    counts: Counts
    seconds: Mapping[int, SecondCounts]
    end: float
    cpu_s: float
    left: int
    first_error: str
