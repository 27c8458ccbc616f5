"""Reads what darts writes into the graphs that it exports, as a description.

darts (unit8co/darts, `darts/utils/onnx`, from 0.48.1 on) exports two kinds of graphs, both for a batch of one. A recurrent
model (`RNNModel`) is one timestep with its state. Any other model takes the last `input_chunk_length` timesteps at
once; here the server keeps them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DARTS_KEY = "darts.onnx_spec"

# The inputs that hold the past, one row for each timestep of the window.
PAST = ("past_target", "past_covariates", "historic_future_covariates")


def describe_darts(spec: Mapping[str, Any], tensors: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The description of a graph with the metadata `spec`, whose inputs and outputs have the shapes `tensors`.

    Values are in the units that the model was trained on: darts scales outside of its graphs.

    Raises KeyError, TypeError or ValueError when `spec` is not what darts writes.
    """
    window = 1 if spec["stepwise_state"] else int(spec["input_chunk_length"])
    states = dict(zip(spec["state_input_names"], spec["state_output_names"], strict=True))
    features = [name for name in spec["feature_input_names"] if name in tensors]
    inputs = [_input(name, tensors[name], window) for name in features]
    return {
        "contract": 1,
        "task": "forecast",
        "features": int(tensors["past_target"][-1]),
        "input": "past_target",
        "inputs": inputs,
        "outputs": [
            {"name": name, "shape": _batch_first(tensors[name])}
            for name in spec["output_names"]
            if name not in states.values()
        ],
        "state": [{"name": name, "next": following} for name, following in states.items() if name in tensors],
    }


def _input(name: str, shape: Sequence[Any], window: int) -> dict[str, Any]:
    if name == "static_covariates":
        return {"name": name, "shape": _batch_first(shape), "per": "stream"}
    if name in PAST and window > 1:
        return {"name": name, "shape": ["batch", "window", *shape[2:]], "window": window}
    return {"name": name, "shape": _batch_first(shape)}


def _batch_first(shape: Sequence[Any]) -> list[Any]:
    return ["batch", *shape[1:]]
