"""One client process against a fake server."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.bench.fake_server import Bench, fake_server
from tests.timeouts import TIMEOUT_S
from tidegate.bench.messages import RunTimes
from tidegate.bench.schedule import Schedule
from tidegate.bench.send_queue import GAP_AFTER_REFUSAL
from tidegate.v1 import tidegate_pb2 as pb

BLOCKS = pytest.mark.parametrize("block", [None, 3])


@BLOCKS
async def test_a_closed_loop_sends_when_it_has_its_answer(block: int | None) -> None:
    """Steps are consecutive from 1, one is in flight per call, all answers are counted, and all streams are deleted."""
    async with fake_server() as server:
        bench = await Bench(server, block=block).run()
    assert bench.ready.streams == 4
    assert len(server.streams) == 4
    assert min(len(applied) for applied in server.streams.values()) > 10
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())
    assert bench.counts.latency.unanswered == 0
    assert sorted(server.deleted) == sorted(server.streams)
    assert bench.report.left == 0
    assert bench.report.cpu_s > 0


@BLOCKS
async def test_every_stream_sends_the_values_in_turn(block: int | None) -> None:
    """In a loop, each from another row."""
    values = np.arange(14, dtype=np.float32).reshape(7, 2)
    async with fake_server() as server:
        await Bench(server, values, block=block, seconds=0.3).run()
    for applied in server.streams.values():
        first = int(applied[0][0]) // 2
        assert applied == [tuple(values[(first + index) % 7].tolist()) for index in range(len(applied))]


def due_times(bench: Bench, until: float) -> Iterator[tuple[float, int]]:
    """Yields what the plan makes due: seconds from the start, and rows."""
    calls = bench.plan.streams_per_call
    assert bench.plan.interval_s is not None
    schedule = Schedule(len(calls), bench.plan.interval_s, bench.plan.arrivals, (bench.plan.seed, 0))
    for at, call in schedule.pop_due(until):
        yield at, calls[call]


@BLOCKS
async def test_an_open_loop_sends_what_is_due(block: int | None) -> None:
    """The rate decides, not the answers. Only what was due in the measured time counts."""
    async with fake_server() as server:
        bench = await Bench(server, block=block, rate=400.0).run()
    due = list(due_times(bench, 0.5))
    offered = sum(rows for _, rows in due)
    told = [*bench.progress, bench.report]  # a second that is over is told before the report, if the end comes late
    assert sum(second.offered for part in told for second in part.seconds.values()) == offered
    assert len(bench.counts.latency) + bench.counts.latency.unanswered == offered
    assert len(bench.counts.lateness) == len(due)


async def test_what_was_due_while_the_client_stood_still_is_offered() -> None:
    """Also when it stood still until the end of the measured time."""
    async with fake_server() as server:
        bench = await Bench(server, rate=400.0).run(lambda go: time.sleep(go.end + 0.1 - time.monotonic()))
    offered = sum(rows for _, rows in due_times(bench, 0.5))
    assert len(bench.counts.latency) + bench.counts.latency.unanswered == offered


STALL_S = 0.5


@pytest.mark.parametrize(("block", "arrivals"), [(None, "constant"), (3, "poisson")])
async def test_everything_that_is_due_during_a_stall_counts_with_its_wait(block: int | None, arrivals: str) -> None:
    """There is no coordinated omission: each due time in the stall counts, with the full wait until its end."""
    async with fake_server() as server:

        def stall(go: RunTimes) -> None:
            server.stalled = (go.start + 0.2, go.start + 0.2 + STALL_S)

        server.window = 16  # of the 20 that are due in the stall, some must wait in the client

        bench = Bench(server, block=block, rate=160.0, arrivals=arrivals, seconds=1.0)
        await bench.run(stall)
    due = list(due_times(bench, 0.99))
    latency = bench.counts.latency
    for wait_s in (0.1, 0.25, 0.4):
        waited = sum(rows for at, rows in due if 0.2 <= at < 0.2 + STALL_S - wait_s)
        seen = sum(count for bound, count in latency.buckets() if bound >= wait_s) + latency.unanswered
        assert seen >= waited > 0
    p99_s = latency.quantile(0.99)
    assert p99_s is None or p99_s > STALL_S - 0.1  # None: on a busy machine some are dropped


async def test_a_closed_loop_hides_a_stall() -> None:
    """Each stream waits once, so the stall gives one latency per stream, whatever its length; an open loop would have hundreds."""
    async with fake_server() as server:

        def stall(go: RunTimes) -> None:
            server.stalled = (go.start + 0.1, go.start + 0.1 + STALL_S)

        bench = await Bench(server, seconds=0.9, think=0.001).run(stall)
    # Four, or a few times four when this process stands still itself.
    assert sum(count for bound, count in bench.counts.latency.buckets() if bound >= STALL_S - 0.1) in (4, 8, 12, 16)


async def test_unsent_timesteps_are_bounded_and_counted() -> None:
    """Each stream has at most `window` in flight and as many waiting. The rest counts as unsent and slower than all others."""
    async with fake_server() as server:
        bench = Bench(server, rate=1000.0, seconds=0.6)
        server.held = lambda: not bench.load.draining
        await bench.run()
    counts = bench.counts
    assert len(counts.latency) == 4 * (32 + 32)
    assert counts.unsent == counts.latency.unanswered == sum(rows for _, rows in due_times(bench, 0.6)) - 4 * 64
    assert counts.latency.quantile(0.99) is None
    assert counts.latency.quantile(0.1) is not None


async def test_the_pause_between_answer_and_next_timestep_is_kept() -> None:
    """There is no timestep more than the pauses leave time for."""
    async with fake_server() as server:
        bench = await Bench(server, streams=2, think=0.05, seconds=0.5).run()
    for applied in server.streams.values():
        assert 1 <= len(applied) <= 10
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())


@BLOCKS
async def test_a_closed_loop_retries_a_refused_timestep(block: int | None) -> None:
    """After the pause that the server asks for. Its latency counts from the first attempt."""
    left = 6

    def refuse(_stream: str, step: int) -> str | None:
        nonlocal left
        if step == 3 and left:
            left -= 1
            return "OVERLOADED"
        return None

    async with fake_server() as server:
        server.refuse = refuse
        server.retry_after_ms = 30
        bench = await Bench(server, block=block).run()
    assert bench.counts.retried == {"OVERLOADED": 6}
    assert not bench.counts.refused
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())
    assert bench.counts.latency.max_s >= 0.03


@BLOCKS
@pytest.mark.parametrize("reason", ["OVERLOADED", "MODEL_FAILED"])
async def test_in_an_open_loop_a_refused_timestep_is_counted_by_its_reason(block: int | None, reason: str) -> None:
    """It does not count as answered. The stream continues with the refused number."""
    left = 7

    def refuse(_stream: str, step: int) -> str | None:
        nonlocal left
        if step == 4 and left:
            left -= 1
            return reason
        return None

    async with fake_server() as server:
        server.refuse = refuse
        bench = await Bench(server, block=block, rate=200.0).run()
    assert bench.counts.refused[reason] == 7
    assert set(bench.counts.refused) <= {reason, GAP_AFTER_REFUSAL}  # on a busy machine two blocks are in flight
    # On a busy machine some answers come after the measured time, and belong to no second.
    assert sum(second.refused for second in bench.report.seconds.values()) <= bench.counts.refused.total()
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())


async def test_a_refused_block_is_retried_with_later_ones() -> None:
    """No row is applied twice or left out."""
    refused: list[int] = []

    def refuse(number: int) -> str | None:
        if number == 5 and len(refused) < 2:
            refused.append(number)
            return "OVERLOADED"
        return None

    async with fake_server() as server:
        server.refuse_block = refuse
        bench = await Bench(server, block=4, ahead=3).run()
    assert refused == [5, 5]
    numbers = [block.block for block in server.blocks]
    assert numbers[:5] == [1, 2, 3, 4, 5]
    assert bench.counts.retried.total() == pytest.approx(2 * 3 * 4, abs=8)  # the refused block and those behind it
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())


@BLOCKS
async def test_streams_that_are_refused_at_the_open_are_counted_and_the_others_run(block: int | None) -> None:
    """By reason. Of a block only the refused rows count."""
    async with fake_server() as server:
        server.refuse_open = lambda stream: "TOO_MANY_STREAMS" if stream.endswith("2") else None
        bench = await Bench(server, block=block).run()
    assert bench.ready.streams == 3
    assert list(bench.ready.refused.values()) == [1]
    assert len(server.streams) == 3
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values())
    assert sorted(server.deleted) == sorted(server.streams)


async def test_a_server_that_disconnects_ends_the_load() -> None:
    """Early, with all streams lost. Timesteps in flight are unanswered, and streams that were not deleted are reported."""
    async with fake_server() as server:
        bench = Bench(server, seconds=2 * TIMEOUT_S)
        loop = asyncio.get_running_loop()
        stopping: list[asyncio.Task[None]] = []
        loop.call_later(0.3, lambda: stopping.append(loop.create_task(server.stop())))  # type: ignore[arg-type]
        await bench.run(loses=True)
        await stopping[0]
    assert bench.report.end < bench.go.end
    assert sum(bench.counts.lost.values()) == 4
    assert bench.report.left == 4
    assert bench.report.first_error
    assert bench.counts.latency.unanswered == 4


async def test_a_load_that_is_stopped_early_reports() -> None:
    """Up to that time. The streams are deleted."""
    async with fake_server() as server:
        bench = Bench(server, seconds=2 * TIMEOUT_S)
        asyncio.get_running_loop().call_later(0.3, lambda: bench.load.stop(time.monotonic()))
        await bench.run()
    assert bench.report.end < bench.go.end
    assert len(bench.counts.latency) == sum(len(applied) for applied in server.streams.values()) > 0
    assert sorted(server.deleted) == sorted(server.streams)


async def test_an_answer_to_another_timestep_loses_the_stream() -> None:
    """A server that answers the wrong timestep loses the stream, and the report has the message."""
    async with fake_server() as server:
        answer = server._block

        def renumbered(block: pb.Block, names: dict[int, str]) -> pb.PredictedBlock:
            answered = answer(block, names)
            answered.block += 1
            return answered

        server._block = renumbered  # type: ignore[method-assign]
        bench = await Bench(server, block=4, seconds=5.0).run(loses=True)
    assert bench.counts.lost == {"WRONG_ANSWER": 4}
    assert "block 2, expected one to block 1" in bench.report.first_error


async def test_seconds_are_reported_as_they_pass() -> None:
    """Each once, after its end, including the warm-up. With those of the report they are complete."""
    async with fake_server() as server:
        bench = await Bench(server, rate=200.0, warmup=1.0, seconds=1.2).run()
    assert [word.before for word in bench.progress] == [0, 1]
    told = [second for word in bench.progress for second in word.seconds]
    assert told == [-1, 0]
    measured = sum(word.seconds[0].offered for word in bench.progress if 0 in word.seconds)
    measured += bench.report.seconds[1].offered
    assert measured == len(bench.counts.latency) + bench.counts.latency.unanswered
