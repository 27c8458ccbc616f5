"""The types that a client returns: models, predictions, and streams as an operator sees them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidegate.client.errors import ClientError, ModelMismatch
from tidegate.core.spec import Array, Feature, Ints, ModelId, Output
from tidegate.rpc import wire
from tidegate.v1 import tidegate_pb2 as pb

# Where a stream is in its life, as people write it.
STATES: Mapping[str, pb.Stream.State] = {
    "live": pb.Stream.STATE_LIVE,
    "parked": pb.Stream.STATE_PARKED,
    "expired": pb.Stream.STATE_EXPIRED,
}
STATE_NAMES: Mapping[int, str] = {number: name for name, number in STATES.items()}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it.

    `handles_missing` says whether values may be NaN, `batch_invariant` whether its predictions are the same bits alone and
    in any batch.
    """

    name: str
    version: str
    fingerprint: str
    task: str
    period_s: float
    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    batch_invariant: bool
    handles_missing: bool

    @property
    def id(self) -> ModelId:
        """Name, version and fingerprint."""
        return ModelId(self.name, self.version, self.fingerprint)


class Prediction(Mapping[str, Array]):
    """The answer to one timestep: a mapping from output names to arrays.

    Empty when a timestep was asked for again whose answer the server no longer remembers.

    Attributes:
        step: the number of the timestep.
        durable_step: the last timestep of the stream whose state was stored, when this was answered.
        duplicate: the model did not run for this answer: the timestep had been applied before.

    """

    # Made for every timestep, and often only one output of it is read: arrays are made when somebody asks.
    __slots__ = ("_outputs", "_packed", "duplicate", "durable_step", "step")

    def __init__(
        self, step: int, outputs: tuple[Output, ...], packed: Sequence[bytes], durable_step: int, duplicate: bool
    ) -> None:
        self.step = step
        self.durable_step = durable_step
        self.duplicate = duplicate
        self._outputs = outputs
        self._packed = packed

    def __repr__(self) -> str:
        return f"Prediction(step={self.step}, outputs={self.outputs}, durable_step={self.durable_step})"

    @property
    def outputs(self) -> Mapping[str, Array]:
        """All outputs by name, in the model's order."""
        return wire.decode_arrays(self._outputs, self._packed)

    def __getitem__(self, name: str) -> Array:
        if self._packed:
            for output, packed in zip(self._outputs, self._packed, strict=True):
                if output.name == name:
                    return np.frombuffer(packed, output.dtype).reshape(output.shape)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (output.name for output in self._outputs[: len(self._packed)])

    def __len__(self) -> int:
        """How many outputs there are."""
        return len(self._packed)


@dataclass(frozen=True, slots=True)
class Predictions(Mapping[str, Array]):
    """The answers to a block of timesteps, in columns: a mapping from output names to arrays, one row a timestep.

    `errors` has what became of a row that was not answered; the outputs of such a row are zeros, and so is its number in
    `steps`, unless it was applied and only its answer is lost. `duplicates` says of which rows the model did not run for this
    answer: the timestep had been applied before.
    """

    steps: Ints
    outputs: Mapping[str, Array]
    durable_steps: Ints
    duplicates: npt.NDArray[np.bool_]
    errors: Mapping[int, ClientError]

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        """How many outputs there are."""
        return len(self.outputs)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as an operator sees it; `state` is "live", "parked" or "expired"."""

    stream_id: str
    state: str
    model: str
    version: str
    fingerprint: str
    step: int
    durable_step: int
    epoch: int
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int


def decode_model(model: pb.Model) -> Model:
    """A model from its message."""
    return Model(
        model.name,
        model.version,
        model.fingerprint,
        model.task,
        model.period.ToTimedelta().total_seconds(),
        wire.decode_features(model),
        wire.decode_outputs(model),
        model.batch_invariant,
        model.handles_missing,
    )


def model_changed(what: str, model: Model, other: Model) -> ModelMismatch | None:
    """The error when `what` began under other weights.

    A server that has forgotten a stream, and begins it anew under a version that was replaced, cannot tell.
    """
    if other.fingerprint == model.fingerprint:
        return None
    return ModelMismatch(
        f"{what} began under {model.name}/{model.version} with fingerprint {model.fingerprint[:12]}, and the server has "
        f"{other.fingerprint[:12]}",
        "MODEL_MISMATCH",
    )


def decode_stream_info(stream: pb.Stream) -> StreamInfo:
    """A stream from its message; the state of a newer server than this client is given as its number."""
    return StreamInfo(
        stream.stream_id,
        STATE_NAMES.get(stream.state, str(stream.state)),
        stream.model,
        stream.version,
        stream.fingerprint,
        stream.step,
        stream.durable_step,
        stream.epoch,
        stream.create_time.ToNanoseconds(),
        stream.update_time.ToNanoseconds(),
        stream.state_bytes,
    )
