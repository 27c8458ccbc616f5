"""Measures the cost of metrics: `Predict` of a server against one that updates no metrics.

python benchmarks/metrics.py [--rounds 7] [--seconds 3] [--streams 128] [--quick]
"""

import typer
from compare import HERE, Comparison, Quick, Rounds, Seconds, Streams, Warmup, many
from model import write_model
from server_process import ServerProcess, serve

# The suffixes of samples that change only when something is counted or observed.
MOVING = ("_total", "_count", "_sum", "_bucket")
# Counted once at start, for no timestep.
AT_START = "tidegate_model_loads_total"


def check_sides(without: ServerProcess, with_: ServerProcess) -> None:
    """Raises RuntimeError when the server without metrics has counted something, or the other one nothing."""
    moved = [
        f"{name}{labels}"
        for name, labels, value in without.samples()
        if name.startswith("tidegate_") and name.endswith(MOVING) and name != AT_START and value
    ]
    if moved:
        raise RuntimeError(f"the server without metrics has counted {', '.join(moved)}: see without_metrics.py")
    if not with_.metric("tidegate_steps_total"):
        raise RuntimeError("the server with metrics has counted no steps")


def main(
    rounds: Rounds = 7, seconds: Seconds = 3.0, warmup: Warmup = 0.5, streams: Streams = 128, quick: Quick = False
) -> None:
    """Measure the cost of metrics."""
    streams = 8 if quick else streams
    with Comparison("without", rounds, seconds, warmup, quick=quick) as compare:
        folder = compare.folder
        write_model(folder)
        module, entry, *arguments = serve(folder)
        assert (module, entry) == ("-m", "tidegate")
        compare.start(
            ServerProcess("without", [str(HERE / "without_metrics.py"), *arguments, "--data-dir", str(folder / "a")]),
            ServerProcess("with", [module, entry, *arguments, "--data-dir", str(folder / "b")]),
        )
        compare.case(many(streams), streams=streams)
        check_sides(*compare.sides)


if __name__ == "__main__":
    typer.run(main)
