"""What parked streams cost: a hundred thousand are opened, stepped once and parked; then a random thousand wake.

    python -m benchmarks.idle [--streams 100000] [--wake 1000]

Prints the server's resident memory before and after, and whether every stream that woke answered as the graph does alone.
Exit code 1 if one did not, or if memory has grown by more than 30 MB.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from serving.client import Client
from tests.fleet import Site, rows_of
from tests.support import lstm, replay, same_bits, write_model

GROWTH_MAX_MB = 30.0
# As many calls at a time as a busy gateway would have.
AT_ONCE = 256


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def main() -> int:
    """Runs it; gives the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=100_000)
    options.add_argument("--wake", type=int, default=1000)
    given = options.parse_args()
    graph = lstm(hidden=64)
    rows = rows_of(0, 2)
    truth = replay(graph, rows)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        site = Site(write_model(Path(folder) / "models", graph), f"sqlite://{folder}/state.db")
        await site.start()
        assert site.process is not None
        pid = site.process.pid

        async def visit(client: Client, names: "asyncio.Queue[int]", place: int) -> None:
            nonlocal wrong
            while not names.empty():
                name = names.get_nowait()
                async with client.open(f"sensor-{name}") as stream:
                    right = stream.next_step == place + 1
                    right = right and same_bits(await stream.step(rows[place]), truth[place])
                wrong += not right

        async def visit_all(chosen: list[int], place: int) -> None:
            names: asyncio.Queue[int] = asyncio.Queue()
            for name in chosen:
                names.put_nowait(name)
            async with Client(site.address) as client:
                await asyncio.gather(*(visit(client, names, place) for _ in range(AT_ONCE)))

        try:
            # The first thousand fill caches that every server has; what comes after them is the streams.
            await visit_all(list(range(1000)), 0)
            before = resident_mb(pid)
            begun = time.monotonic()
            await visit_all(list(range(1000, given.streams)), 0)
            after = resident_mb(pid)
            seconds = time.monotonic() - begun
            live = site.metrics()['tidegate_streams{state="live"}']
            chosen = np.random.default_rng(0).choice(given.streams, given.wake, replace=False)
            await visit_all([int(name) for name in chosen], 1)
        finally:
            await site.close()
    print(
        f"{given.streams:,} streams opened, stepped and parked ({given.streams / seconds:,.0f} a second), {live:g} still live"
    )
    print(
        f"resident memory: {before:.1f} MB after the first thousand, {after:.1f} MB after all: {after - before:+.1f} MB"
    )
    print(f"{given.wake:,} woken at random, {wrong} answered wrongly")
    return 1 if wrong or after - before > GROWTH_MAX_MB else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
