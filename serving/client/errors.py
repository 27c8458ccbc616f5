"""The errors of the client, and how they are read from the wire.

    ClientError              the root; carries `reason`, the name of an Error.Reason of the protocol or of a gRPC status code
    ├── InvalidArgument        a call was given what it cannot take; `field` names it. A ValueError too
    ├── WrongOrder             a call came when it cannot be made: after the end, or twice
    ├── TimestepRefused        one timestep was not applied; the stream stays usable, those behind it move up
    │   ├── InvalidTimestep      its values or its number are wrong: correct it. An InvalidArgument too
    │   ├── StepGap              the number that was given is ahead of the stream: `next_step` says where to go on
    │   ├── Overloaded           the server had no room for it, for longer than this client tries
    │   ├── StoreUnavailable     the server could not store, for longer than this client tries
    │   └── ModelFailed          the model failed on it
    ├── AnswerLost             one timestep was applied, but its prediction is gone; the stream stays usable
    ├── StreamRefused          the stream could not be opened, or what was asked about it could not be done
    │   ├── ModelNotFound
    │   ├── ModelMismatch        the stream runs under another model or version
    │   ├── StreamNotFound
    │   ├── StreamExpired        it was silent for too long: `next_step` says where it was
    │   ├── StreamExists
    │   ├── TooManyStreams       the server had no room for it, for longer than this client tries
    │   └── Unauthenticated
    ├── WrongProcess           the client was made before this process was forked: make another one here
    └── StreamLost             the stream object is of no more use; open the stream again to go on
        ├── TakenOver            another client has opened it: find out which before you do
        ├── ValuesDiffer         the server applied other values under a number that was sent
        ├── DataLost             the server has lost what it had acknowledged: `next_step` says where it is
        ├── Diverged             the server's history is not the one that was delivered
        └── ServerUnavailable    the server could not be reached for longer than this client tries

What to do is said at each. What the client does, the server says: each error that it tells has an `Error.Action`, which is
followed whatever the reason is; the reason only chooses the class.
"""

import logging
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from tidegate.rpc.names import reason_name
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.client")

# The domain of google.rpc.ErrorInfo is the package; another one's is not of this service.
DOMAIN: str = pb.DESCRIPTOR.package
# As google.rpc.ErrorInfo has them.
ACTIONS: Mapping[str, pb.Error.Action] = {
    "RETRY": pb.Error.ACTION_RETRY,
    "DROP": pb.Error.ACTION_DROP,
    "REOPEN": pb.Error.ACTION_REOPEN,
    "STREAM_LOST": pb.Error.ACTION_STREAM_LOST,
}
# Those after which the same is tried once more.
RETRY_ACTIONS = (pb.Error.ACTION_RETRY, pb.Error.ACTION_REOPEN)


class ClientError(Exception):
    """The root: catch it to catch everything below.

    Attributes:
        reason: the name of an `Error.Reason` of the protocol, or of a gRPC status code.
        field: the argument at fault, when one is.
        next_step: number of the timestep that the stream expects next, where it is known.
        retry_after_s: how long to wait before trying again, in seconds; 0 when the server did not say.
        action: what the server says to do about it, an `Error.Action`; the client has done so.

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
    """A call was given what it cannot take. Nothing has changed; `field` names the argument, the message says what was expected."""

    def __init__(self, message: str, reason: str = "INVALID_FIELD", **more: Any) -> None:
        super().__init__(message, reason, **more)


class WrongOrder(ClientError):
    """A call came when it cannot be made: a client was used after its end, or something was entered twice."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "WRONG_ORDER")


class WrongProcess(ClientError):
    """The client was made by the process that this one was forked from, and stays there. Make another one here."""

    def __init__(self, made_in: int, used_in: int) -> None:
        super().__init__(
            f"the client was made in process {made_in} and is used in process {used_in}, which was forked from it; a connection "
            "does not survive a fork: make a client in each process, or start processes by spawn or forkserver",
            "WRONG_PROCESS",
        )


class TimestepRefused(ClientError):
    """One timestep was not applied. The stream stays usable, and timesteps that were sent behind it move up by one."""


class InvalidTimestep(TimestepRefused, InvalidArgument):
    """Its values have the wrong width, or one is no number, infinite, or missing where the model cannot have that; or its number is wrong.

    Correct it. An old answer that is asked for again with other values than were applied is refused so too.
    """


class StepGap(TimestepRefused):
    """The number that was given is ahead of the stream. Send the timesteps from `next_step` on."""


class Overloaded(TimestepRefused):
    """The server had no room for it, for as long as this client tries. Send it again after `retry_after_s`."""


class StoreUnavailable(TimestepRefused):
    """The server could not store, for as long as this client tries. Send it again after `retry_after_s`."""


class ModelFailed(TimestepRefused):
    """The model failed on it, or made a state that is not finite. Look at its values."""


class AnswerLost(ClientError):
    """A timestep was applied, but its prediction is gone. Do not send it again; the stream stays usable."""


class StreamRefused(ClientError):
    """The stream could not be opened, or what was asked about it could not be done."""


class ModelNotFound(StreamRefused):
    """The model is not served. The message says what is."""


class ModelMismatch(StreamRefused):
    """The stream runs under another model or version. Open it under its own, or open another stream."""


class StreamNotFound(StreamRefused):
    """The stream is not known. Open it without "must_exist" to begin it."""


class StreamExpired(StreamRefused):
    """The stream was silent for too long and was forgotten. Open it with "must_be_new" to begin again."""


class StreamExists(StreamRefused):
    """The stream exists. Open it without "must_be_new" to go on with it."""


class TooManyStreams(StreamRefused):
    """The server held as many streams as it may, for as long as this client tries. Try again after `retry_after_s`, or elsewhere."""


class Unauthenticated(StreamRefused):
    """The server does not know this client. Give it a token that the server knows."""


class StreamLost(ClientError):
    """The stream object is of no more use. Open the stream again to go on: its `next_step` says where."""


class TakenOver(StreamLost):
    """Another client has opened the stream. Opening it again would take it back: find out who it is first."""


class ValuesDiffer(StreamLost):
    """The server applied other values under a number that was sent. Two clients write to the stream, or one has lost count: find out which."""


class DataLost(StreamLost):
    """The server has lost what it had acknowledged. Open the stream again and send from its `next_step` on."""


class Diverged(StreamLost):
    """The server's history is not the one that was delivered. Open the stream again to go on with the server's."""


class ServerUnavailable(StreamLost):
    """The server could not be reached, or was stopping, for as long as this client tries."""

    action = pb.Error.ACTION_REOPEN


# What a reason is called where it refuses a timestep that can be sent again or dropped.
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
# What it is called everywhere else; a server that takes part is known by these alone.
STREAM_ERRORS: Mapping[str, type[ClientError]] = {
    "INVALID_FIELD": InvalidArgument,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_MISMATCH": ModelMismatch,
    "STREAM_NOT_FOUND": StreamNotFound,
    "STREAM_EXPIRED": StreamExpired,
    "STREAM_EXISTS": StreamExists,
    "TOO_MANY_STREAMS": TooManyStreams,
    "UNAUTHENTICATED": Unauthenticated,
    "TAKEN_OVER": TakenOver,
    "VALUES_DIFFER": ValuesDiffer,
    "STATE_LOST": DataLost,
    "STATE_UNREADABLE": DataLost,
}
# What gRPC, a proxy or the network makes of a call, by the name of the code; all others are final. RESOURCE_EXHAUSTED is gRPC's own
# limit on calls.
STATUS_ERRORS: Mapping[str, type[ClientError]] = {
    "ABORTED": TakenOver,
    "DATA_LOSS": DataLost,
    "UNAUTHENTICATED": Unauthenticated,
    **dict.fromkeys(
        ("UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
        ServerUnavailable,
    ),
}
# What gRPC says of a message beyond its limit: sent again it is as long.
TOO_LARGE = "larger than max"


def timestep_error(error: pb.Error) -> ClientError:
    """The typed error for a timestep that was refused: a TimestepRefused when the stream goes on, with or without it."""
    if error.action in (pb.Error.ACTION_RETRY, pb.Error.ACTION_DROP):
        return _make_error(error, TIMESTEP_ERRORS.get(reason_name(error.reason), TimestepRefused))
    return stream_error(error, StreamLost)


def stream_error(error: pb.Error, default: type[ClientError]) -> ClientError:
    """The typed error for one stream that was not opened, or has ended; `default` for a reason that this client does not know."""
    return _make_error(error, _error_class(reason_name(error.reason), error.action, default))


def _make_error(error: pb.Error, kind: type[ClientError]) -> ClientError:
    name = reason_name(error.reason)
    return kind(
        # Where the server has said so for hundreds of rows of a message already, it says no more than the reason.
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
    """The typed error for how a call ended, by what gRPC says of it; `default` for what this client does not know.

    With `of_timestep` the call was for one timestep.
    """
    status = status_pb2.Status()
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry, request = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry) or detail.Unpack(request)
    message = details or f"the server ended the call with {code.name}"
    if info.domain != DOMAIN:  # gRPC, a proxy or the network has made this end
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in message:
            message = f"a message was too long: {message}; send less at once, or let the server read more (--message-bytes-max)"
            return default(message, code.name)
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
    """The error for a history that is not the one that was delivered, which is the same up to this timestep."""
    return Diverged(
        f"{what}: what was delivered since timestep {step} is not what the server goes on from; open the stream again to go on "
        "with the server's",
        "DIVERGED",
    )


def bug_error(bug: Exception) -> StreamLost:
    """The typed error for a stream that a bug of the client has ended; the log has the whole story."""
    log.error("the client failed; this is a bug of it", exc_info=bug)
    lost = StreamLost(f"the client failed: {bug!r}; this is a bug of it", "BUG")
    lost.__cause__ = bug
    return lost
