"""Toy graphs with other inputs than one vector of float32, and the same computed alone by bare onnxruntime.

Each sums what it is given, so that a lost, repeated or rounded timestep shows in every later answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from tests.graphs import build, describe

TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}
Row = Mapping[str, Any]


class Toy(NamedTuple):
    """A graph, and the timesteps and the inputs of a stream to test it with."""

    graph: bytes
    rows: Sequence[Row]
    """The inputs of each timestep, arrays by name."""
    stream: Row
    """The inputs that the stream begins with."""


def typed_sum(dtype: Any, shape: Sequence[int] = (2,), *, batch_axis: int = 0, **more: Any) -> bytes:
    """Sums x of any type and shape."""
    kind = TYPES[np.dtype(dtype)]
    dims: list[Any] = list(shape)
    dims.insert(batch_axis, "batch")
    nodes = [
        helper.make_node("Add", ["total", "x"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
    ]
    return build(
        nodes,
        [("x", kind, dims), ("total", kind, dims)],
        [("sum", kind, dims), ("total_next", kind, dims)],
        None,
        describe(
            [],
            [{"name": "sum", "shape": dims}],
            [{"name": "total", "next": "total_next", "shape": dims}],
            **{"features": int(np.prod(shape)), "inputs": [{"name": "x", "shape": dims}], **more},
        ),
    )


def scaled_sum(scale: Any, *, per: str = "timestep", x: Any = np.float32, **more: Any) -> bytes:
    """Sums x times a second input, `scale`, of type `scale`: with each timestep, or once for a stream.

    A second output tells which sums are positive.
    """
    kind, other = TYPES[np.dtype(x)], TYPES[np.dtype(scale)]
    nodes = [
        helper.make_node("Cast", ["scale"], ["factor"], to=kind),
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["total", "product"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["sum"]),
        helper.make_node("Cast", ["total_next"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["real", "zero"], ["positive"]),
    ]
    return build(
        nodes,
        [("x", kind, ["batch", 2]), ("scale", other, ["batch", 1]), ("total", kind, ["batch", 2])],
        [("sum", kind, ["batch", 2]), ("positive", TensorProto.BOOL, ["batch", 2]), ("total_next", kind, ["batch", 2])],
        {"zero": np.array(0, np.float32)},
        describe(
            ["left", "right"],
            [{"name": "sum", "shape": ["batch", 2]}, {"name": "positive", "shape": ["batch", 2]}],
            [{"name": "total", "next": "total_next", "shape": ["batch", 2]}],
            inputs=[{"name": "scale", "per": per}],
            **more,
        ),
    )


def toys(steps: int = 6) -> dict[str, Toy]:
    """One graph of each kind."""
    rng = np.random.default_rng(5)

    def rows(**shapes: Any) -> list[Row]:
        return [
            {name: (rng.normal(0, 9, shape) + 3).astype(dtype) for name, (dtype, shape) in shapes.items()}
            for _ in range(steps)
        ]

    beyond_floats = [{"x": np.array([2**53 + 1 + 2 * step, -(2**60) - step])} for step in range(steps)]
    return {
        "int64": Toy(typed_sum(np.int64), beyond_floats, {}),
        "float64": Toy(typed_sum(np.float64), rows(x=(np.float64, 2)), {}),
        "float16": Toy(typed_sum(np.float16, (3,)), rows(x=(np.float16, 3)), {}),
        "rank 3": Toy(typed_sum(np.float32, (1, 3, 2), batch_axis=1), rows(x=(np.float32, (1, 3, 2))), {}),
        "two inputs": Toy(scaled_sum(np.int64), rows(x=(np.float32, 2), scale=(np.int64, 1)), {}),
        "two integers": Toy(scaled_sum(np.int32, x=np.int64), rows(x=(np.int64, 2), scale=(np.int32, 1)), {}),
        "per stream": Toy(
            scaled_sum(np.float32, per="stream"), rows(x=(np.float32, 2)), {"scale": np.array([1.7], np.float32)}
        ),
        "int64 per stream": Toy(
            scaled_sum(np.float64, per="stream", x=np.int64), rows(x=(np.int64, 2)), {"scale": np.array([3.0])}
        ),
    }


def replay(toy: Toy, stream: Row | None = None) -> Iterator[Any]:
    """The sum after each timestep, by bare onnxruntime, one row at a time, without any of our code."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(toy.graph, options, providers=["CPUExecutionProvider"])
    shapes = {tensor.name: [1 if size == "batch" else size for size in tensor.shape] for tensor in session.get_inputs()}
    kinds = {tensor.name: tensor.type for tensor in session.get_inputs()}
    dtype = {"tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
    total = np.zeros(shapes["total"], dtype.get(kinds["total"], np.float32))
    for row in toy.rows:
        given = {**row, **(toy.stream if stream is None else stream)}
        feed = {name: np.asarray(value).reshape(shapes[name]) for name, value in given.items()}
        answer, total = session.run(["sum", "total_next"], {**feed, "total": total})
        yield answer.reshape(np.shape(row["x"]))


def word_echo(categories: Sequence[str]) -> bytes:
    """Answers each timestep with its only value, which has categories, and counts them."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
    ]
    kind = TensorProto.FLOAT
    described = describe(
        ["status"],
        [{"name": "y", "shape": ["batch", 1]}],
        [{"name": "count", "next": "count_next", "shape": ["batch", 1]}],
    )
    described["features"] = [{"name": "status", "categories": list(categories)}]
    return build(
        nodes,
        [("x", kind, ["batch", 1]), ("count", kind, ["batch", 1])],
        [("y", kind, ["batch", 1]), ("count_next", kind, ["batch", 1])],
        {"one": np.array(1, np.float32)},
        described,
    )
