"""Network -> one-step ONNX graph that keeps the model contract, checked against the network before it is written.

The graph is traced from `Network.step`, so there is no second description of the maths. Nothing reaches the model folder
until the graph has passed the parity gate, and no version is ever overwritten.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch

from training.learning.run import Facts
from training.network.network import Network
from training.settings import Forecast

CONTRACT = 1


# Traced with three rows: a batch of one would be taken for a constant and the graph would serve no other.
TRACE_BATCH = 3


def build_graph(network: Network, description: dict[str, Any]) -> onnx.ModelProto:
    """Trace one step of the network and put the description into the graph's metadata.

    Afterwards the batch is the one symbolic dimension of every input and output.
    """
    network.eval()
    network.prepare_export()
    state = network.fresh_state(TRACE_BATCH)
    x = torch.zeros(TRACE_BATCH, network.architecture.features)
    batch = torch.export.Dim("batch")
    names = network.state_names
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (x, *state),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["x", *names],
            output_names=[*network.output_names, *(f"{name}_next" for name in names)],
            # Of every state tensor the batch is the last axis but one.
            dynamic_shapes={"x": {0: batch}, "state": tuple({part.ndim - 2: batch} for part in state)},
        )
    assert program is not None  # it is None only for the old exporter
    model = program.model_proto
    _strip(model)
    _check_batch(model)
    set_description(model, description)
    onnx.checker.check_model(model, full_check=True)
    return model


def set_description(model: onnx.ModelProto, description: dict[str, Any]) -> None:
    """Put the description of the model contract into the graph's metadata, in place of any other."""
    onnx.helper.set_model_props(model, {"tidegate": json.dumps(description, ensure_ascii=False)})


def describe(network: Network, facts: Facts, scores: dict[str, Any]) -> dict[str, Any]:
    """The description of the model contract."""
    architecture = network.architecture
    columns = zip(facts.features, facts.units, facts.low, facts.high, strict=True)
    return {
        "contract": CONTRACT,
        "task": architecture.task.kind,
        "cell": architecture.cell,
        "period_s": facts.period_s,
        "handles_missing": True,
        "features": [{"name": name, "unit": unit, "low": low, "high": high} for name, unit, low, high in columns],
        "outputs": _describe_outputs(network, facts),
        "state": [
            {"name": name, "next": f"{name}_next", "shape": _state_shape(part)}
            for name, part in zip(network.state_names, network.fresh_state(1), strict=True)
        ],
        "data": {"name": facts.name, "sha256": facts.sha256, "rows": facts.rows},
        "scores": scores,
    }


# Outputs that are of the whole timestep.
_WITHOUT_AXES = ("score", "alarm", "warm")


def _describe_outputs(network: Network, facts: Facts) -> list[dict[str, Any]]:
    """Each output with what its axes mean."""
    with torch.no_grad():
        outputs, _ = network.step(torch.zeros(1, network.architecture.features), network.fresh_state(1))
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
    """The shape of a state tensor for a batch of one, as the contract writes it: the batch is the last axis but one."""
    shape: list[int | str] = list(part.shape)
    shape[-2] = "batch"
    return shape


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about its source code: stack traces with paths of the machine that exported."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    parts: list[Any] = [*model.graph.node, *model.graph.input, *model.graph.output]
    for part in [*parts, *model.graph.value_info, *model.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]


def _check_batch(model: onnx.ModelProto) -> None:
    """The batch, and nothing else, is symbolic: a graph fixed to the traced batch would fail only when it is served."""
    for value in [*model.graph.input, *model.graph.output]:
        symbolic = [dimension.dim_param for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]
        assert symbolic == ["batch"], f"{value.name} has symbolic dimensions {symbolic}, expected ['batch']"


# What torch says while it exports that is of no use to the person who trains.
_CHATTER = (
    # torch's own code calls what torch has deprecated
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # every state tensor has the same batch dimension, which is what we want
    (UserWarning, r"# The axis name: batch will not be used"),
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's chatter, and nothing else."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns of each operator of torchvision, which nobody here needs
    try:
        with warnings.catch_warnings():
            for category, message in _CHATTER:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        registration.setLevel(level)
