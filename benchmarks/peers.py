"""Measures `Predict` against Triton's sequence batcher, on the same model with the same client.

make bench-peers, or python benchmarks/peers.py --triton FOLDER

FOLDER is a virtual environment with `nvidia-pytriton`, which contains the server, and `onnxruntime`, both for the Python
that runs this. The benchmark continues until Triton crashes, which it prints. With 64 streams Triton sometimes crashed,
with 128 nearly always, within seconds: SIGSEGV in TRITONSERVER_InferenceRequestDelete.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from compare import HERE, Comparison, Quick, Rounds, Seconds, Warmup, many
from model import write_model
from server_process import ServerProcess, serve
from triton_load import triton_encoding

from tidegate.bench.run import BenchFailed


def main(
    triton: Annotated[Path, typer.Option(help="Virtual environment with nvidia-pytriton.")],
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    warmup: Warmup = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Number of streams; repeat it for several cases. [1, 16, 64, 128]")
    ] = None,
    quick: Quick = False,
) -> None:
    """Measure Predict against Triton."""
    with Comparison("triton", rounds, seconds, warmup, quick=quick) as compare:
        folder = compare.folder
        graph = write_model(folder / "models")
        compare.start(ServerProcess("tidegate", serve(folder / "models", "--data-dir", str(folder / "data"))))
        arguments = [str(HERE / "triton" / "server.py"), str(triton), str(graph), str(folder / "triton")]
        peer = compare.enter_context(ServerProcess("triton", arguments))
        for count in streams or ([8] if quick else [1, 16, 64, 128]):
            turns = {peer.name: partial(compare.measure, peer, streams=count, make_encoding=triton_encoding)}
            try:
                compare.case(many(count), turns, streams=count)
            except (RuntimeError, BenchFailed):
                if peer.alive:
                    raise
                compare.console.print(f"{many(count)}: {peer.name} crashed")
                break


if __name__ == "__main__":
    typer.run(main)
