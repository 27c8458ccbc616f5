"""Rules 1, 2, 5 and 6 of the batcher, on a real engine: one batch at a time, no timer, a bound of the queue, no silent end."""

import asyncio

import pytest

from tests.engines import Gate, run_batcher
from tests.graphs import lstm, running_sum
from tests.oracle import replay, sensor_rows
from tests.serving.timesteps import soon, t, value
from tidegate.core.errors import ModelFailed, Overloaded, Stopping, StoreBehind
from tidegate.core.spec import Timestep
from tidegate.runtime.batcher import Batcher

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
