"""The load of Triton: the same streams and values as `load.py` sends, as requests of the sequence extension.

The first timestep of a sequence carries START and the last END; they stand where Tidegate has its open and close.
"""

from itertools import count, cycle
from typing import Any

import grpc
import numpy as np
import uvloop
from frames import prefixed
from load import Load, Script, serve_parent
from model import FEATURES

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
# Different rows of values, which a sequence sends in turn: its messages carry its number, so each has its own.
VALUES = 16


class TritonLoad(Load):
    """The client processes of a run."""

    def command(self) -> list[str]:
        """What a client process runs."""
        return [__file__]


# What follows runs in a client process.


def make_script(protos: Any, sequence: int) -> Script:
    """What one sequence sends."""
    rows = np.random.default_rng(0).normal(size=(VALUES, FEATURES)).astype("<f4")

    def request(row: Any, *, start: bool = False, end: bool = False) -> bytes:
        message = protos.ModelInferRequest(
            model_name="bench",
            parameters={
                "sequence_id": protos.InferParameter(int64_param=sequence),
                "sequence_start": protos.InferParameter(bool_param=start),
                "sequence_end": protos.InferParameter(bool_param=end),
            },
            inputs=[protos.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, FEATURES])],
            raw_input_contents=[row.tobytes()],
        )
        return prefixed(message.SerializeToString())

    prediction = (protos.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3) | 2
    return Script(
        request(rows[0], start=True),
        cycle([request(row) for row in rows]),
        request(rows[0], end=True),
        prediction,
        half_closes=True,
    )


def main() -> None:
    """Runs windows as told on stdin."""
    protos = grpc.protos("triton/infer.proto")
    sequences = count(1)
    uvloop.run(serve_parent(METHOD, lambda: make_script(protos, next(sequences))))


if __name__ == "__main__":
    main()
