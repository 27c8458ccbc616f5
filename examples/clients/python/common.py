"""What the three clients share: channel options, errors and the retry policy. See docs/protocol.md."""

import math
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))  # the path of the generated code

from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

__all__ = [
    "BACKOFF_FIRST_S",
    "CALL_S",
    "CHANNEL",
    "ENVELOPE_BYTES",
    "Ending",
    "Refused",
    "Retry",
    "StreamLost",
    "ending_of",
    "ending_of_timestep",
    "pack",
    "pb",
    "pb_grpc",
    "show",
]

CHANNEL = [
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),
]
CALL_S = 10.0  # the deadline of an open and of a unary call
BACKOFF_FIRST_S, BACKOFF_MAX_S, GIVE_UP_S = 0.05, 5.0, 60.0
ENVELOPE_BYTES = 64  # the largest size of a request without its values
# Codes of a status without ErrorInfo, which comes from the network, a proxy or gRPC, after which a client tries again.
BREAKS = {"OK", "UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


class StreamLost(Exception):
    """To continue would lose data, mix up data, or never succeed. A person must decide."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Refused(Exception):
    """A timestep was dropped. The stream continues, and the next timestep takes its number."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Ending(NamedTuple):
    """Why a call ended, and what to do about it: the name of an `Error.Action`."""

    reason: str
    action: str
    message: str
    retry_after_s: float = 0.0

    def wait_s(self) -> float:
        """The wait that the server asks for, with up to half of it more, so that clients do not all come at once."""
        return self.retry_after_s * random.uniform(1, 1.5)


def ending_of(error: grpc.RpcError) -> Ending:
    """Reads google.rpc.ErrorInfo and RetryInfo. A status without ErrorInfo does not come from Tidegate."""
    status, info, retry = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry)
    code, message, retry_after_s = error.code().name, error.details() or "", seconds(retry.retry_delay)
    if info.domain == "tidegate.v1":
        return Ending(info.reason, info.metadata["action"], message, retry_after_s)
    retryable = code in BREAKS and "larger than max" not in message
    return Ending(code, "REOPEN" if retryable else "STREAM_LOST", message, retry_after_s)


def ending_of_timestep(error: pb.Error) -> Ending:
    """Why a timestep was refused, and what to do about it. An unknown action means that the stream is lost."""
    reason, action = name(pb.Error.Reason, error.reason), name(pb.Error.Action, error.action)
    return Ending(
        reason.removeprefix("REASON_"), action.removeprefix("ACTION_"), error.message, seconds(error.retry_after)
    )


def name(names: Any, number: int) -> str:
    """The name of an enum's value, or its number when this client does not know it."""
    return names.Name(number) if number in names.values() else str(number)


def seconds(duration: Duration) -> float:
    """A duration of a message in seconds; 0 when it is absent."""
    return duration.ToTimedelta().total_seconds()


class Retry:
    """The retry policy: at once, then after random delays that double, for up to a minute without progress."""

    def __init__(self) -> None:
        self._opened_at = math.inf
        self.progress()

    def progress(self) -> None:
        """A caller got a prediction, or began to wait for one: the backoff starts again."""
        self._tries = 0
        self.idle()

    def idle(self) -> None:
        """Nothing is pending, so there is no deadline. The backoff goes on, to protect a server that fails at once."""
        self._until = math.inf

    def opened(self) -> None:
        """A call is open. When it lives for a while, the backoff starts again."""
        self._opened_at = time.monotonic()

    def delay(self, ending: Ending) -> float:
        """The delay before the next try, in seconds; raises StreamLost when no try is left."""
        if ending.action not in ("RETRY", "REOPEN"):
            raise StreamLost(ending.reason, ending.message)
        now = time.monotonic()
        # The minute starts with the first failure, also after an hour without timesteps.
        self._until = min(self._until, now + GIVE_UP_S)
        if now >= self._until:
            raise StreamLost(ending.reason, f"tried for {GIVE_UP_S:g} s: {ending.message}")
        if now - self._opened_at >= BACKOFF_MAX_S:
            self._tries = 0
        self._opened_at = math.inf
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (self._tries - 1)) if self._tries else 0.0
        self._tries += 1
        return max(random.uniform(0, bound), ending.wait_s())


def pack(line: str) -> bytes:
    """A line of comma-separated numbers as float32; an empty one is missing."""
    values = [float(word) if word.strip() else math.nan for word in line.rstrip("\n").split(",")]
    return struct.pack(f"<{len(values)}f", *values)


def show(prediction: pb.Prediction) -> None:
    """Writes the number and the packed outputs of a prediction."""
    print(prediction.step, b"".join(prediction.outputs).hex(), flush=True)
