"""What the three clients share: the channel, what the end of a call means, and when to try again. See docs/protocol.md."""

import math
import random
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # where the generated code is; yours may be elsewhere

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc

__all__ = [
    "CALL_S",
    "CHANNEL",
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
]
CALL_S = 10.0  # how long an open, or a single call, may take
BACKOFF_FIRST_S, BACKOFF_MAX_S, GIVE_UP_S = 0.05, 5.0, 60.0
# What a status without ErrorInfo may be that the network, a proxy or gRPC itself has made: try again.
BREAKS = {"OK", "UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


class StreamLost(Exception):
    """Going on would lose or mix up something, or never succeed: a person has to look."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Refused(Exception):
    """One timestep was dropped; the stream goes on, and the next timestep takes its number."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Ending(NamedTuple):
    """Why a call ended, and what to do about it: the name of an `Error.Action`."""

    reason: str
    action: str
    message: str
    retry_after_s: float = 0.0


def ending_of(error: grpc.RpcError) -> Ending:
    """Reads google.rpc.ErrorInfo and RetryInfo; a status that has none was not made by Tidegate."""
    status, info, retry = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(retry)
    code, message = error.code().name, error.details() or ""
    if info.domain == "tidegate.v1":
        return Ending(info.reason, info.metadata["action"], message, retry.retry_delay.ToTimedelta().total_seconds())
    again = code in BREAKS and "larger than max" not in message
    return Ending(code, "REOPEN" if again else "STREAM_LOST", message)


def ending_of_timestep(error: pb.Error) -> Ending:
    """Why a timestep was refused, and what to do about it. What this client does not know is no reason to go on."""
    reasons, actions = pb.Error.Reason, pb.Error.Action
    reason = (
        reasons.Name(error.reason).removeprefix("REASON_") if error.reason in reasons.values() else str(error.reason)
    )
    action = actions.Name(error.action).removeprefix("ACTION_") if error.action in actions.values() else "STREAM_LOST"
    return Ending(reason, action, error.message, error.retry_after.ToTimedelta().total_seconds())


class Retry:
    """When to try again: at once, then after a random wait that doubles, until nothing has come for a minute."""

    def __init__(self) -> None:
        self.progress()

    def progress(self) -> None:
        """A prediction came that somebody waited for, or a new one is waited for."""
        self._tries, self._until = 0, time.monotonic() + GIVE_UP_S

    def after(self, ending: Ending) -> float:
        """How many seconds to wait; raises StreamLost when trying again is of no use."""
        if ending.action not in ("RETRY", "REOPEN"):
            raise StreamLost(ending.reason, ending.message)
        if time.monotonic() > self._until:
            raise StreamLost(ending.reason, f"tried for {GIVE_UP_S:g} s: {ending.message}")
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (self._tries - 1)) if self._tries else 0.0
        self._tries += 1
        return max(random.uniform(0, bound), ending.retry_after_s * random.uniform(1, 1.5))


def pack(line: str) -> bytes:
    """A line of comma-separated numbers as float32; an empty one is missing."""
    values = [float(word) if word.strip() else math.nan for word in line.rstrip("\n").split(",")]
    return struct.pack(f"<{len(values)}f", *values)


def show(prediction: pb.Prediction) -> None:
    """Writes the number and the packed outputs of a prediction."""
    print(prediction.step, b"".join(prediction.outputs).hex(), flush=True)
