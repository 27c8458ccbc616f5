"""One connection leaves room for others, whatever calls it makes."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, raw_channel
from tests.servers import live, park_after, run_server
from tests.timeouts import eventually
from tidegate.core.handle_table import HandleTable
from tidegate.rpc import stream_quota
from tidegate.v1 import tidegate_pb2 as pb

Reason = pb.Error.Reason


async def refused(channel: grpc.aio.Channel, stream_id: str) -> str:
    """The error when a stream cannot be opened on a call."""
    call = RawCall(channel)
    await call.send(pb.PredictRequest(open=pb.Open(stream_id=stream_id)))
    ending = await call.ending()
    assert ending.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ending.retry_s
    return ending.message


async def test_a_call_of_blocks_leaves_room(sum_root: Path) -> None:
    """It gets seven of eight slots, the refusal is in the row's error, and another connection gets the eighth."""
    async with run_server(sum_root, live_max=8) as server, raw_channel(server) as mine, raw_channel(server) as theirs:
        greedy = RawBlocks(mine)
        opened = await greedy.open(*(f"s{number}" for number in range(10)))
        assert len(opened.errors) == 3
        for part in opened.errors:
            assert part.error.reason == Reason.REASON_TOO_MANY_STREAMS
            assert "the connection has reached its limit of 7 live streams" in part.error.message
            assert part.error.retry_after.ToMilliseconds()
        assert (await RawCall(theirs).open("theirs")).next_step == 1
        await greedy.close(opened.handles[0])
        assert (await greedy.open("again")).handles[0] > 0


async def test_streams_that_wake_leave_room(sum_root: Path) -> None:
    """A call may hold more streams than may be live. Their timesteps are refused by row until others are parked."""
    settings = {"live_max": 8, "park_after": 0.2, "checkpoint_every": 0.02}
    async with run_server(sum_root, **settings) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open(*(f"s{number}" for number in range(7)))).handles)
        await call.block(handles, [[1]] * 7)
        await eventually(lambda: live(server) == 0, "parking")
        handles += (await call.open("t0", "t1", "t2")).handles
        await eventually(lambda: live(server) == 0, "parking")
        park_after(server, 3600)
        answer = await call.block(handles, [[1]] * 10)
        assert {part.error.reason for part in answer.errors} == {Reason.REASON_TOO_MANY_STREAMS}
        assert len(answer.errors) == 3
        assert np.count_nonzero(np.frombuffer(answer.outputs[0], "<f4")) == 7


@pytest.mark.parametrize("blocks", [0, 1, 2])
async def test_the_calls_of_a_connection_count_together(sum_root: Path, blocks: int) -> None:
    """Streams of both kinds of calls count. Those of ended calls do not."""
    async with run_server(sum_root, live_max=8) as server, raw_channel(server) as mine, raw_channel(server) as theirs:
        many = [RawBlocks(mine) for _ in range(blocks)]
        for number, call in enumerate(many):
            assert all((await call.open(f"{number} a", f"{number} b")).handles)
        single = [RawCall(mine) for _ in range(7 - 2 * blocks)]
        for number, one in enumerate(single):
            await one.open(f"s{number}")
        assert "the connection has reached its limit of 7 live streams" in await refused(mine, "too many")
        assert (await RawCall(theirs).open("theirs")).next_step == 1
        single[0].call.cancel()
        await eventually(lambda: live(server) == 7, "parking")
        assert (await RawCall(mine).open("again")).next_step == 1


async def test_streams_at_rest_leave_room(sum_root: Path) -> None:
    """A connection, such as a proxy's, may have any number of calls with silent streams. Waking one needs room."""
    settings = {"live_max": 8, "park_after": 0.2, "checkpoint_every": 0.02}
    async with run_server(sum_root, **settings) as server, raw_channel(server) as channel:
        single = [RawCall(channel) for _ in range(14)]
        for number, one in enumerate(single):
            await one.open(f"s{number}")
            await one.step(1)
            if number == 6:
                await eventually(lambda: live(server) == 0, "parking")
                park_after(server, 3600)
        answers = [await one.step(1) for one in single[7:]]
        assert all(answer.prediction.step == 2 for answer in answers)
        refusal_error = (await single[0].step(1, step=2)).error
        assert refusal_error.reason == Reason.REASON_TOO_MANY_STREAMS
        assert "the connection has reached its limit of 7" in refusal_error.message
        park_after(server, 0.2)
        await eventually(lambda: live(server) == 0, "parking")
        assert (await single[0].step(1, step=2)).prediction.step == 2


async def test_room_is_counted_now_and_then(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks again and again while there is no room does not make the server count more often."""
    monkeypatch.setattr(stream_quota, "RECOUNT_FACTOR", 1e9)
    async with run_server(sum_root, live_max=8) as server, raw_channel(server) as channel:
        greedy = RawBlocks(channel)
        await greedy.open(*(f"s{number}" for number in range(7)))
        counted = 0
        inner = HandleTable.live_count

        def live_of(*arguments: Any) -> int:
            nonlocal counted
            counted += 1
            return inner(*arguments)

        monkeypatch.setattr(HandleTable, "live_count", live_of)
        assert len((await greedy.open(*(f"t{number}" for number in range(50)))).errors) == 50
        assert counted <= 1


async def test_a_connection_may_be_given_more(sum_root: Path) -> None:
    """A gateway for all streams may have all slots."""
    async with run_server(sum_root, live_max=8, peer_live_max=8) as server, raw_channel(server) as channel:
        assert all((await RawBlocks(channel).open(*(f"s{number}" for number in range(8)))).handles)


async def test_nothing_is_kept_of_a_connection_that_has_no_calls(sum_root: Path) -> None:
    """Connections come and go by the thousand."""
    async with run_server(sum_root) as server:
        async with raw_channel(server) as channel:
            await RawCall(channel).open("a")
            assert len(server._servicer._calls._quotas) == 1
        await eventually(lambda: not len(server._servicer._calls._quotas), "forgetting")
