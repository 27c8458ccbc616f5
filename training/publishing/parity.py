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
# Timesteps that are compared as one batch.
_STEPS_PER_BATCH = 50
# The state of an interval has a hundred thousand numbers with a hundred horizons. Single steps with this many numbers of
# state take some ten seconds, and the sequence is compared in all timesteps anyway.
_SINGLE_STEP_NUMBERS = 50_000_000
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
    twins = [perturbed(network, seed) for seed in range(PARITY_PERTURBATIONS)]
    # The last is exact. Each keeps the state of its own sequence.
    runs = [_Sequence(one, batch) for one in (network, *twins, exact)]
    single, whole = Worst(), Worst()
    every = _single_step_distance(state)
    for first in range(0, len(x), _STEPS_PER_BATCH):
        rows = x[first : first + _STEPS_PER_BATCH]
        before, step_outputs, after = [], [], []
        for step, now in enumerate(rows, first):
            begin = state
            outputs, state = graph.step(now, begin)
            step_outputs.append(outputs)
            if step % every == 0:
                before.append(begin)
                after.append(state)
        chosen = slice(-first % every, None, every)  # the same steps, counted within these rows
        for name, found in _single_gaps(network, exact, rows[chosen], before, step_outputs[chosen], after).items():
            single.add(name, *found)
        expected, *others = [run.advance(rows) for run in runs]
        for name, part in expected.items():
            replayed = np.stack([outputs[name] for outputs in step_outputs])
            whole.add(name, *_sequence_gap(network, name, replayed, [part, *(other[name] for other in others)]))
    last, *others = [run.core_state() for run in runs]
    for name, part in last.items():
        whole.add(name, *_sequence_gap(network, name, state[name], [part, *(other[name] for other in others)]))
    return [*single.gaps("after a single step from the same state"), *whole.gaps(f"after {PARITY_STEPS} steps")]


class Worst:
    """The largest difference of each output and state so far, and its largest rounding."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def add(self, name: str, size: float, rounding: float) -> None:
        """Take in another one."""
        worst = self.found.get(name, (0.0, 0.0))
        self.found[name] = (max(worst[0], size), max(worst[1], rounding))

    def gaps(self, when: str) -> list[Gap]:
        """All of them; `when` is part of the message."""
        return [Gap(name, size, rounding, when) for name, (size, rounding) in self.found.items()]


class _Sequence:
    """A network that runs over a sequence part by part, so that no more than a part is in memory."""

    def __init__(self, network: Network, batch: int) -> None:
        self.network = network
        self.state = tuple(part.to(network.mean.dtype) for part in network.initial_state(batch))

    def advance(self, x: Floats) -> dict[str, Numbers]:
        """The served outputs of the head for the next timesteps: (time, batch, features) -> (time, batch, ...)."""
        network = self.network
        with torch.no_grad():
            outputs, self.state = network.scaled_sequence(torch.from_numpy(x).to(network.mean.dtype), self.state)
            served = network.head.raw(outputs, network.mean, network.std)
        return {name: part.numpy() for name, part in served.items()}

    def core_state(self) -> dict[str, Numbers]:
        """The present state without that of the monitors."""
        core = len(self.state) - self.network.monitor_states
        named = zip(self.network.state_names[:core], self.state[:core], strict=True)
        return {name: part.numpy() for name, part in named}


def _sequence_gap(network: Network, name: str, got: Numbers, runs: Sequence[Numbers]) -> tuple[float, float]:
    """The difference of one tensor from the first run, and the largest of all runs but the last from the last, exact one."""
    *samples, truth = runs
    rounding = max(_difference(network, name, [truth], sample) for sample in samples)
    return _difference(network, name, samples[:1], got), rounding


def _single_step_distance(state: dict[str, Floats]) -> int:
    """Every how many timesteps the single step is compared: each, unless the state is so large that this takes minutes."""
    numbers = sum(part.size for part in state.values())
    return max(1, -(-numbers * PARITY_STEPS // _SINGLE_STEP_NUMBERS))


def _single_gaps(
    network: Network,
    exact: Network,
    x: Floats,
    before: Sequence[dict[str, Floats]],
    outputs: Sequence[dict[str, Floats]],
    after: Sequence[dict[str, Floats]],
) -> dict[str, tuple[float, float]]:
    """The largest difference of each output and state after one step, and its rounding.

    The timesteps `x` (time, batch, features) run as one batch, each from its own state `before`. If the network decides
    otherwise with all thresholds moved by `PARITY_LIMIT`, both decisions are right.
    """
    if not before:
        return {}
    got = {name: np.concatenate([part[name] for part in outputs]) for name in network.output_names}
    got |= {name: _concatenate(after, name) for name in network.state_names}
    rows = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, x.shape[-1])))
    state = tuple(torch.from_numpy(_concatenate(before, name)) for name in network.state_names)
    answers = [
        _shifted_step(network, rows, state, threshold_shift) for threshold_shift in (0.0, -PARITY_LIMIT, PARITY_LIMIT)
    ]
    truth = _shifted_step(exact, rows.double(), tuple(part.double() for part in state), 0.0)
    right = {name: [answer[name] for answer in answers] for name in got}
    return {
        name: (_difference(network, name, right[name], part), _difference(network, name, right[name], truth[name]))
        for name, part in got.items()
    }


def perturbed(network: ModuleT, seed: int) -> ModuleT:
    """The network with each weight moved by one unit in the last place, up or down at random."""
    twin = deepcopy(network)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            up = torch.from_numpy(rng.random(weight.shape) < 0.5)
            weight.mul_(torch.where(up, 1.0 + _UNIT, 1.0 - _UNIT))
    return twin


def _concatenate(states: Sequence[dict[str, Floats]], name: str) -> Floats:
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
    return with_missing(values, rng)


def with_missing(values: Floats, rng: np.random.Generator) -> Floats:
    """The values (time, batch, features) with some of them missing, among them the whole first timestep."""
    silent = rng.random((*values.shape[:2], 1)) < PARITY_EMPTY
    silent[0] = True
    return np.where(silent | (rng.random(values.shape) < PARITY_MISSING), np.float32(np.nan), values).astype(np.float32)
