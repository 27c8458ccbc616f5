"""The model that every side runs: an LSTM with random weights, one timestep, as `docs/model.md` wants it.

Speed does not depend on what weights are, so nothing is trained and torch is not needed; the graph is that of design
section 6: 8 features, hidden size 64, one layer, 4 outputs.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper

FEATURES = 8
HIDDEN = 64
OUTPUTS = 4


def write_model(root: Path, name: str = "bench") -> Path:
    """Writes `root`/`name`/1/model.onnx and gives its path."""
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(_graph())
    return path


def _graph() -> bytes:
    rng = np.random.default_rng(0)  # the same weights every time

    def weights(name: str, *shape: int) -> TensorProto:
        values: npt.NDArray[np.float32] = rng.uniform(-0.1, 0.1, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    constants = [
        weights("W", 1, 4 * HIDDEN, FEATURES),
        weights("R", 1, 4 * HIDDEN, HIDDEN),
        weights("B", 1, 8 * HIDDEN),
        weights("head", HIDDEN, OUTPUTS),
        numpy_helper.from_array(np.array([0]), "time"),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "time"], ["x_sequence"]),
        helper.make_node(
            "LSTM", ["x_sequence", "W", "R", "B", "", "h", "c"], ["", "h_next", "c_next"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["h_next", "time"], ["h_row"]),
        helper.make_node("MatMul", ["h_row", "head"], ["y"]),
    ]
    shapes: dict[str, list[str | int]] = {
        "x": ["batch", FEATURES],
        "y": ["batch", OUTPUTS],
        **{state: [1, "batch", HIDDEN] for state in ("h", "c", "h_next", "c_next")},
    }
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "bench",
        [tensors["x"], tensors["h"], tensors["c"]],
        [tensors["y"], tensors["h_next"], tensors["c_next"]],
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
        "state": [{"name": name, "next": f"{name}_next", "shape": shapes[name]} for name in ("h", "c")],
    }
    helper.set_model_props(model, {"tidegate": json.dumps(description)})
    checker.check_model(model)
    return model.SerializeToString()
