"""When the next checkpoint starts, and the cost of one."""

import asyncio

import pytest

from tidegate.runtime.checkpoint_schedule import NEXT_ROUND_FACTOR, PAUSE_FACTOR, CheckpointSchedule, CpuMeter

PACE = CheckpointSchedule(interval_s=0.2, park_after_s=60.0, ready_lag_s=5.0, lag_max_s=30.0)


def test_a_quick_round_is_followed_by_the_next_when_it_is_due() -> None:
    """`interval_s` is the time from the start of a checkpoint to the start of the next."""
    assert PACE.pause_s(took_s=0.05, used_s=0.01, unsaved_s=0.05) == pytest.approx(0.15)


def test_a_round_with_much_to_do_earns_a_longer_rest() -> None:
    """Most of the processor is left to predictions."""
    assert PACE.pause_s(took_s=0.5, used_s=0.4, unsaved_s=0.5) == pytest.approx(PAUSE_FACTOR * 0.4)


def test_waiting_for_the_disk_earns_no_rest() -> None:
    """After a commit that took 3 s without using the processor, the next one follows at once."""
    assert PACE.pause_s(took_s=3.0, used_s=0.0, unsaved_s=3.0) == 0.0


def test_after_a_long_stall_there_is_no_rest_whatever_it_cost() -> None:
    """The oldest change has waited for longer than a ready server allows."""
    assert PACE.pause_s(took_s=9.0, used_s=1.0, unsaved_s=9.0) == 0.0


@pytest.mark.parametrize("used_s", [0.1, 0.5, 1.0, 1.3])
def test_rounds_of_many_streams_leave_the_server_ready(used_s: float) -> None:
    """Even if the next checkpoint takes twice the time of the last, the oldest change is stored before the server is not ready."""
    rest_s = PACE.pause_s(took_s=used_s, used_s=used_s, unsaved_s=used_s)
    assert PACE.ready(used_s + rest_s + NEXT_ROUND_FACTOR * used_s - 1e-9)


def test_a_round_that_takes_all_the_time_there_is_has_no_negative_rest() -> None:
    """The next one starts at once."""
    assert PACE.pause_s(took_s=4.0, used_s=4.0, unsaved_s=4.0) == 0.0


def test_a_store_is_not_behind_while_it_is_not_asked() -> None:
    """With an interval of a minute, the store does not count as lagging every minute."""
    rare = CheckpointSchedule(interval_s=60.0, park_after_s=60.0, ready_lag_s=5.0, lag_max_s=30.0)
    assert rare.pause_s(took_s=0.0, used_s=0.0, unsaved_s=0.0) == 60.0
    assert rare.ready(61.0)
    assert not rare.ready(66.0)
    assert not rare.too_late(89.0)
    assert rare.too_late(91.0)


class Hand:
    """A manual clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


async def test_work_is_what_is_done_between_waits() -> None:
    """The work of other tasks and the length of waits do not count. The result is returned."""
    clock, go_on = Hand(), asyncio.Event()

    async def job() -> str:
        clock.now += 1
        await go_on.wait()
        clock.now += 2
        return "done"

    work = CpuMeter(job(), clock)

    async def run() -> str:
        return await work

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    clock.now += 100
    go_on.set()
    assert await running == "done"
    assert work.used_s == 3


async def test_work_that_is_cancelled_ends() -> None:
    """The coroutine itself is cancelled, not left waiting."""
    ended: list[str] = []

    async def job() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def run() -> None:
        await CpuMeter(job())

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["cancelled"]


async def test_what_work_raises_comes_through() -> None:
    """Also after it has waited."""

    async def job() -> None:
        await asyncio.sleep(0)
        raise ValueError("by the job")

    with pytest.raises(ValueError, match="by the job"):
        await CpuMeter(job())
