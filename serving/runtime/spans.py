"""Spans for OpenTelemetry: of opening, resuming and swapping a stream, and of draining the server.

The rules of this file:
1. Without a collector nothing of OpenTelemetry is imported, calls are not intercepted, and a span does nothing.
2. A timestep has no span.
3. Nobody waits for a collector: see `runtime.open_telemetry`.
4. A span carries what the log says of the event, and nothing of a call's metadata but its trace.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from tidegate.runtime.collector import find_collector
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.span import NO_SPAN, Metadata, Span

if TYPE_CHECKING:
    from tidegate.runtime.open_telemetry import OpenTelemetry  # imported when spans are wanted

log = logging.getLogger("tidegate.spans")

# How long a stopping server waits for its last spans to be sent, in seconds. A collector that is there takes
# milliseconds.
FLUSH_SECONDS = 2.0

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

# The metadata of the call to which the current task belongs. The tasks that it starts have it too.
_metadata: ContextVar[Metadata] = ContextVar("tidegate_call_metadata", default=())


class Spans:
    """The spans of this process."""

    def __init__(self) -> None:
        self._telemetry: OpenTelemetry | None = None

    def __repr__(self) -> str:
        return f"<Spans {'off' if self._telemetry is None else repr(self._telemetry)}>"

    def start(self, option: str) -> None:
        """Sends spans from now on, if somebody wants them: see `find_collector`.

        What the option asks for must be possible, else it raises StartFailed. What only variables ask for is tried: they
        are often set for all programs of a machine. The command line has checked before whether it can work at all.
        """
        try:
            if (collector := find_collector(option, os.environ)) is None:
                return
        except ValueError as error:  # the command line has told it
            log.debug("no spans are sent: %s", error)
            return
        try:
            from tidegate.runtime.open_telemetry import OpenTelemetry  # noqa: PLC0415 - only those who want spans have it

            self._telemetry = OpenTelemetry(collector)
        except Exception as error:  # its settings are read there, and each may be wrong in its own way
            if option:
                raise StartFailed(f"spans cannot be sent: {error}") from error
            log.warning("no spans are sent: %s", error)

    def interceptors(self) -> list["grpc.aio.ServerInterceptor"]:
        """What the server needs to know the trace of a call."""
        return [] if self._telemetry is None else [_MetadataKeeper()]

    def span(self, operation: str, *, of_call: bool = False, **fields: str | int) -> Span:
        """A span that begins now, as a part of the span in which it happens.

        Args:
            operation: what happens, such as "open".
            of_call: whether the client waits for it: then it belongs to the client's trace. Else it only refers to it.
            fields: its first attributes; empty ones are left out.

        """
        if self._telemetry is None:
            return NO_SPAN
        span = self._telemetry.begin(operation, _metadata.get(), of_call=of_call)
        span.describe({name: value for name, value in fields.items() if value != ""})
        return span

    async def stop(self) -> None:
        """Sends what is left, for FLUSH_SECONDS at most. Later spans do nothing."""
        if self._telemetry is not None:
            telemetry, self._telemetry = self._telemetry, None
            await asyncio.to_thread(telemetry.close, FLUSH_SECONDS)


# One for the process, as the log is.
SPANS = Spans()


class _MetadataKeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Keeps the metadata of a call for the spans in it."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call, unchanged. It runs in the same task."""
        _metadata.set(handler_call_details.invocation_metadata or ())
        return await continuation(handler_call_details)
