"""Measures the memory that an epoch needs beside the series that it learns from.

python -m benchmarks.memory [--rows 2000000] [--features 7] [--quick]

A process of its own makes a series, notes what it holds, learns for an epoch with the defaults of `train` except for more
lanes, and notes the most that it ever held. Exit code 1 when data and epoch together need more than twice the data.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.fit import TASK, make_series
from benchmarks.machine import ROOT, facts
from training.data.scaler import fit_scaler
from training.data.series import Series
from training.data.split import split_by_time
from training.learning.fit import fit
from training.settings import Architecture, Fit

TIMES_MAX = 2.0
MIB = 2**20


def learn(series: Series, lanes: int) -> None:
    """One epoch, as `train` does it."""
    split = split_by_time(series, train=0.7, validation=0.15, horizon=max(TASK.horizons))
    architecture = Architecture(features=len(series.names), task=TASK, hidden=16)
    fit(series, split, fit_scaler(series, split.train), architecture, Fit(epochs=1, lanes=lanes, device="cpu"))


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def child(rows: int, features: int, lanes: int) -> None:
    """Prints the bytes of the data, and the most that was held beyond what the libraries need."""
    torch.set_num_threads(1)
    learn(make_series(4000, features), lanes)  # what torch loads at first use is not the epoch's
    before = resident()
    series = make_series(rows, features)
    # Making the series needs more for a moment than learning from it.
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    held = resident() - before
    learn(series, lanes)
    told = Path("/proc/self/status").read_text("ascii").splitlines()
    most = next(int(line.split()[1]) * 1024 for line in told if line.startswith("VmHWM"))
    print(series.values.nbytes + series.times.nbytes, held, most - before)


def main(
    rows: Annotated[int, typer.Option(min=10_000)] = 2_000_000,
    features: Annotated[int, typer.Option(min=1)] = 7,
    lanes: Annotated[int, typer.Option(min=1, help="More are quicker; memory hardly depends on them.")] = 256,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure the memory of an epoch."""
    rows = 50_000 if quick else rows
    if measure:
        child(rows, features, lanes)
        return
    arguments = ["-m", "benchmarks.memory", "--measure", f"--rows={rows}", f"--features={features}", f"--lanes={lanes}"]
    told = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    data, held, most = (int(word) for word in told.split())
    times = most / data
    print(f"{rows:,} rows × {features}: data {data / MIB:.0f} MiB, held before learning {held / MIB:.0f} MiB,")
    print(f"at most {most / MIB:.0f} MiB while learning: {times:.2f} times the data")
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    if not quick and times > TIMES_MAX:
        sys.exit(f"learning needs {times:.2f} times the data, expected at most {TIMES_MAX}")


if __name__ == "__main__":
    typer.run(main)
