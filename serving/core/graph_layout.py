"""Where a graph has its batch, and its window of timesteps, in the tensors of many streams."""

import numpy as np

from tidegate.core.spec import Array, Constant, Input, Output, StateTensor


def graph_shape(part: Input | Output | StateTensor | Constant, batch: int) -> tuple[int, ...]:
    """The shape of a tensor in the graph for a number of streams."""
    if isinstance(part, Constant):
        shape = part.value.shape
    elif isinstance(part, Input) and part.window > 1:
        shape = (*part.shape[: part.window_axis], part.window, *part.shape[part.window_axis :])
    else:
        shape = part.shape
    return shape if part.batch_axis is None else (*shape[: part.batch_axis], batch, *shape[part.batch_axis :])


def batch_first(memory: Array, batch_axis: int | None) -> Array:
    """A view (batch, *shape) of a tensor of the graph."""
    return memory[np.newaxis] if batch_axis is None else np.moveaxis(memory, batch_axis, 0)


def in_graph(rows: Array, batch_axis: int | None) -> Array:
    """A view of the rows (batch, *shape) as the graph has them."""
    return rows[0, ...] if batch_axis is None else np.moveaxis(rows, 0, batch_axis)


def time_first(rows: Array, part: Input) -> Array:
    """A view (batch, timesteps, *shape) of the rows of an input with a window."""
    return np.moveaxis(rows, 1 + part.window_axis, 1)


def time_in_graph(rows: Array, part: Input) -> Array:
    """A view of rows (batch, timesteps, *shape) with the timesteps where the graph has them."""
    return np.moveaxis(rows, 1, 1 + part.window_axis)
