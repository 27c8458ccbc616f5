"""One bench, seen from the parent: the crew opens, begins, is watched, and what it saw becomes a result."""

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console

from serving.bench.board import Progress
from serving.bench.crew import Crew
from serving.bench.machine import this_machine
from serving.bench.plan import Plan
from serving.bench.result import Result, Seen, make_result
from serving.bench.scrape import Reading, ScrapeFailed, ServerSide, scrape
from serving.bench.tally import Second
from serving.bench.words import Go, Report, Seconds, Task
from serving.client import Model
from serving.core.spec import Floats

# Times are sums of floats.
TINY_S = 1e-6


class BenchFailed(Exception):
    """There is nothing to report; the message says why."""


class Interrupted(Exception):
    """The user has ended it before anything was measured."""


class Meter:
    """Reads a server's metrics when the measured time begins and when it ends.

    Attributes:
        side: what the server did between; None while it is not known.
        failed: why it never will be.

    """

    def __init__(self, url: str, model: Model) -> None:
        self._url = url
        self._model = model
        self._first: Reading | None = None
        self._last: Reading | None = None
        self.side: ServerSide | None = None
        self.failed = ""
        self._read()  # a wrong address is told before the load, not after

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
                self.side = ServerSide.between(self._first, self._last)
        except ScrapeFailed as error:
            self.failed = str(error)
        return math.inf

    def _read(self) -> Reading:
        return scrape(self._url, self._model.name, self._model.version)


class Run:
    """One bench.

    Args:
        plan: what is asked.
        model: that will run.
        values: (rows, features), what the streams send.
        prefix: of the streams' ids.
        metrics: the URL of the server's metrics, None when nobody asks.
        console: for the seconds as they pass.
        stopped: whether the user has had enough.

    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        values: Floats,
        prefix: str,
        metrics: str | None,
        console: Console,
        stopped: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._model = model
        self._prefix = prefix
        self._metrics = metrics
        self._console = console
        self._stopped = stopped
        self._tasks = [Task(plan, number, lanes, prefix, values) for number, lanes in enumerate(plan.shares)]
        self._seconds: dict[int, Second] = {}
        self._reports: list[Report] = []
        self._told = Counter[int]()  # processes that have told a second

    def run(self) -> Result:
        """The whole of it; the streams are closed and the processes gone when it returns or raises.

        Raises:
            BenchFailed: no stream could be opened.
            Interrupted: it was ended before anything was measured.
            CrewFailed: a client process has ended or does not answer.
            ScrapeFailed: the server's metrics cannot be read.

        """
        begun = datetime.now(UTC)
        meter = None if self._metrics is None else Meter(self._metrics, self._model)
        with Crew(self._tasks, self._stopped) as crew, Progress(self._console, self._plan) as progress:
            ready = crew.open()
            if not ready.streams and not self._stopped():
                reasons = ", ".join(ready.refused)
                raise BenchFailed(f"server {self._plan.address}: no stream could be opened: {reasons}: {ready.why}")
            progress.say(f"{ready.streams:,} streams are open, in {len(self._tasks)} processes")
            go = crew.go(self._plan.warmup, self._plan.seconds)
            for report in crew.watch(
                go,
                lambda word: self._take(word, progress),
                lambda: math.inf if meter is None else meter.look(go, stopped=self._stopped()),
            ):
                self._reports.append(report)
                self._add(report)
        seconds = max(report.end for report in self._reports) - go.begin
        if seconds <= 0:
            raise Interrupted("interrupted before anything was measured")
        return make_result(
            Seen(
                begun=begun,
                seconds=seconds,
                interrupted=self._stopped() and seconds < self._plan.seconds - TINY_S,
                ready=ready,
                reports=self._reports,
                series=self._seconds,
                server=None if meter is None else meter.side,
                server_failed="" if meter is None else meter.failed,
            ),
            plan=self._plan,
            machine=this_machine(),
            model=self._model,
            prefix=self._prefix,
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
