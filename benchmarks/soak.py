"""Checks that memory stays flat over a million timesteps with everything that streams do.

python benchmarks/soak.py [--steps 1000000] [--seed 1] [--quick]

Half of the timesteps use `Predict`: clients open a new or a known stream, step it a few times, and then close it, delete
it, half-close the call, cancel it during a timestep, or pause until the stream is parked and step it once more. The other
half comes in blocks, from gateways that do the same with hundreds of streams at a time.

The server's resident memory is sampled all the time. The exit code is 1 when the median of the last quarter is too far
above that of the second quarter, or when at the end a stream is live or state was lost.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from compare import CONNECTIONS, Quick
from machine import describe_machine
from model import write_model
from sequential_call import SequentialCall, predict_blocks_call, predict_call
from server_process import ServerProcess, serve

from tidegate.bench.http2 import Connection

CLIENTS = 128
# A client reuses this many stream ids, so most of its streams are known and parked.
STREAMS_A_CLIENT = 8
STEPS_A_CALL = 150
GATEWAYS = 2
ROWS = 256
BLOCKS_A_CALL = 40
PARK_AFTER_SECONDS = 0.5
SAMPLE_SECONDS = 0.1
# The allowed growth: memory that malloc keeps, which settles after half a million steps, and what grpc leaks for a call
# that is cancelled while the server waits for its next message (grpc/grpc#43360: 96 bytes), doubled for heap overhead.
GROWTH_MAX = 0.03
BYTES_A_CANCELLED_CALL = 200
RUN_SECONDS_MAX = 600
EMPTY_SECONDS_MAX = 30

ENDS = {"close": 4, "forget": 4, "half-close": 4, "cut": 6, "silent": 1}


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The state of the server at one time."""

    steps: int
    cancelled: int
    resident_bytes: int


class Soak:
    """The load on one server, and its measurements.

    Args:
        side: the server.
        steps: the total number of timesteps.
        seed: of all random decisions.
    """

    def __init__(self, side: ServerProcess, steps: int, seed: int) -> None:
        self._side = side
        self._steps_max = steps
        self._seed = seed
        self.predict_steps = 0
        self.block_steps = 0
        self.ends: Counter[str] = Counter()
        self.samples: list[MemorySample] = []

    @property
    def steps(self) -> int:
        """The number of answered timesteps."""
        return self.predict_steps + self.block_steps

    @property
    def done(self) -> bool:
        """Whether there were enough timesteps."""
        return self.steps >= self._steps_max

    async def run(self) -> None:
        """Runs all clients. Raises the first error of a client."""
        connections = [await Connection.open(self._side.address) for _ in range(CONNECTIONS + GATEWAYS)]
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._run_client(number, connections[number % CONNECTIONS]))
            for number in range(GATEWAYS):
                group.create_task(self._run_gateway(number, connections[CONNECTIONS + number]))
            group.create_task(self._sample())
        for connection in connections:
            connection.close()

    async def _sample(self) -> None:
        while not self.done:
            self.samples.append(MemorySample(self.steps, self.ends["cut"], self._side.resident_bytes()))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _run_client(self, client: int, connection: Connection) -> None:
        rng = random.Random(f"{self._seed} visitor {client}")

        async def step(call: SequentialCall) -> None:
            await call.step()
            self.predict_steps += 1

        while not self.done:
            call = SequentialCall(connection, predict_call(f"visitor-{client}-{rng.randrange(STREAMS_A_CLIENT)}"))
            await call.open()
            for _ in range(rng.randrange(STEPS_A_CALL)):
                await step(call)
            self.ends[await self._end(call, rng, step)] += 1

    async def _run_gateway(self, number: int, connection: Connection) -> None:
        rng = random.Random(f"{self._seed} gateway {number}")
        names = [f"gateway-{number}-{row}" for row in range(ROWS)]

        async def step(call: SequentialCall) -> None:
            await call.step()
            self.block_steps += ROWS

        while not self.done:
            call = SequentialCall(connection, predict_blocks_call(names))
            await call.open()
            for _ in range(rng.randrange(BLOCKS_A_CALL)):
                # Blocks are much faster, so they wait for the single timesteps.
                while self.block_steps > self.predict_steps and not self.done:  # noqa: ASYNC110 - a counter sends no event
                    await asyncio.sleep(0.001)
                if self.done:
                    break
                await step(call)
            self.ends[f"gateway {await self._end(call, rng, step)}"] += 1

    async def _end(
        self, call: SequentialCall, rng: random.Random, step: Callable[[SequentialCall], Awaitable[None]]
    ) -> str:
        """Ends a call in a random way. Returns which."""
        end = rng.choices(list(ENDS), list(ENDS.values()))[0]
        if end == "silent":
            await asyncio.sleep(2 * PARK_AFTER_SECONDS)
            await step(call)
        if end == "cut":
            call.send()
            call.rpc.cancel()
        elif end in ("close", "forget"):
            await call.close(forget=end == "forget")
        else:
            await call.half_close()
        return end


def compare_memory(samples: list[MemorySample], steps: int) -> tuple[str, bool]:
    """Compares the last quarter with the second. Returns a sentence, and whether memory is flat."""
    second = [sample for sample in samples if steps / 4 <= sample.steps < steps / 2]
    last = [sample for sample in samples if sample.steps >= steps * 3 / 4]
    if not second or not last:
        return "too short to compare", True
    before, after = (median(sample.resident_bytes for sample in some) for some in (second, last))
    cancelled = median(sample.cancelled for sample in last) - median(sample.cancelled for sample in second)
    allowed = GROWTH_MAX * before + BYTES_A_CANCELLED_CALL * cancelled
    sentence = (
        f"resident memory: {before / 2**20:.1f} MB in the second quarter, {after / 2**20:.1f} MB in the last, "
        f"{(after - before) / 1024:+,.0f} KB; allowed {allowed / 1024:+,.0f} KB, {cancelled:,.0f} calls were cut between"
    )
    return sentence, after - before <= allowed


def by_eighths(samples: list[MemorySample], steps: int) -> list[float]:
    """Returns the median of the resident memory in each eighth of the run, in bytes."""
    eighths: dict[int, list[int]] = {}
    for sample in samples:
        eighths.setdefault(min(7, sample.steps * 8 // steps), []).append(sample.resident_bytes)
    return [median(some) for _, some in sorted(eighths.items())]


async def check_after_run(side: ServerProcess) -> str:
    """Waits until no stream is live. Returns what is wrong with the server; empty when nothing is."""
    try:
        async with asyncio.timeout(EMPTY_SECONDS_MAX):
            while side.metric("tidegate_streams", state="live"):  # noqa: ASYNC110 - another process sends no event
                await asyncio.sleep(0.2)
    except TimeoutError:
        return f"{side.metric('tidegate_streams', state='live'):g} streams are still live"
    lost = side.metric("tidegate_state_lost_total")
    return f"state was lost {lost:g} times" if lost else ""


async def soak(steps: int, seed: int) -> tuple[Soak, str]:
    """Runs the load on a new server."""
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        options = ["--data-dir", f"{folder}/data", "--park-after", f"{PARK_AFTER_SECONDS}s"]
        with ServerProcess("soak", serve(Path(folder), *options)) as side:
            running = Soak(side, steps, seed)
            async with asyncio.timeout(RUN_SECONDS_MAX):
                await running.run()
            return running, await check_after_run(side)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Total number of timesteps.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of the random decisions.")] = 1,
    quick: Quick = False,
) -> None:
    """Check that memory is flat after a million timesteps."""
    if quick:
        steps = 10_000
    ran, wrong = uvloop.run(soak(steps, seed))
    sentence, flat = compare_memory(ran.samples, steps)
    print(f"{ran.predict_steps:,} steps by calls and {ran.block_steps:,} in blocks, seed {seed}")
    print("ends: " + ", ".join(f"{count:,} {end}" for end, count in sorted(ran.ends.items())))
    print(
        "resident MB by eighths of the steps: "
        + " ".join(f"{one / 2**20:.1f}" for one in by_eighths(ran.samples, steps))
    )
    print(sentence)
    print(describe_machine())
    if wrong:
        print(wrong)
    if wrong or not (flat or quick):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
