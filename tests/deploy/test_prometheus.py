"""Rules, dashboard and docs name the metrics that a server exports, and the real Prometheus understands them."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.prometheus import DEBIAN, PROMETHEUS, RULES, ask, results, run_prometheus
from tests.fleet import ServerProcess
from tests.graphs import with_moments, write_model
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tests.tools import find_tool
from tidegate.client import Client

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "tidegate.json").read_text("utf-8"))
DOC = (ROOT / "docs" / "metrics.md").read_text("utf-8")
METRIC = re.compile(r"\b(?:tidegate|process|python)_[a-z_]+\b")
# Made by the rules, not by a server.
RECORDED = re.compile(r"^ *- record: (\S+)$", re.MULTILINE)
ALERT = re.compile(r"^ *- alert: (\S+)$", re.MULTILINE)


def queries() -> Iterator[str]:
    """The queries of the dashboard, its variables filled in as Grafana does it."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"].replace("$__rate_interval", "10s")
            yield re.sub(r"\$(job|instance|model|version)", ".*", expr)


def metrics_in(text: str) -> set[str]:
    """The metrics that a text names, histograms without the endings of their samples."""
    without = re.compile(r"_(bucket|count|sum)$")
    return {without.sub("", name) for name in METRIC.findall(RECORDED.sub("", re.sub(r"\bjob_model:\S+", "", text)))}


@asynccontextmanager
async def server_under_load(folder: Path) -> AsyncIterator[ServerProcess]:
    """A server with two workers that answers timesteps."""
    write_model(folder / "models", with_moments())
    server = ServerProcess(folder / "models", f"sqlite://{folder / 'db'}", "--workers", "2")
    await server.start()
    stop = asyncio.Event()

    async def load() -> None:
        async with Client(server.address, calls=4) as client, client.open() as stream:
            while not stop.is_set():
                await stream.step([1.0])
                await asyncio.sleep(0.01)

    task = asyncio.create_task(load())
    try:
        yield server
    finally:
        stop.set()
        await task
        server.send(signal.SIGTERM)
        await server.ended()


def exported(text: str) -> set[str]:
    """The names of the metrics in an exposition, as they are queried."""
    return {
        family.name + ("_total" if family.type == "counter" else "") for family in text_string_to_metric_families(text)
    }


async def test_rules_dashboard_and_docs_name_what_is_exported(tmp_path: Path) -> None:
    """Each metric that they name is exported, and each exported one is in the table of the docs."""
    async with server_under_load(tmp_path) as server:
        names = exported(await asyncio.to_thread(server.scrape))
    assert metrics_in(RULES) <= names
    assert metrics_in(" ".join(queries())) <= names
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", DOC, re.MULTILINE))
    assert documented == names


def test_every_alert_is_documented() -> None:
    """Its runbook is a heading of the docs."""
    headings = {line.removeprefix("### ") for line in DOC.splitlines() if line.startswith("### ")}
    assert set(ALERT.findall(RULES)) == headings
    anchors = set(re.findall(r"runbook: docs/metrics\.md#(\S+)", RULES))
    assert anchors == {heading.lower() for heading in headings}


def test_every_alert_is_tested() -> None:
    """Each fires in a case of the tests of the rules."""
    cases = (PROMETHEUS / "rules_test.yaml").read_text("utf-8")
    fires = set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n", cases))
    assert fires == set(ALERT.findall(RULES))


@pytest.mark.parametrize(
    "arguments",
    [["test", "rules", "rules_test.yaml"], ["check", "config", "prometheus.yaml"]],
    ids=["rules", "configuration"],
)
def test_promtool_accepts(arguments: list[str]) -> None:
    """The rules do what their tests say, and the configuration is valid."""
    command = [find_tool("promtool", DEBIAN), *arguments]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
async def test_prometheus_answers_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """The real Prometheus scrapes a server under load; each query of the dashboard has a result, and no rule fails."""
    async with (
        server_under_load(tmp_path) as server,
        run_prometheus(tmp_path, {"rules.yaml": RULES}, interval_ms=1000) as prometheus,
    ):
        await prometheus.scrape("server", server.metrics_url)
        for query in queries():
            assert await results(prometheus.address, query), query
        groups = (await asyncio.to_thread(ask, prometheus.address, "rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert [rule for rule in rules if rule["health"] == "err"] == []
        firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
        assert firing == []
