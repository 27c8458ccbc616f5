"""One model: an ONNX graph of one timestep, and its description.

A graph that breaks the contract (`docs/model.md`) is refused here, before the first stream. The server does not know
what the state means: it goes in under one name and comes out under another.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.core.description import read_description
from tidegate.core.device import DeviceMissing, check_used, providers_of
from tidegate.core.errors import ContractBroken, ModelFailed, RunEnded
from tidegate.core.external_data import external_files
from tidegate.core.feeds import Feeds
from tidegate.core.io_binding import BatchBinding, row_binding
from tidegate.core.signature import graph_shapes, read_spec
from tidegate.core.spec import Array, Arrays

# Serving sends no telemetry. The variable works while onnxruntime is loaded, the call below from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

onnxruntime.disable_telemetry_events()
# Operators cannot act on the optimizer's warnings, and errors come as exceptions: only fatal messages are printed.
onnxruntime.set_default_logger_severity(4)

# How many batch sizes have bound memory: enough for the blocks of a few clients, and for the chunks of long blocks.
BOUND_SIZES_MAX = 8


class Model:
    """A graph that is ready to run, and its `spec`.

    Args:
        name, version: what it is served as.
        graph: the path of the ONNX file, or its bytes. Weights beside the graph need the path.
        sidecar: the text of `model.toml`, for graphs that carry no description.
        device: "cpu" or "cuda"; see `core.device`.
        digest: the SHA-256 of the graph and of the weights beside it; None for that of the bytes.

    Raises:
        ContractBroken: the graph cannot be loaded, or does not match its description. The message has the tensor's name
            and both shapes.

    """

    def __init__(
        self,
        name: str,
        version: str,
        graph: bytes | str,
        sidecar: str | None = None,
        digest: str | None = None,
        device: str = "cpu",
    ) -> None:
        where = f"{name}/{version}"
        if isinstance(graph, bytes):
            digest = digest or hashlib.sha256(graph).hexdigest()
        assert digest is not None
        self._session = _load(where, graph, device)
        metadata = self._session.get_modelmeta().custom_metadata_map
        described = read_description(where, metadata, sidecar, graph_shapes(self._session))
        self.spec = read_spec(name, version, digest, self._session, described)
        # The batch sizes that may run; empty for all.
        self._sizes: tuple[int, ...] = () if self.spec.batches else (1,)
        # The same object for every run: without one, onnxruntime creates one for each.
        self._run_options = onnxruntime.RunOptions()
        self.row_binding = row_binding(self._session, self.spec, self._run_options)
        self._batch_bindings: dict[int, BatchBinding] = {}  # by batch size, the oldest first
        self._last_size = 0
        self._feeds = Feeds(self.spec)

    def __repr__(self) -> str:
        return f"<Model {self.spec.title} {self.spec.fingerprint[:12]}>"

    def limit_batches(self, sizes: Sequence[int], batch_max: int) -> None:
        """Lets the model run batches of these sizes only, which contain 1; larger ones run in parts of them.

        `batch_max` is the largest that will come.
        """
        self._sizes = () if self.spec.batches and len(sizes) == batch_max else tuple(sorted(sizes))

    def state_buffers(self, batch: int) -> Arrays | None:
        """Bound memory for the state of a batch, one array (batch, *shape) for each state tensor.

        `step` runs on it without a copy.

        Returns None when there is none. It is created for the second of two consecutive batches of one size: for a
        single batch, creating it costs more than it saves.
        """
        rows = self._batch_bindings.get(batch)
        if rows is None:
            last, self._last_size = self._last_size, batch
            if last != batch or batch == 1 or not self._may_run(batch):
                return None
            if len(self._batch_bindings) == BOUND_SIZES_MAX:
                del self._batch_bindings[next(iter(self._batch_bindings))]
            rows = self._batch_bindings[batch] = BatchBinding(self._session, self.spec, batch, self._run_options)
        return rows.state

    def end_run(self) -> None:
        """Makes the run that is under way in another thread fail at its next operator."""
        self._run_options.terminate = True

    def resume(self) -> bool:
        """Lets runs go on after `end_run`. Returns whether it was called."""
        ended: bool = self._run_options.terminate
        self._run_options.terminate = False
        return ended

    def step(self, x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        """Computes one timestep of a batch.

        Args:
            x: the rows of the batch, as `core.input_layout` says: (batch, features) of float32 for an ordinary model. NaN
                where a value is missing, no infinity.
            state: one array (batch, *shape) for each state tensor and then for each input of a stream, or the result of
                `state_buffers`.

        Returns:
            The outputs and the next state, one array (batch, *shape) each. The caller owns them. With `state_buffers`,
            the next state is valid until the next step only.

        Raises:
            ModelFailed: the graph could not be run.
            RunEnded: `end_run` was called meanwhile.

        """
        try:
            rows = self._batch_bindings.get(len(x))
            if rows is not None and rows.state is state:
                rows.run(x)
                return tuple([part.copy() for part in rows.outputs]), rows.next_state
            if len(x) == 1:
                return self.row_binding.step(x, state)
            return self._step(x, state) if self._may_run(len(x)) else self._step_in_parts(x, state)
        except Exception as error:  # onnxruntime has no public base class for its errors
            if self.resume():
                raise RunEnded(f"model {self.spec.title}: its run took too long and was ended") from error
            raise ModelFailed(f"model {self.spec.title} failed: {_first_line(error)}") from error

    def step_apart(self, x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        """Does what `step` does without the bound memory, so that another thread may run it beside `step`."""
        try:
            if self._may_run(len(x)):
                return self._step(x, state)
            rows = [
                self._step(x[row : row + 1], tuple([part[row : row + 1] for part in state])) for row in range(len(x))
            ]
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ModelFailed(f"model {self.spec.title} failed: {_first_line(error)}") from error
        outputs, next_state = zip(*rows, strict=True)
        return _join(outputs), _join(next_state)

    def _step(self, x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        results = self._session.run(self._feeds.fetch, self._feeds.feed(x, state), self._run_options)
        return self._feeds.read(results, x, state)

    def _may_run(self, batch: int) -> bool:
        """Whether a batch of that size runs as a whole."""
        return not self._sizes or batch in self._sizes

    def _step_in_parts(self, x: Array, state: Arrays) -> tuple[Arrays, Arrays]:
        """Runs a batch in parts of the sizes that may run, the largest first."""
        results, start = [], 0
        while start < len(x):
            size = self._sizes[bisect_right(self._sizes, len(x) - start) - 1]
            part = slice(start, start + size)
            rows = x[part], tuple([array[part] for array in state])
            results.append(self.row_binding.step(*rows) if size == 1 else self._step(*rows))
            start += size
        outputs, next_state = zip(*results, strict=True)
        return _join(outputs), _join(next_state)

    def initial_state(self, batch: int) -> Arrays:
        """The state of `batch` new streams, as `step` takes it; the inputs of a stream are zero."""
        state = tuple([np.repeat(tensor.initial[np.newaxis], batch, axis=0) for tensor in self.spec.state])
        return (*state, *(np.zeros((batch, *part.shape), part.dtype) for part in self.spec.stream_inputs))

    def step_bound(self, x: Array, state: Arrays) -> Arrays:
        """Does what `step` does, in bound memory: returns the outputs and the next state."""
        rows = BatchBinding(self._session, self.spec, len(x))
        for target, source in zip(rows.state, state, strict=True):
            target[:] = source
        rows.run(x)
        return (*rows.outputs, *rows.next_state)


def _load(where: str, graph: bytes | str, device: str) -> Any:
    """An onnxruntime session of a graph, from its path or its bytes."""
    options = onnxruntime.SessionOptions()
    # One thread: for a graph this small a thread pool costs more than it gains, and the number of threads may change
    # bits.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Batch sizes vary. The arena and the memory patterns would keep memory for every size ever seen.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    try:
        # From bytes, onnxruntime would look for weights in the working directory.
        beside = external_files(graph) if isinstance(graph, bytes) else []
    except ValueError as error:
        raise ContractBroken(where, f"onnxruntime cannot load the graph: it is no ONNX file: {error}") from error
    if beside:
        raise ContractBroken(where, "the graph has weights in other files, so it must be loaded from its path")
    try:
        providers = providers_of(device, onnxruntime.get_available_providers())
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
        check_used(device, session.get_providers())
    except DeviceMissing as error:
        raise ContractBroken(where, str(error)) from error
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise ContractBroken(where, f"onnxruntime cannot load the graph: {_first_line(error)}") from error
    return session


def _join(rows: Sequence[Arrays]) -> Arrays:
    """Many results of one row as one result of many rows."""
    return tuple([np.concatenate(parts) for parts in zip(*rows, strict=True)])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
