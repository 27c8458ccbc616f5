"""What Prometheus is told: the boards of all workers, each series with the label `worker`, and their processes.

The laws of this file:
1. It never waits for a worker: it reads memory, which is there even if the worker is frozen or dead.
2. No counter falls. A worker's board outlives it, and its next life goes on from there; so does the time that it has used.
3. A gauge of a worker that is not up is left out: it says what was, not what is.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.registry import Collector

from serving.runtime.board import Board, Family, Numbers
from serving.runtime.process import CPU_SECONDS, METRICS, measure

# The label of the process that looks after the workers, where there is one.
SUPERVISOR = "supervisor"


class Source:
    """One worker as Prometheus sees it, over all its lives.

    `pid` is 0 while there is no process; `cpu_seconds` is what those have used that are gone.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.board: Board | None = None
        self.up = False
        self.restarts = 0
        self.pid = 0
        self.cpu_seconds = 0.0
        self._cpu_seconds_told = 0.0

    def process(self) -> dict[str, float]:
        """What there is to tell of its process."""
        found = measure(self.pid) if self.pid else {}
        # Between the end of a process and the note that is taken of it, its time is in neither sum.
        used = max(self._cpu_seconds_told, self.cpu_seconds + found.get(CPU_SECONDS, 0.0))
        self._cpu_seconds_told = used
        return found | {CPU_SECONDS: used}


class Exposition(Collector):
    """Gives what some sources say; register it with a Prometheus registry.

    Args:
        sources: the workers, lowest first.
        refresh: is called before anything is read.
        supervised: whether this process is the supervisor of the workers, not the one worker itself.

    """

    def __init__(self, sources: Sequence[Source], refresh: Callable[[], None], *, supervised: bool) -> None:
        self._sources = sources
        self._refresh = refresh
        self._supervisor = Source(SUPERVISOR) if supervised else None
        if self._supervisor is not None:
            self._supervisor.pid = os.getpid()

    def collect(self) -> Iterator[Metric]:
        """Gives the exposition."""
        self._refresh()
        yield from self._workers()
        # One look at who is up and at which board is whose: meanwhile workers come and go.
        seen = [(source.worker, source.board, source.up) for source in self._sources if source.board is not None]
        metrics: dict[str, Metric] = {}
        for worker, board, up in seen:
            for family in board.families:
                if family.kind == "gauge" and not up:
                    continue
                metric = metrics.setdefault(family.name, Metric(family.name, family.text, family.kind))
                for series in family.series:
                    labels = dict(zip(family.labels, series, strict=True), worker=worker)
                    if list(series) != list(family.whole) or not family.whole:
                        _add(metric, family, labels, board.numbers(family.name, series))
                    elif worker == next(worker for worker, _, up in seen if up):
                        metric.add_sample(family.name, labels, _rest(family, [board for _, board, up in seen if up]))
        yield from metrics.values()
        yield from self._processes()

    def _workers(self) -> Iterator[Metric]:
        up = Metric("tidegate_worker_up", "1 when the worker is serving.", "gauge")
        restarts = Metric("tidegate_worker_restarts", "How often the worker was started again.", "counter")
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


def _add(metric: Metric, family: Family, labels: dict[str, str], numbers: Numbers) -> None:
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
    """Cumulative counts by bound, as the exposition wants them."""
    return list(zip([*map(repr, bounds), "+Inf"], accumulate(counts), strict=True))


def _rest(family: Family, boards: Sequence[Board]) -> float:
    """What the first of some boards says of the whole, less the parts of all."""
    whole: float = boards[0].numbers(family.name, family.whole)[0]
    return max(0.0, whole - sum(board.numbers(family.name, family.part)[0] for board in boards))
