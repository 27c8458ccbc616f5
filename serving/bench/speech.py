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
from serving.bench.frames import PREFIX, prefixed
from serving.bench.lane import Refusal, Verdict
from serving.core.spec import Floats
from serving.rpc.names import reason_name

APPLIED = Verdict()
# How fields begin whose content is bytes or a message, and how one that is a number does.
TIMESTEP = bytes((pb.PredictRequest.TIMESTEP_FIELD_NUMBER << 3 | 2,))
VALUES = bytes((pb.Timestep.VALUES_FIELD_NUMBER << 3 | 2,))
STEP = bytes((pb.Timestep.STEP_FIELD_NUMBER << 3,))
SERVICE = "/tidegate.v1.TidegateService/"


class WrongAnswer(Exception):
    """What came answers nothing that was sent; the message says what was got and what was expected."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The server has ended so many streams of a lane; their rows will be refused."""

    reason: str
    streams: int


class Speech(Protocol):
    """The requests of one lane as `frames.prefixed`, and what its responses mean.

    Attributes:
        method: its full name.
        window: how many timesteps of a stream may be under way; the server says, when it has answered the open.

    """

    method: str
    window: int

    def open(self) -> bytes:
        """The first request."""

    def opened(self, response: bytes) -> Counter[str]:
        """Takes the answer to it; gives the streams that were refused, by reason. Raises WrongAnswer."""

    def message(self, number: int, behind: Mapping[int, int]) -> bytes:
        """The timesteps of that number, the first of this call being 1, each row's less what it is behind."""

    def verdict(self, response: bytes, number: int) -> Verdict | Ended | None:
        """What a response says of the message of that number; None when it answers nothing. Raises WrongAnswer."""

    def close(self, *, forget: bool = True) -> bytes:
        """The last request: the server ends the streams, and forgets them."""


class Single:
    """A stream on a call of its own.

    Args:
        ask: what is opened.
        values: rows as `packed` gives them, sent round and round.
        offset: where among them to begin.

    """

    method = SERVICE + "Predict"

    def __init__(self, ask: pb.Open, values: Sequence[bytes], offset: int = 0) -> None:
        self._ask = ask
        self._values = values
        self._offset = offset
        self._before = 0  # the stream's number before this call
        self.window = 1

    def open(self) -> bytes:
        """Opens the stream."""
        return prefixed(pb.PredictRequest(open=self._ask).SerializeToString())

    def opened(self, response: bytes) -> Counter[str]:
        """It is open: one that is refused ends the call."""
        said = pb.PredictResponse.FromString(response)
        if not said.HasField("opened"):
            raise WrongAnswer(f"got {said.WhichOneof('kind')}, expected opened")
        self.window = max(1, said.opened.answers_remembered)
        self._before = said.opened.next_step - 1
        return Counter()

    def message(self, number: int, behind: Mapping[int, int]) -> bytes:
        """The timestep; a message of one row is refused as a whole, so nothing is ever behind."""
        assert not behind
        values = self._values[(self._offset + number) % len(self._values)]
        step = _step_field(self._before + number)
        return _timestep_head(len(step) + len(values)) + step + values

    def verdict(self, response: bytes, number: int) -> Verdict | Ended | None:
        """Applied or refused; progress in storing and a wish to move answer nothing."""
        said = pb.PredictResponse.FromString(response)
        kind = said.WhichOneof("kind")
        if kind == "prediction":
            prediction = said.prediction
            step = self._before + number
            if prediction.step != step or prediction.duplicate:
                what = "a duplicate" if prediction.duplicate else "an answer"
                raise WrongAnswer(f"got {what} to timestep {prediction.step}, expected one to timestep {step}")
            return APPLIED
        if kind == "error":
            return Verdict(refused=_refusal(said.error))
        return None

    def close(self, *, forget: bool = True) -> bytes:
        """Ends the stream."""
        return prefixed(pb.PredictRequest(close=pb.Close(forget=forget)).SerializeToString())


class Many:
    """A block of streams on one call.

    Args:
        ask: what is opened.
        values: (rows, features), sent round and round.
        offset: where among them the first stream begins.

    """

    method = SERVICE + "PredictBlocks"

    def __init__(self, ask: pb.OpenStreams, values: Floats, offset: int = 0) -> None:
        self._ask = ask
        self._offset = offset
        self._rounds = len(values)
        # Row r of block n is row n + r of the values, round and round: one piece of memory, whatever n.
        self._values = np.resize(values, (len(values) + len(ask.stream_ids), values.shape[1]))
        self._handles = np.zeros(0, "<u4")  # (rows,)
        self._before = np.zeros(0, "<u8")  # (rows,), the streams' numbers before this call
        self._packed_handles = b""
        self.window = 1

    @property
    def rows(self) -> int:
        """Streams that are open."""
        return len(self._handles)

    def open(self) -> bytes:
        """Opens the streams."""
        return prefixed(pb.PredictBlocksRequest(open=self._ask).SerializeToString())

    def opened(self, response: bytes) -> Counter[str]:
        """Keeps the handles of those that are open."""
        said = pb.PredictBlocksResponse.FromString(response)
        if not said.HasField("opened"):
            raise WrongAnswer(f"got {said.WhichOneof('kind')}, expected opened")
        opened = said.opened
        if not len(opened.handles) == len(opened.next_steps) == len(self._ask.stream_ids):
            got = f"{len(opened.handles)} handles and {len(opened.next_steps)} numbers"
            raise WrongAnswer(f"got {got}, expected {len(self._ask.stream_ids)} of each")
        handles = np.array(opened.handles, "<u4")
        self._handles = handles[handles != 0]
        self._before = np.array(opened.next_steps, "<u8")[handles != 0] - np.uint64(1)
        self._packed_handles = self._handles.tobytes()
        self.window = max(1, opened.answers_remembered)
        refused = Counter(reason_name(row.error.reason) for row in opened.errors)
        if refused.total() != len(handles) - self.rows:
            raise WrongAnswer(f"got {refused.total()} errors for {len(handles) - self.rows} streams without a handle")
        return refused

    def message(self, number: int, behind: Mapping[int, int]) -> bytes:
        """The block of that number."""
        first = (self._offset + number) % self._rounds
        block = pb.Block(
            block=number,
            handles=self._packed_handles,
            steps=self._steps(number, behind),
            values=self._values[first : first + self.rows].tobytes(),
        )
        return prefixed(pb.PredictBlocksRequest(block=block).SerializeToString())

    def verdict(self, response: bytes, number: int) -> Verdict | Ended | None:
        """Applied or refused, row by row."""
        said = pb.PredictBlocksResponse.FromString(response)
        kind = said.WhichOneof("kind")
        if kind == "block":
            return self._block(said.block, number)
        if kind == "ended":
            return Ended(reason_name(said.ended.error.reason), len(said.ended.handles))
        return None

    def close(self, *, forget: bool = True) -> bytes:
        """Ends the streams."""
        close = pb.CloseStreams(handles=self._handles.tolist(), forget=forget)
        return prefixed(pb.PredictBlocksRequest(close=close).SerializeToString())

    def _block(self, block: pb.PredictedBlock, number: int) -> Verdict:
        if block.block != number:
            raise WrongAnswer(f"got an answer to block {block.block}, expected one to block {number}")
        if block.HasField("refused"):
            return Verdict(refused=_refusal(block.refused))
        if len(block.steps) != 8 * self.rows:
            raise WrongAnswer(f"got {len(block.steps)} bytes of steps, expected {8 * self.rows}")
        if block.duplicate_rows or block.forgotten_rows:
            raise WrongAnswer(f"got duplicates in block {number}, expected none")
        if not block.errors:
            return APPLIED
        return Verdict(rows={row.row: _refusal(row.error) for row in block.errors})

    def _steps(self, number: int, behind: Mapping[int, int]) -> bytes:
        steps = self._before + np.uint64(number)
        if behind:
            steps[list(behind)] -= np.array(list(behind.values()), "<u8")
        return steps.tobytes()


def packed(values: Floats) -> list[bytes]:
    """Each row of (rows, features) as it stands in a timestep."""
    return [VALUES + _varint(4 * len(row)) + row.astype("<f4").tobytes() for row in values]


@lru_cache(4096)  # streams in a closed loop are about equally far
def _step_field(step: int) -> bytes:
    """The number of a timestep."""
    return STEP + _varint(step)


def _varint(number: int) -> bytes:
    """A whole number of protobuf: seven bits a byte, the last ones first."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


@lru_cache(64)  # sizes differ by the digits of a number
def _timestep_head(size: int) -> bytes:
    """What stands before the fields of a timestep, which are so many bytes, as `frames.prefixed`."""
    length = _varint(size)
    return PREFIX.pack(0, 1 + len(length) + size) + TIMESTEP + length


def _refusal(error: pb.Error) -> Refusal:
    return Refusal(reason_name(error.reason), error.retry_after.ToTimedelta().total_seconds())
