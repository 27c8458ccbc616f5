"""Measures how the cost of a step grows with the model, the streams and the rows of a block; prints tables in Markdown.

python benchmarks/sizes.py [--rounds 3] [--seconds 1] [--quick]

For `docs/performance.md`. Each model has a server of its own, which stores as it comes; cases that are compared, more streams or rows, take turns.
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import blocks
import predict
import typer
from bare import Bare
from block_load import BlockLoad
from load import Load
from machine import facts, load_average
from model import write_model
from rounds import Results, Sample, interleave
from side import Side, serve
from table import shown

HIDDEN = (16, 64, 128, 256)
LAYERS = (1, 2)
STREAMS = (1, 16, 128, 512)
ROWS = (64, 256, 1024, 4096)
# On more connections than this the kernel's share grows instead of ours.
CONNECTIONS = 4


def measure(results: Results, model: str, hidden: int, layers: int, rounds: int, seconds: float, warmup: float) -> None:
    """Measures one model: bare, in blocks, and alone with its streams."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        path = write_model(folder, hidden=hidden, layers=layers)
        side = stack.enter_context(Side("tidegate", serve(folder, "--data-dir", str(folder / "data"))))
        bare = stack.enter_context(Bare(path))
        load = stack.enter_context(Load(1, CONNECTIONS, warmup + seconds))
        block_load = stack.enter_context(BlockLoad())
        for number, streams in interleave(rounds, STREAMS):
            window = load.run(side, streams, warmup, seconds)
            results.add(Sample(f"streams {streams}", number, model, load_average(), predict.figures(window)))
        for number, rows in interleave(rounds, ROWS):
            window = block_load.run(side, rows, warmup, seconds)
            results.add(Sample(f"rows {rows}", number, model, load_average(), blocks.figures(window)))
            alone = bare.run(rows, warmup / 2, seconds / 2)
            results.add(Sample(f"bare {rows}", number, model, load_average(), blocks.figures(alone)))


def print_table(results: Results, models: list[str], head: str, columns: dict[str, tuple[str, str]]) -> None:
    """A table: a row a model, a column for each title, which has a case and a figure."""
    print(f"| {head} | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for model in models:
        values = [results.median(case, model, figure) for case, figure in columns.values()]
        print(f"| {model} | " + " | ".join("–" if value is None else shown(value) for value in values) + " |")
    print()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each case has its turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 1.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.3,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure how the cost of a step grows."""
    sizes = [(hidden, layers) for layers in LAYERS for hidden in HIDDEN]
    if quick:
        rounds, seconds, warmup, sizes = 1, 0.2, 0.1, [(16, 2)]
    results = Results()
    models = []
    for hidden, layers in sizes:
        models.append(f"{hidden} × {layers}")
        measure(results, models[-1], hidden, layers, rounds, seconds, warmup)
    head = "hidden × layers"
    print("Predict, steps a second:\n")
    print_table(results, models, head, {_many(count): (f"streams {count}", "steps_per_s") for count in STREAMS})
    print("Predict, server CPU µs a step:\n")
    print_table(results, models, head, {_many(count): (f"streams {count}", "server_cpu_us") for count in STREAMS})
    print("Predict, p50 µs:\n")
    print_table(results, models, head, {_many(count): (f"streams {count}", "p50_us") for count in STREAMS})
    print("PredictBlocks, rows a second:\n")
    print_table(results, models, head, {f"{count:,} rows": (f"rows {count}", "rows_per_s") for count in ROWS})
    print("PredictBlocks, server CPU µs a row:\n")
    print_table(results, models, head, {f"{count:,} rows": (f"rows {count}", "server_cpu_us") for count in ROWS})
    print("Bare onnxruntime, CPU µs a row:\n")
    print_table(results, models, head, {f"{count:,} rows": (f"bare {count}", "server_cpu_us") for count in ROWS})
    print(", ".join(f"{name} {value}" for name, value in facts().items()))


def _many(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


if __name__ == "__main__":
    typer.run(main)
