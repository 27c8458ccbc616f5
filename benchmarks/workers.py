"""Measures what a second worker brings: `Predict` and `PredictBlocks` of `--workers 1` against `--workers 2`.

python benchmarks/workers.py [--rounds 5] [--seconds 2] [--quick]

Connections are what is spread over workers, so there are many. Server CPU is that of the supervisor and all workers.
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import blocks
import predict
import typer
from block_load import BlockLoad
from load import Load
from machine import facts, load_average
from model import write_model
from rich.console import Console
from rounds import Results, Sample, interleave
from side import Side, serve
from table import make_table

BASE = "1 worker"
# The kernel deals connections out by a hash: many of them fall about evenly, and eight may well fall as five and three.
CONNECTIONS = 32
CALLS = 8


def make_sides(folder: Path) -> list[Side]:
    """The same server with one worker and with two, each with a store of its own."""
    write_model(folder)
    return [
        Side(BASE, serve(folder, "--workers", "1", "--data-dir", str(folder / "a"))),
        Side("2 workers", serve(folder, "--workers", "2", "--data-dir", str(folder / "b"))),
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 2.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.5,
    streams: Annotated[int, typer.Option(min=1, help="Streams of Predict at once.")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a block.")] = 256,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure what a second worker brings."""
    if quick:
        rounds, seconds, warmup, streams, rows = 1, 0.3, 0.1, 32, 64
    results = Results()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        sides = [stack.enter_context(side) for side in make_sides(folder)]
        names = [side.name for side in sides]
        load = stack.enter_context(Load(1, CONNECTIONS, warmup + seconds))
        case = f"Predict, {streams} streams on {CONNECTIONS} connections"
        for number, side in interleave(rounds, sides):
            window = load.run(side, streams, warmup, seconds)
            results.add(Sample(case, number, side.name, load_average(), predict.figures(window)))
        console.print(make_table(results, case, names, BASE, predict.COLUMNS))
        block_load = stack.enter_context(BlockLoad(calls=CALLS))
        case = f"PredictBlocks, {CALLS} connections, {rows} rows a block"
        for number, side in interleave(rounds, sides):
            window = block_load.run(side, rows, warmup, seconds)
            results.add(Sample(case, number, side.name, load_average(), blocks.figures(window)))
        console.print(make_table(results, case, names, BASE, blocks.COLUMNS))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
