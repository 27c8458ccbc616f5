"""The model for Triton's Python backend: the same graph in onnxruntime, with the states of all sequences in a dict.

Triton passes a batch of requests, each of another sequence, and says which sequences start and end. There are no step
numbers, no resume, and no store.
"""

import os
import sys
from pathlib import Path
from typing import Any

# Triton starts an interpreter that ignores PYTHONPATH and virtual environments.
sys.path.insert(0, os.environ["TRITON_PACKAGES"])

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton requires this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph, which is beside this file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options)
        self._hidden = self._session.get_inputs()[1].shape[2]
        self._states: dict[int, tuple[Any, Any]] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Steps every sequence in the batch."""
        x = np.concatenate([_of(request, "x") for request in requests])
        keys = [int(_of(request, "CORRID")[0, 0]) for request in requests]
        for key, request in zip(keys, requests, strict=True):
            if _of(request, "START")[0, 0]:
                fresh = np.zeros((1, 1, self._hidden), np.float32)
                self._states[key] = (fresh, fresh)
        h = np.concatenate([self._states[key][0] for key in keys], axis=1)
        c = np.concatenate([self._states[key][1] for key in keys], axis=1)
        y, h, c = self._session.run(["y", "h_next", "c_next"], {"x": x, "h": h, "c": c})
        for row, (key, request) in enumerate(zip(keys, requests, strict=True)):
            self._states[key] = (h[:, row : row + 1], c[:, row : row + 1])
            if _of(request, "END")[0, 0]:
                del self._states[key]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y[row : row + 1])]) for row in range(len(requests))]


def _of(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()
