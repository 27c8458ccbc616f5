"""How many rows the batcher runs together, on a real engine: what a row costs, and the turns of calls that send blocks."""

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.engines import BatcherSetup, run_batcher
from tests.graphs import running_sum
from tests.serving.timesteps import soon, t, value
from tidegate.core.block import Block
from tidegate.core.errors import ModelFailed
from tidegate.core.handle_table import HandleTable
from tidegate.runtime import senders
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.row_cost import LOOP_SECONDS_MAX, THREAD_ROWS_MAX, RowCost


def call_of(bench: BatcherSetup, name: str, streams: int) -> HandleTable:
    """A call that holds so many streams."""
    held = HandleTable()
    for number in range(streams):
        held.add(bench.begin(f"{name}{number}"))
    return held


def block_of(held: HandleTable, rows: int) -> Block:
    """A block with a timestep for each of the first streams of a call."""
    return Block(held.select(np.arange(1, rows + 1)), np.zeros(rows, np.int64), np.ones((rows, 1), np.float32))


# The cost of a row determines how many rows run together.


@pytest.fixture(autouse=True)
def stays_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has sent once counts for the whole test, however slow the machine is."""
    monkeypatch.setattr(senders, "QUIET_SECONDS", math.inf)


class Charge:
    """A processor clock that only the engine advances, by a fixed time for each row; and a record of what ran where."""

    def __init__(self, bench: BatcherSetup, row_seconds: float, alone_seconds: float = 0.0) -> None:
        self.row_seconds = row_seconds
        self.now = 0.0
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        bench.batcher._clock = lambda: self.now
        bench.batcher.cost = RowCost(alone_seconds or row_seconds)
        bench.batcher.cost.row_seconds = row_seconds
        inner = bench.engine.run

        def charged(slots: Any, *columns: Any) -> Any:
            self.now += self.row_seconds * len(slots)
            self.sizes.append(len(slots))
            self.threads.add(threading.current_thread().name)
            return inner(slots, *columns)

        bench.engine.run = charged  # type: ignore[method-assign]


async def test_a_block_of_a_slow_model_is_run_in_small_chunks_in_the_loop() -> None:
    """A chunk blocks the loop for half a millisecond where others use it too, and no thread is used."""
    async with run_batcher(running_sum(), batch_max=256, capacity=256) as bench:
        charge = Charge(bench, 19.9e-6)
        await soon(bench.batcher.submit(bench.begin("single"), t(1)))
        await soon(bench.batcher.submit_block(block_of(call_of(bench, "a", 250), 250)))
        assert charge.sizes == [*[24] * 10, 10]
        assert charge.threads == {"MainThread"}


async def test_a_call_that_is_alone_has_longer_chunks() -> None:
    """They hold up nobody else, and a chunk has a fixed cost. Another sender makes them short at once."""
    async with run_batcher(running_sum(), batch_max=256, capacity=512) as bench:
        charge, held = Charge(bench, 19.9e-6), call_of(bench, "a", 250)
        await soon(bench.batcher.submit_block(block_of(held, 250)))
        assert charge.sizes == [96, 96, 58]
        other = bench.batcher.submit_block(block_of(call_of(bench, "b", 1), 1))
        await soon(bench.batcher.submit_block(block_of(held, 250)), other)
        assert charge.sizes[3:] == [1, *[24] * 10, 10]


async def test_a_chunk_before_which_a_single_timestep_waits_is_short() -> None:
    """Also when the timestep is the first one in a long time."""
    async with run_batcher(running_sum(), batch_max=256, capacity=256) as bench:
        charge = Charge(bench, 19.9e-6)
        block = bench.batcher.submit_block(block_of(call_of(bench, "a", 90), 90))
        await soon(bench.batcher.submit(bench.begin("single"), t(1)), block)
        assert charge.sizes == [24, 24, 24, 18]


async def test_single_timesteps_of_a_slow_model_are_batched_in_the_loop() -> None:
    """The batch has as many rows as run in half a millisecond, the first to arrive."""
    async with run_batcher(running_sum(), batch_max=256, queue_max=128, capacity=128) as bench:
        charge = Charge(bench, 19.9e-6)
        leases = [bench.begin(str(number)) for number in range(128)]
        answers = await soon(*(bench.batcher.submit(lease, t(1)) for lease in leases))
        assert {value(answer) for answer in answers} == {1}
        assert charge.sizes == [24] * 5 + [8]
        assert charge.threads == {"MainThread"}
        assert bench.batches[0] == tuple(lease.stream.slot for lease in leases[:24])


async def test_a_model_whose_row_alone_is_slow_runs_whole_batches_in_the_thread() -> None:
    """Timesteps and chunks of blocks alike: as few round trips to the thread as possible."""
    async with run_batcher(running_sum(), batch_max=64, queue_max=128, capacity=256) as bench:
        charge = Charge(bench, 100e-6, alone_seconds=LOOP_SECONDS_MAX)
        leases = [bench.begin(str(number)) for number in range(70)]
        await soon(*(bench.batcher.submit(lease, t(1)) for lease in leases))
        await soon(bench.batcher.submit_block(block_of(call_of(bench, "a", 130), 130)))
        assert charge.sizes == [64, 6, 64, 64, 2]
        (thread,) = charge.threads
        assert thread.startswith("engine-toy/1")


async def test_a_batch_in_the_thread_has_a_bound_too() -> None:
    """However large `batch_max` is: the next timestep waits for the whole batch."""
    async with run_batcher(running_sum(), batch_max=1024, queue_max=512, capacity=1024) as bench:
        charge = Charge(bench, 100e-6, alone_seconds=LOOP_SECONDS_MAX)
        leases = [bench.begin(str(number)) for number in range(300)]
        await soon(*(bench.batcher.submit(lease, t(1)) for lease in leases))
        await soon(bench.batcher.submit_block(block_of(call_of(bench, "a", 300), 300)))
        assert charge.sizes == [THREAD_ROWS_MAX, 44, THREAD_ROWS_MAX, 44]


async def test_the_size_of_a_chunk_follows_what_a_row_costs() -> None:
    """It grows up to `batch_max` when rows turn out cheaper, and shrinks when they become more expensive."""
    async with run_batcher(running_sum(), batch_max=256, capacity=256) as bench:
        charge, held = Charge(bench, 19.9e-6), call_of(bench, "a", 250)
        await soon(bench.batcher.submit(bench.begin("single"), t(1)))
        await soon(bench.batcher.submit_block(block_of(held, 25)))
        charge.row_seconds = 1e-6
        for _ in range(20):
            await soon(bench.batcher.submit_block(block_of(held, 250)))
        assert charge.sizes[-1] == 250
        charge.row_seconds = 9.9e-6
        for _ in range(20):
            await soon(bench.batcher.submit_block(block_of(held, 250)))
        assert charge.sizes[-6:] == [*[48] * 5, 10]


async def test_time_that_others_take_of_the_processor_makes_no_row_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that delays each batch by milliseconds adds nothing to what a row costs."""
    async with run_batcher(running_sum()) as bench:
        inner, held, where = bench.engine.run, call_of(bench, "a", 16), set()
        recorded: list[tuple[int, float]] = []

        def held_up(*arguments: Any) -> Any:
            where.add(threading.current_thread().name)
            time.sleep(0.02)
            return inner(*arguments)

        bench.engine.run = held_up  # type: ignore[method-assign]
        monkeypatch.setattr(RowCost, "record", lambda _, rows, seconds: recorded.append((rows, seconds)))
        for _ in range(5):
            await soon(bench.batcher.submit_block(block_of(held, 16)))
        assert where == {"MainThread"}
        assert [rows for rows, _ in recorded] == [16] * 5
        # A processor that has slept is slow, and much slower on some machines; yet not for as long as it has slept.
        assert min(seconds for _, seconds in recorded) < 0.02 / 2


async def test_a_batcher_knows_what_a_row_alone_costs_before_the_first_timestep() -> None:
    """The batcher has measured it, so the first block of a slow model does not block the loop."""
    moments = iter(range(1000))
    async with run_batcher(running_sum()) as bench:
        batcher = Batcher(bench.engine, bench.metrics, batch_max=4, queue_max=4, clock=lambda: float(next(moments)))
        assert batcher.cost.single_row_seconds == 1
        assert batcher.cost.needs_thread


async def test_a_model_that_fails_on_zeros_is_served_all_the_same() -> None:
    """The cost of a row is then measured with the first timesteps."""
    async with run_batcher(running_sum()) as bench:

        def fails(*_: object) -> None:
            raise ModelFailed("a division by zero")

        bench.engine.model.step = fails  # type: ignore[method-assign,assignment]
        batcher = Batcher(bench.engine, bench.metrics, batch_max=4, queue_max=4)
        assert batcher.cost.single_row_seconds == 0
        assert not batcher.cost.needs_thread


# The turns of calls that send blocks.


async def test_a_call_with_many_blocks_is_one_among_the_calls() -> None:
    """Its second block has its turn after the first is done, and other calls have theirs in between."""
    async with run_batcher(running_sum(), batch_max=1, capacity=128) as bench:
        many, one = call_of(bench, "many ", 3), call_of(bench, "one ", 6)
        mine = {stream.stream.slot for stream in map(one.__getitem__, one) if stream is not None}
        flooding = [bench.batcher.submit_block(block_of(many, 3)) for _ in range(4)]
        await soon(bench.batcher.submit_block(block_of(one, 6)), *flooding)
        whose = ["one" if batch[0] in mine else "many" for batch in bench.batches]
        assert whose == ["many", "one"] * 6 + ["many"] * 6


async def test_short_blocks_of_several_calls_are_one_batch() -> None:
    """Many clients with few rows each cost hardly more than one client with all of them."""
    async with run_batcher(running_sum(), batch_max=16, capacity=128) as bench:
        calls = [call_of(bench, f"{number} ", 4) for number in range(6)]
        blocks = await soon(*(bench.batcher.submit_block(block_of(call, 4)) for call in calls))
        assert [len(batch) for batch in bench.batches] == [16, 8]
        assert [block.outputs[0].ravel().tolist() for block in blocks] == [[1] * 4] * 6
        assert bench.metrics.steps["ok"] == 24
        assert (sum(bench.metrics.batch_size.counts), bench.metrics.batch_size.sum) == (2, 24)
        assert sum(bench.metrics.queue_seconds.counts) == 24


async def test_a_long_block_is_not_overtaken_by_short_ones_behind_it() -> None:
    """A block that does not fit whole starts the next batch, and those behind it wait."""
    async with run_batcher(running_sum(), batch_max=8, capacity=128) as bench:
        first, long, last = call_of(bench, "first ", 3), call_of(bench, "long ", 20), call_of(bench, "last ", 2)
        await soon(*(bench.batcher.submit_block(block_of(call, call.count)) for call in (first, long, last)))
        # After the rest of the long block no whole block fits: the last call has its turn in between.
        assert [len(batch) for batch in bench.batches] == [3, 8, 2 + 0, 8, 4]


async def test_two_blocks_of_one_call_are_never_in_one_batch() -> None:
    """They hold the same streams."""
    async with run_batcher(running_sum(), batch_max=16, capacity=32) as bench:
        one = call_of(bench, "one ", 2)
        blocks = await soon(*(bench.batcher.submit_block(block_of(one, 2)) for _ in range(3)))
        assert [block.outputs[0].ravel().tolist() for block in blocks] == [[1, 1], [2, 2], [3, 3]]
        assert [len(batch) for batch in bench.batches] == [2, 2, 2]


async def test_a_block_whose_caller_has_gone_leaves_its_room_to_others() -> None:
    """It is dropped and counted. Those behind it run at once."""
    async with run_batcher(running_sum(), batch_max=4, capacity=32) as bench:
        gone, left = call_of(bench, "gone ", 4), call_of(bench, "left ", 3)
        bench.batcher.submit_block(block_of(gone, 4)).cancel()
        await soon(bench.batcher.submit_block(block_of(left, 3)))
        assert [len(batch) for batch in bench.batches] == [3]
        assert bench.metrics.steps["abandoned"] == 4
