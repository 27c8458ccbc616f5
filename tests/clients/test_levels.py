"""The clients that docs/protocol.md shows, at three levels in two languages: what they give while servers die and others interfere."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawCall
from tests.clients.programs import LANGUAGES, LEVELS, Client, command, node
from tests.fleet import ServerProcess, rows_of
from tests.graphs import lstm, write_model
from tests.oracle import replay
from tests.timeouts import TIMEOUT_S
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

__all__ = ["node"]

# Streams, timesteps of each, kills. The large size is for who changes a client.
SIZE = (20, 1000, 10) if os.environ.get("TIDEGATE_LARGE") == "1" else (3, 120, 2)

pytestmark = [
    pytest.mark.parametrize("level", LEVELS),
    pytest.mark.parametrize("language", LANGUAGES),
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server process with SQLite."""
    models = write_model(tmp_path / "models", lstm())
    one = ServerProcess(models, f"sqlite://{tmp_path / 'state.db'}")
    await one.start()
    yield one
    await one.close()


Start = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def start(request: pytest.FixtureRequest, site: ServerProcess, language: str, level: str) -> AsyncIterator[Start]:
    """Starts a client of a stream."""
    run = command(request, language, level, fork=False)
    started: list[Client] = []

    async def start_one(stream_id: str) -> Client:
        started.append(await Client.start(run, site.address, stream_id))
        return started[-1]

    yield start_one
    for client in started:
        await client.kill()


async def describe(channel: grpc.aio.Channel) -> pb.Stream:
    """The stream as an operator sees it."""
    stub: Any = pb_grpc.TidegateServiceStub(channel)
    return (await stub.DescribeStream(pb.DescribeStreamRequest(stream_id="s"))).stream


def truth(rows: Any) -> list[tuple[int, bytes]]:
    """The output of plain onnxruntime."""
    return [(step, answer["forecast"].tobytes()) for step, answer in enumerate(replay(lstm(), rows), 1)]


async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(
    start: Start, site: ServerProcess, language: str, level: str
) -> None:
    """Each prediction comes once, in order and with the bits of the graph alone, through kills at any moment."""
    streams, steps, kills = SIZE
    data = [rows_of(number, steps) for number in range(streams)]
    clients = [await start(f"stream-{number}") for number in range(streams)]
    chance = random.Random(f"{language} {level}")
    moments = sorted(chance.sample(range(1, streams * steps * 9 // 10), kills))
    async with asyncio.timeout(10 * TIMEOUT_S), asyncio.TaskGroup() as group:
        sending = [group.create_task(client.send_all(rows)) for client, rows in zip(clients, data, strict=True)]
        for moment in moments:
            # A program sends no event.
            while sum(client.answered for client in clients) < moment and not all(task.done() for task in sending):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            await site.kill()
            await site.start()
    for client, rows in zip(clients, data, strict=True):
        await client.close()
        assert client.refused == []
        assert client.answers == truth(rows)


async def test_a_client_never_gets_the_answer_to_another_ones_timestep(
    start: Start, site: ServerProcess, level: str
) -> None:
    """It has sent timestep 6 to a server that died of it; meanwhile another client sent another timestep 6, and is left alone."""
    rows, others = rows_of(1, 6), rows_of(2, 7)
    await site.kill()
    await site.start(crash="before-answer:6")
    client = await start("s")
    await client.send_all(rows[:5])
    async with grpc.aio.insecure_channel(site.address) as channel, asyncio.timeout(TIMEOUT_S):
        while (await describe(channel)).durable_step < 5:  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.01)
    await client.send(rows[5])
    await site.ended()  # it has taken timestep 6, and died before it answered
    elsewhere = ServerProcess(Path(site.models), site.state)
    await elsewhere.start()
    try:
        async with grpc.aio.insecure_channel(elsewhere.address) as channel, asyncio.timeout(TIMEOUT_S):
            other = RawCall(channel)
            opened = await other.open("s", owner="another", durability=pb.DURABILITY_SYNC)
            assert opened.next_step == 6
            await other.step(*others[5].tolist(), step=6)
            await site.start()
            status, stderr = await client.end()
            assert (status, stderr.split(":")[0]) == (1, "VALUES_DIFFER" if level == "one" else "TAKEN_OVER")
            assert client.answers == truth(rows)[:5]
            assert (await describe(channel)).step == 6
            if level != "one":  # a single call has opened the stream, as any other client may
                assert (await other.step(*others[6].tolist(), step=7)).prediction.step == 7
    finally:
        await elsewhere.close()


async def test_a_timestep_that_is_refused_is_reported_and_the_next_takes_its_number(start: Start) -> None:
    """An infinite value and a wrong width among good ones."""
    rows = rows_of(3, 20)
    bad: Any = np.full(8, np.inf)
    client = await start("s")
    await client.send(*rows[:7], bad, *rows[7:15], rows[0][:3], *rows[15:])
    await client.has(22)
    await client.close()
    assert client.refused == ["NOT_FINITE", "WRONG_WIDTH"]
    assert client.answers == truth(rows)
