"""One bench run, as the parent process sees it: the client processes open streams and send load, and the parent reports."""

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console

from tidegate.bench.counts import SecondCounts
from tidegate.bench.display import ProgressDisplay
from tidegate.bench.encoding import Encoding
from tidegate.bench.messages import Report, RunTimes, SecondsDone, Task
from tidegate.bench.plan import Plan
from tidegate.bench.processes import ClientProcesses
from tidegate.bench.result import Result, ServedModel, make_result
from tidegate.bench.scrape import CounterSnapshot, ScrapeFailed, ServerUsage
from tidegate.core.spec import Floats

# Sums of times are floats and not exact.
ROUNDING_S = 1e-6


class BenchFailed(Exception):
    """There is nothing to report. The message says why."""


class Interrupted(Exception):
    """The user ended the run before anything was measured."""


class ServerSampler:
    """Reads the metrics of the server when the measured time begins and when it ends.

    Attributes:
        usage: what the server did in between; None while it is unknown.
        failed: why it stays unknown.
    """

    def __init__(self, read: Callable[[], CounterSnapshot]) -> None:
        self._read = read
        self._first: CounterSnapshot | None = None
        self._last: CounterSnapshot | None = None
        self.usage: ServerUsage | None = None
        self.failed = ""
        read()  # a wrong address is an error before the load, not after it

    def poll(self, times: RunTimes, *, stopped: bool) -> float:
        """Reads the metrics if it is time. Returns the seconds until the next time."""
        now = time.monotonic()
        try:
            if self._first is None:
                if now < times.begin:
                    return times.begin - now
                self._first = self._read()
            if self._last is None and not self.failed:
                if now < times.end and not stopped:
                    return times.end - now
                self._last = self._read()
                self.usage = ServerUsage.between(self._first, self._last)
        except ScrapeFailed as error:
            self.failed = str(error)
        return math.inf


class BenchRun:
    """One bench run.

    Args:
        plan: the settings.
        model: the model that runs.
        values: (rows, features), the values that the streams send.
        prefix: of the stream ids.
        read: reads the metrics of the server; None when they are not wanted.
        console: shows the progress.
        make_encoding: makes the encoding of a call, if not the one of the plan; see `Task`.
    """

    def __init__(
        self,
        plan: Plan,
        model: ServedModel,
        values: Floats,
        prefix: str,
        read: Callable[[], CounterSnapshot] | None,
        console: Console,
        make_encoding: Callable[[list[str], Floats, int], Encoding] | None = None,
    ) -> None:
        self._plan = plan
        self._model = model
        self._prefix = prefix
        self._read = read
        self._console = console
        self._tasks = [
            Task(plan, process, calls, prefix, values, make_encoding)
            for process, calls in enumerate(plan.calls_by_process)
        ]
        self._seconds: dict[int, SecondCounts] = {}
        self._reports: list[Report] = []
        self._reported = Counter[int]()  # by second: the processes that have reported it

    def run(self, processes: ClientProcesses) -> Result:
        """Runs the bench with as many processes as the plan has. All streams are closed when it returns.

        Raises:
            BenchFailed: no stream could be opened.
            Interrupted: the user ended the run before anything was measured.
            ClientProcessFailed: a client process has ended or does not answer.
            ScrapeFailed: the metrics of the server cannot be read.
        """
        begun = datetime.now(UTC)
        sampler = None if self._read is None else ServerSampler(self._read)
        with ProgressDisplay(self._console, self._plan) as display:
            ready = processes.open(self._tasks)
            if not ready.streams and not processes.stopped():
                # Lets the processes finish this run.
                list(processes.collect_reports(processes.start_load(0.0, 0.0), lambda _: None, lambda: math.inf))
                reasons = ", ".join(ready.refused)
                raise BenchFailed(
                    f"server {self._plan.address}: no stream could be opened: {reasons}: {ready.first_error}"
                )
            display.print_line(f"{ready.streams:,} streams are open, in {len(self._tasks)} processes")
            times = processes.start_load(self._plan.warmup, self._plan.seconds)
            for report in processes.collect_reports(
                times,
                lambda message: self._take_seconds(message, display),
                lambda: math.inf if sampler is None else sampler.poll(times, stopped=processes.stopped()),
            ):
                self._reports.append(report)
                self._add(report)
        if sampler is not None:
            sampler.poll(times, stopped=processes.stopped())  # all processes may have reported exactly at the end
        seconds = max(report.end for report in self._reports) - times.begin
        if seconds <= 0:
            raise Interrupted("interrupted before anything was measured")
        return make_result(
            self._plan,
            self._model,
            self._prefix,
            begun=begun,
            seconds=seconds,
            interrupted=processes.stopped() and seconds < self._plan.seconds - ROUNDING_S,
            ready=ready,
            reports=self._reports,
            series=self._seconds,
            server=None if sampler is None else sampler.usage,
            server_failed="" if sampler is None else sampler.failed,
        )

    def _take_seconds(self, message: SecondsDone, display: ProgressDisplay) -> None:
        """Adds the counts of a process. Shows a second when all running processes have reported it."""
        self._add(message)
        self._reported[message.before] += 1
        if self._reported[message.before] >= len(self._tasks) - len(self._reports):
            display.show_second(message.before - 1, self._seconds.get(message.before - 1, SecondCounts()))

    def _add(self, message: SecondsDone | Report) -> None:
        for number, second in message.seconds.items():
            self._seconds.setdefault(number, SecondCounts()).merge(second)
