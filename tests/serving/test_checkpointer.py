"""The checkpointer, with a store that waits on request and a manual clock: when it saves, and who waits for that."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from tests.engines import key
from tests.serving.checkpointers import CheckpointerSetup, Open, running, stalled
from tests.timeouts import eventually
from tidegate.core.errors import StoreBehind, TakenOver
from tidegate.core.spec import Checkpoint
from tidegate.core.streams import Lease
from tidegate.runtime.checkpointer import ROWS_A_COMMIT_MAX

# The schedule.


async def test_after_a_slow_commit_what_came_meanwhile_is_stored_at_once(setup: Open) -> None:
    """A disk that works again is used at once: waiting for it is not work that needs a pause."""
    made = setup(interval_s=0.2)
    (lease,) = await made.begin(1)
    made.step(lease)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        made.now += 9
        made.step(lease)
        made.store.resume()
        await eventually(lambda: lease.durable_step == 2, "the next round")
        assert made.checkpointer.unsaved_seconds() == 0


@pytest.mark.parametrize("how", ["durable", "settled", "flush", "leave"])
async def test_after_a_slow_commit_no_stream_waits_for_the_next_round(setup: Open, how: str) -> None:
    """A save is immediate for a `SYNC` stream, for another server's request, for a server that stops, and for a stream without a call."""
    made = setup()
    (lease,) = await made.begin(1)
    async with stalled(made, lease):
        made.step(lease)
        match how:
            case "durable":
                await made.checkpointer.wait_durable(lease, 2)
            case "settled":
                await made.checkpointer.wait_settled(lease.stream)
            case "flush":
                await made.checkpointer.flush()
            case "leave":
                made.end_calls(lease)
                await eventually(lambda: not len(made.slots), "leaving")
        assert made.store.saves == [["s0"], ["s0"]]


async def test_who_waits_has_only_its_own_stream_stored(setup: Open) -> None:
    """One `SYNC` stream does not make thousands of others be saved with each of its timesteps."""
    made = setup()
    leases = await made.begin(8)
    async with running(made):
        for number in range(1, 4):
            made.step(*leases)
            await made.checkpointer.wait_durable(leases[3], number)
        assert made.store.saves == [["s3"]] * 3


async def test_who_waits_is_not_kept_by_a_round(setup: Open) -> None:
    """A save that is requested during a checkpoint comes before the rest of the checkpoint."""
    made = setup(capacity=3 * ROWS_A_COMMIT_MAX)
    leases = await made.begin(3 * ROWS_A_COMMIT_MAX)
    made.step(*leases)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        waiting = asyncio.create_task(made.checkpointer.wait_durable(leases[-1], 1))
        await asyncio.sleep(0)
        made.store.let_one()
        await made.store.asked(2)
        assert made.store.saves[1] == [leases[-1].stream.key.stream_id]
        made.store.let_one()
        await waiting
        assert leases[-2].durable_step == 0


async def test_a_round_stores_nothing_twice(setup: Open) -> None:
    """A stream that was saved on request is not saved again in the same checkpoint."""
    made = setup(capacity=2 * ROWS_A_COMMIT_MAX)
    leases = await made.begin(2 * ROWS_A_COMMIT_MAX)
    made.step(*leases)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        made.checkpointer.request_save(leases[-1])
        made.store.resume()
        await eventually(lambda: made.checkpointer.idle, "the round")
        assert sum(map(len, made.store.saves)) == len(leases)


async def test_a_store_that_failed_is_asked_again_soon(setup: Open) -> None:
    """However long the interval is."""
    made = setup()
    (lease,) = await made.begin(1)
    async with running(made):
        made.store.broken = True
        made.step(lease)
        waiting = asyncio.create_task(made.checkpointer.wait_durable(lease, 1))
        await made.store.asked(1)
        made.store.broken = False
        await waiting
        assert lease.durable_step == 1


async def test_who_waits_for_a_store_that_hangs_gives_up_in_time(setup: Open) -> None:
    """A server that stops tells its clients to move in any case."""
    made = setup()
    (lease,) = await made.begin(1)
    made.step(lease)
    made.store.pause()
    async with running(made):
        waiting = asyncio.create_task(made.checkpointer.wait_durable(lease, 1))
        await made.store.asked(1)
        made.checkpointer.set_deadline(10)
        await made.checkpointer.check_lag()
        assert not waiting.done()
        made.now += 11
        await made.checkpointer.check_lag()
        with pytest.raises(StoreBehind):
            await waiting


async def test_who_waits_learns_that_its_stream_was_taken_over(setup: Open) -> None:
    """The store saves nothing under the old epoch, and the call gets the reason."""
    made = setup()
    (lease,) = await made.begin(1)
    async with running(made):
        made.step(lease)
        assert await made.store.claim(lease.stream.key, 1, made.served.spec.id, "")
        with pytest.raises(TakenOver):
            await made.checkpointer.wait_durable(lease, 1)


async def test_who_waits_for_a_store_that_hangs_learns_that_its_stream_has_ended(setup: Open) -> None:
    """Another call has it, and the one that waits need not wait until the store works."""
    made = setup()
    (lease,) = await made.begin(1)
    made.step(lease)
    made.store.pause()
    async with running(made):
        waiting = asyncio.create_task(made.checkpointer.wait_durable(lease, 1))
        await made.store.asked(1)
        made.streams.take_over(lease.stream, 2)
        await made.checkpointer.check_lag()
        with pytest.raises(TakenOver):
            await waiting


async def test_a_caller_that_waits_for_a_hanging_store_gets_an_error_in_time(setup: Open) -> None:
    """Beyond the largest lag, callers do not wait any longer."""
    made = setup(interval_s=0.2)
    (lease,) = await made.begin(1)
    made.step(lease)
    made.store.pause()
    async with running(made):
        waiting = asyncio.create_task(made.checkpointer.wait_durable(lease, 1))
        await made.store.asked(1)
        made.now += 31
        await made.checkpointer.check_lag()
        with pytest.raises(StoreBehind, match="31"):
            await waiting
        assert made.served.batcher.refuse_with is not None


# Events between the copy and the recording of the save.


async def test_what_is_taken_over_here_before_it_is_written_is_stored_under_the_new_epoch(setup: Open) -> None:
    """The old epoch is refused, which is harmless: the new call has the stream, and the next checkpoint stores it."""
    made = setup()
    (lease,) = await made.begin(1)
    made.step(lease)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        assert await made.store.claim(lease.stream.key, 1, made.served.spec.id, "")
        new = made.streams.take_over(lease.stream, 2)
        made.store.resume()
        await made.checkpointer.flush()
        assert (new.ended, new.durable_step, lease.durable_step) == (None, 1, 0)
    record = await made.store.load(lease.stream.key)
    assert record is not None
    assert record.checkpoint is not None
    assert (record.checkpoint.epoch, record.checkpoint.step) == (2, 1)


async def test_what_is_taken_over_elsewhere_before_it_is_written_is_given_up_alone(setup: Open) -> None:
    """The other streams of the commit are stored."""
    made = setup()
    one, two, three = await made.begin(3)
    made.step(one, two, three)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        assert await made.store.claim(two.stream.key, 1, made.served.spec.id, "")
        made.store.resume()
        await made.checkpointer.flush()
        assert isinstance(two.ended, TakenOver)
        assert [one.durable_step, two.durable_step, three.durable_step] == [1, 0, 1]


def once_written(made: CheckpointerSetup, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[None]]) -> None:
    """Makes something happen after a save was written, before the checkpointer knows."""
    save = made.store.save

    async def saved(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        kept = await save(checkpoints)
        await act()
        return kept

    monkeypatch.setattr(made.store, "save", saved)


async def test_what_is_taken_over_here_after_it_is_written_is_stored(
    setup: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim continued from what was written: the new call knows that it is stored, and the old one waits no longer."""
    made = setup()
    (lease,) = await made.begin(1)
    made.step(lease)
    taken: list[Lease] = []

    async def take_over() -> None:
        assert await made.store.claim(lease.stream.key, 1, made.served.spec.id, "")
        taken.append(made.streams.take_over(lease.stream, 2))

    once_written(made, monkeypatch, take_over)
    assert await made.checkpointer._round()
    assert (taken[0].durable_step, lease.durable_step) == (1, 0)


async def test_a_row_that_is_anothers_by_then_is_left_alone(setup: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was dropped meanwhile does not affect the stream that has its slot now."""
    made = setup(capacity=1)
    (lease,) = await made.begin(1)
    made.step(lease)
    begun: list[Lease] = []

    async def replace_it() -> None:
        made.streams.drop(lease.stream, TakenOver("s0", 2))
        begun.append(made.streams.begin(key("new"), made.slots, made.slots.acquire(key("new")), 1))
        made.slots.step[begun[0].stream.slot] = 5

    once_written(made, monkeypatch, replace_it)
    await made.checkpointer._commit(made.served, np.array([lease.stream.slot]))
    assert begun[0].durable_step == 0
    assert made.slots.durable_step[begun[0].stream.slot] == 0


async def test_listeners_are_notified_of_what_is_stored(setup: Open) -> None:
    """Callbacks run after each commit, when the step is already recorded. Calls without a callback see the step too."""
    made = setup()
    one, two = await made.begin(2)
    reported: list[int] = []
    one.on_durable = lambda: reported.append(one.durable_step)
    for _ in range(2):
        made.step(one, two)
        assert await made.checkpointer._round()
    assert reported == [1, 2]
    assert two.durable_step == 2


# Unsaved changes.


async def test_a_change_after_long_quiet_is_young(setup: Open) -> None:
    """Its age counts from the last check that found nothing to store, however long ago the last checkpoint was."""
    made = setup()
    (lease,) = await made.begin(1)
    async with running(made):
        made.now += 1800
        await made.checkpointer.check_lag()
        made.step(lease)
        made.now += 2
        assert made.checkpointer.unsaved_seconds() == 2
        made.now += 3
        await made.checkpointer.check_lag()
        assert made.checkpointer.unsaved_seconds() == 5


async def test_a_change_ages_while_the_store_waits(setup: Open) -> None:
    """A change that came during a slow commit has its true age when the commit ends."""
    made = setup()
    one, two = await made.begin(2)
    async with stalled(made, one):
        made.step(two)
        assert made.checkpointer.unsaved_seconds() >= 600
        await made.checkpointer.flush()
        assert made.checkpointer.unsaved_seconds() == 0
