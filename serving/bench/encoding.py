"""Encodes requests and decodes responses: one stream on a call of `Predict`, or a block of streams on `PredictBlocks`.

The client must need little CPU. So requests are assembled from bytes that exist already, and outputs are not decoded.
Each answer is checked to belong to its request.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from tidegate.bench.http2 import LENGTH_PREFIX, length_prefixed
from tidegate.bench.send_queue import Answer, Refusal
from tidegate.core.spec import Floats
from tidegate.rpc.names import reason_name
from tidegate.v1 import tidegate_pb2 as pb

APPLIED = Answer()
# The protobuf tags of the fields: wire type 2 for bytes and messages, 0 for numbers.
TIMESTEP = bytes((pb.PredictRequest.TIMESTEP_FIELD_NUMBER << 3 | 2,))
VALUES = bytes((pb.Timestep.VALUES_FIELD_NUMBER << 3 | 2,))
STEP = bytes((pb.Timestep.STEP_FIELD_NUMBER << 3,))
SERVICE = "/tidegate.v1.TidegateService/"


class UnexpectedResponse(Exception):
    """A response does not fit the request. The message says what was received and what was expected."""


@dataclass(frozen=True, slots=True)
class StreamsEnded:
    """The server ended some streams of a call. It will refuse their rows."""

    reason: str
    streams: int


class Encoding(Protocol):
    """Encodes the requests of one call, with their length prefix, and decodes its responses.

    Attributes:
        method: the full name of the gRPC method.
        window: how many timesteps of a stream may be in flight. The server sets it in its answer to the open.
    """

    method: str
    window: int

    def open_request(self) -> bytes:
        """Returns the first request."""

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Decodes the answer to the open. Returns the refused streams by reason. Raises UnexpectedResponse."""

    def request(self, number: int, lags: Mapping[int, int]) -> bytes:
        """Returns the message of that number. Messages count from 1. `lags` has the rows that are behind, and by how many."""

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """Decodes a response. Returns None when it does not answer a message. Raises UnexpectedResponse."""

    def close_request(self, *, forget: bool = True) -> bytes:
        """Returns the last request: the server closes the streams, and deletes them with `forget`."""


class PredictEncoding:
    """One stream on its own call.

    Args:
        open_message: the open.
        values: rows as `encode_rows` returns them, sent in a loop.
        offset: the index of the row before the first one.
    """

    method = SERVICE + "Predict"

    def __init__(self, open_message: pb.Open, values: Sequence[bytes], offset: int = 0) -> None:
        self._open = open_message
        self._values = values
        self._offset = offset
        self._last_step = 0  # the last timestep before this call
        self.window = 1

    def open_request(self) -> bytes:
        """Returns the open."""
        return length_prefixed(pb.PredictRequest(open=self._open).SerializeToString())

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Reads the step and the window. An open that is refused ends the call instead."""
        response = pb.PredictResponse.FromString(data)
        if not response.HasField("opened"):
            raise UnexpectedResponse(f"got {response.WhichOneof('kind')}, expected opened")
        self.window = max(1, response.opened.answers_remembered)
        self._last_step = response.opened.next_step - 1
        return Counter()

    def request(self, number: int, lags: Mapping[int, int]) -> bytes:
        """Returns a timestep. A message of one row is refused as a whole, so no row is ever behind."""
        assert not lags
        values = self._values[(self._offset + number) % len(self._values)]
        step = _encode_step(self._last_step + number)
        return _encode_timestep_header(len(step) + len(values)) + step + values

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """Decodes a prediction or an error. Other responses, such as `durable` and `move`, answer no message."""
        response = pb.PredictResponse.FromString(data)
        kind = response.WhichOneof("kind")
        if kind == "prediction":
            prediction = response.prediction
            step = self._last_step + number
            if prediction.step != step or prediction.duplicate:
                what = "a duplicate" if prediction.duplicate else "an answer"
                raise UnexpectedResponse(f"got {what} to timestep {prediction.step}, expected one to timestep {step}")
            return APPLIED
        if kind == "error":
            return Answer(refused=_refusal(response.error))
        return None

    def close_request(self, *, forget: bool = True) -> bytes:
        """Returns the close."""
        return length_prefixed(pb.PredictRequest(close=pb.Close(forget=forget)).SerializeToString())


class PredictBlocksEncoding:
    """A block of streams on one call.

    Args:
        open_message: the open.
        values: (rows, features), sent in a loop.
        offset: the index of the row before the one that the first stream sends first.
    """

    method = SERVICE + "PredictBlocks"

    def __init__(self, open_message: pb.OpenStreams, values: Floats, offset: int = 0) -> None:
        self._open = open_message
        self._offset = offset
        self._row_count = len(values)
        # Row r of block n is row n + r of the values, modulo their number: always one contiguous slice.
        self._values = np.resize(values, (len(values) + len(open_message.stream_ids), values.shape[1]))
        self._handles = np.zeros(0, "<u4")  # (rows,)
        self._last_step = np.zeros(0, "<u8")  # (rows,), the last timesteps before this call
        self._packed_handles = b""
        self.window = 1

    @property
    def rows(self) -> int:
        """The number of open streams."""
        return len(self._handles)

    def open_request(self) -> bytes:
        """Returns the open."""
        return length_prefixed(pb.PredictBlocksRequest(open=self._open).SerializeToString())

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Reads the handles of the open streams."""
        response = pb.PredictBlocksResponse.FromString(data)
        if not response.HasField("opened"):
            raise UnexpectedResponse(f"got {response.WhichOneof('kind')}, expected opened")
        opened = response.opened
        if not len(opened.handles) == len(opened.next_steps) == len(self._open.stream_ids):
            got = f"{len(opened.handles)} handles and {len(opened.next_steps)} numbers"
            raise UnexpectedResponse(f"got {got}, expected {len(self._open.stream_ids)} of each")
        handles = np.array(opened.handles, "<u4")
        self._handles = handles[handles != 0]
        self._last_step = np.array(opened.next_steps, "<u8")[handles != 0] - np.uint64(1)
        self._packed_handles = self._handles.tobytes()
        self.window = max(1, opened.answers_remembered)
        refused = Counter(reason_name(row.error.reason) for row in opened.errors)
        if refused.total() != len(handles) - self.rows:
            raise UnexpectedResponse(
                f"got {refused.total()} errors for {len(handles) - self.rows} streams without a handle"
            )
        return refused

    def request(self, number: int, lags: Mapping[int, int]) -> bytes:
        """Returns the block of that number."""
        first = (self._offset + number) % self._row_count
        block = pb.Block(
            block=number,
            handles=self._packed_handles,
            steps=self._steps(number, lags),
            values=self._values[first : first + self.rows].tobytes(),
        )
        return length_prefixed(pb.PredictBlocksRequest(block=block).SerializeToString())

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """Decodes an answer row by row."""
        response = pb.PredictBlocksResponse.FromString(data)
        kind = response.WhichOneof("kind")
        if kind == "block":
            return self._block(response.block, number)
        if kind == "ended":
            return StreamsEnded(reason_name(response.ended.error.reason), len(response.ended.handles))
        return None

    def close_request(self, *, forget: bool = True) -> bytes:
        """Returns the close."""
        close = pb.CloseStreams(handles=self._handles.tolist(), forget=forget)
        return length_prefixed(pb.PredictBlocksRequest(close=close).SerializeToString())

    def _block(self, block: pb.PredictedBlock, number: int) -> Answer:
        if block.block != number:
            raise UnexpectedResponse(f"got an answer to block {block.block}, expected one to block {number}")
        if block.HasField("refused"):
            return Answer(refused=_refusal(block.refused))
        if len(block.steps) != 8 * self.rows:
            raise UnexpectedResponse(f"got {len(block.steps)} bytes of steps, expected {8 * self.rows}")
        if block.duplicate_rows or block.forgotten_rows:
            raise UnexpectedResponse(f"got duplicates in block {number}, expected none")
        if not block.errors:
            return APPLIED
        return Answer(rows={row.row: _refusal(row.error) for row in block.errors})

    def _steps(self, number: int, lags: Mapping[int, int]) -> bytes:
        steps = self._last_step + np.uint64(number)
        if lags:
            steps[list(lags)] -= np.array(list(lags.values()), "<u8")
        return steps.tobytes()


def encode_rows(values: Floats) -> list[bytes]:
    """Encodes each row of (rows, features) as the field of a timestep."""
    return [VALUES + _encode_varint(4 * len(row)) + row.astype("<f4").tobytes() for row in values]


@lru_cache(4096)  # the streams of a closed loop have similar step numbers
def _encode_step(step: int) -> bytes:
    """Encodes the number of a timestep as a field."""
    return STEP + _encode_varint(step)


def _encode_varint(number: int) -> bytes:
    """Encodes a whole number: seven bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _encode_varint(number >> 7)


@lru_cache(64)  # sizes differ only by the length of the step number
def _encode_timestep_header(size: int) -> bytes:
    """Encodes what precedes the fields of a timestep, which have that many bytes, including the length prefix."""
    length = _encode_varint(size)
    return LENGTH_PREFIX.pack(0, 1 + len(length) + size) + TIMESTEP + length


def _refusal(error: pb.Error) -> Refusal:
    return Refusal(reason_name(error.reason), error.retry_after.ToTimedelta().total_seconds())
