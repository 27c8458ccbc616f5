"""What a serving process counts and measures: names, help, buckets, and where the numbers are kept.

The hot path adds to plain Python numbers, one update a batch wherever that says the same, and writes each through to a board
(`runtime.board`), from which `runtime.exposition` reads when somebody asks. One event loop writes, so nothing is locked. What
can be looked up at any time (the depth of a queue, the streams) is not counted: `refresh` looks it up.
"""

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

from serving.rpc.desk import CloseReason
from serving.runtime.board import Board, Family, Numbers
from serving.runtime.log import lines_dropped

Outcome = Literal[
    "ok", "duplicate", "gap", "invalid", "overloaded", "failed", "abandoned", "ended", "store_behind", "values_differ"
]
CheckpointOutcome = Literal["ok", "failed", "fenced"]
OpenOutcome = Literal["new", "resumed", "taken_over", "refused"]
Label = TypeVar("Label", bound=str)

# From 50 microseconds, a step of an idle server, to 1 second; the client library's own buckets start at 5 ms.
SECONDS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# Python's three generations of garbage, and what `gc.get_stats` says of each.
GENERATIONS = ("0", "1", "2")
GARBAGE = {
    "objects_collected": "Objects collected during gc",
    "objects_uncollectable": "Uncollectable objects found during GC",
    "collections": "Number of times this generation was collected",
}


class Histogram:
    """Counts of values by bucket; a bucket holds what is at most its bound."""

    __slots__ = ("_numbers", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._numbers = _own(len(bounds) + 2)

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a value, so many times."""
        # Reading a number back from the board would cost more than keeping it twice.
        place = bisect_left(self.bounds, value)
        counts, numbers = self.counts, self._numbers
        counts[place] = numbers[place] = counts[place] + times
        self.sum = numbers[-1] = self.sum + value * times

    def observe_many(self, values: Sequence[float]) -> None:
        """Adds values, which are mostly so alike that they fall into a few buckets."""
        ascending = sorted(values)
        counts, numbers = self.counts, self._numbers
        self.sum = numbers[-1] = self.sum + sum(ascending)
        place = 0
        while place < len(ascending):
            bucket = bisect_left(self.bounds, ascending[place])
            within = place
            place = (
                bisect_right(ascending, self.bounds[bucket], within) if bucket < len(self.bounds) else len(ascending)
            )
            counts[bucket] = numbers[bucket] = counts[bucket] + place - within

    def keep_in(self, numbers: Numbers) -> None:
        """Goes on from the numbers that are there, and writes through to them from now on."""
        self._numbers = numbers
        *counts, self.sum = numbers.tolist()
        self.counts = [int(count) for count in counts]


class Counts(dict[Label, int]):
    """Counts by label; `counts[label] += n` is written through."""

    __slots__ = ("_numbers",)

    def __init__(self, labels: Sequence[Label]) -> None:
        super().__init__(dict.fromkeys(labels, 0))
        self._numbers = {label: _own(1) for label in labels}

    def __setitem__(self, label: Label, count: int) -> None:
        dict.__setitem__(self, label, count)
        self._numbers[label][0] = count

    def keepers(self) -> list[Callable[[Numbers], None]]:
        """For each label, in order, what goes on from the number that it is given, and writes through to it from then on."""
        return [partial(self._keep, label) for label in self]

    def _keep(self, label: Label, numbers: Numbers) -> None:
        self._numbers[label] = numbers
        dict.__setitem__(self, label, int(numbers[0]))


class Count:
    """One count; whoever sets `value` writes it to `numbers` as well."""

    __slots__ = ("numbers", "value")

    def __init__(self) -> None:
        self.value = 0
        self.numbers = _own(1)

    def keep_in(self, numbers: Numbers) -> None:
        """Goes on from the count that is there."""
        self.numbers = numbers
        self.value = int(numbers[0])


class ModelMetrics:
    """What is measured of one model."""

    def __init__(self, name: str, version: str, fingerprint: str) -> None:
        self.labels = (name, version)
        self.fingerprint = fingerprint
        self.steps: Counts[Outcome] = Counts(get_args(Outcome))
        self.step_seconds = Histogram(SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.run_seconds = Histogram(SECONDS)
        self.batch_size = Histogram(SIZES)
        self.missing = Count()
        self.batch_invariant = False
        self.queue_depth: Callable[[], int] = lambda: 0

    @property
    def missing_values(self) -> int:
        """Values of applied timesteps that were missing."""
        return self.missing.value

    @missing_values.setter
    def missing_values(self, count: int) -> None:
        missing = self.missing
        missing.value = missing.numbers[0] = count


class Metrics:
    """Everything that is measured in one process. Add the models, then `lay_out`, then serve.

    Args:
        versions: of the parts, by name.

    """

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions
        self.models: list[ModelMetrics] = []
        self.opened: Counts[OpenOutcome] = Counts(get_args(OpenOutcome))
        self.closed: Counts[CloseReason] = Counts(get_args(CloseReason))
        self.checkpoints: Counts[CheckpointOutcome] = Counts(get_args(CheckpointOutcome))
        self.checkpoint_seconds = Histogram(SECONDS)
        self.unsaved_seconds: Callable[[], float] = lambda: 0.0
        self.lost = Count()
        self.log_lines_dropped = Count()  # by those who had this place before; what this process drops is looked up
        self.live_streams: Callable[[], int] = lambda: 0
        self.known_streams: Callable[[], int] = lambda: 0
        self._gauges: list[tuple[Numbers, Callable[[], float]]] = []
        self._garbage = {name: Counts(GENERATIONS) for name in GARBAGE}
        self._garbage_before: dict[str, dict[str, int]] = {}

    @property
    def state_lost(self) -> int:
        """Streams whose stored state was older than was acknowledged."""
        return self.lost.value

    @state_lost.setter
    def state_lost(self, count: int) -> None:
        self.lost.value = self.lost.numbers[0] = count

    def add_model(self, name: str, version: str, fingerprint: str) -> ModelMetrics:
        """Begins to measure one model."""
        model = ModelMetrics(name, version, fingerprint)
        self.models.append(model)
        return model

    def lay_out(self, file: int | None = None, last: Board | None = None) -> Board:
        """Moves all numbers to a board, which goes on from the counts of the `last` one; no model may come after this."""
        metrics = [*self._of_models(), *self._of_streams(), *self._of_process()]
        board = Board.begin([metric.family for metric in metrics], file)
        if last is not None:
            board.go_on_from(last)
        for metric in metrics:
            for series, keep in zip(metric.family.series, metric.keep, strict=True):
                keep(board.numbers(metric.family.name, series))
        self._garbage_before = {name: dict(counts) for name, counts in self._garbage.items()}
        self.refresh()
        return board

    def refresh(self) -> None:
        """Looks up what is not counted."""
        for numbers, look in self._gauges:
            numbers[0] = look()
        self.log_lines_dropped.numbers[0] = self.log_lines_dropped.value + lines_dropped()
        for generation, stats in zip(GENERATIONS, gc.get_stats(), strict=True):
            for name, before in self._garbage_before.items():
                self._garbage[name][generation] = before[generation] + stats[name.removeprefix("objects_")]

    def _of_models(self) -> Iterator["_Metric"]:
        labels = ("model", "version")
        histograms = {
            "step_seconds": "A timestep, from being read to its answer being handed on.",
            "queue_seconds": "A timestep, from being queued to its batch being taken up.",
            "run_seconds": "A batch, from being taken up to its answers being ready.",
            "batch_size": "Timesteps in a batch.",
        }
        series = [model.labels for model in self.models]
        for name, text in histograms.items():
            measured: list[Histogram] = [getattr(model, name) for model in self.models]
            family = Family(
                f"tidegate_{name}", text, "histogram", labels, series, SIZES if name == "batch_size" else SECONDS
            )
            yield _Metric(family, [one.keep_in for one in measured])
        yield _Metric(
            Family(
                "tidegate_steps",
                "Timesteps by what became of them.",
                "counter",
                (*labels, "outcome"),
                [(*model.labels, outcome) for model in self.models for outcome in model.steps],
            ),
            [keep for model in self.models for keep in model.steps.keepers()],
        )
        yield _Metric(
            Family("tidegate_missing_values", "Values of applied timesteps that were NaN.", "counter", labels, series),
            [model.missing.keep_in for model in self.models],
        )
        yield self._gauge(
            "queue_depth",
            "Timesteps waiting for a batch.",
            labels,
            {one.labels: one.queue_depth for one in self.models},
        )
        yield self._gauge(
            "batch_invariant",
            "1 when the start-up check found the same bits alone and in every batch.",
            labels,
            {one.labels: partial(float, one.batch_invariant) for one in self.models},
        )
        yield self._gauge(
            "model_info",
            "Models being served; always 1.",
            (*labels, "fingerprint"),
            {(*one.labels, one.fingerprint): _one for one in self.models},
        )

    def _of_streams(self) -> Iterator["_Metric"]:
        yield _counter("streams_opened", "Opens by how they went.", "kind", self.opened)
        yield _counter("streams_closed", "Calls that let go of a stream, by why.", "reason", self.closed)
        yield self._gauge(
            "streams",
            "Streams by where they are in their life: live in a worker; parked, which the lowest worker tells for all, "
            "from a count of the store that is a minute old at most.",
            ("state",),
            {("live",): self.live_streams, ("parked",): self.known_streams},
            whole=("parked",),
            part=("live",),
        )
        yield _Metric(
            Family(
                "tidegate_state_lost",
                "Streams whose stored state was older than was acknowledged; must stay 0.",
                "counter",
                (),
                [()],
            ),
            [self.lost.keep_in],
        )
        yield _counter("checkpoints", "Checkpoints of a stream by how storing them went.", "outcome", self.checkpoints)
        yield _Metric(
            Family("tidegate_checkpoint_seconds", "A commit of many checkpoints.", "histogram", (), [()], SECONDS),
            [self.checkpoint_seconds.keep_in],
        )
        yield self._gauge(
            "unsaved_seconds",
            "How long the oldest change that is not stored has waited.",
            (),
            {(): self.unsaved_seconds},
        )

    def _of_process(self) -> Iterator["_Metric"]:
        yield self._gauge(
            "build_info",
            "Versions of the parts, as labels; always 1.",
            tuple(self.versions),
            {tuple(self.versions.values()): _one},
        )
        text = "Lines of the log that were dropped, since stderr was not read."
        yield _Metric(Family("tidegate_log_lines_dropped", text, "counter", (), [()]), [self.log_lines_dropped.keep_in])
        for name, text in GARBAGE.items():
            counts = self._garbage[name]
            family = Family(f"python_gc_{name}", text, "counter", ("generation",), [(one,) for one in counts])
            yield _Metric(family, counts.keepers())

    def _gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        looks: Mapping[tuple[str, ...], Callable[[], float]],
        *,
        whole: Sequence[str] = (),
        part: Sequence[str] = (),
    ) -> "_Metric":
        family = Family(f"tidegate_{name}", text, "gauge", labels, [*looks], whole=whole, part=part)
        return _Metric(family, [partial(self._watch, look) for look in looks.values()])

    def _watch(self, look: Callable[[], float], numbers: Numbers) -> None:
        self._gauges.append((numbers, look))


@dataclass(frozen=True, slots=True)
class _Metric:
    """A family, and for each of its series what takes the place for its numbers."""

    family: Family
    keep: Sequence[Callable[[Numbers], None]]


def _counter(name: str, text: str, label: str, counts: Counts[Label]) -> _Metric:
    family = Family(f"tidegate_{name}", text, "counter", (label,), [(value,) for value in counts])
    return _Metric(family, counts.keepers())


def _own(count: int) -> Numbers:
    """Numbers that nobody else sees, for as long as there is no board."""
    return memoryview(bytearray(8 * count)).cast("d")


def _one() -> float:
    return 1.0
