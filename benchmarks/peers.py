"""Measures `Predict` against the one peer that keeps state: Triton's sequence batcher, on the same model with the same client.

make bench-peers, or python benchmarks/peers.py --triton FOLDER

FOLDER is a virtual environment with `nvidia-pytriton`, whose wheel holds the server, and `onnxruntime`, both for the Python
that runs this. Cases go on until Triton dies, which is told: with 64 streams it sometimes did and with 128 nearly always,
of SIGSEGV in TRITONSERVER_InferenceRequestDelete, within seconds.
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
from triton_load import TritonLoad

BASE = "triton"
CONNECTIONS = 4


def main(
    triton: Annotated[Path, typer.Option(help="Virtual environment with nvidia-pytriton.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")] = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Streams at once; give it again for more cases. [1, 16, 64, 128]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote.")] = False,
) -> None:
    """Measure Predict against Triton."""
    if quick:
        rounds, seconds, warmup, streams = 1, 0.3, 0.1, streams or [8]
    results = Results()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        graph = write_model(folder / "models")
        tidegate = Side("tidegate", serve(folder / "models", "--data-dir", str(folder / "data")))
        peer = Side(BASE, [str(HERE / "triton" / "server.py"), str(triton), str(graph), str(folder / "triton")])
        sides = [stack.enter_context(side) for side in (tidegate, peer)]
        loads = {
            tidegate.name: stack.enter_context(Load(1, CONNECTIONS, warmup + seconds)),
            peer.name: stack.enter_context(TritonLoad(1, CONNECTIONS, warmup + seconds)),
        }
        for count in streams or [1, 16, 64, 128]:
            case = f"{count} stream{'s' if count > 1 else ''}"
            try:
                for number, side in interleave(rounds, sides):
                    window = loads[side.name].run(side, count, warmup, seconds)
                    results.add(Sample(case, number, side.name, load_average(), figures(window)))
            except RuntimeError:
                if peer.alive:
                    raise
                console.print(f"{case}: {peer.name} died")
                break
            console.print(make_table(results, case, sides, BASE))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
