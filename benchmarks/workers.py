"""Measures the effect of a second worker: `Predict` and `PredictBlocks` with `--workers 1` and `--workers 2`.

python benchmarks/workers.py [--rounds 5] [--seconds 2] [--quick]

The kernel distributes connections over the workers, so there are many. Server CPU includes the supervisor and all workers.
"""

from typing import Annotated

import typer
from compare import Comparison, Quick, Rounds, Seconds, Streams, Warmup, many
from model import write_model
from server_process import ServerProcess, serve

# The kernel distributes connections by a hash: many are divided about evenly, but eight may be divided five to three.
CONNECTIONS = 32
CALLS = 8


def main(
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    warmup: Warmup = 0.5,
    streams: Streams = 128,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a block.")] = 256,
    quick: Quick = False,
) -> None:
    """Measure the effect of a second worker."""
    if quick:
        streams, rows = 32, 64
    with Comparison("1 worker", rounds, seconds, warmup, quick=quick) as compare:
        folder = compare.folder
        write_model(folder)
        compare.start(
            ServerProcess("1 worker", serve(folder, "--workers", "1", "--data-dir", str(folder / "a"))),
            ServerProcess("2 workers", serve(folder, "--workers", "2", "--data-dir", str(folder / "b"))),
        )
        title = f"Predict, {many(streams)} on {CONNECTIONS} connections"
        compare.case(title, streams=streams, connections=CONNECTIONS)
        title = f"PredictBlocks, {CALLS} connections, {rows} rows a block"
        compare.case(title, streams=CALLS * rows, block=rows, ahead=2, connections=CALLS)


if __name__ == "__main__":
    typer.run(main)
