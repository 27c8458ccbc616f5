"""Who stands at the door: a clear answer to whoever comes when descriptors are used up.

Each connection takes one. Without a bound of ours, gRPC lets a connection that it has no descriptor for hang in silence.
Between that and plenty stand, in this order: a warning in the log, new calls that end RESOURCE_EXHAUSTED, and new connections
that are closed at once. Calls on the connections that are there take none: a bound on calls would turn away gateways with
thousands of them on one connection, and would not know of connections that have none.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from serving.runtime.descriptors import limit, used

log = logging.getLogger("tidegate.doorkeeper")

# What is not for gRPC's connections: models, the store and its pool, the log, scrapes. A server that is idle has 40.
OWN = 100
# The shares of its connections from which on the log warns, and new calls are refused; the warning is over below the third.
# What lies above the second is for connections that come only to be told that there are too many.
WARN_FROM, REFUSE_FROM, WELL_BELOW = 0.9, 0.95, 0.8
# How often that is looked at, in seconds: a thousand clients do not come in less.
WATCH_SECONDS = 0.25
# A client whose call ends while it writes its first message may be told INTERNAL by its own library: it is let finish that,
# and most write it at once.
FIRST_MESSAGE_SECONDS = 1.0
# Whoever asks whether the server is well is to be told that it is.
HEALTH = "/grpc.health.v1.Health/"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Ends new calls RESOURCE_EXHAUSTED while descriptors are nearly used up, but for questions about health.

    `connections_max` is how many connections gRPC may have. Say `begin` when the server is ready, and run `watch`.
    """

    def __init__(self) -> None:
        most = limit()
        self.connections_max = max(most - OWN, most // 2)
        self._own = used()

    def begin(self) -> None:
        """What is open now is the server's own."""
        self._own = used()

    async def watch(self) -> None:
        """Warns in the log when descriptors are nearly used up, until cancelled."""
        warned = False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            share = self._share()
            if not warned and share >= WARN_FROM:
                warned = True
                log.warning(
                    "%d of %d descriptors are used, one a connection; new calls are refused at %d: allow more"
                    " (docker run --ulimit nofile=N, systemd's LimitNOFILE=N), or have clients share connections",
                    used(),
                    limit(),
                    self._own + REFUSE_FROM * self.connections_max,
                )
            elif warned and share < WELL_BELOW:
                warned = False
                log.info("%d of %d descriptors are used, which is well again", used(), limit())

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Gives who answers a call."""
        if self._share() < REFUSE_FROM or handler_call_details.method.startswith(HEALTH):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)  # whatever the call is: its messages are bytes

    def _share(self) -> float:
        return (used() - self._own) / self.connections_max


async def _refuse(requests: AsyncIterator[bytes], context: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            await anext(requests, None)
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the server has {limit()} descriptors, one a connection, and nearly all are used; try again later, or elsewhere",
    )
