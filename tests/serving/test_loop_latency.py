"""Operations on thousands of streams do not block the event loop: other clients are served meanwhile."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from tests.calls import RawBlocks, raw_channel
from tests.loop_latency import measure_loop
from tests.servers import live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import TidegateError
from tidegate.rpc import predict_blocks
from tidegate.rpc.call import Call
from tidegate.rpc.open_calls import ENDED_AT_ONCE_MAX, OpenCalls
from tidegate.v1 import tidegate_pb2 as pb

STREAMS = 16_384
# The largest part of the work that one turn of the loop may do: work that is not split does most of it in one turn.
TURN_PART = 0.3


async def test_a_gateway_that_goes_away_does_not_block_others(sum_root: Path) -> None:
    """Its streams are released and parked in groups."""
    async with run_server(sum_root, live_max=STREAMS) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        await call.open(*[f"s{number}" for number in range(STREAMS)])
        async with measure_loop() as turns:
            call.call.cancel()
            await eventually(lambda: live(server) == 0, "parking")
        assert turns.longest < TURN_PART * turns.total


async def test_a_call_that_is_cancelled_during_its_release_releases_all(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may cancel a call twice: no stream may keep its slot because of that."""
    resting = asyncio.Event()

    class LongRest:
        """Yields until it is cancelled."""

        async def maybe_yield(self) -> None:
            """As in `TimeSlice`."""
            resting.set()
            await asyncio.Event().wait()

    async with run_server(sum_root, live_max=8) as server, raw_channel(server) as channel, asyncio.timeout(TIMEOUT_S):
        call = RawBlocks(channel)
        await call.open(*"abcdefgh")
        monkeypatch.setattr(predict_blocks, "TimeSlice", LongRest)
        (serving,) = server._servicer._calls
        await call.send(pb.PredictBlocksRequest())  # of no kind: that ends a call
        await resting.wait()
        assert live(server) > 0
        serving._task.cancel()
        await eventually(lambda: live(server) == 0, "parking")


async def test_asking_many_calls_to_end_does_not_block_others() -> None:
    """A server that stops asks some calls in each turn of the loop: each then writes to its client."""
    turn = 0
    asked: list[int] = []

    class Asked:
        """A call that records when it was asked."""

        def end(self, _: TidegateError) -> None:
            """As in `Call`."""
            asked.append(turn)

    calls = OpenCalls(live_max=1)
    calls._calls |= {cast(Call, Asked()) for _ in range(1000)}
    draining = asyncio.create_task(calls.drain())
    while not draining.done():
        turn += 1
        await asyncio.sleep(0)
    assert len(asked) == 1000
    assert max(Counter(asked).values()) <= ENDED_AT_ONCE_MAX
