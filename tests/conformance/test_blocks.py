"""Scenarios over `PredictBlocks`: they are played row by row, whatever blocks the client sends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import pack
from tests.timeouts import TIMEOUT_S
from tidegate.conformance.runner import serve_scenarios
from tidegate.v1 import tidegate_pb2 as pb

OWNER = "me"


class Caller:
    """A call of a client that a test controls."""

    def __init__(self, channel: grpc.aio.Channel, violations: "asyncio.Queue[list[str]]") -> None:
        self.violations = violations
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
        """Sends a block. Each row is a number and a value."""
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
        """Sends a block of timesteps whose values are their numbers."""
        await self.send([(step, step) for step in range(first, last + 1)], handle)

    async def close(self, handle: int = 1) -> None:
        """Sends a close."""
        await self._call.write(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=[handle])))

    async def half_close(self) -> None:
        """Ends the requests."""
        await self._call.done_writing()

    async def read(self, kind: str) -> Any:
        """Returns the next response, which must be of that kind."""
        response = await self._call.read()
        assert response is not grpc.aio.EOF, f"the call ended, expected {kind}"
        assert response.WhichOneof("kind") == kind, response
        return getattr(response, kind)

    async def end(self) -> tuple[str, str]:
        """Reads to the end. Returns the status."""
        try:
            while await self._call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return (await self._call.code()).name, await self._call.details()


@asynccontextmanager
async def playing(*names: str) -> AsyncIterator[Any]:
    """Serves scenarios. Yields a function that makes a call."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    violations: asyncio.Queue[list[str]] = asyncio.Queue()

    def tell(_: str, broken: Any) -> None:
        violations.put_nowait([one.rule for one in broken])

    serving = asyncio.create_task(serve_scenarios(names, "full", "127.0.0.1:0", ready.set_result, tell))
    async with asyncio.timeout(3 * TIMEOUT_S), grpc.aio.insecure_channel(await ready) as channel:
        yield lambda: Caller(channel, violations)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Caller]:
    """Yields a caller with an open stream."""
    async with playing(name) as call:
        caller = call()
        await caller.open(name)
        assert (await caller.read("opened")).next_steps == [1]
        yield caller


@pytest.mark.parametrize("rows", [1, 3, 8])
async def test_a_block_is_answered_when_its_rows_are(rows: int) -> None:
    """In columns, for any number of rows, and without a violation."""
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
        assert await caller.violations.get() == []


async def test_rows_after_a_refused_row_are_refused_too() -> None:
    """In its block at once, and in later blocks in their turn. The client sends them again with the numbers that moved up."""
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
        assert await caller.violations.get() == []


async def test_a_block_without_an_answer_may_be_sent_again() -> None:
    """The client sends its timesteps again. Applied ones are duplicates then, without a violation."""
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
        assert await caller.violations.get() == []


async def test_a_takeover_ends_the_stream_but_not_its_call() -> None:
    """What is in flight is refused for the same reason, and what comes later."""
    async with opened("taken-over") as caller:
        for step in (1, 2):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.send_plain(3, 3)
        ended = await caller.read("ended")
        assert (list(ended.handles), ended.error.reason) == ([1], pb.Error.REASON_TAKEN_OVER)
        for step in (4, 5):
            (row,) = (await caller.read("block")).errors
            assert row.error.reason == pb.Error.REASON_TAKEN_OVER
            await caller.send_plain(step, step)
        await caller.half_close()
        assert await caller.violations.get() == []


async def test_a_stream_may_be_opened_again_on_the_same_call() -> None:
    """After a close that was not durable, with a new handle."""
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
        assert await caller.violations.get() == []


async def test_a_timestep_after_its_close_is_a_violation() -> None:
    """Only one of the closed stream: the call may carry others."""
    async with opened("plain") as caller:
        for step in range(1, 21):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.close()
        await caller.send_plain(21, 21)
        await caller.half_close()
        assert await caller.violations.get() == ["half-close"]


async def test_an_open_after_a_move_is_a_violation() -> None:
    """After a Move nothing more may be sent on its call, not even an open."""
    async with opened("move") as caller:
        for step in (1, 2):
            await caller.send_plain(step, step)
            await caller.read("block")
        await caller.read("move")
        await caller.open("move", resume_from=3)
        await caller.end()
        assert "move" in await caller.violations.get()


async def test_an_unknown_handle_is_a_violation() -> None:
    """The whole block is refused, as the protocol requires."""
    async with opened("plain") as caller:
        await caller.send_plain(1, 1, handle=7)
        assert (await caller.read("block")).refused.action == pb.Error.ACTION_STREAM_LOST
        await caller.half_close()
        assert "open-first" in await caller.violations.get()


@pytest.mark.parametrize(("handles", "steps", "values"), [(0, 0, 0), (3, 8, 4), (4, 16, 4), (8, 16, 9)], ids=str)
async def test_columns_of_inconsistent_lengths_are_a_violation(handles: int, steps: int, values: int) -> None:
    """The whole block is refused. The numbers are the bytes of each column."""
    async with opened("plain") as caller:
        block = pb.Block(block=1, handles=bytes(handles), steps=bytes(steps), values=bytes(values))
        await caller.send_block(block)
        assert (await caller.read("block")).refused.field == "values"
        await caller.half_close()
        assert "same-values" in await caller.violations.get()


@pytest.mark.parametrize(
    ("names", "expected"), [(("plain", "drop"), "expected one"), (("nothing",), "expected the name of a scenario")]
)
async def test_an_open_names_one_scenario(names: tuple[str, ...], expected: str) -> None:
    """Any other open ends the call with a message."""
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
