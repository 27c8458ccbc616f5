"""The client processes: started together, begun together, run after run, and none outlives the bench.

Each is a fresh interpreter in a process group of its own, so that Ctrl-C reaches the parent alone, and it ends by itself
when the parent is gone.
"""

import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving.bench.load import DRAIN_S, patience_s
from serving.bench.words import Go, Ready, Report, Seconds, Stop, Task

# Starting Python and loading grpc takes half a second, ten times that on a busy machine.
START_S = 30.0
ROOT = Path(__file__).parent.parent.parent
ENTRY = ("-m", "serving.bench")
# From the word to the first timestep: time for the word to get around.
HEAD_START_S = 0.1
# For closing streams when there is nothing more to be learnt.
PARTING_S = 5.0
# How often the parent looks up from waiting.
LOOK_S = 0.1


class CrewFailed(Exception):
    """A client process has ended or does not answer; the message says which and how."""


class Crew:
    """Client processes; leaving the context ends those that are left, politely.

    Args:
        count: how many.
        stopped: whether the user has had enough.
        entry: what Python runs, with the number of an open file behind it.
        paths: where it finds what it imports, before PYTHONPATH.

    """

    def __init__(
        self,
        count: int,
        stopped: Callable[[], bool] = lambda: False,
        *,
        entry: Sequence[str] = ENTRY,
        # The very code that this process runs, not what may lie in the current folder.
        paths: Sequence[Path] = (ROOT,),
    ) -> None:
        self.stopped = stopped
        self._count = count
        self._entry = entry
        self._paths = paths
        self._told_to_stop = False
        self._processes: dict[Connection[Any, Any], subprocess.Popen[bytes]] = {}
        self._busy: list[Connection[Any, Any]] = []  # those that have a task in this run
        self._patience_s = 0.0

    def __repr__(self) -> str:
        return f"<Crew of {self._count}, {len(self._busy)} busy>"

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self._part(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._part(0.0 if kind is KeyboardInterrupt else PARTING_S)

    def open(self, tasks: list[Task]) -> Ready:
        """Begins a run: waits until all have opened their streams, or were refused. Raises CrewFailed."""
        self._busy = list(self._processes)[: len(tasks)]
        self._patience_s = max(patience_s(sum(task.lanes)) for task in tasks)
        for link, task in zip(self._busy, tasks, strict=True):
            self._tell(link, task)
        streams, refused, why = 0, Counter[str](), ""
        for ready in self._hear(Ready, time.monotonic() + START_S + self._patience_s):
            streams += ready.streams
            refused += ready.refused
            why = why or ready.why
        return Ready(streams, refused, why)

    def go(self, warmup_s: float, seconds: float) -> Go:
        """Begins the load; says when it is what."""
        start = time.monotonic() + HEAD_START_S
        go = Go(start, start + warmup_s, start + warmup_s + seconds)
        for link in self._busy:
            self._tell(link, go)
        return go

    def watch(self, go: Go, take: Callable[[Seconds], None], look: Callable[[], float]) -> Iterator[Report]:
        """Gives the reports, and hands on the seconds meanwhile; looks up when `look` wants to. Raises CrewFailed."""
        end = max(go.end, time.monotonic())
        return self._hear(Report, end + DRAIN_S + 2 * self._patience_s, take, look)

    def _start(self) -> None:
        ours, theirs = Pipe()
        path = os.pathsep.join([*map(str, self._paths), os.environ.get("PYTHONPATH", "")])
        with socket.socket(fileno=os.dup(ours.fileno())) as pipe:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_S), 0))
        with theirs:
            self._processes[ours] = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, "-P", *self._entry, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env={**os.environ, "PYTHONPATH": path},
            )

    def _part(self, patience_s: float) -> None:
        """Hangs up, upon which processes that still run close their streams and end; ends those that do not."""
        for link in self._processes:
            link.close()
        deadline = time.monotonic() + patience_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _hear(
        self,
        kind: type[Any],
        deadline: float,
        take: Callable[[Seconds], None] = lambda _: None,
        look: Callable[[], float] = lambda: LOOK_S,
    ) -> Iterator[Any]:
        """One word of that kind from each."""
        silent = set(self._busy)
        while silent:
            wanted_s = look()
            if self.stopped() and not self._told_to_stop:
                self._told_to_stop = True
                stop = Stop(time.monotonic())
                for busy in silent if kind is Report else self._busy:  # one that has reported may be gone
                    self._tell(busy, stop)
            if time.monotonic() > deadline:
                raise CrewFailed(f"{len(silent)} of {len(self._busy)} client processes do not answer")
            for link in wait(list(silent), min(LOOK_S, wanted_s)):
                assert isinstance(link, Connection)
                word = self._word(link)
                if isinstance(word, Seconds):
                    take(word)
                else:
                    assert isinstance(word, kind), f"a client process said {word!r}, expected {kind.__name__}"
                    silent.discard(link)
                    yield word

    def _word(self, link: "Connection[Any, Any]") -> Any:
        try:
            return link.recv()
        except (EOFError, ConnectionResetError):
            raise self._failed(link) from None

    def _tell(self, link: "Connection[Any, Any]", word: object) -> None:
        try:
            link.send(word)
        except BlockingIOError:
            raise CrewFailed(f"client process {self._processes[link].pid} does not listen") from None
        except (BrokenPipeError, ConnectionResetError):
            raise self._failed(link) from None

    def _failed(self, link: "Connection[Any, Any]") -> CrewFailed:
        process = self._processes[link]
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return CrewFailed(f"client process {process.pid} has hung up and does not end")
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return CrewFailed(f"client process {process.pid} ended {how} before it had reported")
