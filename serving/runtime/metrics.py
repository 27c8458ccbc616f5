"""The metrics of a serving process: names, help texts, buckets, and where the numbers are kept.

The hot path adds to plain Python numbers, one update for each batch where that is equivalent. Each update is also
written to shared counters (`runtime.shared_counters`), which `runtime.exposition` reads on a scrape. Only the event
loop writes, so nothing is locked. Values that can be looked up at any time (the length of a queue, the number of
streams) are not counted: `refresh` looks them up.
"""

import asyncio
import gc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

from tidegate.rpc.backend import CloseReason
from tidegate.runtime.access import Refusal
from tidegate.runtime.log import lines_dropped
from tidegate.runtime.shared_counters import MetricFamily, Numbers, SharedCounters

Outcome = Literal[
    "ok", "duplicate", "gap", "invalid", "overloaded", "failed", "abandoned", "ended", "store_behind", "values_differ"
]
CheckpointOutcome = Literal["ok", "failed", "fenced"]
OpenOutcome = Literal["new", "resumed", "taken_over", "refused"]
Label = TypeVar("Label", bound=str)
# What became of a timestep that a shadow was to run.
SHADOW_OUTCOMES = ("compared", "warming", "dropped", "failed")
# From the last bits of float32 to a thousand times the scale.
DIFFERENCES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
# How a stream came to another version, as `core.swap.Moved` names it; or that it did not.
MOVE_OUTCOMES = ("rewarmed", "reset", "failed")

# From 50 microseconds, a step of an idle server, to 1 second. The client library's own buckets start at 5 ms.
SECONDS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# How often a worker looks up its gauges for the supervisor, in seconds. Counters are always up to date.
REFRESH_SECONDS = 0.25
# The three generations of Python's garbage collector, and what `gc.get_stats` reports of each.
GENERATIONS = ("0", "1", "2")
GARBAGE = {
    "objects_collected": "Objects collected during gc",
    "objects_uncollectable": "Uncollectable objects found during GC",
    "collections": "Number of times this generation was collected",
}


class Histogram:
    """Counts of values by bucket. A bucket has the values up to its bound, and above that of the bucket before."""

    __slots__ = ("_numbers", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._numbers = _own(len(bounds) + 2)

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a value a number of times."""
        # To read a number back from shared memory would cost more than to keep it twice.
        index = bisect_left(self.bounds, value)
        counts, numbers = self.counts, self._numbers
        counts[index] = numbers[index] = counts[index] + times
        self.sum = numbers[-1] = self.sum + value * times

    def observe_many(self, values: Sequence[float]) -> None:
        """Adds values. Usually they are so similar that they fall into a few buckets."""
        ascending = sorted(values)
        counts, numbers = self.counts, self._numbers
        self.sum = numbers[-1] = self.sum + sum(ascending)
        index = 0
        while index < len(ascending):
            bucket = bisect_left(self.bounds, ascending[index])
            within = index
            index = (
                bisect_right(ascending, self.bounds[bucket], within) if bucket < len(self.bounds) else len(ascending)
            )
            counts[bucket] = numbers[bucket] = counts[bucket] + index - within

    def attach(self, numbers: Numbers) -> None:
        """Continues from the numbers in shared memory, and writes updates there from now on."""
        self._numbers = numbers
        *counts, self.sum = numbers.tolist()
        self.counts = [int(count) for count in counts]


class Counts(dict[Label, int]):
    """Counts by label. `counts[label] += n` is also written to shared memory."""

    __slots__ = ("_numbers",)

    def __init__(self, labels: Sequence[Label]) -> None:
        super().__init__(dict.fromkeys(labels, 0))
        self._numbers = {label: _own(1) for label in labels}

    def __setitem__(self, label: Label, count: int) -> None:
        dict.__setitem__(self, label, count)
        self._numbers[label][0] = count

    def attachers(self) -> list[Callable[[Numbers], None]]:
        """For each label, in order, a function that attaches its count to a number in shared memory."""
        return [partial(self._attach, label) for label in self]

    def _attach(self, label: Label, numbers: Numbers) -> None:
        self._numbers[label] = numbers
        dict.__setitem__(self, label, int(numbers[0]))


class Count:
    """One count. Whoever sets `value` also writes it to `numbers`."""

    __slots__ = ("numbers", "value")

    def __init__(self) -> None:
        self.value = 0
        self.numbers = _own(1)

    def attach(self, numbers: Numbers) -> None:
        """Continues from the count in shared memory."""
        self.numbers = numbers
        self.value = int(numbers[0])


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, name: str, version: str, fingerprint: str) -> None:
        self.labels = (name, version)
        self.fingerprint = fingerprint
        self.steps: Counts[Outcome] = Counts(get_args(Outcome))
        self.step_seconds = Histogram(SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.run_seconds = Histogram(SECONDS)
        self.batch_size = Histogram(SIZES)
        self.moves: Counts[str] = Counts(MOVE_OUTCOMES)
        self.shadow_steps: Counts[str] = Counts(SHADOW_OUTCOMES)
        self.shadow_absolute = Histogram(DIFFERENCES)
        self.shadow_relative = Histogram(DIFFERENCES)
        self.missing = Count()
        self.batch_invariant = False
        self.queue_depth: Callable[[], int] = lambda: 0
        self.more: Callable[[Metrics], Iterator[Metric]] = lambda _: iter(())

    def read_queue_depth(self) -> float:
        """How many timesteps wait for a batch."""
        return self.queue_depth()

    @property
    def missing_values(self) -> int:
        """How many values of applied timesteps were missing."""
        return self.missing.value

    @missing_values.setter
    def missing_values(self, count: int) -> None:
        missing = self.missing
        missing.value = missing.numbers[0] = count


class Metrics:
    """All metrics of one process. Call `create_counters`, then add models.

    Args:
        versions: the versions of the components, by name.

    Attributes:
        counters: what is reported: the counters of the process, and those of each model.

    """

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions
        self.counters: list[SharedCounters] = []
        self._file: int | None = None
        self._last: Sequence[SharedCounters] = ()
        self._models: dict[ModelMetrics, tuple[SharedCounters, list[_Gauge]]] = {}
        self.refused: Counts[Refusal] = Counts(get_args(Refusal))
        self.opened: Counts[OpenOutcome] = Counts(get_args(OpenOutcome))
        self.closed: Counts[CloseReason] = Counts(get_args(CloseReason))
        self.checkpoints: Counts[CheckpointOutcome] = Counts(get_args(CheckpointOutcome))
        self.checkpoint_seconds = Histogram(SECONDS)
        self.unsaved_seconds: Callable[[], float] = lambda: 0.0
        self.lost = Count()
        # dropped by earlier processes of this worker; the count of this process is looked up
        self.log_lines_dropped = Count()
        self.ready: Callable[[], bool] = lambda: False
        self.live_streams: Callable[[], int] = lambda: 0
        self.known_streams: Callable[[], int] = lambda: 0
        self._gauges: list[_Gauge] = []
        self._garbage = {name: Counts(GENERATIONS) for name in GARBAGE}
        self._garbage_before: dict[str, dict[str, int]] = {}

    @property
    def state_lost(self) -> int:
        """How many streams had a stored state older than what the server acknowledged."""
        return self.lost.value

    @state_lost.setter
    def state_lost(self, count: int) -> None:
        self.lost.value = self.lost.numbers[0] = count

    def count_refusal(self, reason: Refusal) -> None:
        """Counts what was refused by reason of a token or a tenant's rate."""
        self.refused[reason] += 1

    def create_counters(self, file: int | None = None, last: Sequence[SharedCounters] = ()) -> SharedCounters:
        """Moves the numbers of the process to shared memory.

        They continue from the last of the `last` counters that have them. So do those of every model that is added.
        """
        self._file, self._last = file, last
        counters = self._share([*self._of_streams(), *self._of_process()])
        self._garbage_before = {name: dict(counts) for name, counts in self._garbage.items()}
        self.refresh()
        return counters

    def add_model(self, model: ModelMetrics) -> SharedCounters:
        """Moves the numbers of a model to shared memory, and reports them from now on."""
        gauges = len(self._gauges)
        counters = self._share(list(_of_model(self, model)))
        self._models[model] = (counters, self._gauges[gauges:])
        return counters

    def remove_model(self, model: ModelMetrics) -> None:
        """Reports the numbers of a model no more."""
        counters, gauges = self._models.pop(model)
        self.counters.remove(counters)
        self._gauges = [gauge for gauge in self._gauges if gauge not in gauges]

    def _share(self, metrics: Sequence["Metric"]) -> SharedCounters:
        counters = SharedCounters.create([metric.family for metric in metrics], self._file)
        for last in self._last:
            counters.continue_from(last)
        for metric in metrics:
            for series, keep in zip(metric.family.series, metric.attach, strict=True):
                keep(counters.numbers(metric.family.name, series))
        self.counters.append(counters)
        return counters

    def refresh(self) -> None:
        """Looks up the values that are not counted."""
        for gauge in self._gauges:
            gauge.numbers[0] = gauge.read()
        self.log_lines_dropped.numbers[0] = self.log_lines_dropped.value + lines_dropped()
        for generation, stats in zip(GENERATIONS, gc.get_stats(), strict=True):
            for name, before in self._garbage_before.items():
                self._garbage[name][generation] = before[generation] + stats[name.removeprefix("objects_")]

    def _of_streams(self) -> Iterator["Metric"]:
        yield _counter(
            "access_refused",
            "Calls with no valid token or without permission; opens and messages of timesteps beyond a tenant's rate.",
            "reason",
            self.refused,
        )
        yield _counter("streams_opened", "Opens of streams by result.", "kind", self.opened)
        yield _counter("streams_closed", "Streams released by calls, by reason.", "reason", self.closed)
        yield self.gauge(
            "streams",
            "Streams by state: live in a worker; parked, which the lowest worker reports for all workers, from a count of "
            "the store that is at most a minute old.",
            ("state",),
            {("live",): lambda: self.live_streams(), ("parked",): lambda: self.known_streams()},  # noqa: PLW0108 - set later
            whole=("parked",),
            part=("live",),
        )
        yield Metric(
            MetricFamily(
                "tidegate_state_lost",
                "Streams whose stored state was older than what the server acknowledged; must stay 0.",
                "counter",
                (),
                [()],
            ),
            [self.lost.attach],
        )
        yield _counter("checkpoints", "Checkpoints of streams by outcome.", "outcome", self.checkpoints)
        yield Metric(
            MetricFamily(
                "tidegate_checkpoint_seconds",
                "Seconds of a commit of many checkpoints.",
                "histogram",
                (),
                [()],
                SECONDS,
            ),
            [self.checkpoint_seconds.attach],
        )
        yield self.gauge(
            "unsaved_seconds",
            "Seconds that the oldest unsaved change has waited.",
            (),
            {(): lambda: self.unsaved_seconds()},  # noqa: PLW0108 - set later
        )

    def _of_process(self) -> Iterator["Metric"]:
        yield self.gauge(
            "ready",
            "1 when the worker takes new streams: it serves, does not drain, and its store keeps up.",
            (),
            {(): lambda: float(self.ready())},
        )
        yield self.gauge(
            "build_info",
            "Versions of the components, as labels; always 1.",
            tuple(self.versions),
            {tuple(self.versions.values()): _one},
        )
        text = "Log lines that were dropped because stderr was not read."
        yield Metric(
            MetricFamily("tidegate_log_lines_dropped", text, "counter", (), [()]), [self.log_lines_dropped.attach]
        )
        for name, text in GARBAGE.items():
            counts = self._garbage[name]
            family = MetricFamily(f"python_gc_{name}", text, "counter", ("generation",), [(model,) for model in counts])
            yield Metric(family, counts.attachers())

    def gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        readers: Mapping[tuple[str, ...], Callable[[], float]],
        *,
        whole: Sequence[str] = (),
        part: Sequence[str] = (),
    ) -> "Metric":
        """A gauge: for each of its series, a function that looks its value up."""
        family = MetricFamily(f"tidegate_{name}", text, "gauge", labels, [*readers], total=whole, part=part)
        return Metric(family, [partial(self._watch, read) for read in readers.values()])

    def _watch(self, read: Callable[[], float], numbers: Numbers) -> None:
        self._gauges.append(_Gauge(numbers, read))


async def refresh_regularly(metrics: Metrics) -> None:
    """Looks up the gauges at intervals, until cancelled: the supervisor of a worker reads them."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        metrics.refresh()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, and for each of its series the function that attaches it to shared memory."""

    family: MetricFamily
    attach: Sequence[Callable[[Numbers], None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Gauge:
    """A value that is looked up, and where it is written."""

    numbers: Numbers
    read: Callable[[], float]


def _of_shadow(model: ModelMetrics, labels: Sequence[str]) -> Iterator["Metric"]:
    """The metrics of a version as a shadow."""
    yield Metric(
        MetricFamily(
            "tidegate_shadow_steps",
            "Timesteps that this version was to run as a shadow: compared; not compared, because it knows the stream too "
            "briefly; dropped, because it is behind; failed.",
            "counter",
            (*labels, "outcome"),
            [(*model.labels, outcome) for outcome in model.shadow_steps],
        ),
        model.shadow_steps.attachers(),
    )
    texts = {
        "absolute": "Largest absolute difference between the outputs of this shadow and the real ones, of each timestep.",
        "relative": "The same in standard deviations of the real output.",
    }
    for name, text in texts.items():
        measured: Histogram = getattr(model, f"shadow_{name}")
        yield Metric(
            MetricFamily(f"tidegate_shadow_{name}_difference", text, "histogram", labels, [model.labels], DIFFERENCES),
            [measured.attach],
        )


def _of_model(metrics: Metrics, model: ModelMetrics) -> Iterator[Metric]:
    labels = ("model", "version")
    histograms = {
        "step_seconds": "Seconds from reading a timestep to handing its answer to gRPC.",
        "queue_seconds": "Seconds from queueing a timestep to the start of its batch.",
        "run_seconds": "Seconds from the start of a batch to its answers being ready.",
        "batch_size": "Timesteps in a batch.",
    }
    for name, text in histograms.items():
        measured: Histogram = getattr(model, name)
        bounds = SIZES if name == "batch_size" else SECONDS
        family = MetricFamily(f"tidegate_{name}", text, "histogram", labels, [model.labels], bounds)
        yield Metric(family, [measured.attach])
    steps = [(*model.labels, outcome) for outcome in model.steps]
    yield Metric(
        MetricFamily("tidegate_steps", "Timesteps by outcome.", "counter", (*labels, "outcome"), steps),
        model.steps.attachers(),
    )
    yield Metric(
        MetricFamily(
            "tidegate_moves",
            "Streams that moved to this version from another one: rewarmed with their last timesteps, or reset; or failed to.",
            "counter",
            (*labels, "outcome"),
            [(*model.labels, outcome) for outcome in model.moves],
        ),
        model.moves.attachers(),
    )
    yield from _of_shadow(model, labels)
    text = "Values of applied timesteps that were NaN."
    yield Metric(
        MetricFamily("tidegate_missing_values", text, "counter", labels, [model.labels]), [model.missing.attach]
    )
    yield metrics.gauge("queue_depth", "Timesteps waiting for a batch.", labels, {model.labels: model.read_queue_depth})
    yield metrics.gauge(
        "batch_invariant",
        "1 when the start-up check found the same bits alone and in every batch.",
        labels,
        {model.labels: partial(float, model.batch_invariant)},
    )
    yield metrics.gauge(
        "model_info",
        "Models being served; always 1.",
        (*labels, "fingerprint"),
        {(*model.labels, model.fingerprint): _one},
    )
    yield from model.more(metrics)


def _counter(name: str, text: str, label: str, counts: Counts[Label]) -> Metric:
    family = MetricFamily(f"tidegate_{name}", text, "counter", (label,), [(value,) for value in counts])
    return Metric(family, counts.attachers())


def _own(count: int) -> Numbers:
    """Private numbers, for as long as there are no shared ones."""
    return memoryview(bytearray(8 * count)).cast("d")


def _one() -> float:
    return 1.0
