"""Toy graphs, built with `onnx.helper`, so that tests of the server need no torch.

They are so small that their answers can often be computed by hand: in a running sum, a lost or mixed-up state shows as a wrong integer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Tensor = tuple[str, int, Sequence[int | str]]


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


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


def lstm(hidden: int = 16, seed: int = 0, *, words: Sequence[str] = (), **more: Any) -> bytes:
    """A fused LSTM over eight features with a guard: the last value seen replaces NaN. Forecasts s0 at +1 and +3.

    `words` are the categories of the first feature; none when it has numbers.
    """
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
            [
                *([{"name": LSTM_FEATURES[0], "categories": [*words]}] if words else []),
                *({"name": name, "unit": "V", "low": -2.0, "high": 2.0} for name in LSTM_FEATURES[bool(words) :]),
            ],
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


def endless(*, above: float | None = None) -> bytes:
    """Doubles x in a loop that never ends; with `above`, only when x is above that."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_next"]), helper.make_node("Add", ["part", "part"], ["part_next"])],
        "body",
        [
            helper.make_tensor_value_info("number", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("part", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_next", TensorProto.BOOL, []),
            helper.make_tensor_value_info("part_next", FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "above"], ["go_on"]),
        helper.make_node("Loop", ["", "go_on", "x"], ["y"], body=body),
        helper.make_node("Add", ["total", "x"], ["total_next"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 1]), ("total", FLOAT, ["batch", 1])],
        [("y", FLOAT, ["batch", 1]), ("total_next", FLOAT, ["batch", 1])],
        {"above": np.array(-np.inf if above is None else above, np.float32)},
        describe(
            ["x"],
            [{"name": "y", "shape": ["batch", 1]}],
            [{"name": "total", "next": "total_next", "shape": ["batch", 1]}],
        ),
    )


def huge(values: int = 400_000_000) -> bytes:
    """A few hundred bytes that make an array of so many float32."""
    nodes = [
        helper.make_node("ConstantOfShape", ["values"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        helper.make_node("Identity", ["state"], ["state_next"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 1]), ("state", FLOAT, ["batch", 1])],
        [("y", FLOAT, ["batch", 1]), ("state_next", FLOAT, ["batch", 1])],
        {"values": np.array([values], np.int64)},
        describe(
            ["x"],
            [{"name": "y", "shape": ["batch", 1]}],
            [{"name": "state", "next": "state_next", "shape": ["batch", 1]}],
        ),
    )


def with_weights_in(graph: bytes, location: str) -> bytes:
    """The graph, with its first constant in another file."""
    model = onnx.load_from_string(graph)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return model.SerializeToString()


def with_moments(**more: Any) -> bytes:
    """A running sum whose description has the moments of its feature, and whose output `surprise` is x itself."""
    nodes = [
        helper.make_node("Add", ["total", "x"], ["total_next"]),
        helper.make_node("Identity", ["x"], ["surprise"]),
    ]
    return build(
        nodes,
        [("x", FLOAT, ["batch", 1]), ("total", FLOAT, ["batch", 1])],
        [("surprise", FLOAT, ["batch", 1]), ("total_next", FLOAT, ["batch", 1])],
        {},
        describe(
            [{"name": "t", "mean": 10.0, "std": 2.0}],
            [{"name": "surprise", "shape": ["batch", 1], "targets": ["t"]}],
            [{"name": "total", "next": "total_next", "shape": ["batch", 1], "finite": False}],
            **more,
        ),
    )


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
