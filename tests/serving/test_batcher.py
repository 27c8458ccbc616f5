"""The rules of the batcher, one by one, on a real engine."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.calls import pack
from tests.engines import BatcherSetup, Gate, run_batcher
from tests.graphs import fragile, inverse, lstm, picky, running_sum
from tests.oracle import replay, sensor_rows
from tests.timeouts import TIMEOUT_S
from tidegate.core.block import Block
from tidegate.core.errors import (
    InvalidField,
    ModelFailed,
    NotFinite,
    Overloaded,
    StepGap,
    Stopping,
    StoreBehind,
    TakenOver,
    ValuesDiffer,
    WrongWidth,
)
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import STEP_MAX, Prediction, Timestep
from tidegate.core.streams import checkpoint_rows
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.row_cost import LOOP_SECONDS_MAX, RowCost


def t(value: float, step: int = 0) -> Timestep:
    """A timestep for models with one feature."""
    return Timestep(step, pack(value))


def value(prediction: Prediction) -> float:
    """Its first output."""
    return float(np.frombuffer(prediction.outputs[0], np.float32)[0])


async def soon(*futures: "asyncio.Future[Any]") -> list[Any]:
    """The results of futures, including errors. Fails when one never ends."""
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*futures, return_exceptions=True)


# 1. One task owns the engine.


async def test_a_second_batch_waits_for_the_first() -> None:
    """While a batch runs in the thread no other batch starts."""
    async with run_batcher(running_sum()) as bench:
        gate = Gate(bench.batcher)
        first = bench.batcher.submit(bench.begin("a"), t(1))
        await gate.entered()
        later = [bench.batcher.submit(bench.begin(f"b{number}"), t(2)) for number in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert gate.held == 1
        gate.open()
        assert [value(answer) for answer in await soon(first, *later)] == [1, 2, 2, 2]


async def test_at_most_one_timestep_of_a_stream_is_in_a_batch() -> None:
    """Several timesteps of a stream are applied one after the other, in order of arrival."""
    async with run_batcher(running_sum()) as bench:
        a, b = bench.begin("a"), bench.begin("b")
        sent = [(a, 1), (a, 2), (b, 10), (a, 3), (b, 20)]
        answers = await soon(*(bench.batcher.submit(lease, t(number)) for lease, number in sent))
        assert [value(answer) for answer in answers] == [1, 3, 10, 6, 30]
        one, other = a.stream.slot, b.stream.slot
        assert bench.batches == [(one, other), (one, other), (one,)]


async def test_the_order_of_a_stream_survives_a_full_batch() -> None:
    """A timestep that had to wait comes before later ones."""
    async with run_batcher(running_sum(), batch_max=2) as bench:
        a, b, c = (bench.begin(name) for name in "abc")
        sent = [(a, 1, 1), (a, 2, 2), (b, 5, 1), (c, 7, 1), (a, 4, 3), (b, 6, 2)]
        answers = await soon(*(bench.batcher.submit(lease, t(number, step)) for lease, number, step in sent))
        assert [value(answer) for answer in answers] == [1, 3, 5, 7, 7, 11]
        assert all(len(set(batch)) == len(batch) <= 2 for batch in bench.batches)


async def test_streams_do_not_mix() -> None:
    """Each of many concurrent streams gets the bits that it gets alone."""
    rows = {name: sensor_rows(12, seed=name, missing=0.1) for name in range(9)}
    async with run_batcher(lstm(), batch_max=4) as bench:
        leases = {name: bench.begin(str(name)) for name in rows}
        futures = {
            name: [
                bench.batcher.submit(leases[name], Timestep(step, row.tobytes())) for step, row in enumerate(mine, 1)
            ]
            for name, mine in ((name, rows[name][:4]) for name in rows)
        }
        for name, mine in futures.items():
            answers = await soon(*mine)
            alone = replay(lstm(), rows[name][:4])
            assert [answer.outputs[0] for answer in answers] == [answer["forecast"].tobytes() for answer in alone]


# 2. There is no timer.


async def test_an_idle_batcher_runs_at_once() -> None:
    """A single timestep is answered within a few turns of the loop, without waiting for others."""
    async with run_batcher(running_sum()) as bench:
        await asyncio.sleep(0)  # let `run` start to wait
        future = bench.batcher.submit(bench.begin("a"), t(1))
        for _ in range(3):
            await asyncio.sleep(0)
        assert future.done()


async def test_a_batch_waits_for_what_the_loop_is_bringing() -> None:
    """Timesteps of a burst arrive in a few turns. They run together once a turn brings no more."""
    async with run_batcher(running_sum()) as bench:
        await asyncio.sleep(0)
        leases = [bench.begin(str(number)) for number in range(5)]
        futures = [bench.batcher.submit(lease, t(1)) for lease in leases[:2]]
        for lease in leases[2:]:
            await asyncio.sleep(0)
            futures.append(bench.batcher.submit(lease, t(1)))
        await soon(*futures)
        assert [len(batch) for batch in bench.batches] == [5]


async def test_a_full_batch_waits_for_nothing() -> None:
    """A full batch runs, even if each turn brings more."""
    async with run_batcher(running_sum(), batch_max=3) as bench:
        await asyncio.sleep(0)
        futures = []
        for number in range(6):
            futures.append(bench.batcher.submit(bench.begin(f"{number} a"), t(1)))
            futures.append(bench.batcher.submit(bench.begin(f"{number} b"), t(1)))
            await asyncio.sleep(0)
        assert [len(batch) for batch in bench.batches[:2]] == [3, 3]
        await soon(*futures)


async def test_what_arrives_while_a_batch_runs_is_the_next_batch() -> None:
    """All of them run together."""
    async with run_batcher(running_sum()) as bench:
        gate = Gate(bench.batcher)
        leases = [bench.begin(str(name)) for name in range(6)]
        first = bench.batcher.submit(leases[0], t(1))
        await gate.entered()
        later = [bench.batcher.submit(lease, t(1)) for lease in leases[1:]]
        gate.open()
        await soon(first, *later)
        assert [len(batch) for batch in bench.batches] == [1, 5]


async def test_batch_max_bounds_a_batch() -> None:
    """The rest comes next, in order."""
    async with run_batcher(running_sum(), batch_max=4) as bench:
        leases = [bench.begin(str(name)) for name in range(10)]
        await soon(*(bench.batcher.submit(lease, t(1)) for lease in leases))
        slots = [lease.stream.slot for lease in leases]
        assert bench.batches == [tuple(slots[:4]), tuple(slots[4:8]), tuple(slots[8:])]


# The cost of a row determines how many rows run together.


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
    """A chunk blocks the loop for half a millisecond, and no thread is used."""
    async with run_batcher(running_sum(), batch_max=256, capacity=256) as bench:
        charge = Charge(bench, 19.9e-6)
        await soon(bench.batcher.submit_block(block_of(call_of(bench, "a", 250), 250)))
        assert charge.sizes == [*[24] * 10, 10]
        assert charge.threads == {"MainThread"}


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


async def test_the_size_of_a_chunk_follows_what_a_row_costs() -> None:
    """It grows up to `batch_max` when rows turn out cheaper, and shrinks when they become more expensive."""
    async with run_batcher(running_sum(), batch_max=256, capacity=256) as bench:
        charge, held = Charge(bench, 19.9e-6), call_of(bench, "a", 250)
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


def call_of(bench: BatcherSetup, name: str, streams: int) -> HandleTable:
    """A call that holds so many streams."""
    held = HandleTable()
    for number in range(streams):
        held.add(bench.begin(f"{name}{number}"))
    return held


def block_of(held: HandleTable, rows: int) -> Block:
    """A block with a timestep for each of the first streams of a call."""
    return Block(held.select(np.arange(1, rows + 1)), np.zeros(rows, np.int64), np.ones((rows, 1), np.float32))


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


# 3. State is written after the model succeeded and before any reply is sent.


async def test_state_is_written_before_the_reply() -> None:
    """When a caller has the answer, the stream is one timestep further."""
    async with run_batcher(running_sum()) as bench:
        lease = bench.begin("a")
        future = bench.batcher.submit(lease, t(5))
        seen: list[int] = []
        future.add_done_callback(lambda _: seen.append(lease.stream.step))
        await soon(future)
        await asyncio.sleep(0)
        assert seen == [1]


async def test_a_row_that_fails_fails_alone() -> None:
    """The model raises on one row: its caller gets an error, its state is unchanged, and the other rows continue."""
    async with run_batcher(picky()) as bench:
        leases = [bench.begin(str(name)) for name in range(4)]
        answers = await soon(
            *(bench.batcher.submit(lease, t(x)) for lease, x in zip(leases, [0, 99, 2, 3], strict=True))
        )
        assert isinstance(answers[1], ModelFailed)
        assert [value(answers[row]) for row in (0, 2, 3)] == [1, 100, 1000]
        assert [lease.stream.step for lease in leases] == [1, 0, 1, 1]
        assert bench.metrics.steps["failed"] == 1
        assert bench.metrics.steps["ok"] == 3


async def test_a_poisoned_row_is_reported() -> None:
    """A state that would not be finite is not written, and the message says that the timestep was not applied."""
    async with run_batcher(inverse()) as bench:
        leases = [bench.begin(str(name)) for name in range(3)]
        answers = await soon(*(bench.batcher.submit(lease, t(x)) for lease, x in zip(leases, [1, 0, 2], strict=True)))
        assert isinstance(answers[1], ModelFailed)
        assert "not finite" in str(answers[1])
        assert [value(answers[row]) for row in (0, 2)] == [1, 0.5]
        assert [lease.stream.step for lease in leases] == [1, 0, 1]


async def test_a_failure_does_not_speak_of_another_stream() -> None:
    """Two rows that fail for different reasons get different errors: no client sees the values of another."""
    async with run_batcher(picky()) as bench:
        leases = [bench.begin(str(name)) for name in range(3)]
        answers = await soon(*(bench.batcher.submit(lease, t(x)) for lease, x in zip(leases, [77, 1, 88], strict=True)))
        assert "idx=77" in str(answers[0])
        assert "idx=88" in str(answers[2])


async def test_a_poisoned_row_beside_a_failed_one_has_its_own_reason() -> None:
    """Its error is about its own state, not about the other row's value."""
    async with run_batcher(fragile()) as bench:
        leases = [bench.begin(str(name)) for name in range(2)]
        failed, poisoned = await soon(
            bench.batcher.submit(leases[0], Timestep(0, pack(99, 1))),
            bench.batcher.submit(leases[1], Timestep(0, pack(1, 0))),
        )
        assert "idx=99" in str(failed)
        assert "not finite" in str(poisoned)


async def test_every_status_reaches_its_caller() -> None:
    """One batch with a good row, a duplicate, a gap, an infinity, a NaN and other values under an old number: each gets its own answer."""
    async with run_batcher(running_sum()) as bench:
        leases = [bench.begin(str(name)) for name in range(6)]
        await soon(*(bench.batcher.submit(lease, t(min(number, 1))) for number, lease in enumerate(leases)))
        sent = [t(10, 2), t(1, 1), t(10, 5), t(np.inf, 2), t(np.nan, 2), t(99, 1)]
        answers = await soon(*(bench.batcher.submit(*pair) for pair in zip(leases, sent, strict=True)))
        assert bench.batches[-1] == tuple(lease.stream.slot for lease in leases)
        assert (value(answers[0]), answers[0].duplicate, answers[0].step) == (10, False, 2)
        assert (value(answers[1]), answers[1].duplicate, answers[1].step) == (1, True, 1)
        assert isinstance(answers[2], StepGap)
        assert (answers[2].got, answers[2].expected) == (5, 2)
        assert isinstance(answers[3], NotFinite)
        assert isinstance(answers[4], NotFinite)
        assert "does not handle missing values" in str(answers[4])
        assert isinstance(answers[5], ValuesDiffer)
        assert "timestep 1 was applied with other values" in str(answers[5])
        counted = {outcome: count for outcome, count in bench.metrics.steps.items() if count}
        assert counted == {"ok": 7, "duplicate": 1, "gap": 1, "invalid": 2, "values_differ": 1}


async def test_a_forgotten_repeat_has_no_answer() -> None:
    """The answer to a duplicate that is no longer remembered says that it was applied, without outputs."""
    async with run_batcher(running_sum()) as bench:  # its ring holds four
        lease = bench.begin("a")
        await soon(*(bench.batcher.submit(lease, t(1, step)) for step in range(1, 6)))
        forgotten, remembered = await soon(bench.batcher.submit(lease, t(1, 1)), bench.batcher.submit(lease, t(1, 2)))
        assert (forgotten.duplicate, forgotten.outputs, forgotten.step) == (True, (), 1)
        assert (remembered.duplicate, value(remembered)) == (True, 2)


async def test_a_wrong_width_is_refused_at_the_door() -> None:
    """It is never queued, and the message has both widths and the features."""
    async with run_batcher(running_sum()) as bench:
        with pytest.raises(WrongWidth, match=r"got 2 numbers in 8 bytes, expected 4: .*\(x\)"):
            bench.batcher.submit(bench.begin("a"), Timestep(1, pack(1, 2)))
        assert bench.metrics.steps["invalid"] == 1
        assert "0 of 64 queued" in repr(bench.batcher)


async def test_a_number_that_cannot_be_one_is_refused_at_the_door() -> None:
    """It is never queued, and the message has the largest number."""
    async with run_batcher(running_sum()) as bench:
        with pytest.raises(InvalidField, match=rf"step: got {STEP_MAX + 1}, expected at most {STEP_MAX}"):
            bench.batcher.submit(bench.begin("a"), t(1, STEP_MAX + 1))
        assert bench.metrics.steps["invalid"] == 1
        assert "0 of 64 queued" in repr(bench.batcher)


async def test_the_largest_number_is_only_a_gap() -> None:
    """It does not overflow, and all streams continue."""
    async with run_batcher(running_sum()) as bench:
        lease, other = bench.begin("a"), bench.begin("b")
        gap, answer = await soon(bench.batcher.submit(lease, t(1, STEP_MAX)), bench.batcher.submit(other, t(2)))
        assert isinstance(gap, StepGap)
        assert (gap.got, gap.expected) == (STEP_MAX, 1)
        assert value(answer) == 2
        assert value((await soon(bench.batcher.submit(lease, t(7))))[0]) == 7


# 4. What else touches state happens between batches.


async def test_between_is_at_once_when_nothing_runs() -> None:
    """It runs at once, without even a turn of the loop."""
    async with run_batcher(running_sum()) as bench:
        act = bench.batcher.run_between(lambda: 7)
        with pytest.raises(StopIteration) as caught:
            act.send(None)
        assert caught.value.value == 7


async def test_between_waits_for_the_batch_in_the_thread() -> None:
    """It sees the batch as done, state and number together."""
    async with run_batcher(running_sum()) as bench:
        gate, lease = Gate(bench.batcher), bench.begin("a")
        future = bench.batcher.submit(lease, t(5))
        await gate.entered()
        act = asyncio.create_task(bench.batcher.run_between(lambda: checkpoint_rows([lease.stream])))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not act.done()
        assert len(bench.engine.slots) == 1
        gate.open()
        answer, (checkpoint,) = await soon(future, act)
        assert value(answer) == 5
        assert checkpoint.step == 1
        assert checkpoint.payload == bench.engine.slots.pack(np.array([lease.stream.slot])).tobytes()
        assert bench.engine.slots.state[0][lease.stream.slot].tolist() == [5]


async def test_between_comes_before_the_next_batch() -> None:
    """A queued batch does not overtake it."""
    async with run_batcher(running_sum()) as bench:
        gate, lease, other = Gate(bench.batcher), bench.begin("a"), bench.begin("b")
        first = bench.batcher.submit(lease, t(5))
        await gate.entered()
        second = bench.batcher.submit(other, t(6))
        act = asyncio.create_task(bench.batcher.run_between(lambda: other.stream.step))
        await asyncio.sleep(0)
        gate.open()
        assert (await soon(act, first, second))[0] == 0


async def test_between_happens_even_when_its_caller_goes_away() -> None:
    """A stream is dropped even if its client has left."""
    async with run_batcher(running_sum()) as bench:
        gate, lease = Gate(bench.batcher), bench.begin("a")
        future = bench.batcher.submit(lease, t(5))
        await gate.entered()
        act = asyncio.create_task(
            bench.batcher.run_between(lambda: bench.streams.drop(lease.stream, TakenOver("a", 2)))
        )
        await asyncio.sleep(0)
        act.cancel()
        await soon(act)
        gate.open()
        await soon(future)
        assert len(bench.engine.slots) == 0


async def test_between_hands_its_error_to_its_caller_only() -> None:
    """The batcher and the batch are not affected."""
    async with run_batcher(running_sum()) as bench:
        gate, lease = Gate(bench.batcher), bench.begin("a")
        future = bench.batcher.submit(lease, t(5))
        await gate.entered()
        act = asyncio.create_task(bench.batcher.run_between(lambda: 1 // 0))
        await asyncio.sleep(0)
        gate.open()
        error, answer = await soon(act, future)
        assert isinstance(error, ZeroDivisionError)
        assert value(answer) == 5
        assert value((await soon(bench.batcher.submit(lease, t(1))))[0]) == 6


async def test_a_slot_is_not_taken_again_under_a_running_batch() -> None:
    """A stream that is dropped during its batch releases its slot after it, and the next owner starts from the initial state."""
    async with run_batcher(running_sum(), capacity=1) as bench:
        gate, lease = Gate(bench.batcher), bench.begin("a")
        future = bench.batcher.submit(lease, t(5))
        await gate.entered()
        act = asyncio.create_task(
            bench.batcher.run_between(lambda: bench.streams.drop(lease.stream, TakenOver("a", 2)))
        )
        await asyncio.sleep(0)
        assert bench.engine.slots.full
        gate.open()
        await soon(future, act)
        assert value((await soon(bench.batcher.submit(bench.begin("b"), t(1))))[0]) == 1


async def test_a_caller_cancelled_in_the_queue_does_not_affect_others() -> None:
    """A known defect of other servers: one of four callers disconnects, and two others hang for ever.

    Here only its timestep is dropped.
    """
    async with run_batcher(running_sum()) as bench:
        gate = Gate(bench.batcher)
        blocker = bench.batcher.submit(bench.begin("blocker"), t(0))
        await gate.entered()
        leases = [bench.begin(str(name)) for name in range(4)]
        futures = [bench.batcher.submit(lease, t(name + 1)) for name, lease in enumerate(leases)]
        futures[1].cancel()
        gate.open()
        answers = await soon(blocker, *futures)
        assert [value(answers[place]) for place in (1, 3, 4)] == [1, 3, 4]
        assert isinstance(answers[2], asyncio.CancelledError)
        assert [lease.stream.step for lease in leases] == [1, 0, 1, 1]
        assert bench.metrics.steps["abandoned"] == 1
        assert bench.metrics.steps["ok"] == 4
        assert value((await soon(bench.batcher.submit(leases[1], t(9, 1))))[0]) == 9


async def test_a_caller_cancelled_while_its_batch_runs_does_not_affect_others() -> None:
    """Its timestep is applied, and its answer is remembered. The other callers get theirs."""
    async with run_batcher(running_sum()) as bench:
        leases = [bench.begin(str(name)) for name in range(4)]
        gate = Gate(bench.batcher)
        futures = [bench.batcher.submit(lease, t(name + 1)) for name, lease in enumerate(leases)]
        await gate.entered()
        futures[1].cancel()
        gate.open()
        answers = await soon(*futures)
        assert [value(answers[place]) for place in (0, 2, 3)] == [1, 3, 4]
        assert isinstance(answers[1], asyncio.CancelledError)
        assert [lease.stream.step for lease in leases] == [1, 1, 1, 1]
        (again,) = await soon(bench.batcher.submit(leases[1], t(2, 1)))
        assert (again.duplicate, value(again)) == (True, 2)


async def test_callers_cancelled_with_bad_rows_do_not_affect_others() -> None:
    """Refusing the row of a caller that has left is as harmless as answering one."""
    async with run_batcher(running_sum()) as bench:
        leases = [bench.begin(str(name)) for name in range(4)]
        gate = Gate(bench.batcher)
        sent = [t(1), t(np.inf), t(1, 7), t(4)]
        futures = [bench.batcher.submit(*pair) for pair in zip(leases, sent, strict=True)]
        await gate.entered()
        futures[1].cancel()
        futures[2].cancel()
        gate.open()
        answers = await soon(*futures)
        assert [value(answers[place]) for place in (0, 3)] == [1, 4]
        assert value((await soon(bench.batcher.submit(leases[0], t(1))))[0]) == 2


async def test_a_batch_whose_callers_have_all_gone_does_not_run() -> None:
    """The model does not run, and the batcher waits for the next timestep."""
    async with run_batcher(running_sum()) as bench:
        lease = bench.begin("a")
        bench.batcher.submit(lease, t(1)).cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert bench.batches == []
        assert value((await soon(bench.batcher.submit(lease, t(2))))[0]) == 2


async def test_a_timestep_of_an_ended_lease_is_refused() -> None:
    """After a take-over the queued timesteps of the old call are not applied, and get the reason."""
    async with run_batcher(running_sum()) as bench:
        gate, old = Gate(bench.batcher), bench.begin("a")
        blocker = bench.batcher.submit(bench.begin("blocker"), t(0))
        await gate.entered()
        queued = bench.batcher.submit(old, t(5))
        new = bench.streams.take_over(old.stream, 2)
        mine = bench.batcher.submit(new, t(7))
        gate.open()
        _, refused, answer = await soon(blocker, queued, mine)
        assert isinstance(refused, TakenOver)
        assert (value(answer), answer.step) == (7, 1)
        assert bench.metrics.steps["ended"] == 1


# 5. The queue has a bound.


async def test_a_full_queue_refuses_at_once() -> None:
    """The error has the limit and the retry time. Queued timesteps are answered."""
    async with run_batcher(running_sum(), queue_max=3) as bench:
        gate = Gate(bench.batcher)
        blocker = bench.batcher.submit(bench.begin("blocker"), t(0))
        await gate.entered()
        leases = [bench.begin(str(name)) for name in range(4)]
        futures = [bench.batcher.submit(lease, t(1)) for lease in leases[:3]]
        with pytest.raises(Overloaded, match="queue of 3") as caught:
            bench.batcher.submit(leases[3], t(1))
        assert caught.value.retry_after_ms > 0
        assert bench.metrics.steps["overloaded"] == 1
        gate.open()
        answers = await soon(blocker, *futures)
        assert [value(answer) for answer in answers[1:]] == [1, 1, 1]
        assert value((await soon(bench.batcher.submit(leases[3], t(1))))[0]) == 1


async def test_a_batcher_that_is_refusing_takes_no_new_timestep() -> None:
    """New timesteps get the error at once, and are counted. Queued ones are answered."""
    async with run_batcher(running_sum()) as bench:
        gate, lease = Gate(bench.batcher), bench.begin("a")
        running = bench.batcher.submit(lease, t(1))
        await gate.entered()
        queued = bench.batcher.submit(lease, t(2))
        behind = bench.batcher.refuse_with = StoreBehind(4.2, 100)
        with pytest.raises(StoreBehind) as caught:
            bench.batcher.submit(lease, t(3))
        assert caught.value is behind
        assert bench.metrics.steps["store_behind"] == 1
        gate.open()
        assert [value(answer) for answer in await soon(running, queued)] == [1, 3]


async def test_a_batcher_that_refuses_no_longer_continues() -> None:
    """The refused timestep is sent again and is the next of its stream."""
    async with run_batcher(running_sum()) as bench:
        lease = bench.begin("a")
        bench.batcher.refuse_with = StoreBehind(4.2, 100)
        with pytest.raises(StoreBehind):
            bench.batcher.submit(lease, t(3, 1))
        bench.batcher.refuse_with = None
        (answer,) = await soon(bench.batcher.submit(lease, t(3, 1)))
        assert (answer.step, value(answer)) == (1, 3)


async def test_a_stream_with_a_timestep_in_the_queue_is_known() -> None:
    """A stream with a queued timestep must not leave its slot: the timestep would go to another stream's row."""
    async with run_batcher(running_sum()) as bench:
        gate, lease, other = Gate(bench.batcher), bench.begin("a"), bench.begin("b")
        running = bench.batcher.submit(other, t(1))
        await gate.entered()
        queued = bench.batcher.submit(lease, t(2))
        assert bench.batcher.has_queued(lease.stream)
        assert not bench.batcher.has_queued(other.stream)
        gate.open()
        await soon(running, queued)
        assert not bench.batcher.has_queued(lease.stream)


async def test_the_depth_of_the_queue_is_measured() -> None:
    """The gauge reads the length of the queue itself."""
    async with run_batcher(running_sum()) as bench:
        gate = Gate(bench.batcher)
        futures = [bench.batcher.submit(bench.begin("a"), t(0))]
        await gate.entered()
        futures += [bench.batcher.submit(bench.begin(str(name)), t(0)) for name in range(3)]
        assert bench.metrics.queue_depth() == 3
        gate.open()
        await soon(*futures)
        assert bench.metrics.queue_depth() == 0


# 6. It never dies quietly.


@pytest.mark.parametrize("threaded", [False, True])
async def test_an_unexpected_error_fails_the_batch_and_ends_run(threaded: bool) -> None:
    """All callers get an error, those in the batch and those behind it, and later ones are refused."""
    async with run_batcher(running_sum(), batch_max=2) as bench:
        task = asyncio.create_task(asyncio.sleep(0))
        await task

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug of ours")

        bench.engine.run = bench.engine.run_one = broken  # type: ignore[method-assign,assignment]
        bench.batcher.cost.single_row_seconds = 1.0 if threaded else 0.0
        leases = [bench.begin(str(name)) for name in range(3)]
        answers = await soon(*(bench.batcher.submit(lease, t(1)) for lease in leases))
        assert isinstance(answers[0], ModelFailed)
        assert isinstance(answers[1], ModelFailed)
        assert "a bug of ours" not in str(answers[0])
        assert isinstance(answers[2], Stopping)
        with pytest.raises(Stopping):
            bench.batcher.submit(leases[0], t(1))


async def test_run_raises_what_broke_it() -> None:
    """The owner of the task gets the error."""
    async with run_batcher(running_sum()) as bench:
        pass
    batcher = Batcher(bench.engine, bench.metrics, batch_max=2, queue_max=2)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    bench.engine.run = bench.engine.run_one = broken  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(batcher.run())
    future = batcher.submit(bench.begin("a"), t(1))
    error, _ = await soon(task, future)
    assert isinstance(error, ZeroDivisionError)


async def test_cancelling_run_refuses_what_waits() -> None:
    """Stopping leaves no future pending, and a running batch is completed first."""
    async with run_batcher(running_sum()) as bench:
        gate = Gate(bench.batcher)
        running = bench.batcher.submit(bench.begin("a"), t(1))
        await gate.entered()
        waiting = [bench.batcher.submit(bench.begin(str(name)), t(1)) for name in range(3)]
        task = next(task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Batcher.run")
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()  # the thread still changes state
        gate.open()
        answers = await soon(task, running, *waiting)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert running.done()
        assert all(isinstance(answer, Stopping) for answer in answers[2:])


async def test_the_repr_has_the_fill_level() -> None:
    """Operators read it in logs."""
    async with run_batcher(running_sum()) as bench:
        assert repr(bench.batcher) == "<Batcher toy/1: 0 of 64 queued>"
