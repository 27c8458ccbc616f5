"""Servers, in this process or in one of their own, their metrics, and the commands of `tidegate`."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.checkers import ForkedChecker
from tests.forked import Started, start
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.server import Server


@asynccontextmanager
async def run_server(root: Path, **settings: Any) -> AsyncIterator[Server]:
    """A real server on free ports."""
    settings = {"batch_max": 16, "state": "memory:", "host": "127.0.0.1", **settings}
    server = Server(ServerConfig(models=root, port=0, metrics_port=0, **settings), make_checker=ForkedChecker)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def address_of(server: Server) -> str:
    """The address of its gRPC port."""
    return f"127.0.0.1:{server.grpc_port}"


def batcher_of(server: Server, name: str = "toy") -> Batcher:
    """The batcher of a served model."""
    return server.repository.find(name, "").batcher


def live(server: Server) -> int:
    """The number of used slots."""
    return sum(len(served.slots) for served in server.repository)


def park_after(server: Server, seconds: float) -> None:
    """Changes after how much silence streams are parked: with an hour, a test that is slow finds them live."""
    checkpointer = server.stream_service.checkpointer
    checkpointer._schedule = replace(checkpointer._schedule, park_after_s=seconds)


class Scrape:
    """The text of /metrics, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, sample: str, **labels: str) -> float:
        """The value of a sample. For a server with one model, its labels can be left out."""
        found = [
            value
            for (name, got), value in self._samples.items()
            if name == sample and labels.items() <= dict(got).items()
        ]
        assert len(found) == 1, f"{sample} {labels}: {len(found)} samples"
        return found[0]


async def scrape(server: Server) -> Scrape:
    """Reads /metrics over HTTP."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read().decode()

    return Scrape(await asyncio.to_thread(get))


class Process:
    """A `tidegate serve` process."""

    def __init__(self, popen: Started) -> None:
        self.popen = popen
        self.ready_line = ""

    @property
    def address(self) -> str:
        """The address of its gRPC port, from its ready line."""
        return self.ready_line.split("grpc=")[1].split()[0]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def until_busy(self) -> None:
        """Waits until it has used the processor for a while."""

        def ticks() -> int:
            return int(Path(f"/proc/{self.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()[11])

        begun, deadline = ticks(), time.monotonic() + TIMEOUT_S
        while ticks() < begun + 20:  # in hundredths of a second
            assert time.monotonic() < deadline, "it does nothing"
            time.sleep(0.01)

    def until_says(self, words: str) -> None:
        """Waits for a line in its log."""
        assert self.popen.stderr is not None
        assert any(words in line for line in self.popen.stderr), f"it never says {words}"

    def wait(self) -> tuple[int, str, str]:
        """Waits for the end. Returns the exit code, the rest of stdout, and stderr."""
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode, out, err


def environment() -> dict[str, str]:
    """An environment without Tidegate's settings, in which Python shows warnings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")} | {
        "COLUMNS": "200",
        "TIDEGATE_LOG_FORMAT": "text",
        "TIDEGATE_STATE": "memory:",
    }


@contextmanager
def serve(root: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Process]:
    """A server in its own process, ready. `before` is a command that runs it."""
    command = [
        *(*before, sys.executable, "-m", "tidegate", "serve", "--models", str(root), "--host", "127.0.0.1"),
        *("--port", "0", "--metrics-port", "0", "--batch-max", "16", "--state", "memory:", *options),
    ]
    popen = start(command, env=environment(), cwd=ROOT)
    process = Process(popen)
    try:
        assert popen.stdout is not None
        process.ready_line = popen.stdout.readline().rstrip("\n")
        assert process.ready_line, popen.communicate()[1]
        yield process
    finally:
        popen.kill()
        popen.communicate()


def run_command(*arguments: str, cwd: Path | None = None, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a `tidegate` command to its end, with additional environment variables."""
    command = [sys.executable, "-m", "tidegate", *arguments]
    popen = start(command, env=environment() | {"PYTHONPATH": str(ROOT / "src")} | variables, cwd=cwd or ROOT)
    try:
        out, err = popen.communicate(TIMEOUT_S)
    finally:
        popen.kill()
    return subprocess.CompletedProcess(popen.args, popen.wait(), out, err)


def refused(ended: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    """One line on stderr with these words, that exit code, and no traceback."""
    assert ended.returncode == code, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) ", line)]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
