"""Measures what a Python user gets: `await stream.step(...)` and `await block.step(...)` of `tidegate.client`, in one process.

python benchmarks/client.py [--rounds 5] [--before PATH [--before-server]] [--quick]

The same rounds measure an echo of single messages with the light client and 128 streams: the cost of a message without
any work. `--before` adds the same program with the `tidegate.client` of another checkout.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from compare import HERE, Before, Comparison, LoadProcesses, Quick, Rounds, Seconds, Warmup, check_checkout, many
from machine import ROOT
from model import write_model
from server_process import ServerProcess, serve

ECHO_STREAMS = 128
CASES = (1, 16, 128, 1000)
ROWS = 1024


def main(
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    warmup: Warmup = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Number of streams; repeat it for several cases. [1, 16, 128, 1000]")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of a block; 0: no blocks.")] = ROWS,
    before: Before = None,
    before_server: Annotated[bool, typer.Option("--before-server", help="Run its server for its client.")] = False,
    quick: Quick = False,
) -> None:
    """Measure what a Python user gets."""
    if quick:
        streams, rows = streams or [8], min(rows, 64)
    with Comparison("echo", rounds, seconds, warmup, quick=quick) as compare:
        folder = compare.folder
        write_model(folder / "models")

        def server(name: str, root: Path) -> ServerProcess:
            return compare.enter_context(
                ServerProcess(name, serve(folder / "models", "--data-dir", str(folder / name)), root=root)
            )

        echo = compare.enter_context(ServerProcess("echo", [str(HERE / "echo.py")]))
        ours = theirs = server("client", ROOT)
        other: LoadProcesses | None = None
        if before is not None:
            before = check_checkout(before)
            # The processes for the echo and for this checkout never import the other checkout.
            other = compare.enter_context(
                LoadProcesses(arguments=[str(HERE / "other_checkout.py")], import_paths=[before / "src", HERE])
            )
            theirs = server("before", before) if before_server else ours

        def case(title: str, **plan: Any) -> None:
            plan = {"client": "python", "connections": 1, **plan}
            turns = {"echo": partial(compare.measure, echo, streams=ECHO_STREAMS)}
            turns["client"] = partial(compare.measure, ours, **plan)
            if other is not None:
                turns["before"] = partial(compare.measure, theirs, other, **plan)
            compare.case(title, turns)
            if other is not None:
                values = {"steps_per_s": "steps/s", "client_cpu_us": "client CPU a step", "p99_us": "p99"}
                ratios = {text: compare.results.ratio(title, "client", "before", name) for name, text in values.items()}
                print("of before: " + ", ".join(f"{text} {ratio:.2f}" for text, ratio in ratios.items() if ratio))

        for count in streams or CASES:
            case(f"{many(count)} of `stream.step`; echo: {ECHO_STREAMS}", streams=count)
        if rows:
            case(f"`block.step` of {rows:,} rows; echo: {ECHO_STREAMS} streams", streams=rows, block=rows)


if __name__ == "__main__":
    typer.run(main)
