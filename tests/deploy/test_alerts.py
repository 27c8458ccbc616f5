"""Each alert fires at a real server in the trouble that it is about, and none at a healthy one.

The real Prometheus scrapes them with the project's rules, in which each duration is divided: 5 minutes become 2 seconds. An alert
that waits for hours has a greater divisor.
"""

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.deploy.prometheus import RULES, Prometheus, only_alert, results, run_prometheus, scaled, without_alerts
from tests.deploy.troubles import TROUBLES, Trouble, busy, healthy, running
from tests.timeouts import TIMEOUT_S

FACTOR, FACTOR_OF_HOURS = 150, 1500
# How long a worker may try to get a core.
BUSY_SECONDS_MAX = 15
# Four scrapes in the shortest window, as in production there are thirty.
INTERVAL_MS = 500
LABELS = ("alertname", "severity", "window", "instance", "worker", "model", "version", "feature")
WINDOWS = (("page", "1h"), ("page", "6h"), ("ticket", "3d"))


def alert(name: str, severity: str, **labels: str) -> tuple[str, ...]:
    """An alert with these labels and no others."""
    every = {"alertname": f"Tidegate{name}", "severity": severity, **labels}
    return tuple(every.get(label, "") for label in LABELS)


EXPECTED = {
    *(alert("ErrorBudgetBurns", severity, window=window, model="failing") for severity, window in WINDOWS),
    *(alert("LatencyBudgetBurns", severity, window=window, model="slow") for severity, window in WINDOWS),
    alert("Saturated", "page", instance="unwell"),
    alert("InputsMoved", "ticket", model="moved", version="1", feature="t"),
    alert("StateLost", "page", instance="amnesic"),
    alert("StateUnsaved", "page", instance="hanging"),
    alert("StoreDown", "page", instance="killed"),
    alert("WorkerDown", "page", instance="dying", worker="0"),
    alert("WorkerRestarts", "ticket", instance="dying", worker="0"),
    alert("DescriptorsLow", "ticket", instance="crowded", worker="0"),
    alert("LogLinesDropped", "ticket", instance="unread", worker="0"),
    alert("NotScraped", "page", instance="stopped"),
}
NO_TARGET = alert("NotScraped", "page")
BUSY = alert("WorkerBusy", "ticket", instance="busy", worker="0")


class Seen:
    """The alerts that have fired so far, with their annotations. `watch` is its task."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.fired: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._prometheus = prometheus

    async def watch(self) -> None:
        """Notes what fires, until cancelled."""
        while True:
            for each in await self._prometheus.alerts():
                if each["state"] == "firing":
                    self._note(each)
            await asyncio.sleep(0.2)

    async def until(self, expected: set[tuple[str, ...]]) -> None:
        """Waits until each of them has fired once."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                while not expected <= self.fired.keys():  # noqa: ASYNC110 - Prometheus has no event for it
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not fired: {expected - self.fired.keys()}; fired: {[*self.fired]}") from None

    def check_annotations(self) -> None:
        """Those of each alert are whole, and say of whom they speak."""
        for labels, annotations in self.fired.items():
            assert annotations.keys() == {"summary", "description", "runbook"}
            text = " ".join(annotations.values())
            assert not re.search(r"<no value>|%!|\{\{|NaN|  ", text), text
            omitted = {"alertname", "severity", "window", "version"}
            if labels[0] == "TidegateLogLinesDropped":  # all workers write to the same stderr
                omitted.add("worker")
            for name, value in zip(LABELS, labels, strict=True):
                assert name in omitted or value in text, (name, text)

    def _note(self, each: Mapping[str, Any]) -> None:
        labels = {name: value for name, value in each["labels"].items() if name != "job"}
        assert each["labels"]["job"] == "tidegate"
        assert labels.keys() <= set(LABELS)
        self.fired[tuple(labels.get(label, "") for label in LABELS)] = each["annotations"]


class WakeUps:
    """A thread that sleeps for milliseconds, and counts how often it was woken late: then the machine is too busy."""

    def __init__(self) -> None:
        self._sleeps = self._late = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def are_late(self) -> bool:
        """Whether the objective for latency would not be met even by a server that does nothing."""
        return self._late > 0.005 * self._sleeps

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            time.sleep(0.005)
            self._sleeps += 1
            self._late += time.monotonic() - begun > 0.025


def test_every_alert_is_provoked() -> None:
    """A new one must not be forgotten here."""
    names = {labels[0] for labels in (*EXPECTED, NO_TARGET, BUSY)}
    assert names == set(re.findall(r"^ *- alert: (\S+)$", RULES, re.MULTILINE))


def test_only_durations_are_scaled() -> None:
    """Ranges, offsets and `for`; no threshold, label, name or text."""
    text = "expr: rate(x_5m[5m] offset 1h) > 5\nfor: 2m\nwindow: 1h\nsummary: 'for 5m'\n"
    rules = "\n".join(f"  {line}" for line in text.splitlines())
    assert (
        scaled(rules, 100).split()
        == rules.replace("[5m]", "[3000ms]")
        .replace("offset 1h", "offset 36000ms")
        .replace("for: 2m", "for: 1200ms")
        .split()
    )
    durations = re.compile(r"\d+(ms|[smhd])\b")
    assert durations.sub("", scaled(RULES, FACTOR)) == durations.sub("", RULES)


@pytest.mark.slow
async def test_each_alert_fires_in_its_trouble_and_none_at_a_healthy_server(tmp_path: Path) -> None:
    """With the labels that the rules promise, and annotations that name the server, the worker or the model."""
    rules = {
        "minutes.yaml": scaled(without_alerts(RULES, "TidegateInputsMoved"), FACTOR),
        "hours.yaml": scaled(only_alert(RULES, "TidegateInputsMoved"), FACTOR_OF_HOURS),
    }
    async with run_prometheus(tmp_path, rules, INTERVAL_MS) as prometheus, AsyncExitStack() as stack:
        seen = Seen(prometheus)
        await stack.enter_async_context(running(asyncio.create_task(seen.watch())))
        await seen.until({NO_TARGET})
        wake_ups = stack.enter_context(WakeUps())
        await stack.enter_async_context(together(tmp_path, prometheus, healthy, *TROUBLES))
        await seen.until(EXPECTED)
        false_alarms = {labels[0] for labels in seen.fired if "healthy" in labels}
        assert false_alarms <= ({"TidegateLatencyBudgetBurns", "TidegateNotScraped"} if wake_ups.are_late else set())
        seen.check_annotations()


@pytest.mark.slow
async def test_an_alert_fires_while_a_worker_uses_a_core(tmp_path: Path) -> None:
    """For a quarter of an hour, divided. On a machine that gives no process a core for so long, there is no such worker."""
    rules = {"rules.yaml": scaled(RULES, FACTOR)}
    async with run_prometheus(tmp_path, rules, INTERVAL_MS) as prometheus, together(tmp_path, prometheus, busy):
        seen = Seen(prometheus)
        async with running(asyncio.create_task(seen.watch())):
            begun = time.monotonic()
            while BUSY not in seen.fired and time.monotonic() < begun + BUSY_SECONDS_MAX:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
        used = "rate(process_cpu_seconds_total{instance='busy'}[2s])"
        longest = f"max_over_time(min_over_time({used}[8s:500ms])[{BUSY_SECONDS_MAX}s:500ms])"
        ((_, share),) = [each["value"] for each in await results(prometheus.address, longest)]
    if BUSY not in seen.fired and float(share) <= 0.9:
        pytest.skip(f"the machine gave the worker no more than {float(share):.2f} of a core for eight seconds")
    assert BUSY in seen.fired
    seen.check_annotations()


@asynccontextmanager
async def together(root: Path, prometheus: Prometheus, *troubles: Trouble) -> AsyncIterator[None]:
    """All of these at the same time, started side by side."""
    end = asyncio.Event()
    begun = [asyncio.Event() for _ in troubles]

    async def live(trouble: Trouble, ready: asyncio.Event) -> None:
        folder = root / trouble.__name__
        folder.mkdir()
        async with trouble(folder, prometheus.scrape):
            ready.set()
            await end.wait()

    async with asyncio.TaskGroup() as group:
        for trouble, ready in zip(troubles, begun, strict=True):
            group.create_task(live(trouble, ready))
        for ready in begun:
            await ready.wait()
        yield
        end.set()
