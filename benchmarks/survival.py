"""`kill -9` under load: a server with a thousand streams is killed at random times and at every named crash point.

    python -m benchmarks.survival [--streams 1000] [--steps 60] [--kills 5] [--seed 1] [--state sqlite:///path]

Prints the duration of each restart and the result of a comparison with bare onnxruntime, which steps each stream alone:
every prediction must be delivered once, in order, bit for bit. The exit code is 1 if a single one is wrong.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from tests.fleet import Fleet, ServerProcess
from tests.graphs import lstm, write_model
from tidegate.runtime.crash_points import Point

# The number of clients that share the streams.
CLIENTS = 8


async def kill_at_random(site: ServerProcess, fleet: Fleet, total: int, shares: list[float]) -> None:
    """Kills the server each time that share of the work is done."""
    await site.start()
    running = asyncio.create_task(fleet.run(clients=CLIENTS))
    for share in shares:
        await fleet.reached(int(share * total))
        await site.kill()
        down = time.monotonic()
        await site.start()
        before = fleet.answered
        await fleet.reached(min(before + 1, total))
        print(f"  killed at {before:,} of {total:,} predictions; the next came {time.monotonic() - down:.2f} s later")
    await running


async def kill_at_point(site: ServerProcess, fleet: Fleet, point: str, count: int) -> None:
    """Lets the server crash when it reaches a crash point for the `count`th time."""
    await site.start(crash=f"{point}:{count}")
    running = asyncio.create_task(fleet.run(clients=CLIENTS))
    await site.ended()
    before = fleet.answered
    await site.start()
    await running
    print(f"  died {point} at {before:,} predictions")


async def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=1000)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--state", default="", help="address of the store; a new SQLite file when empty")
    given = options.parse_args()
    graph = lstm(hidden=64)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        models = write_model(Path(folder) / "models", graph)

        async def act(name: str, steps: int, pause_s: float, *options: str, point: str = "") -> int:
            print(f"{name}: {given.streams} streams of {steps} timesteps")
            state = given.state or f"sqlite://{folder}/{name.replace(' ', '-')}.db"
            site = ServerProcess(models, state, *options)
            fleet = Fleet([site.address], given.streams, steps, pause_s=pause_s, prefix=name)
            total = given.streams * steps
            try:
                if point:
                    # A takeover is counted per stream: half of the streams are open when the server crashes.
                    count = given.streams // 2 if point == "during-take-over" else 3
                    await kill_at_point(site, fleet, point, count)
                else:
                    shares = sorted(np.random.default_rng(given.seed).uniform(0.05, 0.95, given.kills))
                    await kill_at_random(site, fleet, total, shares)
                lost = site.metrics()["tidegate_state_lost_total"]
            finally:
                await site.close()
            wrong = fleet.problems(graph)
            for line in wrong[:10]:
                print(" ", line)
            print(
                f"  {fleet.answered:,} of {total:,} predictions, {len(wrong)} streams wrong, state lost {lost:g} times"
            )
            return int(bool(wrong or lost or fleet.answered != total))

        failed += await act(f"random moments, seed {given.seed}", given.steps, 0.0)
        for point in get_args(Point):
            # A stream is parked only after a pause.
            silent = ("--park-after", "300ms") if point == "during-park" else ()
            failed += await act(point, 4 if silent else 10, 0.7 if silent else 0.0, *silent, point=point)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
