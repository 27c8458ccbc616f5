"""Measures how the cost of a timestep grows with the model, the streams and the rows of a block; prints Markdown tables.

python benchmarks/sizes.py [--rounds 3] [--seconds 1] [--quick]

The tables are for `docs/performance.md`. Each model has its own server with the default store. Cases that are compared
take turns.
"""

import typer
from bare import Bare
from compare import Comparison, Quick, Rounds, Seconds, Warmup, many, shown
from model import write_model
from rounds import Results, interleave
from server_process import ServerProcess, serve

HIDDEN = (16, 64, 128, 256)
LAYERS = (1, 2)
STREAMS = (1, 16, 128, 512)
ROWS = (64, 256, 1024, 4096)


def measure(compare: Comparison, model: str, hidden: int, layers: int) -> None:
    """Measures one model: bare, with blocks, and with single streams."""
    folder = compare.folder / model
    bare = Bare(write_model(folder, hidden=hidden, layers=layers))
    with bare, ServerProcess("tidegate", serve(folder, "--data-dir", str(folder / "data"))) as side:
        for number, streams in interleave(compare.rounds, STREAMS):
            compare.add(f"streams {streams}", number, model, compare.measure(side, streams=streams))
        for number, rows in interleave(compare.rounds, ROWS):
            compare.add(f"rows {rows}", number, model, compare.measure(side, streams=rows, block=rows, ahead=2))
            compare.add(f"bare {rows}", number, model, bare.run(rows, compare.warmup / 2, compare.seconds / 2))


def print_table(results: Results, models: list[str], columns: dict[str, tuple[str, str]]) -> None:
    """Prints a table: one row per model, one column per title. A column has a case and a number."""
    print("| hidden × layers | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for model in models:
        values = [results.median(case, model, figure) for case, figure in columns.values()]
        print(f"| {model} | " + " | ".join("–" if value is None else shown(value) for value in values) + " |")
    print()


def main(rounds: Rounds = 3, seconds: Seconds = 1.0, warmup: Warmup = 0.3, quick: Quick = False) -> None:
    """Measure how the cost of a timestep grows."""
    sizes = [(16, 2)] if quick else [(hidden, layers) for layers in LAYERS for hidden in HIDDEN]
    models = [f"{hidden} × {layers}" for hidden, layers in sizes]
    with Comparison("", rounds, seconds, warmup, quick=quick) as compare:
        for model, (hidden, layers) in zip(models, sizes, strict=True):
            measure(compare, model, hidden, layers)
        for title, figure in (
            ("steps a second", "steps_per_s"),
            ("server CPU µs a step", "server_cpu_us"),
            ("p50 µs", "p50_us"),
        ):
            print(f"Predict, {title}:\n")
            print_table(compare.results, models, {many(count): (f"streams {count}", figure) for count in STREAMS})
        for title, case, figure in (
            ("PredictBlocks, rows a second", "rows", "steps_per_s"),
            ("PredictBlocks, server CPU µs a row", "rows", "server_cpu_us"),
            ("Bare onnxruntime, CPU µs a row", "bare", "server_cpu_us"),
        ):
            print(f"{title}:\n")
            print_table(compare.results, models, {f"{count:,} rows": (f"{case} {count}", figure) for count in ROWS})


if __name__ == "__main__":
    typer.run(main)
