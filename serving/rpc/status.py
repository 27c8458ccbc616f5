"""How an error looks on the wire: one table, read in both directions."""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core import errors
from serving.rpc.names import action_name, reason_name

# The domain of google.rpc.ErrorInfo; with it, a reason is unique among all services a client may talk to.
DOMAIN = "tidegate.v1"
# A status travels as metadata, of which gRPC takes 8 KB by default. The sentence is in it three times: as text, where a
# byte that is no ASCII takes three, and twice in the details, whose base64 takes four bytes for three.
SENTENCE_BYTES_MAX = 1024


class Meaning(NamedTuple):
    """What an error is on the wire: the gRPC code, the reason, and what the client does about it."""

    code: int
    reason: pb.Error.Reason
    action: pb.Error.Action


# The first class that fits counts.
TABLE: Mapping[type[errors.TidegateError], Meaning] = {
    errors.WrongWidth: Meaning(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_WRONG_WIDTH, pb.Error.ACTION_DROP),
    errors.NotFinite: Meaning(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_NOT_FINITE, pb.Error.ACTION_DROP),
    errors.InvalidField: Meaning(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_INVALID_FIELD, pb.Error.ACTION_DROP),
    errors.StepGap: Meaning(code_pb2.OUT_OF_RANGE, pb.Error.REASON_STEP_GAP, pb.Error.ACTION_REOPEN),
    errors.ValuesDiffer: Meaning(code_pb2.ALREADY_EXISTS, pb.Error.REASON_VALUES_DIFFER, pb.Error.ACTION_STREAM_LOST),
    errors.NoStepLeft: Meaning(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_INVALID_FIELD, pb.Error.ACTION_DROP),
    errors.Overloaded: Meaning(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.FellAsleep: Meaning(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.StoreBehind: Meaning(code_pb2.UNAVAILABLE, pb.Error.REASON_STORE_UNAVAILABLE, pb.Error.ACTION_RETRY),
    errors.ModelFailed: Meaning(code_pb2.INTERNAL, pb.Error.REASON_MODEL_FAILED, pb.Error.ACTION_DROP),
    errors.WrongOrder: Meaning(code_pb2.FAILED_PRECONDITION, pb.Error.REASON_WRONG_ORDER, pb.Error.ACTION_STREAM_LOST),
    errors.ModelNotFound: Meaning(code_pb2.NOT_FOUND, pb.Error.REASON_MODEL_NOT_FOUND, pb.Error.ACTION_STREAM_LOST),
    errors.ModelNotNamed: Meaning(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_MODEL_NOT_FOUND, pb.Error.ACTION_STREAM_LOST
    ),
    errors.StreamNotFound: Meaning(code_pb2.NOT_FOUND, pb.Error.REASON_STREAM_NOT_FOUND, pb.Error.ACTION_STREAM_LOST),
    errors.StreamExists: Meaning(code_pb2.ALREADY_EXISTS, pb.Error.REASON_STREAM_EXISTS, pb.Error.ACTION_STREAM_LOST),
    errors.ModelMismatch: Meaning(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_MODEL_MISMATCH, pb.Error.ACTION_STREAM_LOST
    ),
    errors.TooManyStreams: Meaning(
        code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_TOO_MANY_STREAMS, pb.Error.ACTION_RETRY
    ),
    errors.TakenOver: Meaning(code_pb2.ABORTED, pb.Error.REASON_TAKEN_OVER, pb.Error.ACTION_STREAM_LOST),
    errors.StreamExpired: Meaning(code_pb2.NOT_FOUND, pb.Error.REASON_STREAM_EXPIRED, pb.Error.ACTION_STREAM_LOST),
    errors.StateLost: Meaning(code_pb2.DATA_LOSS, pb.Error.REASON_STATE_LOST, pb.Error.ACTION_STREAM_LOST),
    errors.CheckpointBroken: Meaning(code_pb2.DATA_LOSS, pb.Error.REASON_STATE_UNREADABLE, pb.Error.ACTION_STREAM_LOST),
    errors.StoreUnavailable: Meaning(code_pb2.UNAVAILABLE, pb.Error.REASON_STORE_UNAVAILABLE, pb.Error.ACTION_RETRY),
    errors.Stopping: Meaning(code_pb2.UNAVAILABLE, pb.Error.REASON_STOPPING, pb.Error.ACTION_REOPEN),
}
# Refusals that go away by waiting.
WORTH_RETRYING = (
    errors.FellAsleep,
    errors.Overloaded,
    errors.StoreBehind,
    errors.StoreUnavailable,
    errors.TooManyStreams,
)
# What nobody has thought of may be better at the next try.
UNKNOWN = Meaning(code_pb2.INTERNAL, pb.Error.REASON_UNSPECIFIED, pb.Error.ACTION_REOPEN)


def meaning_of(error: errors.TidegateError, *, of_timestep: bool) -> Meaning:
    """What an error is on the wire; `of_timestep` says that it refuses one timestep, and not a stream, a block or a call."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            meaning = TABLE[kind]
            break
    else:
        meaning = UNKNOWN
    if meaning.action == pb.Error.ACTION_DROP and not of_timestep:
        return meaning._replace(action=pb.Error.ACTION_STREAM_LOST)
    return meaning


def sentence(error: errors.TidegateError) -> str:
    """What an error says, cut where it would be too long to travel."""
    text = str(error)
    if len(text) <= SENTENCE_BYTES_MAX and text.isascii():
        return text
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= SENTENCE_BYTES_MAX:
        return encoded.decode()
    return encoded[: SENTENCE_BYTES_MAX - 3].decode(errors="ignore") + "..."


async def abort(context: Any, error: errors.TidegateError) -> NoReturn:
    """Ends a call with an error: its code, its sentence, and google.rpc details for programs."""
    code, reason, action = meaning_of(error, of_timestep=isinstance(error, errors.TimestepRefused))
    if isinstance(error, errors.StepGap):  # of a single call, which has nothing to open again
        action = pb.Error.ACTION_STREAM_LOST
    info = error_details_pb2.ErrorInfo(reason=reason_name(reason), domain=DOMAIN)
    info.metadata["action"] = action_name(action)
    if isinstance(error, errors.StreamExpired):
        info.metadata["next_step"] = str(error.step + 1)
    elif isinstance(error, errors.StepGap):
        info.metadata["next_step"] = str(error.expected)
    elif isinstance(error, errors.StateLost):
        info.metadata["next_step"] = str(error.kept_step + 1)
    details: list[any_pb2.Any] = [_pack(info)]
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=sentence(error))
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, WORTH_RETRYING):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(_pack(retry))
    status = status_pb2.Status(code=code, message=sentence(error), details=details)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
