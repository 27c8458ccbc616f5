"""The types that all parts share: what a model declares, and what a stream consists of.

Shapes are those of one stream. An array that holds many streams has the batch as its first axis.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

# Step numbers are signed 64-bit integers, and one more must fit.
STEP_MAX = 2**63 - 2

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]


class Key(NamedTuple):
    """Identifies a stream: the tenant that owns it, and its id within the tenant."""

    tenant: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a timestep. The range, mean and standard deviation are those in training, None when unknown."""

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor that clients give to a model. `shape` is that of one stream, and of one timestep.

    `batch_axis` is the position of the batch axis in the graph; None when the graph has none there, and then the whole
    tensor is one row. `kind` tells when it is given: with each timestep, or once, when a stream begins. State and
    constants are no inputs in this sense.

    A graph may take the last `window` timesteps at once; then `window_axis` is the position of that axis in a row of
    the graph, and the earlier timesteps are in a state tensor of the same name.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int | None = 0
    kind: Literal["timestep", "stream"] = "timestep"
    window: int = 1
    window_axis: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the tensor of one stream, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An input of the graph whose value is in the description. `value` and `batch_axis` are as in `Input`."""

    name: str
    value: Array
    batch_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of a prediction. `shape` is that of one stream.

    `batch_axis` is the position of the batch axis in the graph; None when the graph has none there.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    targets: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    horizons: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()
    batch_axis: int | None = 0


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor of a stream's state.

    `shape` is that of one stream. `batch_axis` is the position of the batch axis in the graph; None when the graph has
    none there, and then the whole tensor is one row. `initial` is the value for a new stream, of that shape. `finite`
    tells whether a value that is not finite is a fault. `next_name` is empty where the server moves a window on.
    """

    name: str
    next_name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int | None
    initial: Array
    finite: bool = True

    @property
    def is_checked(self) -> bool:
        """Whether a next value that is not finite is refused."""
        return self.finite and self.dtype.kind == "f"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a model declares.

    `fingerprint` is a SHA-256; a state is valid for one fingerprint only. `inputs` has x first, whose values `features`
    name; see `core.input_layout`. `handles_missing` tells whether a timestep may hold NaN. `batches` tells whether the
    graph can run several rows at once.

    """

    name: str
    version: str
    fingerprint: str
    task: str
    period_s: float | None
    handles_missing: bool
    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    state: tuple[StateTensor, ...]
    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...] = ()
    batches: bool = True

    @property
    def x(self) -> Input:
        """The input whose values `features` name."""
        return self.inputs[0]

    @property
    def stream_inputs(self) -> tuple[Input, ...]:
        """The inputs that a stream gives once."""
        return tuple(part for part in self.inputs if part.kind == "stream")

    @property
    def id(self) -> "ModelId":
        """Name, version and fingerprint."""
        return ModelId(self.name, self.version, self.fingerprint)

    @property
    def title(self) -> str:
        """Name and version in the form NAME/VERSION."""
        return f"{self.name}/{self.version}"


class Timestep(NamedTuple):
    """One timestep that a client sent.

    `step` counts from 1; 0 means that the server assigns the number. `values` is one packed float32 for each feature.
    It stays packed until the whole batch is unpacked at once.
    """

    step: int
    values: bytes


class Prediction(NamedTuple):
    """The answer to one timestep.

    `outputs` has the packed values of each output of the model. It is empty when the timestep was a duplicate whose
    answer is no longer remembered.
    """

    step: int
    outputs: tuple[bytes, ...]
    duplicate: bool = False


class ModelId(NamedTuple):
    """Identifies the weights that made a state. Only `fingerprint` counts; name and version are for people."""

    name: str
    version: str
    fingerprint: str

    @property
    def title(self) -> str:
        """Name and version in the form NAME/VERSION."""
        return f"{self.name}/{self.version}"

    def matches(self, name: str, version: str) -> bool:
        """Whether it has this name and version; an empty one stands for all."""
        return name in ("", self.name) and version in ("", self.version)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The stored form of a stream: the content of its slot, and which stream it is.

    `step` is the last applied timestep. `payload` is the slot's content in the layout of `Slots.pack`. `answers` is the
    number of answers that it has room for.
    """

    key: Key
    epoch: int
    step: int
    model: ModelId
    answers: int
    payload: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoints(Sequence[Checkpoint]):
    """Checkpoints of different streams of one model, in columns.

    Thousands of objects would cost more than the copy itself. It is read as a sequence of `Checkpoint`, and a slice of
    it has slices of the columns. `keys` and `epochs` have one entry for each stream; `steps` (streams,) and `payloads`
    (streams, bytes) are arrays that do not change any more.
    """

    keys: Sequence[Key]
    epochs: Sequence[int]
    steps: Ints
    model: ModelId
    answers: int
    payloads: Bytes

    def __len__(self) -> int:
        """The number of checkpoints."""
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...

    @overload
    def __getitem__(self, index: slice) -> "Checkpoints": ...

    def __getitem__(self, index: int | slice) -> "Checkpoint | Checkpoints":
        """One checkpoint, or a slice."""
        keys, epochs, steps, payloads = self.keys[index], self.epochs[index], self.steps[index], self.payloads[index]
        if isinstance(index, slice):
            return Checkpoints(keys, epochs, steps, self.model, self.answers, payloads)  # type: ignore[arg-type]
        return Checkpoint(keys, epochs, int(steps), self.model, self.answers, payloads.tobytes())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Checkpoint]:
        """Each checkpoint, in order."""
        return (self[index] for index in range(len(self)))
