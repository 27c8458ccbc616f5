"""Two servers on one store: an open continues from what was stored last, and no server overwrites another's state.

The order in which the two reach the store is forced: the store of one server pauses before an operation until the test
has let the other server act.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, raw_channel
from tests.fleet import ServerProcess, rows_of
from tests.graphs import lstm, write_model
from tests.oracle import replay
from tests.servers import run_server
from tests.store.support import RedisServer
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Key
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

ROWS = rows_of(0, 60)
TRUTH = [answer["forecast"].tobytes() for answer in replay(lstm(), ROWS)]
SYNC = pb.DURABILITY_SYNC


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that servers can share."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("redis_server").address)


@contextlib.asynccontextmanager
async def two_servers(
    tmp_path: Path, state: str, **settings: Any
) -> AsyncIterator[tuple[Server, grpc.aio.Channel, Server, grpc.aio.Channel]]:
    """Two servers on one store, and a connection to each."""
    models = write_model(tmp_path / "models", lstm())
    settings = {"checkpoint_every": "10ms", **settings}
    async with (
        run_server(models, state=state, **settings) as here,
        run_server(models, state=state, **settings) as there,
        raw_channel(here) as to_here,
        raw_channel(there) as to_there,
        asyncio.timeout(3 * TIMEOUT_S),
    ):
        yield here, to_here, there, to_there


def before(server: Server, operation: str, act: Callable[[], Awaitable[None]]) -> None:
    """Runs `act` before the next such operation of a server's store, which continues after it."""
    store: Any = server.stream_service._store
    inner = getattr(store, operation)

    async def paused(*arguments: Any) -> Any:
        setattr(store, operation, inner)
        await act()
        return await inner(*arguments)

    setattr(store, operation, paused)


async def step(call: RawCall, number: int) -> pb.Prediction:
    """Applies a timestep of ROWS, and checks the answer with the oracle."""
    answer = await call.step(*ROWS[number - 1].tolist(), step=number)
    assert answer.HasField("prediction"), answer
    assert answer.prediction.outputs[0] == TRUTH[number - 1], f"timestep {number} ran from another state"
    return answer.prediction


async def opened_at(channel: grpc.aio.Channel, number: int, **more: Any) -> RawCall:
    """Opens stream "a", and checks its next step."""
    call = RawCall(channel)
    assert (await call.open("a", **more)).next_step == number
    return call


@pytest.mark.parametrize("operation", ["load", "claim"])
@pytest.mark.parametrize("stored", [0, 1, 5])
async def test_a_take_over_continues_from_what_was_stored_last(
    tmp_path: Path, state: str, operation: str, stored: int
) -> None:
    """What the old owner stores between two steps of the open is not lost, also when nothing was stored before."""
    async with two_servers(tmp_path, state) as (_, to_here, there, to_there):
        old = RawCall(to_here)
        await old.open("a", durability=SYNC)
        for number in range(1, stored + 1):
            await step(old, number)

        async def store_more() -> None:
            await step(old, stored + 1)
            await step(old, stored + 2)

        before(there, operation, store_more)
        new = await opened_at(to_there, stored + 3, durability=SYNC)
        await step(new, stored + 3)
        assert (await old.ending()).reason == "TAKEN_OVER"


@pytest.mark.parametrize("operation", ["load", "claim"])
async def test_a_take_over_in_blocks_continues_from_what_was_stored_last(
    tmp_path: Path, state: str, operation: str
) -> None:
    """The same with PredictBlocks: a gateway's streams are opened by the same rules."""
    async with two_servers(tmp_path, state) as (_, to_here, there, to_there):
        old, new = RawBlocks(to_here), RawBlocks(to_there)
        opened = await old.open("a", durability=SYNC)
        assert (await old.block(opened.handles, ROWS[:1])).outputs[0] == TRUTH[0]

        async def store_more() -> None:
            assert (await old.block(opened.handles, ROWS[1:2])).outputs[0] == TRUTH[1]

        before(there, operation, store_more)
        opened = await new.open("a", durability=SYNC)
        assert opened.next_steps == [3]
        assert (await new.block(opened.handles, ROWS[2:3])).outputs[0] == TRUTH[2]


async def test_a_stream_that_woke_elsewhere_is_not_woken_here(tmp_path: Path, state: str) -> None:
    """A parked stream that another server opens, also while it wakes, does not continue from the old state."""
    async with two_servers(tmp_path, state, park_after="20ms") as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1)
        await step(old, 1)
        await eventually(lambda: not here.repository.find("toy", "").slots, "parking")

        async def take_over() -> None:
            new = await opened_at(to_there, 2, durability=SYNC)
            await step(new, 2)

        before(here, "load", take_over)
        await old.send(pb.PredictRequest(timestep=pb.Timestep(step=2, values=ROWS[1].tobytes())))
        assert (await old.ending()).reason == "TAKEN_OVER"
        await step(await opened_at(to_here, 3), 3)


async def test_a_frozen_owner_cannot_store_over_a_stream_that_began_anew(tmp_path: Path, state: str) -> None:
    """The server was suspended during a delete and a new beginning: the new stream never continues from the deleted state."""
    async with two_servers(tmp_path, state) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1)
        for number in range(1, 41):
            await step(old, number)
        frozen, thaw = asyncio.Event(), asyncio.Event()

        async def freeze() -> None:
            frozen.set()
            await thaw.wait()

        before(here, "save", freeze)
        before(here, "take_notices", thaw.wait)
        await step(old, 41)
        await frozen.wait()
        await delete(to_there)
        new = await opened_at(to_there, 1)
        for number in range(1, 4):
            await step(new, number)
        await new.call.done_writing()
        assert (await new.ending()).code is grpc.StatusCode.OK
        thaw.set()
        assert (await old.ending()).reason in {"TAKEN_OVER", "STREAM_NOT_FOUND"}
        await step(await opened_at(to_there, 4), 4)


async def test_who_holds_a_stream_learns_that_it_was_deleted_elsewhere(tmp_path: Path, state: str) -> None:
    """The call ends NOT_FOUND without another timestep.

    Opened again, the stream is new and only the new call holds it.
    """
    async with two_servers(tmp_path, state) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1)
        await step(old, 1)
        assert (await delete(to_there)).step == 1
        ending = await old.ending()
        assert (ending.code, ending.reason) == (grpc.StatusCode.NOT_FOUND, "STREAM_NOT_FOUND")
        assert here.stream_service._metrics.state_lost == 0
        await step(await opened_at(to_there, 1), 1)


@pytest.mark.parametrize("call_is", ["asleep", "live"])
async def test_who_holds_a_stream_learns_that_it_was_opened_elsewhere(tmp_path: Path, state: str, call_is: str) -> None:
    """The call soon ends ABORTED, without a timestep that would run from an old state."""
    async with two_servers(tmp_path, state, park_after="20ms" if call_is == "asleep" else "60s") as servers:
        here, to_here, _, to_there = servers
        old = await opened_at(to_here, 1, durability=SYNC)
        await step(old, 1)
        if call_is == "asleep":
            await eventually(lambda: not here.repository.find("toy", "").slots, "parking")
        await opened_at(to_there, 2)
        assert (await old.ending()).reason == "TAKEN_OVER"


async def test_another_server_returns_the_last_applied_timestep(tmp_path: Path, state: str) -> None:
    """Describe, export and fork through another server see the last applied timestep, stored or not."""
    async with two_servers(tmp_path, state, checkpoint_every="30s") as (_, to_here, _, to_there):
        call = await opened_at(to_here, 1)
        for asked, number in enumerate(range(1, 31, 3)):
            for each in range(number, number + 3):
                await step(call, each)
            last = number + 2
            match asked % 3:
                case 0:
                    stream = await unary(to_there, "DescribeStream", pb.DescribeStreamRequest(stream_id="a"))
                    assert (stream.stream.step, stream.stream.state) == (last, pb.Stream.STATE_LIVE)
                case 1:
                    exported = await unary(to_there, "ExportStream", pb.ExportStreamRequest(stream_id="a"))
                    assert exported.stream.step == last
                case 2:
                    fork = pb.ForkStreamRequest(stream_id="a", new_stream_id=f"fork-{last}")
                    assert (await unary(to_there, "ForkStream", fork)).stream.step == last
        copy = RawCall(to_there)
        assert (await copy.open("fork-27")).next_step == 28
        await step(copy, 28)
        listed = await unary(to_there, "ListStreams", pb.ListStreamsRequest(state=pb.Stream.STATE_LIVE))
        assert {stream.stream_id for stream in listed.streams} == {"a", "fork-27"}


async def test_who_lost_a_stream_cannot_delete_it(tmp_path: Path, state: str) -> None:
    """A close with `forget` that was sent before the client knew of a take-over does not delete the stream of the new owner."""
    async with two_servers(tmp_path, state) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1, durability=SYNC)
        await step(old, 1)

        async def take_over() -> None:
            new = await opened_at(to_there, 2, durability=SYNC)
            await step(new, 2)

        before(here, "load", take_over)
        await old.send(pb.PredictRequest(close=pb.Close(forget=True)))
        assert (await old.ending()).reason == "TAKEN_OVER"
        await step(await opened_at(to_there, 3), 3)


@pytest.mark.parametrize("how", ["import", "fork"])
@pytest.mark.parametrize("what", ["fails", "is cancelled"])
async def test_an_import_that_fails_leaves_nothing(tmp_path: Path, state: str, how: str, what: str) -> None:
    """Whether the store fails or the caller disconnects: no stream exists without its state, and a retry creates it."""
    async with two_servers(tmp_path, state) as (_, to_here, there, to_there):
        call = await opened_at(to_here, 1)
        for number in range(1, 11):
            await step(call, number)
        if how == "import":
            exported = await unary(to_here, "ExportStream", pb.ExportStreamRequest(stream_id="a"))
            request: Any = pb.ImportStreamRequest(checkpoint=exported.checkpoint, stream_id="b")
            method = "ImportStream"
        else:
            method, request = "ForkStream", pb.ForkStreamRequest(stream_id="a", new_stream_id="b")
        reached = asyncio.Event()

        async def fail() -> None:
            reached.set()
            if what == "fails":
                raise StoreUnavailable("test", "is broken")
            await asyncio.Event().wait()

        for operation in ("create", "save"):
            if hasattr(there.stream_service._store, operation):
                before(there, operation, fail)
        asking = asyncio.ensure_future(unary(to_there, method, request))
        if what == "fails":
            with pytest.raises(grpc.aio.AioRpcError, match="is broken"):
                await asking
        else:
            await reached.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        missing = RawCall(to_here)
        await missing.send(pb.PredictRequest(open=pb.Open(stream_id="b", existence=pb.EXISTENCE_MUST_EXIST)))
        assert (await missing.ending()).reason == "STREAM_NOT_FOUND"
        assert (await unary(to_there, method, request)).stream.step == 10
        copy = RawCall(to_here)
        assert (await copy.open("b")).next_step == 11
        await step(copy, 11)


async def test_two_workers_hand_streams_over_and_over(
    site: Callable[..., ServerProcess], graph: bytes, state: str
) -> None:
    """150 take-overs under load, half of them with SYNC: each continues from a state of the oracle, with SYNC from the last."""
    one = site("--workers", "2", state=state)
    await one.start()
    async with asyncio.timeout(5 * TIMEOUT_S), contextlib.AsyncExitStack() as stack:
        channels = []
        for _ in range(8):  # connections go to random workers
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(one.address, options=options)
            channels.append(await stack.enter_async_context(channel))
        moved = await asyncio.gather(*(hand_over(channels, number, turns=15) for number in range(10)))
    assert sum(moved) == 150
    assert one.metrics()["tidegate_state_lost_total"] == 0
    assert await one.stop() == 0


async def hand_over(channels: list[grpc.aio.Channel], number: int, turns: int) -> int:
    """Opens a stream again and again while the previous call still sends timesteps.

    Returns how many opens were take-overs.
    """
    rng = np.random.default_rng(number)
    sync = bool(number % 2)
    rows = rows_of(100 + number, 40 * turns)
    truth = [answer["forecast"].tobytes() for answer in replay(lstm(), rows)]
    durable = 0

    async def run(call: RawCall, begin: int, answered: asyncio.Event) -> None:
        """Sends timesteps until the call ends. What it reports as durable counts for all later calls."""
        nonlocal durable
        try:
            for place in range(begin, len(rows) + 1):
                answer = await call.step(*rows[place - 1].tolist(), step=place)
                if answer.HasField("move"):
                    return
                wrong = answer.prediction.outputs[0] != truth[place - 1]
                if wrong:
                    broken.append(place)
                durable = max(durable, answer.prediction.durable_step)
                answered.set()
        except (AssertionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if not answered.is_set():
                raise  # nobody else opens this stream: it was not taken over

    broken: list[int] = []
    running: asyncio.Task[None] | None = None
    for _ in range(turns + 1):
        call = RawCall(channels[int(rng.integers(len(channels)))])
        known = durable
        opened = await call.open(f"stream-{number}", durability=SYNC if sync else pb.DURABILITY_UNSPECIFIED)
        assert opened.next_step > known, f"{known} was durable, but the stream goes on at {opened.next_step}"
        answered = asyncio.Event()
        before_it, running = running, asyncio.create_task(run(call, opened.next_step, answered))
        if before_it is not None:
            await before_it
        first = asyncio.create_task(answered.wait())
        await asyncio.wait([running, first], return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        if not answered.is_set():
            await running
            raise AssertionError("the call ended before it was answered")
    assert running is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert broken == []
    return turns


# A redis that loses data ----------------------------------------------------------------------------------------------


@pytest.fixture
def forgetful(redis_installed: None, tmp_path: Path) -> Any:
    """A redis that keeps the state of its last save, and nothing else."""
    folder = tmp_path / "forgetful"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_installed() -> None:
    """Skips if redis-server is not installed."""
    import os
    import shutil

    if shutil.which("redis-server") is None:
        assert os.environ.get("TIDEGATE_REQUIRE_ALL") != "1", "redis-server is missing; apt-get install redis-server"
        pytest.skip("needs redis-server; apt-get install redis-server")


@pytest.mark.parametrize("blocks", [False, True])
async def test_a_sleeping_stream_that_wakes_older_than_it_was_is_lost(
    tmp_path: Path, forgetful: RedisServer, blocks: bool
) -> None:
    """Everything was durable; redis was restarted with an older state: DATA_LOSS, counted, and no answer from that state."""
    async with two_servers(tmp_path, forgetful.address, park_after="30ms") as (here, to_here, _, _):
        slots = here.repository.find("toy", "").slots
        old = RawBlocks(to_here) if blocks else RawCall(to_here)
        if isinstance(old, RawCall):
            await old.open("a", durability=SYNC)
        else:
            handles = (await old.open("a", durability=SYNC)).handles
        for number in range(1, 21):
            if isinstance(old, RawCall):
                await step(old, number)
            else:
                assert (await old.block(handles, ROWS[number - 1 : number])).outputs[0] == TRUTH[number - 1]
            if number == 10:
                assert forgetful.command("SAVE") == b"+OK\r\n"
        await eventually(lambda: not slots, "parking")
        forgetful.kill()
        forgetful.start()
        if isinstance(old, RawCall):
            await old.send(pb.PredictRequest(timestep=pb.Timestep(step=21, values=ROWS[20].tobytes())))
            ending = await old.ending()
            assert (ending.code, ending.reason) == (grpc.StatusCode.DATA_LOSS, "STATE_LOST")
        else:
            answer = await old.block(handles, ROWS[20:21])
            assert [error.error.reason for error in answer.errors] == [pb.Error.REASON_STATE_LOST]
        assert here.stream_service._metrics.state_lost == 1


async def test_a_live_stream_that_redis_has_lost_is_stored_again(tmp_path: Path, forgetful: RedisServer) -> None:
    """Redis restarts empty under a stream that continues: nothing is lost, and another server finds all of it."""
    async with two_servers(tmp_path, forgetful.address) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1, durability=SYNC)
        for number in range(1, 6):
            await step(old, number)
        forgetful.kill()
        forgetful.start()
        for number in range(6, 9):
            prediction = await step(old, number)
        assert prediction.durable_step == 8
        await step(await opened_at(to_there, 9), 9)
        assert here.stream_service._metrics.state_lost == 0


async def test_a_live_stream_that_is_older_in_redis_is_stored_again(tmp_path: Path, forgetful: RedisServer) -> None:
    """Redis restarts with an older state under a silent stream: soon it has the last state again."""
    async with two_servers(tmp_path, forgetful.address) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1, durability=SYNC)
        for number in range(1, 21):
            await step(old, number)
            if number == 10:
                assert forgetful.command("SAVE") == b"+OK\r\n"
        await eventually(lambda: bool(here.registry.peers._store_run_id), "the first beat")
        forgetful.kill()
        forgetful.start()
        store = here.stream_service._store
        while True:
            with contextlib.suppress(StoreUnavailable):
                record = await store.load(Key("default", "a"))
                assert record is not None
                if record.metadata.step == 20:
                    break
            await asyncio.sleep(0.02)
        await step(await opened_at(to_there, 21), 21)


async def test_of_two_owners_after_a_loss_one_gets_state_lost(tmp_path: Path, forgetful: RedisServer) -> None:
    """Redis restarts empty, and the stream begins again elsewhere under the same epoch: the first server does not overwrite it."""
    async with two_servers(tmp_path, forgetful.address) as (here, to_here, _, to_there):
        old = await opened_at(to_here, 1, durability=SYNC)
        for number in range(1, 15):
            await step(old, number)
        forgetful.kill()
        forgetful.start()
        new = await opened_at(to_there, 1, durability=SYNC)
        await step(new, 1)
        await old.send(pb.PredictRequest(timestep=pb.Timestep(step=15, values=ROWS[14].tobytes())))
        ending = await old.ending()
        assert (ending.code, ending.reason) == (grpc.StatusCode.DATA_LOSS, "STATE_LOST")
        assert here.stream_service._metrics.state_lost == 1
        await step(new, 2)
        await step(await opened_at(to_here, 3), 3)


async def unary(channel: grpc.aio.Channel, method: str, request: Any) -> Any:
    """Makes a unary call."""
    response = getattr(pb, type(request).__name__.removesuffix("Request") + "Response")
    call = channel.unary_unary(
        f"/tidegate.v1.TidegateService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return await call(request, timeout=2 * TIMEOUT_S)


async def delete(channel: grpc.aio.Channel) -> pb.Stream:
    """Deletes stream "a". Returns the deleted stream."""
    return (await unary(channel, "DeleteStream", pb.DeleteStreamRequest(stream_id="a"))).stream
