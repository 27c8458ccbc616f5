"""The load: processes that run streams in a closed loop, each sending its next timestep when it has its answer.

The client must cost much less than the server it measures. So requests are serialised beforehand, answers are not
parsed, and they travel by `frames.py`; what is left is counted too, as `client_cpu_us`.

A window goes so: the parent says whom to call and with how many streams; the process opens them and says so; the parent
says when the window begins and ends, on the clock that all processes share; the process steps from then on, counts what
was answered inside the window, closes the streams and reports. One line of JSON each.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvloop
from frames import Connection, prefixed
from machine import ROOT
from model import FEATURES
from side import Side, cpu_seconds

from protos.tidegate.v1 import tidegate_pb2 as pb

METHOD = "/tidegate.v1.TidegateService/Predict"
# Nobody answers a stream faster than this: a round trip through a Python server takes 40 us at the very best.
STEPS_PER_SECOND_MAX = 40_000
# The first byte of a response: the number and type of the field it holds. `durable` answers nothing, and comes to a stream
# that is quick enough to make hundreds of steps between two checkpoints.
PREDICTION = (pb.PredictResponse.PREDICTION_FIELD_NUMBER << 3) | 2
DURABLE = (pb.PredictResponse.DURABLE_FIELD_NUMBER << 3) | 2


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one window by all clients together, and what it cost."""

    steps: int
    seconds: float
    latencies_us: Sequence[float]
    """Of each step as its client saw it, ascending."""
    server_cpu_seconds: float
    client_cpu_seconds: float

    def latency_us(self, share: float) -> float:
        """The latency that a share of the steps did not exceed."""
        return self.latencies_us[min(len(self.latencies_us) - 1, int(share * len(self.latencies_us)))]


class Load:
    """The client processes of a run; the same ones for every side.

    Args:
        clients: how many processes.
        connections: how many connections a process spreads its streams over. On one connection, steps that are sent
            together share packets, and so cost less.
        seconds_max: the longest that a stream will run, warm-up included.

    """

    def __init__(self, clients: int, connections: int, seconds_max: float) -> None:
        self._clients = clients
        self._connections = connections
        self._seconds_max = seconds_max
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    def command(self) -> list[str]:
        """What a client process runs, without Python itself."""
        return [__file__, str(int(self._seconds_max * STEPS_PER_SECOND_MAX))]

    def __enter__(self) -> Self:
        arguments = [sys.executable, *self.command()]
        for _ in range(self._clients):
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            self._processes.append(self._stack.enter_context(process))
            self._stack.callback(process.terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, side: Side, streams: int, warmup_seconds: float, seconds: float) -> Window:
        """Runs streams against a side, and measures after the warm-up."""
        shares = [streams // self._clients + (number < streams % self._clients) for number in range(self._clients)]
        busy = [(process, share) for process, share in zip(self._processes, shares, strict=True) if share]
        for process, share in busy:
            tell(process, {"address": side.address, "streams": share, "connections": self._connections})
        for process, _ in busy:
            hear(process)
        begin = time.monotonic() + warmup_seconds
        for process, _ in busy:
            tell(process, {"begin": begin, "end": begin + seconds})
        _sleep_until(begin)
        before = side.cpu_seconds(), sum(cpu_seconds(process.pid) for process, _ in busy)
        _sleep_until(begin + seconds)
        after = side.cpu_seconds(), sum(cpu_seconds(process.pid) for process, _ in busy)
        latencies = sorted(latency for process, _ in busy for latency in hear(process)["latencies_us"])
        if not latencies:
            raise RuntimeError(f"side '{side.name}' answered nothing within {seconds:g} s")
        return Window(len(latencies), seconds, latencies, after[0] - before[0], after[1] - before[1])


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def tell(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    """Says something to a process that reads JSON, a line each."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for what a process says; raises when it has ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the benchmark ended with exit code {process.wait()}; see its traceback above")
    message: dict[str, Any] = json.loads(line)
    return message


# What follows runs in a client process.


def make_requests(count: int) -> list[bytes]:
    """Timesteps 1 to `count` as they go out; all streams send the same ones."""
    rows = np.random.default_rng(0).normal(size=(256, FEATURES)).astype("<f4")
    values = [row.tobytes() for row in rows]
    timesteps = (pb.Timestep(step=step, values=values[step % len(values)]) for step in range(1, count + 1))
    return [prefixed(pb.PredictRequest(timestep=timestep).SerializeToString()) for timestep in timesteps]


OPEN = prefixed(pb.PredictRequest(open=pb.Open()).SerializeToString())
CLOSE = prefixed(pb.PredictRequest(close=pb.Close(forget=True)).SerializeToString())


@dataclass(frozen=True, slots=True)
class Script:
    """What a stream sends, each message `prefixed`."""

    opening: bytes
    timesteps: Iterable[bytes]
    closing: bytes
    prediction: int
    """How an answer to a timestep begins."""
    half_closes: bool = False
    """Whether the server ends a call only when the client has half-closed it, and not by itself after `closing`."""


class Stream:
    """One stream from open to close, moved on by each answer. `opened` and `closed` are futures for whoever waits."""

    def __init__(self, connection: Connection, script: Script) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.latencies_us: list[float] = []
        self._connection = connection
        self._script = script
        self._timesteps = iter(script.timesteps)
        self._sent = self._begin = self._end = 0.0
        self._call = connection.call(self._on_opened)
        connection.send(self._call, script.opening)

    def go(self, begin: float, end: float) -> None:
        """Steps until `end`, and counts from `begin` on."""
        self._begin, self._end = begin, end
        self._send_next(time.monotonic())

    def _on_opened(self, _: bytes) -> None:
        self._connection.on_message(self._call, self._on_prediction)
        self.opened.set_result(None)

    def _on_prediction(self, answer: bytes) -> None:
        now = time.monotonic()
        if answer[0] == DURABLE:
            return
        if answer[0] != self._script.prediction:
            self.closed.set_exception(RuntimeError(f"expected a prediction, got {answer!r}"))
        elif now >= self._end:
            self._connection.on_message(self._call, self._on_closed)
            self._connection.send(self._call, self._script.closing)
        else:
            if now >= self._begin:
                self.latencies_us.append(round((now - self._sent) * 1e6, 1))
            self._send_next(now)

    def _on_closed(self, answer: bytes) -> None:
        if answer[0] == DURABLE:
            return
        if self._script.half_closes:
            self._connection.on_end(self._call, lambda: self.closed.set_result(None))
            self._connection.half_close(self._call)
        else:
            self._connection.hang_up(self._call)
            self.closed.set_result(None)

    def _send_next(self, now: float) -> None:
        self._sent = now
        self._connection.send(self._call, next(self._timesteps))


async def first(futures: Sequence[asyncio.Future[None]], connections: Sequence[Connection]) -> None:
    """Waits for all futures; raises when a connection fails before."""
    everything: asyncio.Future[Any] = asyncio.gather(*futures)
    failures: list[asyncio.Future[Any]] = [connection.failed for connection in connections]
    await asyncio.wait([everything, *failures], return_when=asyncio.FIRST_COMPLETED)
    for failure in failures:
        if failure.done():
            everything.cancel()
            failure.result()
    await everything


async def run_window(ask: dict[str, Any], method: str, make_script: Callable[[], Script]) -> list[float]:
    """Runs one window; gives the latencies of the steps that were answered within it."""
    address, streams = ask["address"], ask["streams"]
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(min(ask["connections"], streams)):
        _, connection = await loop.create_connection(lambda: Connection(method, address), host, int(port))
        connections.append(connection)
    running = [Stream(connections[number % len(connections)], make_script()) for number in range(streams)]
    await first([stream.opened for stream in running], connections)
    print("{}", flush=True)
    told = json.loads(await asyncio.to_thread(sys.stdin.readline))
    for stream in running:
        stream.go(told["begin"], told["end"])
    await first([stream.closed for stream in running], connections)
    for connection in connections:
        connection.close()
    return [latency for stream in running for latency in stream.latencies_us]


async def serve_parent(method: str, make_script: Callable[[], Script]) -> None:
    """Runs windows as told on stdin, until it is closed; `make_script` is asked once for each stream."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        latencies_us = await run_window(json.loads(line), method, make_script)
        print(json.dumps({"latencies_us": latencies_us}), flush=True)


if __name__ == "__main__":
    SCRIPT = Script(OPEN, make_requests(int(sys.argv[1])), CLOSE, PREDICTION)
    uvloop.run(serve_parent(METHOD, lambda: SCRIPT))
