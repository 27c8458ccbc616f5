"""A side of a comparison: one server process, started, watched and stopped."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from machine import ROOT

# A server of ours is ready in about a second; a loaded CI machine may take many times as long.
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Side:
    """A server that prints one line `ready: grpc=HOST:PORT ...` when it can be called, as `tidegate serve` does.

    Use it as a context manager: entering starts the process and waits for the line, leaving ends it by SIGTERM.

    Args:
        name: what tables call it.
        arguments: what Python shall run, without Python itself.

    """

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.address = ""
        self._process: subprocess.Popen[str]

    def __repr__(self) -> str:
        return f"<Side {self.name} {self.address or 'not started'}>"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, *self.arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        late = threading.Timer(READY_SECONDS_MAX, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            late.cancel()
        if not line.startswith("ready: "):
            self._process.kill()
            raise RuntimeError(f"side '{self.name}' printed {line!r}, expected 'ready: grpc=HOST:PORT'")
        self.address = dict(word.split("=", 1) for word in line.split()[1:])["grpc"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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

    def cpu_seconds(self) -> float:
        """What its threads have used so far, in user and system mode; the kernel counts in hundredths of a second."""
        return cpu_seconds(self.pid)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, from /proc/PID/stat."""
    # The name in brackets may hold anything; the fields are counted from behind it. utime is field 14, stime 15.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
