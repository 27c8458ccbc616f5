"""Two independent clients send timesteps of one stream: neither gets the other's answer for its own timestep."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fleet import ServerProcess, rows_of
from tests.oracle import replay
from tests.rpc_clients import (
    RPC_CLIENTS,
    PredictBlocksClient,
    PredictClient,
    PredictOneClient,
    Refused,
    RpcClient,
    channel_to,
)
from tests.timeouts import TIMEOUT_S
from tidegate.v1 import tidegate_pb2 as pb

SYNC = pb.DURABILITY_SYNC
# Timesteps of one client, and the sixth of the other.
ROWS = rows_of(0, 7)
OTHER = rows_of(1, 1)[0]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store."""
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite://{tmp_path / 'state.db'}"
        case _:
            return str(request.getfixturevalue("redis_server").address)


@pytest.fixture
async def overtaken(state: str, site: Callable[..., ServerProcess], graph: bytes) -> Callable[..., Any]:
    """Brings the stream to the point where another client has sent its own sixth timestep.

    Yields the server to which the first one returns.

    The first client has five answered and stored timesteps. Its server then hangs and is killed while the sixth is in
    flight. With a store in memory there is no other server, and the sixth is lost in transit.
    """
    truth = [answer["forecast"].tobytes() for answer in replay(graph, [*ROWS[:5], OTHER, ROWS[6]])]
    alone = state == "memory:"
    here = site(state=state)
    there = here if alone else site(state=state)
    await asyncio.gather(*(one.start() for one in dict.fromkeys((here, there))))

    @asynccontextmanager
    async def bring(way: type[RpcClient], owner: str) -> AsyncIterator[grpc.aio.Channel]:
        async with (
            asyncio.timeout(3 * TIMEOUT_S),
            channel_to(here.address) as first,
            channel_to(there.address) as second,
        ):
            mine, theirs = way(first), way(second)
            await mine.open(owner=owner, durability=SYNC)
            assert [(await mine.step(row, number))[0] for number, row in enumerate(ROWS[:5], 1)] == truth[:5]
            if alone:
                await mine.cut()
            else:
                await here.freeze()
                await mine.send(ROWS[5], 6)
            assert await theirs.open(owner="the other") in (0, 6)
            assert await theirs.step(OTHER, 6) == (truth[5], False)
            await theirs.close()
            if not alone:
                await here.kill()
            yield second
            # The other's history stands and continues. It is still the owner, unless a client without a token has
            # opened the stream.
            again = way(second)
            assert await again.open(owner="the other", **({"resume_from": 6} if owner else {})) in (0, 7)
            assert await again.step(OTHER, 6) == (truth[5], True)
            assert await again.step(ROWS[6], 7) == (truth[6], False)

    return bring


@pytest.mark.parametrize("way", [PredictClient, PredictBlocksClient])
async def test_the_first_owner_gets_an_error_when_it_comes_back(
    overtaken: Callable[..., Any], way: type[RpcClient]
) -> None:
    """Its open, from the timestep without an answer, is refused as TAKEN_OVER, and does not take the stream."""
    async with overtaken(way, "the first") as channel:
        with pytest.raises(Refused) as caught:
            await way(channel).open(owner="the first", resume_from=6)
        ending = caught.value.ending
        assert (ending.code, ending.reason, ending.action) == (grpc.StatusCode.ABORTED, "TAKEN_OVER", "STREAM_LOST")


@pytest.mark.parametrize("way", RPC_CLIENTS)
async def test_a_client_without_an_owner_is_not_given_the_others_answer(
    overtaken: Callable[..., Any], way: type[RpcClient]
) -> None:
    """Its repeat is refused as VALUES_DIFFER: the remembered answer was computed from other values."""
    async with overtaken(way, "") as channel:
        mine = way(channel)
        if way is not PredictOneClient:
            assert await mine.open(resume_from=6) == 7
        with pytest.raises(Refused) as caught:
            await mine.step(ROWS[5], 6)
        ending = caught.value.ending
        assert (ending.code, ending.reason, ending.action) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "VALUES_DIFFER",
            "STREAM_LOST",
        )
        await mine.cut()


@pytest.mark.parametrize("state", ["sqlite"], indirect=True)
async def test_a_server_is_frozen_when_the_file_is_not_locked(state: str, site: Callable[..., ServerProcess]) -> None:
    """A server that was stopped in a transaction once failed a test here: the other one could not write."""
    server = site(state=state)
    await server.start()
    with closing(sqlite3.connect(state.removeprefix("sqlite://"), isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        freezing = asyncio.create_task(server.freeze())
        assert not (await asyncio.wait([freezing], timeout=0.3))[0]
        database.execute("ROLLBACK")
        await freezing
        database.execute("BEGIN IMMEDIATE")


@pytest.mark.parametrize("state", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("way", RPC_CLIENTS)
async def test_a_server_that_wakes_up_answers_only_for_its_own_streams(
    state: str, site: Callable[..., ServerProcess], graph: bytes, way: type[RpcClient]
) -> None:
    """A hanging server gets a timestep whose number another server has stored: it refuses it when it continues."""
    truth = [answer["forecast"].tobytes() for answer in replay(graph, [*ROWS[:5], OTHER, ROWS[6]])]
    here, there = site(state=state), site(state=state)
    await asyncio.gather(here.start(), there.start())
    async with asyncio.timeout(3 * TIMEOUT_S), channel_to(here.address) as first, channel_to(there.address) as second:
        mine, theirs = way(first), way(second)
        await mine.open(owner="the first", durability=SYNC)
        for number, row in enumerate(ROWS[:5], 1):
            await mine.step(row, number)
        await here.freeze()
        await mine.send(ROWS[5], 6)
        await theirs.open(owner="the other")
        assert await theirs.step(OTHER, 6) == (truth[5], False)
        here.send(signal.SIGCONT)
        with pytest.raises(Refused) as caught:
            await mine.answer()
        assert caught.value.ending.reason == ("VALUES_DIFFER" if way is PredictOneClient else "TAKEN_OVER")
        assert await theirs.step(ROWS[6], 7) == (truth[6], False)
