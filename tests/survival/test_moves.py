"""`kill -9` around the move of streams to another version, and around a promotion."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fleet import ServerProcess, rows_of
from tests.graphs import write_model
from tests.moves import GRAPHS, Answer, K, answer, check_answers
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, ClientError
from tidegate.runtime.promotion import Promotion, read_promotion, write_promotion

pytestmark = pytest.mark.slow

STREAMS = 6
STEPS = 90


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two versions, the first of them promoted, and streams that are replayed."""
    root = tmp_path / "models"
    for version, graph in GRAPHS.items():
        write_model(root, graph, version=version)
    (root / "toy" / "serving.toml").write_text(f'policy = "rewarm"\nrewarm_steps = {K}\n')
    write_promotion(root / "toy", Promotion("1"))
    return root


@pytest.mark.parametrize("state", ["sqlite", "redis"])
@pytest.mark.parametrize(
    "point", ["before-move:3", "during-move:3", "after-move:3", "before-commit:4", "before-answer:60"]
)
async def test_a_stream_is_on_one_version_or_the_other(
    site: Callable[..., ServerProcess], models: Path, point: str, state: str, request: pytest.FixtureRequest
) -> None:
    """Wherever the server dies, each prediction comes once, from the version that the client says its stream is on."""
    options = {}
    if state == "redis":
        redis = request.getfixturevalue("redis_server")
        options["state"] = redis.address
    server = site("--checkpoint-every", "20ms", **options)
    await server.start(point)
    rows = [rows_of(stream, STEPS) for stream in range(STREAMS)]
    got: list[list[Answer]] = [[] for _ in rows]
    promoted = asyncio.Event()

    async def run(client: Client, place: int) -> None:
        async with client.open(f"s{place}") as stream:
            for number, row in enumerate(rows[place]):
                if number == 2 * STEPS // 3:
                    await promoted.wait()
                got[place].append(answer(await stream.step(row), stream.version))

    async def restart() -> None:
        await server.ended()
        await server.start()

    async with Client(server.address) as client, asyncio.timeout(TIMEOUT_S):
        running = [asyncio.create_task(run(client, place)) for place in range(STREAMS)]
        restarting = asyncio.create_task(restart())
        while min(map(len, got)) < 20:
            await asyncio.sleep(0.005)
        while read_promotion(models / "toy").version != "2":
            with suppress(ClientError):  # the server may die before it answers, or before it is asked
                await client.promote("toy", "2")
        promoted.set()
        await asyncio.gather(*running, restarting)
    assert [answers[-1].version for answers in got] == ["2"] * STREAMS
    assert [check_answers(rows[place], got[place], "rewarm") for place in range(STREAMS)] == [""] * STREAMS
    assert server.metrics()["tidegate_state_lost_total"] == 0


@pytest.mark.parametrize("point", ["before-promote", "during-promote", "after-promote"])
@pytest.mark.parametrize("call", ["promote", "rollback"])
async def test_a_promotion_happens_or_does_not(
    site: Callable[..., ServerProcess], models: Path, point: str, call: str
) -> None:
    """The choice on disk is a whole one, the old or the new, and the next server and its streams follow it."""
    write_promotion(models / "toy", Promotion("2", ("1",)) if call == "rollback" else Promotion("1"))
    server = site()
    await server.start(f"{point}:1")
    async with Client(server.address, reconnect_s=0, timeout_s=TIMEOUT_S) as client:
        with pytest.raises(ClientError):
            await (client.promote("toy", "2") if call == "promote" else client.rollback("toy"))
    await server.ended()
    old, new = ("1", "2") if call == "promote" else ("2", "1")
    json.loads((models / "toy" / "promoted.json").read_text())
    chosen = read_promotion(models / "toy").version
    assert chosen == (new if point == "after-promote" else old)
    await server.start()
    async with Client(server.address) as client, client.open("a") as stream:
        assert stream.version == chosen
