"""The nouns that travel: what a model says of itself, and what a stream is made of.

Shapes are those of one stream; the batch is always the first axis of an array that holds many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

# Numbers of timesteps are kept as signed 64-bit, and one more must fit.
STEP_MAX = 2**63 - 2

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]


class Key(NamedTuple):
    """Names a stream: the tenant who owns it and the id it goes by there."""

    tenant: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a timestep; `low` and `high` are the range seen in training, None when unknown."""

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of a prediction; `shape` is that of one stream."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    targets: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    horizons: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor of a stream's state.

    `shape` is that of one stream, `batch_axis` where the graph has the batch among the axes, and `initial` the value of
    a fresh stream, of that shape.
    """

    name: str
    next_name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int
    initial: Array


@dataclass(frozen=True, slots=True)
class Spec:
    """What a model says of itself.

    `fingerprint` is the SHA-256 of its graph: state belongs to a fingerprint. `input` is what the graph calls x, and
    `handles_missing` whether x may hold NaN.
    """

    name: str
    version: str
    fingerprint: str
    task: str
    period_s: float | None
    input: str
    handles_missing: bool
    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    state: tuple[StateTensor, ...]

    @property
    def id(self) -> "ModelId":
        """Name, version and fingerprint."""
        return ModelId(self.name, self.version, self.fingerprint)

    @property
    def title(self) -> str:
        """Name and version as people write them."""
        return f"{self.name}/{self.version}"


class Timestep(NamedTuple):
    """One timestep on its way in.

    `step` counts from 1; 0 means that the server shall number it. `values` is one packed float32 a feature: it stays
    packed until the whole batch is unpacked at once.
    """

    step: int
    values: bytes


class Prediction(NamedTuple):
    """One answer on its way out.

    `outputs` has the packed values of each output of the model; it is empty when the timestep was a duplicate whose
    answer is no longer remembered.
    """

    step: int
    outputs: tuple[bytes, ...]
    duplicate: bool = False


class ModelId(NamedTuple):
    """Names the weights that made a state: `fingerprint` is what counts, name and version are for people."""

    name: str
    version: str
    fingerprint: str

    @property
    def title(self) -> str:
        """Name and version as people write them."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stream at rest: everything that a slot held, and whose it is.

    `step` is the last applied timestep. `payload` is the slot's content as `Slots.pack` lays it out; `answers` is how many
    answers it has room for.
    """

    key: Key
    epoch: int
    step: int
    model: ModelId
    answers: int
    payload: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoints(Sequence[Checkpoint]):
    """Different streams of one model at rest, in columns: an object for each of thousands would cost more than to copy them.

    It is read as a sequence of `Checkpoint`; a part of it is made of parts of the columns. `keys` and `epochs` have one of each a
    stream; `steps` (streams,) and `payloads` (streams, bytes) are arrays that nobody changes any more.
    """

    keys: Sequence[Key]
    epochs: Sequence[int]
    steps: Ints
    model: ModelId
    answers: int
    payloads: Bytes

    def __len__(self) -> int:
        """How many there are."""
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> Checkpoint: ...

    @overload
    def __getitem__(self, place: slice) -> "Checkpoints": ...

    def __getitem__(self, place: int | slice) -> "Checkpoint | Checkpoints":
        """One of them, or a part."""
        keys, epochs, steps, payloads = self.keys[place], self.epochs[place], self.steps[place], self.payloads[place]
        if isinstance(place, slice):
            return Checkpoints(keys, epochs, steps, self.model, self.answers, payloads)  # type: ignore[arg-type]
        return Checkpoint(keys, epochs, int(steps), self.model, self.answers, payloads.tobytes())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Checkpoint]:
        """Each, in order."""
        return (self[place] for place in range(len(self)))
