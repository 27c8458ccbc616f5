"""The parity gate: an exported graph must compute what the network computes, over many steps, before it is written."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from tidegate.training.data.series import Floats
from tidegate.training.errors import ParityError
from tidegate.training.judging.graph import Graph
from tidegate.training.network.cells import State
from tidegate.training.network.network import Network

Numbers = npt.NDArray[np.floating[Any]]  # float32 or float64

# The gate of the contract: float32 rounding of a few hundred multiply-adds is below 1e-6, a wrong gate is above 1e-2.
PARITY_LIMIT = 1e-5
# A network with sharp decisions or long counters may exceed the limit by rounding alone. Then this many times the rounding
# is allowed: the roundings of network and graph add up, and the largest of a few samples is not the largest of all.
PARITY_ROUNDINGS = 3.0
# The number of networks with all weights moved by one unit in the last place, which float32 cannot tell from the trained
# one. The rounding of the network itself is one sample; it was once ten times below that of the graph, by chance.
PARITY_PERTURBATIONS = 4
PARITY_STEPS = 1000
PARITY_BATCHES = (1, 7)
# A tenth of the values are missing, and some whole timesteps, including the first.
PARITY_MISSING = 0.1
PARITY_EMPTY = 0.02
# Timesteps that are compared as one batch. It is small, because the state of an interval may have ten thousand numbers.
_STEPS_PER_BATCH = 50
_UNIT = float(np.finfo(np.float32).eps)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Parity:
    """The largest differences between graph and network, over `steps` timesteps with carried state and missing values.

    `outputs` is in training standard deviations of the target, if an output has its unit. `state` is in the units of the
    state, and relative where the state is beyond 1. A raw difference would mean little: 1e-5 is nothing for 800 hPa, beyond
    the digits of float32, and a lot for a current of 1e-4 A. `rounding` is the largest difference of float32 from float64.
    `limit` is the largest difference that was allowed anywhere.
    """

    steps: int
    batches: tuple[int, ...]
    outputs: float
    state: float
    rounding: float
    limit: float


def check_parity(network: Network, model: onnx.ModelProto, *, limit: float = PARITY_LIMIT) -> Parity:
    """Run the whole sequence in torch and the graph step by step, and compare every output and the last state.

    Each single step is compared too, from the state of the graph. Rounding is no fault of the graph: if the rounding of a
    tensor exceeds a third of the limit, three times the rounding is allowed.

    Raises:
        ParityError: they differ by more than that.
    """
    graph = Graph(model.SerializeToString(), "the exported graph")
    gaps = [gap for batch in PARITY_BATCHES for gap in _gaps(network, graph, batch)]
    return judge(gaps, network.output_names, limit)


def judge(gaps: "Sequence[Gap]", outputs: Sequence[str], limit: float) -> Parity:
    """The parity of these differences.

    Args:
        gaps: of the outputs and the state.
        outputs: the names of the outputs; all others are state.
        limit: the largest difference that is allowed beside rounding.

    Raises:
        ParityError: a difference is larger than that.
    """
    for gap in gaps:
        # Not the other way round, because a comparison with NaN is false.
        if not (math.isfinite(gap.size) and gap.size <= gap.allowed(limit)):
            unit = "standard deviations" if gap.name in outputs else "of its size, or of 1 where that is more,"
            raise ParityError(
                f"export: {gap.name} of the graph and of the network differ by {gap.size:.1e} {unit} {gap.when}, expected "
                f"at most {gap.allowed(limit):.0e}; nothing was written"
            )
    return Parity(
        steps=PARITY_STEPS,
        batches=PARITY_BATCHES,
        outputs=max(gap.size for gap in gaps if gap.name in outputs),
        state=max((gap.size for gap in gaps if gap.name not in outputs), default=0.0),
        rounding=max(gap.rounding for gap in gaps),
        limit=max(gap.allowed(limit) for gap in gaps),
    )


@dataclass(frozen=True)
class Gap:
    """The largest difference of one output or state between graph and network, and between float32 and float64."""

    name: str
    size: float
    rounding: float
    when: str

    def allowed(self, limit: float) -> float:
        """The largest difference that is allowed."""
        return max(limit, PARITY_ROUNDINGS * self.rounding) if math.isfinite(self.rounding) else limit


def _gaps(network: Network, graph: Graph, batch: int) -> list[Gap]:
    """The differences over a sequence, and of its single steps; infinite if a value is not a number.

    The head is compared over the whole sequence, so that errors which add up are found. The monitors are compared step by
    step only: rounding may turn a close decision, and from there on two right answers differ.
    """
    exact = deepcopy(network).double()
    x = _probe_inputs(network, batch)
    state = graph.initial_state(batch)
    replayed_outputs: dict[str, list[Floats]] = {name: [] for name in network.output_names}
    single: dict[str, tuple[float, float]] = {}
    for first in range(0, len(x), _STEPS_PER_BATCH):
        before, step_outputs, after = [], [], []
        for now in x[first : first + _STEPS_PER_BATCH]:
            before.append(state)
            outputs, state = graph.step(now, state)
            step_outputs.append(outputs)
            after.append(state)
        got = {name: np.concatenate([outputs[name] for outputs in step_outputs]) for name in network.output_names}
        got |= {name: _concatenate(after, name) for name in network.state_names}
        for name in network.output_names:
            replayed_outputs[name].append(got[name].reshape(-1, batch, *got[name].shape[1:]))
        # All these steps as one batch, each with its own state.
        begin = tuple(torch.from_numpy(_concatenate(before, name)) for name in network.state_names)
        rows = torch.from_numpy(x[first : first + _STEPS_PER_BATCH].reshape(-1, x.shape[-1]))
        for name, found in _single_gaps(network, exact, rows, begin, got).items():
            worst = single.get(name, (0.0, 0.0))
            single[name] = (max(worst[0], found[0]), max(worst[1], found[1]))
    gaps = [Gap(name, *found, "after a single step from the same state") for name, found in single.items()]
    replayed = {name: np.concatenate(parts) for name, parts in replayed_outputs.items()} | state
    expected, truth = _run_sequence(network, x), _run_sequence(exact, x)
    twins = [_run_sequence(perturbed(network, seed), x) for seed in range(PARITY_PERTURBATIONS)]
    for name, part in expected.items():
        size = _difference(network, name, [part], replayed[name])
        rounding = max(_difference(network, name, [truth[name]], sample[name]) for sample in (expected, *twins))
        gaps.append(Gap(name, size, rounding, f"after {PARITY_STEPS} steps"))
    return gaps


def _single_gaps(
    network: Network, exact: Network, x: torch.Tensor, state: State, got: dict[str, Floats]
) -> dict[str, tuple[float, float]]:
    """The largest difference of each output and state after one step, and its rounding.

    If the network decides otherwise with all thresholds moved by `PARITY_LIMIT`, both decisions are right.
    """
    answers = [
        _shifted_step(network, x, state, threshold_shift) for threshold_shift in (0.0, -PARITY_LIMIT, PARITY_LIMIT)
    ]
    truth = _shifted_step(exact, x.double(), tuple(part.double() for part in state), 0.0)
    right = {name: [answer[name] for answer in answers] for name in got}
    return {
        name: (_difference(network, name, right[name], part), _difference(network, name, right[name], truth[name]))
        for name, part in got.items()
    }


def _run_sequence(network: Network, x: Floats) -> dict[str, Numbers]:
    """The served outputs of the head over a whole sequence, and the last state without that of the monitors."""
    dtype = network.mean.dtype
    begin = tuple(part.to(dtype) for part in network.initial_state(x.shape[1]))
    with torch.no_grad():
        replayed_outputs, final = network.scaled_sequence(torch.from_numpy(x).to(dtype), begin)
        outputs = network.head.raw(replayed_outputs, network.mean, network.std)
    core = len(final) - network.monitor_states
    outputs |= dict(zip(network.state_names[:core], final[:core], strict=True))
    return {name: part.numpy() for name, part in outputs.items()}


def perturbed(network: ModuleT, seed: int) -> ModuleT:
    """The network with each weight moved by one unit in the last place, up or down at random."""
    twin = deepcopy(network)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            up = torch.from_numpy(rng.random(weight.shape) < 0.5)
            weight.mul_(torch.where(up, 1.0 + _UNIT, 1.0 - _UNIT))
    return twin


def _concatenate(states: list[dict[str, Floats]], name: str) -> Floats:
    """One state tensor of several timesteps as one batch."""
    return np.concatenate([state[name] for state in states], axis=-2)


def _shifted_step(network: Network, x: torch.Tensor, state: State, threshold_shift: float) -> dict[str, Numbers]:
    """The outputs and the next state of a step of the network, with the thresholds of all decisions shifted."""
    for monitor in network.monitors:
        monitor.threshold_shift = threshold_shift
    try:
        with torch.no_grad():
            outputs, after = network.step(x, state)
    finally:
        for monitor in network.monitors:
            monitor.threshold_shift = 0.0
    outputs |= dict(zip(network.state_names, after, strict=True))
    return {name: part.numpy() for name, part in outputs.items()}


def _difference(network: Network, name: str, answers: Sequence[Numbers], got: Numbers) -> float:
    """The largest difference from the nearest of several right answers; infinite if a value is not a number.

    That of an output is in its unit. That of a state is relative where the state is beyond 1, as float32 rounds.
    """
    if name in network.output_names:
        sizes = [np.abs((got - answer) / network.unit(name)) for answer in answers]
    else:
        sizes = [np.abs(got - answer) / np.maximum(np.abs(answer), 1.0) for answer in answers]
    apart = np.min(sizes, axis=0)
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _probe_inputs(network: Network, batch: int) -> Floats:
    """(time, batch, features) in raw units: random values with the moments of the training part, some missing."""
    rng = np.random.default_rng(batch)
    shape = (PARITY_STEPS, batch, network.architecture.features)
    values = network.mean.numpy() + network.std.numpy() * rng.standard_normal(shape, np.float32)
    elapsed = network.architecture.elapsed
    if elapsed is not None:  # steps over decades, so that some renew the state
        values[..., elapsed.feature] = elapsed.reset_s * np.exp(rng.normal(-4.0, 2.0, shape[:2]))
    silent = rng.random((*shape[:2], 1)) < PARITY_EMPTY
    silent[0] = True
    return np.where(silent | (rng.random(shape) < PARITY_MISSING), np.float32(np.nan), values).astype(np.float32)
