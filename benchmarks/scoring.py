"""Measures the memory that scoring needs beside its series, with many targets and horizons.

python -m benchmarks.scoring [--rows 20000] [--targets 7] [--horizons 96] [--quick]

A new process exports an untrained network with quantiles, scores it on the last fifth of a series beside all baselines, and
measures its peak memory, once for few horizons and once for all. The exit code is 1 when more horizons need more memory
than their sums and regressions do.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.fit import make_series
from benchmarks.machine import ROOT, describe_machine
from benchmarks.memory import MIB, resident
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.settings import Architecture, Forecast

QUANTILES = (0.1, 0.5, 0.9)
# For each target and horizon: a regression with some hundred weights for each number of lags, several candidates of it, sums.
BYTES_OF_A_FORECAST = 400_000
FEW = 4  # horizons


def export(series: Series, split: Split, targets: int, horizons: int) -> Graph:
    """Exports an untrained network."""
    scaler = fit_scaler(series, split.train)
    ahead = tuple(range(1, horizons + 1))
    task = Forecast(targets=tuple(range(targets)), horizons=ahead, quantiles=QUANTILES)
    network = build_network(Architecture(features=len(series.names), task=task, hidden=16), scaler, 0).eval()
    network.prepare_export()
    facts = DataFacts.of(series, split, scaler)
    return Graph(build_graph(network, describe(network, facts, scores={})).SerializeToString(), "untrained")


def child(rows: int, targets: int, horizons: int) -> None:
    """Prints the bytes that scoring needs beside what there was before, and the seconds it takes."""
    torch.set_num_threads(1)
    series = make_series(rows, targets)
    split = split_by_time(series, train=0.6, validation=0.2, horizon=horizons)
    graph = export(series, split, targets, horizons)
    # Resets the peak: an export needs more memory than scoring.
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before, began = resident(), time.perf_counter()
    evaluate(graph, series, split=split)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    most = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(most - before, seconds)


def main(
    rows: Annotated[int, typer.Option(min=1000)] = 20_000,
    targets: Annotated[int, typer.Option(min=1)] = 7,
    horizons: Annotated[int, typer.Option(min=FEW)] = 96,
    quick: Annotated[bool, typer.Option("--quick", help="Only check that it runs.")] = False,
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure the memory of scoring."""
    if measure:
        child(rows, targets, horizons)
        return
    rows, horizons = (2000, 2 * FEW) if quick else (rows, horizons)
    needed = []
    for count in (FEW, horizons):
        options = [f"--rows={rows}", f"--targets={targets}", f"--horizons={count}"]
        arguments = ["-m", "benchmarks.scoring", "--measure", *options]
        output = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        most, seconds = output.split()
        needed.append(int(most))
        print(f"{rows:,} rows, {targets} × {count} forecasts: {int(most) / MIB:.0f} MiB, {float(seconds):.0f} s")
    print(describe_machine())
    more = (needed[1] - needed[0]) / (targets * (horizons - FEW))
    if not quick and more > BYTES_OF_A_FORECAST:
        sys.exit(f"each forecast needs {more:,.0f} bytes more, expected at most {BYTES_OF_A_FORECAST:,}")


if __name__ == "__main__":
    typer.run(main)
