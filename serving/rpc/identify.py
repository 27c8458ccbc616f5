"""Finds out who makes a call."""

from typing import Any

from tidegate.core.access import Caller
from tidegate.rpc.backend import Access

HEADER = "authorization"


def identify(access: Access, context: Any) -> Caller:
    """The caller of a call, by its first `authorization` header. Raises Unauthenticated."""
    for name, value in context.invocation_metadata() or ():
        if name == HEADER:
            return access.identify(value)
    return access.identify("")
