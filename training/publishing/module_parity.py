"""The parity gate for a module of any kind: its graph must compute what its step computes, alone and in batches."""

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from tidegate.training.data.series import Floats
from tidegate.training.errors import ModuleError
from tidegate.training.judging.graph import Graph
from tidegate.training.publishing.module import Step
from tidegate.training.publishing.parity import (
    PARITY_BATCHES,
    PARITY_EMPTY,
    PARITY_LIMIT,
    PARITY_MISSING,
    PARITY_PERTURBATIONS,
    PARITY_STEPS,
    Gap,
    Numbers,
    Parity,
    judge,
    perturbed,
)

# The tensors by name. Outputs have a time axis before the batch, (time, batch, ...); state is that after the last step.
Results = dict[str, Numbers]


def check_module_parity(step: Step, model: onnx.ModelProto, x: Floats) -> Parity:
    """Step the module and its graph with their states carried, in batches of 1 and 7, and compare outputs and state.

    A stream alone must also be what it is among others: a module that takes a mean over the batch mixes streams. Rounding
    is measured by weights that are moved by one unit in the last place, as in `parity`.

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
    gaps: list[Gap] = []
    replays: list[Results] = []
    for batch in PARITY_BATCHES:
        rows = x[:, :batch]
        truth = _run_module(step, rows)
        _check_finite(step, truth)
        twins = [_run_module(perturbed(step, seed), rows) for seed in range(PARITY_PERTURBATIONS)]
        replayed, state = graph.replay(np.ascontiguousarray(rows))
        replays.append({**replayed, **state})
        for name, part in truth.items():
            unit = _unit(part, axes=2) if name in outputs else np.maximum(np.abs(part), 1.0)
            rounding = max(_difference(part, twin[name], unit) for twin in twins)
            size = _difference(part, replays[-1][name], unit)
            gaps.append(Gap(name, size, rounding, f"after {PARITY_STEPS} steps in a batch of {batch}"))
    _check_alone(step, outputs, replays, gaps)
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
        values = samples[(np.arange(shape[0])[:, None] + begins) % len(samples)]
    else:
        values = rng.standard_normal(shape, np.float32)
        for index, feature in enumerate(step.description.features):
            if feature.low is not None and feature.high is not None:
                values[..., index] = rng.uniform(feature.low, feature.high, shape[:2])
    if not missing:
        return values
    silent = rng.random((*shape[:2], 1)) < PARITY_EMPTY
    silent[0] = True
    return np.where(silent | (rng.random(shape) < PARITY_MISSING), np.float32(np.nan), values).astype(np.float32)


def _run_module(step: Step, x: Floats) -> Results:
    """Every step of the module, its state carried."""
    state, steps = step.initial_state(x.shape[1]), []
    with torch.no_grad():
        for now in torch.from_numpy(np.ascontiguousarray(x)):
            outputs, state = step.step(now, state)
            steps.append(outputs)
    named = zip(step.description.outputs, zip(*steps, strict=True), strict=True)
    results = {output.name: torch.stack(parts).numpy() for output, parts in named}
    return results | {part.name: tensor.numpy() for part, tensor in zip(step.description.state, state, strict=True)}


def _check_finite(step: Step, results: Results) -> None:
    for name, part in results.items():
        if not np.isfinite(part).all():
            raise ModuleError(
                f"step: {step.title} gives NaN or infinity in {name!r}; replace missing values of x inside the step before "
                f"they reach a layer, or leave handles_missing out; or give real rows as samples"
            )


def _check_alone(step: Step, outputs: Sequence[str], replays: Sequence[Results], gaps: Sequence[Gap]) -> None:
    """Compare the one stream of the smallest batch with the same stream in the largest."""
    alone, together = replays[0], replays[-1]
    for name in outputs:
        first = np.asarray(together[name][:, :1], np.float64)
        allowed = sum(gap.allowed(PARITY_LIMIT) for gap in gaps if gap.name == name)
        size = _difference(np.asarray(alone[name], np.float64), first, _unit(first, axes=2))
        if not size <= allowed:
            raise ModuleError(
                f"step: {step.title} gives a stream other values of {name!r} in a batch than alone, by {size:.1e} standard "
                f"deviations; compute each row of the batch by itself"
            )


def _unit(values: Numbers, *, axes: int) -> Numbers:
    """The standard deviation over time and batch; of a constant its size, or 1."""
    std = values.astype(np.float64).std(axis=tuple(range(axes)))
    size = np.abs(values.astype(np.float64)).max(axis=tuple(range(axes)))
    return np.where(std > 0, std, np.where(size > 0, size, 1.0))


def _difference(truth: Numbers, got: Numbers, unit: Numbers) -> float:
    """The largest difference in units; infinite if a value is not a number."""
    apart = np.abs(got.astype(np.float64) - truth.astype(np.float64)) / unit
    return float(np.where(np.isnan(apart), np.inf, apart).max())
