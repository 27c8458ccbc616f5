"""Measures the cost of an epoch against a bare PyTorch loop with the same network, loss and optimizer.

python -m benchmarks.fit [--rounds 21] [--rows 20000] [--quick]

The bare loop has prepared batches and only trains and validates: no plans, look-ups, hidden values, weight average,
schedule or checkpoints. Turns alternate, on one thread, in CPU time. The exit code is 1 when the ratio is above 1.10.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.machine import describe_machine, load_average
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.learning.batches import plan_epoch
from tidegate.training.learning.checkpoint import Checkpointer
from tidegate.training.learning.fit import Trainer
from tidegate.training.learning.links import prepare_links
from tidegate.training.learning.loader import Batch
from tidegate.training.learning.optimizer import build_optimizer
from tidegate.training.network.network import build_network
from tidegate.training.settings import Architecture, Fit, Forecast

RATIO_MAX = 1.10
FEATURES = 8
TASK = Forecast(targets=(0,), horizons=(1, 6, 36, 144), quantiles=(0.1, 0.5, 0.9))


def make_series(rows: int, features: int) -> Series:
    """Makes waves with noise, one row every ten minutes, without a gap."""
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(rows)[:, None] / np.arange(5, 5 + features)) + rng.normal(0, 0.3, (rows, features))
    times = np.datetime64("2024-01-01", "ns") + np.arange(rows) * np.timedelta64(600, "s")
    names = tuple(f"s{index}" for index in range(features))
    return Series("waves", "0" * 64, names, ("",) * features, values.astype(np.float32), times, 600.0)


class Bare:
    """The simplest training loop, on prepared batches."""

    def __init__(self, training: Trainer, architecture: Architecture, series: Series, settings: Fit) -> None:
        split = split_by_time(series, train=0.7, validation=0.15, horizon=max(TASK.horizons))
        self.settings = settings
        self.network = build_network(architecture, fit_scaler(series, split.train), settings.seed)
        self.optimizer = build_optimizer(self.network, settings)
        self.loss = training.objective.loss
        self.training = training
        self.validation = [_own(batch) for batch in training.loader.batches(training.validation_plan)]
        self.batches: list[Batch] = []

    def prepare(self, seed: int) -> None:
        """Prepares the batches of this seed: the same rows in the same order as in the measured epoch."""
        plan = plan_epoch(
            self.training.segments,
            batch_size=self.settings.lanes,
            chunk=self.settings.chunk,
            burn_in=self.settings.burn_in,
            cold_share=self.settings.cold_share,
            rng=np.random.default_rng(seed),
        )
        self.batches = [_own(batch) for batch in self.training.loader.batches(plan)]

    def epoch(self) -> float:
        """Trains on every batch, then validates."""
        self.network.train()
        state = self.network.initial_state(self.settings.lanes)
        for batch in self.batches:
            outputs, state = self.network.scaled_sequence(batch.x, state)
            state = tuple(part.detach() for part in state)
            if not batch.known:
                continue
            self.optimizer.zero_grad()
            (self.loss(outputs, batch.targets) / batch.known).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
            self.optimizer.step()
        self.network.eval()
        total = 0.0
        with torch.no_grad():
            state = self.network.initial_state(self.validation[0].x.shape[1])
            for batch in self.validation:
                outputs, state = self.network.scaled_sequence(batch.x, state)
                total += float(self.loss(outputs, batch.targets))
        return total


def _own(batch: Batch) -> Batch:
    return Batch(batch.x.clone(), batch.targets.clone(), batch.known, None)


def seconds(work: Callable[[], object]) -> float:
    """Returns the CPU time of a function, which depends little on other programs."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(rows: int, rounds: int, folder: Path, **shape: int) -> tuple[float, float, float]:
    """Returns the median seconds of both epochs, and the median of their ratio in the same round."""
    series = make_series(rows, FEATURES)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=max(TASK.horizons))
    architecture = Architecture(features=FEATURES, task=TASK, **shape)
    settings = Fit(epochs=1000, device="cpu")
    checkpointer = Checkpointer(folder)
    scaler = fit_scaler(series, split.train)
    given = prepare_links(series, split, scaler, architecture)
    training = Trainer(series, split, scaler, given, settings, checkpointer)
    bare = Bare(training, architecture, series, settings)

    def ours() -> None:
        """As in `Trainer.run`."""
        epoch = training.epoch(len(training.epochs) + 1)
        training.epochs.append(epoch)
        if training.best is None or epoch.score < training.best.score:
            training.best, training.best_weights = epoch, training.average.state_dict()
        checkpointer.save(training.state())

    turns = []
    for number in range(rounds + 1):
        bare.prepare(number)
        training.rng = np.random.default_rng(number)
        sides = (ours, bare.epoch) if number % 2 else (bare.epoch, ours)
        took = {side: seconds(side) for side in sides}
        turns.append((took[ours], took[bare.epoch]))
    turns = turns[1:]  # the first one is the warm-up
    mine, its = zip(*turns, strict=True)
    return median(mine), median(its), median(one / other for one, other in turns)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 21,
    rows: Annotated[int, typer.Option(min=2000, help="Rows of the series.")] = 20_000,
    quick: Annotated[bool, typer.Option("--quick", help="Only check that it runs.")] = False,
) -> None:
    """Compare an epoch with a bare loop."""
    torch.set_num_threads(1)
    if quick:
        rounds, rows = 1, 4000
    print("| hidden × layers | ours, CPU ms an epoch | bare, CPU ms an epoch | ratio |\n|---|---|---|---|")
    worst = 0.0
    for hidden, layers in ((32, 1), (64, 1), (128, 2)):
        with TemporaryDirectory(prefix="tidegate-bench-") as folder:
            mine, its, ratio = compare(rows, rounds, Path(folder), hidden=hidden, layers=layers)
        print(f"| {hidden} × {layers} | {1000 * mine:.0f} | {1000 * its:.0f} | {ratio:.3f} |")
        worst = max(worst, ratio)
    print(f"{describe_machine()}, load {load_average():.1f}")
    if not quick and worst > RATIO_MAX:
        sys.exit(f"an epoch takes {worst:.2f} times a bare loop's, expected at most {RATIO_MAX}")


if __name__ == "__main__":
    typer.run(main)
