"""The metrics of all workers for Prometheus, each series with the label `worker`, and the metrics of their processes.

The rules of this file:
1. It never waits for a worker. It reads shared memory, which is there even if the worker hangs or is dead.
2. No counter falls. A worker's counters outlive its process, and its next process continues from them; so does its CPU
   time.
3. A gauge of a worker that is not up is left out, because it is out of date.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.registry import Collector

from tidegate.runtime.process import CPU_SECONDS, METRICS, measure
from tidegate.runtime.shared_counters import MetricFamily, Numbers, SharedCounters

# The value of the label `worker` for the supervisor, where there is one.
SUPERVISOR = "supervisor"
# The gauge that says whether a worker is ready.
READY = "ready"


class WorkerMetrics:
    """The metrics of one worker, over all its processes.

    `pid` is 0 while there is no process. `cpu_seconds` is the CPU time of the processes that have ended.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.counters: Sequence[SharedCounters] = ()
        self.up = False
        self.restarts = 0
        self.pid = 0
        self.cpu_seconds = 0.0
        self._cpu_seconds_reported = 0.0

    def process(self) -> dict[str, float]:
        """The metrics of its process."""
        values = measure(self.pid) if self.pid else {}
        # Between the end of a process and `reaped`, its CPU time is in neither of the two sums.
        used = max(self._cpu_seconds_reported, self.cpu_seconds + values.get(CPU_SECONDS, 0.0))
        self._cpu_seconds_reported = used
        return values | {CPU_SECONDS: used}


class Events:
    """Counts of rare events, by the values of some labels. Only the event loop changes them."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name = name
        self.help = text
        self.labels = labels
        self.counts: dict[tuple[str, ...], int] = {}

    def add(self, *values: str) -> None:
        """Counts one event."""
        self.counts[values] = self.counts.get(values, 0) + 1


class Exposition(Collector):
    """Collects the metrics of some workers. Register it with a Prometheus registry.

    Args:
        sources: the workers, lowest first.
        refresh: called before anything is read.
        supervised: whether this process is the supervisor of the workers, not the only worker itself.
        events: counts of what this process decides, by metric: see `Events`.

    """

    def __init__(
        self,
        sources: Sequence[WorkerMetrics],
        refresh: Callable[[], None],
        *,
        supervised: bool,
        events: Sequence["Events"] = (),
    ) -> None:
        self._sources = sources
        self._event_counts = events
        self._refresh = refresh
        self._supervisor = WorkerMetrics(SUPERVISOR) if supervised else None
        if self._supervisor is not None:
            self._supervisor.pid = os.getpid()

    @property
    def healthy(self) -> bool:
        """Whether a worker serves."""
        return any(source.up for source in self._sources)

    @property
    def ready(self) -> bool:
        """Whether a worker serves, does not drain, and has a store that keeps up."""
        self._refresh()
        return any(
            counters.numbers(f"tidegate_{READY}", ()).tolist() == [1.0]
            for source in self._sources
            if source.up
            for counters in [*source.counters]
        )

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        self._refresh()
        yield from self._workers()
        # One snapshot of the workers that are up, and of their counters: workers and models start and end meanwhile.
        seen = [(source.worker, each, source.up) for source in self._sources for each in [*source.counters]]
        metrics: dict[str, Metric] = {}
        for worker, counters, up in seen:
            for family in counters.families:
                if family.kind == "gauge" and not up:
                    continue
                metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for series in family.series:
                    labels = dict(zip(family.labels, series, strict=True), worker=worker)
                    if list(series) != list(family.total) or not family.total:
                        _add(metric, family, labels, counters.numbers(family.name, series))
                    elif worker == next(worker for worker, _, up in seen if up):
                        metric.add_sample(
                            family.name, labels, _remainder(family, [counters for _, counters, up in seen if up])
                        )
        yield from metrics.values()
        yield from self._events()
        yield from self._processes()

    def _events(self) -> Iterator[Metric]:
        worker = SUPERVISOR if self._supervisor is not None else self._sources[0].worker
        for events in self._event_counts:
            metric = Metric(events.name, events.help, "counter")
            for values, number in [*events.counts.items()]:
                labels = dict(zip(events.labels, values, strict=True), worker=worker)
                metric.add_sample(f"{events.name}_total", labels, float(number))
            yield metric

    def _workers(self) -> Iterator[Metric]:
        up = Metric("tidegate_worker_up", "1 when the worker is serving.", "gauge")
        restarts = Metric("tidegate_worker_restarts", "Restarts of the worker.", "counter")
        for source in self._sources:
            labels = {"worker": source.worker}
            up.add_sample(up.name, labels, float(source.up))
            restarts.add_sample(f"{restarts.name}_total", labels, float(source.restarts))
        yield from (up, restarts)

    def _processes(self) -> Iterator[Metric]:
        metrics = {
            name: Metric(name, text, "counter" if counter else "gauge") for name, (text, counter) in METRICS.items()
        }
        for source in (*self._sources, *([self._supervisor] if self._supervisor else [])):
            for name, value in source.process().items():
                sample = f"{name}_total" if METRICS[name][1] else name
                metrics[name].add_sample(sample, {"worker": source.worker}, value)
        yield from metrics.values()


def _add(metric: Metric, family: MetricFamily, labels: dict[str, str], numbers: Numbers) -> None:
    """Adds the samples of one series."""
    if family.kind == "gauge":
        metric.add_sample(family.name, labels, numbers[0])
    elif family.kind == "counter":
        metric.add_sample(f"{family.name}_total", labels, numbers[0])
    else:
        *counts, total = numbers.tolist()
        for bound, count in buckets(family.bounds, counts):
            metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
        metric.add_sample(f"{family.name}_count", labels, sum(counts))
        metric.add_sample(f"{family.name}_sum", labels, total)


def buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, in the form of the exposition format."""
    return list(zip([*map(repr, bounds), "+Inf"], accumulate(counts), strict=True))


def _remainder(family: MetricFamily, all_counters: Sequence[SharedCounters]) -> float:
    """The remainder: the total that the first worker reports, less the parts of all workers."""
    having = [counters for counters in all_counters if counters.numbers(family.name, family.total)]
    total: float = having[0].numbers(family.name, family.total)[0]
    return max(0.0, total - sum(counters.numbers(family.name, family.part)[0] for counters in having))
