"""The oracle: a graph run alone through bare onnxruntime, row by row, without any of our code."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from tests.graphs import LSTM_FEATURES

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
