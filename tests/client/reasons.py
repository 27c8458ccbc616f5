"""Errors as a server sends them, by the name of their reason."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tidegate.rpc.names import action_name
from tidegate.rpc.status import TABLE, UNKNOWN, WireStatus
from tidegate.v1 import tidegate_pb2 as pb

BY_REASON: Mapping[int, WireStatus] = {meaning.reason: meaning for meaning in TABLE.values()}


def action_of(reason: str) -> str:
    """The action that belongs to a reason, by their names; empty for a reason that there is not."""
    if f"REASON_{reason}" not in pb.Error.Reason.keys():  # noqa: SIM118 - no mapping
        return ""
    if reason == "STEP_GAP":  # of a single call, which has nothing to open again
        return "STREAM_LOST"
    return action_name(BY_REASON.get(pb.Error.Reason.Value(f"REASON_{reason}"), UNKNOWN).action)


def error_of(reason: str | pb.Error, *, retry_after_ms: int = 0, **more: Any) -> pb.Error:
    """An error with the code and the action that belong to its reason."""
    if isinstance(reason, pb.Error):
        return reason
    number = pb.Error.Reason.Value(f"REASON_{reason}")
    meaning = BY_REASON.get(number, UNKNOWN)
    more = {"message": f"{reason} it is", "action": meaning.action, "code": meaning.code, **more}
    if retry_after_ms:
        more["retry_after"] = timedelta(milliseconds=retry_after_ms)
    return pb.Error(reason=number, **more)
