"""Converts between protobuf messages and the types of the core.

No other module encodes or decodes messages of `Predict`.

Nearly all messages are timesteps and predictions. They are decoded and encoded here as bytes, because protobuf objects
for the two cost as much as a row of the model. The encoded bytes are those that protobuf would produce. A request in
any other layout than that of protobuf's encoder is left to protobuf.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from tidegate.core.errors import (
    InvalidField,
    NoStepLeft,
    NotFinite,
    StepGap,
    TidegateError,
    ValuesDiffer,
    WrongWidth,
)
from tidegate.core.spec import STEP_MAX, Array, Feature, Output, Prediction, Spec, Timestep
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Existence, OpenKind, OpenOptions, Phase
from tidegate.core.swap_policy import Moved
from tidegate.rpc.backend import StreamInfo
from tidegate.rpc.status import RETRYABLE, error_message, wire_status
from tidegate.v1 import tidegate_pb2 as pb

DATA_TYPES: Mapping[np.dtype[Any], pb.DataType] = {
    np.dtype(np.float32): pb.DATA_TYPE_FLOAT32,
    np.dtype(np.float64): pb.DATA_TYPE_FLOAT64,
    np.dtype(np.int32): pb.DATA_TYPE_INT32,
    np.dtype(np.int64): pb.DATA_TYPE_INT64,
    np.dtype(np.bool_): pb.DATA_TYPE_BOOL,
}
EXISTENCE: Mapping[int, Existence] = {
    pb.EXISTENCE_UNSPECIFIED: Existence.ANY,
    pb.EXISTENCE_MUST_EXIST: Existence.MUST_EXIST,
    pb.EXISTENCE_MUST_BE_NEW: Existence.MUST_BE_NEW,
}
STATES: Mapping[Phase, pb.Stream.State] = {
    Phase.LIVE: pb.Stream.STATE_LIVE,
    Phase.PARKED: pb.Stream.STATE_PARKED,
    Phase.EXPIRED: pb.Stream.STATE_EXPIRED,
}
OPEN_KINDS: Mapping[OpenKind, pb.Opened.Kind] = {
    OpenKind.NEW: pb.Opened.KIND_NEW,
    OpenKind.RESUMED: pb.Opened.KIND_RESUMED,
    OpenKind.TAKEN_OVER: pb.Opened.KIND_TAKEN_OVER,
}
NEW_STATES: Mapping[Moved, pb.NewState] = {
    Moved.NOT: pb.NEW_STATE_UNSPECIFIED,
    Moved.REWARMED: pb.NEW_STATE_REWARMED,
    Moved.RESET: pb.NEW_STATE_RESET,
}
# The longest step number that is decoded here, in bytes of a varint: enough for 268 million timesteps. Protobuf decodes
# longer ones. A varint has seven bits in each byte, lowest first; the eighth bit tells that more bytes follow.
VARINT_BYTES_MAX = 4
CONTINUATION_BITS = (0, 0, 0x80, 0x8080, 0x808080)
ONE_BYTE_VARINTS = tuple(bytes([digit]) for digit in range(0x80))
# How many row errors of one answer have a message: more than anybody reads.
ROW_MESSAGES_MAX = 256


def decode_existence(value: int) -> Existence:
    """What an open requires; InvalidField when this server does not know the value."""
    if value not in EXISTENCE:
        raise InvalidField("existence", f"got {value}, expected one of {', '.join(pb.Existence.keys())}")
    return EXISTENCE[value]


def decode_open_options(message: pb.Open) -> OpenOptions:
    """The options of an open.

    Raises:
        InvalidField: `existence` is unknown, `owner` is invalid, or a client that continues requires a new stream.

    """
    return make_open_options(message, message.resume_from, message.answered)


def make_open_options(message: pb.Open | pb.OpenStreams, resume_from: int, answered: int) -> OpenOptions:
    """The options of the open of one stream. Raises as `decode_open_options`.

    A client that does not know of moves keeps to the version that it has seen.
    """
    accept_move = message.accept_move and not message.version
    move_now = not message.version and (accept_move or not resume_from)
    existence, owner = message.existence, message.owner
    options = OpenOptions(
        decode_existence(existence), owner, resume_from, move_now, accept_move, min(answered, STEP_MAX)
    )
    if owner:
        check_stream_id(owner, "owner")
    if resume_from and options.existence is Existence.MUST_BE_NEW:
        raise InvalidField(
            "existence",
            f"got EXISTENCE_MUST_BE_NEW with resume_from {resume_from}, expected it with resume_from 0 only",
        )
    return options


def decode_output_format(value: int) -> int:
    """The format of outputs; InvalidField when this server does not know the value."""
    if value not in pb.OutputFormat.values():
        raise InvalidField("output_format", f"got {value}, expected one of {', '.join(pb.OutputFormat.keys())}")
    return value


def as_numbers(output_format: int, sent_as_numbers: bool) -> bool:
    """Whether outputs are encoded as numbers."""
    if output_format == pb.OUTPUT_FORMAT_UNSPECIFIED:
        return sent_as_numbers
    return output_format == pb.OUTPUT_FORMAT_NUMBERS


def decode_sync(value: int, *, default: bool = False) -> bool:
    """Whether answers wait until they are durable; `default` when unspecified.

    Raises InvalidField when this server does not know the value.
    """
    if value not in pb.Durability.values():
        raise InvalidField("durability", f"got {value}, expected one of {', '.join(pb.Durability.keys())}")
    return default if value == pb.DURABILITY_UNSPECIFIED else value == pb.DURABILITY_SYNC


def decode_request(message: bytes) -> pb.PredictRequest:
    """A request of any kind; InvalidField when it cannot be decoded."""
    try:
        return pb.PredictRequest.FromString(message)
    except DecodeError as error:
        raise InvalidField("request", "got bytes that are not a PredictRequest") from error


def decode_timestep(message: pb.Timestep | pb.PredictOneRequest) -> Timestep:
    """A timestep. Its width is checked later, where the model is known.

    Raises:
        InvalidField: it has both values and numbers.

    """
    if not message.numbers:
        return Timestep(message.step, message.values)
    if message.values:
        raise InvalidField("numbers", f"got {len(message.numbers)} beside values, expected one of the two")
    return Timestep(message.step, np.asarray(message.numbers, "<f4").tobytes())


class TimestepReader:
    """Decodes timesteps with so many features from the bytes of their requests.

    The length of a request determines how many bytes its step number has, and so where everything is. `read` checks
    this layout, and returns None for any other.
    """

    def __init__(self, features: int) -> None:
        width = 4 * features
        self._values = b"\x12" + _varint(width)  # the tag and the length of the values
        # by length of the request: its first bytes, where the step begins, where it ends
        self._layouts: dict[int, tuple[bytes, int, int]] = {}
        for digits in range(VARINT_BYTES_MAX + 1):
            number = b"\x08" if digits else b""  # protobuf does not encode 0
            head = b"\x0a" + _varint(len(number) + digits + len(self._values) + width) + number
            end = len(head) + digits
            self._layouts[end + len(self._values) + width] = head, len(head), end

    def read(self, message: bytes) -> Timestep | None:
        """The timestep in a request, None when protobuf must decode it."""
        layout = self._layouts.get(len(message))
        if layout is None:
            return None
        head, start, end = layout
        if not message.startswith(head) or not message.startswith(self._values, end):
            return None
        digits = int.from_bytes(message[start:end], "little")
        if digits & 0x80808080 != CONTINUATION_BITS[end - start]:
            return None
        step = digits & 0x7F | digits >> 1 & 0x3F80 | digits >> 2 & 0x1FC000 | digits >> 3 & 0xFE00000
        return Timestep(step, message[end + len(self._values) :])


@cache
def timestep_reader(features: int) -> TimestepReader:
    """The reader for models with so many features. The cache has one entry for each width."""
    return TimestepReader(features)


def encode_prediction(prediction: Prediction, durable_step: int) -> bytes:
    """The bytes of a PredictResponse with an answer."""
    step, outputs, duplicate = prediction
    message = b"\x08" + _varint(step) if step else b""
    for output in outputs:
        message += b"\x12%b%b" % (_varint(len(output)), output)
    if durable_step:
        message += b"\x18" + _varint(durable_step)
    if duplicate:
        message += b"\x20\x01"
    return b"\x0a%b%b" % (_varint(len(message)), message)


def make_prediction(prediction: Prediction, durable_step: int, spec: Spec, *, numbers: bool) -> pb.Prediction:
    """The message of an answer. With `numbers` its outputs are encoded as numbers."""
    message = pb.Prediction(step=prediction.step, durable_step=durable_step, duplicate=prediction.duplicate)
    if not numbers:
        message.outputs.extend(prediction.outputs)
    elif prediction.outputs:
        for output, packed in zip(spec.outputs, prediction.outputs, strict=True):
            message.output_numbers.add(numbers=np.frombuffer(packed, output.dtype).astype(np.float64))
    return message


def encode_refusal(error: TidegateError, step: int, next_step: int) -> pb.PredictResponse:
    """The refusal of one timestep. `step` is its number as it was sent, `next_step` the one that the stream expects."""
    return pb.PredictResponse(error=encode_error(error, step, next_step, of_timestep=True))


def encode_error(error: TidegateError, step: int = 0, next_step: int = 0, *, of_timestep: bool) -> pb.Error:
    """The message of an error within a call; `of_timestep` as in `wire_status`."""
    code, reason, action = wire_status(error, of_timestep=of_timestep)
    return pb.Error(
        step=step,
        reason=reason,
        message=error_message(error),
        field=_field_of(error),
        next_step=next_step,
        retry_after=_retry_after(error),
        action=action,
        code=code,
    )


def _field_of(error: TidegateError) -> str:
    """The invalid field; empty when there is none."""
    if isinstance(error, InvalidField):
        return error.field
    if isinstance(error, WrongWidth | NotFinite | ValuesDiffer):
        return "values"
    return "step" if isinstance(error, StepGap | NoStepLeft) else ""


def _retry_after(error: TidegateError) -> timedelta | None:
    return timedelta(milliseconds=error.retry_after_ms) if isinstance(error, RETRYABLE) else None


class RowErrors:
    """The errors of refused rows in one answer, as bytes: `RowError` messages in the repeated field of that number.

    Thousands of rows may be refused at once for one reason. Only the first ones get a message for people; the others
    have the rest. With a message in each, the answer to the longest block would exceed what gRPC clients accept by
    default. `of_timesteps` tells that rows are timesteps, not streams.
    """

    def __init__(self, field: int, *, of_timesteps: bool) -> None:
        self._tag = _varint(field << 3 | 2)
        self._of_timesteps = of_timesteps
        self._content = bytearray()
        self._count = 0
        self._templates: dict[tuple[type, str, timedelta | None], tuple[bytes, bytes]] = {}

    def __len__(self) -> int:
        """The number of refused rows."""
        return self._count

    @property
    def has_messages_left(self) -> bool:
        """Whether the next row will get a message."""
        return self._count < ROW_MESSAGES_MAX

    def add(self, row: int, error: TidegateError, step: int, next_step: int) -> None:
        """Adds a row. `step` is its number as it was sent, `next_step` the one that its stream expects."""
        if self.has_messages_left:
            why = encode_error(error, step, next_step, of_timestep=self._of_timesteps).SerializeToString()
        else:
            middle, end = self._without_message(error)
            why = (b"\x08" + _varint(step) if step else b"") + middle
            why += (b"\x28" + _varint(next_step) if next_step else b"") + end
        content = (b"\x08" + _varint(row) if row else b"") + b"\x12" + _varint(len(why)) + why
        self._content += self._tag + _varint(len(content)) + content
        self._count += 1

    def append_to(self, kind: int, message: Message) -> bytes:
        """The bytes of a response with `message` in the field `kind`. The row errors follow its other fields."""
        size = message.ByteSize() + len(self._content)
        return b"".join((_varint(kind << 3 | 2), _varint(size), message.SerializeToString(), self._content))

    def _without_message(self, error: TidegateError) -> tuple[bytes, bytes]:
        """The bytes before and after the expected number, which are the same for all errors of a kind."""
        kind = type(error), _field_of(error), _retry_after(error)
        if (template := self._templates.get(kind)) is None:
            code, reason, action = wire_status(error, of_timestep=self._of_timesteps)
            middle = pb.Error(reason=reason, field=kind[1]).SerializeToString()
            template = self._templates[kind] = (
                middle,
                pb.Error(retry_after=kind[2], action=action, code=code).SerializeToString(),
            )
        return template


def encode_model(spec: Spec, *, batch_invariant: bool) -> pb.Model:
    """The description of a model."""
    return pb.Model(
        name=spec.name,
        version=spec.version,
        fingerprint=spec.fingerprint,
        task=spec.task,
        period=timedelta(seconds=spec.period_s) if spec.period_s else None,
        features=[
            pb.Feature(name=feature.name, unit=feature.unit, low=feature.low, high=feature.high)
            for feature in spec.features
        ],
        outputs=[
            pb.Output(
                name=output.name,
                data_type=DATA_TYPES[output.dtype],
                shape=output.shape,
                targets=output.targets,
                units=output.units,
                horizons=output.horizons,
                quantiles=output.quantiles,
            )
            for output in spec.outputs
        ],
        state=[
            pb.StateTensor(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], shape=tensor.shape)
            for tensor in spec.state
        ],
        batch_invariant=batch_invariant,
        handles_missing=spec.handles_missing,
    )


def encode_moved(spec: Spec, moved: Moved, *, batch_invariant: bool) -> bytes:
    """The bytes of a PredictResponse that tells of a move."""
    model = encode_model(spec, batch_invariant=batch_invariant)
    return pb.PredictResponse(moved=pb.Moved(model=model, new_state=NEW_STATES[moved])).SerializeToString()


def decode_phase(state: int) -> Phase | None:
    """The phase that a client filters by; None for all."""
    if state == pb.Stream.STATE_UNSPECIFIED:
        return None
    for phase, template in STATES.items():
        if template == state:
            return phase
    raise InvalidField("state", f"got {state}, expected one of {', '.join(pb.Stream.State.keys())}")


def encode_stream(info: StreamInfo) -> pb.Stream:
    """A stream as an operator sees it."""
    stream = pb.Stream(
        stream_id=info.stream_id,
        state=STATES[info.phase],
        model=info.model.name,
        version=info.model.version,
        fingerprint=info.model.fingerprint,
        step=info.step,
        durable_step=info.durable_step,
        epoch=info.epoch,
        state_bytes=info.state_bytes,
    )
    stream.create_time.FromNanoseconds(info.created_unix_nano)
    stream.update_time.FromNanoseconds(info.updated_unix_nano)
    return stream


def decode_features(model: pb.Model) -> tuple[Feature, ...]:
    """The features of a model."""
    return tuple(
        Feature(
            part.name,
            part.unit,
            part.low if part.HasField("low") else None,
            part.high if part.HasField("high") else None,
        )
        for part in model.features
    )


def decode_outputs(model: pb.Model) -> tuple[Output, ...]:
    """The outputs of a model."""
    dtypes = {data_type: dtype for dtype, data_type in DATA_TYPES.items()}
    return tuple(
        Output(
            part.name,
            dtypes[part.data_type],
            tuple(part.shape),
            tuple(part.targets),
            tuple(part.units),
            tuple(part.horizons),
            tuple(part.quantiles),
        )
        for part in model.outputs
    )


def decode_arrays(outputs: tuple[Output, ...], packed: Sequence[bytes]) -> dict[str, Array]:
    """Named arrays from the packed values of one prediction; empty when there are none."""
    if not packed:
        return {}
    return {
        output.name: np.frombuffer(values, output.dtype).reshape(output.shape)
        for output, values in zip(outputs, packed, strict=True)
    }


def _varint(number: int) -> bytes:
    """A number that is not negative, as a varint."""
    if number < 0x80:
        return ONE_BYTE_VARINTS[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + _varint(number >> 14)
