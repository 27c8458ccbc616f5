"""A million steps with everything that streams do, and whether memory is flat.

python benchmarks/soak.py [--steps 1000000] [--seed 1] [--quick]

Half of the steps come by `Predict`: visitors open a stream, new or known, step it a few times, and then close it, have it
forgotten, half-close, cut the call in the middle of a timestep, or are silent until the stream is parked and step it once
more. The other half comes in blocks, by gateways that do the same with hundreds of streams at a time.

The server's resident memory is sampled all the while. Exit code 1 when the median of the last quarter of the steps is above
that of the second quarter by more than is allowed; when a stream is live, or its state lost, after all have gone.
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
from machine import facts
from model import write_model
from side import Side, serve
from visit import Visit, block, one

from serving.bench.frames import Connection

VISITORS = 128
# Names that a visitor goes back to: most of its streams are known, and parked.
NAMES = 8
STEPS_A_VISIT = 150
GATEWAYS = 2
ROWS = 256
BLOCKS_A_VISIT = 40
PARK_AFTER_SECONDS = 0.5
SAMPLE_SECONDS = 0.1
# What may be more in the last quarter: what malloc keeps back, which takes half a million steps to settle, and what grpc
# leaks of a call that is cancelled while the server waits for its next message (grpc/grpc#43360: 96 bytes), with as much
# again for its neighbours on the heap.
GROWTH_MAX = 0.03
BYTES_A_CUT_CALL = 200
RUN_SECONDS_MAX = 600
EMPTY_SECONDS_MAX = 30

ENDS = {"close": 4, "forget": 4, "half-close": 4, "cut": 6, "silent": 1}


@dataclass(frozen=True, slots=True)
class Moment:
    """The server at one moment."""

    steps: int
    cut: int
    resident_bytes: int


class Soak:
    """What is done to one server, and what was seen of it.

    Args:
        side: the server.
        steps: how many in all.
        seed: of everything that is drawn.

    """

    def __init__(self, side: Side, steps: int, seed: int) -> None:
        self._side = side
        self._steps_max = steps
        self._seed = seed
        self.by_calls = 0
        self.by_blocks = 0
        self.ends: Counter[str] = Counter()
        self.moments: list[Moment] = []

    @property
    def steps(self) -> int:
        """Steps that were answered."""
        return self.by_calls + self.by_blocks

    @property
    def done(self) -> bool:
        """Whether there were enough."""
        return self.steps >= self._steps_max

    async def run(self) -> None:
        """Does everything; raises the first error that a client meets."""
        connections = [await Connection.open(self._side.address) for _ in range(CONNECTIONS + GATEWAYS)]
        async with asyncio.TaskGroup() as group:
            for number in range(VISITORS):
                group.create_task(self._visit_all(number, connections[number % CONNECTIONS]))
            for number in range(GATEWAYS):
                group.create_task(self._gate_all(number, connections[CONNECTIONS + number]))
            group.create_task(self._sample())
        for connection in connections:
            connection.close()

    async def _sample(self) -> None:
        while not self.done:
            self.moments.append(Moment(self.steps, self.ends["cut"], self._side.resident_bytes()))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _visit_all(self, visitor: int, connection: Connection) -> None:
        chance = random.Random(f"{self._seed} visitor {visitor}")

        async def step(visit: Visit) -> None:
            await visit.step()
            self.by_calls += 1

        while not self.done:
            visit = Visit(connection, one(f"visitor-{visitor}-{chance.randrange(NAMES)}"))
            await visit.open()
            for _ in range(chance.randrange(STEPS_A_VISIT)):
                await step(visit)
            self.ends[await self._end(visit, chance, step)] += 1

    async def _gate_all(self, number: int, connection: Connection) -> None:
        chance = random.Random(f"{self._seed} gateway {number}")
        names = [f"gateway-{number}-{row}" for row in range(ROWS)]

        async def step(visit: Visit) -> None:
            await visit.step()
            self.by_blocks += ROWS

        while not self.done:
            visit = Visit(connection, block(names))
            await visit.open()
            for _ in range(chance.randrange(BLOCKS_A_VISIT)):
                # Blocks are quicker by far: who is ahead waits.
                while self.by_blocks > self.by_calls and not self.done:  # noqa: ASYNC110 - a counter sends no event
                    await asyncio.sleep(0.001)
                if self.done:
                    break
                await step(visit)
            self.ends[f"gateway {await self._end(visit, chance, step)}"] += 1

    async def _end(self, visit: Visit, chance: random.Random, step: Callable[[Visit], Awaitable[None]]) -> str:
        """Ends a visit in one of the ways; says which."""
        end = chance.choices(list(ENDS), list(ENDS.values()))[0]
        if end == "silent":
            await asyncio.sleep(2 * PARK_AFTER_SECONDS)
            await step(visit)
        if end == "cut":
            visit.send()
            visit.call.cut()
        elif end in ("close", "forget"):
            await visit.close(forget=end == "forget")
        else:
            await visit.half_close()
        return end


def judge(moments: list[Moment], steps: int) -> tuple[str, bool]:
    """Compares the last quarter with the second; a sentence, and whether memory is flat."""
    second = [moment for moment in moments if steps / 4 <= moment.steps < steps / 2]
    last = [moment for moment in moments if moment.steps >= steps * 3 / 4]
    if not second or not last:
        return "too short to be judged", True
    before, after = (median(moment.resident_bytes for moment in some) for some in (second, last))
    cut = median(moment.cut for moment in last) - median(moment.cut for moment in second)
    allowed = GROWTH_MAX * before + BYTES_A_CUT_CALL * cut
    sentence = (
        f"resident memory: {before / 2**20:.1f} MB in the second quarter, {after / 2**20:.1f} MB in the last, "
        f"{(after - before) / 1024:+,.0f} KB; allowed {allowed / 1024:+,.0f} KB, {cut:,.0f} calls were cut between"
    )
    return sentence, after - before <= allowed


def by_eighths(moments: list[Moment], steps: int) -> list[float]:
    """The median of the resident memory in each eighth of the steps, in bytes."""
    eighths: dict[int, list[int]] = {}
    for moment in moments:
        eighths.setdefault(min(7, moment.steps * 8 // steps), []).append(moment.resident_bytes)
    return [median(some) for _, some in sorted(eighths.items())]


async def left_behind(side: Side) -> str:
    """Waits until no stream is live; what is wrong with the server after all have gone, empty when nothing is."""
    try:
        async with asyncio.timeout(EMPTY_SECONDS_MAX):
            while side.metric("tidegate_streams", state="live"):  # noqa: ASYNC110 - another process sends no event
                await asyncio.sleep(0.2)
    except TimeoutError:
        return f"{side.metric('tidegate_streams', state='live'):g} streams are still live"
    lost = side.metric("tidegate_state_lost_total")
    return f"state was lost {lost:g} times" if lost else ""


async def soak(steps: int, seed: int) -> tuple[Soak, str]:
    """Runs it on a server of its own."""
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        options = ["--data-dir", f"{folder}/data", "--park-after", f"{PARK_AFTER_SECONDS}s"]
        with Side("soak", serve(Path(folder), *options)) as side:
            running = Soak(side, steps, seed)
            async with asyncio.timeout(RUN_SECONDS_MAX):
                await running.run()
            return running, await left_behind(side)


def main(
    steps: Annotated[int, typer.Option(min=1, help="How many in all.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of what visitors and gateways do.")] = 1,
    quick: Quick = False,
) -> None:
    """See whether memory is flat after a million steps."""
    if quick:
        steps = 10_000
    ran, wrong = uvloop.run(soak(steps, seed))
    sentence, flat = judge(ran.moments, steps)
    print(f"{ran.by_calls:,} steps by calls and {ran.by_blocks:,} in blocks, seed {seed}")
    print("ends: " + ", ".join(f"{count:,} {end}" for end, count in sorted(ran.ends.items())))
    print(
        "resident MB by eighths of the steps: "
        + " ".join(f"{one / 2**20:.1f}" for one in by_eighths(ran.moments, steps))
    )
    print(sentence)
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    if wrong:
        print(wrong)
    if wrong or not (flat or quick):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
