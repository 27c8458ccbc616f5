"""The metrics of a server."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import RawCall, raw_channel, timestep
from tests.engines import Gate, load
from tests.graphs import picky, running_sum, write_model
from tests.servers import batcher_of, live, run_server, scrape
from tests.timeouts import eventually
from tidegate.runtime.exposition import buckets
from tidegate.runtime.metrics import SECONDS, Histogram
from tidegate.v1 import tidegate_pb2 as pb

LABELLED = {"model": "toy", "version": "1"}
STEP_OUTCOMES = ("ok", "duplicate", "gap", "invalid", "overloaded", "failed", "abandoned", "ended")
OPEN_KINDS = ("new", "resumed", "taken_over", "refused")
CLOSE_REASONS = ("closed", "disconnected", "taken_over", "forgotten", "stopping", "protocol")


async def test_every_metric_is_there_from_the_start(sum_root: Path) -> None:
    """With every label value at 0, so that a rate over the first event is right."""
    async with run_server(sum_root) as server:
        metrics = await scrape(server)
    for outcome in STEP_OUTCOMES:
        assert metrics("tidegate_steps_total", outcome=outcome, **LABELLED) == 0
    for kind in OPEN_KINDS:
        assert metrics("tidegate_streams_opened_total", kind=kind) == 0
    for reason in CLOSE_REASONS:
        assert metrics("tidegate_streams_closed_total", reason=reason) == 0
    for state in ("live", "parked"):
        assert metrics("tidegate_streams", state=state) == 0
    for name in ("step_seconds", "queue_seconds", "run_seconds", "batch_size"):
        assert metrics(f"tidegate_{name}_count", **LABELLED) == 0
        assert metrics(f"tidegate_{name}_sum", **LABELLED) == 0
    assert metrics("tidegate_missing_values_total", **LABELLED) == 0
    assert metrics("tidegate_state_lost_total") == 0
    assert metrics("tidegate_queue_depth", **LABELLED) == 0


async def test_constants_match_what_is_served(sum_root: Path) -> None:
    """The fingerprint of the model, the versions of the components, and the batch check."""
    async with run_server(sum_root) as server:
        metrics = await scrape(server)
    fingerprint = load(running_sum()).spec.fingerprint
    assert metrics("tidegate_model_info", fingerprint=fingerprint, **LABELLED) == 1
    assert metrics("tidegate_build_info", tidegate=version("tidegate"), onnxruntime=version("onnxruntime")) == 1
    assert metrics("tidegate_batch_invariant", **LABELLED) == 1


async def test_promtool_accepts_it(lstm_root: Path) -> None:
    """Names, units, types and help follow Prometheus' rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        message = "promtool is not installed; it is in the Debian package prometheus"
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        await call.step(*[np.nan] * 8)
        text = (await scrape(server)).text
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    ours = [line for line in (checked.stdout + checked.stderr).splitlines() if "tidegate" in line]
    assert not ours
    assert checked.returncode == 0, checked.stderr


async def test_no_stream_is_a_label(sum_root: Path) -> None:
    """A million streams must not become a million series."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        before = len((await scrape(server)).text.splitlines())
        for name in range(5):
            call = RawCall(channel)
            await call.open(f"very-special-{name}")
            await call.step(1)
        metrics = await scrape(server)
    assert "very-special" not in metrics.text
    assert len(metrics.text.splitlines()) == before


Act = Callable[[Any, grpc.aio.Channel], Awaitable[None]]


async def _ok(server: Any, channel: grpc.aio.Channel) -> None:
    call = RawCall(channel)
    await call.open("a")
    await call.step(1, step=1)


async def _duplicate(server: Any, channel: grpc.aio.Channel) -> None:
    call = RawCall(channel)
    await call.open("a")
    await call.step(1, step=1)
    await call.step(1, step=1)


async def _bad(channel: grpc.aio.Channel, request: pb.PredictRequest) -> None:
    call = RawCall(channel)
    await call.open("a")
    assert (await call.ask(request)).WhichOneof("kind") == "error"


async def _gap(server: Any, channel: grpc.aio.Channel) -> None:
    await _bad(channel, timestep(1, step=5))


async def _wrong_width(server: Any, channel: grpc.aio.Channel) -> None:
    await _bad(channel, timestep(1, 2))


async def _infinite(server: Any, channel: grpc.aio.Channel) -> None:
    await _bad(channel, timestep(np.inf))


async def _number_out_of_range(server: Any, channel: grpc.aio.Channel) -> None:
    await _bad(channel, timestep(1, step=2**64 - 1))


async def _failed(server: Any, channel: grpc.aio.Channel) -> None:
    await _bad(channel, timestep(99))


async def _overloaded(server: Any, channel: grpc.aio.Channel) -> None:
    calls = [RawCall(channel) for _ in range(3)]
    for name, call in zip("abc", calls, strict=True):
        await call.open(name)
    gate, batcher = Gate(batcher_of(server)), batcher_of(server)
    await calls[0].send(timestep(1))
    await gate.entered()
    await calls[1].send(timestep(1))
    await eventually(lambda: len(batcher._queue) == 1, "queueing")
    assert (await scrape(server))("tidegate_queue_depth") == 1
    assert (await calls[2].step(1)).error.reason == pb.Error.REASON_OVERLOADED
    gate.open()
    for call in calls[:2]:
        await call.read()


async def _abandoned(server: Any, channel: grpc.aio.Channel) -> None:
    calls = [RawCall(channel) for _ in range(2)]
    for name, call in zip("ab", calls, strict=True):
        await call.open(name)
    gate, batcher = Gate(batcher_of(server)), batcher_of(server)
    await calls[0].send(timestep(1))
    await gate.entered()
    await calls[1].send(timestep(1))
    await eventually(lambda: len(batcher._queue) == 1, "queueing")
    calls[1].call.cancel()
    await eventually(batcher._queue[0].future.done, "the cancellation")
    gate.open()
    await calls[0].read()


async def _ended(server: Any, channel: grpc.aio.Channel) -> None:
    blocker, old, new = RawCall(channel), RawCall(channel), RawCall(channel)
    await blocker.open("blocker")
    await old.open("a")
    gate, batcher = Gate(batcher_of(server)), batcher_of(server)
    await blocker.send(timestep(1))
    await gate.entered()
    await old.send(timestep(1))
    await eventually(lambda: len(batcher._queue) == 1, "queueing")
    opening = asyncio.create_task(new.open("a"))
    await eventually(lambda: opening.done() or bool(batcher._deferred), "the open")
    gate.open()
    await blocker.read()
    await opening
    assert (await old.ending()).reason == "TAKEN_OVER"


@pytest.mark.parametrize(
    ("act", "moved"),
    [
        (_ok, {"ok": 1}),
        (_duplicate, {"ok": 1, "duplicate": 1}),
        (_gap, {"gap": 1}),
        (_wrong_width, {"invalid": 1}),
        (_infinite, {"invalid": 1}),
        (_number_out_of_range, {"invalid": 1}),
        (_failed, {"failed": 1}),
        (_overloaded, {"ok": 2, "overloaded": 1}),
        (_abandoned, {"ok": 1, "abandoned": 1}),
        (_ended, {"ok": 1, "ended": 1}),
    ],
)
async def test_every_timestep_is_counted_by_what_became_of_it(tmp_path: Path, act: Act, moved: dict[str, int]) -> None:
    """Once, and under no other outcome."""
    write_model(tmp_path, picky())
    async with run_server(tmp_path, queue_max=1) as server, raw_channel(server) as channel:
        await act(server, channel)
        await eventually(lambda: not batcher_of(server)._queue)
        metrics = await scrape(server)
    counted = {outcome: metrics("tidegate_steps_total", outcome=outcome) for outcome in STEP_OUTCOMES}
    assert {outcome: count for outcome, count in counted.items() if count} == moved


async def test_opens_and_closes_are_counted_by_how_they_went(sum_root: Path) -> None:
    """Each once."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        closing = pb.PredictRequest(close=pb.Close())
        call = RawCall(channel)
        await call.open("a")  # new
        await call.ask(closing)  # closed
        await call.ending()
        call = RawCall(channel)
        await call.open("a")  # resumed
        other = RawCall(channel)
        await other.open("a")  # taken over, and the first call releases it
        await call.ending()
        await other.ask(pb.PredictRequest(close=pb.Close(forget=True)))  # forgotten
        await other.ending()
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="b", existence=pb.EXISTENCE_MUST_EXIST)))  # refused
        await call.ending()
        call = RawCall(channel)
        await call.open("c")
        await call.send(pb.PredictRequest(open=pb.Open()))  # protocol
        await call.ending()
        call = RawCall(channel)
        await call.open("d")
        call.call.cancel()  # disconnected
        await eventually(lambda: live(server) == 0, "parking")
        metrics = await scrape(server)
    opened = {kind: metrics("tidegate_streams_opened_total", kind=kind) for kind in OPEN_KINDS}
    assert opened == {"new": 3, "resumed": 1, "taken_over": 1, "refused": 1}
    closed = {reason: metrics("tidegate_streams_closed_total", reason=reason) for reason in CLOSE_REASONS}
    assert closed == {
        "closed": 1,
        "disconnected": 1,
        "taken_over": 1,
        "forgotten": 1,
        "stopping": 0,
        "protocol": 1,
    }


async def test_streams_are_counted_where_they_are(sum_root: Path) -> None:
    """Live, then parked, then live again, then gone."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:

        async def now() -> tuple[float, float]:
            metrics = await scrape(server)
            return metrics("tidegate_streams", state="live"), metrics("tidegate_streams", state="parked")

        call = RawCall(channel)
        await call.open("a")
        other = RawCall(channel)
        await other.open("b")
        assert await now() == (2, 0)
        call.call.cancel()
        await eventually(lambda: live(server) == 1, "parking")
        assert await now() == (1, 1)
        call = RawCall(channel)
        await call.open("a")
        assert await now() == (2, 0)
        await call.ask(pb.PredictRequest(close=pb.Close(forget=True)))
        await call.ending()
        assert await now() == (1, 0)


async def test_lost_state_is_counted(sum_root: Path) -> None:
    """The one counter that must stay 0 rises when a client knows more than the server."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="a", resume_from=4)))
        assert (await call.ending()).reason == "STATE_LOST"
        assert (await scrape(server))("tidegate_state_lost_total") == 1


async def test_missing_values_are_counted(lstm_root: Path) -> None:
    """Values, not timesteps. Those of refused timesteps do not count."""
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        await call.step(*[np.nan] * 3, *[1.0] * 5, step=1)
        await call.step(*[np.nan] * 8, step=9)
        await call.step(*[1.0] * 8, step=2)
        assert (await scrape(server))("tidegate_missing_values_total") == 3


async def test_a_batch_is_measured_once(sum_root: Path) -> None:
    """Its size and its duration, and the queueing time of each of its timesteps."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        calls = [RawCall(channel) for _ in range(5)]
        for name, call in enumerate(calls):
            await call.open(str(name))
        gate, batcher = Gate(batcher_of(server)), batcher_of(server)
        await calls[0].send(timestep(1))
        await gate.entered()
        for call in calls[1:]:
            await call.send(timestep(1))
        await eventually(lambda: len(batcher._queue) == 4, "queueing")
        gate.open()
        for call in calls:
            await call.read()
        metrics = await scrape(server)
    assert metrics("tidegate_batch_size_count") == metrics("tidegate_run_seconds_count") == 2
    assert metrics("tidegate_batch_size_sum") == metrics("tidegate_queue_seconds_count") == 5
    assert metrics("tidegate_batch_size_bucket", le="1.0") == 1
    assert metrics("tidegate_batch_size_bucket", le="4.0") == 2


async def test_the_stages_add_up_to_the_step(sum_root: Path) -> None:
    """For a single stream, queueing and running are parts of the step, and most of the rest is the network."""
    count = 300
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        for _ in range(count):
            await call.step(1)
        await eventually(lambda: batcher_of(server).metrics.step_seconds.counts != [0] * 18)
        metrics = await scrape(server)
    assert metrics("tidegate_step_seconds_count") in (count - 1, count)  # the last one is counted after it was written
    stages = metrics("tidegate_queue_seconds_sum") + metrics("tidegate_run_seconds_sum")
    step = metrics("tidegate_step_seconds_sum")
    assert metrics("tidegate_queue_seconds_count") == metrics("tidegate_run_seconds_count") == count
    assert 0 < metrics("tidegate_run_seconds_sum") < stages < step
    assert step - stages < 0.01 * count  # within reason: 10 ms a step is far more than encoding and writing take


@pytest.mark.parametrize("name", ["step_seconds", "queue_seconds", "run_seconds", "batch_size"])
async def test_buckets_are_cumulative(sum_root: Path, name: str) -> None:
    """They never fall, and the last one is the count."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        for _ in range(20):
            await call.step(1)
        metrics = await scrape(server)
    samples = metrics.families[f"tidegate_{name}"].samples
    buckets = [(float(sample.labels["le"]), sample.value) for sample in samples if sample.name.endswith("_bucket")]
    bounds, counts = zip(*buckets, strict=True)
    assert list(bounds) == sorted(bounds)
    assert list(counts) == sorted(counts)
    assert bounds[-1] == float("inf")
    assert counts[-1] == metrics(f"tidegate_{name}_count") > 0


def test_the_buckets_fit_a_server_of_microseconds() -> None:
    """From 50 microseconds to 1 second."""
    assert SECONDS[0] == 0.00005
    assert SECONDS[-1] == 1.0
    assert list(SECONDS) == sorted(SECONDS)


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    """As Prometheus defines `le`. Values beyond the last bound are in +Inf."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert buckets(histogram.bounds, histogram.counts) == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == 14.0


@given(st.lists(st.floats(0, 2) | st.sampled_from(SECONDS)))
def test_many_values_are_observed_as_each_would_be(values: list[float]) -> None:
    """A batch at once or one by one: the same counts, the same sum."""
    run_concurrently, apart = Histogram(SECONDS), Histogram(SECONDS)
    run_concurrently.observe_many(values)
    for value in values:
        apart.observe(value)
    assert run_concurrently.counts == apart.counts
    assert run_concurrently.sum == pytest.approx(apart.sum)
