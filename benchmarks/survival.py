"""`kill -9` under load: a server with a thousand streams dies at random moments and is started again.

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

import numpy as np

from tests.fleet import Fleet, Site
from tests.support import lstm, write_model


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
    with tempfile.TemporaryDirectory() as folder:
        models = write_model(Path(folder) / "models", graph)
        site = Site(models, given.state or f"sqlite://{folder}/state.db")
        await site.start()
        fleet = Fleet([site.address], given.streams, given.steps)
        total = given.streams * given.steps
        print(f"{given.streams} streams of {given.steps} timesteps, {given.kills} kills, seed {given.seed}")
        begun = time.monotonic()
        try:
            running = asyncio.create_task(fleet.run(clients=8))
            for share in sorted(np.random.default_rng(given.seed).uniform(0.05, 0.95, given.kills)):
                await fleet.reached(int(share * total))
                await site.kill()
                down = time.monotonic()
                await site.start()
                before = fleet.answered
                await fleet.reached(before + 1)
                print(
                    f"killed at {before:,} of {total:,} predictions; the next one came {time.monotonic() - down:.2f} s later"
                )
            await running
            lost = site.metrics()["tidegate_state_lost_total"]
        finally:
            await site.close()
    print(f"all delivered after {time.monotonic() - begun:.1f} s; asking the oracle")
    wrong = fleet.verdicts(graph)
    for line in wrong[:10]:
        print(line)
    print(f"{fleet.answered:,} predictions delivered, {len(wrong)} streams wrong, state lost {lost:g} times")
    return 1 if wrong or lost or fleet.answered != total else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
