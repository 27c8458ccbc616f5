"""The report of a bench, as it is written to JSON.

Seconds are seconds, also where they are small. None, in JSON null, is what is not known: of a latency, that so many were
never answered that the percentile lies among them.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.bench.counts import Counts, SecondCounts
from serving.bench.histogram import Histogram
from serving.bench.machine import Machine, this_machine
from serving.bench.messages import Ready, Report
from serving.bench.plan import Plan
from serving.bench.scrape import ServerUsage
from serving.bench.send_queue import CAPACITY_REASONS, GAP_AFTER_REFUSAL

# Raised when a field changes its meaning or goes; fields may be added without.
FORMAT = 1
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
# Above this a client process has no time left to see an answer when it comes.
BUSY_SHARE_MAX = 0.9
# Lateness beyond this share of the latency shows in it.
LATENESS_SHARE_MAX = 0.25

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServedModel(_Frozen):
    """The model that ran."""

    name: str
    version: str
    fingerprint: str
    features: Count


class Streams(_Frozen):
    """What became of the streams."""

    opened: Count
    refused: dict[str, Count]
    """That could not be opened, by reason."""
    lost: dict[str, Count]
    """That ended before the bench did, by reason."""
    why: str
    """What was said of the first that was refused or lost."""
    left: Count
    """That the server still has, since they could not be closed; their ids begin with `prefix`."""
    prefix: str


class Timesteps(_Frozen):
    """What became of the timesteps that were due in the measured time."""

    answered: Count
    refused: dict[str, Count]
    """Let go after a refusal, by reason."""
    again: Count
    """Sent more than once, after a refusal; warm-up included."""
    again_by: dict[str, Count] = {}
    """The same by reason."""
    unsent: Count
    """Due, and never sent, since as many were under way and waiting as may be."""
    unanswered: Count
    """Sent or waiting, and not answered until the bench gave up."""

    @classmethod
    def of(cls, counts: Counts) -> "Timesteps":
        """What all processes together have counted."""
        return cls(
            answered=len(counts.latency),
            refused=dict(counts.refused),
            again=counts.retried.total(),
            again_by=dict(counts.retried),
            unsent=counts.unsent,
            unanswered=counts.latency.unanswered - counts.unsent,
        )


class Latency(_Frozen):
    """In seconds, from when a timestep was due."""

    p50: Seconds | None
    p90: Seconds | None
    p99: Seconds | None
    p99_9: Seconds | None
    max: Seconds | None

    @classmethod
    def of(cls, histogram: Histogram) -> "Latency":
        """The quantiles of a histogram."""
        known = {name: histogram.quantile(share) for name, share in QUANTILES.items()}
        whole = histogram.max_s if len(histogram) and not histogram.unanswered else None
        return cls(**known, max=whole)


class Bucket(_Frozen):
    """One bucket of the latency histogram; empty ones are left out."""

    at_most: Seconds
    count: Count


class SecondResult(_Frozen):
    """One second of the measured time; the last may be shorter."""

    second: Count
    offered: Count
    answered: Count
    refused: Count
    latency: Latency
    """Of the answers that came in it."""


class Clients(_Frozen):
    """What it cost to measure."""

    busy: list[float]
    """Share of a core, process by process."""
    cpu_s_per_step: Seconds | None
    late: Latency | None
    """How late a client noticed that something was due: its own fault, and part of the latencies. Only with a rate."""


class Result(_Frozen):
    """One bench."""

    format: int = FORMAT
    begun: datetime
    settings: Plan
    machine: Machine
    model: ServedModel
    seconds: Seconds
    """That were measured."""
    interrupted: bool
    streams: Streams
    timesteps: Timesteps
    offered_per_s: float
    """What became due. In a closed loop that follows from the answers."""
    achieved_per_s: float
    latency: Latency
    service: Latency | None = None
    """From when a timestep was sent last, not from when it was due: without the waits after refusals."""
    series: list[SecondResult]
    histogram: list[Bucket]
    clients: Clients
    server: ServerUsage | None
    """None without --metrics, and when it could not be read."""
    warnings: list[str]
    """What a reader must know before believing the figures."""

    @property
    def failures(self) -> list[str]:
        """What went wrong, one line each; refusals for want of room are findings, not failures."""
        messages = []
        if self.streams.refused:
            messages.append(
                f"{sum(self.streams.refused.values()):,} streams could not be opened: {_format_counts(self.streams.refused)}"
            )
        if self.streams.lost:
            messages.append(
                f"{sum(self.streams.lost.values()):,} streams were lost: {_format_counts(self.streams.lost)}"
            )
        if messages and self.streams.why:
            messages.append(f"the first of these streams: {self.streams.why}")
        findings = {*CAPACITY_REASONS, GAP_AFTER_REFUSAL}
        failed = {reason: count for reason, count in self.timesteps.refused.items() if reason not in findings}
        if failed:
            messages.append(f"{sum(failed.values()):,} timesteps failed: {_format_counts(failed)}")
        return messages


def make_result(
    plan: Plan,
    model: ServedModel,
    prefix: str,
    *,
    ready: Ready,
    reports: Sequence[Report],
    series: Mapping[int, SecondCounts],
    seconds: float,
    server_failed: str,
    **fields: Any,
) -> Result:
    """The result of a run.

    Args:
        plan: what was asked.
        model: that ran.
        prefix: of the streams' ids.
        ready: how opening went.
        reports: of the processes.
        series: seconds by number, of all processes.
        seconds: that were measured.
        server_failed: why it is not known what the server says, if it was asked.
        fields: `begun`, `interrupted` and `server` of the result.

    """
    counts = Counts()
    for report in reports:
        counts.merge(report.counts)
    series = {number: second for number, second in sorted(series.items()) if 0 <= number < seconds}
    answered = sum(second.answered for second in series.values())
    result = Result(
        settings=plan,
        machine=this_machine(),
        model=model,
        seconds=seconds,
        streams=Streams(
            opened=ready.streams,
            refused=dict(ready.refused),
            lost=dict(counts.lost),
            why=next((report.first_error for report in reports if report.first_error), ""),
            left=sum(report.left for report in reports),
            prefix=prefix,
        ),
        timesteps=Timesteps.of(counts),
        offered_per_s=sum(second.offered for second in series.values()) / seconds,
        achieved_per_s=answered / seconds,
        latency=Latency.of(counts.latency),
        service=Latency.of(counts.service),
        series=[_second(number, second) for number, second in series.items()],
        histogram=[Bucket(at_most=bound, count=count) for bound, count in counts.latency.buckets()],
        clients=Clients(
            busy=[round(report.cpu_s / seconds, 3) for report in reports],
            cpu_s_per_step=sum(report.cpu_s for report in reports) / answered if answered else None,
            late=None if plan.rate is None else Latency.of(counts.lateness),
        ),
        warnings=[],
        **fields,
    )
    failed = [f"the server's side is not known: {server_failed}"] if server_failed else []
    return result.model_copy(update={"warnings": [*_warnings(result), *failed]})


def _second(number: int, second: SecondCounts) -> SecondResult:
    return SecondResult(
        second=number,
        offered=second.offered,
        answered=second.answered,
        refused=second.refused,
        latency=Latency.of(second.latency),
    )


def _warnings(result: Result) -> list[str]:
    messages = []
    busiest = max(result.clients.busy)
    if busiest > BUSY_SHARE_MAX:
        messages.append(
            f"a client process used {busiest:.0%} of a core: the client is the bottleneck; add --processes, or machines"
        )
    for name, late_s, latency_s in _visible_lateness(result):
        messages.append(
            f"the clients were late themselves: of the latency at {name}, {latency_s * 1e3:.2g} ms, {late_s * 1e3:.2g} ms "
            "may be theirs; leave them cores of their own, or add --processes"
        )
    steps, streams, rate = result.timesteps, result.streams, result.settings.rate
    if steps.unsent:
        messages.append(
            f"{steps.unsent:,} timesteps were due and never sent: the server does not keep up with --rate {rate:g}, "
            "or lacks the cores that the clients use"
        )
    if steps.unanswered:
        messages.append(f"{steps.unanswered:,} timesteps were not answered until the bench gave up")
    if streams.left:
        messages.append(
            f"{streams.left:,} streams could not be closed and may rest at the server; "
            f"`tidegate streams list --prefix {streams.prefix}` shows them"
        )
    return messages


def _visible_lateness(result: Result) -> Iterator[tuple[str, float, float]]:
    """The first percentile in which the clients' own lateness shows."""
    late = result.clients.late
    for name in ("p50", "p99"):
        late_s = None if late is None else getattr(late, name)
        latency_s = getattr(result.latency, name)
        if late_s is not None and latency_s is not None and late_s > LATENESS_SHARE_MAX * latency_s:
            yield name, late_s, latency_s
            return


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]))
