"""A collector of OpenTelemetry spans: it receives OTLP over gRPC or HTTP and keeps what was sent."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.timeouts import TIMEOUT_S


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came. Ids are in hexadecimal digits, as in a `traceparent`."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool
    message: str


@dataclass
class Collector:
    """What a collector has received, and where it listens."""

    address: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    received: bytes = b""
    headers: list[dict[str, str]] = field(default_factory=list)

    def take(self, request: otlp.ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        """Keeps a request."""
        self.received += request.SerializeToString()
        self.headers.append(headers)
        for group in request.resource_spans:
            resource = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                assert scope.scope.name == "tidegate"
                for span in scope.spans:
                    links = tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links)
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                    status = (span.status.code == span.status.STATUS_CODE_ERROR, span.status.message)
                    self.spans.append(
                        ReceivedSpan(span.name, span.kind, *ids, links, _plain(span.attributes), resource, *status)
                    )

    def until(self, condition: Callable[["Collector"], bool]) -> None:
        """Waits until what has come fulfils a condition."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(self):
            assert time.monotonic() < deadline, f"only these came: {self.spans}"
            time.sleep(0.01)

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of a name, in order of arrival."""
        return [span for span in self.spans if span.name == name]


def _plain(attributes: Any) -> dict[str, Any]:
    def value(each: KeyValue) -> Any:
        kind = each.value.WhichOneof("value")
        assert kind is not None
        return getattr(each.value, kind)

    return {each.key: value(each) for each in attributes}


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """A collector for OTLP over gRPC."""
    collector = Collector()

    class Service(otlp_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - named by the protocol
            collector.take(request, {name: str(value) for name, value in context.invocation_metadata()})
            return otlp.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    otlp_grpc.add_TraceServiceServicer_to_server(Service(), server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


@contextmanager
def http_collector() -> Iterator[Collector]:
    """A collector for OTLP over HTTP."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(otlp.ExportTraceServiceRequest.FromString(body), dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            server.shutdown()
