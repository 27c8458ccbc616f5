"""Finds out who makes a call."""

from typing import Any

from tidegate.core.access import Caller
from tidegate.core.errors import TidegateError
from tidegate.rpc.backend import Access
from tidegate.rpc.status import abort

HEADER = "authorization"


def identify(access: Access, context: Any) -> Caller:
    """The caller of a call, by its first `authorization` header. Raises Unauthenticated."""
    for name, value in context.invocation_metadata() or ():
        if name == HEADER:
            return access.identify(value)
    return access.identify("")


async def identify_or_abort(access: Access, context: Any) -> Caller:
    """The caller of a call. Ends the call when nobody knows."""
    try:
        return identify(access, context)
    except TidegateError as error:
        await abort(context, error)
