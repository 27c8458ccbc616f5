"""The parity gate for a module of any kind: its graph must compute what its step computes, alone and in batches."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch

from tidegate.training.data.series import Floats
from tidegate.training.errors import ModuleError
from tidegate.training.judging.graph import Graph
from tidegate.training.publishing.module import Step
from tidegate.training.publishing.parity import (
    PARITY_BATCHES,
    PARITY_LIMIT,
    PARITY_PERTURBATIONS,
    PARITY_STEPS,
    Gap,
    Numbers,
    Parity,
    Worst,
    judge,
    perturbed,
    with_missing,
)

# The tensors by name. With a time axis before the others, if they are of many steps.
Results = dict[str, Numbers]

# In standard deviations. A module that mixes streams is far above it, and kernels for other batches far below.
MIXED = 1e-3
# Steps that the module computes as one batch, each from its own state.
_STEPS_PER_BATCH = 50


def check_module_parity(step: Step, model: onnx.ModelProto, x: Floats) -> Parity:
    """Step the module and its graph with their states carried, in batches of 1 and 7, and compare outputs and state.

    Each single step is compared from the state of the graph, then the whole sequence. Differences of single steps may add
    up, in a gate that hardly forgets by a hundred times. So the sequence may differ by three times what the module differs
    from itself, with its weights moved by one unit in the last place and its state by the differences of single steps.

    Args:
        step: of the module.
        model: its graph, with a description.
        x: (time, batch, features) raw, of the largest batch.

    Raises:
        ModuleError: the module gives something that is not a number, or mixes streams.
        ParityError: graph and module differ.
    """
    graph = Graph(model.SerializeToString(), "the exported graph")
    outputs = [part.name for part in step.description.outputs]
    twins = [perturbed(step, seed) for seed in range(PARITY_PERTURBATIONS)]
    truths, replays = [], []
    for batch in PARITY_BATCHES:
        rows = np.ascontiguousarray(x[:, :batch])
        truths.append(_run_module(step, rows))
        _check_finite(step, truths[-1])
        replays.append(_run_graph(graph, rows))
    _check_alone(step, replays[0][0], replays[-1][0])
    gaps: list[Gap] = []
    for batch, truth, (replayed, states) in zip(PARITY_BATCHES, truths, replays, strict=True):
        rows = np.ascontiguousarray(x[:, :batch])
        units = {name: _unit(part) if name in outputs else _size(part) for name, part in truth.items()}
        single = _single_gaps(step, twins, rows, replayed, states, {name: units[name] for name in outputs})
        shifts = {gap.name: gap.size for gap in single if gap.name not in outputs}
        samples = [_run_module(twin, rows, shifts, seed) for seed, twin in enumerate(twins)]
        last = replayed | states[-1]
        for name, part in truth.items():
            rounding = max(_difference(part, sample[name], units[name]) for sample in samples)
            gaps.append(
                Gap(
                    name, _difference(part, last[name], units[name]), rounding, f"after {PARITY_STEPS} steps of {batch}"
                )
            )
        gaps += single
    return judge(gaps, outputs, PARITY_LIMIT)


def probe(step: Step, samples: Floats | None, *, missing: bool) -> Floats:
    """(time, batch, features): the inputs of the gate, `PARITY_STEPS` timesteps of the largest batch.

    Args:
        step: of the module.
        samples: (rows, features) of real timesteps, which are repeated; without them noise within the range of each
            feature, or about 0 where its range is unknown.
        missing: whether some values are made missing.
    """
    rng = np.random.default_rng(0)
    shape = (PARITY_STEPS, max(PARITY_BATCHES), len(step.description.features))
    if samples is not None:
        begins = np.arange(shape[1]) * len(samples) // shape[1]
        values: Floats = samples[(np.arange(shape[0])[:, None] + begins) % len(samples)]
    else:
        values = rng.standard_normal(shape, np.float32)
        for index, feature in enumerate(step.description.features):
            if feature.low is not None and feature.high is not None:
                values[..., index] = rng.uniform(feature.low, feature.high, shape[:2])
    return with_missing(values, rng) if missing else values


def _run_module(step: Step, x: Floats, shifts: Mapping[str, float] | None = None, seed: int = 0) -> Results:
    """Every step of the module, its state carried: the outputs (time, batch, ...) and the last state.

    With `shifts` each number of the state is moved after each step by this share of itself. Whether up or down is chosen at
    random once for all steps, because the rounding of an operator may lean to one side.
    """
    names = [part.name for part in step.description.state]
    state, steps = step.initial_state(x.shape[1]), []
    rng = torch.Generator().manual_seed(seed)
    signs = [torch.randint(0, 2, part.shape, generator=rng) * 2.0 - 1.0 for part in state]
    with torch.no_grad():
        for now in torch.from_numpy(x):
            outputs, state = step.step(now, state)
            steps.append(outputs)
            if shifts:
                moves = [sign * shifts[name] for name, sign in zip(names, signs, strict=True)]
                state = tuple(_moved(part, move) for part, move in zip(state, moves, strict=True))
    named = zip(step.description.outputs, zip(*steps, strict=True), strict=True)
    results = {output.name: torch.stack(parts).numpy() for output, parts in named}
    return results | dict(zip(names, (part.numpy() for part in state), strict=True))


def _moved(part: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A state tensor, moved by a share of its size; a count is exact and stays."""
    return part + share.to(part.dtype) * part.abs().clamp(min=1.0) if part.is_floating_point() else part


def _run_graph(graph: Graph, x: Floats) -> tuple[Results, list[Results]]:
    """Every step of the graph: the outputs (time, batch, ...), and the state before the first step and after each."""
    states: list[Results] = [dict(graph.initial_state(x.shape[1]))]
    steps: list[Results] = []
    for now in x:
        outputs, state = graph.step(now, states[-1])
        steps.append(dict(outputs))
        states.append(dict(state))
    return {name: np.stack([outputs[name] for outputs in steps]) for name in steps[0]}, states


def _single_gaps(
    step: Step, twins: Sequence[Step], x: Floats, replayed: Results, states: Sequence[Results], units: Results
) -> list[Gap]:
    """The differences of single steps, from the states of the graph, and those of the twins of the module."""
    worst, batch = Worst(), x.shape[1]
    for first in range(0, len(x), _STEPS_PER_BATCH):
        chunk = slice(first, first + _STEPS_PER_BATCH)
        before = _joined(step, states[:-1][chunk])
        got = {name: part[chunk] for name, part in replayed.items()} | _joined(step, states[1:][chunk])
        rows = x[chunk].reshape(-1, x.shape[-1])
        truth, *others = (_one_step(one, rows, before, batch) for one in (step, *twins))
        for name, part in truth.items():
            unit = units[name] if name in units else _size(part)
            rounding = max(_difference(part, other[name], unit) for other in others)
            worst.add(name, _difference(part, got[name], unit), rounding)
    return worst.gaps("after a single step from the same state")


def _joined(step: Step, states: Sequence[Results]) -> Results:
    """The states of several timesteps as one batch."""
    described = step.description.state
    return {
        part.name: np.concatenate([state[part.name] for state in states], axis=part.batch_axis) for part in described
    }


def _one_step(step: Step, x: Floats, state: Results, batch: int) -> Results:
    """One step of many timesteps as one batch: the outputs (time, batch, ...), and the next state of that batch."""
    names = [part.name for part in step.description.state]
    with torch.no_grad():
        outputs, after = step.step(torch.from_numpy(x), tuple(torch.from_numpy(state[name]) for name in names))
    results = {
        described.name: part.numpy().reshape(-1, batch, *part.shape[1:])
        for described, part in zip(step.description.outputs, outputs, strict=True)
    }
    return results | dict(zip(names, (part.numpy() for part in after), strict=True))


def _check_finite(step: Step, results: Results) -> None:
    for name, part in results.items():
        if not np.isfinite(part).all():
            raise ModuleError(
                f"step: {step.title} gives NaN or infinity in {name!r}; let no missing value of x reach a layer, or "
                f"leave handles_missing out; or give real rows as samples"
            )


def _check_alone(step: Step, alone: Results, together: Results) -> None:
    """Compare the outputs of the one stream of the smallest batch with those of the same stream in the largest."""
    for name, part in alone.items():
        size = _difference(part, together[name][:, :1], _unit(part))
        if not size <= MIXED:
            raise ModuleError(
                f"step: {step.title} gives a stream other values of {name!r} in a batch than alone, by {size:.1e} standard "
                f"deviations; compute each row of the batch by itself"
            )


def _unit(values: Numbers) -> Numbers:
    """The standard deviation of an output (time, batch, ...) over time and batch; of a constant its size, or 1."""
    exact = values.astype(np.float64)
    std, size = exact.std(axis=(0, 1)), np.abs(exact).max(axis=(0, 1))
    return np.where(std > 0, std, np.where(size > 0, size, 1.0))


def _size(state: Numbers) -> Numbers:
    """The unit of a state: its size, or 1 where that is more."""
    return np.maximum(np.abs(state.astype(np.float64)), 1.0)


def _difference(truth: Numbers, got: Numbers, unit: Numbers) -> float:
    """The largest difference in units; infinite if a value is not a number."""
    apart = np.abs(got.astype(np.float64) - truth.astype(np.float64)) / unit
    return float(np.where(np.isnan(apart), np.inf, apart).max())
