"""The process that tries models before they are served, as a server sees it: see `runtime.model_check`.

This module imports no library that a model needs, so the supervisor can use it.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tidegate.core.errors import ContractBroken
from tidegate.runtime.worker_process import own_environment

# An answer holds the batch sizes that change bits: some thousands of numbers at most.
LINE_BYTES_MAX = 1 << 20
# What a model may need beside its files: the libraries' buffers, and the batches of the check.
MEMORY_BYTES = 1 << 30
# How much memory a byte of a file may take: the file as read, as parsed, as the session's own, and as optimised.
BYTES_A_FILE_BYTE = 4


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a model may take when it is tried.

    Attributes:
        batch_max: the largest batch that it must run.
        memory_bytes: its memory; 0 for `MEMORY_BYTES` and `BYTES_A_FILE_BYTE` for each byte of its files.
        load_s: the seconds until it is loaded, and again until it is checked.
        step_s: the seconds of one timestep.
        device: where it runs; see `core.device`.

    """

    batch_max: int
    memory_bytes: int
    load_s: float
    step_s: float
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A version that was tried, and can be served.

    Attributes:
        name, version: what it is served as.
        folder: where its copy is.
        fingerprint: the fingerprint that it must have wherever it is loaded.
        check: what was found, the fields of a `SelfCheck`.
        warnings: what an operator should know of that, in sentences.
        sizes: the batch sizes that it runs, in words.
        device: where it runs.

    """

    name: str
    version: str
    folder: str
    fingerprint: str
    check: Mapping[str, Any]
    warnings: Sequence[str]
    sizes: str
    device: str

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"


class ModelChecker:
    """Starts the process when it is created, so that it loads its libraries meanwhile. `close` ends it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._wait = self._start(theirs)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._connecting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter

    def __repr__(self) -> str:
        return f"<ModelChecker: {len(self._waiting)} models are tried>"

    @staticmethod
    def _start(server: socket.socket) -> Callable[[], object]:
        """Starts the process. Returns a function that waits for its end."""
        command = [sys.executable, "-P", "-m", "tidegate.runtime.model_check", str(server.fileno())]
        # One thread: this process forks, and does not compute.
        environment = {**own_environment(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603 - our own code
            command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[server.fileno()], start_new_session=True
        ).wait

    async def check(self, name: str, version: str, folder: Path, size: int, limits: TrialLimits) -> CheckedModel:
        """Tries a model, whose files have `size` bytes. Several are tried side by side.

        Raises ContractBroken when it cannot be served, with the reason.
        """
        async with self._connecting:
            if self._reading is None:
                reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=LINE_BYTES_MAX)
                self._reading = asyncio.create_task(self._read(reader), name="model checker")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request = {
            "id": number,
            "name": name,
            "version": version,
            "folder": str(folder),
            "device": limits.device,
            "batch_max": limits.batch_max,
            "memory_bytes": limits.memory_bytes or MEMORY_BYTES + BYTES_A_FILE_BYTE * size,
            "load_s": limits.load_s,
            "step_s": limits.step_s,
        }
        try:
            if self._reading.done():
                raise ContractBroken(f"{name}/{version}", "it could not be tried: the process for it has ended")
            self._writer.write(json.dumps(request).encode() + b"\n")
            match await answer:
                case {"found": found}:
                    return CheckedModel(name, version, str(folder), device=limits.device, **found)
                case {"refused": str(reason)}:
                    raise ContractBroken(f"{name}/{version}", reason)
                case message:
                    raise AssertionError(f"the process that tries models sent {message}")
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """Ends the process, and all that it has started. Does nothing the second time."""
        if self._reading is None:
            self._socket.close()
        else:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
            await self._reading
        await asyncio.to_thread(self._wait)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Passes answers on until the process has ended."""
        with suppress(ConnectionError):
            async for line in reader:
                message = json.loads(line)
                waiting = self._waiting.get(message.pop("id"))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result({"refused": "it could not be tried: the process for it has ended"})
