"""The names of reasons and actions, without the prefix of their enum, as google.rpc.ErrorInfo has them."""

from typing import Any

from tidegate.v1 import tidegate_pb2 as pb


def reason_name(reason: int) -> str:
    """A reason, for example "TAKEN_OVER"; its number when this version does not know it."""
    return _name(pb.Error.Reason, reason, "REASON_")


def action_name(action: int) -> str:
    """An action, for example "RETRY"; its number when this version does not know it."""
    return _name(pb.Error.Action, action, "ACTION_")


def _name(enum: Any, number: int, prefix: str) -> str:
    return str(enum.Name(number)).removeprefix(prefix) if number in enum.values() else str(number)
