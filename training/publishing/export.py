"""Network -> one-step ONNX graph that keeps the model contract.

The graph is traced from `Network.step`, so the maths is written once. `parity` compares the two before `version` writes
the graph.
"""

import json
from typing import Any

import onnx
import torch

from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network
from tidegate.training.publishing.trace import TRACE_BATCH, symbolic_dimensions, trace
from tidegate.training.settings import Forecast

CONTRACT = 1


def build_graph(network: Network, description: dict[str, Any]) -> onnx.ModelProto:
    """Trace one step of the network and put the description into the metadata of the graph.

    The batch is then the only symbolic dimension of each input and output.
    """
    network.eval()
    network.prepare_export()
    state = network.initial_state(TRACE_BATCH)
    model = trace(
        network,
        torch.zeros(TRACE_BATCH, network.architecture.features),
        state,
        batch_axes=[part.ndim - 2 for part in state],
        outputs=network.output_names,
        states=network.state_names,
    )
    # A graph fixed to the traced batch would fail only in serving.
    assert all(symbolic == ["batch"] for symbolic in symbolic_dimensions(model).values())
    set_description(model, description)
    onnx.checker.check_model(model, full_check=True)
    return model


def set_description(model: onnx.ModelProto, description: dict[str, Any]) -> None:
    """Replace the description of the model contract in the metadata of the graph."""
    onnx.helper.set_model_props(model, {"tidegate": json.dumps(description, ensure_ascii=False)})


def describe(network: Network, facts: DataFacts, scores: dict[str, Any]) -> dict[str, Any]:
    """The description of the model contract."""
    architecture = network.architecture
    # Those of the scaler: a server tells by them how far what it gets has moved.
    mean, std = ([float(str(value)) for value in part.numpy()] for part in (network.mean, network.std))
    columns = zip(facts.features, facts.units, facts.low, facts.high, mean, std, strict=True)
    return {
        "contract": CONTRACT,
        "task": architecture.task.kind,
        "cell": architecture.cell,
        "period_s": facts.period_s,
        "handles_missing": True,
        "features": [
            {"name": name, "unit": unit, "low": low, "high": high, "mean": mean, "std": std} | _words(facts, name)
            for name, unit, low, high, mean, std in columns
        ],
        "outputs": _describe_outputs(network, facts),
        "state": [
            {"name": name, "next": f"{name}_next", "shape": _state_shape(part)}
            for name, part in zip(network.state_names, network.initial_state(1), strict=True)
        ],
        "data": {"name": facts.name, "sha256": facts.sha256, "rows": facts.rows},
        "scores": scores,
    }


def _words(facts: DataFacts, feature: str) -> dict[str, list[str]]:
    """The words of a feature that was text; its value is the place of a word."""
    return {"categories": list(facts.categories[feature])} if feature in facts.categories else {}


# Outputs without axes: there is one value for the whole timestep.
_WITHOUT_AXES = ("score", "alarm", "warm")


def _describe_outputs(network: Network, facts: DataFacts) -> list[dict[str, Any]]:
    """Each output with the meaning of its axes."""
    with torch.no_grad():
        outputs, _ = network.step(torch.zeros(1, network.architecture.features), network.initial_state(1))
    task = network.architecture.task
    described: list[dict[str, Any]] = []
    for name, part in outputs.items():
        axes: dict[str, Any] = {"targets": [], "units": [], "horizons": [], "quantiles": []}
        if isinstance(task, Forecast) and name in _WITHOUT_AXES:
            axes |= {"alarm_rate": task.alarm_rate} if name == "score" else {}
        elif isinstance(task, Forecast) and name == "surprise":
            axes["targets"] = [facts.features[target] for target in task.targets]
            axes["units"] = [""] * len(task.targets)  # standard deviations of the errors
        elif isinstance(task, Forecast):
            axes["targets"] = [facts.features[target] for target in task.targets]
            axes["units"] = [facts.units[target] for target in task.targets]
            axes["horizons"] = list(task.horizons)
            axes["quantiles"] = list(task.quantiles) if name == "quantiles" else []
            if name == "interval" and task.coverage is not None:  # its ends
                outside = (1.0 - task.coverage) / 2.0
                axes |= {"quantiles": [round(outside, 6), round(1.0 - outside, 6)], "coverage": task.coverage}
        else:
            axes["targets"] = list(task.classes)
        described.append({"name": name, "shape": ["batch", *part.shape[1:]], **axes})
    return described


def _state_shape(part: torch.Tensor) -> list[int | str]:
    """The shape of a state tensor in the notation of the contract; the batch is the last axis but one."""
    shape: list[int | str] = list(part.shape)
    shape[-2] = "batch"
    return shape
