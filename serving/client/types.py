"""The types that a client returns: models, predictions, and streams as an operator sees them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidegate.client.errors import ClientError, ModelMismatch
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Feature, Input, Ints, ModelId, Output
from tidegate.rpc import wire
from tidegate.v1 import tidegate_pb2 as pb

# The names of stream states in arguments and results.
STATES: Mapping[str, pb.Stream.State] = {
    "live": pb.Stream.STATE_LIVE,
    "parked": pb.Stream.STATE_PARKED,
    "expired": pb.Stream.STATE_EXPIRED,
}
STATE_NAMES: Mapping[int, str] = {number: name for name, number in STATES.items()}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it.

    `handles_missing` tells whether values may be NaN, `batch_invariant` whether predictions have the same bits alone and in
    any batch. `inputs` are the tensors that a client gives to the model; empty when there is one, with a float32 a feature.
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
    inputs: tuple[Input, ...] = ()

    @property
    def layout(self) -> InputLayout:
        """How the inputs of a timestep are packed into a row."""
        return InputLayout(self.inputs or (Input("x", np.dtype(np.float32), (len(self.features),)),))

    @property
    def inputs_by_name(self) -> tuple[Input, ...]:
        """The inputs beside one vector of float32, with each timestep or once for a stream; empty for most models."""
        layout = self.layout
        return (*layout.named, *layout.stream)

    @property
    def id(self) -> ModelId:
        """Name, version and fingerprint."""
        return ModelId(self.name, self.version, self.fingerprint)


class Prediction(Mapping[str, Array]):
    """The answer to one timestep: a mapping from output names to arrays.

    Empty for a repeated timestep whose answer the server no longer remembers.

    Attributes:
        step: the number of the timestep.
        durable_step: the last timestep of the stream that was stored when the server answered.
        duplicate: True when the timestep had been applied before, and the model did not run again.

    """

    # There is one for each timestep, and often only one output is read: arrays are made on access.
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
        """The number of outputs."""
        return len(self._packed)


@dataclass(frozen=True, slots=True)
class Predictions(Mapping[str, Array]):
    """The answers to a block of timesteps, in columns: a mapping from output names to arrays (rows, *shape).

    `errors` has the error of each row without an answer. The outputs of such a row are zeros. Its number in `steps` is 0 unless
    the timestep was applied and only its answer is lost. `duplicates` marks rows that had been applied before, and for which
    the model did not run again.
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
        """The number of outputs."""
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


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What became of a version: `outcome` is "loaded", "refused" or "unloading", `reason` why it was refused."""

    name: str
    version: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as an operator sees it.

    `policy` is what happens to streams on other versions than the default: "pin", "rewarm" or "reset". `rewarm_steps` is how
    many timesteps are kept of each stream, 0 when none. `shadow_share` is the share of streams that also run under it unseen.
    `on_demand` tells that the server loads it when somebody asks for it; until then it has no `fingerprint`.
    """

    model: str
    version: str
    fingerprint: str
    is_default: bool
    is_promoted: bool
    policy: str
    rewarm_steps: int
    shadow_share: float
    live_streams: int
    parked_streams: int
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class DefaultChange:
    """The default version of a model, and the one that was it before."""

    version: str
    previous_version: str


def decode_change(change: pb.ModelChange) -> ModelChange:
    """Decodes what became of a version."""
    outcome = pb.ModelChange.Outcome.Name(change.outcome).removeprefix("OUTCOME_").lower()
    return ModelChange(change.name, change.version, outcome, change.reason)


def decode_model(model: pb.Model) -> Model:
    """Decodes a model."""
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
        wire.decode_inputs(model),
    )


def model_changed(what: str, model: Model, other: Model) -> ModelMismatch | None:
    """The error for `what`, which began under other weights; None when they are the same.

    A server that has lost a stream and begins it again under a replaced version cannot notice this itself.
    """
    if other.fingerprint == model.fingerprint:
        return None
    return ModelMismatch(
        f"{what} began under {model.name}/{model.version} with fingerprint {model.fingerprint[:12]}, and the server has "
        f"{other.fingerprint[:12]}",
        "MODEL_MISMATCH",
    )


def decode_stream_info(stream: pb.Stream) -> StreamInfo:
    """Decodes a stream. A state that this client does not know becomes its number."""
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
