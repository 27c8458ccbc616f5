"""Between protobuf messages and the nouns of the core, both ways. Nobody else builds or reads messages of `Predict`.

A timestep and its prediction, which are nearly all messages, are read and written here as bytes: protobuf's objects for
the two cost as much as a row of the model. What is written is what protobuf would write; what is read and does not look
as protobuf would have written it is left to protobuf.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.errors import (
    InvalidField,
    NoStepLeft,
    NotFinite,
    StepGap,
    TidegateError,
    ValuesDiffer,
    WrongWidth,
)
from serving.core.spec import Array, Feature, Output, Prediction, Spec, Timestep
from serving.core.stream_id import check_stream_id
from serving.core.streams import Ask, Existence, OpenKind, Phase
from serving.rpc.desk import StreamInfo
from serving.rpc.status import WORTH_RETRYING, meaning_of, sentence

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
# Numbers are written in digits of seven bits, lowest first; the eighth bit of each but the last says that more follow.
# Up to so many are read here, which is for 268 million timesteps; protobuf reads the others.
DIGITS_MAX = 4
MORE_DIGITS = (0, 0, 0x80, 0x8080, 0x808080)
ONE_DIGIT = tuple(bytes([digit]) for digit in range(0x80))
# Rows of an answer that have a sentence for people: more than anybody reads.
SENTENCES_MAX = 256


def decode_existence(value: int) -> Existence:
    """What an open asks for; InvalidField when this server does not know it."""
    if value not in EXISTENCE:
        raise InvalidField("existence", f"got {value}, expected one of {', '.join(pb.Existence.keys())}")
    return EXISTENCE[value]


def decode_ask(message: pb.Open) -> Ask:
    """What an open asks for.

    Raises:
        InvalidField: its existence is not known, its owner cannot be one, or a client that goes on wants a new stream.

    """
    return make_ask(message.existence, message.owner, message.resume_from)


def make_ask(existence: int, owner: str, resume_from: int) -> Ask:
    """As `decode_ask`, from the fields."""
    ask = Ask(decode_existence(existence), owner, resume_from)
    if owner:
        check_stream_id(owner, "owner")
    if resume_from and ask.existence is Existence.MUST_BE_NEW:
        raise InvalidField(
            "existence",
            f"got EXISTENCE_MUST_BE_NEW with resume_from {resume_from}, expected it with resume_from 0 only",
        )
    return ask


def decode_output_format(value: int) -> int:
    """How outputs are to be written; InvalidField when this server does not know it."""
    if value not in pb.OutputFormat.values():
        raise InvalidField("output_format", f"got {value}, expected one of {', '.join(pb.OutputFormat.keys())}")
    return value


def as_numbers(output_format: int, came_as_numbers: bool) -> bool:
    """Whether outputs are written as numbers."""
    if output_format == pb.OUTPUT_FORMAT_UNSPECIFIED:
        return came_as_numbers
    return output_format == pb.OUTPUT_FORMAT_NUMBERS


def decode_sync(value: int, *, default: bool = False) -> bool:
    """Whether answers wait until they are durable, unspecified by default; InvalidField when this server does not know the wish."""
    if value not in pb.Durability.values():
        raise InvalidField("durability", f"got {value}, expected one of {', '.join(pb.Durability.keys())}")
    return default if value == pb.DURABILITY_UNSPECIFIED else value == pb.DURABILITY_SYNC


def decode_request(message: bytes) -> pb.PredictRequest:
    """A request of any kind; InvalidField when it is none."""
    try:
        return pb.PredictRequest.FromString(message)
    except DecodeError as error:
        raise InvalidField("request", "got bytes that are not a PredictRequest") from error


def decode_timestep(message: pb.Timestep | pb.PredictOneRequest) -> Timestep:
    """A timestep. What else may be wrong with it is found by whoever knows the model.

    Raises:
        InvalidField: it has values and numbers.

    """
    if not message.numbers:
        return Timestep(message.step, message.values)
    if message.values:
        raise InvalidField("numbers", f"got {len(message.numbers)} beside values, expected one of the two")
    return Timestep(message.step, np.asarray(message.numbers, "<f4").tobytes())


class TimestepReader:
    """Reads the timesteps of a model with so many features from the bytes of their requests.

    The length of a request says of how many digits its number is, and so where everything stands. `read` looks there, and
    gives None when it finds anything else.
    """

    def __init__(self, features: int) -> None:
        width = 4 * features
        self._values = b"\x12" + _varint(width)  # what stands before the values
        self._layouts: dict[int, tuple[bytes, int, int]] = {}  # by length: how it begins, where its number is
        for digits in range(DIGITS_MAX + 1):
            number = b"\x08" if digits else b""  # 0 is not written
            head = b"\x0a" + _varint(len(number) + digits + len(self._values) + width) + number
            end = len(head) + digits
            self._layouts[end + len(self._values) + width] = head, len(head), end

    def read(self, message: bytes) -> Timestep | None:
        """The timestep that a request is, None when protobuf has to look at it."""
        layout = self._layouts.get(len(message))
        if layout is None:
            return None
        head, begin, end = layout
        if not message.startswith(head) or not message.startswith(self._values, end):
            return None
        digits = int.from_bytes(message[begin:end], "little")
        if digits & 0x80808080 != MORE_DIGITS[end - begin]:
            return None
        step = digits & 0x7F | digits >> 1 & 0x3F80 | digits >> 2 & 0x1FC000 | digits >> 3 & 0xFE00000
        return Timestep(step, message[end + len(self._values) :])


@cache
def timestep_reader(features: int) -> TimestepReader:
    """The reader for models with so many features; there are as many as widths among the models."""
    return TimestepReader(features)


def encode_prediction(prediction: Prediction, durable_step: int) -> bytes:
    """An answer: the bytes of a PredictResponse."""
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
    """The message of an answer; with `numbers` its outputs are written as such."""
    message = pb.Prediction(step=prediction.step, durable_step=durable_step, duplicate=prediction.duplicate)
    if not numbers:
        message.outputs.extend(prediction.outputs)
    elif prediction.outputs:
        for output, packed in zip(spec.outputs, prediction.outputs, strict=True):
            message.output_numbers.add(numbers=np.frombuffer(packed, output.dtype).astype(np.float64))
    return message


def encode_refusal(error: TidegateError, step: int, next_step: int) -> pb.PredictResponse:
    """The refusal of one timestep: `step` as it was sent, `next_step` what the stream expects."""
    return pb.PredictResponse(error=encode_error(error, step, next_step, of_timestep=True))


def encode_error(error: TidegateError, step: int = 0, next_step: int = 0, *, of_timestep: bool) -> pb.Error:
    """Why something was refused within a call; `of_timestep` as in `meaning_of`."""
    code, reason, action = meaning_of(error, of_timestep=of_timestep)
    return pb.Error(
        step=step,
        reason=reason,
        message=sentence(error),
        field=_field_of(error),
        next_step=next_step,
        retry_after=_retry_after(error),
        action=action,
        code=code,
    )


def _field_of(error: TidegateError) -> str:
    """The field at fault, empty when none is."""
    if isinstance(error, InvalidField):
        return error.field
    if isinstance(error, WrongWidth | NotFinite | ValuesDiffer):
        return "values"
    return "step" if isinstance(error, StepGap | NoStepLeft) else ""


def _retry_after(error: TidegateError) -> timedelta | None:
    return timedelta(milliseconds=error.retry_after_ms) if isinstance(error, WORTH_RETRYING) else None


class RowErrors:
    """The rows of one answer that were refused, as bytes: so many `RowError`s in the field of that number.

    Thousands of rows may be refused at once, for one reason: the first of them tell people why, the others only programs.
    With a sentence each, the answer to the longest block would be longer than what gRPC clients accept by default.
    `of_timesteps` says that rows are timesteps, and not streams.
    """

    def __init__(self, field: int, *, of_timesteps: bool) -> None:
        self._tag = _varint(field << 3 | 2)
        self._of_timesteps = of_timesteps
        self._content = bytearray()
        self._count = 0
        self._known: dict[tuple[type, str, timedelta | None], tuple[bytes, bytes]] = {}

    def __len__(self) -> int:
        """How many rows were refused."""
        return self._count

    @property
    def telling(self) -> bool:
        """Whether the next row will have a sentence of its own."""
        return self._count < SENTENCES_MAX

    def add(self, row: int, error: TidegateError, step: int, next_step: int) -> None:
        """Adds a row: `step` as it was sent, `next_step` what its stream expects."""
        if self.telling:
            why = encode_error(error, step, next_step, of_timestep=self._of_timesteps).SerializeToString()
        else:
            middle, end = self._without_sentence(error)
            why = (b"\x08" + _varint(step) if step else b"") + middle
            why += (b"\x28" + _varint(next_step) if next_step else b"") + end
        content = (b"\x08" + _varint(row) if row else b"") + b"\x12" + _varint(len(why)) + why
        self._content += self._tag + _varint(len(content)) + content
        self._count += 1

    def append_to(self, kind: int, message: Message) -> bytes:
        """The bytes of a response that has `message` as its `kind`, with the rows behind all else that is set."""
        size = message.ByteSize() + len(self._content)
        return b"".join((_varint(kind << 3 | 2), _varint(size), message.SerializeToString(), self._content))

    def _without_sentence(self, error: TidegateError) -> tuple[bytes, bytes]:
        """What stands before and behind the number that is expected, the same for all errors of a kind."""
        kind = type(error), _field_of(error), _retry_after(error)
        if (known := self._known.get(kind)) is None:
            code, reason, action = meaning_of(error, of_timestep=self._of_timesteps)
            middle = pb.Error(reason=reason, field=kind[1]).SerializeToString()
            known = self._known[kind] = (
                middle,
                pb.Error(retry_after=kind[2], action=action, code=code).SerializeToString(),
            )
        return known


def encode_model(spec: Spec, *, batch_invariant: bool) -> pb.Model:
    """A model's description."""
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


def decode_phase(state: int) -> Phase | None:
    """Where in their life streams are asked for; None for everywhere."""
    if state == pb.Stream.STATE_UNSPECIFIED:
        return None
    for phase, known in STATES.items():
        if known == state:
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
    """The columns of a model's timesteps."""
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
    """The outputs of a model's predictions."""
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
    """Named arrays from the packed values of one prediction; empty when nothing was packed."""
    if not packed:
        return {}
    return {
        output.name: np.frombuffer(values, output.dtype).reshape(output.shape)
        for output, values in zip(outputs, packed, strict=True)
    }


def _varint(number: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    if number < 0x80:
        return ONE_DIGIT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + _varint(number >> 14)
