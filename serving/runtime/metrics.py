"""Every metric that Prometheus sees: names, help, buckets.

The hot path adds to plain Python numbers, one update a batch wherever that says the same; the exposition is put together
when somebody asks for it. One event loop writes, so nothing is locked, and a scrape may be one update behind.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.rpc.desk import CloseReason

Outcome = Literal["ok", "duplicate", "gap", "invalid", "overloaded", "failed", "abandoned", "ended", "store_behind"]
CheckpointOutcome = Literal["ok", "failed", "fenced"]
OpenOutcome = Literal["new", "resumed", "taken_over", "refused"]

# From 50 microseconds, a step of an idle server, to 1 second; the client library's own buckets start at 5 ms.
SECONDS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """Counts of values by bucket; a bucket holds what is at most its bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Adds a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_many(self, values: Sequence[float]) -> None:
        """Adds values, which are mostly so alike that they fall into a few buckets."""
        ascending = sorted(values)
        self.sum += sum(ascending)
        place = 0
        while place < len(ascending):
            bucket = bisect_left(self.bounds, ascending[place])
            within = place
            place = (
                bisect_right(ascending, self.bounds[bucket], within) if bucket < len(self.bounds) else len(ascending)
            )
            self.counts[bucket] += place - within

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by bound, as the exposition wants them."""
        total = 0
        result = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            result.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
        return result


class ModelMetrics:
    """What is measured of one model."""

    def __init__(self, name: str, version: str, fingerprint: str) -> None:
        self.labels = (name, version)
        self.fingerprint = fingerprint
        self.steps: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.step_seconds = Histogram(SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.run_seconds = Histogram(SECONDS)
        self.batch_size = Histogram(SIZES)
        self.missing_values = 0
        self.batch_invariant = False
        self.queue_depth: Callable[[], int] = lambda: 0


class Metrics(Collector):
    """Everything that is measured; register it with a Prometheus registry."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions
        self.models: list[ModelMetrics] = []
        self.opened: dict[OpenOutcome, int] = dict.fromkeys(get_args(OpenOutcome), 0)
        self.closed: dict[CloseReason, int] = dict.fromkeys(get_args(CloseReason), 0)
        self.checkpoints: dict[CheckpointOutcome, int] = dict.fromkeys(get_args(CheckpointOutcome), 0)
        self.checkpoint_seconds = Histogram(SECONDS)
        self.unsaved_seconds: Callable[[], float] = lambda: 0.0
        self.state_lost = 0
        self.live_streams: Callable[[], int] = lambda: 0
        self.parked_streams: Callable[[], int] = lambda: 0

    def add_model(self, name: str, version: str, fingerprint: str) -> ModelMetrics:
        """Begins to measure one model."""
        model = ModelMetrics(name, version, fingerprint)
        self.models.append(model)
        return model

    def collect(self) -> Iterator[Metric]:
        """Gives the exposition."""
        yield from self._histograms()
        yield from self._model_counters()
        opened = CounterMetricFamily("tidegate_streams_opened", "Opens by how they went.", labels=["kind"])
        for kind, count in self.opened.items():
            opened.add_metric([kind], count)
        yield opened
        closed = CounterMetricFamily(
            "tidegate_streams_closed", "Calls that let go of a stream, by why.", labels=["reason"]
        )
        for reason, count in self.closed.items():
            closed.add_metric([reason], count)
        yield closed
        streams = GaugeMetricFamily("tidegate_streams", "Streams by where they are in their life.", labels=["state"])
        streams.add_metric(["live"], self.live_streams())
        streams.add_metric(["parked"], self.parked_streams())
        yield streams
        yield CounterMetricFamily(
            "tidegate_state_lost",
            "Streams whose stored state was older than was acknowledged; must stay 0.",
            self.state_lost,
        )
        checkpoints = CounterMetricFamily(
            "tidegate_checkpoints", "Checkpoints of a stream by how storing them went.", labels=["outcome"]
        )
        for outcome, count in self.checkpoints.items():
            checkpoints.add_metric([outcome], count)
        yield checkpoints
        commits = HistogramMetricFamily("tidegate_checkpoint_seconds", "A commit of many checkpoints.")
        commits.add_metric([], self.checkpoint_seconds.buckets(), self.checkpoint_seconds.sum)
        yield commits
        yield GaugeMetricFamily(
            "tidegate_unsaved_seconds",
            "How long the oldest change that is not stored has waited.",
            self.unsaved_seconds(),
        )
        build = GaugeMetricFamily(
            "tidegate_build_info", "Versions of the parts, as labels; always 1.", labels=list(self.versions)
        )
        build.add_metric(list(self.versions.values()), 1)
        yield build

    def _histograms(self) -> Iterator[Metric]:
        picks: Sequence[tuple[str, str, Callable[[ModelMetrics], Histogram]]] = (
            (
                "step_seconds",
                "A timestep, from being read to its answer being handed on.",
                lambda model: model.step_seconds,
            ),
            (
                "queue_seconds",
                "A timestep, from being queued to its batch being taken up.",
                lambda model: model.queue_seconds,
            ),
            (
                "run_seconds",
                "A batch, from being taken up to its answers being ready.",
                lambda model: model.run_seconds,
            ),
            ("batch_size", "Timesteps in a batch.", lambda model: model.batch_size),
        )
        for name, text, pick in picks:
            family = HistogramMetricFamily(f"tidegate_{name}", text, labels=["model", "version"])
            for model in self.models:
                histogram = pick(model)
                family.add_metric(list(model.labels), histogram.buckets(), histogram.sum)
            yield family

    def _model_counters(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        steps = CounterMetricFamily("tidegate_steps", "Timesteps by what became of them.", labels=[*labels, "outcome"])
        missing = CounterMetricFamily(
            "tidegate_missing_values", "Values of applied timesteps that were NaN.", labels=labels
        )
        queued = GaugeMetricFamily("tidegate_queue_depth", "Timesteps waiting for a batch.", labels=labels)
        invariant = GaugeMetricFamily(
            "tidegate_batch_invariant",
            "1 when the start-up check found the same bits alone and in every batch.",
            labels=labels,
        )
        info = GaugeMetricFamily(
            "tidegate_model_info", "Models being served; always 1.", labels=[*labels, "fingerprint"]
        )
        for model in self.models:
            for outcome, count in model.steps.items():
                steps.add_metric([*model.labels, outcome], count)
            missing.add_metric(model.labels, model.missing_values)
            queued.add_metric(model.labels, model.queue_depth())
            invariant.add_metric(model.labels, float(model.batch_invariant))
            info.add_metric([*model.labels, model.fingerprint], 1)
        yield from (steps, missing, queued, invariant, info)
