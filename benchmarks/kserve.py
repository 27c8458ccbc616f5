"""Measures `ModelStreamInfer` of the KServe protocol against `Predict`, on one server with the same client.

python benchmarks/kserve.py --help
"""

from functools import partial
from typing import Annotated

import typer
from compare import CONNECTIONS, Comparison, JsonPath, Quick, Rounds, Seconds, Warmup, many
from kserve_load import background_encoding, stored_encoding
from model import write_model
from server_process import ServerProcess, serve


def main(
    rounds: Rounds = 3,
    seconds: Seconds = 2.0,
    warmup: Warmup = 0.5,
    streams: Annotated[
        list[int] | None, typer.Option(help="Number of streams; repeat it for several cases. [1, 64, 128]")
    ] = None,
    quick: Quick = False,
    json_path: JsonPath = None,
) -> None:
    """Measure ModelStreamInfer against Predict."""
    with Comparison("tidegate", rounds, seconds, warmup, quick=quick, json_path=json_path) as compare:
        write_model(compare.folder)
        compare.start(ServerProcess("tidegate", serve(compare.folder, "--data-dir", str(compare.folder / "data"))))
        (server,) = compare.sides
        for count in streams or ([8] if quick else [1, 64, 128]):
            each = partial(compare.measure, server, streams=count, connections=CONNECTIONS)
            together = partial(compare.measure, server, streams=count, block=count, connections=1)
            turns = {
                "a call each": partial(each, make_encoding=background_encoding),
                "a call each, stored": partial(each, make_encoding=stored_encoding),
                "one call": partial(together, make_encoding=background_encoding),
                "one call, stored": partial(together, make_encoding=stored_encoding),
            }
            compare.case(many(count), turns, streams=count, connections=CONNECTIONS)


if __name__ == "__main__":
    typer.run(main)
