"""Measures `Predict` against a bare grpc.aio echo and a naive sync server, in one run with the same client.

python benchmarks/predict.py --help
"""

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from load import Load, Window
from machine import facts, load_average
from model import write_model
from rich.console import Console
from rich.table import Table
from rounds import Results, Sample, interleave
from side import Side
from table import make_table as make_any_table

HERE = Path(__file__).resolve().parent
BASE = "echo"
COLUMNS = {
    "steps_per_s": "steps/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "server_cpu_us": "server CPU µs/step",
    "client_cpu_us": "client CPU µs/step",
    "client_cores": "client cores",
}


def make_sides(folder: Path, streams_max: int) -> list[Side]:
    """Tidegate and those it is compared with, in the order of their turns."""
    model = write_model(folder)
    serve = ["-m", "serving", "serve", "--models", str(folder), "--host", "127.0.0.1", "--log-level", "warning"]
    serve += ["--workers", "1"]  # one process against one process
    return [
        Side("tidegate", [*serve, "--port", "0", "--metrics-port", "0", "--data-dir", str(folder / "data")]),
        Side(BASE, [str(HERE / "echo.py")]),
        # A call holds a thread until it ends, and the calls of the window before may still be ending.
        Side("naive", [str(HERE / "naive.py"), str(model), str(2 * streams_max)]),
    ]


def figures(window: Window) -> dict[str, float]:
    """What is told of one window."""
    return {
        "steps_per_s": window.steps / window.seconds,
        "p50_us": window.latency_us(0.50),
        "p99_us": window.latency_us(0.99),
        "server_cpu_us": window.server_cpu_seconds / window.steps * 1e6,
        "client_cpu_us": window.client_cpu_seconds / window.steps * 1e6,
        "client_cores": window.client_cpu_seconds / window.seconds,
    }


def make_table(results: Results, case: str, sides: list[Side], base: str) -> Table:
    """One case: the medians, and in brackets the median ratio to the base in the same round."""
    return make_any_table(results, case, [side.name for side in sides], base, COLUMNS)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Streams at once; give it again for more cases. [1, 128]")
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, help="Connections that a client process spreads its streams over.")
    ] = 4,
    clients: Annotated[int, typer.Option(min=1, help="Client processes.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only sees that it runs, in a few seconds; no figures to quote.")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Where to write everything that was measured.")
    ] = None,
) -> None:
    """Measure Predict against a bare grpc.aio echo and a naive sync server."""
    if quick:
        rounds, seconds, warmup, streams = 1, 0.3, 0.1, streams or [1, 8]
    cases = {f"{count} stream{'s' if count > 1 else ''}": count for count in streams or [1, 128]}
    results = Results()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        sides = [stack.enter_context(side) for side in make_sides(folder, max(cases.values()))]
        load = stack.enter_context(Load(clients, connections, warmup + seconds))
        for case, count in cases.items():
            for number, side in interleave(rounds, sides):
                window = load.run(side, count, warmup, seconds)
                results.add(Sample(case, number, side.name, load_average(), figures(window)))
            console.print(make_table(results, case, sides, BASE))
    told = facts()
    console.print(", ".join(f"{name} {value}" for name, value in told.items()))
    if json_path is not None:
        settings = {
            "rounds": rounds,
            "seconds": seconds,
            "warmup": warmup,
            "streams": [*cases.values()],
            "connections": connections,
            "clients": clients,
        }
        report = {"machine": told, "settings": settings, "summary": results.summary(BASE), "samples": results.as_json()}
        json_path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
