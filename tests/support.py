"""Shared parts of the tests: toy graphs, an oracle that runs a graph alone, a real server, forced interleavings.

The graphs are built with `onnx.helper`, so these tests need no torch. They are so small that their answers can often be
computed by hand: in a running sum, a lost or mixed-up state shows as a wrong integer.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
from google.rpc import error_details_pb2, status_pb2
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from tests.forked import Started, start
from tests.timeouts import TIMEOUT_S
from tidegate.core.engine import Engine
from tidegate.core.model import Model
from tidegate.core.slots import Slots
from tidegate.core.spec import Key
from tidegate.core.streams import Lease, StreamTable
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.metrics import ModelMetrics
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

ROOT = Path(__file__).parent.parent

Tensor = tuple[str, int, Sequence[int | str]]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


# Toy graphs ----------------------------------------------------------------------------------------------------------


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: Mapping[str, Any] | None = None,
    description: Mapping[str, Any] | str | None = None,
) -> bytes:
    """The bytes of a graph. `description` becomes its metadata."""
    graph = helper.make_graph(
        list(nodes),
        "toy",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if description is not None:
        text = description if isinstance(description, str) else json.dumps(description)
        helper.set_model_props(model, {"tidegate": text})
    return model.SerializeToString()


def describe(
    features: Sequence[str | Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    state: Sequence[Mapping[str, Any]],
    /,
    **more: Any,
) -> dict[str, Any]:
    """The description of a graph, as in docs/model.md. `more` adds or replaces keys."""
    return {
        "contract": 1,
        "task": "test",
        "features": [{"name": feature} if isinstance(feature, str) else dict(feature) for feature in features],
        "outputs": [dict(output) for output in outputs],
        "state": [dict(part) for part in state],
        **more,
    }


def running_sum(**more: Any) -> bytes:
    """Sums x and counts the timesteps.

    Its state has a batch axis 0 (`total`), a batch axis 1 (`trail`, the last two sums), and an int64 scalar (`count`).
    """
    nodes = [
        helper.make_node("Add", ["total", "x"], ["total_next"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
        helper.make_node("Transpose", ["total_next"], ["column"]),
        helper.make_node("Slice", ["trail", "from", "to"], ["kept"]),
        helper.make_node("Concat", ["kept", "column"], ["trail_next"], axis=0),
        helper.make_node("Identity", ["total_next"], ["sum"]),
        helper.make_node("Identity", ["count_next"], ["steps"]),
    ]
    return build(
        nodes,
        [
            ("x", FLOAT, ["batch", 1]),
            ("total", FLOAT, ["batch", 1]),
            ("trail", FLOAT, [2, "batch"]),
            ("count", INT64, ["batch"]),
        ],
        [
            ("sum", FLOAT, ["batch", 1]),
            ("steps", INT64, ["batch"]),
            ("total_next", FLOAT, ["batch", 1]),
            ("trail_next", FLOAT, [2, "batch"]),
            ("count_next", INT64, ["batch"]),
        ],
        {"one": np.array(1, np.int64), "from": np.array([1], np.int64), "to": np.array([2], np.int64)},
        describe(
            ["x"],
            [{"name": "sum", "shape": ["batch", 1]}, {"name": "steps", "shape": ["batch"]}],
            [
                {"name": "total", "next": "total_next", "shape": ["batch", 1]},
                {"name": "trail", "next": "trail_next", "shape": [2, "batch"]},
                {"name": "count", "next": "count_next", "shape": ["batch"]},
            ],
            **more,
        ),
    )


LSTM_FEATURES = tuple(f"s{number}" for number in range(8))


def lstm(hidden: int = 16, seed: int = 0, **more: Any) -> bytes:
    """A fused LSTM over eight features with a guard: the last value seen replaces NaN. Forecasts s0 at +1 and +3."""
    rng = np.random.default_rng(seed)
    width = len(LSTM_FEATURES)

    def weights(*shape: int) -> Any:
        return rng.normal(0.0, 0.5, shape).astype(np.float32)

    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "last", "x"], ["last_next"]),
        helper.make_node("Unsqueeze", ["last_next", "axis"], ["sequence"]),
        helper.make_node(
            "LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "h_next", "c_next"], hidden_size=hidden
        ),
        helper.make_node("Squeeze", ["h_next", "axis"], ["top"]),
        helper.make_node("Gemm", ["top", "head", "offset"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["forecast"]),
    ]
    state = [
        ("last", ["batch", width]),
        ("h", [1, "batch", hidden]),
        ("c", [1, "batch", hidden]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", width]), *((name, FLOAT, shape) for name, shape in state)],
        [("forecast", FLOAT, ["batch", 2, 1]), *((f"{name}_next", FLOAT, shape) for name, shape in state)],
        {
            "axis": np.array([0], np.int64),
            "shape": np.array([-1, 2, 1], np.int64),
            "W": weights(1, 4 * hidden, width),
            "R": weights(1, 4 * hidden, hidden),
            "B": weights(1, 8 * hidden),
            "head": weights(hidden, 2),
            "offset": weights(2),
        },
        describe(
            [{"name": name, "unit": "V", "low": -2.0, "high": 2.0} for name in LSTM_FEATURES],
            [{"name": "forecast", "shape": ["batch", 2, 1], "targets": ["s0"], "units": ["V"], "horizons": [1, 3]}],
            [{"name": name, "next": f"{name}_next", "shape": shape} for name, shape in state],
            **{"task": "forecast", "cell": "lstm", "period_s": 3600.0, "handles_missing": True, **more},
        ),
    )


def _one_state(
    nodes: Sequence[onnx.NodeProto],
    output: Tensor,
    constants: Mapping[str, Any] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    **more: Any,
) -> bytes:
    """A graph with one feature and the state `total`. `nodes` compute `total_next` and the output."""
    return build(
        nodes,
        [("x", FLOAT, ["batch", 1]), ("total", FLOAT, ["batch", 1])],
        [output, ("total_next", FLOAT, ["batch", 1])],
        constants,
        describe(
            [{"name": "x", "low": low, "high": high}],
            [{"name": output[0], "shape": output[2]}],
            [{"name": "total", "next": "total_next", "shape": ["batch", 1]}],
            **more,
        ),
    )


def picky(**more: Any) -> bytes:
    """Sums table[x] for a table of four values. Raises for the whole batch when one x is not 0 to 3."""
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
        helper.make_node("Add", ["total", "picked"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    table = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)
    return _one_state(nodes, ("sum", FLOAT, ["batch", 1]), {"table": table}, **{"low": 0.0, "high": 3.0, **more})


def inverse(**more: Any) -> bytes:
    """Sums 1/x: x = 0 produces a state that is not finite."""
    nodes = [
        helper.make_node("Div", ["one", "x"], ["inverse"]),
        helper.make_node("Add", ["total", "inverse"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    return _one_state(
        nodes, ("sum", FLOAT, ["batch", 1]), {"one": np.array(1, np.float32)}, **{"low": 1.0, "high": 2.0, **more}
    )


def fragile() -> bytes:
    """Sums table[x] + 1/y: an x that is not 0 to 3 raises; y = 0 produces a state that is not finite."""
    nodes = [
        helper.make_node("Split", ["x"], ["x0", "x1"], axis=1, num_outputs=2),
        helper.make_node("Cast", ["x0"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
        helper.make_node("Div", ["picked", "x1"], ["quotient"]),
        helper.make_node("Add", ["total", "quotient"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 2]), ("total", FLOAT, ["batch", 1])],
        [("sum", FLOAT, ["batch", 1]), ("total_next", FLOAT, ["batch", 1])],
        {"table": np.array([1.0, 10.0, 100.0, 1000.0], np.float32)},
        describe(
            [{"name": "pick", "low": 0.0, "high": 3.0}, {"name": "by", "low": 1.0, "high": 2.0}],
            [{"name": "sum", "shape": ["batch", 1]}],
            [{"name": "total", "next": "total_next", "shape": ["batch", 1]}],
        ),
    )


def crosstalk() -> bytes:
    """Depends on its batch, as no model should: it subtracts the mean over the batch axis."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Add", ["total", "centred"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    return _one_state(nodes, ("sum", FLOAT, ["batch", 1]), {"axis": np.array([0], np.int64)})


WIDE = 16_384


def wide() -> bytes:
    """A running sum with an answer of 64 KiB: a client that does not read it soon blocks the call."""
    nodes = [
        helper.make_node("Add", ["total", "x"], ["total_next"]),
        helper.make_node("Mul", ["total_next", "ones"], ["sum"]),
    ]
    return _one_state(nodes, ("sum", FLOAT, ["batch", WIDE]), {"ones": np.ones((1, WIDE), np.float32)})


def counting() -> bytes:
    """Counts to x in a loop and sums it: x sets how slow it is."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["counted", "one"], ["counted_next"]),
        ],
        "count",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted", FLOAT, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted_next", FLOAT, ["rows", 1]),
        ],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=INT64),
        helper.make_node("Loop", ["turns", "", "total"], ["total_next"], body=body),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    return _one_state(nodes, ("sum", FLOAT, ["batch", 1]), low=0.0, high=3.0)


# The oracle ----------------------------------------------------------------------------------------------------------

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def replay(graph: bytes, rows: Any) -> list[dict[str, Any]]:
    """Runs a graph alone through bare onnxruntime, without any of our code.

    Returns one mapping of outputs for each row.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    described = json.loads(session.get_modelmeta().custom_metadata_map["tidegate"])
    types = {tensor.name: DTYPES[tensor.type] for tensor in session.get_inputs()}
    state = {
        part["name"]: np.full(
            [1 if size == "batch" else size for size in part["shape"]], part.get("initial", 0), types[part["name"]]
        )
        for part in described["state"]
    }
    outputs = [output["name"] for output in described["outputs"]]
    nexts = {part["next"]: part["name"] for part in described["state"]}
    answers = []
    for row in np.asarray(rows, np.float32):
        results = session.run([*outputs, *nexts], {described.get("input", "x"): row[np.newaxis], **state})
        answers.append({name: result[0] for name, result in zip(outputs, results, strict=False)})
        state = dict(zip(nexts.values(), results[len(outputs) :], strict=True))
    return answers


def same_bits(got: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether two answers have the same names, dtypes, shapes and bits."""
    return list(got) == list(expected) and all(
        got[name].dtype == expected[name].dtype
        and got[name].shape == expected[name].shape
        and got[name].tobytes() == expected[name].tobytes()
        for name in expected
    )


def sensor_rows(count: int, *, seed: int = 0, missing: float = 0.0) -> Any:
    """Rows for `lstm`, with this fraction of their values missing."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-2, 2, (count, len(LSTM_FEATURES))).astype(np.float32)
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


# Parts without a server ----------------------------------------------------------------------------------------------


def load(graph: bytes, name: str = "toy", version: str = "1", sidecar: str | None = None) -> Model:
    """A model from toy bytes."""
    return Model(name, version, graph, sidecar)


def make_engine(graph: bytes, *, capacity: int = 8, answers: int = 4) -> Engine:
    """An engine with new slots."""
    model = load(graph)
    return Engine(model, Slots(model.spec, capacity, answers))


def pack(*values: float) -> bytes:
    """The packed values of a timestep."""
    return np.array(values, "<f4").tobytes()


def key(name: str) -> Key:
    """The key of a stream."""
    return Key("default", name)


class BatcherSetup:
    """A batcher on a real engine, with streams to submit timesteps for."""

    def __init__(self, graph: bytes, *, batch_max: int = 16, queue_max: int = 64, capacity: int = 32) -> None:
        self.engine = make_engine(graph, capacity=capacity)
        self.metrics = ModelMetrics("toy", "1", self.engine.model.spec.fingerprint)
        self.batcher = Batcher(self.engine, self.metrics, batch_max=batch_max, queue_max=queue_max)
        self.streams = StreamTable()
        self.batches: list[tuple[int, ...]] = []
        inner = self.engine.run

        def noted(slots: Any, *columns: Any) -> Any:
            self.batches.append(tuple(slots.tolist()))
            return inner(slots, *columns)

        alone = self.engine.run_one

        def noted_alone(slot: Any, timestep: Any) -> Any:
            prediction = alone(slot, timestep)
            if prediction is not None:
                self.batches.append((slot,))
            return prediction

        self.engine.run = noted  # type: ignore[method-assign]
        self.engine.run_one = noted_alone  # type: ignore[method-assign]

    def begin(self, name: str) -> Lease:
        """A new live stream with that name."""
        slots = self.engine.slots
        return self.streams.begin(key(name), slots, slots.acquire(key(name)), 1)


@asynccontextmanager
async def run_batcher(graph: bytes, **limits: int) -> AsyncIterator[BatcherSetup]:
    """A setup whose batcher runs."""
    bench = BatcherSetup(graph, **limits)
    task = asyncio.create_task(bench.batcher.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Gate:
    """Blocks every batch of an engine in its thread, before it touches anything, until the gate lets it through."""

    def __init__(self, batcher: Batcher) -> None:
        self._inner = batcher.engine.run
        self._permits = threading.Semaphore(0)
        self._opened = False
        self._entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.held = 0
        batcher.cost.single_row_seconds = 1e9  # so slow that every batch goes to the thread
        batcher.engine.run = self._run  # type: ignore[method-assign]

    def _run(self, *arguments: Any) -> Any:
        self.held += 1
        self._loop.call_soon_threadsafe(self._entered.set)
        assert self._opened or self._permits.acquire(timeout=TIMEOUT_S), "nobody opened the gate"
        return self._inner(*arguments)

    async def entered(self) -> None:
        """Waits until a batch is blocked."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._entered.wait()

    def let_one(self) -> None:
        """Lets the blocked batch through, and blocks the next one."""
        self._entered.clear()
        self._permits.release()

    def open(self) -> None:
        """Lets this batch and all later ones through."""
        self._opened = True
        self._permits.release()


# Servers -------------------------------------------------------------------------------------------------------------


def write_model(
    root: Path, graph: bytes, name: str = "toy", version: str = "1", sidecar: str | None = None, card: str | None = None
) -> Path:
    """Writes a model where a server looks for it. Returns the root folder."""
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    if sidecar is not None:
        (folder / "model.toml").write_text(sidecar, "utf-8")
    if card is not None:
        (folder / "card.json").write_text(card, "utf-8")
    return root


@asynccontextmanager
async def run_server(root: Path, **settings: Any) -> AsyncIterator[Server]:
    """A real server on free ports."""
    settings = {"batch_max": 16, "state": "memory:", **settings}
    server = Server(ServerConfig(models=root, host="127.0.0.1", port=0, metrics_port=0, **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def address_of(server: Server) -> str:
    """The address of its gRPC port."""
    return f"127.0.0.1:{server.grpc_port}"


def batcher_of(server: Server, name: str = "toy") -> Batcher:
    """The batcher of a served model."""
    return server.repository.find(name, "").batcher


def live(server: Server) -> int:
    """The number of used slots."""
    return sum(len(served.slots) for served in server.repository)


def park_after(server: Server, seconds: float) -> None:
    """Changes after how much silence streams are parked: with an hour, a test that is slow finds them live."""
    checkpointer = server.stream_service.checkpointer
    checkpointer._schedule = replace(checkpointer._schedule, park_after_s=seconds)


async def eventually(condition: Callable[[], bool], what: str = "it") -> None:
    """Waits until a condition holds; fails when it does not hold in time."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - the parts of a server have no event for it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None


@dataclass(frozen=True)
class Ending:
    """How a call ended."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    retry_s: float | None
    fields: tuple[str, ...]
    action: str
    next_step: int


def read_ending(code: grpc.StatusCode, message: str | None, trailers: Any) -> Ending:
    """Unpacks the google.rpc details of a status."""
    status = status_pb2.Status()
    for name, value in trailers or ():
        if name == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    retry_s = None
    fields: tuple[str, ...] = ()
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
        if detail.Unpack(bad):
            fields = tuple(violation.field for violation in bad.field_violations)
    action, next_step = info.metadata.get("action", ""), int(info.metadata.get("next_step", 0))
    return Ending(code, message or "", info.reason, info.domain, retry_s, fields, action, next_step)


class RawCall:
    """A `Predict` call without our client: any bytes can be sent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            "/tidegate.v1.TidegateService/Predict", response_deserializer=pb.PredictResponse.FromString
        )()

    async def send(self, request: pb.PredictRequest | bytes) -> None:
        """Sends a request, or any other bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        async with asyncio.timeout(TIMEOUT_S):
            await self.call.write(data)

    async def read(self) -> pb.PredictResponse:
        """The next response."""
        async with asyncio.timeout(TIMEOUT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.ending()
        return response

    async def ask(self, request: pb.PredictRequest | bytes) -> pb.PredictResponse:
        """Sends a request and reads its response; skips notifications."""
        await self.send(request)
        while (response := await self.read()).HasField("durable"):
            pass
        return response

    async def open(self, stream_id: str = "", **more: Any) -> pb.Opened:
        """Opens a stream."""
        return (await self.ask(pb.PredictRequest(open=pb.Open(stream_id=stream_id, **more)))).opened

    async def step(self, *values: float, step: int = 0) -> pb.PredictResponse:
        """Sends a timestep and reads its answer."""
        return await self.ask(timestep(*values, step=step))

    async def ending(self) -> Ending:
        """Reads until the end of the call."""
        return await ending_of(self.call)


class RawBlocks:
    """A `PredictBlocks` call without our client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            "/tidegate.v1.TidegateService/PredictBlocks", response_deserializer=pb.PredictBlocksResponse.FromString
        )()
        self.notifications: list[pb.PredictBlocksResponse] = []  # the notifications so far

    async def send(self, request: pb.PredictBlocksRequest | bytes) -> None:
        """Sends a request, or any other bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        async with asyncio.timeout(TIMEOUT_S):
            await self.call.write(data)

    async def read(self) -> pb.PredictBlocksResponse:
        """The next response of any kind."""
        async with asyncio.timeout(TIMEOUT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.ending()
        return response

    async def ask(self, request: pb.PredictBlocksRequest | bytes) -> pb.PredictBlocksResponse:
        """Sends a request and reads its response; notifications are kept."""
        await self.send(request)
        while (response := await self.read()).WhichOneof("kind") in ("durable", "ended"):
            self.notifications.append(response)
        return response

    async def open(self, *stream_ids: str, **more: Any) -> pb.OpenedStreams:
        """Opens streams."""
        return (await self.ask(pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=stream_ids, **more)))).opened

    async def block(self, handles: Any, x: Any, steps: Any = None, number: int = 0) -> pb.PredictedBlock:
        """Sends a block and reads its answer."""
        return (await self.ask(block_request(handles, x, steps, number))).block

    async def close(self, *handles: int, forget: bool = False) -> pb.ClosedStreams:
        """Closes streams."""
        return (await self.ask(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles, forget=forget)))).closed

    async def ending(self) -> Ending:
        """Reads until the end of the call."""
        return await ending_of(self.call)


def block_request(handles: Any, x: Any, steps: Any = None, number: int = 0) -> pb.PredictBlocksRequest:
    """The request with a block."""
    return pb.PredictBlocksRequest(
        block=pb.Block(
            block=number,
            handles=np.asarray(handles, "<u4").tobytes(),
            steps=b"" if steps is None else np.asarray(steps, "<u8").tobytes(),
            values=np.asarray(x, "<f4").tobytes(),
        )
    )


async def ending_of(call: Any) -> Ending:
    """Reads until the end of a call."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return read_ending(await call.code(), await call.details(), await call.trailing_metadata())


def timestep(*values: float, step: int = 0) -> pb.PredictRequest:
    """The request with a timestep."""
    return pb.PredictRequest(timestep=pb.Timestep(step=step, values=pack(*values)))


@asynccontextmanager
async def raw_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address_of(server), options=options) as channel:
        yield channel


class Scrape:
    """The text of /metrics, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, sample: str, **labels: str) -> float:
        """The value of a sample. For a server with one model, its labels can be left out."""
        found = [
            value
            for (name, got), value in self._samples.items()
            if name == sample and labels.items() <= dict(got).items()
        ]
        assert len(found) == 1, f"{sample} {labels}: {len(found)} samples"
        return found[0]


async def scrape(server: Server) -> Scrape:
    """Reads /metrics over HTTP."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read().decode()

    return Scrape(await asyncio.to_thread(get))


# Processes -----------------------------------------------------------------------------------------------------------


class Process:
    """A `tidegate serve` process."""

    def __init__(self, popen: Started) -> None:
        self.popen = popen
        self.ready_line = ""

    @property
    def address(self) -> str:
        """The address of its gRPC port, from its ready line."""
        return self.ready_line.split("grpc=")[1].split()[0]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def until_busy(self) -> None:
        """Waits until it has used the processor for a while."""

        def ticks() -> int:
            return int(Path(f"/proc/{self.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()[11])

        begun, deadline = ticks(), time.monotonic() + TIMEOUT_S
        while ticks() < begun + 20:  # in hundredths of a second
            assert time.monotonic() < deadline, "it does nothing"
            time.sleep(0.01)

    def until_says(self, words: str) -> None:
        """Waits for a line in its log."""
        assert self.popen.stderr is not None
        assert any(words in line for line in self.popen.stderr), f"it never says {words}"

    def wait(self) -> tuple[int, str, str]:
        """Waits for the end. Returns the exit code, the rest of stdout, and stderr."""
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode, out, err


def environment() -> dict[str, str]:
    """An environment without Tidegate's settings, in which Python shows warnings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")} | {
        "COLUMNS": "200",
        "TIDEGATE_STATE": "memory:",
    }


@contextmanager
def serve(root: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Process]:
    """A server in its own process, ready. `before` is a command that runs it."""
    command = [
        *(*before, sys.executable, "-m", "tidegate", "serve", "--models", str(root), "--host", "127.0.0.1"),
        *("--port", "0", "--metrics-port", "0", "--batch-max", "16", "--state", "memory:", *options),
    ]
    popen = start(command, env=environment(), cwd=ROOT)
    process = Process(popen)
    try:
        assert popen.stdout is not None
        process.ready_line = popen.stdout.readline().rstrip("\n")
        assert process.ready_line, popen.communicate()[1]
        yield process
    finally:
        popen.kill()
        popen.communicate()


def run_command(*arguments: str, cwd: Path | None = None, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a `tidegate` command to its end, with additional environment variables."""
    command = [sys.executable, "-m", "tidegate", *arguments]
    popen = start(command, env=environment() | {"PYTHONPATH": str(ROOT / "src")} | variables, cwd=cwd or ROOT)
    try:
        out, err = popen.communicate(TIMEOUT_S)
    finally:
        popen.kill()
    return subprocess.CompletedProcess(popen.args, popen.wait(), out, err)
