"""What the server reports about itself: the difference between two snapshots of its /metrics.

Counters are summed over all labels except those of the model, so a server with several worker processes counts as one.
"""

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Annotated, Self

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field

# A server under full load answers a request for /metrics between two batches.
TIMEOUT_S = 5.0
# Far above the size of Tidegate's /metrics.
BYTES_MAX = 16 * 1024 * 1024

CPU = "process_cpu_seconds_total"
STEPS = "tidegate_steps_total"
BATCH_SIZE = "tidegate_batch_size"
STAGES = ("step", "queue", "run")
# It ignores the proxy settings of the environment: a proxy may not reach the server.
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ScrapeFailed(Exception):
    """The metrics cannot be read, or are not those of a Tidegate server. The message says what was received."""


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """The counters at one time. `buckets` has cumulative counts by upper bound, for each stage."""

    at: float
    cpu_s: float
    steps: float = 0.0
    batches: float = 0.0
    rows: float = 0.0
    buckets: Mapping[str, Mapping[float, float]] = field(default_factory=dict)


class ServerUsage(BaseModel):
    """What the server did in the measured time, including the timesteps of other clients. None means that nothing happened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: Annotated[float, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    busy: float
    """CPU seconds per second, over all processes and threads of the server."""
    cpu_s_per_step: float | None
    batch_size: float | None
    """The mean."""
    step_p50_s: float | None
    queue_p50_s: float | None
    run_p50_s: float | None

    @classmethod
    def between(cls, first: CounterSnapshot, last: CounterSnapshot) -> Self:
        """Returns the difference of two snapshots. Raises ScrapeFailed when the server was restarted between them."""
        if last.cpu_s < first.cpu_s or last.steps < first.steps:
            raise ScrapeFailed("the counters of the server decreased: it was restarted during the measurement")
        seconds, cpu_s, steps = last.at - first.at, last.cpu_s - first.cpu_s, round(last.steps - first.steps)
        batches = last.batches - first.batches
        medians = {}
        for stage in STAGES:
            before = first.buckets.get(stage, {})
            counts = {bound: count - before.get(bound, 0.0) for bound, count in last.buckets.get(stage, {}).items()}
            medians[f"{stage}_p50_s"] = _median(counts)
        return cls(
            seconds=seconds,
            steps=steps,
            busy=cpu_s / seconds,
            cpu_s_per_step=cpu_s / steps if steps else None,
            batch_size=(last.rows - first.rows) / batches if batches else None,
            **medians,
        )


def scrape(url: str, model: str, version: str) -> CounterSnapshot:
    """Reads the metrics of a server. Raises ScrapeFailed."""
    try:
        with NO_PROXY.open(url, timeout=TIMEOUT_S) as response:  # the caller has checked that it is http
            text = response.read(BYTES_MAX).decode()
    except urllib.error.URLError as error:
        raise ScrapeFailed(f"{url} cannot be read: {error.reason}") from None
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise ScrapeFailed(f"{url} cannot be read: {error!r}") from None
    return parse_metrics(text, time.monotonic(), url, {"model": model, "version": version})


def parse_metrics(text: str, at: float, url: str, labels: Mapping[str, str]) -> CounterSnapshot:
    """Parses the Prometheus text format. Raises ScrapeFailed."""
    sums: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {stage: {} for stage in STAGES}
    stages = {f"tidegate_{stage}_seconds_bucket": stage for stage in STAGES}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise ScrapeFailed(f"{url} is not in the Prometheus text format: {error}") from None
    for sample in samples:
        if any(sample.labels.get(name, value) != value for name, value in labels.items()):
            continue  # of another model
        if sample.name == STEPS and sample.labels.get("outcome") != "ok":
            continue
        if (stage := stages.get(sample.name)) is not None:
            bound = float(sample.labels["le"])
            buckets[stage][bound] = buckets[stage].get(bound, 0.0) + sample.value
        else:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    needed = (CPU, STEPS, f"{BATCH_SIZE}_count", f"{BATCH_SIZE}_sum")
    missing = [name for name in needed if name not in sums]
    missing += [name for name, stage in stages.items() if not buckets[stage]]
    if missing:
        model = "/".join(labels.values())
        raise ScrapeFailed(
            f"{url} has no {missing[0]}, expected the metrics of the Tidegate server that serves {model}"
        )
    cpu, steps, batches, rows = (sums[name] for name in needed)
    return CounterSnapshot(at, cpu, steps, batches, rows, buckets)


def _median(counts: Mapping[float, float]) -> float | None:
    """Returns the median of a histogram with cumulative counts by upper bound, interpolated as Prometheus does."""
    bounds = sorted(counts)
    half = counts[bounds[-1]] / 2 if bounds else 0.0
    if not half:
        return None
    below, low = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= half:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (half - below) / (counts[bound] - below)
        below, low = counts[bound], bound
    return None
