"""The clients of `examples/clients`, run as programs: timesteps go in as lines, predictions come out as lines."""

import asyncio
import math
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import pytest

from tests.forked_programs import forked
from tests.once import process_lock
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tests.tools import find_tool

CLIENTS = ROOT / "examples" / "clients"
LEVELS = ["one", "simple", "full"]
LANGUAGES = ["python", "node"]
# Rows that are written ahead of what is answered: more than a window, so that a client can fill it.
AHEAD = 100


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Node.js, and what the clients need of it."""
    program, npm = find_tool("node", "apt-get install nodejs"), find_tool("npm", "apt-get install npm")
    with process_lock(tmp_path_factory, "node_modules"):
        if not (CLIENTS / "node" / "node_modules" / "@grpc" / "grpc-js").exists():
            subprocess.run([npm, "ci", "--loglevel=error"], check=True, cwd=CLIENTS / "node")
    return program


def command(request: pytest.FixtureRequest, language: str, level: str, *, fork: bool = True) -> list[str]:
    """How a client is started, without its arguments; the test is skipped or fails where its language is missing.

    With `fork` a Python program does not load gRPC anew.
    """
    if language == "python":
        program = str(CLIENTS / "python" / f"{level}.py")
        return forked(program) if fork else [sys.executable, program]
    return [str(request.getfixturevalue("node")), str(CLIENTS / "node" / f"{level}.js")]


def line(row: Any) -> bytes:
    """A timestep as the clients read it; what is missing is empty, or nan."""
    words = ["" if place % 2 and math.isnan(value) else repr(float(value)) for place, value in enumerate(row)]
    return (",".join(words) + "\n").encode()


class Client:
    """One client, and what it was given.

    Attributes:
        answers: the number and the packed outputs of each prediction that its user saw, in order.
        refused: the reasons of the timesteps that were dropped.

    """

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self.answers: list[tuple[int, bytes]] = []
        self.refused: list[str] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: list[str], address: str, stream_id: str, *more: str) -> "Client":
        """Starts a client of a stream."""
        process = await asyncio.create_subprocess_exec(
            *command, address, stream_id, *more, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        return cls(process, stream_id)

    @property
    def answered(self) -> int:
        """How many timesteps its user has got an answer or an error for."""
        return len(self.answers) + len(self.refused)

    async def send(self, *rows: Any) -> None:
        """Hands over timesteps."""
        assert self._process.stdin is not None
        for row in rows:
            self._process.stdin.write(line(row))
        await self._process.stdin.drain()

    async def send_all(self, rows: Any) -> None:
        """Hands over many, some way ahead of the answers, and waits for all answers."""
        for place, row in enumerate(rows):
            while place - self.answered >= AHEAD:
                await self._wait()
            await self.send(row)
        await self.has(len(rows))

    async def has(self, count: int) -> None:
        """Waits until its user has got so many answers or errors."""
        while self.answered < count:
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        if self._reading.done():
            raise AssertionError(f"{self._name} ended after {self.answered} timesteps: {await self.end()}")
        async with asyncio.timeout(TIMEOUT_S):
            await self._changed.wait()

    async def close(self) -> None:
        """Ends its input; it has to end well."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await self.end() == (0, "")

    async def end(self) -> tuple[int, str]:
        """Waits until it has ended. Returns its exit status and its stderr."""
        assert self._process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            stderr = (await self._process.stderr.read()).decode()
            return await self._process.wait(), stderr

    async def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(TIMEOUT_S):
            await self._reading
        await self.end()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for answered in self._process.stdout:
            first, second = answered.decode().split()
            if first == "refused":
                self.refused.append(second)
            else:
                self.answers.append((int(first), bytes.fromhex(second)))
            self._changed.set()
        self._changed.set()
