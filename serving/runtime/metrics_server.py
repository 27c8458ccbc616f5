"""The HTTP server of /metrics, /healthz and /readyz."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, make_wsgi_app
from prometheus_client.registry import Collector

from tidegate.runtime.exposition import Exposition
from tidegate.runtime.host import addresses, make_socket, with_port
from tidegate.runtime.lifecycle import StartFailed

METRICS, HEALTHZ, READYZ = "/metrics", "/healthz", "/readyz"
# A client that has sent no request for so many seconds is not Prometheus, and must not keep a thread.
TIMEOUT_SECONDS = 10.0
# A handful of scrapers and probes. Each request has a thread, and a client that reads slowly keeps its own.
REQUESTS_MAX = 32

TEXT = [("Content-Type", "text/plain; charset=utf-8")]
App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class MetricsServer:
    """Serves an exposition over HTTP, in its own threads, until it is closed.

    Args:
        host: name or address, as for gRPC; a wildcard means both families.
        port: its number; 0 picks a free one.
        exposition: the metrics, and whether the server is healthy and ready.

    Raises StartFailed when it cannot listen on the port.
    """

    def __init__(self, host: str, port: int, exposition: Exposition) -> None:
        registry = _Registry()
        registry.register(exposition)
        PlatformCollector(registry=registry)
        app = _app(make_wsgi_app(registry), exposition)
        self.port = port
        self._servers: list[_Server] = []
        with ExitStack() as open_ones:
            try:
                for family, address in addresses(host, port):
                    server = open_ones.enter_context(_Server(family, address, self.port, app))
                    self.port = server.server_port
                    self._servers.append(server)
            except OSError as error:
                raise StartFailed(f"cannot listen on {with_port(host, port)} for metrics: {error.strerror}") from error
            open_ones.pop_all()
        self._threads = [Thread(target=server.serve_forever, daemon=True) for server in self._servers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops serving."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Registry(CollectorRegistry):
    """A registry whose collectors know their metrics only when they collect.

    So a filter by name is applied after that.
    """

    def restricted_registry(self, names: Iterable[str]) -> "_Chosen":  # type: ignore[override]
        """The metrics for `?name[]=`."""
        return _Chosen(self, frozenset(names))


class _Chosen(Collector):
    """The samples with one of these names, and all samples of a metric with one of these names."""

    def __init__(self, registry: CollectorRegistry, names: frozenset[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """The filtered metrics."""
        for metric in self._registry.collect():
            if metric.name not in self._names:
                metric.samples = [sample for sample in metric.samples if sample.name in self._names]
            if metric.samples:
                yield metric


def _app(expose: App, exposition: Exposition) -> App:
    """Serves each path and nothing elsewhere. HEAD gives the headers of GET without the body."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        head = environ["REQUEST_METHOD"] == "HEAD"
        response: list[Any] = []
        path = environ["PATH_INFO"]
        if path == METRICS:
            asked = environ | {"REQUEST_METHOD": "GET"} if head else environ
            body = list(expose(asked, lambda *start: response.extend(start)))
        elif path in (HEALTHZ, READYZ):
            good = exposition.healthy if path == HEALTHZ else exposition.ready
            response = ["200 OK" if good else "503 Service Unavailable", TEXT]
            body = [b"ok\n" if good else b"not now\n"]
        else:
            response = ["404 Not Found", TEXT]
            body = [f"there is nothing here; there are {METRICS}, {HEALTHZ} and {READYZ}\n".encode()]
        status, headers = response
        start_response(status, [*headers, ("Content-Length", str(sum(map(len, body))))])
        return [] if head else body

    return app


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server on one address, with a thread for each request."""

    _requests = 0  # being answered

    daemon_threads = True  # a scrape in progress does not delay the exit

    def __init__(self, family: socket.AddressFamily, address: str, port: int, app: App) -> None:
        self.address_family = family
        self._lock = Lock()
        super().__init__((address, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = make_socket(family)
        try:
            self.server_bind()
            self.server_activate()
        except OSError:
            self.server_close()
            raise
        self.set_app(app)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers a request in a thread; closes the connection when there are many."""
        with self._lock:
            busy = self._requests >= REQUESTS_MAX
            self._requests += not busy
        if busy:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._requests -= 1

    def server_bind(self) -> None:
        """Binds without a reverse DNS lookup, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_SECONDS  # for each read and write

    def log_message(self, *_: object) -> None:
        """Logs nothing: Prometheus scrapes every few seconds."""
