"""The encoding of sequences for `ModelStreamInfer`: a call of its own for each, or one call for many."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from model import FEATURES

from tidegate.bench.encoding import APPLIED, UnexpectedResponse
from tidegate.bench.http2 import length_prefixed
from tidegate.bench.send_queue import Answer
from tidegate.rpc.kserve.messages import ModelInferRequest, ModelStreamInferResponse

# The number of rows that a sequence sends in turn. Its messages contain its id, so each sequence has its own.
VALUES = 16


class Sequences:
    """The sequences of one call; see `tidegate.bench.encoding.Encoding`.

    `durability` is a parameter of each request; empty: the server's default, which waits for the store.
    """

    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    window = 1

    def __init__(self, names: Sequence[str], values: Any, durability: str) -> None:
        self._names = names
        self._durability = durability
        self._rows = [row.tobytes() for row in values[:VALUES]]
        self._messages = [self._requests(row) for row in self._rows]
        self._missing = len(names)  # answers to the last message

    def open_request(self) -> bytes:
        """Returns the first timesteps."""
        return self._requests(self._rows[0], start=True)

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Checks the first answer. The others are awaited with those to the next message."""
        self._check(data)
        self._missing = 2 * len(self._names) - 1
        return Counter()

    def request(self, number: int, _: Mapping[int, int]) -> bytes:
        """Returns a timestep of each sequence."""
        return self._messages[number % VALUES]

    def decode_answer(self, data: bytes, _: int) -> Answer | None:
        """Decodes a prediction: the last one answers the message. Raises UnexpectedResponse for anything else."""
        self._check(data)
        self._missing -= 1
        if self._missing:
            return None
        self._missing = len(self._names)
        return APPLIED

    def close_request(self, *, forget: bool = True) -> bytes:
        """Returns the last timesteps."""
        return self._requests(self._rows[0], end=forget)

    def _check(self, data: bytes) -> None:
        parsed = ModelStreamInferResponse.FromString(data)
        if parsed.error_message:
            raise UnexpectedResponse(f"expected a prediction, got '{parsed.error_message}'")

    def _requests(self, row: bytes, *, start: bool = False, end: bool = False) -> bytes:
        return b"".join(self._request(name, row, start=start, end=end) for name in self._names)

    def _request(self, name: str, row: bytes, *, start: bool, end: bool) -> bytes:
        message = ModelInferRequest(model_name="bench", raw_input_contents=[row])
        message.parameters["sequence_id"].string_param = name
        message.parameters["sequence_start"].bool_param = start
        message.parameters["sequence_end"].bool_param = end
        if self._durability:
            message.parameters["durability"].string_param = self._durability
        message.inputs.add(name="x", datatype="FP32", shape=[1, FEATURES])
        return length_prefixed(message.SerializeToString())


def background_encoding(names: list[str], values: Any, _offset: int) -> Sequences:
    """Makes the encoding of a call whose answers do not wait for the store."""
    return Sequences(names, values, "background")


def stored_encoding(names: list[str], values: Any, _offset: int) -> Sequences:
    """Makes the encoding of a call whose answers wait for the store: what clients of Triton send."""
    return Sequences(names, values, "")
