"""Measures the memory of live streams: ten thousand on ten calls of `PredictBlocks`, a thousand on calls of `Predict`.

python benchmarks/live.py [--streams 10000] [--calls 1000] [--quick]

Each stream is stepped forty times, so that the server remembers the maximum number of answers. The result is the growth
of the server's resident memory, after five thousand streams (or a hundred calls) have filled the caches of the server.
The exit code is 1 when a stream on a shared call costs more than its state and 1 KB.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from compare import CONNECTIONS, Quick
from machine import describe_machine
from model import HIDDEN, OUTPUTS, state_names, write_model
from sequential_call import SequentialCall, predict_blocks_call, predict_call
from server_process import ServerProcess, serve

from tidegate.bench.encoding import Encoding
from tidegate.bench.http2 import Connection

# The server remembers 32 answers by default.
STEPS = 40
REST_BYTES_MAX = 1024
STATE_BYTES = 4 * HIDDEN * len(state_names())
ANSWERS_REMEMBERED = 32
STREAMS_FIRST = 5000
CALLS_FIRST = 100
# The number of streams per message. Larger messages would add to the measured memory.
ROWS = 1000
# Without huge pages for the state arrays: the system would allocate 2 MB at a time, used or not, too coarse for this
# measurement. One connection holds nearly all live streams that a server allows.
SETTINGS = {"NUMPY_MADVISE_HUGEPAGE": "0", "TIDEGATE_PEER_LIVE_MAX": "16384"}
RUN_SECONDS_MAX = 300
# The store is behind by a fraction of a second, or by many times that on a busy machine.
STORE_SECONDS_MAX = 60


async def settled_bytes(side: ServerProcess) -> int:
    """Returns the memory of a server once it has stored everything."""
    async with asyncio.timeout(STORE_SECONDS_MAX):
        while side.metric("tidegate_unsaved_seconds"):  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.1)
    return side.resident_bytes()


async def growth_of(
    side: ServerProcess, encoding: Callable[[int], Encoding], rows: int, first: int, count: int
) -> float:
    """Returns the memory per stream, for calls with that many rows, after the first streams."""
    connections = [await Connection.open(side.address) for _ in range(CONNECTIONS)]

    async def step_all(count: int) -> None:
        sizes = [min(rows, count - at) for at in range(0, count, rows)]
        calls = [SequentialCall(connections[index % CONNECTIONS], encoding(size)) for index, size in enumerate(sizes)]
        at_once = max(1, CALLS_FIRST // rows)
        for act in (SequentialCall.open, *[SequentialCall.step] * STEPS):
            for at in range(0, len(calls), at_once):
                await asyncio.gather(*map(act, calls[at : at + at_once]))

    await step_all(first)
    before = await settled_bytes(side)
    await step_all(count)
    growth = (await settled_bytes(side) - before) / count
    for connection in connections:
        connection.close()
    return growth


async def measure(streams: int, calls: int) -> tuple[float, float]:
    """Returns both costs, each of its own server."""
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        async with asyncio.timeout(RUN_SECONDS_MAX):
            with ServerProcess("blocks", serve(Path(folder), "--data-dir", f"{folder}/a"), SETTINGS) as side:
                of_streams = await growth_of(
                    side, lambda rows: predict_blocks_call([""] * rows), ROWS, STREAMS_FIRST, streams
                )
            with ServerProcess("calls", serve(Path(folder), "--data-dir", f"{folder}/b"), SETTINGS) as side:
                return of_streams, await growth_of(side, lambda _: predict_call(), 1, CALLS_FIRST, calls)


def main(
    streams: Annotated[
        int, typer.Option(min=1, max=11_000, help="Streams on PredictBlocks calls, a thousand on each.")
    ] = 10_000,
    calls: Annotated[int, typer.Option(min=1, help="Predict calls.")] = 1000,
    quick: Quick = False,
) -> None:
    """Measure the memory of live streams."""
    if quick:
        streams, calls = 500, 50
    of_streams, of_calls = uvloop.run(measure(streams, calls))
    rest = of_streams - STATE_BYTES
    answers = ANSWERS_REMEMBERED * 4 * OUTPUTS
    print(f"{streams:,} live streams, {ROWS:,} a call: {of_streams:,.0f} bytes each")
    print(f"  its state {STATE_BYTES:,}, the rest {rest:,.0f}, of which remembered answers {answers:,}")
    print(f"{calls:,} calls of one stream: {of_calls:,.0f} bytes each, {of_calls - of_streams:,.0f} more than above")
    print(describe_machine())
    if rest > REST_BYTES_MAX and not quick:
        print(f"a live stream costs {rest:,.0f} bytes beside its state, expected at most {REST_BYTES_MAX:,}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
