"""One model: an ONNX graph of one timestep, and its description.

A graph that breaks the contract (`docs/model.md`) is refused here, before the first stream. The server does not know
what the state means: it goes in under one name and comes out under another.
"""

import hashlib
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.io_binding import BatchBinding, RowBinding
from tidegate.core.spec import Arrays, Feature, Floats, Ints, Output, Spec, StateTensor

# Serving sends no telemetry. The variable works while onnxruntime is loaded, the call below from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

onnxruntime.disable_telemetry_events()
# Operators cannot act on the optimizer's warnings, and errors come as exceptions: only fatal messages are printed.
onnxruntime.set_default_logger_severity(4)

CONTRACT = 1
METADATA_KEY = "tidegate"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}

# How many batch sizes have bound memory: enough for the blocks of a few clients, and for the chunks of long blocks.
BOUND_SIZES_MAX = 4
# A sum in another order changes the last bit of about one value in ten. Among so many values at least one differs.
VALUES_COMPARED = 1000

Dimension = Literal["batch"] | Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    # Later contracts may add keys. This one ignores them.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Feature(_Part):
    name: str
    unit: str = ""
    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None


class _Output(_Part):
    name: str
    shape: tuple[Dimension, ...]
    targets: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    horizons: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()


class _State(_Part):
    name: str
    next: str
    shape: tuple[Dimension, ...]
    initial: float | tuple[float, ...] = 0.0


class _Description(_Part):
    """The description: JSON in the graph's metadata, or the same in TOML."""

    contract: int
    task: str = ""
    period_s: float | None = None
    input: str = "x"
    handles_missing: bool = False
    features: Annotated[tuple[_Feature, ...], Field(min_length=1)]
    outputs: Annotated[tuple[_Output, ...], Field(min_length=1)]
    state: tuple[_State, ...] = ()


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
        self.spec = _read_spec(where, name, version, hashlib.sha256(graph).hexdigest(), self._session, sidecar)
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

    def batch_variant_sizes(self, batch_max: int, steps: int = 3) -> Ints:
        """Compares rows run alone with rows in batches of every size up to `batch_max`.

        Returns the sizes that change bits.

        onnxruntime does not promise that a row gives the same bits in any batch. On most CPUs it does, and then the
        result is empty. Every size runs at least once, so this also warms the session up. It runs again, up to `steps`
        times and with an advanced state, until `VALUES_COMPARED` values were compared.

        Raises ContractBroken when the graph cannot be run, or produces other shapes than it declares.
        """
        try:
            return self._batch_variant_sizes(batch_max, steps)
        except ModelFailed as error:
            raise ContractBroken(self.spec.title, f"the graph cannot be run: {error}") from error

    def _batch_variant_sizes(self, batch_max: int, steps: int) -> Ints:
        rng = np.random.default_rng(0)  # a fixed seed makes reports comparable; any rows will do
        low = np.array([-1.0 if feature.low is None else feature.low for feature in self.spec.features])
        high = np.array([1.0 if feature.high is None else feature.high for feature in self.spec.features])
        x = rng.uniform(low, high, (steps, batch_max, len(low))).astype(np.float32)
        if self.spec.handles_missing:
            x[rng.random(x.shape) < 0.1] = np.nan
        state = self.initial_state(batch_max)
        row_values = sum(math.prod(output.shape) for output in self.spec.outputs)
        row_values += sum(tensor.initial.size for tensor in self.spec.state)
        varying: set[int] = set()
        for steps_left, now in zip(range(steps, 0, -1), x, strict=True):
            alone = [
                self.step(now[row : row + 1], tuple(rows[row : row + 1] for rows in state)) for row in range(batch_max)
            ]
            expected = [np.concatenate(parts) for parts in zip(*((*y, *s) for y, s in alone), strict=True)]
            for size in range(2, batch_max + 1):
                if steps_left > 1 and (steps_left - 1) * size * row_values >= VALUES_COMPARED:
                    continue  # the remaining timesteps are enough
                part = tuple(rows[:size] for rows in state)
                outputs, next_state = self.step(now[:size], part)
                self._check_shapes((*outputs, *next_state), size)
                results = [(*outputs, *next_state)]
                if size in (2, batch_max):  # bound memory behaves the same for every size
                    results.append(self._step_bound(now[:size], part))
                for got in results:
                    if any(
                        target.tobytes() != expected_part[:size].tobytes()
                        for target, expected_part in zip(got, expected, strict=True)
                    ):
                        varying.add(size)
            state = tuple(expected[len(self.spec.outputs) :])
        return np.array(sorted(varying), np.int64)

    def _step_bound(self, x: Floats, state: Arrays) -> Arrays:
        """Does what `step` does, in bound memory: returns the outputs and the next state."""
        rows = BatchBinding(self._session, self.spec, len(x))
        for target, source in zip(rows.state, state, strict=True):
            target[:] = source
        rows.run(x)
        return (*rows.outputs, *rows.next_state)

    def _check_shapes(self, got: Arrays, batch: int) -> None:
        """Checks the shapes of results.

        A graph may declare one shape and produce another; one row for the whole batch would mix streams.
        """
        shapes = [(output.name, output.shape) for output in self.spec.outputs]
        shapes += [(tensor.next_name, tensor.shape) for tensor in self.spec.state]
        for (name, row), part in zip(shapes, got, strict=True):
            if part.shape != (batch, *row):
                raise ContractBroken(
                    self.spec.title,
                    f"output '{name}' came out with shape {_shape(part.shape)}, expected {_shape((batch, *row))}",
                )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _Tensors:
    """The inputs or the outputs of a graph. Each is taken once, as the description names it."""

    def __init__(self, where: str, kind: str, tensors: Sequence[Any]) -> None:
        self._where = where
        self._kind = kind
        self._left = {tensor.name: tensor for tensor in tensors}

    def take(self, name: str, shape: tuple[Dimension, ...]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """Checks a tensor against its description. Returns its dtype, its shape for one stream, and its batch axis."""
        if name not in self._left:
            raise self._broken(f"'{name}' is not in the graph, expected one of {', '.join(self._left) or 'none'}")
        tensor = self._left.pop(name)
        # A symbolic dimension has any name, or none; the contract calls it "batch".
        got = tuple("batch" if not isinstance(size, int) else size for size in tensor.shape)
        if got != shape:
            raise self._broken(f"'{name}' has shape {_shape(got)}, expected {_shape(shape)}")
        if shape.count("batch") != 1:
            raise self._broken(f"'{name}' has shape {_shape(shape)}, expected exactly one dimension to be the batch")
        if tensor.type not in DTYPES:
            raise self._broken(f"'{name}' is {tensor.type}, expected one of {', '.join(DTYPES)}")
        return DTYPES[tensor.type], tuple(size for size in shape if size != "batch"), shape.index("batch")

    def done(self) -> None:
        """Checks that the description names every tensor."""
        if self._left:
            raise self._broken(f"{', '.join(self._left)} is in the graph, but its description does not mention it")

    def _broken(self, message: str) -> ContractBroken:
        return ContractBroken(self._where, f"{self._kind} {message}")


def _read_spec(where: str, name: str, version: str, fingerprint: str, session: Any, sidecar: str | None) -> Spec:
    """Reads the description and checks the graph against it."""
    described = _read_description(where, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), sidecar)
    inputs = _Tensors(where, "input", session.get_inputs())
    outputs = _Tensors(where, "output", session.get_outputs())
    x_type, _, _ = inputs.take(described.input, ("batch", len(described.features)))
    if x_type != np.float32:
        raise ContractBroken(where, f"input '{described.input}' is {x_type}, expected float32")
    state = tuple(_read_state(where, part, inputs, outputs) for part in described.state)
    predictions = []
    for part in described.outputs:
        dtype, row, batch_axis = outputs.take(part.name, part.shape)
        if batch_axis != 0:
            raise ContractBroken(
                where, f"output '{part.name}' has shape {_shape(part.shape)}, expected the batch first"
            )
        predictions.append(Output(part.name, dtype, row, part.targets, part.units, part.horizons, part.quantiles))
    inputs.done()
    outputs.done()
    return Spec(
        name=name,
        version=version,
        fingerprint=fingerprint,
        task=described.task,
        period_s=described.period_s,
        input=described.input,
        handles_missing=described.handles_missing,
        features=tuple(Feature(part.name, part.unit, part.low, part.high) for part in described.features),
        outputs=tuple(predictions),
        state=state,
    )


def _read_state(where: str, part: _State, inputs: _Tensors, outputs: _Tensors) -> StateTensor:
    dtype, row, batch_axis = inputs.take(part.name, part.shape)
    next_dtype, _, _ = outputs.take(part.next, part.shape)
    if next_dtype != dtype:
        raise ContractBroken(where, f"output '{part.next}' is {next_dtype}, expected {dtype} like state '{part.name}'")
    if not isinstance(part.initial, tuple):
        initial = np.full(row, part.initial, dtype)
    elif len(part.initial) == np.prod(row):
        initial = np.array(part.initial, dtype).reshape(row)
    else:
        raise ContractBroken(
            where,
            f"state '{part.name}' has {len(part.initial)} initial values, expected {np.prod(row)} for {_shape(row)}",
        )
    return StateTensor(part.name, part.next, dtype, row, batch_axis, initial)


def _read_description(where: str, metadata: str | None, sidecar: str | None) -> _Description:
    try:
        if metadata is not None:
            described = _Description.model_validate_json(metadata)
        elif sidecar is not None:
            described = _Description.model_validate(tomllib.loads(sidecar))
        else:
            raise ContractBroken(
                where,
                f"the graph has no metadata '{METADATA_KEY}' and there is no model.toml beside it that describes it",
            )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "description"
        raise ContractBroken(where, f"description, {field}: {first['msg']}, got {first['input']!r}") from error
    except tomllib.TOMLDecodeError as error:
        raise ContractBroken(where, f"model.toml is not TOML: {error}") from error
    if described.contract != CONTRACT:
        raise ContractBroken(where, f"description, contract: got {described.contract}, this server reads {CONTRACT}")
    return described


def _shape(shape: Sequence[object]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
