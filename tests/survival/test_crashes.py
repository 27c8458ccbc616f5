"""Servers die in every possible way. Each prediction still arrives once, in order, with the right bits."""

import asyncio
import signal
import sys
from collections.abc import Callable

import numpy as np
import pytest

from tests.fleet import Fleet, ServerProcess, rows_of
from tests.oracle import replay, same_bits
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, TakenOver

CRASH_POINTS = ("before-commit", "after-commit", "before-answer", "during-park", "during-take-over")


async def test_a_server_killed_at_random_moments_loses_nothing(
    site: Callable[..., ServerProcess], graph: bytes
) -> None:
    """200 streams over `kill -9` at three random moments: once, in order, bit-equal. No state was lost."""
    seed = 20_261
    print("seed", seed)
    moments = np.random.default_rng(seed).uniform(0.15, 0.85, 3)
    one = site()
    await one.start()
    fleet = Fleet([one.address], streams=200, steps=60)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        for share in sorted(moments):
            await fleet.reached(int(share * 200 * 60))
            await one.kill()
            await one.start()
        await running
    assert fleet.problems(graph) == []
    assert one.metrics()["tidegate_state_lost_total"] == 0


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_server_killed_at_a_crash_point_loses_nothing(
    site: Callable[..., ServerProcess], graph: bytes, point: str
) -> None:
    """The process dies at the named point, with 200 streams in flight, and is restarted."""
    one = site("--park-after", "300ms") if point == "during-park" else site()
    # Opens come first, so the count skips them. The other points are reached in the middle of the work.
    await one.start(crash=f"{point}:{150 if point == 'during-take-over' else 3}")
    fleet = Fleet([one.address], streams=200, steps=15, pause_s=0.01)
    if point == "during-park":
        fleet = Fleet([one.address], streams=200, steps=4, pause_s=0.7)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        assert await one.ended() == -signal.SIGKILL
        await one.start()
        await running
    assert fleet.problems(graph) == []
    assert one.metrics()["tidegate_state_lost_total"] == 0


async def test_streams_in_redis_survive_the_server(
    site: Callable[..., ServerProcess], graph: bytes, redis_server
) -> None:
    """The same with redis, when the server is killed."""
    one = site(state=redis_server.address)
    await one.start()
    fleet = Fleet([one.address], streams=50, steps=60)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        await fleet.reached(1200)
        await one.kill()
        await one.start()
        await running
    assert fleet.problems(graph) == []
    assert one.metrics()["tidegate_state_lost_total"] == 0


async def test_streams_in_redis_survive_redis(site: Callable[..., ServerProcess], graph: bytes, redis_server) -> None:
    """Redis is killed and restarted. The server continues meanwhile, and catches up."""
    one = site(state=redis_server.address)
    await one.start()
    fleet = Fleet([one.address], streams=50, steps=150, pause_s=0.01)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        await fleet.reached(2000)
        redis_server.kill()
        await fleet.reached(4000)  # predictions continue without the store
        redis_server.start()
        await running
    assert fleet.problems(graph) == []
    metrics = one.metrics()
    assert metrics["tidegate_state_lost_total"] == 0
    assert metrics['tidegate_checkpoints_total{outcome="failed"}'] > 0
    assert metrics["tidegate_unsaved_seconds"] < 5


async def test_a_rolling_restart_is_not_seen_by_users(site: Callable[..., ServerProcess], graph: bytes) -> None:
    """SIGTERM and a new server on the same data: the clients move, and their users see no error."""
    one = site()
    await one.start()
    fleet = Fleet([one.address], streams=50, steps=80)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(fleet.run())
        for answers in (1000, 2500):
            await fleet.reached(answers)
            assert await one.stop() == 0
            await one.start()
        await running
    assert fleet.problems(graph) == []


async def test_two_clients_fight_over_a_stream(site: Callable[..., ServerProcess], graph: bytes) -> None:
    """The last client to open the stream holds it, the others get an error, and the state has one history."""
    one = site()
    await one.start()
    rows = rows_of(0, 40)
    truth = replay(graph, rows)
    async with asyncio.timeout(3 * TIMEOUT_S), Client(one.address) as left, Client(one.address) as right:
        step = 0
        while step < len(rows):
            async with left.open("contested") as mine, right.open("contested") as theirs:
                assert theirs.next_step == step + 1
                prediction = await theirs.step(rows[step])
                assert same_bits(prediction, truth[step])
                step += 1
                with pytest.raises(TakenOver):
                    await mine.step(rows[0])


async def test_a_frozen_server_wakes_up_fenced(site: Callable[..., ServerProcess], graph: bytes) -> None:
    """A server that was stopped by SIGSTOP continues after its stream was taken over: what it does then has no effect."""
    old, new = site(), site()
    await asyncio.gather(old.start(), new.start())
    rows = rows_of(1, 30)
    truth = replay(graph, rows)
    async with asyncio.timeout(3 * TIMEOUT_S), Client(old.address) as slow, Client(new.address) as quick:
        async with slow.open("moved") as before:
            for row, expected in zip(rows[:10], truth, strict=False):
                assert same_bits(await before.step(row), expected)
            while before.durable_step < 9:  # an answer has the durable step of the time when it was sent
                await asyncio.sleep(0.05)
                await before.step(rows[0], step=1)
            await old.freeze()
            async with quick.open("moved") as after:
                for number in range(after.next_step, 21):
                    assert same_bits(await after.step(rows[number - 1]), truth[number - 1])
                old.send(signal.SIGCONT)
                with pytest.raises(TakenOver):
                    while True:  # the old server may answer until its next checkpoint is refused
                        await before.step(rows[before.next_step % len(rows)])
                for number in range(21, 31):
                    assert same_bits(await after.step(rows[number - 1]), truth[number - 1])


VICTIM = """
import sys
from tidegate.blocking import Client
from tests.fleet import rows_of
with Client(sys.argv[1]) as client, client.open("orphan") as stream:
    for row in rows_of(2, 400):
        print(stream.step(row).step, flush=True)
"""


async def test_a_client_that_died_finds_its_stream_where_it_was(
    site: Callable[..., ServerProcess], graph: bytes
) -> None:
    """After `kill -9` of a client, the next client continues its stream at the step that the server names."""
    one = site()
    await one.start()
    rows = rows_of(2, 400)
    truth = replay(graph, rows)
    async with asyncio.timeout(3 * TIMEOUT_S):
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VICTIM, one.address, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert victim.stdout is not None
        seen = [int(await victim.stdout.readline()) for _ in range(100)]
        assert seen == list(range(1, 101))
        victim.kill()
        await victim.wait()
        async with Client(one.address) as heir, heir.open("orphan") as again:
            first = again.next_step
            assert 101 <= first < 400
            for number in range(first, 401):
                assert same_bits(await again.step(rows[number - 1]), truth[number - 1])
