"""What a graph is fed for a batch that has no bound memory, and how its results are read.

Most models have one float32 input and their batch first, and nothing is done for them but to pass arrays on.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tidegate.core.graph_layout import graph_shape, in_graph, time_in_graph
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Arrays, Constant, Input, Output, Spec, StateTensor

Move = Callable[[Array], Array]


class Feeds:
    """The inputs and the results of a model's graph. `fetch` are the names of its results."""

    def __init__(self, spec: Spec) -> None:
        self._layout = InputLayout(spec.inputs)
        self._spec = spec
        self._inputs = self._layout.timestep
        self._ordinary_x = len(self._inputs) == 1 and self._layout.plain and _is_plain(self._inputs[0])
        self._windows = {part.name: part for part in self._inputs if part.window > 1}
        self._constants = [(part, _inwards(part)) for part in spec.constants]
        # In the order of the state that `step` gets.
        kept = [part for part in spec.state if part.next_name]
        self._kept = [(part.name, place, _inwards(part)) for place, part in enumerate(spec.state) if part.next_name]
        self._kept += [
            (part.name, place, _inwards(part)) for place, part in enumerate(spec.stream_inputs, len(spec.state))
        ]
        # A tensor that is an output and a next state is fetched once.
        self.fetch = list(dict.fromkeys([*(part.name for part in spec.outputs), *(part.next_name for part in kept)]))
        self._outputs = [(self.fetch.index(part.name), _outwards(part, contiguous=True)) for part in spec.outputs]
        self._next = [
            (self.fetch.index(part.next_name), _outwards(part)) if part.next_name else None for part in spec.state
        ]
        self._moved = [pair for pair in self._next if pair]

    def feed(self, x: Array, state: Arrays) -> Mapping[str, Array]:
        """The inputs of the graph for the rows x, as `Model.step` gets them."""
        feed = {name: state[place] if move is None else move(state[place]) for name, place, move in self._kept}
        if self._ordinary_x:
            feed[self._inputs[0].name] = x
        else:
            for part, now in zip(self._inputs, self._layout.unpack(x), strict=True):
                rows = now if part.window == 1 else time_in_graph(self._with_past(part, now, state), part)
                feed[part.name] = in_graph(rows, part.batch_axis)
        for constant, move in self._constants:
            value = np.broadcast_to(constant.value, (len(x), *constant.value.shape))
            feed[constant.name] = value if move is None else move(value)
        return feed

    def read(self, results: Sequence[Array], x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        """The outputs and the next state, one array (batch, *shape) each."""
        outputs = tuple([results[place] if move is None else move(results[place]) for place, move in self._outputs])
        if not self._windows:
            return outputs, tuple(
                [results[place] if move is None else move(results[place]) for place, move in self._moved]
            )
        given = {part.name: rows for part, rows in zip(self._inputs, self._layout.unpack(x), strict=True)}
        next_state = []
        for tensor, pair in zip(self._spec.state, self._next, strict=True):
            if pair is None:
                next_state.append(self._with_past(self._windows[tensor.name], given[tensor.name], state)[:, 1:])
            else:
                place, move = pair
                next_state.append(results[place] if move is None else move(results[place]))
        return outputs, tuple(next_state)

    def _with_past(self, part: Input, rows: Array, state: Arrays) -> Array:
        """The timesteps before this one, and this one: (batch, window, *shape)."""
        place = next(place for place, tensor in enumerate(self._spec.state) if tensor.name == part.name)
        return np.concatenate([state[place], rows[:, np.newaxis]], axis=1)


def _is_plain(part: Input) -> bool:
    """Whether the graph takes rows of that input as they are."""
    return part.batch_axis == 0 and len(part.shape) == 1 and part.window == 1


def _inwards(part: StateTensor | Input | Constant) -> Move | None:
    """What moves the batch from the first axis to where the graph has it; None where that is the first."""
    if part.batch_axis == 0:
        return None
    if part.batch_axis is None:
        return lambda rows: rows[0, ...]  # an array, also where it has no dimension
    rank, batch = len(graph_shape(part, 1)), part.batch_axis
    axes = (*range(1, batch + 1), 0, *range(batch + 1, rank))
    return lambda rows: rows.transpose(axes)


def _outwards(part: StateTensor | Output, *, contiguous: bool = False) -> Move | None:
    """What moves the batch back to the first axis; None where it is there."""
    if part.batch_axis == 0:
        return None
    if part.batch_axis is None:
        return lambda rows: rows[np.newaxis]
    rank, batch = len(graph_shape(part, 1)), part.batch_axis
    axes = (batch, *(axis for axis in range(rank) if axis != batch))
    if contiguous:
        return lambda rows: np.ascontiguousarray(rows.transpose(axes))
    return lambda rows: rows.transpose(axes)
