"""The HTTP server of /metrics, as Prometheus, load balancers and people use it."""

import http.client
import socket
from collections.abc import Iterator

import pytest

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
