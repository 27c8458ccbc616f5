"""Measures the cost of parked streams: opens, steps and parks a hundred thousand, then wakes a random thousand.

python benchmarks/idle.py [--streams 100000] [--wake 1000] [--quick]

Prints the server's resident memory before and after, and whether every woken stream answered as the graph does alone. The
exit code is 1 if one did not, or if memory grew by more than 30 MB.
"""

import asyncio
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
import uvloop
from compare import CONNECTIONS, VALUES, Quick
from machine import ROOT, describe_machine
from model import write_model
from sequential_call import SequentialCall, predict_call
from server_process import ServerProcess, serve

from tidegate.bench.http2 import Connection
from tidegate.v1 import tidegate_pb2 as pb

sys.path.insert(0, str(ROOT))
from tests.oracle import replay

GROWTH_MAX_MB = 30.0
# The number of concurrent calls, as of a busy gateway.
AT_ONCE = 256
# The first streams fill the caches of the server. The growth after them is the cost of the streams.
FIRST = 1000


async def step_all(side: ServerProcess, names: Iterable[int], truth: bytes) -> int:
    """Opens each stream, steps it once and closes it. Returns the number of wrong answers."""
    left = iter(names)
    wrong = 0

    async def step_some(connection: Connection) -> None:
        nonlocal wrong
        for name in left:
            call = SequentialCall(connection, predict_call(f"sensor-{name}"))
            await call.open()
            prediction = pb.PredictResponse.FromString(await call.step()).prediction
            wrong += list(prediction.outputs) != [truth]
            await call.close(forget=False)

    connections = [await Connection.open(side.address) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(step_some(connections[index % CONNECTIONS]) for index in range(AT_ONCE)))
    for connection in connections:
        connection.close()
    return wrong


async def measure(folder: Path, streams: int, wake: int) -> tuple[float, int]:
    """Returns the growth in MB and the number of wrong answers."""
    graph = write_model(folder).read_bytes()
    # Every call starts with the same row.
    truth = [answer["y"].tobytes() for answer in replay(graph, VALUES[[1, 1]])]
    with ServerProcess("idle", serve(folder, "--state", f"sqlite://{folder}/state.db")) as side:
        wrong = await step_all(side, range(FIRST), truth[0])
        before, begun = side.resident_bytes() / 2**20, time.monotonic()
        wrong += await step_all(side, range(FIRST, streams), truth[0])
        after, seconds = side.resident_bytes() / 2**20, time.monotonic() - begun
        live = side.metric("tidegate_streams", state="live")
        chosen = np.random.default_rng(0).choice(streams, wake, replace=False)
        wrong += await step_all(side, chosen.tolist(), truth[1])
    print(
        f"{streams:,} streams opened, stepped and parked ({(streams - FIRST) / seconds:,.0f} a second), {live:g} still live"
    )
    print(
        f"resident memory: {before:.1f} MB after the first thousand, {after:.1f} MB after all: {after - before:+.1f} MB"
    )
    print(f"{wake:,} woken at random, {wrong} answers were wrong")
    return after - before, wrong


def main(
    streams: Annotated[int, typer.Option(min=FIRST + 1, help="Number of streams.")] = 100_000,
    wake: Annotated[int, typer.Option(min=1, help="Number of streams to wake.")] = 1000,
    quick: Quick = False,
) -> None:
    """Measure what parked streams cost in memory."""
    if quick:
        streams, wake = FIRST + 200, 20
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        growth_mb, wrong = uvloop.run(measure(Path(folder), streams, wake))
    print(describe_machine())
    if wrong or (growth_mb > GROWTH_MAX_MB and not quick):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
