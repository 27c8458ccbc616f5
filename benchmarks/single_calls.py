"""Measures the cost of `PredictOne` in the server: many slow sensors, each timestep stored before its answer.

python benchmarks/single_calls.py [--sensors 100] [--seconds 20] [--quick]

Each sensor sends a timestep one second after its last answer, through `tidegate.client`. The server uses SQLite. The exit
code is 1 when a timestep costs the server 2 ms of CPU time or more.
"""

from typing import Annotated

import typer
from compare import Comparison, Quick, Seconds
from model import write_model
from server_process import ServerProcess, serve

PERIOD_S = 1.0
CPU_MS_MAX = 2.0
# Not measured: opening the streams, and running code for the first time.
WARM_UP_STEPS = 3


def main(
    sensors: Annotated[int, typer.Option(min=1, help="Number of streams, each with one timestep per second.")] = 100,
    seconds: Seconds = 20.0,
    quick: Quick = False,
) -> None:
    """Measure the cost of a timestep by PredictOne."""
    sensors, seconds, warmup = (20, 2.0, 1.0) if quick else (sensors, seconds, WARM_UP_STEPS * PERIOD_S)
    with Comparison("tidegate", 1, seconds, warmup, quick=False) as compare:
        write_model(compare.folder)
        compare.start(
            ServerProcess("tidegate", serve(compare.folder, "--state", f"sqlite://{compare.folder}/state.db"))
        )
        case = f"{sensors} sensors at 1 Hz by PredictOne, SQLite, each stored before it is answered"
        compare.case(case, client="python", unary=True, think=PERIOD_S, streams=sensors, connections=1)
        cpu_ms = (compare.results.median(case, "tidegate", "server_cpu_us") or 0.0) / 1000
    if cpu_ms >= CPU_MS_MAX and not quick:
        print(f"a timestep costs {cpu_ms:.2f} ms of CPU, expected less than {CPU_MS_MAX}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
