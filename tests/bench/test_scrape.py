"""What is parsed from the /metrics of a server."""

import socket
from collections.abc import Mapping

import pytest

from tidegate.bench.scrape import CounterSnapshot, ScrapeFailed, ServerUsage, parse_metrics, scrape

URL = "http://somewhere/metrics"
TOY = {"model": "toy", "version": "1"}


def exposition(counters: Mapping[str, float], buckets: Mapping[str, float], more: str = "") -> str:
    """Makes the metrics of a server, with the same buckets for all stages."""
    lines = [f"{name} {value}" for name, value in counters.items()]
    for stage in ("step", "queue", "run"):
        lines += [
            f'tidegate_{stage}_seconds_bucket{{model="toy",version="1",le="{bound}"}} {count}'
            for bound, count in buckets.items()
        ]
    return "\n".join(lines) + "\n" + more


COUNTERS = {
    "process_cpu_seconds_total": 10.0,
    'tidegate_steps_total{model="toy",version="1",outcome="ok"}': 100.0,
    'tidegate_steps_total{model="toy",version="1",outcome="gap"}': 7.0,
    'tidegate_batch_size_count{model="toy",version="1"}': 10.0,
    'tidegate_batch_size_sum{model="toy",version="1"}': 100.0,
}


def reading(at: float, counters: Mapping[str, float], buckets: Mapping[str, float], more: str = "") -> CounterSnapshot:
    """Returns a snapshot of such a server."""
    return parse_metrics(exposition(counters, buckets, more), at, URL, TOY)


def test_the_difference_of_two_snapshots_is_what_the_server_did() -> None:
    """CPU time, applied timesteps, the mean batch size, and interpolated medians."""
    first = reading(1.0, COUNTERS, {"0.001": 50, "0.002": 100, "+Inf": 100})
    more = {name: value * 3 for name, value in COUNTERS.items()}
    last = reading(3.0, more, {"0.001": 60, "0.002": 200, "+Inf": 200})
    side = ServerUsage.between(first, last)
    assert (side.seconds, side.busy, side.steps, side.batch_size) == (2.0, 10.0, 200, 10.0)
    assert side.cpu_s_per_step == 0.1
    # Ten of the hundred are below 1 ms, ninety between 1 and 2 ms: the fiftieth is four ninths of the way.
    assert side.queue_p50_s == pytest.approx(0.001 + 0.001 * 40 / 90)


def test_the_processes_of_a_server_add_up() -> None:
    """Whatever label tells them apart. Timesteps of another model do not count."""
    split = {
        'process_cpu_seconds_total{worker="0"}': 10.0,
        'process_cpu_seconds_total{worker="1"}': 5.0,
        'tidegate_steps_total{model="toy",version="1",outcome="ok",worker="0"}': 100.0,
        'tidegate_steps_total{model="toy",version="1",outcome="ok",worker="1"}': 50.0,
        'tidegate_steps_total{model="other",version="1",outcome="ok",worker="1"}': 999.0,
        'tidegate_batch_size_count{model="toy",version="1",worker="0"}': 10.0,
        'tidegate_batch_size_sum{model="toy",version="1",worker="0"}': 100.0,
    }
    made = reading(1.0, split, {"0.001": 1, "+Inf": 1})
    assert (made.cpu_s, made.steps) == (15.0, 150.0)


def test_a_server_that_did_nothing_has_no_values() -> None:
    """None, not 0."""
    same = reading(1.0, COUNTERS, {"0.001": 1, "+Inf": 1})
    side = ServerUsage.between(same, reading(2.0, COUNTERS, {"0.001": 1, "+Inf": 1}))
    assert side.batch_size is None
    assert {side.step_p50_s, side.queue_p50_s, side.run_p50_s, side.cpu_s_per_step} == {None}


def test_decreasing_counters_are_an_error() -> None:
    """The server was restarted."""
    first = reading(1.0, COUNTERS, {"0.001": 1, "+Inf": 1})
    with pytest.raises(ScrapeFailed, match="restarted"):
        ServerUsage.between(first, reading(2.0, dict.fromkeys(COUNTERS, 0.0), {"0.001": 0, "+Inf": 0}))


@pytest.mark.parametrize("absent", ["process_cpu_seconds_total", "tidegate_steps_total", "tidegate_batch_size_sum"])
def test_metrics_of_another_program_are_an_error(absent: str) -> None:
    """The message names the missing metric."""
    counters = {name: value for name, value in COUNTERS.items() if not name.startswith(absent)}
    with pytest.raises(ScrapeFailed, match=f"no {absent}, .* toy/1"):
        reading(1.0, counters, {"0.001": 1, "+Inf": 1})


@pytest.mark.parametrize("text", ["<html>hello</html>", "a{ 1\n", ""])
def test_a_page_in_another_format_is_an_error(text: str) -> None:
    """The message has the address."""
    with pytest.raises(ScrapeFailed, match=URL):
        parse_metrics(text, 1.0, URL, TOY)


def test_a_server_that_does_not_answer_is_an_error() -> None:
    """The message has the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ScrapeFailed, match=f":{port}/metrics cannot be read"):
        scrape(f"http://127.0.0.1:{port}/metrics", "toy", "1")
