"""A server process: started, measured and stopped.

All its child processes are included, so a server with workers counts as one.
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

# Tidegate is ready in about a second, or in many times that on a busy machine.
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
SCRAPE_SECONDS_MAX = 10
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# The options of a server that stores nothing: an hour is longer than any run.
STORE_NOTHING = ("--state", "memory:", "--checkpoint-every", "1h", "--ready-lag", "2h", "--lag-max", "2h")


def serve(models: Path, *options: str) -> list[str]:
    """Returns the arguments of a `tidegate serve` on free ports of the loopback interface."""
    fixed = ["--models", str(models), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    return ["-m", "tidegate", "serve", *fixed, "--log-level", "warning", *options]


class ServerProcess:
    """A server that prints one line `ready: grpc=HOST:PORT ...` when it is ready, as `tidegate serve` does.

    It is a context manager: entering starts the process and waits for the line, leaving sends SIGTERM.

    Args:
        name: its name in tables.
        arguments: what Python runs, without Python itself.
        settings: additional environment variables.
        root: the checkout of the repository to run.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], settings: Mapping[str, str] | None = None, root: Path = ROOT
    ) -> None:
        self.name = name
        self._root = root
        self.arguments = list(arguments)
        self._environment = environment() | {"PYTHONPATH": str(root / "src")} | dict(settings or {})
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
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """Returns its user and system CPU time so far. The kernel counts in hundredths of a second."""
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """Returns its resident memory."""
        return sum(_resident_bytes(pid) for pid in _process_tree(self.pid))

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """Returns its metrics: name, labels, value."""
        with urllib.request.urlopen(self.metrics_url, timeout=SCRAPE_SECONDS_MAX) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return [(one.name, one.labels, one.value) for family in families for one in family.samples]

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric over all samples that have these labels."""
        return sum(value for one, its, value in self.samples() if one == name and labels.items() <= its.items())


def environment() -> dict[str, str]:
    """Returns the environment of a server: no settings of the user, and one worker by default."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return variables | {"TIDEGATE_WORKERS": "1"}


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its children so far, from /proc/PID/stat."""
    return sum(_cpu_seconds(one) for one in _process_tree(pid))


def _process_tree(pid: int) -> Iterator[int]:
    """Yields a process and all its children."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text("ascii").split():
            yield from _process_tree(int(child))


def _cpu_seconds(pid: int) -> float:
    # The process name in brackets can contain anything, so fields are counted after it. utime is field 14, stime 15.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def _resident_bytes(pid: int) -> int:
    # Not /proc/PID/status: its value is inexact by some hundred kilobytes per core.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no line 'Rss:'")
