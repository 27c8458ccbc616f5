"""Inputs by name on the wire: what is refused, in which words, and what stays as it was."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import RawBlocks, RawCall, pack, raw_channel, read_ending
from tests.engines import load
from tests.graphs import running_sum, write_model
from tests.servers import run_server
from tests.timeouts import TIMEOUT_S
from tests.typed_graphs import scaled_sum, typed_sum
from tidegate.core.errors import InvalidField
from tidegate.core.input_layout import InputLayout
from tidegate.rpc import columns, wire
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

GRAPHS = {
    "int64": typed_sum(np.int64),
    "two": scaled_sum(np.int64),
    "bool": scaled_sum(np.bool_),
    "float64": typed_sum(np.float64),
    "plain": running_sum(),
}
SPECS = {name: load(graph).spec for name, graph in GRAPHS.items()}
X = np.array([1, 2], np.int64).tobytes()
SCALE = np.array([3], np.int64).tobytes()
ODD = np.array([1, np.inf]).tobytes()
Named = Sequence[tuple[str, bytes]]
# The graph; what is sent in `values` and by name; the field at fault, and a part of the message.
BAD: Mapping[str, tuple[str, bytes, Named, str, str]] = {
    "missing": ("int64", b"", [], "inputs", "got no 'x', expected 'x' (int64 [2])"),
    "one of two missing": ("two", pack(1, 2), [], "inputs", "got no 'scale', expected 'scale' (int64 [1])"),
    "unknown": ("int64", b"", [("x", X), ("y", X)], "inputs", "got 'y', expected 'x' (int64 [2])"),
    "twice": ("int64", b"", [("x", X), ("x", X)], "inputs", "got 'x' twice, expected each input once"),
    "too short": ("int64", b"", [("x", X[:-1])], "inputs", "'x' has 15 bytes, expected 16: int64 of shape [2]"),
    "too long": ("int64", b"", [("x", X + b"\0")], "inputs", "'x' has 17 bytes, expected 16: int64 of shape [2]"),
    "empty": ("two", pack(1, 2), [("scale", b"")], "inputs", "'scale' has 0 bytes, expected 8: int64 of shape [1]"),
    "values beside": (
        "int64",
        pack(1),
        [("x", X)],
        "values",
        "got 4 bytes, expected none; send 'x' (int64 [2]) by name",
    ),
    "values for x": ("int64", X, [], "inputs", "got no 'x'"),
    "no values": ("two", b"", [("scale", SCALE)], "values", "got 0 bytes for 'x', expected 8: float32 of shape [2]"),
    "x by name": ("two", b"", [("scale", SCALE), ("x", pack(1, 2))], "inputs", "got 'x', expected 'scale'"),
    "no boolean": ("bool", pack(1, 2), [("scale", b"\2")], "inputs", "'scale' has a byte that is neither 0 nor 1"),
    "none wanted": ("plain", pack(1), [("x", pack(1))], "inputs", "got 'x', expected none"),
    "infinity": ("float64", b"", [("x", ODD)], "inputs", "input 'x[1]' is inf, expected a finite number"),
}
each_bad = pytest.mark.parametrize(
    ("graph", "values", "named", "field", "message"), BAD.values(), ids=[name.replace(" ", "-") for name in BAD]
)


def inputs(named: Named) -> list[pb.InputValues]:
    """Inputs by name."""
    return [pb.InputValues(name=name, values=values) for name, values in named]


def good(graph: str, rows: int = 1) -> dict[str, Any]:
    """The fields of a timestep that is right, for so many rows."""
    return {
        "int64": {"inputs": inputs([("x", rows * X)])},
        "two": {"values": rows * pack(1, 2), "inputs": inputs([("scale", rows * SCALE)])},
        "bool": {"values": rows * pack(1, 2), "inputs": inputs([("scale", rows * b"\1")])},
        "float64": {"inputs": inputs([("x", rows * np.array([1.0, 2.0]).tobytes())])},
        "plain": {"values": rows * pack(1)},
    }[graph]


@each_bad
async def test_predict_refuses_it(
    tmp_path: Path, graph: str, values: bytes, named: Named, field: str, message: str
) -> None:
    """The stream stays usable, and its state is untouched."""
    async with run_server(write_model(tmp_path, GRAPHS[graph])) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        wrong = pb.Timestep(step=1, values=values, inputs=inputs(named))
        error = (await call.ask(pb.PredictRequest(timestep=wrong))).error
        assert (error.field, error.step, error.next_step) == (field, 1, 1)
        assert error.action == pb.Error.ACTION_DROP
        assert message in error.message
        answer = await call.ask(pb.PredictRequest(timestep=pb.Timestep(step=1, **good(graph))))
        assert answer.prediction.step == 1


@each_bad
async def test_a_unary_call_refuses_it(
    tmp_path: Path, graph: str, values: bytes, named: Named, field: str, message: str
) -> None:
    """With INVALID_ARGUMENT, and then takes what is right."""
    async with run_server(write_model(tmp_path, GRAPHS[graph])) as server, raw_channel(server) as channel:
        stub: Any = pb_grpc.TidegateServiceStub(channel)
        wrong = pb.PredictOneRequest(stream_id="a", step=1, values=values, inputs=inputs(named))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PredictOne(wrong, timeout=TIMEOUT_S)
        ending = read_ending(caught.value.code(), caught.value.details(), caught.value.trailing_metadata())
        assert ending.code is grpc.StatusCode.INVALID_ARGUMENT
        assert ending.message.startswith(f"{field}: ")
        assert message in ending.message
        right = pb.PredictOneRequest(stream_id="a", step=1, **good(graph))
        assert (await stub.PredictOne(right, timeout=TIMEOUT_S)).prediction.step == 1


@each_bad
@pytest.mark.parametrize("rows", [1, 3])
async def test_a_block_refuses_it(
    tmp_path: Path, graph: str, values: bytes, named: Named, field: str, message: str, rows: int
) -> None:
    """As a whole where its columns are wrong, row by row where a number is."""
    async with run_server(write_model(tmp_path, GRAPHS[graph])) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = np.array((await call.open(*"abc"[:rows])).handles, "<u4").tobytes()
        many = inputs([(name, rows * packed) for name, packed in named])
        wrong = pb.Block(handles=handles, values=rows * values, inputs=many)
        answer = (await call.ask(pb.PredictBlocksRequest(block=wrong))).block
        error = answer.refused if answer.HasField("refused") else answer.errors[0].error
        assert error.field == field
        expected = (
            message
            if rows == 1 or "bytes" not in message
            else message.split("bytes", maxsplit=1)[0].split(maxsplit=1)[0]
        )
        assert expected in error.message
        right = pb.Block(handles=handles, **good(graph, rows))
        answer = (await call.ask(pb.PredictBlocksRequest(block=right))).block
        assert np.frombuffer(answer.steps, "<u8").tolist() == [1] * rows


NAMES = st.sampled_from(["x", "scale", "y", ""])


@given(
    st.sampled_from(sorted(GRAPHS)),
    st.binary(max_size=9),
    st.lists(
        st.tuples(NAMES, st.integers(0, 3).map(lambda words: bytes(8 * words)) | st.binary(max_size=17)), max_size=3
    ),
    st.integers(0, 3),
)
def test_whatever_is_sent_becomes_whole_rows_or_is_refused(graph: str, values: bytes, named: Named, rows: int) -> None:
    """There is no third way: nothing else is raised, and no row is longer or shorter."""
    layout = InputLayout(SPECS[graph].inputs)
    with suppress(InvalidField):
        x = columns.decode_rows(pb.Block(values=values, inputs=inputs(named)), rows, layout)
        assert x.shape == (rows, layout.row_bytes // layout.row_dtype.itemsize)
    with suppress(InvalidField):
        timestep = wire.decode_timestep(pb.Timestep(values=values, inputs=inputs(named)), layout)
        assert layout.plain or len(timestep.values) == layout.row_bytes


async def test_a_size_is_told_for_all_rows_of_a_block(tmp_path: Path) -> None:
    """What a row needs, and how many there are."""
    async with run_server(write_model(tmp_path, GRAPHS["int64"])) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = np.array((await call.open("a", "b")).handles, "<u4").tobytes()
        block = pb.Block(handles=handles, inputs=inputs([("x", X)]))
        refused = (await call.ask(pb.PredictBlocksRequest(block=block))).block.refused
        assert "'x' has 16 bytes, expected 32: int64 of shape [2] for each of 2 rows" in refused.message


async def test_a_repeat_is_compared_to_the_last_bit(tmp_path: Path) -> None:
    """Two integers that are one as floating-point numbers are two."""
    async with run_server(write_model(tmp_path, GRAPHS["int64"])) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")

        async def step(first: int) -> pb.PredictResponse:
            named = inputs([("x", np.array([first, 0], np.int64).tobytes())])
            return await call.ask(pb.PredictRequest(timestep=pb.Timestep(step=1, inputs=named)))

        answer = (await step(2**53)).prediction
        assert (await step(2**53)).prediction == pb.Prediction(step=1, outputs=answer.outputs, duplicate=True)
        assert (await step(2**53 + 1)).error.reason == pb.Error.REASON_VALUES_DIFFER


async def test_missing_values_are_those_of_any_type(tmp_path: Path) -> None:
    """NaN is allowed where the model handles it, and all NaN are equal."""
    graph = typed_sum(np.float64, handles_missing=True, state=[
        {"name": "total", "next": "total_next", "shape": ["batch", 2], "finite": False}
    ])  # fmt: skip
    async with run_server(write_model(tmp_path, graph)) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        missing = np.array([1.0, np.nan])
        other = np.array([1.0, -missing[1]])
        assert missing.tobytes() != other.tobytes()
        for row, duplicate in ((missing, False), (other, True)):
            timestep = pb.Timestep(step=1, inputs=inputs([("x", row.tobytes())]))
            answer = await call.ask(pb.PredictRequest(timestep=timestep))
            assert answer.prediction.duplicate == duplicate, answer


async def test_a_model_says_how_each_input_travels(tmp_path: Path) -> None:
    """Name, type, shape, and where a client puts it."""
    root = write_model(tmp_path, scaled_sum(np.int32, per="stream"))
    async with run_server(root) as server, raw_channel(server) as channel:
        stub: Any = pb_grpc.TidegateServiceStub(channel)
        model = (await stub.DescribeModel(pb.DescribeModelRequest(), timeout=TIMEOUT_S)).model
        assert list(model.inputs) == [
            pb.Input(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=[2], kind=pb.Input.KIND_VALUES),
            pb.Input(name="scale", data_type=pb.DATA_TYPE_INT32, shape=[1], kind=pb.Input.KIND_STREAM),
        ]
