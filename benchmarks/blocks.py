"""Measures `PredictBlocks` against bare onnxruntime on as many rows, with and without keeping the streams.

python benchmarks/blocks.py --help
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from bare import Bare
from block_load import BlockLoad
from load import Window
from machine import facts, load_average
from model import write_model
from rich.console import Console
from rounds import Results, Sample, interleave
from side import Side, serve
from table import make_table

BASE = Bare.name
# An hour is longer than the run: nothing is copied or written.
STORE_NOTHING = ("--state", "memory:", "--checkpoint-every", "1h", "--ready-lag", "2h", "--lag-max", "2h")
COLUMNS = {
    "rows_per_s": "rows/s",
    "p50_us": "p50 µs of a block",
    "server_cpu_us": "server CPU µs/row",
    "client_cpu_us": "client CPU µs/row",
}


def figures(window: Window) -> dict[str, float]:
    """What is told of one window; of bare onnxruntime, which has no client, that of its runs."""
    told = {
        "rows_per_s": window.steps / window.seconds,
        "p50_us": window.latency_us(0.50),
        "server_cpu_us": window.server_cpu_seconds / window.steps * 1e6,
    }
    if window.client_cpu_seconds:
        told["client_cpu_us"] = window.client_cpu_seconds / window.steps * 1e6
    return told


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 1.5,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.3,
    rows: Annotated[
        list[int] | None, typer.Option(help="Rows of a block; give it again for more cases. [64, 256, 1024, 4096]")
    ] = None,
    ahead: Annotated[int, typer.Option(min=1, help="Blocks under way at a time.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure PredictBlocks against bare onnxruntime."""
    if quick:
        rounds, seconds, warmup, rows = 1, 0.2, 0.1, rows or [64]
    results = Results()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        model = write_model(folder)
        bare = stack.enter_context(Bare(model))
        sides = [
            stack.enter_context(Side("tidegate", serve(folder, *STORE_NOTHING))),
            stack.enter_context(Side("durable", serve(folder, "--data-dir", str(folder / "data")))),
        ]
        load = stack.enter_context(BlockLoad(ahead=ahead))
        for count in rows or [64, 256, 1024, 4096]:
            case = f"{count:,} rows a block"
            turns: list[Bare | Side] = [bare, *sides]
            for number, side in interleave(rounds, turns):
                if isinstance(side, Bare):
                    window = side.run(count, warmup, seconds)
                else:
                    window = load.run(side, count, warmup, seconds)
                results.add(Sample(case, number, side.name, load_average(), figures(window)))
            console.print(make_table(results, case, [BASE, *(side.name for side in sides)], BASE, COLUMNS))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
