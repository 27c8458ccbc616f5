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
from serving.bench.scrape import Reading, ServerSide, scrape
from serving.bench.tally import Second
from serving.bench.words import Go, Report, Seconds, Task
from serving.client import Model
from serving.core.spec import Floats


class BenchFailed(Exception):
    """There is nothing to report; the message says why."""


class Interrupted(Exception):
    """The user has ended it before anything was measured."""


class Meter:
    """Reads a server's metrics when the measured time begins and when it ends."""

    def __init__(self, url: str, model: Model) -> None:
        self._url = url
        self._model = model
        self._first: Reading | None = None
        self._last: Reading | None = None
        self._read()  # a wrong address is told before the load, not after

    def look(self, go: Go, *, stopped: bool) -> float:
        """Reads if it is time; gives the seconds until it is."""
        now = time.monotonic()
        if self._first is None:
            if now < go.begin:
                return go.begin - now
            self._first = self._read()
        if self._last is None:
            if now < go.end and not stopped:
                return go.end - now
            self._last = self._read()
        return math.inf

    def between(self) -> ServerSide | None:
        """What the server did in the measured time; None when that never began."""
        return None if self._first is None or self._last is None else ServerSide.between(self._first, self._last)

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
            reports = crew.watch(
                go,
                lambda word: self._take(word, progress),
                lambda: math.inf if meter is None else meter.look(go, stopped=self._stopped()),
            )
        for report in reports:
            self._add(report)
        seconds = max(report.end for report in reports) - go.begin
        if seconds <= 0:
            raise Interrupted("interrupted before anything was measured")
        return make_result(
            Seen(
                begun=begun,
                seconds=seconds,
                interrupted=self._stopped(),
                ready=ready,
                reports=reports,
                series=self._seconds,
                server=None if meter is None else meter.between(),
            ),
            plan=self._plan,
            machine=this_machine(),
            model=self._model,
            prefix=self._prefix,
        )

    def _take(self, word: Seconds, progress: Progress) -> None:
        """A process has told its last second; it is shown when all have."""
        self._add(word)
        self._told[word.before] += 1
        if self._told[word.before] == len(self._tasks):
            progress.show(word.before - 1, self._seconds.get(word.before - 1, Second()))

    def _add(self, word: Seconds | Report) -> None:
        for number, second in word.seconds.items():
            self._seconds.setdefault(number, Second()).merge(second)
