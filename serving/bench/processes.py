"""The client processes: they start together, run one load after another, and end with the parent.

Each is a new interpreter in its own process group, so that Ctrl-C reaches the parent only.
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

from tidegate.bench.load import DRAIN_TIMEOUT_S, open_timeout_s
from tidegate.bench.messages import Ready, Report, RunTimes, SecondsDone, Stop, Task

# Starting Python and loading grpc takes half a second, or ten times that on a busy machine.
STARTUP_TIMEOUT_S = 30.0
ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = ("-m", "tidegate.bench")
# The time between sending `RunTimes` and the start of the load, so that all processes receive it in time.
START_DELAY_S = 0.1
# The time limit for closing the streams at the end.
SHUTDOWN_TIMEOUT_S = 5.0
# The interval between checks while the parent waits.
POLL_INTERVAL_S = 0.1


class ClientProcessFailed(Exception):
    """A client process has ended or does not answer. The message says which and how."""


class ClientProcesses:
    """Client processes. Leaving the context ends them.

    Args:
        count: the number of processes.
        stopped: whether the user has asked to stop.
        arguments: what Python runs; the descriptor of a pipe is appended.
        import_paths: where the processes find their imports, before PYTHONPATH.
    """

    def __init__(
        self,
        count: int,
        stopped: Callable[[], bool] = lambda: False,
        *,
        arguments: Sequence[str] = ARGUMENTS,
        # The code of this process, not that of the current folder.
        import_paths: Sequence[Path] = (ROOT,),
    ) -> None:
        self.stopped = stopped
        self._count = count
        self._arguments = arguments
        self._import_paths = import_paths
        self._stop_sent = False
        self._processes: dict[Connection[Any, Any], subprocess.Popen[bytes]] = {}
        self._active: list[Connection[Any, Any]] = []  # those with a task in this run
        self._timeout_s = 0.0

    def __repr__(self) -> str:
        return f"<ClientProcesses count={self._count} active={len(self._active)}>"

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self._shut_down(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shut_down(0.0 if kind is KeyboardInterrupt else SHUTDOWN_TIMEOUT_S)

    def open(self, tasks: list[Task]) -> Ready:
        """Starts a run: waits until all processes have opened their streams. Raises ClientProcessFailed."""
        self._active = list(self._processes)[: len(tasks)]
        self._timeout_s = max(open_timeout_s(sum(task.calls)) for task in tasks)
        for connection, task in zip(self._active, tasks, strict=True):
            self._send(connection, task)
        streams, refused, first_error = 0, Counter[str](), ""
        for ready in self._receive(Ready, time.monotonic() + STARTUP_TIMEOUT_S + self._timeout_s):
            streams += ready.streams
            refused += ready.refused
            first_error = first_error or ready.first_error
        return Ready(streams, refused, first_error)

    def start_load(self, warmup_s: float, seconds: float) -> RunTimes:
        """Starts the load. Returns its times."""
        start = time.monotonic() + START_DELAY_S
        times = RunTimes(start, start + warmup_s, start + warmup_s + seconds)
        for connection in self._active:
            self._send(connection, times)
        return times

    def collect_reports(
        self, times: RunTimes, on_seconds: Callable[[SecondsDone], None], poll: Callable[[], float]
    ) -> Iterator[Report]:
        """Yields the reports, and passes on the seconds that come before them. Raises ClientProcessFailed.

        `poll` is called regularly and returns the seconds until its next call.
        """
        end = max(times.end, time.monotonic())
        return self._receive(Report, end + DRAIN_TIMEOUT_S + 2 * self._timeout_s, on_seconds, poll)

    def _start(self) -> None:
        parent_end, child_end = Pipe()
        path = os.pathsep.join([*map(str, self._import_paths), os.environ.get("PYTHONPATH", "")])
        with socket.socket(fileno=os.dup(parent_end.fileno())) as pipe:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(STARTUP_TIMEOUT_S), 0))
        with child_end:
            self._processes[parent_end] = subprocess.Popen(  # noqa: S603 - the interpreter that runs this
                [sys.executable, "-P", *self._arguments, str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[child_end.fileno()],
                process_group=0,
                env={**os.environ, "PYTHONPATH": path},
            )

    def _shut_down(self, timeout_s: float) -> None:
        """Closes the pipes, upon which the processes end. Kills those that do not end in time."""
        for connection in self._processes:
            connection.close()
        deadline = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _receive(
        self,
        kind: type[Any],
        deadline: float,
        on_seconds: Callable[[SecondsDone], None] = lambda _: None,
        poll: Callable[[], float] = lambda: POLL_INTERVAL_S,
    ) -> Iterator[Any]:
        """Yields one message of that kind from each active process."""
        waiting = set(self._active)
        while waiting:
            poll_s = poll()
            if self.stopped() and not self._stop_sent:
                self._stop_sent = True
                stop = Stop(time.monotonic())
                for active in waiting if kind is Report else self._active:  # a process that has reported may have ended
                    self._send(active, stop)
            if time.monotonic() > deadline:
                raise ClientProcessFailed(
                    f"{len(waiting)} of {len(self._active)} client processes do not answer in time"
                )
            for connection in wait(list(waiting), min(POLL_INTERVAL_S, poll_s)):
                assert isinstance(connection, Connection)
                message = self._receive_one(connection)
                if isinstance(message, SecondsDone):
                    on_seconds(message)
                else:
                    assert isinstance(message, kind), f"a client process sent {message!r}, expected {kind.__name__}"
                    waiting.discard(connection)
                    yield message

    def _receive_one(self, connection: "Connection[Any, Any]") -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._failed(connection) from None

    def _send(self, connection: "Connection[Any, Any]", message: object) -> None:
        try:
            connection.send(message)
        except BlockingIOError:
            raise ClientProcessFailed(
                f"client process {self._processes[connection].pid} does not read its messages"
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            raise self._failed(connection) from None

    def _failed(self, connection: "Connection[Any, Any]") -> ClientProcessFailed:
        process = self._processes[connection]
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ClientProcessFailed(f"client process {process.pid} has closed its pipe and does not end")
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ClientProcessFailed(f"client process {process.pid} ended {how} before its report")
