"""The reader of ONNX files sees what the package onnx sees, and survives what is no ONNX file."""

import random
import time

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.foreign import exported
from tests.graphs import counting, lstm
from tidegate.core import onnx_file
from tidegate.core.onnx_file import NotOnnx, read_onnx

GRAPHS = [lstm(), counting(), exported.darts_rnn().SerializeToString(), exported.half_rnn().SerializeToString()]


@pytest.mark.parametrize("graph", GRAPHS, ids=["lstm", "loop", "darts", "half"])
def test_it_reads_what_onnx_reads(graph: bytes) -> None:
    """Operators with their inputs, outputs and bodies; tensors with their types and dimensions; metadata."""
    file, proto = read_onnx(graph), onnx.load_from_string(graph)

    def check(one: onnx_file.Graph, other: onnx.GraphProto) -> None:
        assert [(node.op, node.inputs, node.outputs) for node in one.nodes] == [
            (node.op_type, tuple(node.input), tuple(node.output)) for node in other.node
        ]
        assert one.initializers == {tensor.name for tensor in other.initializer}
        assert [tensor.name for tensor in one.outputs] == [tensor.name for tensor in other.output]
        for node, twin in zip(one.nodes, other.node, strict=True):
            bodies = [attribute.g for attribute in twin.attribute if attribute.type == onnx.AttributeProto.GRAPH]
            for body, its_twin in zip(node.graphs, bodies, strict=True):
                check(body, its_twin)

    check(file.graph, proto.graph)
    assert file.metadata == {part.key: part.value for part in proto.metadata_props}
    for tensor, twin in zip(file.graph.inputs, proto.graph.input, strict=True):
        kind = twin.type.tensor_type
        assert tensor.name == twin.name
        assert tensor.dtype == helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        assert tensor.dims == tuple(dim.dim_param or dim.dim_value or "" for dim in kind.shape.dim)


def test_inputs_that_are_weights_are_left_out() -> None:
    """Old exporters list every weight as an input too; nobody feeds them."""
    model = exported.time_major_lstm()
    model.graph.input.append(helper.make_tensor_value_info("head", exported.FLOAT, [4, 2]))
    assert [tensor.name for tensor in read_onnx(model.SerializeToString()).graph.inputs] == ["x", "h0", "c0"]


def test_random_bytes_are_refused() -> None:
    """With a reason, and without any other error."""
    rng = random.Random(0)
    for size in [*range(200), 5000]:
        with pytest.raises(NotOnnx):
            read_onnx(rng.randbytes(size))


@pytest.mark.parametrize("graph", GRAPHS, ids=["lstm", "loop", "darts", "half"])
def test_a_damaged_file_is_read_or_refused(graph: bytes) -> None:
    """Cut anywhere, or with some bytes changed: it never ends in another error."""
    rng = random.Random(1)
    for _ in range(500):
        damaged = bytearray(graph[: rng.randrange(len(graph))] if rng.random() < 0.5 else graph)
        for _ in range(3):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read_onnx(bytes(damaged))
        except NotOnnx:
            continue


def test_graphs_in_graphs_have_an_end() -> None:
    """A file cannot make the reader run out of stack."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, 0x80 | len(content) & 0x7F, len(content) >> 7]) + content

    graph = b""
    for _ in range(onnx_file.DEPTH_MAX + 2):
        graph = field(1, field(5, field(6, graph)))  # an operator with an attribute that is a graph
    with pytest.raises(NotOnnx, match="nested more than 32 deep"):
        read_onnx(b"\x08\x0a" + field(7, graph))


def test_a_file_of_nothing_but_fields_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of fields is bounded, and so is the time."""
    monkeypatch.setattr(onnx_file, "FIELDS_MAX", 1000)
    with pytest.raises(NotOnnx, match="more than 1,000 fields"):
        read_onnx(b"\x08\x01" * 2000)


def test_weights_are_stepped_over() -> None:
    """A hundred megabytes of weights cost no time: they are never looked at."""
    model = exported.build(
        [helper.make_node("Add", ["x", "big"], ["y"])],
        [("x", exported.FLOAT, [1])],
        [("y", exported.FLOAT, [25_000_000])],
        {"big": np.zeros(25_000_000, np.float32)},
    )
    data = model.SerializeToString()
    begun = time.process_time()
    assert read_onnx(data).graph.initializers == {"big"}
    assert time.process_time() - begun < 1
