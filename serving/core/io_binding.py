"""ONNX graphs bound to fixed memory: for one row, and for batches of a size that comes often.

A single timestep finds cold caches, and most of its time goes to loading code and data. So one row is copied as bytes,
and its graph runs without creating or checking a tensor. A single row has the same layout wherever the graph has its
batch axis, so no transpose is needed.

A batch that uses the same memory each time finds it in the cache, and nothing is allocated for it.
"""

import math
from functools import partial
from struct import Struct
from typing import Any

import numpy as np

from tidegate.core.graph_layout import batch_first, graph_shape, time_first
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Arrays, Spec


class _Memory:
    """Memory for a batch of `size` rows, bound to a graph. Everything is a view (size, *shape) of it.

    `now` has one for each input of a timestep; `state` one for each state tensor and then for each input of a stream;
    `next_state` one for each state tensor; `outputs` one for each output.
    """

    def __init__(self, session: Any, spec: Spec, size: int, run_options: Any) -> None:
        self._binding = session.io_binding()
        # The public `run_with_iobinding` also prepares for WebGPU, which takes half as long as a small graph.
        self.run = partial(session._sess.run_with_iobinding, self._binding._iobinding, run_options)  # noqa: SLF001
        self._kept: list[Array] = []  # the binding has only addresses, so this must live as long as it runs
        now: list[Array] = []
        given: list[Array] = []
        windows: dict[str, Array] = {}  # (size, timesteps, *shape)
        for part in spec.inputs:
            rows = self._bind(part.name, part.dtype, graph_shape(part, size), part.batch_axis)
            if part.kind == "stream":
                given.append(rows)
            elif part.window > 1:
                windows[part.name] = time_first(rows, part)
                now.append(windows[part.name][:, -1])
            else:
                now.append(rows)
        for constant in spec.constants:
            rows = self._bind(constant.name, constant.value.dtype, graph_shape(constant, size), constant.batch_axis)
            rows[:] = constant.value
        self.now: Arrays = tuple(now)
        state, next_state = [], []
        following: dict[str, Array] = {}
        for tensor in spec.state:
            if tensor.name in windows:
                state.append(windows[tensor.name][:, :-1])
                next_state.append(windows[tensor.name][:, 1:])
                continue
            shape = graph_shape(tensor, size)
            state.append(self._bind(tensor.name, tensor.dtype, shape, tensor.batch_axis))
            rows = self._bind(tensor.next_name, tensor.dtype, shape, tensor.batch_axis, output=True)
            following[tensor.next_name] = rows
            next_state.append(rows)
        self.state: Arrays = (*state, *given)
        self.next_state: Arrays = tuple(next_state)
        # A tensor that is an output and a next state is bound once.
        self.outputs: Arrays = tuple(
            following[output.name]
            if output.name in following
            else self._bind(output.name, output.dtype, graph_shape(output, size), output.batch_axis, output=True)
            for output in spec.outputs
        )

    def _bind(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], batch_axis: int | None, *, output: bool = False
    ) -> Array:
        memory = np.zeros(shape, dtype)
        self._kept.append(memory)
        bind = self._binding.bind_output if output else self._binding.bind_input
        bind(name, "cpu", 0, dtype, shape, memory.ctypes.data)
        return batch_first(memory, batch_axis)


class RowBinding:
    """The memory of one row, and the graph that runs on it.

    `state`, `next_state` and `outputs` are that memory as bytes, one for each tensor. `run` reads `state` and the
    values of `set_inputs`; it writes `next_state` and `outputs`.
    """

    def __init__(self, session: Any, spec: Spec, run_options: Any = None) -> None:
        self._memory = memory = _Memory(session, spec, 1, run_options)
        self._moved_in: list[tuple[Array, Array]] = []
        self._moved_out: list[tuple[Array, Array]] = []
        self._now = [_contiguous(part, self._moved_in) for part in memory.now]
        self._state = [_contiguous(part, self._moved_in) for part in memory.state]
        self._next_state = [_contiguous(part, self._moved_out) for part in memory.next_state]
        # What is an output and a next state is the same memory.
        self._outputs = [_contiguous(part, self._moved_out) for part in memory.outputs]
        self._run_graph = memory.run
        self._run = self._run_moved if self._moved_in or self._moved_out else memory.run
        self._layout = InputLayout(spec.inputs)
        self._values = self._now[0].data.cast("B")
        self._unpack = Struct(f"<{self._now[0].size}f").unpack
        checked = [part for part, tensor in zip(self._next_state, spec.state, strict=True) if tensor.is_checked]
        # float16 overflows where a number is above 255, and each number is looked at.
        self._checked = [part for part in checked if part.dtype != np.float16]
        self._checked_one_by_one = [part for part in checked if part.dtype == np.float16]
        self.state = [part.data.cast("B") for part in self._state]
        self.next_state = [part.data.cast("B") for part in self._next_state]
        self.outputs = [part.data.cast("B") for part in self._outputs]

    def set_inputs(self, values: bytes) -> bool:
        """Copies the packed values of a timestep. Returns False when one of them is NaN or infinite."""
        self._values[:] = values
        return math.isfinite(sum(self._unpack(values)))  # a sum of doubles cannot overflow here

    def run(self) -> bool:
        """Runs the graph. Returns False when the new state is not finite, or may not be."""
        self._run()
        return math.isfinite(sum([np.vdot(part, part) for part in self._checked]))

    def step(self, x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        """Does what `Model.step` does, for one row: returns copies of the outputs and the next state."""
        for target, source in zip(self._now, self._layout.unpack(x), strict=True):
            target[:] = source
        for target, source in zip(self._state, state, strict=True):
            target[:] = source
        self._run()
        return tuple(part.copy() for part in self._outputs), tuple(part.copy() for part in self._next_state)

    def _run_moved(self) -> None:
        """Runs a graph in which the earlier timesteps of a window are not contiguous."""
        for inside, own in self._moved_in:
            inside[:] = own
        self._run_graph()
        for inside, own in self._moved_out:
            own[:] = inside


class MixedRowBinding(RowBinding):
    """The same for models whose rows are not plain float32, or whose state has float16."""

    def set_inputs(self, values: bytes) -> bool:
        """Copies the packed values of a timestep. Returns False when one of them is NaN or infinite."""
        x = np.frombuffer(values, self._layout.row_dtype)[np.newaxis]
        for target, source in zip(self._now, self._layout.unpack(x), strict=True):
            target[:] = source
        return self._layout.finite(x)

    def run(self) -> bool:
        """Runs the graph. Returns False when the new state is not finite, or may not be."""
        return super().run() and all(bool(np.isfinite(part).all()) for part in self._checked_one_by_one)


def row_binding(session: Any, spec: Spec, run_options: Any = None) -> RowBinding:
    """The memory of one row of a model. `run_options` are onnxruntime's."""
    mixed = not InputLayout(spec.inputs).plain or any(part.dtype == np.float16 for part in spec.state)
    return (MixedRowBinding if mixed else RowBinding)(session, spec, run_options)


class BatchBinding:
    """The memory of a batch of `size` rows, and the graph that runs on it.

    `state` is one array (size, *shape) for each state tensor, and then for each input of a stream; `next_state` one for
    each state tensor; `outputs` one for each output. Their content is valid until the next run.
    """

    def __init__(self, session: Any, spec: Spec, size: int, run_options: Any = None) -> None:
        self._memory = memory = _Memory(session, spec, size, run_options)
        self.size = size
        self.state, self.next_state, self.outputs = memory.state, memory.next_state, memory.outputs
        self._run = memory.run
        self._now = memory.now
        self._unpack = InputLayout(spec.inputs).unpack
        # Rows of one dimension need no other shape, and most models have them.
        self._x = memory.now[0] if len(memory.now) == 1 and memory.now[0].ndim == 2 else None
        if self._x is not None and self._x.dtype != np.float32:
            self._x = None

    def run(self, x: Array) -> None:
        """Runs the graph on the rows x and on `state`. Writes `next_state` and `outputs`."""
        if self._x is not None:
            self._x[:] = x
        else:
            for target, source in zip(self._now, self._unpack(x), strict=True):
                target[:] = source
        self._run()


def _contiguous(view: Array, moved: list[tuple[Array, Array]]) -> Array:
    """The view itself where it is contiguous; else memory of the same shape, noted in `moved` beside the view."""
    if view.flags.c_contiguous:
        return view
    own = np.zeros(view.shape, view.dtype)
    moved.append((view, own))
    return own
