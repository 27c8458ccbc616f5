"""Refuses calls and connections before file descriptors run out.

Each connection takes a descriptor. Without a limit, gRPC lets a connection for which it has no descriptor hang without
an error. As descriptors run out, three things happen in this order: a warning is logged, new calls end
RESOURCE_EXHAUSTED, and new connections are closed at once. Calls on existing connections take no descriptor. A limit on
calls would refuse gateways with thousands of calls on one connection, and would not count connections without calls.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from tidegate.runtime.descriptors import limit, used

log = logging.getLogger("tidegate.connections")

# Descriptors that are not for gRPC's connections: models, the store and its pool, the log, scrapes. An idle server has
# 40.
RESERVED_DESCRIPTORS = 100
# Fractions of the connections: from the first on a warning is logged, from the second on new calls are refused, and
# below the third all is well again. The connections above the second are for clients that learn that there are too
# many.
WARN_FROM, REFUSE_FROM, WELL_BELOW = 0.9, 0.95, 0.8
# How often this is checked, in seconds: a thousand clients do not connect within that time.
WATCH_SECONDS = 0.25
# If a call ends while its client writes the first message, the client's library may report INTERNAL. So the server
# waits for that message, which most clients send at once.
FIRST_MESSAGE_SECONDS = 1.0
# Health checks are always answered.
HEALTH = "/grpc.health.v1.Health/"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ConnectionLimiter(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Ends new calls with RESOURCE_EXHAUSTED while descriptors are nearly used up, except health checks.

    `connections_max` is how many connections gRPC may have. Call `set_baseline` when the server is ready, and run
    `run`.
    """

    def __init__(self) -> None:
        most = limit()
        self.connections_max = max(most - RESERVED_DESCRIPTORS, most // 2)
        self._baseline = used()

    def set_baseline(self) -> None:
        """Counts the descriptors that are open now as the server's own."""
        self._baseline = used()

    async def run(self) -> None:
        """Logs a warning when descriptors are nearly used up, until cancelled."""
        warned = False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            share = self._usage()
            if not warned and share >= WARN_FROM:
                warned = True
                log.warning(
                    "%d of %d descriptors are used, one a connection; new calls are refused at %d: allow more"
                    " (docker run --ulimit nofile=N, systemd's LimitNOFILE=N), or have clients share connections",
                    used(),
                    limit(),
                    self._baseline + REFUSE_FROM * self.connections_max,
                )
            elif warned and share < WELL_BELOW:
                warned = False
                log.info("%d of %d descriptors are used, back to normal", used(), limit())

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call."""
        if self._usage() < REFUSE_FROM or handler_call_details.method.startswith(HEALTH):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)  # works for every method: messages are bytes here

    def _usage(self) -> float:
        return (used() - self._baseline) / self.connections_max


async def _refuse(requests: AsyncIterator[bytes], context: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            await anext(requests, None)
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the server has {limit()} descriptors, one a connection, and nearly all are used; try again later, or elsewhere",
    )
