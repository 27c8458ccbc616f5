"""Thousands of malformed messages to every method: each gets an answer, and no other client is affected."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from tests.calls import RawCall, block_request, pack, raw_channel, read_ending
from tests.engines import key
from tests.graphs import LSTM_FEATURES, lstm, write_model
from tests.oracle import replay, sensor_rows
from tests.servers import run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.rpc.kserve import messages as kserve
from tidegate.runtime.process import measure
from tidegate.v1 import tidegate_pb2 as pb

# `TIDEGATE_FUZZ_MESSAGES=100000` takes some minutes.
MESSAGES = int(os.environ.get("TIDEGATE_FUZZ_MESSAGES", "3000"))
TOGETHER = 16
NATIVE, KSERVE = "/tidegate.v1.TidegateService/", f"/{kserve.SERVICE_NAME}/"
# The codes for a client's error. UNKNOWN and INTERNAL would be errors of the server.
TAKEN = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "DATA_LOSS", "ABORTED"}
TAKEN |= {"RESOURCE_EXHAUSTED"}  # there are few slots, and calls hold them
TAKEN |= {"OUT_OF_RANGE"}  # a gap, in unary calls
TAKEN |= {"ENDED"}
# What grpc.aio reports instead of the server's status when it writes to a call that has just ended.
WRITE_FAILED = "Internal error from Core"
WIDTH = len(LSTM_FEATURES)
MEMORY_SPARE_BYTES = 16 << 20


def resident_bytes() -> float:
    """The memory of the server, which runs in this process."""
    return measure(os.getpid())["process_resident_memory_bytes"]


def seeds(record: bytes) -> dict[str, Sequence[Message]]:
    """Valid messages, by method."""
    name = {"stream_id": "fuzz"}
    block = block_request([1, 2, 1], np.ones((3, WIDTH)), [1, 1, 2], 7)
    opens = pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=["f1", "f2", ""], resume_from=[0, 0, 0]))
    methods: dict[str, Sequence[Message]] = {
        "Predict": [
            pb.PredictRequest(open=pb.Open(stream_id="fuzz", kept_max=3)),
            pb.PredictRequest(timestep=pb.Timestep(step=1, values=pack(*[1.0] * WIDTH))),
            pb.PredictRequest(close=pb.Close(forget=True)),
        ],
        "PredictBlocks": [opens, block, pb.PredictBlocksRequest(close=pb.CloseStreams(handles=[1, 2]))],
        "ListModels": [pb.ListModelsRequest()],
        "DescribeModel": [pb.DescribeModelRequest(name="toy", version="1")],
        "ListStreams": [pb.ListStreamsRequest(prefix="f", page_size=3, page_token="a", state=pb.Stream.STATE_LIVE)],
        "DescribeStream": [pb.DescribeStreamRequest(**name)],
        "DeleteStream": [pb.DeleteStreamRequest(**name)],
        "ExportStream": [pb.ExportStreamRequest(**name)],
        "ImportStream": [pb.ImportStreamRequest(checkpoint=record, stream_id="f3")],
        "ForkStream": [pb.ForkStreamRequest(stream_id="fuzz", new_stream_id="f4")],
        "PredictOne": [pb.PredictOneRequest(**name, step=1, values=pack(*[1.0] * WIDTH))],
        "ListVersions": [pb.ListVersionsRequest(name="toy")],
        # Of a model that is not there: the neighbour must keep its own.
        "LoadModel": [pb.LoadModelRequest(name="other", version="1")],
        "UnloadModel": [pb.UnloadModelRequest(name="other", version="1")],
        "PromoteModel": [pb.PromoteModelRequest(name="other", version="1")],
        "RollbackModel": [pb.RollbackModelRequest(name="other")],
        "ReloadModels": [pb.ReloadModelsRequest()],
    }
    return {NATIVE + method: messages for method, messages in methods.items()} | kserve_seeds()


def kserve_seeds() -> dict[str, Sequence[Message]]:
    """Valid messages of the other protocol."""
    infer = kserve.ModelInferRequest(model_name="toy", id="7", raw_input_contents=[pack(*[1.0] * WIDTH)])
    infer.parameters["sequence_id"].string_param = "f5"
    infer.parameters["sequence_start"].bool_param = True
    infer.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
    named = [
        kserve.message_class(f"{method}Request")(name="toy")
        for method in ("ModelReady", "ModelMetadata", "ModelConfig")
    ]
    return {
        KSERVE + "ModelInfer": [infer],
        KSERVE + "ModelStreamInfer": [infer, infer],
        **{KSERVE + type(message).__name__.removesuffix("Request"): [message] for message in named},
        KSERVE + "ModelStatistics": [kserve.message_class("ModelStatisticsRequest")(name="toy")],
        KSERVE + "RepositoryIndex": [kserve.message_class("RepositoryIndexRequest")(ready=True)],
        KSERVE + "RepositoryModelLoad": [kserve.message_class("RepositoryModelLoadRequest")(model_name="other")],
        KSERVE + "RepositoryModelUnload": [kserve.message_class("RepositoryModelUnloadRequest")(model_name="other")],
        KSERVE + "ServerMetadata": [kserve.message_class("ServerMetadataRequest")()],
    }


def mangled(chance: random.Random, data: bytes) -> bytes:
    """A message with some bytes changed, cut or repeated."""
    content = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        place = chance.randrange(len(content) + 1)
        match chance.randrange(4):
            case 0:
                content[place : place + 1] = chance.randbytes(1)
            case 1:
                content[place:place] = chance.choice((b"\xff", b"\0", b"\xff" * 9 + b"\x01", chance.randbytes(5)))
            case 2:
                del content[place : place + chance.randrange(9)]
            case _:
                content[place:place] = content[: chance.randrange(40)]
    return bytes(content)


async def send(channel: grpc.aio.Channel, method: str, messages: Sequence[bytes]) -> str:
    """The code of a call that sends these and half-closes."""
    call = channel.stream_stream(method)(iter_of(messages))
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        ending = read_ending(await call.code(), await call.details(), await call.trailing_metadata())
    if ending.message == WRITE_FAILED:
        return "ENDED"
    told = ending.message and (ending.reason or method.startswith(KSERVE))
    assert ending.code is grpc.StatusCode.OK or told, (method, messages, ending)
    return ending.code.name


async def iter_of(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    """The identity serializer."""
    for message in messages:
        yield message


async def test_messages_that_make_no_sense_do_not_affect_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A neighbour keeps its bits, each call ends with an allowed code and a reason, and the log stays empty."""
    write_model(tmp_path, lstm())
    rows = sensor_rows(2000, seed=1, missing=0.1)
    truth = replay(lstm(), rows)
    chance = random.Random(20)
    async with run_server(tmp_path, live_max=64, answers_remembered=4) as server, raw_channel(server) as channel:
        seed = RawCall(channel)
        await seed.open("seed")
        await seed.step(*[1.0] * WIDTH)
        right = {
            method: [message.SerializeToString() for message in messages]
            for method, messages in seeds((await server.admin_service.export(key("seed")))[0]).items()
        }
        neighbour = RawCall(channel)
        await neighbour.open("neighbour")
        caplog.set_level(logging.INFO)
        caplog.clear()
        codes: set[str] = set()
        left = MESSAGES
        memory: list[float] = []

        async def fuzz() -> None:
            nonlocal left
            while left > 0:
                method = chance.choice(list(right))
                messages = right[method]
                if len(messages) > 1:
                    messages = [messages[0], *chance.choices(messages, k=chance.randrange(4))]
                sent = [mangled(chance, message) for message in messages]
                left -= len(sent)
                if left < MESSAGES / 2 and not memory:
                    memory.append(resident_bytes())
                codes.add(await send(channel, method, sent))

        fuzzing = asyncio.gather(*(fuzz() for _ in range(TOGETHER)))
        step = 0
        while step < len(rows) and (not fuzzing.done() or step == 0):
            answer = (await neighbour.step(*rows[step], step=step + 1)).prediction
            assert answer.outputs[0] == truth[step]["forecast"].tobytes()
            step += 1
        await fuzzing
        memory.append(resident_bytes())
        log = list(caplog.records)
        await eventually(lambda: len(server._servicer._calls) == 2, "the end of the calls")
    assert codes <= TAKEN
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= codes
    # The first half has warmed everything up. An allocator keeps some megabytes; a leak of a message each would be more.
    assert memory[1] - memory[0] < MEMORY_SPARE_BYTES
    # A client that continues beyond what is stored reports a loss, which is logged.
    assert not [text for record in log if "was reported as stored" not in (text := record.getMessage())]


def test_every_method_gets_such_messages() -> None:
    """A new one must not be forgotten here. The liveness and readiness of KServe have empty requests."""
    tidegate = {NATIVE + method.name for method in pb.DESCRIPTOR.services_by_name["TidegateService"].methods}
    triton = {KSERVE + method.name for method in kserve.POOL.FindServiceByName(kserve.SERVICE_NAME).methods}
    left_out = {method for method in triton if "SharedMemory" in method or "Server" in method or "Setting" in method}
    assert tidegate | (triton - left_out) <= seeds(b"").keys()
