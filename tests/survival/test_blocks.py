"""The streams of a gateway survive as single streams do: blocks over servers that are killed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet import Gateway, ServerProcess, rows_of
from tests.servers import address_of, run_server
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client
from tidegate.store import decode


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_server_killed_between_blocks_loses_nothing(
    site: Callable[..., ServerProcess], graph: bytes, seed: int
) -> None:
    """Invalid rows, catching up, several blocks in flight, three times `kill -9`: once, in order, bit-equal."""
    one = site()
    await one.start()
    gateway = Gateway(one.address, streams=60, steps=120, seed=seed)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(gateway.run())
        for blocks in (10, 25, 40):
            await gateway.reached(blocks)
            await one.kill()
            await one.start()
        await running
    assert gateway.problems(graph) == []
    assert gateway.refused > 0
    assert one.metrics()["tidegate_state_lost_total"] == 0


@pytest.mark.parametrize("point", ["before-answer", "after-commit"])
async def test_a_server_killed_within_a_block_loses_nothing(
    site: Callable[..., ServerProcess], graph: bytes, point: str
) -> None:
    """Between the chunks of a block, and when its state is stored but its answer was not sent."""
    one = site("--batch-max", "16")
    await one.start(crash=f"{point}:{20 if point == 'before-answer' else 1}")
    gateway = Gateway(one.address, streams=60, steps=30, seed=7)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(gateway.run())
        await one.ended()
        await one.start()
        await running
    assert gateway.problems(graph) == []


async def test_sync_blocks_survive_a_kill(site: Callable[..., ServerProcess], graph: bytes) -> None:
    """What a client got is in the store, even if the client has kept nothing."""
    one = site("--checkpoint-every", "20ms")
    await one.start()
    gateway = Gateway(one.address, streams=20, steps=25, seed=4, sync=True)
    async with asyncio.timeout(3 * TIMEOUT_S):
        running = asyncio.create_task(gateway.run())
        await gateway.reached(8)
        await one.kill()
        await one.start()
        await running
    assert gateway.problems(graph) == []


async def test_blocks_and_single_timesteps_make_the_same_history(models: Path) -> None:
    """Stored state, remembered answers, numbers: all bytes."""
    rows = [rows_of(stream, 40) for stream in range(6)]
    async with run_server(models) as server, Client(address_of(server)) as client:
        async with client.block([f"block-{number}" for number in range(6)]) as block:
            for step in range(0, 40, 2):  # two of each at a time
                places = [0, 1, 2, 3, 4, 5] * 2
                answer = await block.step([rows[place][step + row // 6] for row, place in enumerate(places)], places)
                assert not answer.errors
        for number in range(6):
            async with client.open(f"single-{number}") as stream:
                for row in rows[number]:
                    await stream.step(row)
        for number in range(6):
            mine = decode(await client.export_stream(f"block-{number}"), "block")
            theirs = decode(await client.export_stream(f"single-{number}"), "single")
            assert (mine.step, mine.payload) == (theirs.step, theirs.payload)
