"""The checkpointer with thousands of streams: it stores them in parts, and the loop has turns in between."""

import asyncio
from typing import Any

import pytest

from tests.loop_latency import measure_loop
from tests.serving.checkpointers import Open, running
from tidegate.core.streams import Lease
from tidegate.runtime import checkpointer
from tidegate.runtime.checkpointer import ROWS_A_COMMIT_MAX, WOKEN_AT_ONCE_MAX

# As many as a server holds by default: a few microseconds for each would be a noticeable pause.
MANY = 16_384
# The largest part of the work that one turn of the loop may do: work that is not split does all of it in one turn.
TURN_PART = 0.25


async def test_thousands_of_idle_streams_do_not_block_others(setup: Open) -> None:
    """They leave their slots in groups, between batches."""
    made = setup(capacity=MANY)
    await made.begin(MANY)
    assert await made.checkpointer._round()
    made.now += 61
    async with measure_loop() as turns:
        assert await made.checkpointer._round()
    assert not len(made.slots)
    assert turns.longest < TURN_PART * turns.total


async def test_thousands_that_leave_at_once_do_not_block_others(setup: Open) -> None:
    """The same when a gateway's call ends."""
    made = setup(capacity=MANY)
    made.end_calls(*await made.begin(MANY))
    async with measure_loop() as turns:
        assert await made.checkpointer._round()
    assert not len(made.slots)
    assert turns.longest < TURN_PART * turns.total


async def test_storing_thousands_does_not_block_others(setup: Open) -> None:
    """Even with a store that never waits."""
    made = setup(capacity=MANY)
    made.step(*await made.begin(MANY))
    async with measure_loop() as turns:
        assert await made.checkpointer._round()
    assert made.checkpointer.unsaved_seconds() == 0
    assert turns.longest < TURN_PART * turns.total


async def test_a_round_of_thousands_copies_a_thousand_in_a_turn(setup: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand streams are copied at once and no more: the loop has a turn before the next thousand."""
    made = setup(capacity=MANY)
    made.step(*await made.begin(MANY))
    turn, copied_in = 0, []
    copy = checkpointer.checkpoint_rows

    def noted(streams: Any) -> Any:
        copied_in.append((turn, len(streams)))
        return copy(streams)

    monkeypatch.setattr(checkpointer, "checkpoint_rows", noted)
    storing = asyncio.create_task(made.checkpointer._round())
    while not storing.done():
        turn += 1
        await asyncio.sleep(0)
    assert await storing
    assert [count for _, count in copied_in] == [ROWS_A_COMMIT_MAX] * (MANY // ROWS_A_COMMIT_MAX)
    assert len({turn for turn, _ in copied_in}) == len(copied_in)


async def test_large_states_are_stored_in_smaller_parts(setup: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are copied at once are bounded, however few streams that means."""
    made = setup(capacity=64)
    leases = await made.begin(64)
    made.step(*leases)
    monkeypatch.setattr(checkpointer, "BYTES_A_COMMIT_MAX", 10 * made.slots.row_bytes(made.slots.answers))
    assert await made.checkpointer._round()
    assert [len(save) for save in made.store.saves] == [*[10] * 6, 4]
    monkeypatch.setattr(checkpointer, "BYTES_A_COMMIT_MAX", 1)
    made.step(leases[0])
    assert await made.checkpointer._round()
    assert [len(save) for save in made.store.saves[7:]] == [1]


async def test_waiters_continue_some_at_a_time(setup: Open) -> None:
    """A thousand calls whose streams are stored in one commit do not all answer in one turn of the loop."""
    made = setup(capacity=1024)
    leases = await made.begin(1024)
    async with running(made):
        made.step(*leases)
        turn = 0
        woken: dict[int, int] = {}

        async def wait(lease: Lease) -> None:
            await made.checkpointer.wait_durable(lease, 1)
            woken[turn] = woken.get(turn, 0) + 1

        waiting = [asyncio.create_task(wait(lease)) for lease in leases]
        while not all(task.done() for task in waiting):
            turn += 1
            await asyncio.sleep(0)
        assert max(woken.values()) <= WOKEN_AT_ONCE_MAX
