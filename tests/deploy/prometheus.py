"""The real Prometheus with the project's rules: started, told whom to scrape, and asked."""

import asyncio
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tests.tools import find_tool

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = (PROMETHEUS / "rules.yaml").read_text("utf-8")
DEBIAN = "it is in the Debian package prometheus"
# Where a rule has a duration: a range, an offset, `for`, and the interval of a group.
DURATION = re.compile(r"(\[|\boffset |^ +(?:for|interval): )(\d+)(ms|s|m|h|d)\b", re.MULTILINE)
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def scaled(rules: str, factor: int) -> str:
    """The rules with each duration divided by a factor, to the millisecond; nothing else is changed."""
    return DURATION.sub(lambda found: f"{found[1]}{int(found[2]) * MILLISECONDS[found[3]] // factor}ms", rules)


def without_alerts(rules: str, *names: str) -> str:
    """The rules without these alerts."""
    for name in names:
        rules, count = re.subn(rf"^      - alert: {name}\n(?:       .*\n)+", "", rules, flags=re.MULTILINE)
        assert count, name
    return rules


def only_alert(rules: str, name: str) -> str:
    """A group with one alert."""
    (alert,) = re.findall(rf"^      - alert: {name}\n(?:       .*\n)+", rules, re.MULTILINE)
    return f"groups:\n  - name: {name}\n    rules:\n{alert}"


def ask(address: str, path: str, **parameters: str) -> Any:
    """An answer of Prometheus' API."""
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return json.load(answer)["data"]


async def results(address: str, query: str) -> list[Any]:
    """The result of a query, waited for until there is one."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                if found := (await asyncio.to_thread(ask, address, "query", query=query))["result"]:
                    return list(found)
            except OSError:  # it has not started yet
                pass
            await asyncio.sleep(0.1)


@dataclass
class Prometheus:
    """A Prometheus that scrapes the servers that it is told of."""

    address: str
    targets_file: Path
    targets: dict[str, str]

    async def scrape(self, instance: str, metrics_url: str) -> None:
        """Scrapes a server from now on, under this value of the label `instance`. Waits for the first time."""
        self.targets[instance] = metrics_url.removeprefix("http://").removesuffix("/metrics")
        entries = [{"targets": [target], "labels": {"instance": name}} for name, target in self.targets.items()]
        new = self.targets_file.with_suffix(".new")
        new.write_text(json.dumps(entries), "utf-8")
        new.rename(self.targets_file)
        await results(self.address, f'up{{instance="{instance}"}} == 1')

    async def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        return list((await asyncio.to_thread(ask, self.address, "alerts"))["alerts"])


@asynccontextmanager
async def run_prometheus(folder: Path, rules: Mapping[str, str], interval_ms: int) -> AsyncIterator[Prometheus]:
    """Starts it with the project's configuration, these files of rules and these intervals; yields it when it answers."""
    targets = folder / "targets.json"
    targets.write_text("[]", "utf-8")
    text = (PROMETHEUS / "prometheus.yaml").read_text("utf-8")
    text = re.sub(r"(scrape|evaluation)_interval: \d+s", rf"\1_interval: {interval_ms}ms", text)
    text = text.replace("[rules.yaml]", json.dumps(list(rules)))
    text, count = re.subn(r"static_configs:\n +- targets: .*", f"file_sd_configs: [{{files: ['{targets}']}}]", text)
    assert count == 1
    (folder / "prometheus.yaml").write_text(text, "utf-8")
    for name, content in rules.items():
        (folder / name).write_text(content, "utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [find_tool("prometheus", DEBIAN), f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        await results(address, "vector(1)")
        yield Prometheus(address, targets, {})
    finally:
        process.terminate()
        await process.wait()
