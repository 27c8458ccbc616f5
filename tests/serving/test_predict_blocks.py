"""`PredictBlocks` with a real server: every promise of `Predict`, for each row."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, block_request, raw_channel, timestep
from tests.engines import Gate, key
from tests.graphs import inverse, lstm, picky, running_sum, wide, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import address_of, batcher_of, live, park_after, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client
from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import STEP_MAX
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import Moved
from tidegate.rpc import columns
from tidegate.rpc import predict_blocks as blocks_module
from tidegate.rpc.predict_blocks import PredictBlocksCall
from tidegate.runtime import batcher as batcher_module
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

Reason = pb.Error.Reason


def sums(answer: pb.PredictedBlock) -> list[float]:
    """The first output of the toy model."""
    return np.frombuffer(answer.outputs[0], "<f4").tolist()


def numbers(column: bytes) -> list[int]:
    """A column of steps."""
    return np.frombuffer(column, "<u8").tolist()


def errors(message: Any) -> dict[int, pb.Error]:
    """Row errors by row."""
    return {part.row: part.error for part in message.errors}


@pytest.fixture
def lstm_root(tmp_path: Path) -> Path:
    """A folder with an LSTM."""
    return write_model(tmp_path, lstm())


async def test_one_message_opens_many_streams(sum_root: Path) -> None:
    """In columns, with handles from 1, the model once, and assigned ids where none were given."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        opened = await call.open("a", "", "c")
        assert sorted(opened.handles) == [1, 2, 3]
        assert opened.stream_ids[0] == "a"
        assert len(opened.stream_ids[1]) > 20
        assert list(opened.kinds) == [pb.Opened.KIND_NEW] * 3
        assert (list(opened.next_steps), list(opened.epochs)) == ([1, 1, 1], [1, 1, 1])
        assert (opened.model.name, opened.answers_remembered) == ("toy", 32)


async def test_a_block_gives_the_bits_that_each_stream_gets_alone(lstm_root: Path) -> None:
    """A hundred streams, with missing values, against bare onnxruntime."""
    count, steps = 100, 12
    rows = np.stack([sensor_rows(steps, seed=number, missing=0.1) for number in range(count)])
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        opened = await call.open(*(f"s{number}" for number in range(count)))
        outputs = opened.model.outputs
        answers = [await call.block(opened.handles, rows[:, step], [step + 1] * count) for step in range(steps)]
    got = [
        np.concatenate([np.frombuffer(answer.outputs[place], "<f4").reshape(count, -1) for answer in answers], axis=1)
        for place in range(len(outputs))
    ]
    for number in range(count):
        theirs = replay(lstm(), rows[number])
        for place, output in enumerate(outputs):
            assert got[place][number].tobytes() == b"".join(part[output.name].tobytes() for part in theirs)


@pytest.mark.parametrize("opened", [{}, {"durability": pb.DURABILITY_SYNC}], ids=["", "sync"])
@pytest.mark.parametrize("model", [running_sum, picky, inverse], ids=lambda make: make.__name__)
async def test_a_block_of_one_row_is_answered_as_by_the_way_of_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, opened: dict[str, Any]
) -> None:
    """Byte for byte, with any error, and counted alike: without protobuf, by protobuf, and in columns."""
    story = [  # values, number
        (1, 1), (2, 0), (3, 3), (0, 4), (0, 0), (0, 4), (99, 5), (99, 0), (np.inf, 5), (np.nan, 0), (1, 7), (1, 2), (3, 2),
        (1, STEP_MAX), (1, STEP_MAX + 1), (2, 0), (2, 0),
    ]  # fmt: skip
    responses, counted = [], []
    write_model(tmp_path, model())
    for shorter_way in (None, (blocks_module, "read_single_row"), (columns, "decode_single_row")):
        if shorter_way is not None:
            monkeypatch.setattr(*shorter_way, lambda *_: None)
        async with run_server(tmp_path, checkpoint_every=0.05) as server, raw_channel(server) as channel:
            call = RawBlocks(channel)
            (handle,) = (await call.open("a", **opened)).handles
            for place, (value, step) in enumerate(story):
                answer = await call.block([handle], [[value]], [step], 200 * place)
                if not opened:
                    answer.durable_steps = b""  # it becomes durable at any time
                responses.append(answer.SerializeToString(deterministic=True))
            responses.append((await call.block([handle], [[1, 2]], [0])).SerializeToString(deterministic=True))
            stream = server.stream_service._streams.find(key("a"))
            assert stream is not None
            responses.append(str(stream.step).encode())
            counted.append(dict(batcher_of(server).metrics.steps))
    part = len(responses) // 3
    assert responses[:part] == responses[part : 2 * part] == responses[2 * part :]
    assert counted[0] == counted[1] == counted[2]


async def test_blocks_of_one_row_are_batched_with_the_timesteps_of_other_calls(sum_root: Path) -> None:
    """A client that sends single rows costs as much as one with a call for its stream."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        first, second, single = RawBlocks(channel), RawBlocks(channel), RawCall(channel)
        a, b = list((await first.open("a")).handles), list((await second.open("b")).handles)
        await single.open("c")
        gate, batcher = Gate(batcher_of(server)), batcher_of(server)
        await single.send(timestep(1))
        await gate.entered()
        await first.send(block_request(a, [[2]]))
        await second.send(block_request(b, [[3]]))
        await eventually(lambda: len(batcher._queue) == 2, "queueing")
        gate.open()
        assert sums((await first.read()).block) == [2]
        assert sums((await second.read()).block) == [3]
        assert gate.held == 2
        assert batcher.metrics.batch_size.sum == 3


async def test_a_take_over_while_a_row_waits_is_reported_in_the_row(sum_root: Path) -> None:
    """Nothing of it was applied, and the call continues."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call, other, single = RawBlocks(channel), RawCall(channel), RawCall(channel)
        handles = list((await call.open("a", "b")).handles)
        await single.open("c")
        gate, batcher = Gate(batcher_of(server)), batcher_of(server)
        await single.send(timestep(1))
        await gate.entered()
        await call.send(block_request(handles[:1], [[2]]))
        await eventually(lambda: len(batcher._queue) == 1, "queueing")
        taking = asyncio.create_task(other.open("a"))
        await eventually(lambda: len(batcher._deferred) == 1, "taking over")
        gate.open()
        await taking
        while (answer := await call.read()).WhichOneof("kind") != "block":
            assert answer.WhichOneof("kind") == "ended"
        assert errors(answer.block)[0].reason == Reason.REASON_TAKEN_OVER
        assert sums(await call.block(handles[1:], [[5]])) == [5]
        assert (await other.step(1)).prediction.step == 1


async def test_a_client_that_sends_a_row_at_a_time_finds_room_for_more(sum_root: Path) -> None:
    """When its buffer is half full, the stream is stored at once and the client is responses."""
    async with run_server(sum_root, checkpoint_every=60.0) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", kept_max=4)).handles)
        await call.block(handles, [[1]])
        await call.block(handles, [[1]])
        responses = (await call.read()).durable
        assert (list(np.frombuffer(responses.handles, "<u4")), numbers(responses.durable_steps)) == (handles, [2])
        assert numbers((await call.block(handles, [[1]])).durable_steps) == [2]


async def test_a_stream_catches_up_within_a_block(lstm_root: Path) -> None:
    """Many timesteps of one stream, in order, give the same bits as one at a time."""
    rows = sensor_rows(50, seed=3, missing=0.1)
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        (handle,) = (await call.open("late")).handles
        answer = await call.block([handle] * 50, rows)
        name = (await RawCall(channel).open()).model.outputs[0].name
    assert numbers(answer.steps) == list(range(1, 51))
    assert answer.outputs[0] == b"".join(part[name].tobytes() for part in replay(lstm(), rows))


async def test_a_stream_moves_between_blocks_and_single_calls(lstm_root: Path) -> None:
    """One history, whichever calls its timesteps used."""
    rows = sensor_rows(30, seed=5)
    theirs = replay(lstm(), rows)
    async with run_server(lstm_root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        for first in range(0, 30, 10):
            call = RawBlocks(channel)
            (handle,) = (await call.open("both")).handles
            await call.block([handle] * 5, rows[first : first + 5])
            await call.close(handle)
            async with client.open("both") as stream:
                assert stream.next_step == first + 6
                for step in range(first + 5, first + 10):
                    assert same_bits(await stream.step(rows[step]), theirs[step])


async def test_repeats_and_gaps_are_reported_by_row(sum_root: Path) -> None:
    """A duplicate is answered from memory, a gap gets the expected number, and the rest runs."""
    async with run_server(sum_root, answers_remembered=2) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b", "c", "d")).handles)
        for value in (1, 2, 3):
            await call.block(handles, [[value]] * 4)
        answer = await call.block(handles, [[3], [9], [9], [9]], [3, 1, 7, 4], number=77)
        assert answer.block == 77
        assert numbers(answer.steps) == [3, 1, 7, 4]
        assert sums(answer) == [6, 0, 0, 15]
        assert (list(answer.duplicate_rows), list(answer.forgotten_rows)) == ([0], [1])
        (gap,) = answer.errors
        assert (gap.row, gap.error.reason, gap.error.step, gap.error.next_step) == (2, Reason.REASON_STEP_GAP, 7, 4)


async def test_a_bad_row_leaves_the_others_alone(sum_root: Path) -> None:
    """Its stream continues with the next good timestep."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        answer = await call.block(handles, [[np.inf], [2]])
        assert sums(answer) == [0, 2]
        assert errors(answer)[0].reason == Reason.REASON_NOT_FINITE
        assert "feature 'x' is inf" in errors(answer)[0].message
        assert numbers((await call.block(handles, [[1], [1]])).steps) == [1, 2]


BAD_BLOCKS = {
    "torn handles": (pb.Block(handles=b"\x01\x00\x00"), "handles: got 3 bytes, expected 4 a row"),
    "no rows": (pb.Block(), "handles: got none"),
    "unknown handle": (block_request([9], [[1]]).block, "handles: got 9, expected 1 to 1"),
    "too few steps": (
        pb.Block(handles=b"\x01\x00\x00\x00", steps=b"\x00", values=b"\x00" * 4),
        "steps: got 1 bytes, expected 8",
    ),
    "a number too high": (block_request([1], [[1]], [2**63]).block, "steps: got 9223372036854775808, expected at most"),
    "too few values": (block_request([1], [[]]).block, "values: got 0 bytes, expected 4"),
    "too many rows": (
        pb.Block(handles=np.ones(65_537, "<u4").tobytes()),
        "handles: got 65537 rows, expected at most 65536",
    ),
}


@pytest.mark.parametrize("kind", BAD_BLOCKS)
async def test_a_block_that_makes_no_sense_is_refused_as_a_whole(sum_root: Path, kind: str) -> None:
    """With one error that names the field. The call continues and nothing was applied."""
    block, words = BAD_BLOCKS[kind]
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        await call.open("a")
        block.block = 5
        refused = (await call.ask(pb.PredictBlocksRequest(block=block))).block
        assert (refused.block, refused.refused.reason, refused.steps) == (5, Reason.REASON_INVALID_FIELD, b"")
        assert words in refused.refused.message
        assert sums(await call.block([1], [[4]])) == [4]


async def test_streams_of_different_models_do_not_share_a_block(tmp_path: Path) -> None:
    """They share a call."""
    write_model(tmp_path, running_sum(), "one")
    write_model(tmp_path, running_sum(), "two")
    async with run_server(tmp_path) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        (one,) = (await call.open("a", model="one")).handles
        (two,) = (await call.open("b", model="two")).handles
        refused = (await call.block([one, two], [[1], [1]])).refused
        assert "got streams of one/1 and two/1, expected one model in a block" in refused.message
        assert sums(await call.block([one], [[1]])) == [1]
        assert sums(await call.block([two], [[5]])) == [5]


async def test_a_take_over_takes_one_stream_from_the_call(sum_root: Path) -> None:
    """The call gets a notification, the row an error, and the other streams continue."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, raw_channel(server) as other:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        await call.block(handles, [[1], [1]])
        assert (await RawCall(other).open("a")).kind == pb.Opened.KIND_TAKEN_OVER
        while (responses := await call.read()).WhichOneof("kind") != "ended":
            pass
        assert (list(responses.ended.handles), responses.ended.error.reason) == ([handles[0]], Reason.REASON_TAKEN_OVER)
        answer = await call.block(handles, [[5], [5]])
        assert sums(answer) == [0, 6]
        assert {row: error.reason for row, error in errors(answer).items()} == {0: Reason.REASON_TAKEN_OVER}


async def test_rows_of_streams_that_have_ended_cost_no_waking(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway may send them for as long as it likes."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b", "c")).handles)
        await call.close(handles[0])
        await RawCall(channel).open("b")
        begun: list[asyncio.TaskGroup] = []
        monkeypatch.setattr(asyncio.TaskGroup, "create_task", lambda group, _: begun.append(group))
        answer = await call.block(handles, [[1]] * 3)
        assert {row: error.reason for row, error in errors(answer).items()} == {
            0: Reason.REASON_INVALID_FIELD,
            1: Reason.REASON_TAKEN_OVER,
        }
        assert sums(answer)[2] == 1
        assert not begun
        monkeypatch.undo()


async def test_a_stream_that_is_opened_twice_belongs_to_the_later_handle(sum_root: Path) -> None:
    """Within one message too."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "a")).handles)
        answer = await call.block(handles, [[1], [1]])
        assert [error.reason for error in errors(answer).values()] == [Reason.REASON_TAKEN_OVER]
        assert sums(answer)[handles.index(max(handles))] == 1


async def test_a_deleted_stream_ends_alone(sum_root: Path) -> None:
    """By any client."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        await call.block(handles, [[1], [1]])
        await client.delete_stream("b")
        answer = await call.block(handles, [[1], [1]])
        assert {row: error.reason for row, error in errors(answer).items()} == {1: Reason.REASON_STREAM_NOT_FOUND}


async def test_silent_streams_of_a_call_park_and_wake(sum_root: Path) -> None:
    """They use no memory while they are silent. Their handles stay valid."""
    async with run_server(sum_root, park_after=0.05, checkpoint_every=0.02) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open(*"abc")).handles)
        await call.block(handles, [[1], [2], [3]])
        await eventually(lambda: live(server) == 0, "parking")
        park_after(server, 3600)
        answer = await call.block(handles[:2], [[10], [10]])
        assert (sums(answer), numbers(answer.steps)) == ([11, 12], [2, 2])
        assert live(server) == 2


async def test_streams_that_are_parked_while_others_wake_are_woken_again(sum_root: Path) -> None:
    """A block wakes all of its streams, or the row's error says to retry. The call continues."""
    async with run_server(sum_root, park_after=3600, checkpoint_every=0.02) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        await call.block(handles, [[1], [1]])
        keeper = server.stream_service
        streams = [keeper._streams.find(key(name)) for name in "ab"]
        await eventually(lambda: not keeper.checkpointer.unsaved_seconds(), "storing")
        for stream in streams:
            assert stream is not None
            keeper._streams.park(stream)
        wake, tired = keeper.wake, [2]

        async def wake_and_doze(lease: Lease) -> Moved:
            moved = await wake(lease)
            if lease.stream is streams[0] and tired[0]:
                tired[0] -= 1
                keeper._streams.park(lease.stream)
            return moved

        keeper.wake = wake_and_doze  # type: ignore[method-assign]
        assert sums(await call.block(handles, [[1], [1]], [2, 2])) == [2, 2]
        assert tired == [0]
        tired[0] = 3
        await eventually(lambda: not keeper.checkpointer.unsaved_seconds(), "storing")
        assert streams[0] is not None
        keeper._streams.park(streams[0])
        answer = await call.block(handles, [[1], [1]], [3, 3])
        assert sums(answer) == [0, 3]
        assert errors(answer)[0].reason == Reason.REASON_OVERLOADED
        assert errors(answer)[0].retry_after.ToMilliseconds() > 0
        assert sums(await call.block(handles[:1], [[1]], [3])) == [3]


async def test_a_row_that_cannot_wake_is_refused_alone(sum_root: Path) -> None:
    """No slot is free: it may be sent again later."""
    settings = {"park_after": 0.2, "checkpoint_every": 0.02, "live_max": 2}
    async with run_server(sum_root, **settings) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        await call.block(handles, [[1], [1]])
        await eventually(lambda: live(server) == 0, "parking")
        park_after(server, 3600)
        await RawCall(channel).open("c")
        answer = await call.block(handles, [[1], [1]])
        ((row, error),) = errors(answer).items()
        assert (error.reason, error.step, error.next_step) == (Reason.REASON_TOO_MANY_STREAMS, 0, 0)
        assert error.retry_after.ToMilliseconds() > 0
        assert sums(answer)[1 - row] == 2


async def test_durable_steps_are_reported_by_row_and_when_the_call_is_idle(sum_root: Path) -> None:
    """In the next answer, or in a notification; never before it is durable."""
    async with run_server(sum_root, checkpoint_every=0.05) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        assert numbers((await call.block(handles, [[1], [1]])).durable_steps) == [0, 0]
        responses = await call.read()
        assert sorted(np.frombuffer(responses.durable.handles, "<u4").tolist()) == sorted(handles)
        assert numbers(responses.durable.durable_steps) == [1, 1]
        assert numbers((await call.block(handles, [[1], [1]])).durable_steps) == [1, 1]


async def test_sync_answers_wait_until_they_are_stored(sum_root: Path) -> None:
    """For the streams that were opened with SYNC."""
    async with run_server(sum_root, checkpoint_every=0.05) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b", durability=pb.DURABILITY_SYNC)).handles)
        for step in (1, 2, 3):
            assert numbers((await call.block(handles, [[1], [1]])).durable_steps) == [step, step]


async def test_a_sync_answer_that_cannot_be_stored_is_held_back(sum_root: Path) -> None:
    """The error of its row says why, and that it was applied. Sent again it is a duplicate."""
    settings = {"checkpoint_every": 0.02, "lag_max": 0.1, "ready_lag": 0.1}
    async with run_server(sum_root, **settings) as server, raw_channel(server) as channel:
        store = server.stream_service._store
        save = store.save

        async def broken(_: object) -> list[bool]:
            raise StoreUnavailable("test", "is broken")

        call = RawBlocks(channel)
        (handle,) = (await call.open("a", durability=pb.DURABILITY_SYNC)).handles
        store.save = broken  # type: ignore[method-assign]
        answer = await call.block([handle], [[5]], [1])
        assert sums(answer) == [0]
        assert (errors(answer)[0].reason, errors(answer)[0].next_step) == (Reason.REASON_STORE_UNAVAILABLE, 2)
        store.save = save  # type: ignore[method-assign]
        await eventually(lambda: not server.stream_service.checkpointer.unsaved_seconds(), "storing")
        await eventually(lambda: batcher_of(server).refuse_with is None, "the all-clear")
        again = await call.block([handle], [[5]], [1])
        assert (sums(again), list(again.duplicate_rows)) == ([5], [0])


async def test_closing_stores_and_forgetting_drops(sum_root: Path) -> None:
    """In columns. The handle is invalid afterwards."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        call = RawBlocks(channel)
        a, b, c = (await call.open("a", "b", "c")).handles
        await call.block([a, b, c], [[1]] * 3)
        closed = await call.close(a, 99)
        assert (list(closed.steps), list(closed.durable_steps)) == ([1, 0], [1, 0])
        assert errors(closed)[1].reason == Reason.REASON_INVALID_FIELD
        assert list((await call.close(b, forget=True)).steps) == [1]
        answer = await call.block([a, b, c], [[1]] * 3)
        assert {row: error.field for row, error in errors(answer).items()} == {0: "handles", 1: "handles"}
        assert sorted([info.stream_id async for info in client.streams()]) == ["a", "c"]


async def test_half_close_ends_the_call_when_everything_is_stored(sum_root: Path) -> None:
    """The next open may reach another server, which must find what was answered."""
    async with run_server(sum_root, checkpoint_every=0.2) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = (await call.open("a", "b")).handles
        await call.block(handles, [[1], [1]])
        await call.call.done_writing()
        assert (await call.ending()).code is grpc.StatusCode.OK
        assert not any(served.slots.unsaved().size for served in server.repository)


async def test_a_client_that_vanishes_parks_its_streams(sum_root: Path) -> None:
    """As many as there are."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = (await call.open(*(f"s{number}" for number in range(300)))).handles
        await call.block(handles, np.ones((300, 1)))
        call.call.cancel()
        await eventually(lambda: live(server) == 0, "parking")
        again = await RawBlocks(channel).open(*(f"s{number}" for number in range(300)))
        assert set(again.next_steps) == {2}


async def test_streams_that_cannot_be_opened_are_reported_by_row(sum_root: Path) -> None:
    """The others are open."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        await call.open("a")
        opened = await call.open("a", "b", "bad\n", existence=pb.EXISTENCE_MUST_EXIST)
        assert opened.handles[0] > 0
        assert (opened.handles[1], opened.handles[2]) == (0, 0)
        assert {row: error.reason for row, error in errors(opened).items()} == {
            1: Reason.REASON_STREAM_NOT_FOUND,
            2: Reason.REASON_INVALID_FIELD,
        }


async def test_lost_state_is_reported_by_row(sum_root: Path) -> None:
    """Each stream continues from its own timestep."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        opened = await RawBlocks(channel).open("a", "b", resume_from=[1, 8])
        assert {row: error.reason for row, error in errors(opened).items()} == {1: Reason.REASON_STATE_LOST}


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.PredictBlocksRequest(), grpc.StatusCode.INVALID_ARGUMENT, "kind: got a request without one"),
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "request: got bytes that are not a PredictBlocksRequest"),
        (
            pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=["a"], resume_from=[1, 2])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "resume_from: got 2, expected none or 1",
        ),
        (
            pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=[""] * 65_537)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "stream_ids: got 65537, expected at most 65536",
        ),
        (
            pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=["a"], model="nope")),
            grpc.StatusCode.NOT_FOUND,
            "model: 'nope' is not served",
        ),
    ],
    ids=["no kind", "no request", "resume_from", "too many", "no model"],
)
async def test_what_breaks_the_protocol_ends_the_call(
    sum_root: Path, request_: Any, code: grpc.StatusCode, words: str
) -> None:
    """With a message that says what to correct. Opened streams are kept."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        (handle,) = (await call.open("kept")).handles
        await call.block([handle], [[1]])
        await call.send(request_)
        ending = await call.ending()
        assert ending.code is code
        assert words in ending.message
        assert list((await RawBlocks(channel).open("kept")).next_steps) == [2]


async def test_a_stopping_server_moves_the_call(sum_root: Path) -> None:
    """What was answered is stored, and the client is responses to move."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        (handle,) = (await call.open("a")).handles
        await call.block([handle], [[1]])
        stopping = asyncio.create_task(server._servicer._calls.drain())
        kinds = []
        while "move" not in kinds:
            kinds.append((await call.read()).WhichOneof("kind"))
        assert (await call.ending()).code is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_single_timesteps_have_their_turn_between_the_chunks_of_a_block(sum_root: Path) -> None:
    """A long block delays others by at most one chunk."""
    async with run_server(sum_root, batch_max=4) as server, raw_channel(server) as channel:
        call, single = RawBlocks(channel), RawCall(channel)
        handles = list((await call.open(*(f"s{number}" for number in range(40)))).handles)
        await single.open("single")
        gate = Gate(batcher_of(server))
        await call.send(block_request(handles, np.ones((40, 1))))
        await gate.entered()
        answering = asyncio.create_task(single.step(5.0))
        await eventually(lambda: len(batcher_of(server)._queue) == 1, "queueing")
        gate.let_one()
        await gate.entered()
        gate.let_one()
        await gate.entered()
        gate.let_one()
        assert np.frombuffer((await answering).prediction.outputs[0], "<f4").item() == 5
        assert batcher_of(server)._blocks or batcher_of(server).runs_in_thread
        gate.open()
        assert sums((await call.read()).block) == [1] * 40


async def test_a_block_for_which_there_is_no_room_is_refused(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the retry time; nothing of it was applied.

    A block of few rows still finds room where a long one does not.
    """
    monkeypatch.setattr(batcher_module, "BLOCK_ROWS_MAX", 5)
    monkeypatch.setattr(blocks_module, "REFUSAL_DELAY_SECONDS", 0)
    async with run_server(sum_root, batch_max=2) as server, raw_channel(server) as channel:
        first, second, third = RawBlocks(channel), RawBlocks(channel), RawBlocks(channel)
        a = list((await first.open(*"abc")).handles)
        b = list((await second.open(*"def")).handles)
        c = list((await third.open(*"gh")).handles)
        gate = Gate(batcher_of(server))
        await first.send(block_request(a, [[1]] * 3))
        await gate.entered()
        await second.send(block_request(b, [[1]] * 3))
        await eventually(lambda: len(batcher_of(server)._blocks) == 1, "queueing")
        refused = (await third.block(c * 2, [[1]] * 4)).refused
        assert refused.reason == Reason.REASON_OVERLOADED
        assert refused.retry_after.ToMilliseconds() > 0
        await third.send(block_request(c, [[1]] * 2))
        await eventually(lambda: len(batcher_of(server)._blocks) == 2, "queueing")
        gate.open()
        assert sums((await first.read()).block) == [1] * 3
        assert sums((await second.read()).block) == [1] * 3
        assert sums((await third.read()).block) == [1] * 2
        assert (await scrape(server))("tidegate_steps_total", outcome="overloaded") == 4


async def test_a_block_for_which_there_is_no_room_is_reported_late(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that sends the next block at once does not keep the server busy with refused blocks."""
    monkeypatch.setattr(batcher_module, "BLOCK_ROWS_MAX", 1)
    monkeypatch.setattr(batcher_module, "SHORT_BLOCK_ROWS_MAX", 1)
    monkeypatch.setattr(blocks_module, "REFUSAL_DELAY_SECONDS", 0.1)
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        calls = [RawBlocks(channel) for _ in range(3)]
        handles = [list((await call.open(f"s{number}")).handles) * 2 for number, call in enumerate(calls)]
        gate = Gate(batcher_of(server))
        await calls[0].send(block_request(handles[0], [[1]] * 2))
        await gate.entered()
        await calls[1].send(block_request(handles[1], [[1]] * 2))
        await eventually(lambda: len(batcher_of(server)._blocks) == 1, "queueing")
        begun = time.perf_counter()
        assert (await calls[2].block(handles[2], [[1]] * 2)).refused.reason == Reason.REASON_OVERLOADED
        assert time.perf_counter() - begun >= 0.1
        gate.open()


async def test_a_block_whose_client_has_gone_is_dropped_where_it_stands(sum_root: Path) -> None:
    """Chunks that have run count, and the others are abandoned."""
    async with run_server(sum_root, batch_max=4) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open(*(f"s{number}" for number in range(20)))).handles)
        gate = Gate(batcher_of(server))
        await call.send(block_request(handles, np.ones((20, 1))))
        await gate.entered()
        call.call.cancel()
        await eventually(lambda: not server._servicer._calls, "leaving")
        gate.open()
        await eventually(lambda: live(server) == 0, "parking")
        counts = await scrape(server)
        assert counts("tidegate_steps_total", outcome="ok") == 4
        assert counts("tidegate_steps_total", outcome="abandoned") == 16


async def test_every_row_is_counted(sum_root: Path) -> None:
    """Rows count by outcome like timesteps. A chunk is a batch."""
    async with run_server(sum_root, batch_max=8) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open(*(f"s{number}" for number in range(20)))).handles)
        await call.block(handles, np.ones((20, 1)))
        await call.block(handles[:3], [[np.inf], [1], [1]], [2, 1, 9])
        counts = await scrape(server)
        for outcome, count in {"ok": 20, "invalid": 1, "duplicate": 1, "gap": 1}.items():
            assert counts("tidegate_steps_total", outcome=outcome) == count
        assert counts("tidegate_batch_size_count") == 4
        assert counts("tidegate_step_seconds_count") == 23


async def test_a_gateway_that_does_not_read_does_not_affect_others(tmp_path: Path) -> None:
    """Its call blocks with one block in flight. Others are answered meanwhile, and it loses nothing."""
    write_model(tmp_path, wide())
    async with run_server(tmp_path, live_max=8) as server, raw_channel(server) as mine, raw_channel(server) as theirs:
        lazy, busy = RawBlocks(mine), RawCall(theirs)
        (handle,) = (await lazy.open("lazy")).handles
        await busy.open("busy")

        async def flood() -> None:
            for _ in range(300):
                await lazy.call.write(block_request([handle], [[1]]).SerializeToString())

        flooding = asyncio.create_task(asyncio.wait_for(flood(), 2 * TIMEOUT_S))
        stream = server.stream_service._streams.find(key("lazy"))
        assert stream is not None
        for number in range(1, 101):
            assert (await busy.step(1, step=number)).prediction.step == number
        assert stream.step < 300  # flow control holds the flood back
        answered = 0
        while answered < 300:
            response = await lazy.read()
            if response.HasField("block"):
                answered += 1
                assert numbers(response.block.steps) == [answered]
        await flooding


class WritesOnDemand:
    """Answers to blocks of a client that has sent more: each is written when the test lets it through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_through = asyncio.Event()
        self.begun = 0
        write = PredictBlocksCall._write_and_release

        async def wait_and_write(call: PredictBlocksCall, response: bytes) -> None:
            self.begun += 1
            await self.let_through.wait()
            await write(call, response)

        monkeypatch.setattr(PredictBlocksCall, "_write_and_release", wait_and_write)


async def two_blocks(call: RawBlocks, handles: list[int], server: Server) -> None:
    """Sends a second block while the first runs, so that the call has both."""
    gate = Gate(batcher_of(server))
    await call.send(block_request(handles, [[1], [2]]))
    await gate.entered()
    await call.send(block_request(handles, [[3], [4]]))
    (serving,) = server._servicer._calls
    await eventually(lambda: serving.has_next, "reading ahead")
    gate.open()


async def test_the_next_block_runs_while_an_answer_is_being_written(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends ahead does not wait for the network between its blocks. Its answers come in order."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        writes = WritesOnDemand(monkeypatch)
        await two_blocks(call, handles, server)
        stream = server.stream_service._streams.find(key("a"))
        assert stream is not None
        await eventually(lambda: stream.step == 2, "running the second block")
        assert writes.begun == 1
        writes.let_through.set()
        assert [sums((await call.read()).block) for _ in range(2)] == [[1, 2], [4, 6]]


async def test_a_client_that_has_sent_ahead_gets_the_next_answers_written_behind_too(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a short block is ready before the next block is there, although its client sends ahead all the time."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        writes = WritesOnDemand(monkeypatch)
        writes.let_through.set()
        await two_blocks(call, handles, server)
        assert [sums((await call.read()).block) for _ in range(2)] == [[1, 2], [4, 6]]
        assert writes.begun == 2  # nothing was behind the second block


async def test_a_client_that_goes_with_an_answer_being_written_leaves_its_streams(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are parked with what was applied, and nothing is logged: nobody is left to read the answer."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        writes = WritesOnDemand(monkeypatch)
        await two_blocks(call, handles, server)
        await eventually(lambda: writes.begun == 1, "writing")
        call.call.cancel()
        writes.let_through.set()
        await eventually(lambda: not server._servicer._calls and live(server) == 0, "parking")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_call_that_is_moved_while_it_reads_ahead_leaves_no_read_behind(sum_root: Path) -> None:
    """What its client has sent behind that is not read, and no task outlives the call."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        gate = Gate(batcher_of(server))
        await call.send(block_request(handles, [[1], [2]]))
        await gate.entered()
        (serving,) = server._servicer._calls
        reading = serving._read_ahead_task
        assert reading is not None
        stopping = asyncio.create_task(server._servicer._calls.drain())
        await asyncio.sleep(0)
        gate.open()
        assert (await call.ending()).code is grpc.StatusCode.UNAVAILABLE
        await stopping
        assert reading.cancelled()


async def test_a_half_close_waits_for_the_answer_that_is_being_written(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends when everything is answered, however slowly its client reads."""

    async def tell_nothing(_: PredictBlocksCall) -> None:
        pass

    monkeypatch.setattr(PredictBlocksCall, "_send_notifications", tell_nothing)
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        writes = WritesOnDemand(monkeypatch)
        gate = Gate(batcher_of(server))
        await call.send(block_request(handles, [[1], [2]]))
        await gate.entered()
        await call.call.done_writing()
        (serving,) = server._servicer._calls
        await eventually(lambda: serving.has_next, "reading the end ahead")
        gate.open()
        await eventually(lambda: writes.begun == 1, "writing")
        assert server._servicer._calls
        writes.let_through.set()
        assert sums((await call.read()).block) == [1, 2]
        assert (await call.ending()).code is grpc.StatusCode.OK


async def test_a_client_that_waits_for_each_answer_is_seldom_read_ahead(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ahead has no benefit for it. It is tried from time to time, because the client may change."""
    reads = []
    read_ahead = PredictBlocksCall.read_ahead
    monkeypatch.setattr(PredictBlocksCall, "read_ahead", lambda call: (reads.append(call), read_ahead(call))[1])
    tries = blocks_module.READ_AHEAD_TRIES
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a", "b")).handles)
        # The next block of a client that waits may arrive before the write of the answer returns; here it never does.
        with monkeypatch.context() as patch:
            patch.setattr(PredictBlocksCall, "has_next", property(lambda _: False))
            for _ in range(3 * tries):
                await call.block(handles, [[1], [2]])
        assert len(reads) == tries + 2
        await two_blocks(call, handles, server)
        for _ in range(2):
            assert (await call.read()).HasField("block")
