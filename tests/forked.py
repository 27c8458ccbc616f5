"""`tidegate` commands in their own processes, forked with everything loaded: they start in a twentieth of the time.

A new Python needs half a second of CPU to load gRPC, onnxruntime and the rest, hundreds of times in a test run. Here
one process (`python -m tests.forked`) loads them once and forks for each command. From then on the child runs as
`python -m tidegate`: the same module under the same name, with its own environment, folder and standard files. A test of
the very start of a process, before its libraries are loaded, needs a new Python.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.root import ROOT
from tidegate.runtime.model_checker import ModelChecker

_start_checker = ModelChecker._start
# Longer than the arguments and the environment of any command.
REQUEST_BYTES_MAX = 1 << 20
# What commands load when they run. Only a few need matplotlib, redis or torch.
LOADED = (
    *(
        "tidegate.cli.app",
        "tidegate.cli.bench",
        "tidegate.cli.sensor_table",
        "tidegate.cli.streams",
        "tidegate.cli.replay",
    ),
    *("tidegate.runtime.server", "tidegate.runtime.lifecycle", "tidegate.runtime.supervisor", "tidegate.bench.run"),
    *("tidegate.runtime.model_check", "tidegate.blocking", "grpc_health.v1.health_pb2_grpc", "rich.table", "uvloop"),
)


class Forked:
    """A process that runs `tidegate ARGUMENTS`, with the part of `subprocess.Popen` that tests use.

    Its stdin is empty.

    Args:
        arguments: the arguments of the command.
        env: its whole environment.
        cwd: its working directory.
        stderr: a descriptor to write to; None for a new pipe.

    """

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, stderr: int | None = None
    ) -> None:
        self.args = ["tidegate", *arguments]
        self.returncode: int | None = None
        out, out_end = os.pipe()
        err, err_end = (-1, os.dup(stderr)) if stderr is not None else os.pipe()
        exit_pipe, exit_pipe_end = os.pipe()
        try:
            request = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}).encode()
            self.pid = _loaded().fork(request, [out_end, err_end, exit_pipe_end])
        finally:
            for end in (out_end, err_end, exit_pipe_end):
                os.close(end)
        self._ended = threading.Event()
        threading.Thread(target=self._await_end, args=(exit_pipe,), name=f"end of {self.pid}", daemon=True).start()
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] | None = None if stderr is not None else os.fdopen(err)

    def _await_end(self, exit_pipe: int) -> None:
        code = os.read(exit_pipe, 100)
        os.close(exit_pipe)
        self.returncode = int(code or -signal.SIGKILL)  # nothing: all were killed
        self._ended.set()

    def poll(self) -> int | None:
        """The exit code, as in `subprocess`; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Returns the exit code."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes from now on to stdout and stderr, until it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        files = [file for file in (self.stdout, self.stderr) if file is not None]
        texts = [""] * len(files)

        def read(place: int, file: IO[str]) -> None:
            with file:
                texts[place] = file.read()

        readers = [
            threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(files) if not pair[1].closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        return texts[0], texts[1] if len(texts) > 1 else ""

    def send_signal(self, number: int) -> None:
        """Sends a signal if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


Started = Forked | subprocess.Popen[str]


def start(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stderr: int | None = None) -> Started:
    """Starts a command: `python -m tidegate` by forking, any other one normally. `stderr` as in `Forked`."""
    if list(command[:3]) == [sys.executable, "-m", "tidegate"]:
        return Forked(command[3:], env=env, cwd=cwd, stderr=stderr)
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr is None else stderr,
        text=True,
    )


class _Loaded:
    """The process that has loaded everything, as seen by this process."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
            # Its errors go to the terminal, not into the output of a test.
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=ROOT)

    def fork(self, request: bytes, files: Sequence[int]) -> int:
        """Starts a command with this stdout, this stderr and a pipe for its exit code. Returns its process id."""
        with self._lock:
            socket.send_fds(self._line, [request], list(files))
            pid = self._line.recv(100)
        assert pid, "the process that forks has ended"
        return int(pid)

    def close(self) -> None:
        """Ends it, and with it what it has started."""
        self._line.close()
        self._process.wait()


_one: list[_Loaded] = []
_starting = threading.Lock()


def _loaded() -> _Loaded:
    """The shared process, started when it is first needed."""
    with _starting:
        if not _one:
            _one.append(_Loaded())
            atexit.register(_one[0].close)
        return _one[0]


# In the other process -----------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Forks for every request until the socket ends. Returns the request in a forked process, None in this one."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 1000)
            _tell_ended(running)
        if connection.fileno() in ready:
            data, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, 3)
            if not data:
                break
            pid = os.fork()
            if pid == 0:
                for other in (woken, wake, *running.values()):
                    os.close(other)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(files[2])
                return {**json.loads(data), "files": files[:2]}
            running[pid] = files[2]
            for file in files[:2]:
                os.close(file)
            connection.send(str(pid).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


def _tell_ended(running: dict[int, int]) -> None:
    """Writes the exit codes of ended processes to their pipes."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        exit_pipe = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(exit_pipe, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(exit_pipe)


def become(request: dict[str, Any]) -> NoReturn:
    """Becomes `python -m tidegate`."""
    for number, file in enumerate(request["files"], 1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["tidegate", *request["arguments"]]
    ModelChecker._start = staticmethod(_fork_checker)  # type: ignore[method-assign] # the libraries are loaded
    runpy.run_module("tidegate", run_name="__main__", alter_sys=True)
    sys.exit(0)


def _fork_checker(server: socket.socket) -> Callable[[], object]:
    """Tries models in a fork of this process, before it has threads; later in processes of their own."""
    ModelChecker._start = staticmethod(_start_checker)  # type: ignore[method-assign]
    pid = os.fork()
    if pid == 0:
        # Not what the server writes to: whoever reads that waits for its end.
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        keep = os.dup(server.fileno())
        os.setsid()
        for file in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if file > 2 and file != keep:
                with contextlib.suppress(OSError):
                    os.close(file)
        from tidegate.runtime import model_check

        model_check.main(socket.socket(fileno=keep))
        os._exit(0)

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):  # the supervisor reaps all
            os.waitpid(pid, 0)

    return wait


def main() -> None:
    """Loads everything, then serves requests."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # as in `tidegate`, before gRPC is loaded

    for module in LOADED:
        importlib.import_module(module)
    gc.freeze()  # what is loaded stays, so the collector need not examine it again

    with socket.socket(fileno=int(sys.argv[1])) as connection:
        request = serve(connection)
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
