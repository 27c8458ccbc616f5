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

from tidegate.core.spec import Arrays, Floats, Spec


class RowBinding:
    """The memory of one row, and the graph that runs on it.

    `state`, `next_state` and `outputs` are that memory as bytes, one for each tensor. `run` reads `state` and the
    values of `set_inputs`; it writes `next_state` and `outputs`. `run_options` are onnxruntime's.
    """

    def __init__(self, session: Any, spec: Spec, run_options: Any = None) -> None:
        self._x = np.zeros((1, len(spec.features)), np.float32)
        self._state = tuple(np.zeros((1, *tensor.shape), tensor.dtype) for tensor in spec.state)
        self._next_state = tuple(np.zeros_like(part) for part in self._state)
        self._outputs = tuple(np.zeros((1, *output.shape), output.dtype) for output in spec.outputs)
        self._values = self._x.data.cast("B")
        self._unpack = Struct(f"<{len(spec.features)}f").unpack
        self._checked = [part for part in self._next_state if np.issubdtype(part.dtype, np.floating)]
        self.state = [part.data.cast("B") for part in self._state]
        self.next_state = [part.data.cast("B") for part in self._next_state]
        self.outputs = [part.data.cast("B") for part in self._outputs]
        binding = session.io_binding()
        # The public `run_with_iobinding` also prepares for WebGPU, which takes half as long as a small graph.
        self._run = partial(session._sess.run_with_iobinding, binding._iobinding, run_options)  # noqa: SLF001
        binding.bind_input(spec.x.name, "cpu", 0, np.float32, self._x.shape, self._x.ctypes.data)
        for tensor, part, next_part in zip(spec.state, self._state, self._next_state, strict=True):
            shape = tensor.graph_shape(1)
            binding.bind_input(tensor.name, "cpu", 0, tensor.dtype, shape, part.ctypes.data)
            binding.bind_output(tensor.next_name, "cpu", 0, tensor.dtype, shape, next_part.ctypes.data)
        for output, part in zip(spec.outputs, self._outputs, strict=True):
            binding.bind_output(output.name, "cpu", 0, output.dtype, part.shape, part.ctypes.data)

    def set_inputs(self, values: bytes) -> bool:
        """Copies the packed values of a timestep. Returns False when one of them is NaN or infinite."""
        self._values[:] = values
        return math.isfinite(sum(self._unpack(values)))  # a sum of doubles cannot overflow here

    def run(self) -> bool:
        """Runs the graph. Returns False when the new state is not finite, or may not be."""
        self._run()
        return math.isfinite(sum([np.vdot(part, part) for part in self._checked]))

    def step(self, x: Floats, state: Arrays) -> tuple[Arrays, Arrays]:
        """Does what `Model.step` does, for one row: returns copies of the outputs and the next state."""
        self._x[:] = x
        for target, source in zip(self._state, state, strict=True):
            target[:] = source
        self._run()
        return tuple(part.copy() for part in self._outputs), tuple(part.copy() for part in self._next_state)


class BatchBinding:
    """The memory of a batch of `size` rows, and the graph that runs on it.

    `state` and `next_state` are one array (size, *shape) for each state tensor, `outputs` one for each output. Their
    content is valid until the next run.
    """

    def __init__(self, session: Any, spec: Spec, size: int, run_options: Any = None) -> None:
        self.size = size
        self._x = np.zeros((size, len(spec.features)), np.float32)
        self.outputs: Arrays = tuple(np.zeros((size, *output.shape), output.dtype) for output in spec.outputs)
        binding = session.io_binding()
        self._run = partial(session._sess.run_with_iobinding, binding._iobinding, run_options)  # noqa: SLF001 - as above
        binding.bind_input(spec.x.name, "cpu", 0, np.float32, self._x.shape, self._x.ctypes.data)
        state, next_state = [], []
        for tensor in spec.state:
            shape, axis = tensor.graph_shape(size), tensor.batch_axis or 0
            part, next_part = np.zeros(shape, tensor.dtype), np.zeros(shape, tensor.dtype)
            binding.bind_input(tensor.name, "cpu", 0, tensor.dtype, shape, part.ctypes.data)
            binding.bind_output(tensor.next_name, "cpu", 0, tensor.dtype, shape, next_part.ctypes.data)
            state.append(np.moveaxis(part, axis, 0))
            next_state.append(np.moveaxis(next_part, axis, 0))
        for output, part in zip(spec.outputs, self.outputs, strict=True):
            binding.bind_output(output.name, "cpu", 0, output.dtype, part.shape, part.ctypes.data)
        self.state: Arrays = tuple(state)
        self.next_state: Arrays = tuple(next_state)

    def run(self, x: Floats) -> None:
        """Runs the graph on the values x (size, features) and on `state`. Writes `next_state` and `outputs`."""
        self._x[:] = x
        self._run()
