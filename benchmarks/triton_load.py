"""The encoding of a stream for Triton: the same values as for Tidegate, as requests of the sequence extension.

The first timestep of a sequence carries START and the last one END. They replace the open and the close of Tidegate.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import count
from typing import Any

import grpc
from model import FEATURES

from tidegate.bench.encoding import APPLIED, UnexpectedResponse
from tidegate.bench.http2 import length_prefixed
from tidegate.bench.send_queue import Answer

SEQUENCES = count(1)
# The number of rows that a sequence sends in turn. Its messages contain its id, so each sequence has its own.
VALUES = 16


@cache
def protos() -> Any:
    """Returns the messages of Triton."""
    return grpc.protos("triton/infer.proto")


class TritonSequence:
    """One sequence; see `tidegate.bench.encoding.Encoding`."""

    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    window = 1

    def __init__(self, values: Any) -> None:
        self._number = next(SEQUENCES)
        self._values = [row.tobytes() for row in values[:VALUES]]
        self._messages = [self._request(row) for row in self._values]

    def open_request(self) -> bytes:
        """Returns the first timestep."""
        return self._request(self._values[0], start=True)

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Checks the answer to the first timestep."""
        self.decode_answer(data, 0)
        return Counter()

    def request(self, number: int, _: Mapping[int, int]) -> bytes:
        """Returns a timestep."""
        return self._messages[number % VALUES]

    def decode_answer(self, data: bytes, _: int) -> Answer:
        """Decodes a prediction. Raises UnexpectedResponse for anything else."""
        parsed = protos().ModelStreamInferResponse.FromString(data)
        if parsed.error_message or not parsed.HasField("infer_response"):
            raise UnexpectedResponse(f"expected a prediction, got '{parsed.error_message}'")
        return APPLIED

    def close_request(self, *, forget: bool = True) -> bytes:
        """Returns the last timestep."""
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
        return length_prefixed(message.SerializeToString())


def triton_encoding(_names: list[str], values: Any, _offset: int) -> TritonSequence:
    """Makes the encoding of a stream, in a client process."""
    return TritonSequence(values)
