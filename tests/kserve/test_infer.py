"""`ModelInfer`: one timestep of a sequence in a unary call."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawCall, pack, raw_channel
from tests.kserve.calls import StreamInfer, ask, infer, infer_request, parameters_of, raw_outputs, refusal
from tests.servers import batcher_of, live, run_server
from tests.timeouts import eventually
from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Key
from tidegate.core.streams import Phase
from tidegate.rpc.kserve import messages


def total(response: object) -> float:
    """The sum that the running sum has answered."""
    return float(np.frombuffer(raw_outputs(response)["sum"], "<f4")[0])


async def test_a_sequence_in_unary_calls(sum_root: Path) -> None:
    """Start, continue, end; each answer is stored."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        first = await infer(channel, "pump", 1.0, start=True, request_id="a")
        assert (total(first), first.id) == (1.0, "a")
        assert parameters_of(first) == {"stream_id": "pump", "step": 1, "durable_step": 1}
        assert total(await infer(channel, "pump", 2.0)) == 3.0
        assert total(await infer(channel, "pump", 4.0, end=True)) == 7.0
        refused = await refusal(infer(channel, "pump", 1.0))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "sequence pump to model 'toy' must specify the START flag" in refused.message
        assert live(server) == 0


async def test_the_start_of_a_live_sequence_begins_it_anew(sum_root: Path) -> None:
    """Also when another call of another protocol has it open: that call ends."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        native = RawCall(channel)
        await native.open("7")
        await native.step(1.0)
        assert total(await infer(channel, 7, 2.0, start=True)) == 2.0
        assert (await native.ending()).code is grpc.StatusCode.NOT_FOUND
        assert total(await infer(channel, 7, 4.0, start=True)) == 4.0


async def test_a_request_sent_twice_is_applied_once(sum_root: Path) -> None:
    """When it has a number, also concurrently; a start is the same again."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        for _ in range(2):
            assert total(await infer(channel, 7, 1.0, start=True, step=1)) == 1.0
        answers = await asyncio.gather(*(infer(channel, 7, 2.0, step=2) for _ in range(16)))
        assert [total(answer) for answer in answers] == [3.0] * 16
        gap = await refusal(infer(channel, 7, 2.0, step=5))
        assert (gap.code, gap.reason, gap.next_step) == (grpc.StatusCode.OUT_OF_RANGE, "STEP_GAP", 3)


async def test_a_sequence_of_another_model_is_not_touched(tmp_path: Path, sum_root: Path) -> None:
    """Stream ids are those of all models."""
    other = sum_root / "other" / "1"
    other.mkdir(parents=True)
    (other / "model.onnx").write_bytes((sum_root / "toy" / "1" / "model.onnx").read_bytes())
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        await infer(channel, 7, 1.0, start=True)
        refused = await refusal(infer(channel, 7, 1.0, start=True, model="other"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH")
        assert total(await infer(channel, 7, 2.0)) == 3.0


def changed(**fields: Any) -> Any:
    """The request of a start, with other fields of its tensor."""
    request = infer_request(7, 1.0, start=True)
    for name, value in fields.items():
        if name == "shape":
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(value)
        else:
            setattr(request.inputs[0], name, value)
    return request


def typed(shape: list[int] | None = None, **contents: list[Any]) -> Any:
    """The request of a start with typed contents."""
    request = changed(shape=shape or [1, 1])
    del request.raw_input_contents[:]
    for name, values in contents.items():
        getattr(request.inputs[0].contents, name).extend(values)
    return request


def with_raw(*raw: bytes) -> Any:
    """The request of a start with these raw contents."""
    request = changed()
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(raw)
    return request


def in_shared_memory() -> Any:
    """The request of a start whose input is in shared memory, as a client of Triton makes it."""
    request = with_raw()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


def with_parameter(name: str, **value: Any) -> Any:
    """The request of a start with a parameter of that type."""
    request = changed()
    request.parameters[name].CopyFrom(messages.InferParameter(**value))
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (changed(name="y"), "inputs: got 'y', expected 'x'"),
        (changed(datatype="FP64"), "'x' has datatype 'FP64', expected FP32"),
        (changed(shape=[1, 2]), "'x' has shape [1, 2], expected [1, 1]: one timestep of one sequence a request"),
        (changed(shape=[2, 1]), "'x' has shape [2, 1], expected [1, 1]"),
        (changed(shape=[1]), "'x' has shape [1], expected [1, 1]"),
        (changed(shape=[]), "'x' has shape [], expected [1, 1]"),
        (with_raw(b"1234567"), "'x' has 7 bytes in raw_input_contents, expected 4"),
        (with_raw(b"1234", b"5678"), "raw_input_contents: got 2 for 1 inputs, expected one for each"),
        (with_raw(), "'x' has nothing and no raw_input_contents, expected values in contents.fp32_contents"),
        (typed(fp64_contents=[1.0]), "'x' has 'fp64_contents' and no raw_input_contents"),
        (typed(fp32_contents=[1.0, 2.0]), "'x' has 2 numbers, expected 1"),
        (in_shared_memory(), "'x' is in shared memory"),
        (with_parameter("sequence_id", bool_param=True), "sequence_id: got bool_param"),
        (with_parameter("sequence_start", int64_param=1), "sequence_start: got int64_param, expected bool_param"),
        (with_parameter("step", string_param="3"), "step: got string_param"),
        (with_parameter("step", int64_param=-1), "step: got -1"),
        (
            with_parameter("durability", string_param="never"),
            "durability: got 'never', expected one of sync, background",
        ),
        (with_parameter("sequence_id", string_param="a\nb"), "sequence_id: got 'a\\nb'"),
        (infer_request(7, float("inf"), start=True), "feature 'x' is inf"),
    ],
)
async def test_what_is_wrong_is_named(sum_root: Path, request_: Any, words: str) -> None:
    """The field, what was got and what was expected; no stream begins."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        refused = await refusal(ask(channel, "ModelInfer", request_))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert words in refused.message


async def test_an_unknown_model_is_refused(sum_root: Path) -> None:
    """And so is an unknown version."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        for more in ({"model": "other"}, {"version": "9"}):
            refused = await refusal(infer(channel, 7, 1.0, start=True, **more))
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_numbers_may_be_given_as_numbers(sum_root: Path) -> None:
    """As grpcurl and clients that were written by hand do; the answer is in raw form all the same."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        answer = await ask(channel, "ModelInfer", typed(fp32_contents=[1.5]))
        assert raw_outputs(answer)["sum"] == pack(1.5)


@pytest.mark.parametrize(
    ("parameter", "stream_id"),
    [
        ({"int64_param": 42}, "42"),
        ({"int64_param": -1}, "18446744073709551615"),  # what a C++ client sends for the largest unsigned number
        ({"uint64_param": 42}, "42"),
        ({"string_param": "pump/7"}, "pump/7"),
    ],
)
async def test_a_sequence_id_is_a_stream_id(sum_root: Path, parameter: dict[str, Any], stream_id: str) -> None:
    """Text as it is, a number in decimal digits."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        answer = await ask(channel, "ModelInfer", with_parameter("sequence_id", **parameter))
        assert parameters_of(answer)["stream_id"] == stream_id


async def test_what_was_applied_and_not_stored_has_its_number(sum_root: Path) -> None:
    """The refusal tells it, and sent again with it the timestep is answered and not applied twice; in both methods."""
    settings = {"checkpoint_every": 0.02, "lag_max": 0.1, "ready_lag": 0.1}
    async with run_server(sum_root, **settings) as server, raw_channel(server) as channel:
        store = server.stream_service._store
        save = store.save

        async def broken(_: object) -> list[bool]:
            raise StoreUnavailable("test", "is broken")

        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        await infer(channel, 8, 1.0, start=True)
        store.save = broken  # type: ignore[method-assign]
        in_stream, unary = await asyncio.gather(call.refused(infer_request(7, 2.0)), refusal(infer(channel, 8, 2.0)))
        assert in_stream.error_message == unary.message
        assert in_stream.error_message.startswith("step 2 was applied and is not stored yet")
        assert unary.code is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: not server.stream_service.checkpointer.ready, "the lag")
        assert not (await ask(channel, "ServerReady")).ready
        store.save = save  # type: ignore[method-assign]
        await eventually(lambda: not server.stream_service.checkpointer.unsaved_seconds(), "storing")
        await eventually(lambda: batcher_of(server).refuse_with is None, "the all-clear")
        for again in (await call.step(7, 2.0, step=2), await infer(channel, 8, 2.0, step=2)):
            assert total(again) == 3.0
            assert parameters_of(again)["duplicate"] is True


async def test_an_expired_sequence_must_begin_again(sum_root: Path) -> None:
    """The refusal tells its last step."""
    async with run_server(sum_root, forget_after=3600.0) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        call.call.cancel()
        await eventually(lambda: live(server) == 0, "parking")
        while (await server.admin_service.describe(Key("default", "7"))).phase is not Phase.EXPIRED:
            await server.registry.sweeper._forget(time.time_ns() + 3600 * 1_000_000_000)
            await asyncio.sleep(0.02)
        refused = await refusal(infer(channel, 7, 1.0))
        assert refused.message.endswith("its state has expired after long silence, its last step was 1")
        assert total(await infer(channel, 7, 2.0, start=True)) == 2.0
