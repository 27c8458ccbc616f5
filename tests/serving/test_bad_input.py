"""Bad input gets a clear refusal and does not harm other clients."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.calls import Ending, RawCall, pack, raw_channel, read_ending, timestep
from tests.engines import Gate
from tests.graphs import inverse, lstm, picky, running_sum, write_model
from tests.servers import batcher_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


@asynccontextmanager
async def bystander(channel: grpc.aio.Channel, width: int = 1) -> AsyncIterator[None]:
    """A stream that sends timesteps all the time and must not be affected."""
    call = RawCall(channel)
    await call.open("bystander")
    stop = asyncio.Event()

    async def go() -> int:
        count = 0
        while not stop.is_set():
            count += 1
            answer = (await call.step(*[1.0] * width, step=count)).prediction
            assert answer.step == count
            if width == 1:
                assert np.frombuffer(answer.outputs[0], np.float32).item() == count
        return count

    task = asyncio.create_task(go())
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(TIMEOUT_S):
            assert await task > 0


def opening(stream_id: str = "a", **more: object) -> pb.PredictRequest:
    """The request with an open."""
    return pb.PredictRequest(open=pb.Open(stream_id=stream_id, **more))


# Refusals of one timestep: the stream stays usable.


@pytest.mark.parametrize(
    ("bad", "reason", "field", "words"),
    [
        (
            timestep(1, 2, step=2),
            pb.Error.REASON_WRONG_WIDTH,
            "values",
            ["got 2 numbers in 8 bytes", "expected 4", "x"],
        ),
        (timestep(step=2), pb.Error.REASON_WRONG_WIDTH, "values", ["got 0 numbers", "expected 4"]),
        (
            pb.PredictRequest(timestep=pb.Timestep(step=2, values=b"abc")),
            pb.Error.REASON_WRONG_WIDTH,
            "values",
            ["got 3 bytes"],
        ),
        (timestep(np.inf, step=2), pb.Error.REASON_NOT_FINITE, "values", ["'x' is inf", "finite"]),
        (timestep(-np.inf, step=2), pb.Error.REASON_NOT_FINITE, "values", ["'x' is -inf"]),
        (timestep(np.nan, step=2), pb.Error.REASON_NOT_FINITE, "values", ["'x' is nan", "does not handle missing"]),
        (timestep(np.inf, step=0), pb.Error.REASON_NOT_FINITE, "values", ["'x' is inf"]),
        (timestep(1, step=3), pb.Error.REASON_STEP_GAP, "step", ["got 3, expected 2"]),
        (timestep(1, step=2**63 - 2), pb.Error.REASON_STEP_GAP, "step", ["expected 2"]),
        (timestep(1, step=2**63 - 1), pb.Error.REASON_INVALID_FIELD, "step", [f"got {2**63 - 1}"]),
        (timestep(1, step=2**64 - 1), pb.Error.REASON_INVALID_FIELD, "step", [f"got {2**64 - 1}"]),
    ],
)
async def test_a_bad_timestep_is_refused_and_its_stream_continues(
    sum_root: Path, bad: pb.PredictRequest, reason: int, field: str, words: list[str]
) -> None:
    """The refusal names the field, the value and the expectation. The state is unchanged."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(channel):
        call = RawCall(channel)
        await call.open("a")
        await call.step(5, step=1)
        response = await call.ask(bad)
        assert response.WhichOneof("kind") == "error"
        error = response.error
        assert (error.reason, error.field, error.step, error.next_step) == (reason, field, bad.timestep.step, 2)
        assert all(word in error.message for word in words), error.message
        answer = (await call.step(6, step=2)).prediction
        assert np.frombuffer(answer.outputs[0], np.float32).item() == 11


async def test_a_missing_value_leaves_the_state_healthy(lstm_root: Path) -> None:
    """A stream that has seen only NaN answers with finite numbers."""
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        for _ in range(5):
            answer = (await call.step(*[np.nan] * 8)).prediction
            assert np.isfinite(np.frombuffer(answer.outputs[0], np.float32)).all()


@pytest.mark.parametrize(("make", "bad"), [(picky, 99.0), (inverse, 0.0)])
async def test_a_timestep_on_which_the_model_fails_is_refused(
    tmp_path: Path, make: Callable[[], bytes], bad: float
) -> None:
    """The model raises or produces a state that is not finite: only that timestep gets an error, and all streams continue."""
    write_model(tmp_path, make())
    async with run_server(tmp_path) as server, raw_channel(server) as channel:
        bad_call, good_call = RawCall(channel), RawCall(channel)
        await bad_call.open("bad")
        await good_call.open("good")
        for number in range(1, 6):
            refused, answered = await asyncio.gather(bad_call.step(bad, step=1), good_call.step(1, step=number))
            assert refused.error.reason == pb.Error.REASON_MODEL_FAILED
            assert refused.error.next_step == 1
            assert answered.prediction.step == number
        assert (await bad_call.step(1, step=1)).prediction.step == 1


# Refusals that end the call.


async def ended(channel: grpc.aio.Channel, *requests: pb.PredictRequest | bytes) -> Ending:
    """Sends requests on a new call. Returns the status."""
    call = RawCall(channel)
    for request in requests:
        await call.send(request)
    return await call.ending()


LONG = "x" * 256


@pytest.mark.parametrize(
    ("requests", "code", "reason", "words"),
    [
        ([timestep(1)], "FAILED_PRECONDITION", "WRONG_ORDER", ["timestep", "expected open"]),
        ([pb.PredictRequest(close=pb.Close())], "FAILED_PRECONDITION", "WRONG_ORDER", ["close", "expected open"]),
        ([pb.PredictRequest()], "INVALID_ARGUMENT", "INVALID_FIELD", ["kind"]),
        ([opening(), opening()], "FAILED_PRECONDITION", "WRONG_ORDER", ["'a' is open already"]),
        ([opening(), opening("b")], "FAILED_PRECONDITION", "WRONG_ORDER", ["'a' is open already"]),
        ([opening(), pb.PredictRequest()], "INVALID_ARGUMENT", "INVALID_FIELD", ["kind"]),
        ([b"\xff\xff this is no message"], "INVALID_ARGUMENT", "INVALID_FIELD", ["not a PredictRequest"]),
        ([opening(), b"\xff\xff this is no message"], "INVALID_ARGUMENT", "INVALID_FIELD", ["not a PredictRequest"]),
        ([opening(model="pump")], "NOT_FOUND", "MODEL_NOT_FOUND", ["'pump'", "toy/1"]),
        ([opening(version="9")], "NOT_FOUND", "MODEL_NOT_FOUND", ["'toy/9'"]),
        ([opening(existence=pb.EXISTENCE_MUST_EXIST)], "NOT_FOUND", "STREAM_NOT_FOUND", ["'a'"]),
        ([opening(existence=77)], "INVALID_ARGUMENT", "INVALID_FIELD", ["existence", "77"]),
        ([opening(LONG + "x")], "INVALID_ARGUMENT", "INVALID_FIELD", ["257 bytes", "1 to 256"]),
        ([opening("é" * 129)], "INVALID_ARGUMENT", "INVALID_FIELD", ["258 bytes"]),
        ([opening("a\nb")], "INVALID_ARGUMENT", "INVALID_FIELD", ["stream_id", r"'a\nb'"]),
        ([opening("a\0b")], "INVALID_ARGUMENT", "INVALID_FIELD", ["stream_id"]),
        ([opening("a\x7fb")], "INVALID_ARGUMENT", "INVALID_FIELD", ["stream_id"]),
        (
            [opening(resume_from=4)],
            "DATA_LOSS",
            "STATE_LOST",
            ["stored up to timestep 0", "reported as stored up to 3"],
        ),
    ],
)
async def test_a_bad_message_ends_its_call_with_a_code_and_a_reason(
    sum_root: Path, requests: list[pb.PredictRequest | bytes], code: str, reason: str, words: list[str]
) -> None:
    """The status has the gRPC code, google.rpc.ErrorInfo and a message.

    Other clients are not affected, and the slot is free.
    """
    async with run_server(sum_root) as server, raw_channel(server) as channel, bystander(channel):
        ending = await ended(channel, *requests)
        assert (ending.code.name, ending.reason, ending.domain) == (code, reason, "tidegate.v1")
        assert all(word in ending.message for word in words), ending.message
        assert "Traceback" not in ending.message
        await eventually(lambda: live(server) == 1, "only the bystander staying")


async def test_an_invalid_field_is_named_for_programs(sum_root: Path) -> None:
    """google.rpc.BadRequest has the field."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert (await ended(channel, opening("a\nb"))).fields == ("stream_id",)


async def test_a_call_that_ends_before_its_open_is_reported(sum_root: Path) -> None:
    """A client that sends nothing gets a message."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.call.done_writing()
        ending = await call.ending()
        assert (ending.code.name, ending.reason) == ("FAILED_PRECONDITION", "WRONG_ORDER")


async def test_a_call_that_broke_the_order_leaves_its_stream_resumable(sum_root: Path) -> None:
    """Answers before the bad message stay valid."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        await call.step(5)
        await call.send(opening())
        assert (await call.ending()).reason == "WRONG_ORDER"
        again = RawCall(channel)
        assert (await again.open("a")).next_step == 2
        assert np.frombuffer((await again.step(6)).prediction.outputs[0], np.float32).item() == 11


async def test_a_message_over_the_limit_ends_its_call(sum_root: Path) -> None:
    """RESOURCE_EXHAUSTED: its stream is parked, and others continue."""
    async with run_server(sum_root, message_bytes_max=4096) as server, raw_channel(server) as channel:
        async with bystander(channel):
            call = RawCall(channel)
            await call.open("a")
            await call.step(5)
            await call.send(timestep(*[1.0] * 5000))
            assert (await call.ending()).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await eventually(lambda: live(server) == 1, "parking")
        again = RawCall(channel)
        assert (await again.open("a")).next_step == 2


async def test_a_model_must_be_named_where_several_are_served(tmp_path: Path) -> None:
    """FAILED_PRECONDITION, as the protocol says: the model exists, but the request does not name it."""
    write_model(tmp_path, running_sum(), "adder")
    write_model(tmp_path, lstm(), "lake")
    async with run_server(tmp_path) as server, raw_channel(server) as channel:
        ending = await ended(channel, opening())
        assert ending.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "adder/1" in ending.message
        assert "lake/1" in ending.message


async def test_a_stream_of_another_model_is_not_opened(tmp_path: Path) -> None:
    """FAILED_PRECONDITION with both models."""
    write_model(tmp_path, running_sum(), "adder")
    write_model(tmp_path, lstm(), "lake")
    async with run_server(tmp_path) as server, raw_channel(server) as channel:
        await RawCall(channel).open("a", model="adder")
        ending = await ended(channel, opening(model="lake"))
        assert (ending.code.name, ending.reason) == ("FAILED_PRECONDITION", "MODEL_MISMATCH")


async def test_a_stream_that_must_be_new_is_not_resumed(sum_root: Path) -> None:
    """ALREADY_EXISTS."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        await RawCall(channel).open("a")
        ending = await ended(channel, opening(existence=pb.EXISTENCE_MUST_BE_NEW))
        assert (ending.code.name, ending.reason) == ("ALREADY_EXISTS", "STREAM_EXISTS")


async def test_a_stream_taken_over_ends_aborted(sum_root: Path) -> None:
    """ABORTED, whether its call waits for a message or not."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        old = RawCall(channel)
        await old.open("a")
        await RawCall(channel).open("a")
        ending = await old.ending()
        assert (ending.code.name, ending.reason) == ("ABORTED", "TAKEN_OVER")


@pytest.mark.parametrize(
    "stream_id",
    [LONG, "é" * 128, "plant/7 pump:3", "日本語", "東京\u3000１号", "caf\u00e9\u00a02", "🔧", "\ue000 of private use"],
)
async def test_any_name_that_can_be_seen_is_a_name(sum_root: Path, stream_id: str) -> None:
    """1 to 256 bytes of UTF-8, as the protocol says. Spaces of other scripts are allowed."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert (await RawCall(channel).open(stream_id)).stream_id == stream_id


async def test_too_many_live_streams_are_refused_until_one_closes(sum_root: Path) -> None:
    """RESOURCE_EXHAUSTED tells when to retry. Existing streams continue, and a slot that becomes free is used."""
    async with run_server(sum_root, live_max=2) as server, raw_channel(server) as channel:
        first, second = RawCall(channel), RawCall(channel)
        await first.open("a")
        await second.open("b")
        ending = await ended(channel, opening("c"))
        assert (ending.code.name, ending.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        assert ending.retry_s is not None
        assert ending.retry_s > 0
        assert "limit of 2 live" in ending.message
        assert (await first.step(5)).prediction.step == 1
        await second.ask(pb.PredictRequest(close=pb.Close()))
        await eventually(lambda: live(server) == 1, "parking")
        third = RawCall(channel)
        assert (await third.open("c")).kind == pb.Opened.KIND_NEW
        assert np.frombuffer((await third.step(1)).prediction.outputs[0], np.float32).item() == 1


async def test_too_many_known_streams_are_refused(sum_root: Path) -> None:
    """Known streams can always be opened. A new one is refused until one is deleted."""
    async with run_server(sum_root, streams_max=2) as server, raw_channel(server) as channel:
        for name in ("a", "b"):
            call = RawCall(channel)
            await call.open(name)
            await call.ask(pb.PredictRequest(close=pb.Close()))
            await call.ending()
        ending = await ended(channel, opening("c"))
        assert (ending.reason, "limit of 2 known" in ending.message) == ("TOO_MANY_STREAMS", True)
        call = RawCall(channel)
        assert (await call.open("a")).kind == pb.Opened.KIND_RESUMED
        await call.ask(pb.PredictRequest(close=pb.Close(forget=True)))
        assert (await RawCall(channel).open("c")).kind == pb.Opened.KIND_NEW


async def test_a_full_queue_refuses_a_timestep_and_its_stream_continues(sum_root: Path) -> None:
    """The refusal is in a response, with the time to wait. Nothing is lost."""
    async with run_server(sum_root, queue_max=1) as server, raw_channel(server) as channel:
        calls = [RawCall(channel) for _ in range(3)]
        for name, call in zip("abc", calls, strict=True):
            await call.open(name)
        batcher = batcher_of(server)
        gate = Gate(batcher)
        await calls[0].send(timestep(1, step=1))
        await gate.entered()
        await calls[1].send(timestep(2, step=1))
        await eventually(lambda: len(batcher._queue) == 1, "queueing")
        error = (await calls[2].step(3, step=1)).error
        assert (error.reason, error.next_step) == (pb.Error.REASON_OVERLOADED, 1)
        assert error.retry_after.ToMilliseconds() > 0
        gate.open()
        assert [(await call.read()).prediction.step for call in calls[:2]] == [1, 1]
        assert (await calls[2].step(3, step=1)).prediction.step == 1


async def test_an_unknown_model_is_not_described(sum_root: Path) -> None:
    """NOT_FOUND with the same reason as on a call."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.TidegateServiceStub(channel).DescribeModel(
                pb.DescribeModelRequest(name="pump"), timeout=TIMEOUT_S
            )
        error = caught.value
        ending = read_ending(error.code(), error.details(), error.trailing_metadata())
        assert (ending.code.name, ending.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


async def test_fields_of_later_clients_are_ignored(sum_root: Path) -> None:
    """A field that the server does not know is ignored."""
    unknown = b"\xf8\x7f\x01"  # field 2047, varint 1
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        inner = pb.Timestep(step=1, values=pack(5)).SerializeToString() + unknown
        request = b"\x0a" + bytes([len(inner)]) + inner + unknown
        assert (await call.ask(request)).prediction.step == 1
