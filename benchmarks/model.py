"""The model that every side runs: an LSTM with random weights, one timestep, as `docs/model.md` requires.

Speed does not depend on the weights, so nothing is trained and torch is not needed. By default the graph has 8 features,
hidden size 64, one layer and 4 outputs.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper

FEATURES = 8
HIDDEN = 64
OUTPUTS = 4


def write_model(root: Path, name: str = "bench", *, hidden: int = HIDDEN, layers: int = 1) -> Path:
    """Writes `root`/`name`/1/model.onnx. Returns its path."""
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(_graph(hidden, layers))
    return path


def state_names(layers: int = 1) -> list[str]:
    """Returns the names of the state tensors, each [1, batch, hidden]."""
    return [f"{tensor}{layer or ''}" for layer in range(layers) for tensor in ("h", "c")]


def _graph(hidden: int, layers: int) -> bytes:
    rng = np.random.default_rng(0)  # the same weights every time

    def weights(name: str, *shape: int) -> TensorProto:
        values: npt.NDArray[np.float32] = rng.uniform(-0.1, 0.1, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    constants = [numpy_helper.from_array(np.array([0]), "time")]
    nodes = [helper.make_node("Unsqueeze", ["x", "time"], ["sequence"])]
    sequence, width = "sequence", FEATURES
    for layer in range(layers):
        n = layer or ""
        constants += [weights(f"W{n}", 1, 4 * hidden, width), weights(f"R{n}", 1, 4 * hidden, hidden)]
        constants += [weights(f"B{n}", 1, 8 * hidden)]
        inputs = [sequence, f"W{n}", f"R{n}", f"B{n}", "", f"h{n}", f"c{n}"]
        nodes.append(helper.make_node("LSTM", inputs, ["", f"h{n}_next", f"c{n}_next"], hidden_size=hidden))
        # (1, batch, hidden): already a sequence of one timestep for the next layer.
        sequence, width = f"h{n}_next", hidden
    constants.append(weights("head", hidden, OUTPUTS))
    nodes += [
        helper.make_node("Squeeze", [sequence, "time"], ["h_row"]),
        helper.make_node("MatMul", ["h_row", "head"], ["y"]),
    ]
    state = state_names(layers)
    shapes: dict[str, list[str | int]] = {
        "x": ["batch", FEATURES],
        "y": ["batch", OUTPUTS],
        **{name: [1, "batch", hidden] for name in (*state, *(f"{one}_next" for one in state))},
    }
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "bench",
        [tensors[name] for name in ("x", *state)],
        [tensors[name] for name in ("y", *(f"{one}_next" for one in state))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    description = {
        "contract": 1,
        "task": "benchmark",
        "cell": "lstm",
        "period_s": None,
        "handles_missing": False,
        "features": [{"name": f"f{number}"} for number in range(FEATURES)],
        "outputs": [{"name": "y", "shape": shapes["y"]}],
        "state": [{"name": name, "next": f"{name}_next", "shape": shapes[name]} for name in state],
    }
    helper.set_model_props(model, {"tidegate": json.dumps(description)})
    checker.check_model(model)
    return model.SerializeToString()
