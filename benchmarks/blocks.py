"""Measures `PredictBlocks` against bare onnxruntime with as many rows, with and without a store.

python benchmarks/blocks.py [--rows 1024] [--hidden 32,64,128,256,512] [--cores 0.5] [--before PATH] [--quick]

`--before` adds the servers of another checkout.
"""

from functools import partial
from typing import Annotated

import typer
from bare import Bare
from compare import Before, Comparison, Quick, Rounds, Seconds, Warmup, check_checkout
from cpu_limit import CpuLimitUnavailable, limit_cpu
from machine import ROOT
from model import HIDDEN, write_model
from server_process import STORE_NOTHING, ServerProcess, serve


def main(  # noqa: PLR0913, PLR0917  each is an option
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
    before: Before = None,
    quick: Quick = False,
) -> None:
    """Measure PredictBlocks against bare onnxruntime."""
    checkouts = {"": ROOT} | ({} if before is None else {" before": check_checkout(before)})
    rows = rows or ([64] if quick else [64, 256, 1024, 4096])
    for size in map(int, hidden.split(",")):
        with Comparison(Bare.name, rounds, seconds, warmup, quick=quick) as compare:
            bare = compare.enter_context(Bare(write_model(compare.folder, hidden=size)))
            for name, root in checkouts.items():
                compare.start(
                    ServerProcess(f"tidegate{name}", serve(compare.folder, *STORE_NOTHING), root=root),
                    ServerProcess(
                        f"durable{name}",
                        serve(compare.folder, "--data-dir", str(compare.folder / f"data{name}")),
                        root=root,
                    ),
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
