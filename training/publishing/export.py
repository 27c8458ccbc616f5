"""Network -> one-step ONNX graph that keeps the model contract, checked against the network before it is written.

The graph is traced from `Network.step`, so there is no second description of the maths. Nothing reaches the model folder
until the graph has passed the parity gate, and no version is ever overwritten.
"""

import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from training.data.series import Floats
from training.errors import ModelUnreadable, ParityError, VersionExists
from training.judging.graph import Graph
from training.learning.run import Facts
from training.network.cells import State
from training.network.network import Network
from training.settings import Forecast

Numbers = npt.NDArray[np.floating[Any]]  # float32 or float64

CONTRACT = 1

# The gate of the contract: float32 rounding of a few hundred multiply-adds is below 1e-6, a wrong gate is above 1e-2.
PARITY_LIMIT = 1e-5
# Where rounding alone makes more than that, because a network decides sharply or counts for long, this many times the
# rounding is allowed: the network's and the graph's add up, and the largest of a few samples is not the largest there is.
PARITY_ROUNDINGS = 3.0
# Networks whose weights are all moved by a unit in the last place: float32 cannot tell them from the one that was learned.
# The network's own rounding is one sample, and was found to be ten times below that of the graph by luck.
PARITY_TWINS = 4
PARITY_STEPS = 1000
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
    state's own units, where it is beyond 1 as a share of it. A raw difference would say little: 1e-5 is nothing for
    800 hPa, beyond what float32 can hold, and a lot for a current of 1e-4 A. `rounding` is how far float32 itself is from
    float64 where that is most, and `limit` the largest difference that was allowed anywhere.
    """

    steps: int
    batches: tuple[int, ...]
    outputs: float
    state: float
    rounding: float
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

    Every single step is compared as well, from the graph's own state. What float32 cannot resolve is no fault of the graph:
    where a tensor's rounding is more than a third of the limit, three times the rounding is allowed.

    Raises:
        ParityError: they differ by more than that.
    """
    graph = Graph(model.SerializeToString(), "the exported graph")
    gaps = [gap for batch in PARITY_BATCHES for gap in _gaps(network, graph, batch)]
    for gap in gaps:
        # Not the other way round: NaN is below no limit.
        if not (math.isfinite(gap.size) and gap.size <= gap.allowed(limit)):
            unit = (
                "standard deviations"
                if gap.name in network.output_names
                else "of its size, or of 1 where that is more,"
            )
            raise ParityError(
                f"export: {gap.name} of the graph and of the network differ by {gap.size:.1e} {unit} {gap.when}, expected "
                f"at most {gap.allowed(limit):.0e}; nothing was written"
            )
    return Parity(
        steps=PARITY_STEPS,
        batches=PARITY_BATCHES,
        outputs=max(gap.size for gap in gaps if gap.name in network.output_names),
        state=max(gap.size for gap in gaps if gap.name in network.state_names),
        rounding=max(gap.rounding for gap in gaps),
        limit=max(gap.allowed(limit) for gap in gaps),
    )


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


@dataclass(frozen=True)
class _Gap:
    """The largest difference of one output or state between graph and network, and that of float32 and float64."""

    name: str
    size: float
    rounding: float
    when: str

    def allowed(self, limit: float) -> float:
        """How large it may be."""
        return max(limit, PARITY_ROUNDINGS * self.rounding) if math.isfinite(self.rounding) else limit


def _gaps(network: Network, graph: Graph, batch: int) -> list[_Gap]:
    """The differences over a sequence, and of its single steps; infinite where something is not a number.

    What is learned is compared over the whole sequence: errors that add up are seen. The monitors decide: rounding may
    turn a decision that is close, and from there on two right answers differ. So they are compared step by step only.
    """
    exact = deepcopy(network).double()
    x = _probe(network, batch)
    state = graph.fresh_state(batch)
    said: dict[str, list[Floats]] = {name: [] for name in network.output_names}
    single: dict[str, tuple[float, float]] = {}
    for first in range(0, len(x), _TOGETHER):
        before, told, after = [], [], []
        for now in x[first : first + _TOGETHER]:
            before.append(state)
            outputs, state = graph.step(now, state)
            told.append(outputs)
            after.append(state)
        got = {name: np.concatenate([outputs[name] for outputs in told]) for name in network.output_names}
        got |= {name: _side_by_side(after, name) for name in network.state_names}
        for name in network.output_names:
            said[name].append(got[name].reshape(-1, batch, *got[name].shape[1:]))
        # All these steps as one batch: each has its state.
        begin = tuple(torch.from_numpy(_side_by_side(before, name)) for name in network.state_names)
        rows = torch.from_numpy(x[first : first + _TOGETHER].reshape(-1, x.shape[-1]))
        for name, found in _single_gaps(network, exact, rows, begin, got).items():
            worst = single.get(name, (0.0, 0.0))
            single[name] = (max(worst[0], found[0]), max(worst[1], found[1]))
    gaps = [_Gap(name, *found, "after a single step from the same state") for name, found in single.items()]
    replayed = {name: np.concatenate(parts) for name, parts in said.items()} | state
    wanted, truth = _run_sequence(network, x), _run_sequence(exact, x)
    twins = [_run_sequence(_twin(network, seed), x) for seed in range(PARITY_TWINS)]
    for name, part in wanted.items():
        size = _apart(network, name, [part], replayed[name])
        rounding = max(_apart(network, name, [truth[name]], sample[name]) for sample in (wanted, *twins))
        gaps.append(_Gap(name, size, rounding, f"after {PARITY_STEPS} steps"))
    return gaps


# Timesteps that are compared as one batch: a state with a ring of forecasts may have ten thousand numbers.
_TOGETHER = 50


def _single_gaps(
    network: Network, exact: Network, x: torch.Tensor, state: State, got: dict[str, Floats]
) -> dict[str, tuple[float, float]]:
    """Of each output and state after one step, the largest difference from the network, and its rounding.

    Where the network's answer would be another with all thresholds moved by `PARITY_LIMIT`, either answer will do.
    """
    answers = [_nudged_step(network, x, state, nudge) for nudge in (0.0, -PARITY_LIMIT, PARITY_LIMIT)]
    truth = _nudged_step(exact, x.double(), tuple(part.double() for part in state), 0.0)
    right = {name: [answer[name] for answer in answers] for name in got}
    return {
        name: (_apart(network, name, right[name], part), _apart(network, name, right[name], truth[name]))
        for name, part in got.items()
    }


def _run_sequence(network: Network, x: Floats) -> dict[str, Numbers]:
    """What is learned, over a whole sequence: the outputs of the head, and the last state but that of the monitors."""
    dtype = network.mean.dtype
    begin = tuple(part.to(dtype) for part in network.fresh_state(x.shape[1]))
    with torch.no_grad():
        said, final = network.scaled_sequence(torch.from_numpy(x).to(dtype), begin)
        outputs = network.head.raw(said, network.mean, network.std)
    core = len(final) - sum(len(monitor.states) for monitor in network.watchers)
    outputs |= dict(zip(network.state_names[:core], final[:core], strict=True))
    return {name: part.numpy() for name, part in outputs.items()}


def _twin(network: Network, seed: int) -> Network:
    """The network with each weight moved by a unit in the last place, up or down by chance."""
    twin = deepcopy(network)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            up = torch.from_numpy(rng.random(weight.shape) < 0.5)
            weight.mul_(torch.where(up, 1.0 + _UNIT, 1.0 - _UNIT))
    return twin


_UNIT = float(np.finfo(np.float32).eps)


def _side_by_side(states: list[dict[str, Floats]], name: str) -> Floats:
    """One state tensor of several timesteps, as if they were one batch."""
    return np.concatenate([state[name] for state in states], axis=-2)


def _nudged_step(network: Network, x: torch.Tensor, state: State, nudge: float) -> dict[str, Numbers]:
    """The outputs and the next state of the network's step with the thresholds of all decisions moved."""
    for monitor in network.watchers:
        monitor.nudge = nudge
    try:
        with torch.no_grad():
            outputs, after = network.step(x, state)
    finally:
        for monitor in network.watchers:
            monitor.nudge = 0.0
    outputs |= dict(zip(network.state_names, after, strict=True))
    return {name: part.numpy() for name, part in outputs.items()}


def _apart(network: Network, name: str, answers: Sequence[Numbers], got: Numbers) -> float:
    """The largest distance from the nearest of several right answers; infinite where something is not a number.

    An output's is in the output's unit; a state's is a share where it is beyond 1, as float32 rounds it.
    """
    if name in network.output_names:
        sizes = [np.abs((got - answer) / network.unit(name)) for answer in answers]
    else:
        sizes = [np.abs(got - answer) / np.maximum(np.abs(answer), 1.0) for answer in answers]
    apart = np.min(sizes, axis=0)
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
