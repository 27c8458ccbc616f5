"""Measures what live streams cost in memory: ten thousand on one call of `PredictBlocks`, then a thousand calls of `Predict`.

python benchmarks/live.py [--streams 10000] [--calls 1000] [--quick]

Each stream is stepped forty times, so that all the answers are there that the server remembers. What is counted is what the
server's resident memory grows by, after a first five thousand streams (a hundred calls) have filled what every server fills.
Exit code 1 when a stream on a shared call costs more than its state and 1 KB.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from compare import CONNECTIONS, Quick
from machine import facts
from model import HIDDEN, OUTPUTS, state_names, write_model
from side import Side, serve
from visit import Visit, block, one

from serving.bench.frames import Connection
from serving.bench.speech import Many

# The ring of answers, as the server comes, is full after 32.
STEPS = 40
REST_BYTES_MAX = 1024
STATE_BYTES = 4 * HIDDEN * len(state_names())
ANSWERS_REMEMBERED = 32
STREAMS_FIRST = 5000
CALLS_FIRST = 100
# Streams are opened and stepped so many at a time: messages that hold all of them would be counted with them.
ROWS = 1000
# numpy asks for huge pages for the slabs of state, and the system then backs rows two megabytes at a time, used or not:
# several thousand streams too early or too late for what is asked here.
# One connection takes nearly all of the live streams that a server may have.
SETTINGS = {"NUMPY_MADVISE_HUGEPAGE": "0", "TIDEGATE_PEER_LIVE_MAX": "16384"}
RUN_SECONDS_MAX = 300
# The store is behind by a fraction of a second; a loaded machine may take many times as long.
STORE_SECONDS_MAX = 60


async def settled_bytes(side: Side) -> int:
    """The memory of a server once it has stored everything."""
    async with asyncio.timeout(STORE_SECONDS_MAX):
        while side.metric("tidegate_unsaved_seconds"):  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.1)
    return side.resident_bytes()


async def growth(first: int, count: int, side: Side, step_all: Callable[[int], Awaitable[None]]) -> float:
    """What one of them costs, after the first."""
    await step_all(first)
    before = await settled_bytes(side)
    await step_all(count)
    return (await settled_bytes(side) - before) / count


async def growth_of_streams(side: Side, streams: int) -> float:
    """What a stream costs that shares its call with all others."""
    connection = await Connection.open(side.address)
    call = connection.call(Many.method, lambda _: None, lambda _: None)

    async def step_all(count: int) -> None:
        visits = [Visit(connection, block([""] * min(ROWS, count - at)), call) for at in range(0, count, ROWS)]
        for visit in visits:
            await visit.open()
        for _ in range(STEPS):
            for visit in visits:
                await visit.step()

    of_streams = await growth(STREAMS_FIRST, streams, side, step_all)
    connection.close()
    return of_streams


async def growth_of_calls(side: Side, calls: int) -> float:
    """What a stream costs that has a call of its own."""
    connections = [await Connection.open(side.address) for _ in range(CONNECTIONS)]

    async def step(number: int) -> None:
        visit = Visit(connections[number % CONNECTIONS], one())
        await visit.open()
        for _ in range(STEPS):
            await visit.step()

    async def step_all(count: int) -> None:
        await asyncio.gather(*(step(number) for number in range(count)))

    of_calls = await growth(CALLS_FIRST, calls, side, step_all)
    for connection in connections:
        connection.close()
    return of_calls


async def measure(streams: int, calls: int) -> tuple[float, float]:
    """Both growths, each on a server of its own."""
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        async with asyncio.timeout(RUN_SECONDS_MAX):
            with Side("blocks", serve(Path(folder), "--data-dir", f"{folder}/a"), SETTINGS) as side:
                of_streams = await growth_of_streams(side, streams)
            with Side("calls", serve(Path(folder), "--data-dir", f"{folder}/b"), SETTINGS) as side:
                return of_streams, await growth_of_calls(side, calls)


def main(
    streams: Annotated[int, typer.Option(min=1, max=11_000, help="Streams on one PredictBlocks call.")] = 10_000,
    calls: Annotated[int, typer.Option(min=1, help="Predict calls.")] = 1000,
    quick: Quick = False,
) -> None:
    """Measure what live streams cost in memory."""
    if quick:
        streams, calls = 500, 50
    of_streams, of_calls = uvloop.run(measure(streams, calls))
    rest = of_streams - STATE_BYTES
    answers = ANSWERS_REMEMBERED * 4 * OUTPUTS
    print(f"{streams:,} live streams on one call: {of_streams:,.0f} bytes each")
    print(f"  its state {STATE_BYTES:,}, the rest {rest:,.0f}, of which remembered answers {answers:,}")
    print(f"{calls:,} calls of one stream: {of_calls:,.0f} bytes each, {of_calls - of_streams:,.0f} more than above")
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    if rest > REST_BYTES_MAX and not quick:
        print(f"a live stream costs {rest:,.0f} bytes beside its state, expected at most {REST_BYTES_MAX:,}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
