"""How a lane speaks: one stream on a call of `Predict`, or a block of them on one of `PredictBlocks`.

The measuring side must be cheap: messages are put together from bytes that are there already, and outputs are not unpacked.
But whose an answer is gets checked, for a quick answer to something else is none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.bench.http2 import LENGTH_PREFIX, length_prefixed
from serving.bench.send_queue import Answer, Refusal
from serving.core.spec import Floats
from serving.rpc.names import reason_name

APPLIED = Answer()
# How fields begin whose content is bytes or a message, and how one that is a number does.
TIMESTEP = bytes((pb.PredictRequest.TIMESTEP_FIELD_NUMBER << 3 | 2,))
VALUES = bytes((pb.Timestep.VALUES_FIELD_NUMBER << 3 | 2,))
STEP = bytes((pb.Timestep.STEP_FIELD_NUMBER << 3,))
SERVICE = "/tidegate.v1.TidegateService/"


class UnexpectedResponse(Exception):
    """What came answers nothing that was sent; the message says what was got and what was expected."""


@dataclass(frozen=True, slots=True)
class StreamsEnded:
    """The server has ended so many streams of a lane; their rows will be refused."""

    reason: str
    streams: int


class Encoding(Protocol):
    """The requests of one lane as `frames.prefixed`, and what its responses mean.

    Attributes:
        method: its full name.
        window: how many timesteps of a stream may be under way; the server says, when it has answered the open.

    """

    method: str
    window: int

    def open_request(self) -> bytes:
        """The first request."""

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Takes the answer to it; gives the streams that were refused, by reason. Raises WrongAnswer."""

    def request(self, number: int, lags: Mapping[int, int]) -> bytes:
        """The timesteps of that number, the first of this call being 1, each row's less what it is behind."""

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """What a response says of the message of that number; None when it answers nothing. Raises WrongAnswer."""

    def close_request(self, *, forget: bool = True) -> bytes:
        """The last request: the server ends the streams, and forgets them."""


class PredictEncoding:
    """A stream on a call of its own.

    Args:
        ask: what is opened.
        values: rows as `packed` gives them, sent round and round.
        offset: where among them to begin.

    """

    method = SERVICE + "Predict"

    def __init__(self, open_message: pb.Open, values: Sequence[bytes], offset: int = 0) -> None:
        self._open = open_message
        self._values = values
        self._offset = offset
        self._last_step = 0  # the stream's number before this call
        self.window = 1

    def open_request(self) -> bytes:
        """Opens the stream."""
        return length_prefixed(pb.PredictRequest(open=self._open).SerializeToString())

    def decode_opened(self, data: bytes) -> Counter[str]:
        """It is open: one that is refused ends the call."""
        response = pb.PredictResponse.FromString(data)
        if not response.HasField("opened"):
            raise UnexpectedResponse(f"got {response.WhichOneof('kind')}, expected opened")
        self.window = max(1, response.opened.answers_remembered)
        self._last_step = response.opened.next_step - 1
        return Counter()

    def request(self, number: int, lags: Mapping[int, int]) -> bytes:
        """The timestep; a message of one row is refused as a whole, so nothing is ever behind."""
        assert not lags
        values = self._values[(self._offset + number) % len(self._values)]
        step = _encode_step(self._last_step + number)
        return _encode_timestep_header(len(step) + len(values)) + step + values

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """Applied or refused; progress in storing and a wish to move answer nothing."""
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
        """Ends the stream."""
        return length_prefixed(pb.PredictRequest(close=pb.Close(forget=forget)).SerializeToString())


class PredictBlocksEncoding:
    """A block of streams on one call.

    Args:
        ask: what is opened.
        values: (rows, features), sent round and round.
        offset: where among them the first stream begins.

    """

    method = SERVICE + "PredictBlocks"

    def __init__(self, open_message: pb.OpenStreams, values: Floats, offset: int = 0) -> None:
        self._open = open_message
        self._offset = offset
        self._row_count = len(values)
        # Row r of block n is row n + r of the values, round and round: one piece of memory, whatever n.
        self._values = np.resize(values, (len(values) + len(open_message.stream_ids), values.shape[1]))
        self._handles = np.zeros(0, "<u4")  # (rows,)
        self._last_step = np.zeros(0, "<u8")  # (rows,), the streams' numbers before this call
        self._packed_handles = b""
        self.window = 1

    @property
    def rows(self) -> int:
        """Streams that are open."""
        return len(self._handles)

    def open_request(self) -> bytes:
        """Opens the streams."""
        return length_prefixed(pb.PredictBlocksRequest(open=self._open).SerializeToString())

    def decode_opened(self, data: bytes) -> Counter[str]:
        """Keeps the handles of those that are open."""
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
        """The block of that number."""
        first = (self._offset + number) % self._row_count
        block = pb.Block(
            block=number,
            handles=self._packed_handles,
            steps=self._steps(number, lags),
            values=self._values[first : first + self.rows].tobytes(),
        )
        return length_prefixed(pb.PredictBlocksRequest(block=block).SerializeToString())

    def decode_answer(self, data: bytes, number: int) -> Answer | StreamsEnded | None:
        """Applied or refused, row by row."""
        response = pb.PredictBlocksResponse.FromString(data)
        kind = response.WhichOneof("kind")
        if kind == "block":
            return self._block(response.block, number)
        if kind == "ended":
            return StreamsEnded(reason_name(response.ended.error.reason), len(response.ended.handles))
        return None

    def close_request(self, *, forget: bool = True) -> bytes:
        """Ends the streams."""
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
    """Each row of (rows, features) as it stands in a timestep."""
    return [VALUES + _encode_varint(4 * len(row)) + row.astype("<f4").tobytes() for row in values]


@lru_cache(4096)  # streams in a closed loop are about equally far
def _encode_step(step: int) -> bytes:
    """The number of a timestep."""
    return STEP + _encode_varint(step)


def _encode_varint(number: int) -> bytes:
    """A whole number of protobuf: seven bits a byte, the last ones first."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _encode_varint(number >> 7)


@lru_cache(64)  # sizes differ by the digits of a number
def _encode_timestep_header(size: int) -> bytes:
    """What stands before the fields of a timestep, which are so many bytes, as `frames.prefixed`."""
    length = _encode_varint(size)
    return LENGTH_PREFIX.pack(0, 1 + len(length) + size) + TIMESTEP + length


def _refusal(error: pb.Error) -> Refusal:
    return Refusal(reason_name(error.reason), error.retry_after.ToTimedelta().total_seconds())
