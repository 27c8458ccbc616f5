"""The report: numbers, warnings, table and picture, also of runs that went badly."""

import re
from collections import Counter
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tidegate.bench.counts import Counts, SecondCounts
from tidegate.bench.display import ProgressDisplay, format_seconds, print_result
from tidegate.bench.messages import Ready, Report
from tidegate.bench.plan import Plan
from tidegate.bench.result import Result, ServedModel, make_result
from tidegate.bench.scrape import CounterSnapshot, ServerUsage
from tidegate.bench.send_queue import GAP_AFTER_REFUSAL

MODEL = ServedModel(name="toy", version="1", fingerprint="f" * 64, features=1)


def made_result(
    counts: Counts, seconds: float = 3.0, *, cpu_s: float = 0.3, left: int = 0, settings: Any = None, **fields: Any
) -> Result:
    """Returns the result of one process. Its clock is 0 when the measured time begins."""
    plan = Plan(address="localhost:50051", streams=4, processes=1, **(settings or {}))
    series = counts.pop_seconds(2**62)
    report = Report(counts, {}, seconds, cpu_s, left, "")
    facts: dict[str, Any] = {
        "begun": datetime(2026, 1, 2, tzinfo=UTC),
        "seconds": seconds,
        "interrupted": False,
        "ready": Ready(4, Counter()),
        "reports": [report],
        "series": series,
        "server": None,
        "server_failed": "",
        **fields,
    }
    return make_result(plan, MODEL, "bench-test-", **facts)


def make_counts(end: float = 3.0) -> Counts:
    """Returns counts that measure from time 0."""
    counts = Counts()
    counts.set_measured_time(0.0, end)
    return counts


def good() -> Counts:
    """Three seconds of ten timesteps each, answered after 1 to 30 ms, with a warm-up and one timestep after the end."""
    counts = make_counts()
    counts.add_offered(-0.5, 1)
    counts.add_answered(-0.4, -0.5, -0.5, 1)
    for index in range(30):
        due = index / 10
        counts.add_offered(due, 1)
        counts.add_answered(due + 0.001 * (index + 1), due, due, 1)
    counts.add_offered(3.1, 1)
    counts.add_answered(3.2, 3.1, 3.1, 1)
    return counts


def test_rates_are_of_the_measured_seconds_and_latencies_of_what_was_due_in_them() -> None:
    """Neither the warm-up nor a timestep that was due after the end counts."""
    result = made_result(good(), settings={"rate": 10.0})
    assert (result.offered_per_s, result.achieved_per_s) == (10.0, 10.0)
    assert [(second.second, second.offered, second.answered) for second in result.series] == [
        (0, 10, 10),
        (1, 10, 10),
        (2, 10, 10),
    ]
    assert result.timesteps.answered == 30
    assert result.latency.max == pytest.approx(0.030)
    assert result.latency.p50 == pytest.approx(0.015, rel=0.01)
    assert result.clients.busy == [0.1]
    assert result.clients.cpu_s_per_step == pytest.approx(0.01)
    assert not result.warnings
    assert not result.failures


def test_the_json_round_trips() -> None:
    """Every value survives, and unknown values are null."""
    counts = good()
    counts.add_unsent(1.0, 20)
    result = made_result(counts, settings={"rate": 10.0})
    assert result.latency.p99 is None
    assert '"p99": null' in result.model_dump_json(indent=2)
    assert Result.model_validate_json(result.model_dump_json()) == result


def test_what_a_reader_must_know_is_a_warning() -> None:
    """A busy client, late clients, a slow server, streams that are left, unknown metrics of the server."""
    counts = good()
    counts.add_unsent(1.0, 2)
    counts.add_unanswered(1.0, 3)
    for _ in range(10):
        counts.add_lateness(1.0, 1.01)
    result = made_result(counts, cpu_s=2.9, left=2, settings={"rate": 10.0}, server_failed="http://x cannot be read")
    assert (result.timesteps.unsent, result.timesteps.unanswered) == (2, 3)
    patterns = [
        "a client process used 97% of a core",
        "the clients themselves were late: of the latency at p50, 18 ms, 10 ms may be caused by them",
        "2 timesteps were due and never sent: .*--rate 10",
        "3 timesteps were not answered",
        "2 streams could not be closed .*--prefix bench-test-`",
        "http://x cannot be read",
    ]
    assert len(result.warnings) == len(patterns)
    for warning, pattern in zip(result.warnings, patterns, strict=True):
        assert re.search(pattern, warning), warning


@pytest.mark.parametrize(
    ("reason", "failed"),
    [("OVERLOADED", False), (GAP_AFTER_REFUSAL, False), ("MODEL_FAILED", True), ("STEP_GAP", True)],
)
def test_only_a_refusal_for_lack_of_capacity_is_not_a_failure(reason: str, failed: bool) -> None:
    """The first is a measurement. The second makes the exit code 1."""
    counts = good()
    counts.add_refused(1.0, 1.0, {reason: 3})
    result = made_result(counts)
    assert result.timesteps.refused == {reason: 3}
    assert bool(result.failures) is failed


def test_streams_that_are_refused_or_lost_are_failures() -> None:
    """With their reasons, the most frequent first."""
    counts = good()
    counts.lost.update({"UNAVAILABLE": 1, "TAKEN_OVER": 2})
    result = made_result(counts, ready=Ready(3, Counter({"TOO_MANY_STREAMS": 1})))
    assert result.failures == [
        "1 streams could not be opened: TOO_MANY_STREAMS 1",
        "3 streams were lost: TAKEN_OVER 2, UNAVAILABLE 1",
    ]


def overloaded() -> Counts:
    """Counts with refusals, and with more than half of the timesteps unanswered."""
    counts = good()
    counts.add_refused(0.5, 0.5, {"OVERLOADED": 3})
    counts.add_unsent(1.0, 40)
    return counts


SIDE = ServerUsage(
    seconds=3.0,
    steps=30,
    busy=0.5,
    cpu_s_per_step=0.05,
    batch_size=4.2,
    step_p50_s=0.001,
    queue_p50_s=None,
    run_p50_s=0.0005,
)
RUNS = pytest.mark.parametrize(
    ("counts", "settings", "server"),
    [
        (good(), {}, SIDE),
        (overloaded(), {"rate": 10.0}, ServerUsage.between(CounterSnapshot(0.0, 0.0), CounterSnapshot(3.0, 0.0))),
        (make_counts(), {"rate": 10.0}, None),
        (good(), {"block": 2, "think": 0.01}, None),
    ],
    ids=["good", "overloaded", "nothing", "blocks"],
)


@RUNS
def test_the_table_fits_into_80_columns(counts: Counts, settings: Any, server: ServerUsage | None) -> None:
    """For every kind of run. Unknown values are shown in words."""
    out = StringIO()
    print_result(Console(file=out, width=80), made_result(counts, settings=settings, server=server))
    text = out.getvalue()
    assert text.startswith("toy/1, 4 streams, ")
    for word in ("achieved", "answered", "client CPU", "p99.9"):
        assert word in text
    assert "None" not in text
    assert "nan" not in text


@RUNS
def test_the_picture_is_drawn(tmp_path: Path, counts: Counts, settings: Any, server: ServerUsage | None) -> None:
    """For every kind of run."""
    pytest.importorskip("matplotlib", reason="it is in the extra plot")
    from tidegate.bench.plot import save_plot

    save_plot(made_result(counts, settings=settings, server=server), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000004, "400 ns"),
        (0.0000023, "2.3 µs"),
        (0.00051, "510 µs"),
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (12.34, "12.3 s"),
        (None, "never"),
    ],
)
def test_a_time_is_formatted_with_its_unit(seconds: float | None, text: str) -> None:
    """Three digits, in a suitable unit."""
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_seconds_are_shown_as_they_pass(terminal: bool) -> None:
    """As a table on a terminal, as lines elsewhere."""
    out = StringIO()
    second = SecondCounts(offered=12, answered=10, refused=2)
    second.latency.add(0.002, 10)
    plan = Plan(address="localhost:1", rate=12.0, seconds=5.0)
    with ProgressDisplay(Console(file=out, force_terminal=terminal, width=100), plan) as progress:
        progress.show_second(-1, SecondCounts())
        progress.show_second(0, second)
    text = out.getvalue()
    assert "warm-up" in text
    assert "1 s of 5 s" in text
    assert "1.99 ms" in text
    if not terminal:
        assert text.splitlines()[1] == "1 s of 5 s: 10 steps/s of 12 offered, p50 1.99 ms, p99 1.99 ms, 2 refused"
