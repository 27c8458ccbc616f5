"""Graphs in the shape that exporters give them, built with `onnx.helper`: each has one thing that the packages' have not.

They are small networks with random weights. What they compute matters less than what their inputs and outputs look like.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64
NUMPY = {FLOAT: np.float32, DOUBLE: np.float64, HALF: np.float16, INT64: np.int64}
Tensor = tuple[str, int, Sequence[int | str | None]]


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weights: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A model of these parts."""
    graph = helper.make_graph(
        list(nodes),
        "exported",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model


def normal(seed: int, *shape: int, kind: int = FLOAT) -> Any:
    """Random weights."""
    return (0.5 * np.random.default_rng(seed).normal(size=shape)).astype(NUMPY[kind])


def lstm_weights(features: int, hidden: int, kind: int = FLOAT, gates: int = 4) -> dict[str, Any]:
    """The weights of a fused LSTM, or of a GRU with three gates."""
    return {
        "W": normal(1, 1, gates * hidden, features, kind=kind),
        "R": normal(2, 1, gates * hidden, hidden, kind=kind),
        "B": normal(3, 1, 2 * gates * hidden, kind=kind),
        "head": normal(4, hidden, 2, kind=kind),
        "first": np.array([0], np.int64),
    }


def time_major_lstm() -> onnx.ModelProto:
    """Torch's LSTM as it stands: x is [time, batch, features], and so is its output."""
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["sequence", "hn", "cn"], hidden_size=4),
        helper.make_node("Squeeze", ["sequence", "direction"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    state = [1, "batch", 4]
    return build(
        nodes,
        [("x", FLOAT, ["time", "batch", 3]), ("h0", FLOAT, state), ("c0", FLOAT, state)],
        [("y", FLOAT, ["time", "batch", 2]), ("hn", FLOAT, state), ("cn", FLOAT, state)],
        {**lstm_weights(3, 4), "direction": np.array([1], np.int64)},
    )


def _cell(kind: int, extra: Sequence[onnx.NodeProto], x: Tensor, weights: Mapping[str, Any]) -> onnx.ModelProto:
    """A plain recurrent cell over `row`, which `extra` computes of x."""
    state = ["batch", 4]
    nodes = [
        *extra,
        helper.make_node("MatMul", ["row", "in"], ["driven"]),
        helper.make_node("MatMul", ["hidden", "again"], ["recalled"]),
        helper.make_node("Add", ["driven", "recalled"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hidden_out"]),
        helper.make_node("MatMul", ["hidden_out", "head"], ["y"]),
    ]
    given = {"again": normal(6, 4, 4, kind=kind), "head": normal(7, 4, 2, kind=kind), **weights}
    return build(nodes, [x, ("hidden", kind, state)], [("y", kind, ["batch", 2]), ("hidden_out", kind, state)], given)


def token_rnn() -> onnx.ModelProto:
    """X is int64: a number of a word, looked up in a table."""
    extra = [helper.make_node("Gather", ["table", "tokens"], ["row"])]
    weights = {"table": normal(8, 10, 3), "in": normal(5, 3, 4)}
    return _cell(FLOAT, extra, ("tokens", INT64, ["batch"]), weights)


def double_rnn() -> onnx.ModelProto:
    """All of it is float64, as scikit-learn-like exporters write it."""
    extra = [helper.make_node("Identity", ["features"], ["row"])]
    return _cell(DOUBLE, extra, ("features", DOUBLE, ["batch", 3]), {"in": normal(5, 3, 4, kind=DOUBLE)})


def half_rnn() -> onnx.ModelProto:
    """All of it is float16: x, state and outputs."""
    extra = [helper.make_node("Identity", ["features"], ["row"])]
    return _cell(HALF, extra, ("features", HALF, ["batch", 3]), {"in": normal(5, 3, 4, kind=HALF)})


def running_max() -> onnx.ModelProto:
    """The largest x so far: it begins at minus infinity, as any maximum does."""
    nodes = [
        helper.make_node("Max", ["x", "peak"], ["peak_next"]),
        helper.make_node("Sub", ["x", "peak_next"], ["below"]),
    ]
    state = ["batch", 2]
    return build(
        nodes, [("x", FLOAT, state), ("peak", FLOAT, state)], [("below", FLOAT, state), ("peak_next", FLOAT, state)], {}
    )


def log_space() -> onnx.ModelProto:
    """A filter in log space: what cannot be gets the weight minus infinity, and stays there."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["possible"]),
        helper.make_node("Where", ["possible", "x", "never"], ["logs"]),
        helper.make_node("Add", ["log_prior", "logs"], ["log_prior_next"]),
        helper.make_node("Max", ["log_prior_next", "least"], ["y"]),
    ]
    state = ["batch", 2]
    return build(
        nodes,
        [("x", FLOAT, state), ("log_prior", FLOAT, state)],
        [("y", FLOAT, state), ("log_prior_next", FLOAT, state)],
        {"zero": np.array(0, np.float32), "never": np.array(-np.inf, np.float32), "least": np.array(-50, np.float32)},
    )


def counting_rnn() -> onnx.ModelProto:
    """Its timesteps are counted by a scalar, and its output has the batch behind: one stream at a time."""
    nodes = [
        helper.make_node("Add", ["count", "one"], ["count_out"]),
        helper.make_node("Cast", ["count_out"], ["turns"], to=FLOAT),
        helper.make_node("MatMul", ["x", "in"], ["driven"]),
        helper.make_node("Div", ["driven", "turns"], ["damped"]),
        helper.make_node("Add", ["damped", "memory"], ["memory_out"]),
        helper.make_node("Transpose", ["memory_out"], ["y"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, [1, 3]), ("memory", FLOAT, [1, 4]), ("count", INT64, [])],
        [("y", FLOAT, [4, 1]), ("memory_out", FLOAT, [1, 4]), ("count_out", INT64, [])],
        {"one": np.array(1, np.int64), "in": normal(5, 3, 4)},
    )


def column_rnn() -> onnx.ModelProto:
    """An output with its batch axis behind."""
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["driven"]),
        helper.make_node("Add", ["driven", "memory"], ["total"]),
        helper.make_node("Tanh", ["total"], ["memory_out"]),
        helper.make_node("Transpose", ["memory_out"], ["y"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 3]), ("memory", FLOAT, ["batch", 4])],
        [("y", FLOAT, [4, "batch"]), ("memory_out", FLOAT, ["batch", 4])],
        {"in": normal(5, 3, 4)},
    )


def gru_without_head() -> onnx.ModelProto:
    """Its only output is the next state, which is the prediction too."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "W", "R", "B", "", "h"], ["", "h_next"], hidden_size=4),
    ]
    weights = lstm_weights(3, 4, gates=3)
    del weights["head"]
    state = [1, "batch", 4]
    return build(nodes, [("x", FLOAT, ["batch", 3]), ("h", FLOAT, state)], [("h_next", FLOAT, state)], weights)


def lstm_with_attention() -> onnx.ModelProto:
    """An LSTM with an output that nobody needs: it is large, and can be ignored."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["", "h_out", "c_out"], hidden_size=4),
        helper.make_node("Squeeze", ["h_out", "first"], ["top"]),
        helper.make_node("MatMul", ["top", "head"], ["y"]),
        helper.make_node("MatMul", ["x", "wide"], ["attention"]),
    ]
    state = [1, "batch", 4]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 3]), ("h", FLOAT, state), ("c", FLOAT, state)],
        [
            ("y", FLOAT, ["batch", 2]),
            ("attention", FLOAT, ["batch", 500]),
            ("h_out", FLOAT, state),
            ("c_out", FLOAT, state),
        ],
        {**lstm_weights(3, 4), "wide": normal(9, 3, 500)},
    )


def darts_rnn() -> onnx.ModelProto:
    """`RNNModel.to_onnx` of darts 0.48 with future covariates: one timestep for a batch of one, described by darts itself."""
    nodes = [
        helper.make_node("Concat", ["past_target", "future_covariates"], ["both"], axis=2),
        helper.make_node("Transpose", ["both"], ["sequence"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM",
            ["sequence", "W", "R", "B", "", "state_in_0", "state_in_1"],
            ["all", "state_out_0", "state_out_1"],
            hidden_size=4,
        ),
        helper.make_node("MatMul", ["all", "head"], ["prediction"]),
    ]
    spec = {
        "input_chunk_length": 12,
        "output_chunk_length": 1,
        "output_chunk_shift": 0,
        "uses_past_covariates": False,
        "uses_future_covariates": True,
        "uses_static_covariates": False,
        "likelihood_parameter_names": None,
        "feature_input_names": ["past_target", "historic_future_covariates", "future_covariates"],
        "input_names": ["past_target", "historic_future_covariates", "future_covariates", "state_in_0", "state_in_1"],
        "output_names": ["prediction", "state_out_0", "state_out_1"],
        "state_input_names": ["state_in_0", "state_in_1"],
        "state_output_names": ["state_out_0", "state_out_1"],
        "state_input_shapes": [[1, 1, 4], [1, 1, 4]],
        "stepwise_state": True,
    }
    weights = lstm_weights(2, 4)
    weights["head"] = normal(4, 4, 1)
    one, state = [1, 1, 1], [1, 1, 4]
    return build(
        nodes,
        [
            ("past_target", FLOAT, one),
            ("historic_future_covariates", FLOAT, one),
            ("future_covariates", FLOAT, one),
            ("state_in_0", FLOAT, state),
            ("state_in_1", FLOAT, state),
        ],
        [("prediction", FLOAT, [1, 1, 1, 1]), ("state_out_0", FLOAT, state), ("state_out_1", FLOAT, state)],
        weights,
        {"darts.onnx_spec": json.dumps(spec)},
    )


def darts_block() -> onnx.ModelProto:
    """`BlockRNNModel.to_onnx` of darts 0.48: the last 12 timesteps at once, the next 3 come out."""
    nodes = [
        helper.make_node("Transpose", ["past_target"], ["sequence"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "zero", "zero"], ["", "last", ""], hidden_size=4),
        helper.make_node("MatMul", ["last", "head"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["prediction"]),
    ]
    spec = {
        "input_chunk_length": 12,
        "output_chunk_length": 3,
        "output_chunk_shift": 0,
        "uses_past_covariates": False,
        "uses_future_covariates": False,
        "uses_static_covariates": False,
        "likelihood_parameter_names": None,
        "feature_input_names": ["past_target"],
        "input_names": ["past_target"],
        "output_names": ["prediction"],
        "state_input_names": [],
        "state_output_names": [],
        "state_input_shapes": None,
        "stepwise_state": False,
    }
    weights = lstm_weights(1, 4) | {"zero": np.zeros((1, 1, 4), np.float32), "shape": np.array([1, 3, 1, 1], np.int64)}
    weights["head"] = normal(4, 4, 3)
    return build(
        nodes,
        [("past_target", FLOAT, [1, 12, 1])],
        [("prediction", FLOAT, [1, 3, 1, 1])],
        weights,
        {"darts.onnx_spec": json.dumps(spec)},
    )


def stateful_keras() -> onnx.ModelProto:
    """tf2onnx of a Keras LSTM with stateful=True: its state has become a constant."""
    nodes = [
        helper.make_node("Transpose", ["lstm_input"], ["sequence"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B", "", "kept", "kept"], ["", "last", ""], hidden_size=4),
        helper.make_node("Squeeze", ["last", "first"], ["top"]),
        helper.make_node("MatMul", ["top", "head"], ["dense"]),
    ]
    weights = lstm_weights(3, 4) | {"kept": np.zeros((1, 1, 4), np.float32)}
    return build(nodes, [("lstm_input", FLOAT, [1, 1, 3])], [("dense", FLOAT, [1, 2])], weights)


def write_with_external_weights(model: onnx.ModelProto, path: Path) -> None:
    """As torch writes graphs by default: the weights, but for shapes and axes, are in a file beside the graph."""
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=100,
        convert_attribute=False,
    )
