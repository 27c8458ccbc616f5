"""Measures which cells learn to recall a symbol after many timesteps of distractors, and how long that takes on one thread.

python -m benchmarks.long_lag [--quick]

The task is that of `tests/training/recall.py`, after Hochreiter & Schmidhuber (1997). Gates start by holding the state for
up to five times the lag (`--memory`), and gradients reach back over the whole lag. The exit code is 1 when a cell with
gates does not learn.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from tests.training.recall import CLASSES, Task, accuracy
from tidegate.training.network.cells import CELLS
from tidegate.training.settings import Fit, Shape

LAGS = (200, 500, 1000)
GOAL = 0.95
# It has no gates. It is shown for comparison and expected to guess.
UNGATED = "rnn"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each lag and cell. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=640, help="training sequences")
    parser.add_argument("--quick", action="store_true", help="one lag of 50: only check that it runs")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    missed = []
    print(f"a guess: {1 / len(CLASSES):.0%}\n\n| lag | cell | accuracy | epochs | s |\n|---|---|---|---|---|")
    for lag in (50,) if arguments.quick else LAGS:
        task = Task.of(lag, teach=arguments.sequences)
        settings = Fit(
            epochs=6 if arguments.quick else arguments.epochs,
            lanes=16,
            chunk=lag + 1,
            burn_in=0,
            hide=0.0,
            learning_rate=0.01,
            weight_decay=0.0,
            average=0.9,
        )
        for cell in CELLS:
            begun = time.perf_counter()
            fitted = task.learn(Shape(cell=cell, hidden=12, memory=None if cell == UNGATED else 5 * lag), settings)
            spent_s = time.perf_counter() - begun
            share = accuracy(fitted.network, lag)
            print(f"| {lag} | {cell} | {share:.1%} | {len(fitted.epochs)} | {spent_s:.0f} |", flush=True)
            if cell != UNGATED and share < GOAL:
                missed.append(f"{cell} over {lag} timesteps: {share:.1%}, expected at least {GOAL:.0%}")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
