"""The versions of a graph: as low as its operators allow, and it computes the same."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from tidegate.training.network.network import Network
from tidegate.training.publishing.opset import lower_versions


def split_graph(width: int, parts: int, axis: int, *, fixed: bool = True) -> onnx.ModelProto:
    """A graph of opset 20 that splits `x` [batch, width] into equal parts, the last of them smaller if need be."""
    size = -(-width // parts)
    names = [f"part{index}" for index in range(parts)]
    sizes = [size] * (parts - 1) + [width - size * (parts - 1)]
    split = helper.make_node("Split", ["x"], names, axis=axis, num_outputs=parts)
    outputs = [
        helper.make_tensor_value_info(name, 1, ["batch", own if fixed else "some"])
        for name, own in zip(names, sizes, strict=True)
    ]
    x = helper.make_tensor_value_info("x", 1, ["batch", width])
    graph = helper.make_graph([split], "split", [x], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs_of(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime computes."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def test_a_forecast_needs_no_new_onnxruntime(exported: tuple[Network, onnx.ModelProto]) -> None:
    """No graph above IR 9 is loaded by onnxruntime before 1.18; ours has IR 8, and no operator that came after opset 16."""
    model = exported[1]
    assert model.ir_version == 8
    assert [(part.domain, part.version) for part in model.opset_import] == [("", 16)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("width", "parts"), [(6, 3), (7, 3)])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_split_says_the_same_in_an_older_version(width: int, parts: int, axis: int) -> None:
    """Its parts stay the same, the smaller last one too, and the graph is stamped with the opset that knows their sizes."""
    model = split_graph(width, parts, axis)
    x = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    before = outputs_of(model, x)
    lower_versions(model)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    assert all(np.array_equal(one, other) for one, other in zip(before, outputs_of(model, x), strict=True))


def test_sizes_that_are_not_fixed_keep_the_newer_opset() -> None:
    """What cannot be said in an older opset is not changed."""
    model = split_graph(6, 3, 1, fixed=False)
    lower_versions(model)
    assert model.opset_import[0].version == 18
    assert [part.name for part in model.graph.node[0].attribute] == ["axis", "num_outputs"]


def test_an_operator_inside_a_branch_counts() -> None:
    """The opset is that of the newest operator, wherever it stands: here a node of opset 17 inside an `If` of opset 16."""
    inside = helper.make_node("LayerNormalization", ["x", "scale"], ["y"])
    branch = helper.make_graph([inside], "branch", [], [helper.make_tensor_value_info("y", 1, ["batch", 4])])
    node = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    shapes = {"yes": (9, []), "x": (1, ["batch", 4]), "scale": (1, [4])}
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "whole", inputs, [helper.make_tensor_value_info("z", 1, ["batch", 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    lower_versions(model)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    onnx.checker.check_model(model, full_check=True)
