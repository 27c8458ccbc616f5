"""One model: an ONNX graph of one timestep, and the description it carries.

A graph that breaks the contract (`docs/model.md`) is refused here, before the first stream. What the state means is
never asked: it goes in under one name and comes out under another.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.core.errors import ContractBroken, ModelFailed
from serving.core.spec import Arrays, Feature, Floats, Ints, Output, Spec, StateTensor

# Before the first session: serving sends nothing anywhere.
onnxruntime.disable_telemetry_events()
# Warnings of the optimiser are of no use to an operator; errors come as exceptions.
onnxruntime.set_default_logger_severity(3)

CONTRACT = 1
METADATA_KEY = "tidegate"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}

Dimension = Literal["batch"] | Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    # Later contracts may add keys; this one reads what it knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Feature(_Part):
    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


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
    """The JSON of the contract, or the same in TOML."""

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
        sidecar: the text of a `model.toml`, for graphs that carry no description.

    Raises:
        ContractBroken: with the tensor's name and both shapes, when the graph cannot be loaded or is not what it says.

    """

    def __init__(self, name: str, version: str, graph: bytes, sidecar: str | None = None) -> None:
        where = f"{name}/{version}"
        options = onnxruntime.SessionOptions()
        # One thread: for a graph this small a pool costs more than it gives, and the thread count may change bits.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Batches vary in size; the arena and the patterns would keep memory for each size that was ever seen.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ContractBroken(where, f"onnxruntime cannot load the graph: {_first_line(error)}") from error
        self.spec = _read_spec(where, name, version, hashlib.sha256(graph).hexdigest(), self._session, sidecar)
        self._fetch = [
            *(output.name for output in self.spec.outputs),
            *(tensor.next_name for tensor in self.spec.state),
        ]
        # Axes that bring a batch-first array into the graph's order, and back.
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

    def step(self, x: Floats, state: Arrays) -> tuple[Arrays, Arrays]:
        """Computes one timestep of a batch.

        Args:
            x: (batch, features), NaN where missing, no infinity.
            state: one array (batch, *shape) a state tensor.

        Returns:
            The outputs and the next state, one array (batch, *shape) each.

        Raises:
            ModelFailed: the graph could not be run.

        """
        feed = {self.spec.input: x}
        for (name, inwards, _), rows in zip(self._axes, state, strict=True):
            feed[name] = rows.transpose(inwards)
        try:
            results = self._session.run(self._fetch, feed)
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ModelFailed(f"model {self.spec.title} failed: {_first_line(error)}") from error
        count = len(self.spec.outputs)
        next_state = tuple(
            result.transpose(outwards) for result, (_, _, outwards) in zip(results[count:], self._axes, strict=True)
        )
        return tuple(results[:count]), next_state

    def initial_state(self, batch: int) -> Arrays:
        """The state of `batch` fresh streams, one array (batch, *shape) a state tensor."""
        return tuple(np.repeat(tensor.initial[np.newaxis], batch, axis=0) for tensor in self.spec.state)

    def varying_batches(self, batch_max: int, steps: int = 3) -> Ints:
        """Compares rows alone and in batches of every size up to `batch_max`; returns the sizes that change bits.

        onnxruntime does not promise that a row's result is the same bits in any batch; on most CPUs it is, and an empty
        answer says that it is here. Every size runs once, so this warms the session up too.
        """
        rng = np.random.default_rng(0)  # any rows will do; the same ones each time make reports comparable
        low = np.array([-1.0 if feature.low is None else feature.low for feature in self.spec.features])
        high = np.array([1.0 if feature.high is None else feature.high for feature in self.spec.features])
        x = rng.uniform(low, high, (steps, batch_max, len(low))).astype(np.float32)
        if self.spec.handles_missing:
            x[rng.random(x.shape) < 0.1] = np.nan
        state = self.initial_state(batch_max)
        varying: set[int] = set()
        for now in x:
            alone = [self.step(now[row : row + 1], tuple(rows[row : row + 1] for rows in state)) for row in range(batch_max)]
            expected = [np.concatenate(parts) for parts in zip(*((*y, *s) for y, s in alone), strict=True)]
            for size in range(2, batch_max + 1):
                outputs, next_state = self.step(now[:size], tuple(rows[:size] for rows in state))
                got = (*outputs, *next_state)
                if any(mine.tobytes() != whole[:size].tobytes() for mine, whole in zip(got, expected, strict=True)):
                    varying.add(size)
            state = tuple(expected[len(self.spec.outputs) :])
        return np.array(sorted(varying), np.int64)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read_spec(
    where: str, name: str, version: str, fingerprint: str, session: Any, sidecar: str | None
) -> Spec:
    """Reads the description and checks that the graph is what it says."""
    described = _read_description(where, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), sidecar)
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}

    def take(tensors: dict[str, Any], kind: str, wanted: str, shape: tuple[Dimension, ...]) -> np.dtype[Any]:
        """Checks one tensor against its description and removes it from those left over; gives its type."""
        if wanted not in tensors:
            raise ContractBroken(where, f"{kind} '{wanted}' is not in the graph; it has {', '.join(tensors) or 'none'}")
        tensor = tensors.pop(wanted)
        # A symbolic dimension has a name, or none at all; contracts call it "batch".
        got = tuple("batch" if not isinstance(size, int) else size for size in tensor.shape)
        if got != shape:
            raise ContractBroken(where, f"{kind} '{wanted}' has shape {_shape(got)}, expected {_shape(shape)}")
        if shape.count("batch") != 1:
            raise ContractBroken(
                where, f"{kind} '{wanted}' has shape {_shape(shape)}, expected exactly one dimension to be the batch"
            )
        if tensor.type not in DTYPES:
            raise ContractBroken(where, f"{kind} '{wanted}' is {tensor.type}, expected one of {', '.join(DTYPES)}")
        return DTYPES[tensor.type]

    x_type = take(inputs, "input", described.input, ("batch", len(described.features)))
    if x_type != np.float32:
        raise ContractBroken(where, f"input '{described.input}' is {x_type}, expected float32")
    state = []
    for part in described.state:
        dtype = take(inputs, "state", part.name, part.shape)
        next_dtype = take(outputs, "next state", part.next, part.shape)
        if next_dtype != dtype:
            raise ContractBroken(where, f"next state '{part.next}' is {next_dtype}, but state '{part.name}' is {dtype}")
        row = tuple(size for size in part.shape if size != "batch")
        state.append(
            StateTensor(part.name, part.next, dtype, row, part.shape.index("batch"), _initial(where, part, row, dtype))
        )
    predictions = []
    for output in described.outputs:
        dtype = take(outputs, "output", output.name, output.shape)
        if output.shape[0] != "batch":
            raise ContractBroken(where, f"output '{output.name}' has shape {_shape(output.shape)}, expected the batch first")
        row = tuple(size for size in output.shape if size != "batch")
        predictions.append(
            Output(output.name, dtype, row, output.targets, output.units, output.horizons, output.quantiles)
        )
    for kind, left in (("input", inputs), ("output", outputs)):
        if left:
            raise ContractBroken(where, f"the graph has {kind} {', '.join(left)}, which its description does not mention")
    features = tuple(Feature(part.name, part.unit, part.low, part.high) for part in described.features)
    return Spec(
        name,
        version,
        fingerprint,
        described.task,
        described.period_s,
        described.input,
        described.handles_missing,
        features,
        tuple(predictions),
        tuple(state),
    )


def _read_description(where: str, metadata: str | None, sidecar: str | None) -> _Description:
    try:
        if metadata is not None:
            described = _Description.model_validate_json(metadata)
        elif sidecar is not None:
            described = _Description.model_validate(tomllib.loads(sidecar))
        else:
            raise ContractBroken(
                where, f"the graph has no metadata '{METADATA_KEY}' and there is no model.toml beside it that describes it"
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


def _initial(where: str, part: _State, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if not isinstance(part.initial, tuple):
        return np.full(shape, part.initial, dtype)
    if len(part.initial) != np.prod(shape):
        raise ContractBroken(
            where, f"state '{part.name}' has {len(part.initial)} initial values, expected {np.prod(shape)} for {_shape(shape)}"
        )
    return np.array(part.initial, dtype).reshape(shape)


def _shape(shape: tuple[Dimension, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
