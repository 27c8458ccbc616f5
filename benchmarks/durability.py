"""Measures the cost of durability: `Predict` with the default store against a server that stores nothing.

python benchmarks/durability.py [--rounds 7] [--seconds 3] [--streams 128] [--quick]
"""

import typer
from compare import Comparison, Quick, Rounds, Seconds, Streams, Warmup, many
from model import write_model
from server_process import STORE_NOTHING, ServerProcess, serve


def main(
    rounds: Rounds = 7, seconds: Seconds = 3.0, warmup: Warmup = 0.5, streams: Streams = 128, quick: Quick = False
) -> None:
    """Measure the cost of durability."""
    streams = 8 if quick else streams
    with Comparison("none", rounds, seconds, warmup, quick=quick) as compare:
        folder = compare.folder
        write_model(folder)
        compare.start(
            ServerProcess("none", serve(folder, *STORE_NOTHING)),
            ServerProcess("200 ms", serve(folder, "--data-dir", str(folder / "a"))),
            ServerProcess("100 ms", serve(folder, "--data-dir", str(folder / "b"), "--checkpoint-every", "100ms")),
        )
        compare.case(many(streams), streams=streams)


if __name__ == "__main__":
    typer.run(main)
