"""A server dies under streams whose models have other inputs than one vector of float32."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fleet import ServerProcess
from tests.graphs import write_model
from tests.timeouts import TIMEOUT_S
from tests.typed_graphs import Toy, replay, toys
from tidegate.client import Client

STREAMS, STEPS = 8, 120
TOYS = toys(STEPS)


class Progress:
    """How many predictions have come."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def advance(self, count: int) -> None:
        """Counts more of them."""
        self.count += count
        self._changed.set()

    async def reached(self, count: int) -> None:
        """Waits for that many."""
        while self.count < count:
            self._changed.clear()
            await self._changed.wait()


async def run_streams(client: Client, toy: Toy, progress: Progress) -> list[Any]:
    """Each stream on its own, one timestep after the other. Returns the answers of each."""

    async def one(place: int) -> list[Any]:
        async with client.open(f"s{place}", inputs=toy.stream or None) as stream:
            answers = []
            for row in toy.rows:
                answers.append((await stream.step(dict(row) if len(row) > 1 else row["x"]))["sum"])
                progress.advance(1)
            return answers

    return list(await asyncio.gather(*map(one, range(STREAMS))))


async def run_block(client: Client, toy: Toy, progress: Progress) -> list[Any]:
    """All streams in blocks, several in flight. Returns the answers of each stream."""

    def column(values: Sequence[Any]) -> Any:
        return np.array(list(values))

    rows = [{name: column([value] * STREAMS) for name, value in row.items()} for row in toy.rows]
    inputs = {name: column([value] * STREAMS) for name, value in toy.stream.items()}
    answers: list[list[Any]] = [[] for _ in range(STREAMS)]
    async with client.block([f"b{place}" for place in range(STREAMS)], inputs=inputs or None) as block:
        async for answer in block.predict(row if len(row) > 1 else row["x"] for row in rows):
            assert not answer.errors
            for place in range(STREAMS):
                answers[place].append(answer["sum"][place])
            progress.advance(STREAMS)
            await asyncio.sleep(0.002)  # so that the server dies in the middle
    return answers


@pytest.mark.parametrize("run", [run_streams, run_block])
@pytest.mark.parametrize("name", ["int64", "two integers", "per stream", "int64 per stream"])
async def test_a_server_that_is_killed_loses_nothing(tmp_path: Path, name: str, run: Any) -> None:
    """Each prediction comes once, in order, with the bits of a graph that ran without interruption."""
    toy = TOYS[name]
    state = f"sqlite:///{tmp_path / 'state.db'}"
    server = ServerProcess(write_model(tmp_path / "models", toy.graph), state)
    try:
        await server.start()
        progress = Progress()
        async with asyncio.timeout(3 * TIMEOUT_S), Client(server.address) as client:
            running = asyncio.create_task(run(client, toy, progress))
            for share in (0.3, 0.6):
                await progress.reached(int(share * STREAMS * STEPS))
                await server.kill()
                await server.start()
            answers = await running
        expected = [answer.tobytes() for answer in replay(toy)]
        assert all([answer.tobytes() for answer in own] == expected for own in answers)
        assert server.metrics()["tidegate_state_lost_total"] == 0
    finally:
        await server.close()
