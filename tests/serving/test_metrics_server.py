"""The HTTP server of /metrics, as Prometheus, load balancers and people use it."""

import gzip
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.servers import Scrape
from tests.timeouts import TIMEOUT_S
from tidegate.runtime import metrics_server as metrics_server_module
from tidegate.runtime.exposition import Exposition, WorkerMetrics
from tidegate.runtime.metrics import Metrics, ModelMetrics
from tidegate.runtime.metrics_server import MetricsServer


@pytest.fixture
def port() -> Iterator[int]:
    """The collector of a worker that is up."""
    metrics = Metrics({"tidegate": "1"})
    metrics.create_counters()
    metrics.add_model(ModelMetrics("lake", "1", "f" * 64))
    source = WorkerMetrics("0")
    source.counters, source.up = metrics.counters, True
    made = MetricsServer("127.0.0.1", 0, Exposition([source], lambda: None, supervised=False))
    yield made.port
    made.close()


@pytest.mark.parametrize(
    ("up", "ready", "healthz", "readyz"),
    [(True, True, 200, 200), (True, False, 200, 503), (False, True, 503, 503)],
    ids=["serving", "draining, or the store is behind", "no worker"],
)
def test_health_and_readiness_have_a_path_each(up: bool, ready: bool, healthz: int, readyz: int) -> None:
    """For load balancers and Kubernetes."""
    metrics = Metrics({"tidegate": "1"})
    metrics.ready = lambda: ready
    source = WorkerMetrics("0")
    metrics.create_counters()
    source.counters, source.up = metrics.counters, up
    made = MetricsServer("127.0.0.1", 0, Exposition([source], metrics.refresh, supervised=False))
    try:
        assert (ask(made.port, "/healthz")[0].status, ask(made.port, "/readyz")[0].status) == (healthz, readyz)
    finally:
        made.close()


def ask(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, str]:
    """A response and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_head_is_answered_without_a_body(port: int) -> None:
    """Like GET, for clients that only check that it is there."""
    answer, body = ask(port, "/metrics", "HEAD")
    assert (answer.status, body) == (200, "")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert int(answer.headers["Content-Length"]) > 1000


def test_other_methods_are_not_allowed(port: int) -> None:
    """Nothing can be written."""
    assert ask(port, "/metrics", "POST")[0].status == 405


@pytest.mark.parametrize("path", ["/", "/metric", "/favicon.ico", "/metrics/x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_there_is_nothing_at_other_paths(port: int, path: str, method: str) -> None:
    """An error in a scrape configuration is visible."""
    answer, body = ask(port, path, method)
    assert answer.status == 404
    assert body == ("" if method == "HEAD" else "there is nothing here; there are /metrics, /healthz and /readyz\n")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("name[]=tidegate_worker_up", {"tidegate_worker_up"}),
        ("name[]=tidegate_steps_total&name[]=tidegate_worker_up", {"tidegate_steps_total", "tidegate_worker_up"}),
        ("name[]=tidegate_step_seconds_count", {"tidegate_step_seconds_count"}),
        (
            "name[]=tidegate_step_seconds",
            {f"tidegate_step_seconds_{part}" for part in ("bucket", "count", "sum")},
        ),
        ("name[]=python_info", {"python_info"}),
        ("name[]=nobody", set()),
    ],
)
def test_some_metrics_are_asked_for_by_name(port: int, query: str, names: set[str]) -> None:
    """By the name of a sample, or of the whole metric."""
    answer, body = ask(port, f"/metrics?{query}")
    assert answer.status == 200
    assert {name for name, _ in Scrape(body)._samples} == names


def test_a_silent_connection_does_not_keep_a_thread(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The connection is closed after a timeout, and others are answered meanwhile."""
    monkeypatch.setattr(metrics_server_module._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as silent:
        assert ask(port, "/metrics")[0].status == 200
        assert silent.recv(1) == b""


def test_a_request_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The time counts from the first byte, so a byte now and then does not keep a thread."""
    monkeypatch.setattr(metrics_server_module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as slow:
        for number in range(int(TIMEOUT_S / 0.05)):
            with suppress(TimeoutError):
                try:
                    slow.sendall(b"GET /metrics HTTP/1.1\r\n" if not number else b"x")
                    if slow.recv(1) == b"":
                        break
                except ConnectionError:
                    break
        else:
            raise AssertionError("it is read for ever")


def test_a_client_that_does_not_read_is_no_error(monkeypatch: pytest.MonkeyPatch, port: int, capfd: Any) -> None:
    """Its connection is closed, and nothing is written to the log, nor by Python to stderr."""
    monkeypatch.setattr(metrics_server_module._Handler, "timeout", 0.1)
    monkeypatch.setattr(metrics_server_module._Rendering, "response", lambda *_: (["200 OK", []], [bytes(64 << 20)]))
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as silent:
            assert silent.recv(1) == b""
        deadline = time.monotonic() + TIMEOUT_S
        while any("process_request_thread" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nx: " + bytes(1 << 18).replace(b"\0", b"y") + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * (1 << 18) + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\n" + 150 * b"x: y\r\n" + b"\r\n", 431),
        (b"GET\r\n\r\n", 400),
        (b"GET /metrics HTTP/9.9\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /metrics HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000), 405),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\xff\xff\n\n", 400),
    ],
    ids=["huge header", "huge path", "many headers", "no path", "version", "http2", "gzip bomb", "endless body", "tls"],
)
def test_what_is_no_request_for_metrics_is_refused(port: int, head: bytes, status: int) -> None:
    """With its status, and no body is read or unpacked; the next scrape is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
        client.sendall(head)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == status
    assert ask(port, "/metrics")[0].status == 200


def test_one_client_does_not_keep_the_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has some of the threads, and another address has room."""
    monkeypatch.setattr(metrics_server_module, "REQUESTS_A_PEER_MAX", 3)
    monkeypatch.setattr(metrics_server_module._Handler, "timeout", 10 * TIMEOUT_S)
    made = MetricsServer("127.0.0.1", 0, Exposition([WorkerMetrics("0")], lambda: None, supervised=False))
    with ExitStack() as stack:
        stack.callback(made.close)
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", made.port), TIMEOUT_S))
        other = http.client.HTTPConnection("127.0.0.1", made.port, TIMEOUT_S, source_address=("127.0.0.2", 0))
        other.request("GET", "/metrics")
        assert other.getresponse().status == 200
        with socket.create_connection(("127.0.0.1", made.port), TIMEOUT_S) as one_more:
            assert one_more.recv(1) == b""


def test_those_who_ask_at_the_same_time_get_the_same(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Metrics are rendered once for all who wait, so a flood of requests does not take the processor from timesteps."""
    rendered = []
    collect = Exposition.collect

    def count(exposition: Exposition) -> Any:
        rendered.append(1)
        time.sleep(0.2)
        return collect(exposition)

    monkeypatch.setattr(Exposition, "collect", count)
    with ThreadPoolExecutor(12) as pool:
        answers = [*pool.map(lambda _: ask(port, "/metrics")[0].status, range(12))]
    assert answers == [200] * 12
    assert len(rendered) <= 4


def test_whoever_asks_all_the_time_leaves_the_processor_to_timesteps(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    """After a rendering the next one waits for four times its processor time."""
    rendered: list[tuple[float, float]] = []  # when each began, and its processor time
    collect = Exposition.collect

    def busy(exposition: Exposition) -> Any:
        begun, cpu_begun = time.monotonic(), time.thread_time()
        while time.thread_time() < cpu_begun + 0.02:
            pass
        rendered.append((begun, time.thread_time() - cpu_begun))
        return collect(exposition)

    monkeypatch.setattr(Exposition, "collect", busy)
    for _ in range(3):
        assert ask(port, "/metrics")[0].status == 200
    (first, cpu_of_first), (second, cpu_of_second), (third, _) = rendered
    assert second - first >= 5 * cpu_of_first
    assert third - second >= 5 * cpu_of_second


@pytest.mark.parametrize(
    ("headers", "encoding", "kind"),
    [
        ({"Accept-Encoding": "gzip, deflate"}, "gzip", "text/plain"),
        ({"Accept-Encoding": "deflate, gzip;q=0"}, None, "text/plain"),
        ({}, None, "text/plain"),
        (
            {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"},
            None,
            "application/openmetrics-text",
        ),
    ],
)
def test_a_scraper_gets_what_it_asks_for(port: int, headers: dict[str, str], encoding: str | None, kind: str) -> None:
    """Compressed or not, as OpenMetrics or in the older format, and each can be parsed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", "/metrics", headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.headers["Content-Encoding"] == encoding
    assert answer.headers["Content-Type"].startswith(kind)
    text = (gzip.decompress(body) if encoding else body).decode()
    parse = parse_openmetrics if "openmetrics" in kind else parse_text
    assert "tidegate_worker_up" in {family.name for family in parse(text)}
