"""Measures `Predict` against a bare grpc.aio echo and a naive synchronous server, in one run with the same client.

python benchmarks/predict.py --help
"""

from typing import Annotated

import typer
from compare import CONNECTIONS, HERE, Comparison, JsonPath, Quick, Rounds, Seconds, Warmup, many
from model import write_model
from server_process import ServerProcess, serve


def main(
    rounds: Rounds = 7,
    seconds: Seconds = 3.0,
    warmup: Warmup = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Number of streams; repeat it for several cases. [1, 128]")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Connections of each client process.")] = CONNECTIONS,
    clients: Annotated[int, typer.Option(min=1, help="Client processes.")] = 1,
    quick: Quick = False,
    json_path: JsonPath = None,
) -> None:
    """Measure Predict against a bare grpc.aio echo and a naive sync server."""
    counts = streams or ([1, 8] if quick else [1, 128])
    with Comparison("echo", rounds, seconds, warmup, quick=quick, clients=clients, json_path=json_path) as compare:
        model = write_model(compare.folder)
        compare.start(
            ServerProcess("tidegate", serve(compare.folder, "--data-dir", str(compare.folder / "data"))),
            ServerProcess("echo", [str(HERE / "echo.py")]),
            # A call uses a thread until it ends, and calls of the previous turn may still be ending.
            ServerProcess("naive", [str(HERE / "naive.py"), str(model), str(2 * max(counts))]),
        )
        for count in counts:
            compare.case(many(count), streams=count, connections=connections)


if __name__ == "__main__":
    typer.run(main)
