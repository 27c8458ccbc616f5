"""How an error looks on the wire: one table, read in both directions."""

from collections.abc import Mapping
from typing import Any, NoReturn

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core import errors

# The domain of google.rpc.ErrorInfo; with it, a reason is unique among all services a client may talk to.
DOMAIN = "tidegate"
# A status travels as metadata, of which gRPC takes 8 KB by default. The sentence is in it three times: as text, where a
# byte that is no ASCII takes three, and twice in the details, whose base64 takes four bytes for three.
SENTENCE_BYTES_MAX = 1024

# error: (gRPC code, reason). The first class that fits counts.
TABLE: Mapping[type[errors.TidegateError], tuple[int, pb.Error.Reason]] = {
    errors.WrongWidth: (code_pb2.INVALID_ARGUMENT, pb.Error.WRONG_WIDTH),
    errors.NotFinite: (code_pb2.INVALID_ARGUMENT, pb.Error.NOT_FINITE),
    errors.InvalidField: (code_pb2.INVALID_ARGUMENT, pb.Error.INVALID_FIELD),
    errors.StepGap: (code_pb2.OUT_OF_RANGE, pb.Error.STEP_GAP),
    errors.NoStepLeft: (code_pb2.INVALID_ARGUMENT, pb.Error.INVALID_FIELD),
    errors.Overloaded: (code_pb2.RESOURCE_EXHAUSTED, pb.Error.OVERLOADED),
    errors.FellAsleep: (code_pb2.RESOURCE_EXHAUSTED, pb.Error.OVERLOADED),
    errors.StoreBehind: (code_pb2.UNAVAILABLE, pb.Error.STORE_UNAVAILABLE),
    errors.ModelFailed: (code_pb2.INTERNAL, pb.Error.MODEL_FAILED),
    errors.WrongOrder: (code_pb2.FAILED_PRECONDITION, pb.Error.WRONG_ORDER),
    errors.ModelNotFound: (code_pb2.NOT_FOUND, pb.Error.MODEL_NOT_FOUND),
    errors.ModelNotNamed: (code_pb2.FAILED_PRECONDITION, pb.Error.MODEL_NOT_FOUND),
    errors.StreamNotFound: (code_pb2.NOT_FOUND, pb.Error.STREAM_NOT_FOUND),
    errors.StreamExists: (code_pb2.ALREADY_EXISTS, pb.Error.STREAM_EXISTS),
    errors.ModelMismatch: (code_pb2.FAILED_PRECONDITION, pb.Error.MODEL_MISMATCH),
    errors.TooManyStreams: (code_pb2.RESOURCE_EXHAUSTED, pb.Error.TOO_MANY_STREAMS),
    errors.TakenOver: (code_pb2.ABORTED, pb.Error.TAKEN_OVER),
    errors.StreamExpired: (code_pb2.NOT_FOUND, pb.Error.STREAM_EXPIRED),
    errors.StateLost: (code_pb2.DATA_LOSS, pb.Error.STATE_LOST),
    errors.CheckpointBroken: (code_pb2.DATA_LOSS, pb.Error.STATE_UNREADABLE),
    errors.StoreUnavailable: (code_pb2.UNAVAILABLE, pb.Error.STORE_UNAVAILABLE),
    errors.Stopping: (code_pb2.UNAVAILABLE, pb.Error.STOPPING),
}


def reason_of(error: errors.TidegateError) -> tuple[int, pb.Error.Reason]:
    """The gRPC code and the reason of an error."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return code_pb2.INTERNAL, pb.Error.REASON_UNSPECIFIED


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
    code, reason = reason_of(error)
    info = error_details_pb2.ErrorInfo(reason=pb.Error.Reason.Name(reason), domain=DOMAIN)
    if isinstance(error, errors.StreamExpired):
        info.metadata["next_step"] = str(error.step + 1)
    details: list[any_pb2.Any] = [_pack(info)]
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=sentence(error))
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, errors.TooManyStreams | errors.Overloaded | errors.StoreUnavailable):
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
