"""How a stream speaks with Triton: the same values as with Tidegate, as requests of the sequence extension.

The first timestep of a sequence carries START and the last END; they stand where Tidegate has its open and close.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import count
from typing import Any

import grpc
from model import FEATURES

from serving.bench.frames import prefixed
from serving.bench.lane import Verdict
from serving.bench.speech import APPLIED, WrongAnswer

SEQUENCES = count(1)
# Different rows of values, which a sequence sends in turn: its messages carry its number, so each has its own.
VALUES = 16


@cache
def protos() -> Any:
    """The messages of Triton."""
    return grpc.protos("triton/infer.proto")


class TritonSequence:
    """One sequence; see `serving.bench.speech.Speech`."""

    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    window = 1

    def __init__(self, values: Any) -> None:
        self._number = next(SEQUENCES)
        self._values = [row.tobytes() for row in values[:VALUES]]
        self._messages = [self._request(row) for row in self._values]

    def open(self) -> bytes:
        """The first timestep."""
        return self._request(self._values[0], start=True)

    def opened(self, response: bytes) -> Counter[str]:
        """It was answered."""
        self.verdict(response, 0)
        return Counter()

    def message(self, number: int, _: Mapping[int, int]) -> bytes:
        """A timestep between."""
        return self._messages[number % VALUES]

    def verdict(self, response: bytes, _: int) -> Verdict:
        """Applied; whatever else is wrong."""
        said = protos().ModelStreamInferResponse.FromString(response)
        if said.error_message or not said.HasField("infer_response"):
            raise WrongAnswer(f"expected a prediction, got '{said.error_message}'")
        return APPLIED

    def close(self, *, forget: bool = True) -> bytes:
        """The last timestep."""
        return self._request(self._values[0], end=forget)

    def _request(self, row: bytes, *, start: bool = False, end: bool = False) -> bytes:
        kinds = protos()
        message = kinds.ModelInferRequest(
            model_name="bench",
            parameters={
                "sequence_id": kinds.InferParameter(int64_param=self._number),
                "sequence_start": kinds.InferParameter(bool_param=start),
                "sequence_end": kinds.InferParameter(bool_param=end),
            },
            inputs=[kinds.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, FEATURES])],
            raw_input_contents=[row],
        )
        return prefixed(message.SerializeToString())


def triton_speech(_names: list[str], values: Any, _offset: int) -> TritonSequence:
    """The speech of a stream, made in a client process."""
    return TritonSequence(values)
