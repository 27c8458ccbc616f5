"""A server that stops tells its clients to move once their streams are stored: elsewhere they continue where they were."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, raw_channel, timestep
from tests.engines import Gate
from tests.fleet import ServerProcess, rows_of
from tests.servers import batcher_of, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.spec import Checkpoint
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.lifecycle import StopFailed
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

STREAMS = 60
# The interval is so long that nothing is stored unless somebody waits for it.
RARELY = "10m"


class Stoppable:
    """A server that a test stops, and whose store can be blocked."""

    def __init__(self, root: Path, **settings: Any) -> None:
        config = ServerConfig(
            models=root, host="127.0.0.1", port=0, metrics_port=0, checkpoint_every=RARELY, **settings
        )
        self.server = Server(config)
        self.asked = asyncio.Event()  # something was to be stored while the store was blocked
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts serving."""
        await self.server.start()
        store = self.server.stream_service._store
        save = store.save

        async def held_up(checkpoints: Sequence[Checkpoint]) -> list[bool]:
            if not self._go_on.is_set():
                self.asked.set()
            await self._go_on.wait()
            return await save(checkpoints)

        store.save = held_up  # type: ignore[method-assign]

    def hold_up(self) -> None:
        """Blocks the store from now on."""
        self._go_on.clear()

    def resume(self) -> None:
        """Lets the store continue."""
        self._go_on.set()

    def stop(self) -> "asyncio.Task[None]":
        """Stops it, as SIGTERM does; only once."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self.server.stop())
        return self._stopping

    async def end(self) -> None:
        """Stops it at the end, whatever the test has done."""
        self.resume()
        await asyncio.wait([self.stop()])


@asynccontextmanager
async def two_servers(root: Path, folder: Path, **settings: Any) -> AsyncIterator[tuple[Stoppable, Any, Any]]:
    """Two servers on one SQLite file, and a channel to each. The first is to be stopped."""
    state = f"sqlite://{folder / 'state.db'}"
    here = Stoppable(root, state=state, **settings)
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(run_server(root, state=state, checkpoint_every=RARELY))
        await here.start()
        stack.push_async_callback(here.end)
        one = await stack.enter_async_context(raw_channel(here.server))
        other = await stack.enter_async_context(raw_channel(there))
        await stack.enter_async_context(asyncio.timeout(3 * TIMEOUT_S))
        yield here, one, other


async def stepped(channel: grpc.aio.Channel) -> list[RawCall]:
    """Calls with streams "s0" and so on, each with 1 to 3 answered timesteps."""
    calls = [RawCall(channel) for _ in range(STREAMS)]
    for number, call in enumerate(calls):
        await call.open(f"s{number}")
        for _ in range(number % 3 + 1):
            await call.step(1)
    return calls


async def test_a_stream_that_must_move_is_stored(sum_root: Path, tmp_path: Path) -> None:
    """`Move` comes when the store has the last answered timestep, not before. The other server continues after it."""
    async with two_servers(sum_root, tmp_path) as (here, one, other):
        calls = await stepped(one)
        here.hold_up()
        here.stop()
        reading = [asyncio.create_task(call.read()) for call in calls]
        await here.asked.wait()
        # A round trip to a server that stops: what it has sent before has arrived by then.
        assert (await RawCall(one).ending()).reason == "STOPPING"
        assert not any(task.done() for task in reading)
        here.resume()
        for number, response in enumerate(await asyncio.gather(*reading)):
            assert response.HasField("move")
            assert (await RawCall(other).open(f"s{number}")).next_step == number % 3 + 2
        assert {(await call.ending()).reason for call in calls} == {"STOPPING"}
        await here.stop()


async def test_the_streams_of_a_block_call_are_stored_before_move(sum_root: Path, tmp_path: Path) -> None:
    """The same for thousands of streams on one call. Durable steps are reported before `Move`."""
    async with two_servers(sum_root, tmp_path) as (here, one, other):
        names = [f"s{number}" for number in range(STREAMS)]
        call, again = RawBlocks(one), RawBlocks(other)
        handles = np.array((await call.open(*names)).handles)
        await call.block(handles, np.ones((STREAMS, 1)))
        await call.block(handles[::2], np.ones((STREAMS // 2, 1)))
        here.hold_up()
        here.stop()
        reading = asyncio.create_task(call.read())
        await here.asked.wait()
        assert (await RawCall(one).ending()).reason == "STOPPING"
        assert not reading.done()
        here.resume()
        durable = (await reading).durable
        steps = dict(
            zip(
                np.frombuffer(durable.handles, "<u4").tolist(),
                np.frombuffer(durable.durable_steps, "<u8").tolist(),
                strict=True,
            )
        )
        assert steps == {handle: 2 - place % 2 for place, handle in enumerate(handles.tolist())}
        assert (await call.read()).HasField("move")
        assert list((await again.open(*names)).next_steps) == [3 - number % 2 for number in range(STREAMS)]
        assert (await call.ending()).reason == "STOPPING"
        await here.stop()


async def test_what_is_under_way_is_answered_and_stored_before_the_move(sum_root: Path, tmp_path: Path) -> None:
    """A timestep that runs when the server is asked to stop is answered first."""
    async with two_servers(sum_root, tmp_path) as (here, one, other):
        call = RawCall(one)
        await call.open("a")
        gate = Gate(batcher_of(here.server))
        await call.send(timestep(7))
        await gate.entered()
        here.stop()
        await eventually(lambda: here.server._servicer._calls.stopping, "stopping")
        gate.open()
        assert (await call.read()).prediction.step == 1
        assert (await call.read()).HasField("move")
        assert (await RawCall(other).open("a")).next_step == 2


async def test_a_store_that_hangs_does_not_keep_calls(sum_root: Path, tmp_path: Path) -> None:
    """Within the time for stopping they are durable to move nevertheless.

    The exit of the server reports what is not stored.
    """
    async with two_servers(sum_root, tmp_path, drain_after=1.0) as (here, one, _):
        single, block = RawCall(one), RawBlocks(one)
        await single.open("a")
        await single.step(1)
        await block.block((await block.open("b")).handles, [[1]])
        here.hold_up()
        stopping = here.stop()
        assert (await single.read()).HasField("move")
        assert (await block.read()).HasField("move")
        assert (await single.ending()).reason == (await block.ending()).reason == "STOPPING"
        with pytest.raises(StopFailed, match="did not save all state in time"):
            await stopping


async def test_a_take_over_while_the_server_stops_is_reported(sum_root: Path, tmp_path: Path) -> None:
    """Its client is not durable to move, because another client has the stream."""
    async with two_servers(sum_root, tmp_path) as (here, one, other):
        call = RawCall(one)
        await call.open("a")
        await call.step(1)
        here.hold_up()
        here.stop()
        await here.asked.wait()
        await RawCall(other).open("a")
        here.resume()
        ending = await call.ending()
        assert (ending.code, ending.reason) == (grpc.StatusCode.ABORTED, "TAKEN_OVER")


async def test_a_server_that_stops_right_after_a_stall_stores_everything(sum_root: Path, tmp_path: Path) -> None:
    """The store hung for long and works again: no effect remains."""
    async with two_servers(sum_root, tmp_path, drain_after=3600.0) as (here, one, other):
        checkpointer = here.server.stream_service.checkpointer
        clock = checkpointer._clock
        call, sync = RawCall(one), RawCall(one)
        await call.open("a")
        await sync.open("sync", durability=pb.DURABILITY_SYNC)
        here.hold_up()
        await sync.send(timestep(1))
        await here.asked.wait()
        checkpointer._clock = lambda: clock() + 22
        here.resume()
        assert (await sync.read()).prediction.step == 1
        await call.step(1)
        await here.stop()
        assert (await RawCall(other).open("a")).next_step == 2


async def test_clients_that_move_on_sigterm_find_their_streams(site: Callable[..., ServerProcess]) -> None:
    """Two processes on one file: each stream is opened at the other as soon as its call gets `Move`."""
    here, there = site("--checkpoint-every", RARELY), site("--checkpoint-every", RARELY)
    await asyncio.gather(here.start(), there.start())
    async with (
        asyncio.timeout(3 * TIMEOUT_S),
        grpc.aio.insecure_channel(here.address) as one,
        grpc.aio.insecure_channel(there.address) as other,
    ):
        busy = asyncio.Semaphore(0)

        async def step_and_move(number: int) -> bool:
            """Sends timesteps, and waits for `Move`.

            Returns whether the other server then continued where this one was.
            """
            call, steps = RawCall(one), number % 3 + 1
            await call.open(f"s{number}")
            for row in rows_of(number, steps):
                await call.step(*row.tolist())
            busy.release()
            while not (await call.read()).HasField("move"):
                pass
            return (await RawCall(other).open(f"s{number}")).next_step == steps + 1

        moving = [asyncio.create_task(step_and_move(number)) for number in range(STREAMS)]
        for _ in range(STREAMS):
            await busy.acquire()
        stopping = asyncio.create_task(here.stop())
        assert all(await asyncio.gather(*moving))
        assert await stopping == 0


async def test_a_stream_that_is_taken_over_at_the_end_of_a_call_leaves_the_others_alone(
    sum_root: Path, tmp_path: Path
) -> None:
    """A half-closed call reports which of its streams it has lost, and ends OK when the others are stored."""
    async with two_servers(sum_root, tmp_path) as (here, one, other):
        call = RawBlocks(one)
        handles = (await call.open("lost", "kept")).handles
        await call.block(handles, [[1], [1]])
        here.hold_up()
        await call.call.done_writing()
        await here.asked.wait()
        await RawCall(other).open("lost")
        here.resume()
        assert list((await call.read()).ended.handles) == [handles[0]]
        assert (await call.ending()).code is grpc.StatusCode.OK
        assert (await RawCall(other).open("kept")).next_step == 2


async def test_the_rows_of_a_sync_block_are_stored_together(sum_root: Path, tmp_path: Path) -> None:
    """One commit, not one for each row that is waited for."""
    async with two_servers(sum_root, tmp_path) as (here, one, _):
        call = RawBlocks(one)
        handles = (await call.open(*[f"s{number}" for number in range(STREAMS)], durability=pb.DURABILITY_SYNC)).handles
        saves = []
        save = here.server.stream_service._store.save

        async def counted(checkpoints: Sequence[Checkpoint]) -> list[bool]:
            saves.append(len(checkpoints))
            return await save(checkpoints)

        here.server.stream_service._store.save = counted  # type: ignore[method-assign]
        await call.block(handles, np.ones((STREAMS, 1)))
        assert saves == [STREAMS]


async def test_a_server_that_can_store_nothing_more_does_not_wait_for_it(sum_root: Path, tmp_path: Path) -> None:
    """When the checkpointer has died, calls are durable to move at once."""
    async with two_servers(sum_root, tmp_path, drain_after=3600.0) as (here, one, _):
        call = RawCall(one)
        await call.open("a")

        async def broken(_: Sequence[Checkpoint]) -> list[bool]:
            raise RuntimeError("a bug")

        here.server.stream_service._store.save = broken  # type: ignore[method-assign]
        await call.step(1)
        (stream,) = here.server.stream_service._streams
        assert stream.lease is not None
        here.server.stream_service.request_save(stream.lease)
        with pytest.raises(RuntimeError, match="checkpointer ended"):
            await here.server.wait()
        stopping = here.stop()
        assert (await call.read()).HasField("move")
        with pytest.raises(StopFailed):
            await stopping
