"""How a lane speaks: one stream on a call of `Predict`, or a block of them on one of `PredictBlocks`.

The measuring side must be cheap: outputs are not unpacked. But whose an answer is gets checked, for a quick answer to
something else is none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.bench.lane import Refusal, Verdict
from serving.core.spec import Floats
from serving.rpc.names import reason_name

APPLIED = Verdict()


class WrongAnswer(Exception):
    """What came answers nothing that was sent; the message says what was got and what was expected."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The server has ended so many streams of a lane; their rows will be refused."""

    reason: str
    streams: int


class Speech(Protocol):
    """The requests of one lane, and what its responses mean.

    Attributes:
        method: of the service.
        window: how many timesteps of a stream may be under way; the server says, when it has answered the open.

    """

    method: str
    window: int

    def open(self) -> Any:
        """The first request."""

    def opened(self, response: Any) -> Counter[str]:
        """Takes the answer to it; gives the streams that were refused, by reason. Raises WrongAnswer."""

    def message(self, number: int, behind: Mapping[int, int]) -> Any:
        """The timesteps of that number, each row's less what it is behind."""

    def verdict(self, response: Any, number: int) -> Verdict | Ended | None:
        """What a response says of the message of that number; None when it answers nothing. Raises WrongAnswer."""

    def close(self) -> Any:
        """The last request: the server forgets the streams."""


class Single:
    """A stream on a call of its own."""

    method = "Predict"

    def __init__(self, stream_id: str, model: str, version: str, values: Sequence[bytes], offset: int) -> None:
        self._open = pb.Open(stream_id=stream_id, model=model, version=version, existence=pb.EXISTENCE_MUST_BE_NEW)
        self._values = values
        self._offset = offset
        self.window = 1

    def open(self) -> pb.PredictRequest:
        """Opens the stream, which must be new."""
        return pb.PredictRequest(open=self._open)

    def opened(self, response: pb.PredictResponse) -> Counter[str]:
        """It is open: one that is refused ends the call."""
        if not response.HasField("opened"):
            raise WrongAnswer(f"got {response.WhichOneof('kind')}, expected opened")
        self.window = max(1, response.opened.answers_remembered)
        return Counter()

    def message(self, number: int, behind: Mapping[int, int]) -> pb.PredictRequest:
        """The timestep; a message of one row is refused as a whole, so nothing is ever behind."""
        assert not behind
        values = self._values[(self._offset + number) % len(self._values)]
        return pb.PredictRequest(timestep=pb.Timestep(step=number, values=values))

    def verdict(self, response: pb.PredictResponse, number: int) -> Verdict | Ended | None:
        """Applied or refused; progress in storing and a wish to move answer nothing."""
        kind = response.WhichOneof("kind")
        if kind == "prediction":
            prediction = response.prediction
            if prediction.step != number or prediction.duplicate:
                said = "a duplicate" if prediction.duplicate else "an answer"
                raise WrongAnswer(f"got {said} to timestep {prediction.step}, expected one to timestep {number}")
            return APPLIED
        if kind == "error":
            return Verdict(refused=_refusal(response.error))
        return None

    def close(self) -> pb.PredictRequest:
        """Has the stream forgotten."""
        return pb.PredictRequest(close=pb.Close(forget=True))


class Many:
    """A block of streams on one call."""

    method = "PredictBlocks"

    def __init__(self, stream_ids: Sequence[str], model: str, version: str, values: Floats, offset: int) -> None:
        self._open = pb.OpenStreams(
            stream_ids=stream_ids, model=model, version=version, existence=pb.EXISTENCE_MUST_BE_NEW
        )
        self.window = 1
        self._offset = offset
        self._rounds = len(values)
        # Row r of block n is row n + r of the values, round and round: one piece of memory, whatever n.
        self._values = np.resize(values, (len(values) + len(stream_ids), values.shape[1]))
        self._handles = np.zeros(0, "<u4")  # (rows,)
        self._packed_handles = b""

    @property
    def rows(self) -> int:
        """Streams that are open."""
        return len(self._handles)

    def open(self) -> pb.PredictBlocksRequest:
        """Opens the streams, which must be new."""
        return pb.PredictBlocksRequest(open=self._open)

    def opened(self, response: pb.PredictBlocksResponse) -> Counter[str]:
        """Keeps the handles of those that are open."""
        if not response.HasField("opened"):
            raise WrongAnswer(f"got {response.WhichOneof('kind')}, expected opened")
        opened = response.opened
        if len(opened.handles) != len(self._open.stream_ids):
            raise WrongAnswer(f"got {len(opened.handles)} handles, expected {len(self._open.stream_ids)}")
        handles = np.array(opened.handles, "<u4")
        self._handles = handles[handles != 0]
        self._packed_handles = self._handles.tobytes()
        self.window = max(1, opened.answers_remembered)
        refused = Counter(reason_name(row.error.reason) for row in opened.errors)
        if refused.total() != len(handles) - self.rows:
            raise WrongAnswer(f"got {refused.total()} errors for {len(handles) - self.rows} streams without a handle")
        return refused

    def message(self, number: int, behind: Mapping[int, int]) -> pb.PredictBlocksRequest:
        """The block of that number."""
        first = (self._offset + number) % self._rounds
        return pb.PredictBlocksRequest(
            block=pb.Block(
                block=number,
                handles=self._packed_handles,
                steps=self._steps(number, behind),
                values=self._values[first : first + self.rows].tobytes(),
            )
        )

    def verdict(self, response: pb.PredictBlocksResponse, number: int) -> Verdict | Ended | None:
        """Applied or refused, row by row."""
        kind = response.WhichOneof("kind")
        if kind == "block":
            return self._block(response.block, number)
        if kind == "ended":
            return Ended(reason_name(response.ended.error.reason), len(response.ended.handles))
        return None

    def close(self) -> pb.PredictBlocksRequest:
        """Has the streams forgotten."""
        return pb.PredictBlocksRequest(close=pb.CloseStreams(handles=self._handles.tolist(), forget=True))

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
        steps = np.full(self.rows, number, "<u8")
        if behind:
            steps[list(behind)] -= np.array(list(behind.values()), "<u8")
        return steps.tobytes()


def _refusal(error: pb.Error) -> Refusal:
    return Refusal(reason_name(error.reason), error.retry_after.ToTimedelta().total_seconds())
