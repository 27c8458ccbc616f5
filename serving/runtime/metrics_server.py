"""The HTTP server of /metrics, /healthz and /readyz."""

import io
import logging
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, make_wsgi_app
from prometheus_client.registry import Collector

from tidegate.runtime.exposition import Exposition
from tidegate.runtime.host import addresses, make_socket, with_port
from tidegate.runtime.lifecycle import StartFailed

log = logging.getLogger("tidegate.metrics")

METRICS, HEALTHZ, READYZ = "/metrics", "/healthz", "/readyz"
# A client that has not sent its request, or not taken a part of the answer, after so many seconds is not Prometheus, and must not keep
# a thread. It counts from the first byte to the last, so one byte now and then does not help.
TIMEOUT_SECONDS = 10.0
# A handful of scrapers and probes. Each request has a thread, and a client that reads slowly keeps its own.
REQUESTS_MAX = 32
# From one address, so that one hostile client does not keep the others out.
REQUESTS_A_PEER_MAX = REQUESTS_MAX // 2
# Prometheus sends less than one KiB, a browser with cookies a few.
HEAD_BYTES_MAX = 16 * 1024
# How much of a body that nobody wants is read and dropped, and for how long.
LINGER_BYTES_MAX = 1 << 20
LINGER_SECONDS = 1.0
# Connections that wait for `accept`. socketserver has 5, and the sixth of a moment would wait for a second.
BACKLOG = 128
# After a rendering, the next one waits for this multiple of its processor time: whoever asks all the time takes a fifth of a core.
PAUSE_FACTOR = 4
# Without a free descriptor `accept` fails at once, again and again.
ACCEPT_PAUSE_SECONDS = 0.1
NO_GZIP = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")

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
        app = _app(_Rendering(make_wsgi_app(registry)), exposition)
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


class _Rendering:
    """Renders the metrics: one request at a time, with pauses. Requests that wait for the same get the same."""

    def __init__(self, expose: App) -> None:
        self._expose = expose
        self._lock = Lock()
        self._not_before = 0.0
        self._last: tuple[float, object, tuple[list[Any], list[bytes]]] = (0.0, None, ([], []))

    def response(self, environ: dict[str, Any]) -> tuple[list[Any], list[bytes]]:
        """The status and headers, and the body."""
        asked = time.monotonic()
        headers = {name: environ.get(name, "") for name in ("HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "QUERY_STRING")}
        if NO_GZIP.search(headers["HTTP_ACCEPT_ENCODING"]):
            headers["HTTP_ACCEPT_ENCODING"] = ""
        with self._lock:
            begun, last_headers, response = self._last
            if begun >= asked and last_headers == headers:
                return response
            time.sleep(max(0.0, self._not_before - time.monotonic()))
            begun, cpu_seconds = time.monotonic(), -time.thread_time()
            start: list[Any] = []
            body = list(
                self._expose({**headers, "REQUEST_METHOD": "GET", "PATH_INFO": METRICS}, lambda *of: start.extend(of))
            )
            cpu_seconds += time.thread_time()
            self._not_before = time.monotonic() + PAUSE_FACTOR * cpu_seconds
            self._last = (begun, headers, (start, body))
            return start, body


def _app(rendering: _Rendering, exposition: Exposition) -> App:
    """Serves each path and nothing elsewhere. HEAD gives the headers of GET without the body."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        response: list[Any]
        if path in (METRICS, HEALTHZ, READYZ) and method not in ("GET", "HEAD"):
            response = ["405 Method Not Allowed", [*TEXT, ("Allow", "GET, HEAD")]]
            body = [b"there are GET and HEAD\n"]
        elif path == METRICS:
            response, body = rendering.response(environ)
        elif path in (HEALTHZ, READYZ):
            good = exposition.healthy if path == HEALTHZ else exposition.ready
            response = ["200 OK" if good else "503 Service Unavailable", TEXT]
            body = [b"ok\n" if good else b"not now\n"]
        else:
            response = ["404 Not Found", TEXT]
            body = [f"there is nothing here; there are {METRICS}, {HEALTHZ} and {READYZ}\n".encode()]
        status, headers = response
        start_response(status, [*headers, ("Content-Length", str(sum(map(len, body))))])
        return [] if method == "HEAD" else body

    return app


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server on one address, with a thread for each request."""

    daemon_threads = True  # a scrape in progress does not delay the exit
    request_queue_size = BACKLOG

    def __init__(self, family: socket.AddressFamily, address: str, port: int, app: App) -> None:
        self.address_family = family
        self._lock = Lock()
        self._requests: Counter[str] = Counter()  # being answered, by address
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

    def get_request(self) -> tuple[Any, Any]:
        """The next connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers a request in a thread; closes the connection when there are many."""
        peer = client_address[0]
        with self._lock:
            busy = self._requests.total() >= REQUESTS_MAX or self._requests[peer] >= REQUESTS_A_PEER_MAX
            self._requests[peer] += not busy
        if busy:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._end(peer)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(client_address[0])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        """Logs an error, unless it only says that the client has gone or was too slow."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("a request from %s to the port of metrics failed", client_address[0], exc_info=error)

    def _end(self, peer: str) -> None:
        with self._lock:
            self._requests[peer] -= 1
            self._requests += Counter()  # forgets those with none

    def server_bind(self) -> None:
        """Binds without a reverse DNS lookup, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_SECONDS  # for the request, and for each part of the answer
    default_request_version = "HTTP/1.0"  # else what cannot be parsed gets an answer without a status

    def handle(self) -> None:
        """Reads the head of a request and answers it. A body is not read."""
        self.rfile.close()
        head = self._read_head()
        self.rfile = io.BufferedReader(io.BytesIO(head))
        self.wfile = _Writer(self.connection)  # type: ignore[assignment] # a raw stream too
        if len(head) > HEAD_BYTES_MAX:
            self.requestline = self.request_version = self.command = ""
            self.send_error(431)
        elif head:
            super().handle()

    def finish(self) -> None:
        """Ends the answer, and reads on for a moment: if the rest of a request were unread, the client might lose the answer."""
        super().finish()
        deadline, left = time.monotonic() + LINGER_SECONDS, LINGER_BYTES_MAX
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (seconds := deadline - time.monotonic()) > 0:
                self.connection.settimeout(seconds)
                if not (data := self.connection.recv(HEAD_BYTES_MAX)):
                    break
                left -= len(data)

    def log_message(self, *_: object) -> None:
        """Logs nothing: Prometheus scrapes every few seconds."""

    def _read_head(self) -> bytes:
        """The request up to the empty line, or more than HEAD_BYTES_MAX; empty when the client leaves. Raises TimeoutError."""
        deadline = time.monotonic() + self.timeout
        head = bytearray()
        while len(head) <= HEAD_BYTES_MAX:
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            data = self.connection.recv(HEAD_BYTES_MAX)
            if not data:
                return b""
            head += data
            end = head[-len(data) - 3 :]
            if b"\r\n\r\n" in end or b"\n\n" in end:
                break
        self.connection.settimeout(self.timeout)
        return bytes(head)


class _Writer(io.RawIOBase):
    """Writes to a connection. A client that does not read in time counts as one that has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        """Always True."""
        return True

    def write(self, data: Any) -> int:
        """Writes all of it."""
        try:
            self._connection.sendall(data)
        except TimeoutError as error:
            raise ConnectionAbortedError("it reads too slowly") from error
        return len(data)
