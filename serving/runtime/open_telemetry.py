"""Spans as OpenTelemetry records and sends them: the only module that imports it, and imported only when spans are wanted.

A thread of the SDK sends finished spans in batches. At most OTEL_BSP_MAX_QUEUE_SIZE of them wait for it (2,048 by default);
what does not fit is dropped, with a line in the log. So a collector that is slow or gone costs spans, and nothing else.
"""

import os
import threading
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from opentelemetry import context, trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate.runtime.collector import Collector
from tidegate.runtime.span import Metadata, Span

# The headers of W3C Trace Context; nothing else of a call's metadata is read.
TRACE_HEADERS = frozenset({"traceparent", "tracestate"})


class OpenTelemetry:
    """Records spans and sends them to a collector.

    Sampling, queue, batches, headers, TLS and the name of the service follow the standard variables.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        own: dict[str, str | int] = {
            "service.name": "tidegate",
            "service.version": version("tidegate"),
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
        resource = Resource.create(own).merge(OTELResourceDetector().detect())  # what the variables say comes first
        # Without its own exit handler, which would wait for the collector for half a minute.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = make_exporter(collector)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tidegate", version("tidegate"))
        self._propagator = TraceContextTextMapPropagator()

    def __repr__(self) -> str:
        return f"<OpenTelemetry {self._collector.protocol}>"

    def begin(self, operation: str, metadata: Metadata, *, of_call: bool) -> "RecordedSpan":
        """Begins a span: see `Spans.span`. `metadata` is that of the call in which it happens, empty outside of one."""
        name, kind = f"tidegate.{operation}", SpanKind.SERVER if of_call else SpanKind.INTERNAL
        if trace.get_current_span().get_span_context().is_valid:
            return RecordedSpan(self._tracer.start_span(name, kind=kind))
        headers = {key: value for key, value in metadata if key in TRACE_HEADERS and isinstance(value, str)}
        remote = self._propagator.extract(headers, context.Context())
        if of_call:
            return RecordedSpan(self._tracer.start_span(name, remote, kind))
        caller = trace.get_current_span(remote).get_span_context()
        # A call may last for days, and the client's trace is long complete by then. So the span has a trace of its own.
        links = [trace.Link(caller)] if caller.is_valid else []
        return RecordedSpan(self._tracer.start_span(name, context.Context(), kind, links=links))

    def close(self, timeout_s: float) -> None:
        """Sends what is left, and gives up after `timeout_s` seconds. Blocks meanwhile."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(timeout_s)
        if sending.is_alive():
            self._exporter.shutdown()  # cancels what it waits for


class RecordedSpan(Span):
    """A span that is recorded."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        context.detach(self._token)
        self._span.end()

    def rename(self, operation: str) -> None:
        """Gives the span another name."""
        self._span.update_name(f"tidegate.{operation}")

    def describe(self, fields: Mapping[str, str | int]) -> None:
        """Adds attributes."""
        self._span.set_attributes({f"tidegate.{name}": value for name, value in fields.items()})

    def fail(self, reason: BaseException | str) -> None:
        """Marks the span as failed, with the text of an error and its class, in the standard attribute."""
        if isinstance(reason, BaseException):
            self._span.set_attribute("error.type", type(reason).__name__)
        self._span.set_status(Status(StatusCode.ERROR, str(reason) or type(reason).__name__))


def make_exporter(collector: Collector) -> SpanExporter:
    """The exporter of a collector's protocol."""
    options: dict[str, Any] = {"endpoint": collector.endpoint} if collector.endpoint else {}
    if collector.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc  # noqa: PLC0415 - one of both is installed

        return over_grpc.OTLPSpanExporter(**options)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http  # noqa: PLC0415 - as above

    if options:  # it takes the address as it is, and that of a collector is meant
        options["endpoint"] = f"{collector.endpoint.rstrip('/')}/v1/traces"
    return over_http.OTLPSpanExporter(**options)
