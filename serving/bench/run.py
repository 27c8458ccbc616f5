"""One bench, seen from the parent: the crew opens, begins, is watched, and what it saw becomes a result."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console

from serving.bench.board import Progress
from serving.bench.crew import Crew
from serving.bench.plan import Plan
from serving.bench.result import Result, Served, make_result
from serving.bench.scrape import Reading, ScrapeFailed, Server
from serving.bench.speech import Speech
from serving.bench.tally import Second
from serving.bench.words import Go, Report, Seconds, Task
from serving.core.spec import Floats

# Times are sums of floats.
TINY_S = 1e-6


class BenchFailed(Exception):
    """There is nothing to report; the message says why."""


class Interrupted(Exception):
    """The user has ended it before anything was measured."""


class Meter:
    """Reads what a server says of itself when the measured time begins and when it ends.

    Attributes:
        side: what the server did between; None while it is not known.
        failed: why it never will be.

    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._first: Reading | None = None
        self._last: Reading | None = None
        self.side: Server | None = None
        self.failed = ""
        read()  # a wrong address is told before the load, not after

    def look(self, go: Go, *, stopped: bool) -> float:
        """Reads if it is time; gives the seconds until it is."""
        now = time.monotonic()
        try:
            if self._first is None:
                if now < go.begin:
                    return go.begin - now
                self._first = self._read()
            if self._last is None and not self.failed:
                if now < go.end and not stopped:
                    return go.end - now
                self._last = self._read()
                self.side = Server.between(self._first, self._last)
        except ScrapeFailed as error:
            self.failed = str(error)
        return math.inf


class Run:
    """One bench.

    Args:
        plan: what is asked.
        model: that will run.
        values: (rows, features), what the streams send.
        prefix: of the streams' ids.
        read: reads what the server says of itself; None when nobody asks.
        console: for the seconds as they pass.
        speech: how lanes speak, if not as the plan says; see `Task`.

    """

    def __init__(
        self,
        plan: Plan,
        model: Served,
        values: Floats,
        prefix: str,
        read: Callable[[], Reading] | None,
        console: Console,
        speech: Callable[[list[str], Floats, int], Speech] | None = None,
    ) -> None:
        self._plan = plan
        self._model = model
        self._prefix = prefix
        self._read = read
        self._console = console
        self._tasks = [Task(plan, number, lanes, prefix, values, speech) for number, lanes in enumerate(plan.shares)]
        self._seconds: dict[int, Second] = {}
        self._reports: list[Report] = []
        self._told = Counter[int]()  # processes that have told a second

    def run(self, crew: Crew) -> Result:
        """The whole of it, by a crew of as many processes as the plan says; the streams are closed when it returns.

        Raises:
            BenchFailed: no stream could be opened.
            Interrupted: it was ended before anything was measured.
            CrewFailed: a client process has ended or does not answer.
            ScrapeFailed: the server's metrics cannot be read.

        """
        begun = datetime.now(UTC)
        meter = None if self._read is None else Meter(self._read)
        with Progress(self._console, self._plan) as progress:
            ready = crew.open(self._tasks)
            if not ready.streams and not crew.stopped():
                deque(crew.watch(crew.go(0.0, 0.0), lambda _: None, lambda: math.inf), 0)  # they have a run to end
                reasons = ", ".join(ready.refused)
                raise BenchFailed(f"server {self._plan.address}: no stream could be opened: {reasons}: {ready.why}")
            progress.say(f"{ready.streams:,} streams are open, in {len(self._tasks)} processes")
            go = crew.go(self._plan.warmup, self._plan.seconds)
            for report in crew.watch(
                go,
                lambda word: self._take(word, progress),
                lambda: math.inf if meter is None else meter.look(go, stopped=crew.stopped()),
            ):
                self._reports.append(report)
                self._add(report)
        if meter is not None:
            meter.look(go, stopped=crew.stopped())  # all may have reported at the very moment when it was time
        seconds = max(report.end for report in self._reports) - go.begin
        if seconds <= 0:
            raise Interrupted("interrupted before anything was measured")
        return make_result(
            self._plan,
            self._model,
            self._prefix,
            begun=begun,
            seconds=seconds,
            interrupted=crew.stopped() and seconds < self._plan.seconds - TINY_S,
            ready=ready,
            reports=self._reports,
            series=self._seconds,
            server=None if meter is None else meter.side,
            server_failed="" if meter is None else meter.failed,
        )

    def _take(self, word: Seconds, progress: Progress) -> None:
        """A process has told its last second; it is shown when all have that are still at it."""
        self._add(word)
        self._told[word.before] += 1
        if self._told[word.before] >= len(self._tasks) - len(self._reports):
            progress.show(word.before - 1, self._seconds.get(word.before - 1, Second()))

    def _add(self, word: Seconds | Report) -> None:
        for number, second in word.seconds.items():
            self._seconds.setdefault(number, Second()).merge(second)
