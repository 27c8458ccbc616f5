"""One message delays nobody, however many rows of it are refused."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.calls import RawCall, block_request, ending_of, raw_channel
from tests.servers import run_server
from tests.timeouts import TIMEOUT_S
from tidegate.rpc.time_slice import SLICE_SECONDS, TimeSlice
from tidegate.v1 import tidegate_pb2 as pb

ROWS = 65_536  # the largest number in one message
# The longest time that the loop may be blocked: it took seconds before there were slices, about 20 ms now on a slow
# core.
PAUSE_MAX = 0.25

SendRequest = Callable[[pb.PredictBlocksRequest], Awaitable[pb.PredictBlocksResponse]]


class Pauses:
    """The longest time that the event loop has computed in one turn.

    It is measured in processor time: the load of other processes on this machine does not count.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Measures until cancelled."""
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            last = now


@asynccontextmanager
async def call_beside_a_neighbour(root: Path) -> AsyncIterator[SendRequest]:
    """A call that exchanges bytes, and decodes the answer after the measurement, while another stream sends timesteps."""
    async with run_server(root, batch_max=256) as server, raw_channel(server) as channel, raw_channel(server) as other:
        # Its answers stay bytes until the measurement is over: the decoding here is not the server's work.
        call = channel.stream_stream("/tidegate.v1.TidegateService/PredictBlocks")()
        neighbour = RawCall(other)
        await neighbour.open("neighbour")

        async def step() -> None:
            count = 0
            while True:
                count += 1
                answer = (await neighbour.step(1, step=count)).prediction
                assert np.frombuffer(answer.outputs[0], np.float32).item() == count

        async def send(request: pb.PredictBlocksRequest) -> pb.PredictBlocksResponse:
            data = request.SerializeToString()
            pauses = Pauses()
            watching = asyncio.create_task(pauses.watch())
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await call.write(data)
                    answer = await call.read()
            finally:
                watching.cancel()
            assert pauses.longest < PAUSE_MAX
            assert answer is not grpc.aio.EOF, await ending_of(call)
            assert not stepping.done(), stepping.exception()
            return pb.PredictBlocksResponse.FromString(answer)

        stepping = asyncio.create_task(step())
        try:
            yield send
        finally:
            call.cancel()
            stepping.cancel()
            await asyncio.gather(stepping, return_exceptions=True)


async def opened(send: SendRequest, *stream_ids: str) -> list[int]:
    """Handles of streams with those names."""
    return list((await send(pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=stream_ids)))).opened.handles)


@pytest.mark.parametrize(
    ("value", "step", "reason", "field"),
    [(1.0, 7, pb.Error.REASON_STEP_GAP, "step"), (np.inf, 0, pb.Error.REASON_NOT_FINITE, "values")],
)
async def test_a_block_whose_rows_are_all_refused_does_not_delay_others(
    sum_root: Path, value: float, step: int, reason: int, field: str
) -> None:
    """Each row gets its reason, its number and the expected one; the first ones also a message."""
    async with call_beside_a_neighbour(sum_root) as send:
        handles = np.resize(await opened(send, *(f"s{number}" for number in range(200))), ROWS)
        answer = (await send(block_request(handles, np.full((ROWS, 1), value), np.full(ROWS, step)))).block
    assert [part.row for part in answer.errors] == list(range(ROWS))
    assert {(part.error.reason, part.error.field, part.error.step) for part in answer.errors} == {(reason, field, step)}
    assert {part.error.next_step for part in answer.errors} == {1}
    assert all(part.error.message for part in answer.errors[:256])


async def test_handles_that_are_not_held_do_not_delay_others(sum_root: Path) -> None:
    """A close of as many streams as a message may name."""
    async with call_beside_a_neighbour(sum_root) as send:
        closed = (await send(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=range(1, ROWS + 1))))).closed
    assert sorted(part.row for part in closed.errors) == list(range(ROWS))
    assert {part.error.reason for part in closed.errors} == {pb.Error.REASON_INVALID_FIELD}


async def test_rows_of_closed_streams_do_not_delay_others(sum_root: Path) -> None:
    """A block of as many rows as a message may have."""
    async with call_beside_a_neighbour(sum_root) as send:
        handles = await opened(send, *(f"s{number}" for number in range(200)))
        await send(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles)))
        answer = (await send(block_request(np.resize(handles, ROWS), np.ones((ROWS, 1))))).block
    assert [part.row for part in answer.errors] == list(range(ROWS))


@pytest.mark.parametrize(
    ("stream_id", "existence", "reason"),
    [("a\n", 0, pb.Error.REASON_INVALID_FIELD), ("nobody", pb.EXISTENCE_MUST_EXIST, pb.Error.REASON_STREAM_NOT_FOUND)],
)
async def test_opens_that_are_refused_do_not_delay_others(
    sum_root: Path, stream_id: str, existence: pb.Existence, reason: int
) -> None:
    """As many as a message may have."""
    async with call_beside_a_neighbour(sum_root) as send:
        request = pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=[stream_id] * ROWS, existence=existence))
        answer = (await send(request)).opened
    assert sorted(part.row for part in answer.errors) == list(range(ROWS))
    assert {part.error.reason for part in answer.errors} == {reason}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.PredictBlocksRequest(close=pb.CloseStreams(handles=range(ROWS + 1))), "handles"),
        (pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=["a"] * (ROWS + 1))), "stream_ids"),
    ],
)
async def test_a_message_that_names_too_many_streams_ends_its_call(
    sum_root: Path, request_: pb.PredictBlocksRequest, field: str
) -> None:
    """As INVALID_ARGUMENT, with the allowed number."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = channel.stream_stream("/tidegate.v1.TidegateService/PredictBlocks")()
        await call.write(request_.SerializeToString())
        ending = await ending_of(call)
        assert (ending.code, ending.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
        assert f"got {ROWS + 1}, expected at most {ROWS}" in ending.message


async def test_tasks_that_share_slices_take_one_slice_a_turn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks there are, the loop has a turn after one slice."""
    now = 0.0
    monkeypatch.setattr("tidegate.rpc.time_slice.perf_counter", lambda: now)
    slices, turns, done = TimeSlice(), [0], 0

    async def work() -> None:
        nonlocal now, done
        for _ in range(5):
            now += SLICE_SECONDS / 2
            done += 1
            await slices.maybe_yield()

    async def count() -> None:
        while True:
            turns.append(done)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.gather(*(work() for _ in range(20)))
    counting.cancel()
    # In the first turn each of them starts. From then on a slice has room for two of these pieces of work.
    assert max(later - sooner for sooner, later in pairwise(turns[2:])) <= 2
