"""Checks at load whether a row of a batch gets the bits that it gets alone, and warms the model up."""

import math

import numpy as np

from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.model import Model
from tidegate.core.signature import format_shape
from tidegate.core.spec import Arrays, Ints, Spec

# A sum in another order changes the last bit of about one value in ten. Among so many values at least one differs.
VALUES_COMPARED = 1000


def batch_variant_sizes(model: Model, batch_max: int, steps: int = 3) -> Ints:
    """Compares rows run alone with rows in batches of every size up to `batch_max`.

    Returns the sizes that change bits.

    onnxruntime does not promise that a row gives the same bits in any batch. On most CPUs it does, and then the
    result is empty. Every size runs at least once, so this also warms the session up. It runs again, up to `steps`
    times and with an advanced state, until `VALUES_COMPARED` values were compared.

    Raises ContractBroken when the graph cannot be run, or produces other shapes than it declares.
    """
    try:
        return _batch_variant_sizes(model, batch_max, steps)
    except ModelFailed as error:
        raise ContractBroken(model.spec.title, f"the graph cannot be run: {error}") from error


def _batch_variant_sizes(model: Model, batch_max: int, steps: int) -> Ints:
    rng = np.random.default_rng(0)  # a fixed seed makes reports comparable; any rows will do
    low = np.array([-1.0 if feature.low is None else feature.low for feature in model.spec.features])
    high = np.array([1.0 if feature.high is None else feature.high for feature in model.spec.features])
    x = rng.uniform(low, high, (steps, batch_max, len(low))).astype(np.float32)
    if model.spec.handles_missing:
        x[rng.random(x.shape) < 0.1] = np.nan
    state = model.initial_state(batch_max)
    row_values = sum(math.prod(output.shape) for output in model.spec.outputs)
    row_values += sum(tensor.initial.size for tensor in model.spec.state)
    varying: set[int] = set()
    for steps_left, now in zip(range(steps, 0, -1), x, strict=True):
        alone = [
            model.step(now[row : row + 1], tuple(rows[row : row + 1] for rows in state)) for row in range(batch_max)
        ]
        expected = [np.concatenate(parts) for parts in zip(*((*y, *s) for y, s in alone), strict=True)]
        for size in range(2, batch_max + 1):
            if steps_left > 1 and (steps_left - 1) * size * row_values >= VALUES_COMPARED:
                continue  # the remaining timesteps are enough
            part = tuple(rows[:size] for rows in state)
            outputs, next_state = model.step(now[:size], part)
            _check_shapes(model.spec, (*outputs, *next_state), size)
            results = [(*outputs, *next_state)]
            if size in (2, batch_max):  # bound memory behaves the same for every size
                results.append(model.step_bound(now[:size], part))
            for got in results:
                if any(
                    target.tobytes() != expected_part[:size].tobytes()
                    for target, expected_part in zip(got, expected, strict=True)
                ):
                    varying.add(size)
        state = tuple(expected[len(model.spec.outputs) :])
    return np.array(sorted(varying), np.int64)


def _check_shapes(spec: Spec, got: Arrays, batch: int) -> None:
    """Checks the shapes of results.

    A graph may declare one shape and produce another; one row for the whole batch would mix streams.
    """
    shapes = [(output.name, output.shape) for output in spec.outputs]
    shapes += [(tensor.next_name, tensor.shape) for tensor in spec.state]
    for (name, row), part in zip(shapes, got, strict=True):
        if part.shape != (batch, *row):
            raise ContractBroken(
                spec.title,
                f"output '{name}' came out with shape {format_shape(part.shape)}, expected {format_shape((batch, *row))}",
            )
