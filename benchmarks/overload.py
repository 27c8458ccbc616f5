"""More than a server can take, and clients that do not read, and whether anybody else notices.

python benchmarks/overload.py [--rounds 5] [--seconds 2] [--quick]

The server's queue holds Q timesteps. Q streams in a closed loop just fill it: that is the load at the bound. Then twice and
four times as many streams press; each that is refused waits as long as it was told and sends the same timestep again. Then
Q streams once more; then Q streams beside calls whose clients send and never read, until flow control stops them.

Exit code 1 when, over the rounds,
- the median p99 of accepted timesteps with twice as many streams is above twice that at the bound; with four times as many
  it is told only: a refusal costs the server nearly what a step does,
- nothing is refused, or a refusal is not OVERLOADED with a time to wait,
- the p99 of Q streams afterwards, or beside the slow readers, is above one and a half times what it was before,
- the server's memory grows by more than what it may hold for the streams and calls that press.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import uvloop
from call import VALUES, connect
from frames import Connection, prefixed
from gateway import Gateway, channel
from load import CLOSE, DURABLE, METHOD, OPEN, PREDICTION, first
from machine import facts, load_average
from model import write_model
from side import Side, serve

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.rpc.names import reason_name

BOUND, AFTERWARDS, SLOW = "at the bound", "afterwards", "beside slow readers"
QUEUE_MAX = 64
# A batch is half of the queue, so that the queue has something to do at the bound.
BATCH_MAX = 32
PRESSURES = {"twice": 2, "four times": 4}
JUDGED = "twice"
CONNECTIONS = 4
P99_RATIO_MAX = 2.0
P99_RATIO_AFTER_MAX = 1.5
# Calls whose clients do not read, of either kind.
SLOW_CALLS = 8
SLOW_ROWS = 64
# A message that the network has not taken for so long is held back by flow control.
STOPPED_SECONDS = 0.5
# The most that one call may get rid of and the server may hold for it: what is under way to and fro, some windows of 64 KB.
TAKEN_BYTES_MAX = 2**20
BYTES_A_CALL = 256 * 1024
# What malloc keeps back at random.
BYTES_BESIDE = 4 * 2**20
RUN_SECONDS_MAX = 300


@dataclass(slots=True)
class Seen:
    """What the clients of one phase saw within its window."""

    accepted_us: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: str = ""
    """What a refusal was that should not have been."""

    def p99_us(self) -> float:
        """The latency that 99 of 100 accepted timesteps did not exceed."""
        ordered = sorted(self.accepted_us)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


class Presser:
    """A stream in a closed loop that is told to wait and does."""

    def __init__(self, connection: Connection, seen: Seen) -> None:
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._connection = connection
        self._seen = seen
        self._step = 1
        self._sent = self._begin = self._end = 0.0
        self._call = connection.call(self._on_opened)
        connection.send(self._call, OPEN)

    def go(self, begin: float, end: float) -> None:
        """Steps until `end`, and counts from `begin` on."""
        self._begin, self._end = begin, end
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        timestep = pb.Timestep(step=self._step, values=VALUES)
        self._connection.send(self._call, prefixed(pb.PredictRequest(timestep=timestep).SerializeToString()))

    def _on_opened(self, _: bytes) -> None:
        self._connection.on_message(self._call, self._on_answer)
        self.opened.set_result(None)

    def _on_answer(self, answer: bytes) -> None:
        now = time.monotonic()
        if answer[0] == DURABLE:
            return
        counts = self._begin <= now < self._end
        wait_s = 0.0
        if answer[0] == PREDICTION:
            self._step += 1
            if counts:
                self._seen.accepted_us.append((now - self._sent) * 1e6)
        else:
            error = pb.PredictResponse.FromString(answer).error
            if error.reason != pb.Error.REASON_OVERLOADED or not error.retry_after.ToMilliseconds():
                self._seen.wrong = f"{reason_name(error.reason)}, retry_after {error.retry_after}"
            self._seen.refused += counts
            wait_s = error.retry_after.ToTimedelta().total_seconds()
        if now >= self._end:
            self._connection.on_message(self._call, self._on_closed)
            self._connection.send(self._call, CLOSE)
        elif wait_s:
            self._loop.call_later(wait_s, self._send)
        else:
            self._send()

    def _on_closed(self, answer: bytes) -> None:
        if answer[0] == DURABLE:
            return
        self._connection.hang_up(self._call)
        self.closed.set_result(None)


async def press(side: Side, streams: int, warmup: float, seconds: float) -> Seen:
    """Runs streams in a closed loop against a server."""
    seen = Seen()
    connections = [await connect(side.address) for _ in range(CONNECTIONS)]
    pressers = [Presser(connections[number % CONNECTIONS], seen) for number in range(streams)]
    await first([presser.opened for presser in pressers], connections)
    begin = time.monotonic() + warmup
    for presser in pressers:
        presser.go(begin, begin + seconds)
    await first([presser.closed for presser in pressers], connections)
    for connection in connections:
        connection.close()
    if not seen.accepted_us:
        raise RuntimeError(f"{streams} streams had nothing accepted within {seconds:g} s")
    return seen


async def stop_reading(stack: AsyncExitStack, side: Side) -> int:
    """Opens calls of both kinds whose clients send and never read, until nothing more is taken.

    Returns the most bytes that one of them could send; the calls are open until the stack is left.
    """
    # The client's own window stays small: how much it lets the server send is not what is asked here.
    connection = await stack.enter_async_context(channel(side.address, ("grpc.http2.bdp_probe", 0)))
    calls = [connection.stream_stream(METHOD)() for _ in range(SLOW_CALLS)]
    gateways = [await Gateway.open(connection, [""] * SLOW_ROWS) for _ in range(SLOW_CALLS)]
    floods = [_flood_predict(call) for call in calls] + [_flood_blocks(gateway) for gateway in gateways]
    for call in (*calls, *(gateway.call for gateway in gateways)):
        stack.callback(call.cancel)
    return max(await asyncio.gather(*floods))


async def _flood_predict(call: Any) -> int:
    sent = 0
    request = pb.PredictRequest(open=pb.Open())
    for step in count(1):
        message = request.SerializeToString()
        if sent > TAKEN_BYTES_MAX or not await _is_taken(call.write(message)):
            break
        sent += len(message)
        request = pb.PredictRequest(timestep=pb.Timestep(step=step, values=VALUES))
    return sent


async def _flood_blocks(gateway: Gateway) -> int:
    sent = 0
    while sent <= TAKEN_BYTES_MAX and await _is_taken(gateway.send()):
        sent += gateway.block_bytes
    return sent


async def _is_taken(write: Awaitable[None]) -> bool:
    try:
        await asyncio.wait_for(write, STOPPED_SECONDS)
    except TimeoutError:
        return False
    return True


async def measure(rounds: int, warmup: float, seconds: float) -> list[str]:
    """Runs all phases in turn, prints what was seen; gives what is not as it should be."""
    streams = {BOUND: QUEUE_MAX, **{name: times * QUEUE_MAX for name, times in PRESSURES.items()}}
    streams |= {AFTERWARDS: QUEUE_MAX, SLOW: QUEUE_MAX}
    phases: dict[str, list[Seen]] = {name: [] for name in streams}
    grown = dict.fromkeys((*PRESSURES, SLOW), 0)
    taken = 0
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        options = ["--data-dir", f"{folder}/data", "--queue-max", str(QUEUE_MAX), "--batch-max", str(BATCH_MAX)]
        with Side("overload", serve(Path(folder), *options)) as side:
            await press(side, max(streams.values()), 0.0, warmup)  # what every server fills is filled
            calm = side.resident_bytes()
            for _ in range(rounds):
                for name, many in streams.items():
                    async with AsyncExitStack() as stack:
                        if name == SLOW:
                            taken = max(taken, await stop_reading(stack, side))
                        phases[name].append(await press(side, many, warmup, seconds))
                        if name in grown:
                            grown[name] = max(grown[name], side.resident_bytes() - calm)
    p99_us = {name: median(seen.p99_us() for seen in some) for name, some in phases.items()}
    for name, some in phases.items():
        accepted = sum(len(one.accepted_us) for one in some) / seconds / rounds
        refused = sum(one.refused for one in some) / seconds / rounds
        print(f"{name}: {streams[name]} streams, {accepted:,.0f} accepted and {refused:,.0f} refused a second, "
              f"p99 {p99_us[name] / 1000:.2f} ms ({p99_us[name] / p99_us[BOUND]:.2f})")  # fmt: skip
    print(f"{2 * SLOW_CALLS} calls that never read could send {taken:,} bytes at most")
    print("memory: " + ", ".join(f"{size / 2**20:+.1f} MB {name}" for name, size in grown.items())
          + f"; load average {load_average():.1f}")  # fmt: skip
    found = faults(phases, p99_us, grown)
    if taken > TAKEN_BYTES_MAX:
        found.append(f"{SLOW}: one call sent {taken:,} bytes and was not stopped, expected at most {TAKEN_BYTES_MAX:,}")
    return found


def faults(phases: dict[str, list[Seen]], p99_us: dict[str, float], grown: dict[str, int]) -> list[str]:
    """What is not as it should be."""
    found = []
    before = p99_us[BOUND]
    for name, ratio_max in ((JUDGED, P99_RATIO_MAX), (AFTERWARDS, P99_RATIO_AFTER_MAX), (SLOW, P99_RATIO_AFTER_MAX)):
        if p99_us[name] > ratio_max * before:
            found.append(
                f"{name}: p99 is {p99_us[name] / before:.2f} times that at the bound, expected at most {ratio_max}"
            )
    found += [f"{name}: nothing was refused" for name in PRESSURES if not sum(seen.refused for seen in phases[name])]
    found += [f"{name}: refused with {seen.wrong}" for name, some in phases.items() for seen in some if seen.wrong]
    calls = {name: times * QUEUE_MAX for name, times in PRESSURES.items()} | {SLOW: 2 * SLOW_CALLS}
    for name, growth in grown.items():
        allowed = BYTES_BESIDE + calls[name] * BYTES_A_CALL
        if growth > allowed:
            found.append(f"{name}: memory grew by {growth:,} bytes, expected at most {allowed:,}")
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each phase has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a phase, without warm-up.")] = 2.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each phase that are not counted.")] = 0.5,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; nothing is judged.")] = False,
) -> None:
    """See whether pressure and slow readers harm anybody else."""
    if quick:
        rounds, seconds, warmup = 1, 0.3, 0.1
    found = uvloop.run(asyncio.wait_for(measure(rounds, warmup, seconds), RUN_SECONDS_MAX))
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    for fault in found:
        print(fault)
    if found and not quick:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
