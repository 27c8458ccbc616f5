"""Graphs as others export them, each for one thing that a description can say. All are toys of a few values.

`FOREIGN` has those that a plain loop of onnxruntime runs too: `plain_loop` is that loop.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tests.graphs import FLOAT, INT64, build, describe

FLOAT16, DOUBLE, INT32, BOOL = TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BOOL
STATE = {"name": "total", "next": "total_next"}


@dataclass(frozen=True)
class Foreign:
    """A graph, its `model.toml`, and how a plain loop feeds it.

    `given` has for each input of a timestep its shape in the graph for one stream; `stream` the same for those of a
    stream. `state` are the first values in the graph's shape, by input, with the output that replaces each. `window` is
    the number of timesteps that the graph takes, on the axis `window_axis` of x.
    """

    graph: bytes
    toml: str
    given: Mapping[str, tuple[Sequence[int], Any]]
    state: Mapping[str, tuple[str, Any]]
    outputs: Sequence[str]
    stream: Mapping[str, tuple[Sequence[int], Any]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    window: int = 1
    window_axis: int = 1


def plain_loop(foreign: Foreign, rows: Mapping[str, Any], stream: Mapping[str, Any]) -> list[list[bytes]]:
    """The outputs of each timestep, as bytes. `rows` has the values of all timesteps for each input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(foreign.graph, options, providers=["CPUExecutionProvider"])
    state = {name: first for name, (_, first) in foreign.state.items()}
    fixed = {name: stream[name].reshape(shape) for name, (shape, _) in foreign.stream.items()}
    steps = len(next(iter(rows.values())))
    answers = []
    for step in range(steps):
        feed = {name: _one(foreign, name, rows[name], step, shape) for name, (shape, _) in foreign.given.items()}
        names = [*foreign.outputs, *(following for following, _ in foreign.state.values())]
        results = session.run(names, {**feed, **state, **fixed, **foreign.constants})
        answers.append([result.tobytes() for result in results[: len(foreign.outputs)]])
        state = dict(zip(foreign.state, results[len(foreign.outputs) :], strict=True))
    return answers


def _one(foreign: Foreign, name: str, rows: Any, step: int, shape: Sequence[int]) -> Any:
    """What the graph takes at a timestep; of a window, zeros before the first."""
    if foreign.window == 1:
        return rows[step].reshape(shape)
    past = [rows[at] if at >= 0 else np.zeros_like(rows[0]) for at in range(step - foreign.window + 1, step + 1)]
    return np.stack(past, axis=foreign.window_axis - 1).reshape(shape)


def _sum(
    x: Sequence[Any],
    total: Sequence[Any],
    toml: str,
    *,
    shape: Sequence[int],
    first: Any = None,
    dtype: int = FLOAT,
    total_next: Sequence[Any] | None = None,
    nodes: Sequence[onnx.NodeProto] = (),
    y: Sequence[Any] | None = None,
) -> Foreign:
    """A running sum: total_next = total + x, y = total_next."""
    graph = build(
        [
            *(nodes or [helper.make_node("Add", ["total", "x"], ["total_next"])]),
            helper.make_node("Identity", ["total_next"], ["y"]),
        ],
        [("x", dtype, x), ("total", dtype, total)],
        [("y", dtype, y or total), ("total_next", dtype, total_next or total)],
    )
    np_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    state = {"total": ("total_next", np.zeros(shape, np_dtype) if first is None else first)}
    return Foreign(graph, f"contract = 1\n{toml}", {"x": (shape, np_dtype)}, state, ["y"])


OUTPUT = 'outputs = [{name = "y"}]\n'
TOTAL = 'state = [{name = "total", next = "total_next"}]\n'


def rank_three() -> Foreign:
    """Sequences of one timestep, batch first: the row of x has two dimensions."""
    return _sum(["n", 1, 2], ["n", 1, 2], f"features = 2\n{OUTPUT}{TOTAL}", shape=(1, 1, 2))


def time_first() -> Foreign:
    """Sequences of one timestep, time first, as torch has them by default; y has its batch there too."""
    return _sum([1, "n", 2], [1, "n", 2], f"features = 2\n{OUTPUT}{TOTAL}", shape=(1, 1, 2))


def batch_last() -> Foreign:
    """Everything has the batch last."""
    return _sum([3, 2, "n"], [3, 2, "n"], f"features = 6\n{OUTPUT}{TOTAL}", shape=(3, 2, 1))


def batch_of_one() -> Foreign:
    """No dimension is open. The description names no batch."""
    return _sum(
        [1, 3], [2, 1, 3], f"features = 3\n{OUTPUT}{TOTAL}", shape=(1, 3), first=np.zeros((2, 1, 3), np.float32)
    )


def batch_of_one_described() -> Foreign:
    """No dimension is open, and the description says which ones are the batch."""
    toml = (
        'features = 3\noutputs = [{name = "y", shape = ["batch", 3]}]\n'
        'state = [{name = "total", next = "total_next", shape = ["batch", 3]}]'
    )
    return _sum([1, 3], [1, 3], toml, shape=(1, 3))


def open_dimensions() -> Foreign:
    """The time and the width are open as well, and the exporter did not know the shape of the next state."""
    toml = (
        'features = 2\ninputs = [{name = "x", shape = ["batch", 1, 2]}]\n'
        'outputs = [{name = "y", shape = ["batch", 1, 2]}]\n'
        'state = [{name = "total", next = "total_next", shape = ["batch", 1, 2]}]'
    )
    return _sum(
        ["n", "time", "width"],
        ["n", "time", "width"],
        toml,
        shape=(1, 1, 2),
        total_next=["p", "q", "r"],
        y=["", "", ""],
    )


def scalar_state() -> Foreign:
    """Counts the timesteps in a number that has no dimension, so the streams of a batch cannot have their own."""
    graph = build(
        [
            helper.make_node("Add", ["count", "one"], ["count_next"]),
            helper.make_node("Cast", ["count_next"], ["times"], to=FLOAT),
            helper.make_node("Mul", ["x", "times"], ["y"]),
        ],
        [("x", FLOAT, ["n", 2]), ("count", INT64, [])],
        [("y", FLOAT, ["n", 2]), ("count_next", INT64, [])],
        {"one": np.array(1, np.int64)},
    )
    toml = f'contract = 1\nfeatures = 2\n{OUTPUT}state = [{{name = "count", next = "count_next"}}]'
    return Foreign(graph, toml, {"x": ((1, 2), np.float32)}, {"count": ("count_next", np.array(0, np.int64))}, ["y"])


def constants() -> Foreign:
    """Takes a sample rate without a dimension and a mask over the batch beside x."""
    graph = build(
        [
            helper.make_node("Cast", ["rate"], ["hertz"], to=FLOAT),
            helper.make_node("Div", ["x", "hertz"], ["seconds"]),
            helper.make_node("Where", ["mask", "seconds", "x"], ["wanted"]),
            helper.make_node("Add", ["total", "wanted"], ["total_next"]),
            helper.make_node("Identity", ["total_next"], ["y"]),
        ],
        [("x", FLOAT, ["n", 2]), ("rate", INT64, []), ("mask", BOOL, ["n", 2]), ("total", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2]), ("total_next", FLOAT, ["n", 2])],
    )
    toml = (
        'contract = 1\nfeatures = 2\ninputs = [{name = "rate", value = 16000}, {name = "mask", value = [true, false]}]\n'
        f"{OUTPUT}{TOTAL}"
    )
    return Foreign(
        graph,
        toml,
        {"x": ((1, 2), np.float32)},
        {"total": ("total_next", np.zeros((1, 2), np.float32))},
        ["y"],
        constants={"rate": np.array(16000, np.int64), "mask": np.array([[True, False]])},
    )


def of_type(dtype: int) -> Foreign:
    """A running sum of another type: x, state and output."""
    return _sum(["n", 3], ["n", 3], f"features = 3\n{OUTPUT}{TOTAL}", shape=(1, 3), dtype=dtype)


def of_narrow_type(dtype: int) -> Foreign:
    """A running maximum of a type for which there is no sum."""
    nodes = [helper.make_node("Max", ["total", "x"], ["total_next"])]
    return _sum(["n", 3], ["n", 3], f"features = 3\n{OUTPUT}{TOTAL}", shape=(1, 3), dtype=dtype, nodes=nodes)


def running_max() -> Foreign:
    """The largest value above 0 so far: before the first there is none, and minus infinity is no fault."""
    toml = f'features = 2\n{OUTPUT}state = [{{name = "total", next = "total_next", initial = -inf, finite = false}}]'
    nodes = [
        helper.make_node("Max", ["total", "x"], ["larger"]),
        helper.make_node("Relu", ["x"], ["above"]),
        helper.make_node("Cast", ["above"], ["taken"], to=BOOL),
        helper.make_node("Where", ["taken", "larger", "total"], ["total_next"]),
    ]
    return _sum(["n", 2], ["n", 2], toml, shape=(1, 2), nodes=nodes, first=np.full((1, 2), -np.inf, np.float32))


def two_inputs() -> Foreign:
    """Each timestep brings a value and a flag of another type, and each stream a vector."""
    graph = build(
        [
            helper.make_node("Where", ["on", "x", "voice"], ["wanted"]),
            helper.make_node("Add", ["total", "wanted"], ["total_next"]),
            helper.make_node("Identity", ["total_next"], ["y"]),
        ],
        [("x", FLOAT, ["n", 3]), ("on", BOOL, ["n", 1]), ("voice", FLOAT, ["n", 3]), ("total", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 3]), ("total_next", FLOAT, ["n", 3])],
    )
    toml = (
        f'contract = 1\nfeatures = 3\ninputs = [{{name = "on"}}, {{name = "voice", per = "stream"}}]\n{OUTPUT}{TOTAL}'
    )
    return Foreign(
        graph,
        toml,
        {"x": ((1, 3), np.float32), "on": ((1, 1), np.bool_)},
        {"total": ("total_next", np.zeros((1, 3), np.float32))},
        ["y"],
        {"voice": ((1, 3), np.float32)},
    )


def windowed(shape: Sequence[Any], described: str, one: Sequence[int], axis: int) -> Foreign:
    """No state: a weighted sum over the last four timesteps of two values."""
    weights = np.arange(1, 9, dtype=np.float32).reshape([1 if isinstance(size, str) else size for size in shape])
    graph = build(
        [helper.make_node("Mul", ["x", "weights"], ["y"])],
        [("x", FLOAT, shape)],
        [("y", FLOAT, shape)],
        {"weights": weights},
    )
    toml = f"contract = 1\nfeatures = 2\nwindow = 4\n{described}{OUTPUT}"
    return Foreign(graph, toml, {"x": (one, np.float32)}, {}, ["y"], window=4, window_axis=axis)


def output_is_state() -> Foreign:
    """The next state is also the prediction, and another output is for nobody."""
    graph = build(
        [helper.make_node("Add", ["total", "x"], ["total_next"]), helper.make_node("Neg", ["x"], ["debug"])],
        [("x", FLOAT, ["n", 2]), ("total", FLOAT, ["n", 2])],
        [("total_next", FLOAT, ["n", 2]), ("debug", FLOAT, ["n", 2])],
    )
    toml = f'contract = 1\nfeatures = 2\nignore = ["debug"]\noutputs = [{{name = "total_next"}}]\n{TOTAL}'
    first = np.zeros((1, 2), np.float32)
    return Foreign(graph, toml, {"x": ((1, 2), np.float32)}, {"total": ("total_next", first)}, ["total_next"])


DARTS = {
    "output_chunk_length": 1,
    "output_chunk_shift": 0,
    "uses_past_covariates": False,
    "uses_future_covariates": False,
    "uses_static_covariates": False,
    "likelihood_parameter_names": None,
    "feature_input_names": ["past_target"],
}


def darts_recurrent() -> Foreign:
    """A one-step cell as darts exports `RNNModel`: with its own metadata, and a batch of one."""
    graph = build(
        [
            helper.make_node("Add", ["state_in_0", "past_target"], ["state_out_0"]),
            helper.make_node("Unsqueeze", ["state_out_0", "axis"], ["prediction"]),
        ],
        [("past_target", FLOAT, [1, 1, 2]), ("state_in_0", FLOAT, [1, 1, 2])],
        [("prediction", FLOAT, [1, 1, 2, 1]), ("state_out_0", FLOAT, [1, 1, 2])],
        {"axis": np.array([3], np.int64)},
    )
    spec = {
        **DARTS,
        "input_chunk_length": 12,
        "input_names": ["past_target", "state_in_0"],
        "output_names": ["prediction", "state_out_0"],
        "state_input_names": ["state_in_0"],
        "state_output_names": ["state_out_0"],
        "state_input_shapes": [[1, 1, 2]],
        "stepwise_state": True,
    }
    return Foreign(
        _with_darts(graph, spec),
        "",
        {"past_target": ((1, 1, 2), np.float32)},
        {"state_in_0": ("state_out_0", np.zeros((1, 1, 2), np.float32))},
        ["prediction"],
    )


def darts_window() -> Foreign:
    """A model as darts exports those without state: it takes the last `input_chunk_length` timesteps."""
    graph = build(
        [
            helper.make_node("ReduceMean", ["past_target", "time"], ["mean"], keepdims=1),
            helper.make_node("Unsqueeze", ["mean", "axis"], ["prediction"]),
        ],
        [("past_target", FLOAT, [1, 3, 2])],
        [("prediction", FLOAT, [1, 1, 2, 1])],
        {"axis": np.array([3], np.int64), "time": np.array([1], np.int64)},
    )
    spec = {
        **DARTS,
        "input_chunk_length": 3,
        "input_names": ["past_target"],
        "output_names": ["prediction"],
        "state_input_names": [],
        "state_output_names": [],
        "state_input_shapes": None,
        "stepwise_state": False,
    }
    return Foreign(_with_darts(graph, spec), "", {"past_target": ((1, 3, 2), np.float32)}, {}, ["prediction"], window=3)


def _with_darts(graph: bytes, spec: Mapping[str, Any]) -> bytes:
    model = onnx.load_from_string(graph)
    helper.set_model_props(model, {"darts.onnx_spec": json.dumps(spec, separators=(",", ":"))})
    return model.SerializeToString()


FOREIGN: dict[str, Callable[[], Foreign]] = {
    "rank three": rank_three,
    "time first": time_first,
    "batch last": batch_last,
    "batch of one": batch_of_one,
    "batch of one, described": batch_of_one_described,
    "open dimensions": open_dimensions,
    "scalar state": scalar_state,
    "constants": constants,
    "int64": lambda: of_type(INT64),
    "int32": lambda: of_type(INT32),
    "float64": lambda: of_type(DOUBLE),
    "float16": lambda: of_type(FLOAT16),
    "int8": lambda: of_narrow_type(TensorProto.INT8),
    "uint8": lambda: of_narrow_type(TensorProto.UINT8),
    "uint32": lambda: of_narrow_type(TensorProto.UINT32),
    "running max": running_max,
    "two inputs": two_inputs,
    "window": lambda: windowed(["n", 4, 2], "", (1, 4, 2), 1),
    "window, batch of one": lambda: windowed([1, 4, 2], "", (1, 4, 2), 1),
    "window, time last": lambda: windowed(
        ["n", 2, 4], 'inputs = [{name = "x", shape = ["batch", 2, "window"]}]\n', (1, 2, 4), 2
    ),
    "window, batch last": lambda: windowed(
        [4, 2, "n"], 'inputs = [{name = "x", shape = ["window", 2, "batch"]}]\n', (4, 2, 1), 1
    ),
    "output that is state": output_is_state,
    "darts, recurrent": darts_recurrent,
    "darts, window": darts_window,
}


def by_size(width: int = 1, **state: Any) -> bytes:
    """Adds a tiny part of the batch's size, as kernels do that sum in another order: no row matters to another."""
    return build(
        [
            helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
            helper.make_node("Cast", ["shape"], ["size"], to=FLOAT),
            helper.make_node("Mul", ["size", "tiny"], ["error"]),
            helper.make_node("Add", ["x", "error"], ["inexact"]),
            helper.make_node("Add", ["total", "inexact"], ["total_next"]),
            helper.make_node("Identity", ["total_next"], ["sum"]),
        ],
        [("x", FLOAT, ["batch", width]), ("total", FLOAT, ["batch", width])],
        [("sum", FLOAT, ["batch", width]), ("total_next", FLOAT, ["batch", width])],
        {"tiny": np.array(1e-3, np.float32)},
        describe([], [{"name": "sum"}], [STATE | state], features=width),
    )


def noisy() -> bytes:
    """Adds random numbers to x."""
    return build(
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        [("x", FLOAT, ["batch", 1])],
        [("y", FLOAT, ["batch", 1])],
        None,
        describe(["x"], [{"name": "y"}], []),
    )


def quantized() -> bytes:
    """A layer with dynamically quantised weights, as `onnxruntime.quantization.quantize_dynamic` makes it."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-100, 100, (4, 3)).astype(np.int8)
    return build(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "W", "zero"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["product"], to=FLOAT),
            helper.make_node("Mul", ["product", "scale"], ["y"]),
        ],
        [("x", FLOAT, ["batch", 4])],
        [("y", FLOAT, ["batch", 3])],
        {"W": weights},
        describe(["a", "b", "c", "d"], [{"name": "y"}], []),
    )
