"""The parity gate: an exported graph must compute what the network computes, over many steps, before it is written."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from training.data.series import Floats
from training.errors import ParityError
from training.judging.graph import Graph
from training.network.cells import State
from training.network.network import Network

Numbers = npt.NDArray[np.floating[Any]]  # float32 or float64

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
# Timesteps that are compared as one batch: a state with a ring of forecasts may have ten thousand numbers.
_TOGETHER = 50
_UNIT = float(np.finfo(np.float32).eps)


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
