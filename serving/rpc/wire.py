"""Converts between protobuf messages and the types of the core.

Nearly all messages are timesteps and predictions. They are decoded (in `rpc.timestep_reader`) and encoded as bytes,
because protobuf objects for the two cost as much as a row of the model. The encoded bytes are those that protobuf would
produce.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
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
from tidegate.core.input_layout import InputLayout
from tidegate.core.named_inputs import Named, check_named, pack_rows
from tidegate.core.spec import STEP_MAX, Array, Feature, Input, Output, Prediction, Spec, Timestep
from tidegate.core.stream_id import check_stream_id
from tidegate.core.streams import Existence, OpenKind, OpenOptions, Phase
from tidegate.core.swap_policy import Moved
from tidegate.rpc.backend import StreamInfo
from tidegate.rpc.status import RETRYABLE, error_message, next_step_of, wire_status
from tidegate.rpc.varint import varint
from tidegate.v1 import tidegate_pb2 as pb

DATA_TYPES: Mapping[np.dtype[Any], pb.DataType] = {
    np.dtype(np.float32): pb.DATA_TYPE_FLOAT32,
    np.dtype(np.float64): pb.DATA_TYPE_FLOAT64,
    np.dtype(np.int32): pb.DATA_TYPE_INT32,
    np.dtype(np.int64): pb.DATA_TYPE_INT64,
    np.dtype(np.bool_): pb.DATA_TYPE_BOOL,
    np.dtype(np.float16): pb.DATA_TYPE_FLOAT16,
    np.dtype(np.int8): pb.DATA_TYPE_INT8,
    np.dtype(np.int16): pb.DATA_TYPE_INT16,
    np.dtype(np.uint8): pb.DATA_TYPE_UINT8,
    np.dtype(np.uint16): pb.DATA_TYPE_UINT16,
    np.dtype(np.uint32): pb.DATA_TYPE_UINT32,
    np.dtype(np.uint64): pb.DATA_TYPE_UINT64,
}
DTYPES: Mapping[int, np.dtype[Any]] = {data_type: dtype for dtype, data_type in DATA_TYPES.items()}
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
    return make_open_options(message, message.resume_from, message.answered, decode_named(message.inputs))


def make_open_options(
    message: pb.Open | pb.OpenStreams, resume_from: int, answered: int, inputs: Named = ()
) -> OpenOptions:
    """The options of the open of one stream. Raises as `decode_open_options`.

    A client that does not know of moves keeps to the version that it has seen.
    """
    accept_move = message.accept_move and not message.version
    owner = message.owner
    options = OpenOptions(
        decode_existence(message.existence),
        owner,
        resume_from,
        inputs,
        move_now=not message.version and (accept_move or not resume_from),
        accept_move=accept_move,
        answered=min(answered, STEP_MAX),
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


def decode_blocks_request(message: bytes) -> pb.PredictBlocksRequest:
    """A request of `PredictBlocks`; InvalidField when it cannot be decoded."""
    try:
        return pb.PredictBlocksRequest.FromString(message)
    except DecodeError as error:
        raise InvalidField("request", "got bytes that are not a PredictBlocksRequest") from error


def decode_named(inputs: Iterable[pb.InputValues]) -> Named:
    """Inputs by name. They are checked later, where the model is known."""
    return [(part.name, part.values) for part in inputs]


def decode_timestep(message: pb.Timestep | pb.PredictOneRequest, layout: InputLayout) -> Timestep:
    """A timestep of a model with that layout. The width of `values` is checked later if the layout is plain.

    Raises:
        InvalidField: it has both values and numbers, or its inputs are not those of the model.

    """
    values: bytes = message.values
    if message.numbers:
        if values:
            raise InvalidField("numbers", f"got {len(message.numbers)} beside values, expected one of the two")
        values = np.asarray(message.numbers, "<f4").tobytes()
    if not layout.plain:
        values = pack_rows(layout, decode_named(message.inputs), values).tobytes()
    elif message.inputs:
        check_named(decode_named(message.inputs), ())
    return Timestep(message.step, values)


def encode_prediction(prediction: Prediction, durable_step: int) -> bytes:
    """The bytes of a PredictResponse with an answer."""
    step, outputs, duplicate = prediction
    message = b"\x08" + varint(step) if step else b""
    for output in outputs:
        message += b"\x12%b%b" % (varint(len(output)), output)
    if durable_step:
        message += b"\x18" + varint(durable_step)
    if duplicate:
        message += b"\x20\x01"
    return b"\x0a%b%b" % (varint(len(message)), message)


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
        next_step=next_step or next_step_of(error),
        retry_after=_retry_after(error),
        action=action,
        code=code,
    )


def _field_of(error: TidegateError) -> str:
    """The invalid field; empty when there is none."""
    if isinstance(error, InvalidField | NotFinite):
        return error.field
    if isinstance(error, WrongWidth | ValuesDiffer):
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
        self._tag = varint(field << 3 | 2)
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
            why = (b"\x08" + varint(step) if step else b"") + middle
            why += (b"\x28" + varint(next_step) if next_step else b"") + end
        content = (b"\x08" + varint(row) if row else b"") + b"\x12" + varint(len(why)) + why
        self._content += self._tag + varint(len(content)) + content
        self._count += 1

    def append_to(self, kind: int, message: Message) -> bytes:
        """The bytes of a response with `message` in the field `kind`. The row errors follow its other fields."""
        size = message.ByteSize() + len(self._content)
        return b"".join((varint(kind << 3 | 2), varint(size), message.SerializeToString(), self._content))

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
            pb.Feature(
                name=feature.name,
                unit=feature.unit,
                low=feature.low,
                high=feature.high,
                categories=feature.categories,
            )
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
        inputs=_encode_inputs(InputLayout(spec.inputs)),
    )


def encode_moved(spec: Spec, moved: Moved, *, batch_invariant: bool) -> bytes:
    """The bytes of a PredictResponse that tells of a move."""
    model = encode_model(spec, batch_invariant=batch_invariant)
    return pb.PredictResponse(moved=pb.Moved(model=model, new_state=NEW_STATES[moved])).SerializeToString()


def _encode_inputs(layout: InputLayout) -> list[pb.Input]:
    """The inputs of a model, and how each travels."""
    kinds = {part.name: pb.Input.KIND_TIMESTEP for part in layout.named}
    kinds |= {part.name: pb.Input.KIND_STREAM for part in layout.stream}
    return [
        pb.Input(
            name=part.name,
            data_type=DATA_TYPES[part.dtype],
            shape=part.shape,
            kind=kinds.get(part.name, pb.Input.KIND_VALUES),
        )
        for part in (*layout.timestep, *layout.stream)
    ]


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
            categories=tuple(part.categories),
        )
        for part in model.features
    )


def decode_inputs(model: pb.Model) -> tuple[Input, ...]:
    """The inputs of a model; none from a server that does not list them."""
    return tuple(
        Input(
            part.name,
            DTYPES[part.data_type],
            tuple(part.shape),
            kind="stream" if part.kind == pb.Input.KIND_STREAM else "timestep",
        )
        for part in model.inputs
    )


def decode_outputs(model: pb.Model) -> tuple[Output, ...]:
    """The outputs of a model."""
    return tuple(
        Output(
            part.name,
            DTYPES[part.data_type],
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
