"""Measures what it costs to keep streams: `Predict` with the default store against a server that stores nothing.

python benchmarks/durability.py [--rounds 7] [--seconds 3] [--streams 128] [--quick]
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from load import Load
from machine import facts, load_average
from model import write_model
from predict import figures, make_table
from rich.console import Console
from rounds import Results, Sample, interleave
from side import Side

BASE = "none"


def make_sides(folder: Path) -> list[Side]:
    """The same server, storing nothing, in SQLite five times a second, and ten times a second."""
    write_model(folder)
    serve = ["-m", "serving", "serve", "--models", str(folder), "--host", "127.0.0.1", "--log-level", "warning"]
    serve += ["--workers", "1"]  # of one process
    serve += ["--port", "0", "--metrics-port", "0"]
    return [
        # An hour is longer than the run: nothing is copied or written.
        Side(BASE, [*serve, "--state", "memory:", "--checkpoint-every", "1h", "--ready-lag", "2h", "--lag-max", "2h"]),
        Side("200 ms", [*serve, "--data-dir", str(folder / "a")]),
        Side("100 ms", [*serve, "--data-dir", str(folder / "b"), "--checkpoint-every", "100ms"]),
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.5,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure what it costs to keep streams."""
    if quick:
        rounds, seconds, warmup, streams = 1, 0.3, 0.1, 8
    results = Results()
    console = Console()
    case = f"{streams} streams"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        sides = [stack.enter_context(side) for side in make_sides(folder)]
        load = stack.enter_context(Load(1, 4, warmup + seconds))
        for number, side in interleave(rounds, sides):
            window = load.run(side, streams, warmup, seconds)
            results.add(Sample(case, number, side.name, load_average(), figures(window)))
    console.print(make_table(results, case, sides, BASE))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
