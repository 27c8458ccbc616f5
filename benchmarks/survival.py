"""`kill -9` under load: a server with a thousand streams dies at random moments and at every named crash point.

    python -m benchmarks.survival [--streams 1000] [--steps 60] [--kills 5] [--seed 1] [--state sqlite:///path]

Prints how long each restart took and the verdict of the oracle, which steps every stream's rows alone through bare
onnxruntime: each prediction delivered once, in order, the same bits. Exit code 1 if a single one is not.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from serving.runtime.crash_points import Point
from tests.fleet import Fleet, ServerProcess
from tests.support import lstm, write_model

# Connections that the streams share.
CLIENTS = 8


async def kill_at_random(site: ServerProcess, fleet: Fleet, total: int, shares: list[float]) -> None:
    """Kills the server whenever so much of the work is done."""
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
    """Has the server die the `count`th time it gets to a point in its code."""
    await site.start(crash=f"{point}:{count}")
    running = asyncio.create_task(fleet.run(clients=CLIENTS))
    await site.ended()
    before = fleet.answered
    await site.start()
    await running
    print(f"  died {point} at {before:,} predictions")


async def main() -> int:
    """Runs it; gives the exit code."""
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
                    # A take-over is counted by the stream: half of them are open when the server dies.
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
            # To be parked, a stream must be silent for a while.
            silent = ("--park-after", "300ms") if point == "during-park" else ()
            failed += await act(point, 4 if silent else 10, 0.7 if silent else 0.0, *silent, point=point)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
