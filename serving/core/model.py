"""One model: an ONNX graph of one timestep, and its description.

A graph that breaks the contract (`docs/model.md`) is refused here, before the first stream. The server does not know
what the state means: it goes in under one name and comes out under another.
"""

import hashlib
import os

import numpy as np

from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.io_binding import BatchBinding, RowBinding
from tidegate.core.signature import read_spec
from tidegate.core.spec import Arrays, Floats

# Serving sends no telemetry. The variable works while onnxruntime is loaded, the call below from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

onnxruntime.disable_telemetry_events()
# Operators cannot act on the optimizer's warnings, and errors come as exceptions: only fatal messages are printed.
onnxruntime.set_default_logger_severity(4)

# How many batch sizes have bound memory: enough for the blocks of a few clients, and for the chunks of long blocks.
BOUND_SIZES_MAX = 4


class Model:
    """A graph that is ready to run, and its `spec`.

    Args:
        name, version: what it is served as.
        graph: the bytes of the ONNX file.
        sidecar: the text of `model.toml`, for graphs that carry no description.

    Raises:
        ContractBroken: the graph cannot be loaded, or does not match its description. The message has the tensor's name
            and both shapes.

    """

    def __init__(self, name: str, version: str, graph: bytes, sidecar: str | None = None) -> None:
        where = f"{name}/{version}"
        options = onnxruntime.SessionOptions()
        # One thread: for a graph this small a thread pool costs more than it gains, and the number of threads may
        # change bits.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Batch sizes vary. The arena and the memory patterns would keep memory for every size ever seen.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ContractBroken(where, f"onnxruntime cannot load the graph: {_first_line(error)}") from error
        self.spec = read_spec(name, version, hashlib.sha256(graph).hexdigest(), self._session, sidecar)
        self.row_binding = RowBinding(self._session, self.spec)
        self._batch_bindings: dict[int, BatchBinding] = {}  # by batch size, the oldest first
        self._last_size = 0
        self._fetch = [
            *(output.name for output in self.spec.outputs),
            *(tensor.next_name for tensor in self.spec.state),
        ]
        # The axes that transpose a batch-first array to the graph's layout, and back.
        self._axes = [
            (
                tensor.name,
                (*range(1, tensor.batch_axis + 1), 0, *range(tensor.batch_axis + 1, len(tensor.shape) + 1)),
                (tensor.batch_axis, *(axis for axis in range(len(tensor.shape) + 1) if axis != tensor.batch_axis)),
            )
            for tensor in self.spec.state
        ]

    def __repr__(self) -> str:
        return f"<Model {self.spec.title} {self.spec.fingerprint[:12]}>"

    def state_buffers(self, batch: int) -> Arrays | None:
        """Bound memory for the state of a batch, one array (batch, *shape) for each state tensor.

        `step` runs on it without a copy.

        Returns None when there is none. It is created for the second of two consecutive batches of one size: for a
        single batch, creating it costs more than it saves.
        """
        rows = self._batch_bindings.get(batch)
        if rows is None:
            last, self._last_size = self._last_size, batch
            if last != batch or batch == 1:
                return None
            if len(self._batch_bindings) == BOUND_SIZES_MAX:
                del self._batch_bindings[next(iter(self._batch_bindings))]
            rows = self._batch_bindings[batch] = BatchBinding(self._session, self.spec, batch)
        return rows.state

    def step(self, x: Floats, state: Arrays) -> tuple[Arrays, Arrays]:
        """Computes one timestep of a batch.

        Args:
            x: (batch, features), NaN where missing, no infinity.
            state: one array (batch, *shape) for each state tensor, or the result of `state_buffers`.

        Returns:
            The outputs and the next state, one array (batch, *shape) each. The caller owns them. With `state_buffers`,
            the next state is valid until the next step only.

        Raises:
            ModelFailed: the graph could not be run.

        """
        try:
            rows = self._batch_bindings.get(len(x))
            if rows is not None and rows.state is state:
                rows.run(x)
                return tuple([part.copy() for part in rows.outputs]), rows.next_state
            return self.row_binding.step(x, state) if len(x) == 1 else self._step(x, state)
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ModelFailed(f"model {self.spec.title} failed: {_first_line(error)}") from error

    def step_apart(self, x: Floats, state: Arrays) -> tuple[Arrays, Arrays]:
        """Does what `step` does without the bound memory, so that another thread may run it beside `step`."""
        try:
            return self._step(x, state)
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ModelFailed(f"model {self.spec.title} failed: {_first_line(error)}") from error

    def _step(self, x: Floats, state: Arrays) -> tuple[Arrays, Arrays]:
        feed = {self.spec.input: x}
        for (name, inwards, _), rows in zip(self._axes, state, strict=True):
            feed[name] = rows.transpose(inwards)
        results = self._session.run(self._fetch, feed)
        count = len(self.spec.outputs)
        next_state = tuple(
            result.transpose(outwards) for result, (_, _, outwards) in zip(results[count:], self._axes, strict=True)
        )
        return tuple(results[:count]), next_state

    def initial_state(self, batch: int) -> Arrays:
        """The state of `batch` new streams, one array (batch, *shape) for each state tensor."""
        return tuple(np.repeat(tensor.initial[np.newaxis], batch, axis=0) for tensor in self.spec.state)

    def step_bound(self, x: Floats, state: Arrays) -> Arrays:
        """Does what `step` does, in bound memory: returns the outputs and the next state."""
        rows = BatchBinding(self._session, self.spec, len(x))
        for target, source in zip(rows.state, state, strict=True):
            target[:] = source
        rows.run(x)
        return (*rows.outputs, *rows.next_state)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
