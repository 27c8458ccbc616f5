"""The plain loop: one stream through onnxruntime, one call for each timestep, the state carried by hand."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.foreign.graphs import Foreign


def plain_loop(
    path: Path, foreign: Foreign, timesteps: list[dict[str, Any]], once: dict[str, Any]
) -> list[dict[str, Any]]:
    """The outputs of each timestep of a stream, as the graph gives them for one stream."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(int64)": "i8"}
    state = {
        tensor.name: np.full(_alone(tensor.shape), foreign.initial.get(tensor.name, 0), types[tensor.type])
        for tensor in session.get_inputs()
        if tensor.name in foreign.pairs
    }
    name, shape = foreign.x
    past = deque([np.zeros((shape[0], *shape[2:]), foreign.dtype)] * foreign.window, foreign.window)
    names = [tensor.name for tensor in session.get_outputs()]
    answers = []
    for timestep in timesteps:
        feed = {**timestep, **once, **foreign.constants, **state}
        if foreign.window > 1:
            past.append(timestep[name])
            feed[name] = np.stack(past, axis=1)
        results = dict(zip(names, session.run(names, feed), strict=True))
        state = {source: results[target] for source, target in foreign.pairs.items()}
        answers.append({output: results[output] for output in foreign.outputs})
    return answers


def _alone(shape: list[int | str | None]) -> list[int]:
    """A shape with 1 for what is open: in these graphs that is the batch."""
    return [size if isinstance(size, int) else 1 for size in shape]


def same_numbers(got: Any, expected: Any) -> bool:
    """Whether an answer has the bits of the loop's, whatever its shape: a stream's answer has no batch axis."""
    one, other = np.asarray(got), np.asarray(expected)
    return one.dtype == other.dtype and one.size == other.size and one.tobytes() == other.tobytes()
