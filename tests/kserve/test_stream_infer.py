"""`ModelStreamInfer`: timesteps of many sequences over one call."""

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawCall, pack, raw_channel
from tests.graphs import LSTM_FEATURES
from tests.kserve.calls import StreamInfer, infer_request, parameters_of, raw_outputs
from tests.servers import live, run_server, scrape
from tests.timeouts import eventually
from tidegate.core.spec import Key
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.stream_infer import PENDING_MAX


def total(response: object) -> float:
    """The sum that the running sum has answered."""
    return float(np.frombuffer(raw_outputs(response)["sum"], "<f4")[0])


async def test_a_sequence_keeps_its_state(sum_root: Path) -> None:
    """Its first request starts it, each further one continues."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        answers = [
            await call.step(7, 1.0, start=True, request_id="a"),
            await call.step(7, 2.0, request_id="b"),
            await call.step(7, 3.0, end=True, request_id="c"),
        ]
        assert [total(answer) for answer in answers] == [1.0, 3.0, 6.0]
        assert [answer.id for answer in answers] == ["a", "b", "c"]
        assert (await call.finish()).code is grpc.StatusCode.OK


async def test_an_answer_tells_all_about_the_step(sum_root: Path) -> None:
    """Model and version, tensors in raw form, and stream id, step and durable step as parameters."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        answer = await StreamInfer(channel).step("pump-7", 1.5, start=True)
        assert (answer.model_name, answer.model_version) == ("toy", "1")
        described = [(output.name, output.datatype, list(output.shape)) for output in answer.outputs]
        assert described == [("sum", "FP32", [1, 1]), ("steps", "INT64", [1])]
        assert list(answer.raw_output_contents) == [pack(1.5), (1).to_bytes(8, "little")]
        assert parameters_of(answer) == {"stream_id": "pump-7", "step": 1, "durable_step": 1}


async def test_sequences_of_one_call_run_in_one_batch(lstm_root: Path) -> None:
    """64 sequences that send at once share batches, and each gets the bits of the native protocol."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 64, len(LSTM_FEATURES))).astype(np.float32)
    async with run_server(lstm_root, batch_max=64) as server, raw_channel(server) as channel:
        native = [RawCall(channel) for _ in range(64)]
        expected = []
        for number, other in enumerate(native):
            await other.open(f"native-{number}")
            expected.append([(await other.step(*row)).prediction.outputs[0] for row in x[:, number]])
        call = StreamInfer(channel)
        got: list[list[bytes]] = [[] for _ in range(64)]
        before = await scrape(server)
        for step, rows in enumerate(x):
            await call.send(*(infer_request(number, *row, start=step == 0) for number, row in enumerate(rows, 1)))
            for answers in got:
                answers.append(raw_outputs((await call.read()).infer_response)["forecast"])
        assert got == expected
        after = await scrape(server)
        batches = after("tidegate_batch_size_count") - before("tidegate_batch_size_count")
        assert batches < 5 * 64 / 4


async def test_answers_come_in_the_order_of_requests(sum_root: Path) -> None:
    """Also when a sequence that is begun, which takes long, is before one that only needs a batch."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(1, 1.0, start=True)
        requests = [
            infer_request(2, 5.0, start=True, request_id="a"),
            infer_request(1, 1.0, request_id="b"),
            infer_request(2, 5.0, end=True, request_id="c"),
            infer_request(2, 7.0, start=True, request_id="d"),
            infer_request(1, 1.0, request_id="e"),
            infer_request(2, 7.0, request_id="f"),
        ]
        await call.send(*requests)
        answers = [(await call.read()).infer_response for _ in requests]
        assert [answer.id for answer in answers] == list("abcdef")
        assert [total(answer) for answer in answers] == [5.0, 2.0, 10.0, 7.0, 3.0, 14.0]


async def test_the_start_of_a_live_sequence_begins_it_anew(sum_root: Path) -> None:
    """The old state is gone, wherever the sequence was live."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        first, second = StreamInfer(channel), StreamInfer(channel)
        await first.step(7, 1.0, start=True)
        assert total(await first.step(7, 2.0, start=True)) == 2.0
        assert total(await second.step(7, 4.0, start=True)) == 4.0
        assert total(await second.step(7, 8.0)) == 12.0


async def test_a_missing_start_is_refused(sum_root: Path) -> None:
    """With Triton's words and the id of the request, and the call goes on."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        refused = await call.refused(infer_request(42, 1.0, request_id="first"))
        assert refused.error_message == (
            "inference request for sequence 42 to model 'toy' must specify the START flag on the first request of the "
            "sequence"
        )
        assert refused.infer_response.id == "first"
        assert total(await call.step(42, 1.0, start=True)) == 1.0


async def test_an_ended_sequence_is_unknown(sum_root: Path) -> None:
    """The end runs its timestep and deletes the stream."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        assert total(await call.step(7, 2.0, end=True)) == 3.0
        assert "must specify the START flag" in (await call.refused(infer_request(7, 1.0))).error_message
        assert live(server) == 0
        assert total(await call.step(7, 5.0, start=True, end=True)) == 5.0


async def test_a_request_without_a_sequence_is_refused(sum_root: Path) -> None:
    """The model has state, and whose it is must be known. An id of 0 is no id."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        refused = await StreamInfer(channel).refused(infer_request(0, 1.0, request_id="x"))
        assert "must specify a non-zero or non-empty correlation ID" in refused.error_message
        assert refused.infer_response.id == "x"


async def test_a_cancelled_call_parks_its_sequences(sum_root: Path) -> None:
    """Another call continues them without a start, and is told that they were resumed."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        call.call.cancel()
        await eventually(lambda: live(server) == 0, "parking")
        answer = await StreamInfer(channel).step(7, 2.0)
        assert total(answer) == 3.0
        assert parameters_of(answer)["resumed"] is True
        assert parameters_of(answer)["step"] == 2


async def test_a_sequence_may_change_its_connection(sum_root: Path) -> None:
    """As with Triton, any connection may send the next step; and back."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, raw_channel(server) as other_channel:
        one, other = StreamInfer(channel), StreamInfer(other_channel)
        await one.step(7, 1.0, start=True)
        assert total(await other.step(7, 2.0)) == 3.0
        assert total(await one.step(7, 4.0)) == 7.0


async def test_a_sequence_is_a_stream_of_the_native_protocol(sum_root: Path) -> None:
    """A number is the stream id in decimal digits."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        await StreamInfer(channel).step(42, 1.0, start=True)
        native = RawCall(channel)
        assert (await native.open("42")).next_step == 2
        assert (await native.step(2.0)).prediction.outputs[0] == pack(3.0)


async def test_a_silent_sequence_wakes(sum_root: Path) -> None:
    """Its stream is parked while the call has it open, and its next request wakes it."""
    async with run_server(sum_root, park_after=0.05, checkpoint_every=0.01) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        await eventually(lambda: live(server) == 0, "parking")
        assert total(await call.step(7, 2.0)) == 3.0


async def test_a_repeat_with_its_number_is_applied_once(sum_root: Path) -> None:
    """The parameter `step` gives what the native protocol gives: the remembered answer, or a refusal."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True, step=1)
        first = await call.step(7, 2.0, step=2)
        again = await call.step(7, 2.0, step=2)
        assert raw_outputs(again) == raw_outputs(first)
        assert parameters_of(again)["duplicate"] is True
        gap = await call.refused(infer_request(7, 2.0, step=4))
        assert gap.error_message.startswith("step: got 4, expected 3")
        assert parameters_of(gap.infer_response) == {"reason": "STEP_GAP", "next_step": 3}
        differ = await call.refused(infer_request(7, 9.0, step=2))
        assert parameters_of(differ.infer_response)["reason"] == "VALUES_DIFFER"


async def test_only_an_answer_without_a_number_waits_for_the_store(sum_root: Path) -> None:
    """Who numbers timesteps can send them again, and is told what is stored."""
    async with run_server(sum_root, checkpoint_every=3600.0) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True, step=1)
        assert parameters_of(await call.step(7, 1.0, step=2))["durable_step"] == 0
        assert parameters_of(await call.step(7, 1.0))["durable_step"] == 3
        assert parameters_of(await call.step(7, 1.0, step=4, durability="sync"))["durable_step"] == 4
        assert parameters_of(await call.step(7, 1.0, durability="background"))["durable_step"] == 4


async def test_only_the_outputs_asked_for_are_answered(sum_root: Path) -> None:
    """In the order of the request; an unknown one is refused."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        one = await call.step(7, 1.0, start=True, outputs=("steps",))
        assert [output.name for output in one.outputs] == ["steps"]
        assert list(one.raw_output_contents) == [(1).to_bytes(8, "little")]
        both = await call.step(7, 1.0, outputs=("steps", "sum"))
        assert list(raw_outputs(both)) == ["steps", "sum"]
        refused = await call.refused(infer_request(7, 1.0, outputs=("loss",)))
        assert "unexpected inference output 'loss' for model 'toy'" in refused.error_message
        assert total(await call.step(7, 1.0)) == 3.0


async def test_a_refused_start_leaves_the_old_stream(sum_root: Path) -> None:
    """A request is checked before the old state is deleted."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        await call.refused(infer_request(7, 1.0, 2.0, start=True))
        await call.refused(infer_request(7, 1.0, start=True, outputs=("loss",)))
        await call.refused(infer_request(7, 1.0, start=True, model="other"))
        assert total(await call.step(7, 2.0)) == 3.0


async def test_other_parameters_are_ignored(sum_root: Path) -> None:
    """Clients of Triton send some of them always, and users may send their own."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        more = {"triton_enable_empty_final_response": False, "priority": 1, "timeout": 5, "mine": "text", "gain": 0.5}
        assert total(await StreamInfer(channel).step(7, 1.0, start=True, **more)) == 1.0


async def test_bytes_that_are_no_request_end_the_call(sum_root: Path) -> None:
    """Nobody knows which request they were."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.send(b"\xff\xff")
        ending = await call.ending()
        assert ending.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "ModelInferRequest" in ending.message


async def test_an_error_can_be_the_status_of_the_call(sum_root: Path) -> None:
    """When the client asks for that with Triton's metadata."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel, metadata=(("triton_grpc_error", "true"),))
        await call.step(7, 1.0, start=True)
        await call.send(infer_request(8, 1.0))
        ending = await call.ending()
        assert ending.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "must specify the START flag" in ending.message


async def test_a_stopping_server_answers_and_stores(sum_root: Path) -> None:
    """Every timestep that it has applied is answered and stored; then the call ends UNAVAILABLE."""
    async with run_server(sum_root, checkpoint_every=3600.0) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True, step=1)
        (serving,) = server._servicer._calls
        for _ in range(200):
            await call.call.write(infer_request(7, 1.0, durability="background").SerializeToString())
        await eventually(lambda: len(serving._pending) > 1, "requests in flight")  # type: ignore[attr-defined]
        stopping = asyncio.create_task(server._servicer._calls.drain())
        answered = 1 + len(await call.rest())
        ending = await call.ending()
        assert (ending.code, ending.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        await stopping
        found = await server.admin_service.describe(Key("default", "7"))
        assert (found.step, found.durable_step) == (answered, answered)


async def test_a_client_that_does_not_read_stops_being_read(sum_root: Path) -> None:
    """The server holds a bounded number of its requests, and others are answered as before."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, raw_channel(server) as other_channel:
        flood = StreamInfer(channel)
        await flood.step(1, 1.0, start=True)

        # Each answer has the id of its request: with a long one, few answers fill what the connection holds.
        request = infer_request(1, 1.0, durability="background", request_id="x" * 3_000).SerializeToString()

        async def send() -> None:
            while True:
                await flood.call.write(request)

        def pending() -> int:
            return max(len(call._pending) for call in server._servicer._calls)  # type: ignore[attr-defined]

        sending = asyncio.create_task(send())
        await eventually(lambda: pending() >= PENDING_MAX, "the bound")
        other = StreamInfer(other_channel)
        await other.step(2, 1.0, start=True)
        for _ in range(50):
            assert total(await other.step(2, 1.0, durability="background")) > 1.0
        assert pending() == PENDING_MAX
        sending.cancel()
        flood.call.cancel()
        await eventually(lambda: len(server._servicer._calls) == 1, "the end of the call")


def any_request(rng: random.Random) -> Any:
    """A request that is right, or has parts that are wrong or missing."""
    if rng.random() < 0.5:
        start, end = rng.random() < 0.3, rng.random() < 0.2
        return infer_request(rng.choice([1, 2, 3]), rng.random(), start=start, end=end, step=rng.choice([0, 0, 1, 2]))
    request = messages.ModelInferRequest(model_name=rng.choice(["toy", "toy", "toy", "", "other", "é" * 300]))
    request.model_version = rng.choice(["", "", "1", "2", "x"])
    for name in ("sequence_id", "sequence_start", "sequence_end", "step", "durability", "other"):
        if rng.random() < 0.6:
            kind, value = rng.choice(
                [
                    ("bool_param", rng.random() < 0.5),
                    ("int64_param", rng.choice([1, 2, 3, 0, -1, 2**63 - 1])),
                    ("uint64_param", rng.choice([1, 2, 2**64 - 1])),
                    ("string_param", rng.choice(["1", "2", "sync", "background", "", "\n", "x" * 300])),
                    ("double_param", float("nan")),
                ]
            )
            setattr(request.parameters[name], kind, value)
    for _ in range(rng.choice([1, 1, 1, 1, 0, 2])):
        tensor = request.inputs.add(
            name=rng.choice(["x", "x", "x", "y"]), datatype=rng.choice(["FP32", "FP32", "BYTES"])
        )
        tensor.shape.extend(rng.choice([[1, 1], [1, 1], [1], [], [-1, 1], [2**62, 2**62]]))
        if rng.random() < 0.2:
            tensor.contents.fp32_contents.extend([rng.random()] * rng.choice([1, 0, 3]))
        if rng.random() < 0.1:
            tensor.contents.bytes_contents.append(b"x")
        if rng.random() < 0.9:
            request.raw_input_contents.append(rng.randbytes(rng.choice([4, 4, 4, 0, 5])))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        request.outputs.add(name=rng.choice(["sum", "steps", "loss"]))
    return request


@pytest.mark.parametrize("seed", range(3))
async def test_anything_is_answered_once(sum_root: Path, seed: int) -> None:
    """In order, with its id; and the server serves on."""
    rng = random.Random(seed)
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        requests = [any_request(rng) for _ in range(300)]
        for number, request in enumerate(requests):
            request.id = str(number)
        sending = asyncio.create_task(call.send(*requests))
        responses = [await call.read() for _ in requests]
        await sending
        assert [response.infer_response.id for response in responses] == [request.id for request in requests]
        assert {bool(response.error_message) for response in responses} == {True, False}
        assert (await call.finish()).code is grpc.StatusCode.OK
        assert total(await StreamInfer(channel).step(99, 1.0, start=True)) == 1.0
