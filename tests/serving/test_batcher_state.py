"""Rules 3 and 4 of the batcher, on a real engine: when state is written, and what else happens between batches."""

import asyncio

import numpy as np
import pytest

from tests.calls import pack
from tests.engines import Gate, run_batcher
from tests.graphs import fragile, inverse, picky, running_sum
from tests.serving.timesteps import soon, t, value
from tidegate.core.errors import InvalidField, ModelFailed, NotFinite, StepGap, TakenOver, ValuesDiffer, WrongWidth
from tidegate.core.spec import STEP_MAX, Timestep
from tidegate.core.streams import checkpoint_rows

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
