"""The gRPC status of each error, in one table that server and tests read."""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tidegate.core import errors
from tidegate.rpc.names import action_name, reason_name
from tidegate.v1 import tidegate_pb2 as pb

# The domain of google.rpc.ErrorInfo. It makes a reason unique among all services that a client may call.
DOMAIN = "tidegate.v1"
# A status travels as metadata, and gRPC accepts 8 KB of it by default. The message is in it three times: as text, where
# a byte that is not ASCII takes three, and twice in the details, whose base64 takes four bytes for three.
ERROR_MESSAGE_BYTES_MAX = 1024


class WireStatus(NamedTuple):
    """How an error appears on the wire: the gRPC code, the reason, and the action of the client."""

    code: int
    reason: pb.Error.Reason
    action: pb.Error.Action


# The first matching class counts, from the error's own class upwards.
TABLE: Mapping[type[errors.TidegateError], WireStatus] = {
    errors.WrongWidth: WireStatus(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_WRONG_WIDTH, pb.Error.ACTION_DROP),
    errors.NotFinite: WireStatus(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_NOT_FINITE, pb.Error.ACTION_DROP),
    errors.InvalidField: WireStatus(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_INVALID_FIELD, pb.Error.ACTION_DROP),
    errors.StepGap: WireStatus(code_pb2.OUT_OF_RANGE, pb.Error.REASON_STEP_GAP, pb.Error.ACTION_REOPEN),
    errors.ValuesDiffer: WireStatus(
        code_pb2.ALREADY_EXISTS, pb.Error.REASON_VALUES_DIFFER, pb.Error.ACTION_STREAM_LOST
    ),
    errors.NoStepLeft: WireStatus(code_pb2.INVALID_ARGUMENT, pb.Error.REASON_INVALID_FIELD, pb.Error.ACTION_DROP),
    errors.Overloaded: WireStatus(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.StepsLimited: WireStatus(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.OpensLimited: WireStatus(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.ParkedAgain: WireStatus(code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_OVERLOADED, pb.Error.ACTION_RETRY),
    errors.StoreBehind: WireStatus(code_pb2.UNAVAILABLE, pb.Error.REASON_STORE_UNAVAILABLE, pb.Error.ACTION_RETRY),
    errors.ModelFailed: WireStatus(code_pb2.INTERNAL, pb.Error.REASON_MODEL_FAILED, pb.Error.ACTION_DROP),
    errors.WrongOrder: WireStatus(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_WRONG_ORDER, pb.Error.ACTION_STREAM_LOST
    ),
    errors.ModelNotFound: WireStatus(code_pb2.NOT_FOUND, pb.Error.REASON_MODEL_NOT_FOUND, pb.Error.ACTION_STREAM_LOST),
    errors.ModelNotNamed: WireStatus(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_MODEL_NOT_FOUND, pb.Error.ACTION_STREAM_LOST
    ),
    errors.DefaultNotChanged: WireStatus(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_MODEL_NOT_FOUND, pb.Error.ACTION_STREAM_LOST
    ),
    errors.StreamNotFound: WireStatus(
        code_pb2.NOT_FOUND, pb.Error.REASON_STREAM_NOT_FOUND, pb.Error.ACTION_STREAM_LOST
    ),
    errors.StreamExists: WireStatus(
        code_pb2.ALREADY_EXISTS, pb.Error.REASON_STREAM_EXISTS, pb.Error.ACTION_STREAM_LOST
    ),
    errors.ModelMismatch: WireStatus(
        code_pb2.FAILED_PRECONDITION, pb.Error.REASON_MODEL_MISMATCH, pb.Error.ACTION_STREAM_LOST
    ),
    errors.TooManyStreams: WireStatus(
        code_pb2.RESOURCE_EXHAUSTED, pb.Error.REASON_TOO_MANY_STREAMS, pb.Error.ACTION_RETRY
    ),
    errors.TakenOver: WireStatus(code_pb2.ABORTED, pb.Error.REASON_TAKEN_OVER, pb.Error.ACTION_STREAM_LOST),
    errors.StreamExpired: WireStatus(code_pb2.NOT_FOUND, pb.Error.REASON_STREAM_EXPIRED, pb.Error.ACTION_STREAM_LOST),
    errors.StateLost: WireStatus(code_pb2.DATA_LOSS, pb.Error.REASON_STATE_LOST, pb.Error.ACTION_STREAM_LOST),
    errors.CheckpointBroken: WireStatus(
        code_pb2.DATA_LOSS, pb.Error.REASON_STATE_UNREADABLE, pb.Error.ACTION_STREAM_LOST
    ),
    errors.StoreUnavailable: WireStatus(code_pb2.UNAVAILABLE, pb.Error.REASON_STORE_UNAVAILABLE, pb.Error.ACTION_RETRY),
    errors.Unauthenticated: WireStatus(
        code_pb2.UNAUTHENTICATED, pb.Error.REASON_UNAUTHENTICATED, pb.Error.ACTION_STREAM_LOST
    ),
    errors.PermissionDenied: WireStatus(
        code_pb2.PERMISSION_DENIED, pb.Error.REASON_PERMISSION_DENIED, pb.Error.ACTION_STREAM_LOST
    ),
    errors.Stopping: WireStatus(code_pb2.UNAVAILABLE, pb.Error.REASON_STOPPING, pb.Error.ACTION_REOPEN),
}
# Errors that go away after a while.
RETRYABLE = (
    errors.ParkedAgain,
    errors.Overloaded,
    errors.StepsLimited,
    errors.OpensLimited,
    errors.StoreBehind,
    errors.StoreUnavailable,
    errors.TooManyStreams,
)
# An error without an entry may go away after a reopen.
UNKNOWN = WireStatus(code_pb2.INTERNAL, pb.Error.REASON_UNSPECIFIED, pb.Error.ACTION_REOPEN)


def wire_status(error: errors.TidegateError, *, of_timestep: bool) -> WireStatus:
    """How an error appears on the wire.

    `of_timestep` tells that it refuses one timestep, not a stream, a block or a call.
    """
    for kind in type(error).__mro__:
        if kind in TABLE:
            meaning = TABLE[kind]
            break
    else:
        meaning = UNKNOWN
    if meaning.action == pb.Error.ACTION_DROP and not of_timestep:
        return meaning._replace(action=pb.Error.ACTION_STREAM_LOST)
    return meaning


def error_message(error: errors.TidegateError) -> str:
    """The message of an error, cut to the length that a status allows."""
    text = str(error)
    if len(text) <= ERROR_MESSAGE_BYTES_MAX and text.isascii():
        return text
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= ERROR_MESSAGE_BYTES_MAX:
        return encoded.decode()
    return encoded[: ERROR_MESSAGE_BYTES_MAX - 3].decode(errors="ignore") + "..."


def next_step_of(error: errors.TidegateError) -> int:
    """The number of the timestep that the stream of an error expects next; 0 when the error does not know it."""
    if isinstance(error, errors.StreamExpired):
        return error.step + 1
    if isinstance(error, errors.StepGap):
        return error.expected
    return error.kept_step + 1 if isinstance(error, errors.StateLost) else 0


async def abort(context: Any, error: errors.TidegateError) -> NoReturn:
    """Ends a call with an error: its code, its message, and google.rpc details for programs."""
    code, reason, action = wire_status(error, of_timestep=isinstance(error, errors.TimestepRefused))
    if isinstance(error, errors.StepGap):  # a unary call has nothing to reopen
        action = pb.Error.ACTION_STREAM_LOST
    info = error_details_pb2.ErrorInfo(reason=reason_name(reason), domain=DOMAIN)
    info.metadata["action"] = action_name(action)
    if next_step := next_step_of(error):
        info.metadata["next_step"] = str(next_step)
    details: list[any_pb2.Any] = [_pack(info)]
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error_message(error))
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, RETRYABLE):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(_pack(retry))
    status = status_pb2.Status(code=code, message=error_message(error), details=details)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
