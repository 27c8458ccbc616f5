"""A redis whose primary is killed under load: with a replica that has each write nothing is lost, else the loss is told."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet import Fleet, ServerProcess, rows_of
from tests.sentinels import sentinels
from tests.survival.conftest import Redis
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, DataLost

STREAMS, STEPS = 100, 100


@pytest.mark.slow
async def test_a_failover_of_redis_loses_nothing(
    site: Callable[..., ServerProcess], graph: bytes, tmp_path: Path, redis_server: Redis
) -> None:
    """The primary is killed and then the server: every prediction comes once and bit-equal, without the primary's memory."""
    with sentinels(tmp_path, 2) as redis:
        server = site(state=redis.address)
        await server.start()
        fleet = Fleet([server.address], STREAMS, STEPS, sync=True, pause_s=0.05)
        running = asyncio.create_task(fleet.run())
        await fleet.reached(STREAMS * STEPS // 4)
        redis.nodes[0].kill()
        await asyncio.to_thread(redis.failed_over)
        await server.kill()
        await server.start()
        await running
    assert fleet.problems(graph) == []


@pytest.mark.slow
async def test_what_a_failover_loses_is_told(
    site: Callable[..., ServerProcess], tmp_path: Path, redis_server: Redis
) -> None:
    """With `replicas=0` the replica may lack acknowledged timesteps. Then the stream ends with DATA_LOSS."""
    rows = rows_of(1, 10)
    with sentinels(tmp_path, 1) as redis:
        server = site(state=f"{redis.address}?replicas=0")
        await server.start()
        primary, replica = redis.nodes
        async with Client(server.address) as client:
            async with client.open("a", sync=True) as stream:
                for row in rows[:5]:
                    await stream.step(row)
            await asyncio.to_thread(redis.wait_for, replica, "HGET tidegate:stream:7:default:a step", "5")
            replica.kill()
            async with client.open("a", sync=True) as stream:
                for row in rows[5:]:
                    await stream.step(row)
                primary.kill()
                await asyncio.to_thread(replica.start)
                await asyncio.to_thread(redis.failed_over)
                await server.kill()
                await server.start()
                async with asyncio.timeout(TIMEOUT_S):
                    with pytest.raises(DataLost):
                        await stream.step(rows[0])
