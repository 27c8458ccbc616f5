"""Measures what metrics cost: `Predict` of a server as it comes against one that measures nothing.

python benchmarks/metrics.py [--rounds 7] [--seconds 3] [--streams 128] [--quick]
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from load import Load
from machine import facts, load_average
from model import write_model
from predict import HERE, figures, make_table
from rich.console import Console
from rounds import Results, Sample, interleave
from side import Side, serve

BASE = "without"
# Endings of samples that move only when something is counted or observed.
MOVING = ("_total", "_count", "_sum", "_bucket")


def make_sides(folder: Path) -> list[Side]:
    """The same server, measuring nothing and measuring as it comes."""
    write_model(folder)
    module, entry, *arguments = serve(folder)
    assert (module, entry) == ("-m", "serving")
    return [
        Side(BASE, [str(HERE / "unmeasured.py"), *arguments, "--data-dir", str(folder / "a")]),
        Side("with", [module, entry, *arguments, "--data-dir", str(folder / "b")]),
    ]


def check_sides(without: Side, with_: Side) -> None:
    """Raises RuntimeError when the one has counted something after all, or the other has not."""
    moved = [
        f"{name}{labels}"
        for name, labels, value in without.samples()
        if name.startswith("tidegate_") and name.endswith(MOVING) and value
    ]
    if moved:
        raise RuntimeError(f"the server without metrics has counted {', '.join(moved)}: see unmeasured.py")
    if not sum(value for name, _, value in with_.samples() if name == "tidegate_steps_total"):
        raise RuntimeError("the server with metrics has counted no steps")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.5,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure what metrics cost."""
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
        check_sides(*sides)
    console.print(make_table(results, case, sides, BASE))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
