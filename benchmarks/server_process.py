"""A side of a comparison: one server process, started, watched and stopped.

What a side costs is what its process and the processes below it cost: a server with workers is one side.
"""

import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from machine import ROOT
from prometheus_client.parser import text_string_to_metric_families

# A server of ours is ready in about a second; a loaded CI machine may take many times as long.
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
SCRAPE_SECONDS_MAX = 10
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Options of a server that keeps nothing: an hour is longer than any run, so nothing is copied or written.
STORE_NOTHING = ("--state", "memory:", "--checkpoint-every", "1h", "--ready-lag", "2h", "--lag-max", "2h")


def serve(models: Path, *options: str) -> list[str]:
    """The arguments of a `tidegate serve` on free ports of the loopback that keeps to itself."""
    fixed = ["--models", str(models), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    return ["-m", "serving", "serve", *fixed, "--log-level", "warning", *options]


class ServerProcess:
    """A server that prints one line `ready: grpc=HOST:PORT ...` when it can be called, as `tidegate serve` does.

    Use it as a context manager: entering starts the process and waits for the line, leaving ends it by SIGTERM.

    Args:
        name: what tables call it.
        arguments: what Python shall run, without Python itself.
        settings: more environment variables.
        root: the checkout of the repository whose code it is.

    """

    def __init__(
        self, name: str, arguments: Sequence[str], settings: Mapping[str, str] | None = None, root: Path = ROOT
    ) -> None:
        self.name = name
        self._root = root
        self.arguments = list(arguments)
        self._environment = environment() | {"PYTHONPATH": str(root)} | dict(settings or {})
        self.address = ""
        self.metrics_url = ""
        self._process: subprocess.Popen[str]

    def __repr__(self) -> str:
        return f"<Side {self.name} {self.address or 'not started'}>"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, *self.arguments], stdout=subprocess.PIPE, text=True, cwd=self._root, env=self._environment
        )
        timer = threading.Timer(READY_SECONDS_MAX, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if not line.startswith("ready: "):
            self._process.kill()
            raise RuntimeError(f"side '{self.name}' printed {line!r}, expected 'ready: grpc=HOST:PORT'")
        fields = dict(word.split("=", 1) for word in line.split()[1:])
        self.address, self.metrics_url = fields["grpc"], fields.get("metrics", "")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """What it has used so far, in user and system mode; the kernel counts in hundredths of a second."""
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """The memory that it has now."""
        return sum(_resident_bytes(pid) for pid in _process_tree(self.pid))

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """What its /metrics says: name, labels, value."""
        with urllib.request.urlopen(self.metrics_url, timeout=SCRAPE_SECONDS_MAX) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return [(one.name, one.labels, one.value) for family in families for one in family.samples]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric of its /metrics over all samples that have these labels."""
        return sum(value for one, its, value in self.samples() if one == name and labels.items() <= its.items())


def environment() -> dict[str, str]:
    """What a server is started with: none of the user's own settings, and one process unless its arguments say more."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return variables | {"TIDEGATE_WORKERS": "1"}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and those below it so far, from /proc/PID/stat."""
    return sum(_cpu_seconds(one) for one in _process_tree(pid))


def _process_tree(pid: int) -> Iterator[int]:
    """A process and those below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text("ascii").split():
            yield from _process_tree(int(child))


def _cpu_seconds(pid: int) -> float:
    # The name in brackets may hold anything; the fields are counted from behind it. utime is field 14, stime 15.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def _resident_bytes(pid: int) -> int:
    # Not /proc/PID/status: what it says lags behind by some hundred kilobytes a core.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no line 'Rss:'")
