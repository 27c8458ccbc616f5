"""Network -> one-step ONNX graph that keeps the model contract.

The graph is traced from `Network.step`, so the maths is written once. `parity` compares the two before `version` writes
the graph.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch

from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network
from tidegate.training.settings import Forecast

CONTRACT = 1


# Traced with three rows: the exporter would take a batch of one for a constant.
TRACE_BATCH = 3


def build_graph(network: Network, description: dict[str, Any]) -> onnx.ModelProto:
    """Trace one step of the network and put the description into the metadata of the graph.

    The batch is then the only symbolic dimension of each input and output.
    """
    network.eval()
    network.prepare_export()
    state = network.initial_state(TRACE_BATCH)
    x = torch.zeros(TRACE_BATCH, network.architecture.features)
    batch = torch.export.Dim("batch")
    names = network.state_names
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (x, *state),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["x", *names],
            output_names=[*network.output_names, *(f"{name}_next" for name in names)],
            # The batch is the last axis but one of every state tensor.
            dynamic_shapes={"x": {0: batch}, "state": tuple({part.ndim - 2: batch} for part in state)},
        )
    assert program is not None  # only the old exporter returns None
    model = program.model_proto
    _strip(model)
    _check_batch(model)
    set_description(model, description)
    onnx.checker.check_model(model, full_check=True)
    return model


def set_description(model: onnx.ModelProto, description: dict[str, Any]) -> None:
    """Replace the description of the model contract in the metadata of the graph."""
    onnx.helper.set_model_props(model, {"tidegate": json.dumps(description, ensure_ascii=False)})


def describe(network: Network, facts: DataFacts, scores: dict[str, Any]) -> dict[str, Any]:
    """The description of the model contract."""
    architecture = network.architecture
    columns = zip(facts.features, facts.units, facts.low, facts.high, strict=True)
    return {
        "contract": CONTRACT,
        "task": architecture.task.kind,
        "cell": architecture.cell,
        "period_s": facts.period_s,
        "handles_missing": True,
        "features": [
            {"name": name, "unit": unit, "low": low, "high": high} | _words(facts, name)
            for name, unit, low, high in columns
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


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about source code: stack traces with paths of the exporting machine."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    parts: list[Any] = [*model.graph.node, *model.graph.input, *model.graph.output]
    for part in [*parts, *model.graph.value_info, *model.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]


def _check_batch(model: onnx.ModelProto) -> None:
    """Check that only the batch is symbolic: a graph fixed to the traced batch would fail only in serving."""
    for value in [*model.graph.input, *model.graph.output]:
        symbolic = [dimension.dim_param for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]
        assert symbolic == ["batch"], f"{value.name} has symbolic dimensions {symbolic}, expected ['batch']"


# Warnings of torch during the export that are of no use to the user.
_NOISE = (
    # torch calls a function that torch has deprecated
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # all state tensors share the batch dimension, as they should
    (UserWarning, r"# The axis name: batch will not be used"),
)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence these warnings of the exporter, and nothing else."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns of each missing operator of torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            for category, message in _NOISE:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        registration.setLevel(level)
