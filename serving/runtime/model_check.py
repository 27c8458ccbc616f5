"""A process that loads and tries models before a server does: `python -m tidegate.runtime.model_check FD`.

A graph is a program that somebody else wrote: it may crash onnxruntime, run for ever or take all memory. So each model
is loaded, run and checked in a process of its own, forked from this one, which has loaded the libraries and nothing
else. If a model harms its process, that is the finding.

FD is a socket. Each line from the server is a request as `tidegate.runtime.model_checker` makes it; each line to the
server is the answer to one: `found`, or `refused` and why. This process ends with the server.
"""

import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tidegate.core.check_rows import CheckRows
from tidegate.core.crossed_pairs import crossed_pairs
from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.onnx_file import NotOnnx, read_onnx
from tidegate.core.self_check import check_model, describe_check, describe_sizes
from tidegate.core.spec import Spec
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.model_files import GRAPH
from tidegate.runtime.model_load import load_model

MIB = 1 << 20
READ_BYTES = 1 << 16
# No file that this process has open has a number above this.
FILES_MAX = 4096
# The processor time that a process may use beyond its deadlines: it ends by itself if nobody is left to end it.
SPARE_CPU_SECONDS = 60
# How onnxruntime and the C++ library say that an allocation failed.
OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",
    "failed to allocate",
    "cannot allocate",
    "memoryerror",
)


class Trial:
    """A process that tries one model, as this process sees it."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # The graph gets nothing else. And while it runs, nobody waits for the end of what it holds.
            os.closerange(3, writer)
            os.closerange(writer + 1, FILES_MAX)
            _try(request, writer)
        os.close(writer)
        self._text = b""
        self._phase = "loaded"
        self._answer: dict[str, Any] = {}
        self._late = ""
        self._start_phase("loaded")

    def read(self) -> dict[str, Any] | None:
        """Reads what the process says. Returns the answer to the server once it has ended."""
        data = os.read(self.reader, READ_BYTES)
        if not data:
            return self._end()
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "phase" in message:
                self._start_phase(message["phase"])
            else:
                self._answer = message
        return None

    def expire(self) -> None:
        """Ends the process if it takes too long."""
        if time.monotonic() >= self.deadline and not self._late:
            seconds, option = self._limit
            self._late = f"it could not be {self._phase} within {seconds:g} s; {option} allows more"
            self.kill()

    def kill(self) -> None:
        """Ends the process."""
        os.kill(self.pid, signal.SIGKILL)

    def _start_phase(self, phase: str) -> None:
        self._phase = phase
        name, option = ("step_s", "--step-timeout") if phase == "run for one timestep" else ("load_s", "--load-timeout")
        self._limit = (self.request[name], option)
        self.deadline = time.monotonic() + self.request[name]

    def _end(self) -> dict[str, Any]:
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if self._late:
            return {"refused": self._late}
        if self._answer:
            return self._answer
        how = f"ended its process with {signal.Signals(-code).name}" if code < 0 else f"ended its process with {code}"
        memory = self.request["memory_bytes"] / MIB
        return {"refused": f"it {how} when it was {self._phase}, with {memory:.0f} MiB of memory allowed"}


def main(server: socket.socket) -> None:
    """Answers requests until the server has ended."""
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # the first process of a container ignores it, and its children inherit that
    waiting: deque[dict[str, Any]] = deque()
    trials: list[Trial] = []
    text, cores = b"", usable_cores()
    while True:
        while waiting and len(trials) < cores:
            trials.append(Trial(waiting.popleft()))
        now = time.monotonic()
        timeout = max(0.0, min(trial.deadline for trial in trials) - now) if trials else None
        readable: list[Any] = [server, *(trial.reader for trial in trials)]
        ready, _, _ = select.select(readable, [], [], timeout)
        for trial in list(trials):
            answer = trial.read() if trial.reader in ready else None
            if answer is None:
                trial.expire()
            else:
                trials.remove(trial)
                server.sendall(json.dumps({"id": trial.request["id"], **answer}).encode() + b"\n")
        if server in ready:
            data = server.recv(READ_BYTES)
            if not data:
                for trial in trials:
                    trial.kill()
                    os.waitpid(trial.pid, 0)
                return
            *lines, text = (text + data).split(b"\n")
            waiting.extend(map(json.loads, lines))


def _try(request: dict[str, Any], writer: int) -> NoReturn:
    """Tries a model, in a process of its own."""

    def tell(message: dict[str, Any]) -> None:
        os.write(writer, json.dumps(message).encode() + b"\n")

    try:
        _limit(request)
        tell({"found": _find(request, tell)})
    except ContractBroken as error:
        tell({"refused": _explained(str(error).removeprefix(f"{error.where}: "), request)})
    except MemoryError:
        tell({"refused": _explained("MemoryError", request)})
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not become an answer without a reason
        tell({"refused": f"{type(error).__name__}: {error}"})
    # Without the usual end of Python: the model may have damaged the process, and the findings are written already.
    os._exit(0)


def _limit(request: dict[str, Any]) -> None:
    """Limits the memory and the processor time of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cpu_seconds = int(2 * request["load_s"] + request["step_s"]) + SPARE_CPU_SECONDS
    with suppress(ValueError, OSError):  # a lower limit may be set already
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    # Elsewhere the limit is not kept; and CUDA reserves more addresses than any machine has memory.
    if sys.platform == "linux" and request["device"] == "cpu":
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        allowed = pages * os.sysconf("SC_PAGE_SIZE") + request["memory_bytes"]
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def _check_pairs(spec: Spec, path: Path) -> None:
    """Raises ContractBroken when the graph tells that next values of states are exchanged."""
    pairs = [(part.name, part.next_name) for part in spec.state]
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        try:
            crossed = crossed_pairs(read_onnx(view).graph, pairs)
        except NotOnnx:
            return  # onnxruntime could read it, so its names are beyond this reader
    if crossed:
        raise ContractBroken(spec.title, "; ".join(crossed))


def _find(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    """What there is to know of a model."""
    loaded = load_model(request["name"], request["version"], Path(request["folder"]), request["device"])
    model = loaded.model
    _check_pairs(model.spec, Path(request["folder"]) / GRAPH)
    tell({"phase": "run for one timestep"})
    rows = CheckRows(model.spec, 1, 1)
    try:
        model.step(rows.x[0], rows.with_stream_inputs(model.initial_state(1)))
    except ModelFailed as error:
        raise ContractBroken(model.spec.title, f"the graph cannot be run: {error}") from error
    tell({"phase": "checked"})
    check = check_model(model, request["batch_max"], time.perf_counter)
    return {
        "fingerprint": model.spec.fingerprint,
        "check": asdict(check),
        "warnings": describe_check(check),
        "sizes": describe_sizes(check, request["batch_max"]),
    }


def _explained(message: str, request: dict[str, Any]) -> str:
    """A reason, which says so when there was not enough memory."""
    if any(words in message.lower() for words in OUT_OF_MEMORY):
        memory = request["memory_bytes"] / MIB
        return f"it needs more than {memory:.0f} MiB of memory; --model-memory-max allows more ({message})"
    return message


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
