"""The report of a bench run, as it is written to JSON.

All times are in seconds. None (in JSON null) means unknown. A latency percentile is unknown when it falls among
timesteps without an answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tidegate.bench.counts import Counts, SecondCounts
from tidegate.bench.histogram import Histogram
from tidegate.bench.machine import Machine, this_machine
from tidegate.bench.messages import Ready, Report
from tidegate.bench.plan import Plan
from tidegate.bench.scrape import ServerUsage
from tidegate.bench.send_queue import CAPACITY_REASONS, GAP_AFTER_REFUSAL

# Increased when a field is removed or changes its meaning. New fields do not increase it.
FORMAT = 1
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
# The CPU share above which a client process reads answers too late.
BUSY_SHARE_MAX = 0.9
# The share of the latency above which the lateness of the clients matters.
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
    """The streams."""

    opened: Count
    refused: dict[str, Count]
    """Streams that could not be opened, by reason."""
    lost: dict[str, Count]
    """Streams that ended too early, by reason."""
    why: str
    """The message of the first stream that was refused or lost."""
    left: Count
    """Streams that could not be closed and are still on the server. Their ids begin with `prefix`."""
    prefix: str


class Timesteps(_Frozen):
    """The timesteps that were due in the measured time."""

    answered: Count
    refused: dict[str, Count]
    """Dropped after a refusal, by reason."""
    again: Count
    """Sent again after a refusal, including the warm-up."""
    again_by: dict[str, Count] = {}
    """The same by reason."""
    unsent: Count
    """Due and never sent, because too many messages waited already."""
    unanswered: Count
    """Sent or waiting, and not answered before the time limit."""

    @classmethod
    def of(cls, counts: Counts) -> "Timesteps":
        """Makes it from the counts of all processes."""
        return cls(
            answered=len(counts.latency),
            refused=dict(counts.refused),
            again=counts.retried.total(),
            again_by=dict(counts.retried),
            unsent=counts.unsent,
            unanswered=counts.latency.unanswered - counts.unsent,
        )


class Latency(_Frozen):
    """Latency in seconds, from the due time of a timestep."""

    p50: Seconds | None
    p90: Seconds | None
    p99: Seconds | None
    p99_9: Seconds | None
    max: Seconds | None

    @classmethod
    def of(cls, histogram: Histogram) -> "Latency":
        """Returns the percentiles of a histogram."""
        known = {name: histogram.quantile(share) for name, share in QUANTILES.items()}
        whole = histogram.max_s if len(histogram) and not histogram.unanswered else None
        return cls(**known, max=whole)


class Bucket(_Frozen):
    """One bucket of the latency histogram. Empty buckets are left out."""

    at_most: Seconds
    count: Count


class SecondResult(_Frozen):
    """One second of the measured time. The last one may be shorter."""

    second: Count
    offered: Count
    answered: Count
    refused: Count
    latency: Latency
    """Of the answers in this second."""


class Clients(_Frozen):
    """The client processes."""

    busy: list[float]
    """The CPU share of each process."""
    cpu_s_per_step: Seconds | None
    late: Latency | None
    """How late the clients noticed that a timestep was due. It is part of the latencies. Only with a rate."""


class Result(_Frozen):
    """The report."""

    format: int = FORMAT
    begun: datetime
    settings: Plan
    machine: Machine
    model: ServedModel
    seconds: Seconds
    """The measured time."""
    interrupted: bool
    streams: Streams
    timesteps: Timesteps
    offered_per_s: float
    """Timesteps that became due. In a closed loop this follows from the answers."""
    achieved_per_s: float
    latency: Latency
    service: Latency | None = None
    """From the last time of sending, without the waits after refusals."""
    series: list[SecondResult]
    histogram: list[Bucket]
    clients: Clients
    server: ServerUsage | None
    """None without --metrics, and when the metrics could not be read."""
    warnings: list[str]
    """What a reader must know to trust the numbers."""

    @property
    def failures(self) -> list[str]:
        """What went wrong, one line each. Refusals for lack of capacity are measurements, not failures."""
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
            messages.append(f"the first error: {self.streams.why}")
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
    """Makes the report of a run.

    Args:
        plan: the settings.
        model: the model that ran.
        prefix: of the stream ids.
        ready: the result of opening the streams.
        reports: the reports of the processes.
        series: the counts of each second, of all processes.
        seconds: the measured time.
        server_failed: why the metrics of the server are unknown; empty when they are known or not wanted.
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
    failed = [f"the metrics of the server are unknown: {server_failed}"] if server_failed else []
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
            f"the clients themselves were late: of the latency at {name}, {latency_s * 1e3:.2g} ms, {late_s * 1e3:.2g} ms "
            "may be caused by them; give them their own cores, or add --processes"
        )
    steps, streams, rate = result.timesteps, result.streams, result.settings.rate
    if steps.unsent:
        messages.append(
            f"{steps.unsent:,} timesteps were due and never sent: the server is too slow for --rate {rate:g}, "
            "or the clients use its cores"
        )
    if steps.unanswered:
        messages.append(f"{steps.unanswered:,} timesteps were not answered before the time limit")
    if streams.left:
        messages.append(
            f"{streams.left:,} streams could not be closed and may still be on the server; "
            f"`tidegate streams list --prefix {streams.prefix}` lists them"
        )
    return messages


def _visible_lateness(result: Result) -> Iterator[tuple[str, float, float]]:
    """Yields the first percentile whose latency the clients themselves may have caused."""
    late = result.clients.late
    for name in ("p50", "p99"):
        late_s = None if late is None else getattr(late, name)
        latency_s = getattr(result.latency, name)
        if late_s is not None and latency_s is not None and late_s > LATENESS_SHARE_MAX * latency_s:
            yield name, late_s, latency_s
            return


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]))
