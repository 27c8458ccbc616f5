"""The errors of the client, and how they are read from the wire.

    ClientError              the base class; `reason` is the name of an Error.Reason of the protocol or of a gRPC status code
    ├── InvalidArgument        an argument of a call is invalid; `field` names it. Also a ValueError
    ├── WrongOrder             a call at the wrong time: after the end, or twice
    ├── TimestepRefused        a timestep was not applied; the stream stays usable, and later timesteps move up by one
    │   ├── InvalidTimestep      its values or its number are wrong: correct it. Also an InvalidArgument
    │   ├── StepGap              its number is too high: `next_step` says where to continue
    │   ├── Overloaded           the server had no room for it until the client's time-out
    │   ├── StoreUnavailable     the server could not store it until the client's time-out
    │   └── ModelFailed          the model failed on it
    ├── AnswerLost             a timestep was applied, but its prediction is lost; the stream stays usable
    ├── StreamRefused          a stream could not be opened, or a unary request about it failed
    │   ├── ModelNotFound
    │   ├── ModelMismatch        the stream runs under another model or version
    │   ├── StreamNotFound
    │   ├── StreamExpired        it was idle for too long: `next_step` says where it was
    │   ├── StreamExists
    │   ├── TooManyStreams       the server had no room for it until the client's time-out
    │   ├── Unauthenticated
    │   └── PermissionDenied
    ├── WrongProcess           the client belongs to the parent of this forked process: make another one here
    └── StreamLost             the stream object can no longer be used; open the stream again to continue
        ├── TakenOver            another client has opened it: find out which one before you open it again
        ├── ValuesDiffer         the server applied other values under the same number
        ├── DataLost             the server has lost timesteps that it had acknowledged: `next_step` says where it is
        ├── Diverged             the server's history is not the one that was delivered
        └── ServerUnavailable    the server was not reached until the client's time-out

The docstring of each class says what to do. The client itself follows the `Error.Action` that the server sends with each error; the
reason only chooses the class.
"""

import logging
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from tidegate.rpc.names import reason_name
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# `google.rpc.ErrorInfo.domain` of this service. Errors with another domain come from elsewhere.
DOMAIN: str = pb.DESCRIPTOR.package
# The names in `google.rpc.ErrorInfo`.
ACTIONS: Mapping[str, pb.Error.Action] = {
    "RETRY": pb.Error.ACTION_RETRY,
    "DROP": pb.Error.ACTION_DROP,
    "REOPEN": pb.Error.ACTION_REOPEN,
    "STREAM_LOST": pb.Error.ACTION_STREAM_LOST,
}
# After these actions the client tries again.
RETRY_ACTIONS = (pb.Error.ACTION_RETRY, pb.Error.ACTION_REOPEN)


class ClientError(Exception):
    """The base class of all errors of the client.

    Attributes:
        reason: the name of an `Error.Reason` of the protocol, or of a gRPC status code.
        field: the invalid argument; empty when there is none.
        next_step: the number of the timestep that the stream expects next; 0 when it is unknown.
        retry_after_s: the delay that the server asks for before the next try, in seconds; 0 when it asks for none.
        action: the `Error.Action` of the server, which the client has followed.

    """

    action: pb.Error.Action = pb.Error.ACTION_STREAM_LOST

    def __init__(
        self,
        message: str,
        reason: str = "",
        *,
        field: str = "",
        next_step: int = 0,
        retry_after_s: float = 0.0,
        action: pb.Error.Action | None = None,
    ) -> None:
        self.reason = reason
        self.field = field
        self.next_step = next_step
        self.retry_after_s = retry_after_s
        if action is not None:
            self.action = action
        super().__init__(message)


class InvalidArgument(ClientError, ValueError):
    """An argument of a call is invalid. Nothing has changed. `field` names the argument, and the message says what was expected."""

    def __init__(self, message: str, reason: str = "INVALID_FIELD", **more: Any) -> None:
        super().__init__(message, reason, **more)


class WrongOrder(ClientError):
    """A call came at the wrong time: after the client was closed, or something was entered twice."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "WRONG_ORDER")


class WrongProcess(ClientError):
    """The client belongs to the parent of this forked process. Make another one here."""

    def __init__(self, made_in: int, used_in: int) -> None:
        super().__init__(
            f"the client was made in process {made_in} and is used in process {used_in}, which was forked from it; a connection "
            "does not survive a fork: make a client in each process, or start processes by spawn or forkserver",
            "WRONG_PROCESS",
        )


class TimestepRefused(ClientError):
    """A timestep was not applied. The stream stays usable, and the timesteps sent after it move up by one."""


class InvalidTimestep(TimestepRefused, InvalidArgument):
    """Its values have the wrong width, are not finite numbers, or are missing where the model cannot have that; or its number is wrong.

    Correct it. It is also the error of a request for an old answer whose values are not those that were applied.
    """


class StepGap(TimestepRefused):
    """Its number is too high. Send the timesteps from `next_step` on."""


class Overloaded(TimestepRefused):
    """The server had no room for it until the client's time-out. Send it again after `retry_after_s`."""


class StoreUnavailable(TimestepRefused):
    """The server could not store it until the client's time-out. Send it again after `retry_after_s`."""


class ModelFailed(TimestepRefused):
    """The model failed on it, or its state was not finite. Check its values."""


class AnswerLost(ClientError):
    """A timestep was applied, but its prediction is lost. Do not send it again; the stream stays usable."""


class StreamRefused(ClientError):
    """A stream could not be opened, or a unary request about it failed."""


class ModelNotFound(StreamRefused):
    """The model is not served. The message lists the served ones."""


class ModelMismatch(StreamRefused):
    """The stream runs under another model or version. Open it under its own, or open another stream."""


class StreamNotFound(StreamRefused):
    """The stream does not exist. Open it without "must_exist" to begin it."""


class StreamExpired(StreamRefused):
    """The stream was idle for too long, and its state was deleted. Open it with "must_be_new" to begin again."""


class StreamExists(StreamRefused):
    """The stream exists. Open it without "must_be_new" to resume it."""


class TooManyStreams(StreamRefused):
    """The server was at its limit of streams until the client's time-out. Try again after `retry_after_s`, or at another server."""


class Unauthenticated(StreamRefused):
    """The server does not accept the client's token. Give it a valid one."""


class PermissionDenied(StreamRefused):
    """The client's token is valid, and does not allow this. Use a token that does."""


class StreamLost(ClientError):
    """The stream object can no longer be used. Open the stream again to continue: its `next_step` says where."""


class TakenOver(StreamLost):
    """Another client has opened the stream. Find out which one before you open it again, as that would take it back."""


class ValuesDiffer(StreamLost):
    """The server applied other values under the same number. Two clients write to the stream, or one has lost count: find out which."""


class DataLost(StreamLost):
    """The server has lost timesteps that it had acknowledged. Open the stream again and send from its `next_step` on."""


class Diverged(StreamLost):
    """The server's history is not the one that was delivered. Open the stream again to continue with the server's."""


class ServerUnavailable(StreamLost):
    """The server was not reached, or was stopping, until the client's time-out."""

    action = pb.Error.ACTION_REOPEN


# The classes of reasons for which a timestep is refused, and the stream stays usable.
TIMESTEP_ERRORS: Mapping[str, type[TimestepRefused]] = {
    "WRONG_WIDTH": InvalidTimestep,
    "NOT_FINITE": InvalidTimestep,
    "INVALID_FIELD": InvalidTimestep,
    "STEP_GAP": StepGap,
    "OVERLOADED": Overloaded,
    "TOO_MANY_STREAMS": Overloaded,  # a parked stream that its timestep could not wake
    "STORE_UNAVAILABLE": StoreUnavailable,
    "MODEL_FAILED": ModelFailed,
}
# The classes of reasons in all other places.
STREAM_ERRORS: Mapping[str, type[ClientError]] = {
    "INVALID_FIELD": InvalidArgument,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_MISMATCH": ModelMismatch,
    "STREAM_NOT_FOUND": StreamNotFound,
    "STREAM_EXPIRED": StreamExpired,
    "STREAM_EXISTS": StreamExists,
    "TOO_MANY_STREAMS": TooManyStreams,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "TAKEN_OVER": TakenOver,
    "VALUES_DIFFER": ValuesDiffer,
    "STATE_LOST": DataLost,
    "STATE_UNREADABLE": DataLost,
}
# The classes of status codes without details of this service: they come from gRPC, a proxy or the network. All others are final.
# RESOURCE_EXHAUSTED is gRPC's limit of calls.
STATUS_ERRORS: Mapping[str, type[ClientError]] = {
    "ABORTED": TakenOver,
    "DATA_LOSS": DataLost,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    **dict.fromkeys(
        ("UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
        ServerUnavailable,
    ),
}
# gRPC's message for a request above its size limit; sending it again cannot help.
TOO_LARGE = "larger than max"
# grpc's message when a write meets the end of the call before the status was read. It then never shows the status.
WRITE_FAILED = "Internal error from Core"


def timestep_error(error: pb.Error) -> ClientError:
    """The error for a refused timestep: a TimestepRefused when the stream stays usable."""
    if error.action in (pb.Error.ACTION_RETRY, pb.Error.ACTION_DROP):
        return _make_error(error, TIMESTEP_ERRORS.get(reason_name(error.reason), TimestepRefused))
    return stream_error(error, StreamLost)


def stream_error(error: pb.Error, default: type[ClientError]) -> ClientError:
    """The error for a stream that was not opened or has ended; `default` is for unknown reasons."""
    return _make_error(error, _error_class(reason_name(error.reason), error.action, default))


def _make_error(error: pb.Error, kind: type[ClientError]) -> ClientError:
    name = reason_name(error.reason)
    return kind(
        # The server leaves the message out after the first 256 rows of an answer.
        error.message or f"{error.field or 'stream'}: refused as {name}, like others of its message before it",
        name,
        field=error.field,
        next_step=error.next_step,
        retry_after_s=error.retry_after.ToTimedelta().total_seconds(),
        action=error.action,
    )


def _error_class(reason: str, action: int, default: type[ClientError]) -> type[ClientError]:
    return STREAM_ERRORS.get(reason, ServerUnavailable if action in RETRY_ACTIONS else default)


def status_error(
    code: grpc.StatusCode,
    details: str | None,
    trailers: Any,
    default: type[ClientError] = StreamRefused,
    *,
    of_timestep: bool = False,
) -> ClientError:
    """The error for the status of a call; `default` is for unknown ones. `of_timestep`: the call was for one timestep."""
    status = status_pb2.Status()
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry, request = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry) or detail.Unpack(request)
    message = details or f"the server ended the call with {code.name}"
    if info.domain != DOMAIN:  # from gRPC, a proxy or the network
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in message:
            message = f"a message was too long: {message}; send less at once, or let the server read more (--message-bytes-max)"
            return default(message, code.name)
        if message == WRITE_FAILED:
            message = "the call ended while a message was being written"
        return STATUS_ERRORS.get(code.name, default)(message, code.name)
    action = ACTIONS.get(info.metadata.get("action", ""), pb.Error.ACTION_UNSPECIFIED)
    kind = _error_class(info.reason, action, default)
    if of_timestep and (action in (pb.Error.ACTION_DROP, *RETRY_ACTIONS) or info.reason == "STEP_GAP"):
        kind = TIMESTEP_ERRORS.get(info.reason, TimestepRefused if action == pb.Error.ACTION_DROP else kind)
    return kind(
        message,
        info.reason,
        field=next((violation.field for violation in request.field_violations), ""),
        next_step=int(info.metadata.get("next_step", 0)),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds(),
        action=action,
    )


def diverged_error(what: str, step: int) -> Diverged:
    """The error for a server whose history differs from the delivered one after this timestep."""
    history = f"the answers delivered since timestep {step} differ from the server's history"
    return Diverged(f"{what}: {history}; open the stream again to continue with the server's", "DIVERGED")


def bug_error(bug: Exception) -> StreamLost:
    """The error for streams that a bug of the client has ended. It is logged with its traceback."""
    log.error("the client failed; this is a bug of it", exc_info=bug)
    lost = StreamLost(f"the client failed: {bug!r}; this is a bug of it", "BUG")
    lost.__cause__ = bug
    return lost
