"""Scenarios over `PredictBlocks`: they are played row by row, however the client puts rows together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.run import judge_callers
from tests.support import TIMEOUT_S, pack

OWNER = "me"


class Caller:
    """A call of a client that does what a test wants."""

    def __init__(self, channel: grpc.aio.Channel, verdicts: "asyncio.Queue[list[str]]") -> None:
        self.verdicts = verdicts
        self._call = channel.stream_stream(
            "/tidegate.v1.TidegateService/PredictBlocks",
            pb.PredictBlocksRequest.SerializeToString,
            pb.PredictBlocksResponse.FromString,
        )()
        self._blocks = 0

    async def open(self, *names: str, resume_from: int = 0) -> None:
        """Sends an open."""
        ask = pb.OpenStreams(stream_ids=names, owner=OWNER, resume_from=[resume_from] * bool(resume_from))
        await self._call.write(pb.PredictBlocksRequest(open=ask))

    async def send(self, rows: Sequence[tuple[int, float]], handle: int = 1) -> None:
        """Sends a block of rows, number and value each."""
        self._blocks += 1
        steps, values = zip(*rows, strict=True)
        block = pb.Block(
            block=self._blocks,
            handles=np.full(len(rows), handle, "<u4").tobytes(),
            steps=np.array(steps, "<u8").tobytes(),
            values=pack(*values),
        )
        await self.send_block(block)

    async def send_block(self, block: pb.Block) -> None:
        """Sends a block as it is."""
        await self._call.write(pb.PredictBlocksRequest(block=block))

    async def send_plain(self, first: int, last: int, handle: int = 1) -> None:
        """Sends a block of timesteps that have their numbers for values."""
        await self.send([(step, step) for step in range(first, last + 1)], handle)

    async def close(self, handle: int = 1) -> None:
        """Sends a close."""
        await self._call.write(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=[handle])))

    async def half_close(self) -> None:
        """Sends nothing more."""
        await self._call.done_writing()

    async def read(self, kind: str) -> Any:
        """The next response, which is of that kind."""
        response = await self._call.read()
        assert response is not grpc.aio.EOF, f"the call ended, expected {kind}"
        assert response.WhichOneof("kind") == kind, response
        return getattr(response, kind)

    async def end(self) -> tuple[str, str]:
        """Reads to the end; how the call ended."""
        try:
            while await self._call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return (await self._call.code()).name, await self._call.details()


@asynccontextmanager
async def playing(*names: str) -> AsyncIterator[Any]:
    """Serves scenarios; gives a way to call."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    verdicts: asyncio.Queue[list[str]] = asyncio.Queue()

    def tell(_: str, broken: Any) -> None:
        verdicts.put_nowait([one.rule for one in broken])

    serving = asyncio.create_task(judge_callers(names, "full", "127.0.0.1:0", ready.set_result, tell))
    async with asyncio.timeout(3 * TIMEOUT_S), grpc.aio.insecure_channel(await ready) as channel:
        yield lambda: Caller(channel, verdicts)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Caller]:
    """A caller whose stream is open."""
    async with playing(name) as call:
        caller = call()
        await caller.open(name)
        assert (await caller.read("opened")).next_steps == [1]
        yield caller


@pytest.mark.parametrize("rows", [1, 3, 8])
async def test_a_block_is_answered_when_its_rows_are(rows: int) -> None:
    """However many there are, in columns, and the scenario is kept."""
    async with opened("plain") as caller:
        for first in range(1, 21, rows):
            last = min(first + rows - 1, 20)
            await caller.send_plain(first, last)
            answer = await caller.read("block")
            assert np.frombuffer(answer.steps, "<u8").tolist() == list(range(first, last + 1))
            sums = [step * (step + 1) / 2 for step in range(first, last + 1)]
            assert [np.frombuffer(column, "<f4").tolist() for column in answer.outputs] == [sums]
        await caller.close()
        assert list((await caller.read("closed")).steps) == [20]
        await caller.half_close()
        assert await caller.end() == ("OK", "")
        assert await caller.verdicts.get() == []


async def test_what_stands_behind_a_refused_row_is_refused_too() -> None:
    """In its block at once, and in those in flight when their turn comes; the client sends it again under the numbers that moved up."""
    async with opened("drop") as caller:
        await caller.send_plain(1, 4)
        await caller.send_plain(5, 8)
        first = await caller.read("block")
        reasons = [(error.row, pb.Error.Reason.Name(error.error.reason)) for error in first.errors]
        assert reasons == [(2, "REASON_NOT_FINITE"), (3, "REASON_STEP_GAP")]
        await caller.send([(step, step + 1) for step in range(3, 7)])
        second = await caller.read("block")
        assert [error.row for error in second.errors] == [0, 1, 2, 3]
        assert not (await caller.read("block")).errors
        for step in range(7, 20):
            await caller.send([(step, step + 1)])
            await caller.read("block")
        await caller.close()
        await caller.read("closed")
        await caller.half_close()
        assert await caller.verdicts.get() == []


async def test_a_block_whose_call_ends_before_all_is_answered_told_nothing() -> None:
    """Its timesteps are sent again, also those that were applied; they are duplicates then, and the client is not wrong."""
    async with playing("answer-lost") as call:
        caller = call()
        await caller.open("answer-lost")
        await caller.read("opened")
        await caller.send_plain(1, 4)
        assert (await caller.end())[0] == "UNAVAILABLE"
        caller = call()
        await caller.open("answer-lost", resume_from=1)
        assert (await caller.read("opened")).next_steps == [4]
        await caller.send_plain(1, 4)
        answer = await caller.read("block")
        assert (list(answer.duplicate_rows), list(answer.forgotten_rows)) == ([0, 1], [2])
        for step in range(5, 21):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.close()
        await caller.read("closed")
        await caller.half_close()
        assert await caller.verdicts.get() == []


async def test_a_stream_that_is_taken_over_is_told_and_its_call_goes_on() -> None:
    """What was in flight is refused for the same reason."""
    async with opened("taken-over") as caller:
        for step in (1, 2):
            await caller.send_plain(step, step)
            await caller.read("block")
        ended = await caller.read("ended")
        assert (list(ended.handles), ended.error.reason) == ([1], pb.Error.REASON_TAKEN_OVER)
        await caller.send_plain(3, 3)
        (row,) = (await caller.read("block")).errors
        assert row.error.reason == pb.Error.REASON_TAKEN_OVER
        await caller.half_close()
        assert await caller.verdicts.get() == []


async def test_a_stream_may_be_opened_again_on_the_same_call() -> None:
    """After a close that did not store all, with a handle of its own."""
    async with opened("close-before-all-is-stored") as caller:
        for step in range(1, 21):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.close()
        assert list((await caller.read("closed")).durable_steps) == [19]
        await caller.open("close-before-all-is-stored", resume_from=20)
        again = await caller.read("opened")
        assert (list(again.handles), list(again.next_steps)) == ([2], [21])
        await caller.close(handle=2)
        assert list((await caller.read("closed")).durable_steps) == [20]
        await caller.half_close()
        assert await caller.verdicts.get() == []


async def test_a_timestep_behind_its_close_is_caught() -> None:
    """The stream's, not what else the call may carry."""
    async with opened("plain") as caller:
        for step in range(1, 21):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.close()
        await caller.send_plain(21, 21)
        await caller.half_close()
        assert await caller.verdicts.get() == ["half-close"]


async def test_an_open_on_a_call_that_is_to_be_left_is_caught() -> None:
    """After a Move nothing more is sent on its call, an open neither."""
    async with opened("move") as caller:
        for step in (1, 2):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.read("move")
        await caller.open("move", resume_from=3)
        await caller.end()
        assert "move" in await caller.verdicts.get()


async def test_a_handle_that_was_never_given_is_caught() -> None:
    """The block is refused as a whole, as the protocol says."""
    async with opened("plain") as caller:
        await caller.send_plain(1, 1, handle=7)
        assert (await caller.read("block")).refused.action == pb.Error.ACTION_STREAM_LOST
        await caller.half_close()
        assert "open-first" in await caller.verdicts.get()


@pytest.mark.parametrize(("handles", "steps", "values"), [(0, 0, 0), (3, 8, 4), (4, 16, 4), (8, 16, 9)], ids=str)
async def test_columns_that_do_not_fit_each_other_are_caught(handles: int, steps: int, values: int) -> None:
    """The block is refused as a whole; each column has so many bytes."""
    async with opened("plain") as caller:
        block = pb.Block(block=1, handles=bytes(handles), steps=bytes(steps), values=bytes(values))
        await caller.send_block(block)
        assert (await caller.read("block")).refused.field == "values"
        await caller.half_close()
        assert "same-values" in await caller.verdicts.get()


@pytest.mark.parametrize(
    ("names", "expected"), [(("plain", "drop"), "expected one"), (("nothing",), "expected the name of a scenario")]
)
async def test_an_open_is_of_one_stream_that_is_played(names: tuple[str, ...], expected: str) -> None:
    """Another ends the call with a sentence."""
    async with playing("plain") as call:
        caller = call()
        await caller.open(*names)
        code, details = await caller.end()
        assert code == "INVALID_ARGUMENT"
        assert expected in details


async def test_another_scenario_needs_another_call() -> None:
    """One stream a call is played."""
    async with playing("plain", "drop") as call:
        caller = call()
        await caller.open("plain")
        await caller.read("opened")
        await caller.open("drop")
        assert "another scenario" in (await caller.end())[1]
