"""Rules that clients in any language may rely on: owners, numbers, buffers, and the ends of calls."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, pack, raw_channel, timestep
from tests.servers import live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


def total(answer: pb.PredictResponse) -> float:
    """The sum in an answer."""
    return float(np.frombuffer(answer.prediction.outputs[0], np.float32).item())


# Owners.


async def test_a_client_that_continues_is_refused_when_another_opened_the_stream(sum_root: Path) -> None:
    """The other owner keeps it, even if its call has sent nothing since."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        a, b = RawCall(channel), RawCall(channel)
        await a.open("s", owner="a")
        await a.step(1, step=1)
        opened = await b.open("s", owner="b")
        assert (opened.kind, opened.owner_changed) == (pb.Opened.KIND_TAKEN_OVER, True)
        assert (await a.ending()).reason == "TAKEN_OVER"
        again = RawCall(channel)
        await again.send(pb.PredictRequest(open=pb.Open(stream_id="s", owner="a", resume_from=2)))
        ending = await again.ending()
        assert (ending.code.name, ending.reason, ending.action) == ("ABORTED", "TAKEN_OVER", "STREAM_LOST")
        assert total(await b.step(2, step=2)) == 3


async def test_an_owner_continues_where_it_was(sum_root: Path) -> None:
    """However often its connection breaks, and whether or not the server has noticed."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        for step in range(1, 4):
            call = RawCall(channel)
            opened = await call.open("s", owner="a", resume_from=step)
            assert (opened.next_step, opened.owner_changed) == (step, False)
            assert total(await call.step(1, step=step)) == step


async def test_a_stream_that_was_never_stepped_begins_again(sum_root: Path) -> None:
    """Nothing is lost with it: its client has everything from timestep 1 on."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        opened = await RawCall(channel).open("s", owner="a", resume_from=1)
        assert (opened.kind, opened.next_step) == (pb.Opened.KIND_NEW, 1)


async def test_a_must_be_new_open_with_a_lost_answer_can_be_repeated(sum_root: Path) -> None:
    """The same owner opens it again; any other gets the error that the stream exists."""
    must_be_new: dict[str, Any] = {"existence": pb.EXISTENCE_MUST_BE_NEW}
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        await RawCall(channel).open("s", owner="a", **must_be_new)
        assert (await RawCall(channel).open("s", owner="a", **must_be_new)).kind == pb.Opened.KIND_NEW
        other = RawCall(channel)
        await other.send(pb.PredictRequest(open=pb.Open(stream_id="s", owner="b", **must_be_new)))
        assert (await other.ending()).reason == "STREAM_EXISTS"
        assert server.registry.known_count == 1


async def test_owners_of_many_streams_are_judged_row_by_row(sum_root: Path) -> None:
    """One owner for all. Only the streams of another owner are refused."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        a, b = RawBlocks(channel), RawBlocks(channel)
        await a.open("x", "y", "z", owner="a")
        opened = await b.open("y", owner="b")
        assert list(opened.owner_changed_rows) == [0]
        opened = await RawBlocks(channel).open("x", "y", "z", owner="a", resume_from=[1, 1, 2])
        assert [(row.row, row.error.reason) for row in opened.errors] == [
            (1, pb.Error.REASON_TAKEN_OVER),
            (2, pb.Error.REASON_STATE_LOST),
        ]
        assert opened.handles[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"owner": "x" * 257}, "owner: got 257 bytes, expected 1 to 256"),
        ({"owner": "a\n"}, "owner: got 'a\\n'"),
        (
            {"resume_from": 1, "existence": pb.EXISTENCE_MUST_BE_NEW},
            "existence: got EXISTENCE_MUST_BE_NEW with resume_from 1",
        ),
        ({"output_format": 9}, "output_format: got 9"),
    ],
)
async def test_an_open_that_makes_no_sense_is_refused(sum_root: Path, fields: dict[str, Any], words: str) -> None:
    """With the field. No stream begins."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="s", **fields)))
        ending = await call.ending()
        assert (ending.code.name, ending.reason, ending.action) == ("INVALID_ARGUMENT", "INVALID_FIELD", "STREAM_LOST")
        assert words in ending.message
        assert server.registry.known_count == 0


# Values.


async def test_a_repeat_with_other_values_is_refused_by_its_own_reason(sum_root: Path) -> None:
    """On both streaming calls, with the action of the client. The stream is unchanged."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s")
        await call.step(1, step=1)
        error = (await call.step(2, step=1)).error
        assert (error.reason, error.action, error.code, error.field, error.next_step) == (
            pb.Error.REASON_VALUES_DIFFER,
            pb.Error.ACTION_STREAM_LOST,
            6,
            "values",
            2,
        )
        assert total(await call.step(1, step=1)) == 1
        blocks = RawBlocks(channel)
        (handle,) = (await blocks.open("s")).handles
        answer = await blocks.block([handle] * 3, [[1], [2], [5]], [1, 1, 2])
        assert [(row.row, row.error.reason) for row in answer.errors] == [(1, pb.Error.REASON_VALUES_DIFFER)]
        assert np.frombuffer(answer.outputs[0], np.float32).tolist() == [1, 0, 6]


async def test_a_stream_remembers_values_across_a_restart(tmp_path: Path, sum_root: Path) -> None:
    """They are stored beside the answers."""
    state = f"sqlite://{tmp_path / 'state.db'}"
    async with run_server(sum_root, state=state) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s", durability=pb.DURABILITY_SYNC)
        await call.step(1, step=1)
    async with run_server(sum_root, state=state) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s")
        assert (await call.step(2, step=1)).error.reason == pb.Error.REASON_VALUES_DIFFER
        assert total(await call.step(1, step=1)) == 1


async def test_values_may_come_as_numbers(sum_root: Path) -> None:
    """And the answer has the requested format. A timestep is the same in both formats."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s")
        numbers = pb.PredictRequest(timestep=pb.Timestep(step=1, numbers=[0.5]))
        answer = (await call.ask(numbers)).prediction
        assert (list(answer.output_numbers[0].numbers), list(answer.outputs)) == ([0.5], [])
        assert total(await call.step(0.5, step=1)) == 0.5
        both = pb.PredictRequest(timestep=pb.Timestep(step=2, numbers=[0.5], values=pack(1)))
        error = (await call.ask(both)).error
        assert (error.reason, error.field, error.step) == (pb.Error.REASON_INVALID_FIELD, "numbers", 2)
        wide = pb.PredictRequest(timestep=pb.Timestep(step=2, numbers=[1, 2]))
        assert "got 2 numbers" in (await call.ask(wide)).error.message
        assert total(await call.step(0.25, step=2)) == 0.75


@pytest.mark.parametrize("form", [pb.OUTPUT_FORMAT_NUMBERS, pb.OUTPUT_FORMAT_PACKED])
async def test_an_open_chooses_how_outputs_are_written(sum_root: Path, form: pb.OutputFormat) -> None:
    """For all timesteps, in any format."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s", output_format=form)
        for step, fields in enumerate(({"numbers": [1]}, {"values": pack(1)}), 1):
            request = pb.PredictRequest(timestep=pb.Timestep(step=step, **fields))
            answer = (await call.ask(request)).prediction
            assert bool(answer.output_numbers) == (form == pb.OUTPUT_FORMAT_NUMBERS)
            assert bool(answer.outputs) == (form == pb.OUTPUT_FORMAT_PACKED)


# Buffers for timesteps that are not durable.


@pytest.mark.parametrize("kept_max", [1, 3, 32])
async def test_a_client_that_keeps_little_does_not_wait_for_the_next_round(sum_root: Path, kept_max: int) -> None:
    """Its stream is stored before its buffer is full, and it is durable, however long the interval is."""
    async with run_server(sum_root, checkpoint_every="60s") as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s", kept_max=kept_max)
        durable = 0
        async with asyncio.timeout(TIMEOUT_S):
            for step in range(1, 101):
                while step - durable > kept_max:
                    durable = (await call.read()).durable.durable_step
                await call.send(timestep(1, step=step))
                while not (answer := await call.read()).HasField("prediction"):
                    durable = answer.durable.durable_step
                durable = max(durable, answer.prediction.durable_step)


@pytest.mark.parametrize("kept_max", [1, 3, 32])
async def test_streams_of_a_block_that_keep_little_do_not_wait_either(sum_root: Path, kept_max: int) -> None:
    """For each stream: a client without a report for a minute would stop."""
    async with run_server(sum_root, checkpoint_every="60s") as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("x", "y", kept_max=kept_max)).handles)
        durable = dict.fromkeys(handles, 0)

        def note(handle_column: Any, step_column: bytes) -> None:
            for handle, step in zip(handle_column, np.frombuffer(step_column, "<u8").tolist(), strict=True):
                durable[handle] = max(durable[handle], step)

        async with asyncio.timeout(TIMEOUT_S):
            for step in range(1, 101):
                while any(step - durable[handle] > kept_max for handle in handles):
                    update = (await call.read()).durable
                    note(np.frombuffer(update.handles, "<u4").tolist(), update.durable_steps)
                answer = await call.block(handles, [[1], [1]], [step, step])
                note(handles, answer.durable_steps)
                for notification in call.notifications:
                    note(
                        np.frombuffer(notification.durable.handles, "<u4").tolist(), notification.durable.durable_steps
                    )
                call.notifications.clear()


# The ends of calls.


async def test_a_request_after_close_is_refused(sum_root: Path) -> None:
    """It would be lost without an error: the stream is closed, and the call would end OK."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s")
        await call.step(1, step=1)
        await call.send(pb.PredictRequest(close=pb.Close()))
        await call.send(timestep(2, step=2))
        assert (await call.read()).closed.step == 1
        ending = await call.ending()
        assert (ending.code.name, ending.reason) == ("FAILED_PRECONDITION", "WRONG_ORDER")
        assert "after close" in ending.message


async def test_a_client_that_does_not_half_close_is_not_waited_for(sum_root: Path) -> None:
    """It has its answer, and the call ends OK a little later."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("s")
        assert (await call.ask(pb.PredictRequest(close=pb.Close()))).HasField("closed")
        assert (await call.ending()).code.name == "OK"
        await eventually(lambda: live(server) == 0, "parking")


async def test_a_page_that_is_too_long_is_cut(sum_root: Path) -> None:
    """It is not refused: a client that asks for everything gets the largest page."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        for name in "abc":
            await RawCall(channel).open(name)
        stub: Any = pb_grpc.TidegateServiceStub(channel)
        page = await stub.ListStreams(pb.ListStreamsRequest(page_size=2**32 - 1))
        assert [stream.stream_id for stream in page.streams] == ["a", "b", "c"]


async def test_the_largest_request_is_reported(sum_root: Path) -> None:
    """A client that checks it before it sends never ends its call by it."""
    async with run_server(sum_root, message_bytes_max=5000) as server, raw_channel(server) as channel:
        assert (await RawCall(channel).open("s")).message_bytes_max == 5000
        assert (await RawBlocks(channel).open("t")).message_bytes_max == 5000


async def test_a_question_about_an_unknown_stream_gets_no_advice_about_opening(sum_root: Path) -> None:
    """A request to describe or delete a stream has no existence field."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        stub: Any = pb_grpc.TidegateServiceStub(channel)
        for method, request in (
            (stub.DescribeStream, pb.DescribeStreamRequest(stream_id="s")),
            (stub.DeleteStream, pb.DeleteStreamRequest(stream_id="s")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request)
            assert caught.value.details() == "stream_id: no stream 's'"
