"""Measures `PredictBlocks` against bare onnxruntime with as many rows, with and without a store.

python benchmarks/blocks.py [--rows 1024] [--hidden 32,64,128,256,512] [--cores 0.5] [--quick]
"""

from functools import partial
from typing import Annotated

import typer
from bare import Bare
from compare import Comparison, Quick, Rounds, Seconds, Warmup
from cpu_limit import CpuLimitUnavailable, limit_cpu
from model import HIDDEN, write_model
from server_process import STORE_NOTHING, ServerProcess, serve


def main(
    rounds: Rounds = 5,
    seconds: Seconds = 1.5,
    warmup: Warmup = 0.3,
    rows: Annotated[
        list[int] | None, typer.Option(help="Rows of a block; repeat it for several cases. [64, 256, 1024, 4096]")
    ] = None,
    hidden: Annotated[str, typer.Option(help="Hidden sizes of the model, separated by commas.")] = str(HIDDEN),
    ahead: Annotated[int, typer.Option(min=1, help="Blocks in flight.")] = 2,
    cores: Annotated[
        float, typer.Option(min=0, help="Limit each server and bare onnxruntime to this share of a core; 0: no limit.")
    ] = 0.0,
    quick: Quick = False,
) -> None:
    """Measure PredictBlocks against bare onnxruntime."""
    rows = rows or ([64] if quick else [64, 256, 1024, 4096])
    for size in map(int, hidden.split(",")):
        with Comparison(Bare.name, rounds, seconds, warmup, quick=quick) as compare:
            bare = compare.enter_context(Bare(write_model(compare.folder, hidden=size)))
            compare.start(
                ServerProcess("tidegate", serve(compare.folder, *STORE_NOTHING)),
                ServerProcess("durable", serve(compare.folder, "--data-dir", str(compare.folder / "data"))),
            )
            limit_text = ""
            if cores:
                try:
                    for pid in (bare.pid, *(side.pid for side in compare.sides)):
                        limit_text = f", {cores:g} of a core by {compare.enter_context(limit_cpu(pid, cores))}"
                except CpuLimitUnavailable as reason:
                    print(f"--cores {cores:g} is skipped: {reason}")
                    return
            for count in rows:
                turns = {Bare.name: partial(bare.run, count, compare.warmup, compare.seconds)}
                title = f"{count:,} rows a block, hidden size {size}{limit_text}"
                compare.case(title, turns, streams=count, block=count, ahead=ahead)


if __name__ == "__main__":
    typer.run(main)
