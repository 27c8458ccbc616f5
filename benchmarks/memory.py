"""Measures the memory that an epoch needs beside its series.

python -m benchmarks.memory [--rows 2000000] [--features 7] [--quick]

A new process makes a series, measures its memory, trains for an epoch with the defaults of `train` except for more lanes,
and measures its peak memory. The exit code is 1 when data and epoch together need more than twice the data.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.fit import TASK, make_series
from benchmarks.machine import ROOT, describe_machine
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.learning.fit import fit
from tidegate.training.settings import Architecture, Fit

TIMES_MAX = 2.0
MIB = 2**20


def learn(series: Series, lanes: int) -> None:
    """Trains one epoch, as `train` does it."""
    split = split_by_time(series, train=0.7, validation=0.15, horizon=max(TASK.horizons))
    architecture = Architecture(features=len(series.names), task=TASK, hidden=16)
    fit(series, split, fit_scaler(series, split.train), architecture, Fit(epochs=1, lanes=lanes, device="cpu"))


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def child(rows: int, features: int, lanes: int) -> None:
    """Prints the bytes of the data, and the peak memory without that of the libraries."""
    torch.set_num_threads(1)
    learn(make_series(4000, features), lanes)  # so that what torch loads on first use is not counted
    before = resident()
    series = make_series(rows, features)
    # Resets the peak: making the series needs more memory than training on it.
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    held = resident() - before
    learn(series, lanes)
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    most = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(series.values.nbytes + series.times.nbytes, held, most - before)


def main(
    rows: Annotated[int, typer.Option(min=10_000)] = 2_000_000,
    features: Annotated[int, typer.Option(min=1)] = 7,
    lanes: Annotated[int, typer.Option(min=1, help="More are faster; memory hardly depends on them.")] = 256,
    quick: Annotated[bool, typer.Option("--quick", help="Only check that it runs.")] = False,
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure the memory of an epoch."""
    rows = 50_000 if quick else rows
    if measure:
        child(rows, features, lanes)
        return
    arguments = ["-m", "benchmarks.memory", "--measure", f"--rows={rows}", f"--features={features}", f"--lanes={lanes}"]
    output = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    data, held, most = (int(word) for word in output.split())
    times = most / data
    print(f"{rows:,} rows × {features}: data {data / MIB:.0f} MiB, held before learning {held / MIB:.0f} MiB,")
    print(f"at most {most / MIB:.0f} MiB while learning: {times:.2f} times the data")
    print(describe_machine())
    if not quick and times > TIMES_MAX:
        sys.exit(f"learning needs {times:.2f} times the data, expected at most {TIMES_MAX}")


if __name__ == "__main__":
    typer.run(main)
