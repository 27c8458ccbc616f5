"""Network -> one-step ONNX graph that keeps the model contract, checked against the network before it is written.

The graph is traced from `Network.step`, so there is no second description of the maths. Nothing reaches the model folder
until the graph has passed the parity gate, and no version is ever overwritten.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from training.cells import State
from training.errors import ModelUnreadable, ParityError, VersionExists
from training.graph import Graph
from training.network import Network
from training.run import Facts
from training.series import Floats
from training.settings import Forecast

CONTRACT = 1

# The gate of the contract: float32 rounding of a few hundred multiply-adds is below 1e-6, a wrong gate is above 1e-2.
PARITY_LIMIT = 1e-5
PARITY_STEPS = 1000
# A thousand roundings of a number up to this one walk some 4e-6. In a state with a larger one, as that of a cell which counts
# for hundreds of timesteps, the limit grows with it: float32 cannot hold 40 to 1e-5 for so long.
PARITY_EXACT = 4.0
PARITY_BATCHES = (1, 7)
# A tenth of the values are missing, and some whole timesteps, the first among them.
PARITY_MISSING = 0.1
PARITY_SILENT = 0.02

# Traced with three rows: a batch of one would be taken for a constant and the graph would serve no other.
TRACE_BATCH = 3

_TAKEN = "version: {folder} exists already and is never overwritten; choose another with --version"


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the network, over `steps` carried timesteps with missing values.

    `outputs` is in training standard deviations of the target where an output has the target's unit, `state` in the
    state's own units, or a share of its largest number over `PARITY_EXACT` where that is more. A raw difference would say
    little: 1e-5 is nothing for 800 hPa and a lot for a current of 1e-4 A.
    """

    steps: int
    batches: tuple[int, ...]
    outputs: float
    state: float
    limit: float


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


def check_parity(network: Network, model: onnx.ModelProto, *, limit: float = PARITY_LIMIT) -> Parity:
    """Run the whole sequence in torch and the graph step by step, and compare every output and the last state.

    Raises:
        ParityError: they differ by more than the limit.
    """
    graph = Graph(model.SerializeToString(), "the exported graph")
    gaps = [_gap(network, graph, batch) for batch in PARITY_BATCHES]
    parity = Parity(PARITY_STEPS, PARITY_BATCHES, max(gap[0] for gap in gaps), max(gap[1] for gap in gaps), limit)
    if max(parity.outputs, parity.state) > limit:
        raise ParityError(
            f"export: graph and network differ by {parity.outputs:.1e} standard deviations in the outputs and "
            f"{parity.state:.1e} in the state after {PARITY_STEPS} steps, expected at most {limit:.0e}; nothing was written"
        )
    return parity


def free_version(models: Path, name: str, version: int | None) -> int:
    """The version to write: the one asked for, or one more than the largest on disk.

    Raises:
        VersionExists: the one asked for is on disk already.
    """
    folder = models / name
    if version is None:
        taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
        return max(taken, default=0) + 1
    if (folder / str(version)).exists():
        raise VersionExists(_TAKEN.format(folder=folder / str(version)))
    return version


def write(models: Path, name: str, version: int, graph: bytes, card: dict[str, Any], report: str) -> Path:
    """Write `<models>/<name>/<version>/` with `model.onnx`, `card.json` and `report.html`, whole or not at all.

    Returns the folder. A server that watches the folder sees the finished version appear at once.

    Raises:
        VersionExists: the version is on disk already; it is left as it is.
    """
    folder = models / name / str(version)
    if folder.exists():
        raise VersionExists(_TAKEN.format(folder=folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the rename stays within one file system; the dot keeps it from being taken for a version.
    scratch = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder.parent))
    try:
        (scratch / "model.onnx").write_bytes(graph)
        (scratch / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (scratch / "report.html").write_text(report, encoding="utf-8")
        scratch.chmod(0o755)  # a temporary folder is private, but a server under another user must read the model
        _rename_new(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def read_card(model: Path) -> dict[str, Any] | None:
    """The card beside a model; None when there is none.

    Raises:
        ModelUnreadable: the card is not JSON.
    """
    path = (model if model.is_dir() else model.parent) / "card.json"
    if not path.is_file():
        return None
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnreadable(f"model: {path} is not JSON: {error}") from error
    return card


def _rename_new(scratch: Path, folder: Path) -> None:
    """Rename, and refuse if another process was quicker: a rename onto a folder that is not empty fails."""
    try:
        scratch.rename(folder)
    except OSError as error:
        if folder.exists():
            raise VersionExists(_TAKEN.format(folder=folder)) from error
        raise


def _state_shape(part: torch.Tensor) -> list[int | str]:
    """The shape of a state tensor for a batch of one, as the contract writes it: the batch is the last axis but one."""
    shape: list[int | str] = list(part.shape)
    shape[-2] = "batch"
    return shape


def _gap(network: Network, graph: Graph, batch: int) -> tuple[float, float]:
    """The largest difference in the outputs and in the state; infinite if one of them is not a number.

    What is learned is compared over the whole sequence: errors that add up are seen. The monitors decide: rounding may
    turn a decision that is close, and from there on two right answers differ. So they are compared step by step, each from
    the graph's own state.
    """
    x = _probe(network, batch)
    with torch.no_grad():
        said, final = network.scaled_sequence(torch.from_numpy(x), network.fresh_state(batch))
        wanted = network.head.raw(said, network.mean, network.std)
    got, after = graph.replay(x)
    outputs = [np.abs((got[name] - part.numpy()) / network.unit(name)).max() for name, part in wanted.items()]
    core = len(final) - sum(len(monitor.states) for monitor in network.watchers)
    names = network.state_names[:core]
    # What a large cell state is rounded by reaches all others in time.
    unit = max(1.0, *(float(part.abs().max()) / PARITY_EXACT for part in final[:core]))
    carried = [np.abs(after[name] - part.numpy()).max() / unit for name, part in zip(names, final[:core], strict=True)]
    if network.watchers:
        said_gap, carried_gap = _step_gap(network, graph, x)
        outputs.append(said_gap)
        carried.append(carried_gap)
    gaps = float(np.max(outputs)), float(np.max(carried))  # NaN, if there is one
    return gaps if all(np.isfinite(gaps)) else (float("inf"), float("inf"))


def _step_gap(network: Network, graph: Graph, x: Floats) -> tuple[float, float]:
    """The largest difference of single steps in the outputs and in the next state, each taken from the graph's own state.

    Where the network's answer would be another with all thresholds moved by `PARITY_LIMIT`, either answer will do. A value
    beyond 1 is compared by its share, as float32 rounds it.
    """
    state = graph.fresh_state(x.shape[1])
    said_gap, carried_gap = 0.0, 0.0
    for first in range(0, len(x), _TOGETHER):
        before: list[dict[str, Floats]] = []
        told: list[dict[str, Floats]] = []
        after: list[dict[str, Floats]] = []
        for now in x[first : first + _TOGETHER]:
            before.append(state)
            outputs, state = graph.step(now, state)
            told.append(outputs)
            after.append(state)
        # All these steps as one batch: each has its state.
        now = torch.from_numpy(x[first : first + _TOGETHER].reshape(-1, x.shape[-1]))
        begin = tuple(torch.from_numpy(_side_by_side(before, name)) for name in network.state_names)
        answers = [_nudged_step(network, now, begin, nudge) for nudge in (0.0, -PARITY_LIMIT, PARITY_LIMIT)]
        for name in network.output_names:
            unit = network.unit(name)
            got = np.concatenate([outputs[name] for outputs in told])
            said_gap = max(
                said_gap, _nearest([answer[name] / unit for answer, _ in answers], np.asarray(got / unit, np.float32))
            )
        for index, name in enumerate(network.state_names):
            got = _side_by_side(after, name)
            carried_gap = max(carried_gap, _nearest([answer[index] for _, answer in answers], got))
    return said_gap, carried_gap


# Timesteps that are compared as one batch: a state with a ring of forecasts may have ten thousand numbers.
_TOGETHER = 50


def _side_by_side(states: list[dict[str, Floats]], name: str) -> Floats:
    """One state tensor of several timesteps, as if they were one batch."""
    return np.concatenate([state[name] for state in states], axis=-2)


def _nudged_step(
    network: Network, x: torch.Tensor, state: State, nudge: float
) -> tuple[dict[str, Floats], tuple[Floats, ...]]:
    """The network's step with the thresholds of all decisions moved."""
    for monitor in network.watchers:
        monitor.nudge = nudge
    try:
        with torch.no_grad():
            outputs, after = network.step(x, state)
    finally:
        for monitor in network.watchers:
            monitor.nudge = 0.0
    return {name: part.numpy() for name, part in outputs.items()}, tuple(part.numpy() for part in after)


def _nearest(answers: list[Floats], got: Floats) -> float:
    """The largest distance from the nearest of several right answers; infinite where something is not a number."""
    apart = np.min([np.abs(got - answer) / np.maximum(np.abs(answer), 1.0) for answer in answers], axis=0)
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _probe(network: Network, batch: int) -> Floats:
    """(time, batch, features) in raw units: what a sensor with the training part's moments might say, with holes."""
    rng = np.random.default_rng(batch)
    shape = (PARITY_STEPS, batch, network.architecture.features)
    values = network.mean.numpy() + network.std.numpy() * rng.standard_normal(shape, np.float32)
    elapsed = network.architecture.elapsed
    if elapsed is not None:  # steps over decades, so that some renew the state
        values[..., elapsed.feature] = elapsed.reset_s * np.exp(rng.normal(-4.0, 2.0, shape[:2]))
    silent = rng.random((*shape[:2], 1)) < PARITY_SILENT
    silent[0] = True
    return np.where(silent | (rng.random(shape) < PARITY_MISSING), np.float32(np.nan), values).astype(np.float32)


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
