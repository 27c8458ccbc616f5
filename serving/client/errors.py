"""What a client can be told, and how it is read from the wire.

    ClientError              the root; carries `reason`, the name of an Error.Reason of the protocol or of a gRPC status code
    ├── TimestepRefused        one timestep was not applied; the stream stays usable, those behind it move up
    │   ├── InvalidTimestep      wrong width, or a value is infinite or missing: correct it
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
    │   ├── TooManyStreams
    │   └── Unauthenticated
    ├── WrongProcess           the client was made before this process was forked: make another one here
    └── StreamLost             the stream object is of no more use; open the stream again to go on
        ├── TakenOver            another client has opened it: find out which before you do
        ├── DataLost             the server has lost what it had acknowledged: `next_step` says where it is
        ├── Diverged             the server's history is not the one that was delivered
        └── ServerUnavailable    the server could not be reached for longer than this client tries

What to do is said at each.
"""

import logging
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.rpc.names import reason_name

log = logging.getLogger("tidegate.client")


class ClientError(Exception):
    """The root: catch it to catch everything below."""

    def __init__(self, message: str, reason: str = "", *, next_step: int = 0, retry_after_s: float = 0.0) -> None:
        self.reason = reason
        self.next_step = next_step
        self.retry_after_s = retry_after_s
        super().__init__(message)


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

    def __init__(
        self, message: str, reason: str, *, field: str = "", next_step: int = 0, retry_after_s: float = 0.0
    ) -> None:
        self.field = field
        super().__init__(message, reason, next_step=next_step, retry_after_s=retry_after_s)


class InvalidTimestep(TimestepRefused):
    """Its values have the wrong width, or one is infinite, or missing where the model cannot have that. Correct it."""


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
    """The server holds as many streams as it may. Try again after `retry_after_s`, or elsewhere."""


class Unauthenticated(StreamRefused):
    """The server does not know this client. Give it a token that the server knows."""


class StreamLost(ClientError):
    """The stream object is of no more use. Open the stream again to go on: its `next_step` says where."""


class TakenOver(StreamLost):
    """Another client has opened the stream. Opening it again would take it back: find out who it is first."""


class DataLost(StreamLost):
    """The server has lost what it had acknowledged. Open the stream again and send from its `next_step` on."""


class Diverged(StreamLost):
    """The server's history is not the one that was delivered. Open the stream again to go on with the server's."""


class ServerUnavailable(StreamLost):
    """The server could not be reached, or was stopping, for as long as this client tries."""


IN_BAND: Mapping[int, type[TimestepRefused]] = {
    pb.Error.REASON_WRONG_WIDTH: InvalidTimestep,
    pb.Error.REASON_NOT_FINITE: InvalidTimestep,
    pb.Error.REASON_INVALID_FIELD: InvalidTimestep,
    pb.Error.REASON_STEP_GAP: StepGap,
    pb.Error.REASON_OVERLOADED: Overloaded,
    pb.Error.REASON_TOO_MANY_STREAMS: Overloaded,  # a parked stream that its timestep could not wake
    pb.Error.REASON_STORE_UNAVAILABLE: StoreUnavailable,
    pb.Error.REASON_MODEL_FAILED: ModelFailed,
}
# By the name of a reason, and where the server gave none, by the name of the gRPC code.
AT_THE_END: Mapping[str, type[ClientError]] = {
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_MISMATCH": ModelMismatch,
    "STREAM_NOT_FOUND": StreamNotFound,
    "STREAM_EXPIRED": StreamExpired,
    "STREAM_EXISTS": StreamExists,
    "TOO_MANY_STREAMS": TooManyStreams,
    "UNAUTHENTICATED": Unauthenticated,
    "TAKEN_OVER": TakenOver,
    "ABORTED": TakenOver,
    "STATE_LOST": DataLost,
    "STATE_UNREADABLE": DataLost,
    "DATA_LOSS": DataLost,
    "STOPPING": ServerUnavailable,
    "OVERLOADED": ServerUnavailable,
    "STORE_UNAVAILABLE": ServerUnavailable,
    # What a connection, a proxy or a server that falls over makes of a call. RESOURCE_EXHAUSTED without a reason is
    # gRPC's own limit on calls.
    "OK": ServerUnavailable,
    "UNAVAILABLE": ServerUnavailable,
    "INTERNAL": ServerUnavailable,
    "UNKNOWN": ServerUnavailable,
    "CANCELLED": ServerUnavailable,
    "DEADLINE_EXCEEDED": ServerUnavailable,
    "RESOURCE_EXHAUSTED": ServerUnavailable,
}


def refusal_of(error: pb.Error) -> TimestepRefused:
    """The typed error for the refusal of a timestep."""
    kind = IN_BAND.get(error.reason, TimestepRefused)
    return kind(
        _message_of(error),
        reason_name(error.reason),
        field=error.field,
        next_step=error.next_step,
        retry_after_s=error.retry_after.ToTimedelta().total_seconds(),
    )


def ending_of(error: pb.Error) -> ClientError:
    """The typed error for one stream of many that was not opened, or has ended."""
    name = reason_name(error.reason)
    return AT_THE_END.get(name, StreamRefused)(
        _message_of(error),
        name,
        next_step=error.next_step,
        retry_after_s=error.retry_after.ToTimedelta().total_seconds(),
    )


def is_ending(error: pb.Error) -> bool:
    """Whether the refusal of a timestep tells that its stream, or the call, has come to an end."""
    return error.reason not in IN_BAND and reason_name(error.reason) in AT_THE_END


def _message_of(error: pb.Error) -> str:
    """What the server says; where it has said so for hundreds of rows of a message already, what it means."""
    if error.message:
        return error.message
    return f"{error.field or 'stream'}: refused as {reason_name(error.reason)}, like others of its message before it"


# What grpc.aio puts over the status that the server has sent, when a write meets a call that has just ended: the reason is
# lost, but that the server has gone is sure.
WRITE_FAILED = "Internal error from Core"


def error_of(code: grpc.StatusCode, details: str | None, trailers: Any) -> ClientError:
    """The typed error for how a call ended."""
    if code is grpc.StatusCode.INTERNAL and details == WRITE_FAILED:
        code, details = grpc.StatusCode.UNAVAILABLE, "the server ended the call while a timestep was being written"
    status = status_pb2.Status()
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry)
    kind = AT_THE_END.get(info.reason) or AT_THE_END.get(code.name, StreamRefused)
    return kind(
        details or f"the server ended the call with {code.name}",
        info.reason or code.name,
        next_step=int(info.metadata.get("next_step", 0)),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds(),
    )


def lost_by(bug: Exception) -> StreamLost:
    """The typed error for a stream that a bug of the client has ended; the log has the whole story."""
    log.error("the client failed; this is a bug of it", exc_info=bug)
    lost = StreamLost(f"the client failed: {bug!r}; this is a bug of it", "BUG")
    lost.__cause__ = bug
    return lost
