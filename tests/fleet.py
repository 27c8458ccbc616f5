"""Many streams over servers that are killed, and an oracle that checks what each client got.

A `Fleet` runs clients that send known rows and record every prediction in the order in which they get it. A `ServerProcess` is a
server process on a fixed port that can be killed and restarted on the same data. At the end, `check_predictions` runs each
stream's rows alone through bare onnxruntime and reports every difference.
"""

import asyncio
import os
import signal
import sqlite3
import sys
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.forked import Started, start
from tests.oracle import replay, same_bits
from tests.ports import free_port
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client


def rows_of(stream: int, count: int, features: int = 8) -> Any:
    """The rows of a stream, (count, features): determined by its number, with missing values among them."""
    rng = np.random.default_rng(stream)
    rows = rng.normal(size=(count, features)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    return rows


def _is_locked(state: str) -> bool:
    """Whether a process holds the lock of a SQLite file. `state` is the address of any store."""
    if not state.startswith("sqlite://"):
        return False
    with closing(sqlite3.connect(state.removeprefix("sqlite://"), timeout=0, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        database.execute("ROLLBACK")
    return False


@dataclass
class Delivered:
    """What one client got: (step, outputs) in order."""

    rows: Any
    answers: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    first_step: int = 1


def check_predictions(graph: bytes, delivered: Delivered) -> str:
    """The result of the oracle: empty if every prediction came once, in order, and with the bits of the graph run alone."""
    truth = replay(graph, delivered.rows)
    steps = [step for step, _ in delivered.answers]
    expected = list(range(delivered.first_step, len(delivered.rows) + 1))
    if steps != expected:
        wrong = next(
            (place for place, (got, want) in enumerate(zip(steps, expected, strict=False)) if got != want), None
        )
        return (
            f"delivered {len(steps)} steps, expected {len(expected)}; first difference at place {wrong}: {steps[-5:]}"
        )
    for step, outputs in delivered.answers:
        if not same_bits(outputs, truth[step - 1]):
            return f"step {step}: delivered {outputs}, the oracle says {truth[step - 1]}"
    return ""


class ServerProcess:
    """A server process that can be killed and restarted, on the same port and the same data.

    Args:
        models: the folder of models.
        state: the address of the store.
        options: more options of `tidegate serve`.
        before: a command that runs it.
        stderr: a descriptor for its log.

    """

    def __init__(
        self,
        models: Path,
        state: str,
        *options: str,
        port: int | None = None,
        before: Sequence[str] = (),
        stderr: int = 2,
    ) -> None:
        self.models = models
        self.stderr = stderr
        self.state = state
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.metrics_url = ""
        self._command = [
            *before, sys.executable, "-m", "tidegate", "serve", "--models", str(models), "--host", "127.0.0.1",
            "--port", str(self.port), "--metrics-port", "0", "--state", state, "--log-level", "warning",
            "--workers", "1", *options,
        ]  # fmt: skip
        self.process: Started | None = None

    async def start(self, crash: str = "") -> None:
        """Starts the server and waits until it is ready; `crash` is a crash point, as in `tidegate.runtime.crash_points`."""
        environment = {**os.environ, "TIDEGATE_CRASH": crash, "TIDEGATE_LOG_FORMAT": "text"}
        self.process = await asyncio.to_thread(start, self._command, env=environment, cwd=ROOT, stderr=self.stderr)
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.startswith("ready: "), f"the server did not start: {line!r}, exit code {self.process.poll()}"
        self.metrics_url = line.split("metrics=")[1].split()[0]

    def scrape(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(self.metrics_url, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """The values of /metrics by sample, summed over the workers."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.scrape()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items() if name != "worker")
                name = sample.name + (f"{{{labels}}}" if labels else "")
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def workers(self) -> dict[int, int]:
        """The process id of each running worker, by the worker's number."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("ascii").split()
        found = {}
        for pid in map(int, children):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):  # it has died, and was waited for
                continue
            if b"tidegate.cli.worker" in words:  # else it has died
                found[int(words[words.index(b"tidegate.cli.worker") + 1])] = pid
        return found

    async def freeze(self) -> None:
        """Stops the process until it gets SIGCONT, at a moment when nobody holds the lock of its SQLite file.

        A server that is stopped in a transaction keeps everyone else from writing.
        """
        while True:
            self.send(signal.SIGSTOP)
            await eventually(self._is_stopped, "the stop of the process")
            if not _is_locked(self.state):
                return
            self.send(signal.SIGCONT)
            await asyncio.sleep(0.01)

    def _is_stopped(self) -> bool:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/stat").read_text("ascii")
        return status.rsplit(")", 1)[1].split()[0] == "T"

    def descriptors(self) -> int:
        """How many descriptors the process has open."""
        assert self.process is not None
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Waits for the process to end. Returns its exit code."""
        assert self.process is not None
        async with asyncio.timeout(TIMEOUT_S):
            code = await asyncio.to_thread(self.process.wait)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    async def kill(self) -> None:
        """`kill -9`."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """Sends SIGTERM. Returns the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()

    async def close(self) -> None:
        """Kills what still runs."""
        if self.process is not None:
            await self.kill()


class Fleet:
    """Clients with many streams.

    Each stream sends its rows as fast as it gets answers; the streams share a few connections.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        streams: int,
        steps: int,
        *,
        sync: bool = False,
        pause_s: float = 0.0,
        prefix: str = "stream",
    ) -> None:
        self.delivered = [Delivered(rows_of(stream, steps)) for stream in range(streams)]
        self._addresses = addresses
        self._sync = sync
        self._pause_s = pause_s
        self._prefix = prefix
        self.answered = 0

    async def run(self, clients: int = 4) -> None:
        """Sends everything. Raises the first error that the user of a client would see."""
        opened = [Client(self._addresses[place % len(self._addresses)]) for place in range(clients)]
        try:
            async with asyncio.TaskGroup() as group:
                for number, delivered in enumerate(self.delivered):
                    group.create_task(self._stream(opened[number % clients], number, delivered))
        finally:
            for client in opened:
                await client.close()

    async def _stream(self, client: Client, number: int, delivered: Delivered) -> None:
        async with client.open(f"{self._prefix}-{number}", sync=self._sync) as stream:
            for row in delivered.rows:
                prediction = await stream.step(row)
                delivered.answers.append((prediction.step, dict(prediction)))
                self.answered += 1
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)

    async def reached(self, answers: int) -> None:
        """Waits until all clients together got so many predictions."""
        while self.answered < answers:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.002)

    def problems(self, graph: bytes) -> list[str]:
        """What the oracle finds wrong, one line for each bad stream; empty when everything is right."""
        return [
            f"stream {number}: {wrong}"
            for number, delivered in enumerate(self.delivered)
            if (wrong := check_predictions(graph, delivered))
        ]


class Gateway:
    """A client that sends random blocks for many streams: some rows are invalid, some streams catch up.

    `delivered` holds for each stream its valid rows and their answers.
    """

    def __init__(self, address: str, streams: int, steps: int, seed: int, *, sync: bool = False) -> None:
        self._address = address
        self._sync = sync
        self._rng = np.random.default_rng(seed)
        self.delivered = [Delivered(rows_of(1000 * seed + stream, steps)) for stream in range(streams)]
        self._sent = [0] * streams
        self.refused = 0
        self.blocks = 0

    async def run(self) -> None:
        """Sends everything, a few blocks ahead."""
        async with (
            Client(self._address) as client,
            client.block([f"gateway-{number}" for number in range(len(self.delivered))], sync=self._sync) as block,
        ):
            under_way: deque[tuple[asyncio.Task[Any], list[int], list[bool]]] = deque()
            while under_way or not self.done:
                while not self.done and len(under_way) < 3:
                    places, bad, x = self._next()
                    task = asyncio.create_task(block.step(x, places))
                    await asyncio.sleep(0)  # so that it is queued before the next one
                    under_way.append((task, places, bad))
                task, places, bad = under_way.popleft()
                self._note(await task, places, bad)
                self.blocks += 1

    @property
    def done(self) -> bool:
        """Whether every valid row was sent."""
        return all(sent == len(delivered.rows) for sent, delivered in zip(self._sent, self.delivered, strict=True))

    def _next(self) -> tuple[list[int], list[bool], Any]:
        """The next block: the stream of each row, whether the row is invalid, and the values."""
        places, bad, x = [], [], []
        for place in self._rng.permutation(len(self.delivered)).tolist():
            rows = self.delivered[place].rows
            for _ in range(int(self._rng.choice([0, 1, 1, 1, 1, 1, 2, 7]))):
                if self._sent[place] == len(rows):
                    break
                wrong = bool(self._rng.random() < 0.03)
                row = rows[self._sent[place]]
                places.append(place)
                bad.append(wrong)
                x.append(np.full_like(row, np.inf) if wrong else row)
                self._sent[place] += not wrong
        return places, bad, np.array(x, np.float32).reshape(len(places), self.delivered[0].rows.shape[1])

    def _note(self, answer: Any, places: list[int], bad: list[bool]) -> None:
        assert set(answer.errors) == {row for row, wrong in enumerate(bad) if wrong}, answer.errors
        self.refused += sum(bad)
        for row, (place, wrong) in enumerate(zip(places, bad, strict=True)):
            if not wrong:
                outputs = {name: column[row] for name, column in answer.outputs.items()}
                self.delivered[place].answers.append((int(answer.steps[row]), outputs))

    async def reached(self, blocks: int) -> None:
        """Waits until so many blocks were answered."""
        while self.blocks < blocks and not self.done:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.001)

    def problems(self, graph: bytes) -> list[str]:
        """What the oracle finds wrong, one line for each bad stream; empty when everything is right."""
        return [
            f"stream {number}: {wrong}"
            for number, delivered in enumerate(self.delivered)
            if (wrong := check_predictions(graph, delivered))
        ]
