"""A call of `PredictBlocks` with one stream, played by a script row by row, whatever blocks the client sends.

A block is answered when all its rows are. Until then none of its rows counts as answered.

A client may open a stream again on the same call after a close, or when the script asks for it. That is a new `BlockCall`
with a new handle.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

from tidegate.conformance.predict import write_to
from tidegate.conformance.scenario_run import Call, CallEnded, ScenarioRun
from tidegate.conformance.toy_model import make_error, make_status
from tidegate.v1 import tidegate_pb2 as pb

# The reasons that end one stream and not its call, by `EndedStreams`.
STREAM_REASONS = ("TAKEN_OVER", "STREAM_NOT_FOUND", "STREAM_EXPIRED", "STATE_LOST")


class PendingBlock:
    """A block, and its answer so far."""

    def __init__(self, number: int, steps: list[int]) -> None:
        self.steps = steps
        self.on_sent: list[Callable[[], None]] = []
        self._block = pb.PredictedBlock(block=number)
        self._outputs: list[bytes] = []
        self._durable_steps: list[int] = []

    @property
    def unanswered(self) -> int:
        """The number of rows without an answer."""
        return len(self.steps) - len(self.on_sent)

    @property
    def next_step(self) -> int:
        """The number of the next row to answer."""
        return self.steps[len(self.on_sent)]

    def add(self, on_sent: Callable[[], None], prediction: pb.Prediction | None, error: pb.Error | None) -> None:
        """Adds the answer to the next row."""
        row = len(self.on_sent)
        self.on_sent.append(on_sent)
        output = b""
        if prediction is not None:
            output = prediction.outputs[0] if prediction.outputs else b""
            if prediction.duplicate or not output:
                rows = self._block.duplicate_rows if output else self._block.forgotten_rows
                rows.append(row)
        if error is not None:
            self._block.errors.append(pb.RowError(row=row, error=error))
        self._outputs.append(output or bytes(4))
        self._durable_steps.append(prediction.durable_step if prediction is not None else 0)

    def message(self) -> pb.PredictedBlock:
        """Returns the answer to the block, when all rows have theirs."""
        self._block.steps = np.array(self.steps, "<u8").tobytes()
        self._block.outputs.append(b"".join(self._outputs))
        self._block.durable_steps = np.array(self._durable_steps, "<u8").tobytes()
        return self._block


class BlockCall(Call):
    """A stream on a call, from one open to the next."""

    def __init__(self, rpc: "PredictBlocksRpc", run: ScenarioRun, open_request: pb.Open) -> None:
        super().__init__(run, open_request)
        self.handle = 0  # 0 until the open is answered
        self.lost: tuple[str | int, str] | None = None  # reason and action for all further timesteps
        self._moved = False
        self._rpc = rpc
        self._pending: deque[PendingBlock] = deque()  # unanswered blocks, in order

    # For scripts ------------------------------------------------------------------------------------------------------

    async def refuse(self, step: int, reason: str | int, action: str, retry_s: float = 0.0) -> None:
        """Refuses a timestep, and the ones behind it in its block."""
        await super().refuse(step, reason, action, retry_s)
        await self._refuse_rest_of_block(*(("STEP_GAP", "REOPEN") if action in ("DROP", "RETRY") else (reason, action)))

    async def end_stream(self, code: str, reason: str, action: str) -> bool:
        """Ends the stream for good: alone, if the reason is one of a stream; else with the call."""
        if reason not in STREAM_REASONS:
            return await super().end_stream(code, reason, action)
        if not self.is_open:
            error = make_error(0, reason, action, 0)
            await self._rpc.write(opened=_opened(pb.Opened(stream_id=self.open_request.stream_id), 0, error))
            return False
        await self._refuse_rest_of_block(reason, action)
        self.lost = reason, action
        await self._rpc.write(ended=pb.EndedStreams(handles=[self.handle], error=make_error(0, reason, action, 0)))
        with suppress(CallEnded):  # the client may have ended the call by now
            await self._refuse_all()
        return False

    def finish(self) -> None:
        """Lets the call end, unless the stream was opened on it again."""
        super().finish()
        self._rpc.finish(self)

    # For the gRPC method ----------------------------------------------------------------------------------------------

    async def write(self, **kind: Any) -> None:
        """Writes a response, given as one of `Predict`, in columns. Raises CallEnded when the client has gone."""
        ((name, message),) = kind.items()
        if name == "opened":
            self.handle = self._rpc.give_handle(self)
            kind = {"opened": _opened(message, self.handle)}
        elif name == "durable":
            handles, steps = np.array([self.handle], "<u4"), np.array([message.durable_step], "<u8")
            kind = {"durable": pb.DurableStreams(handles=handles.tobytes(), durable_steps=steps.tobytes())}
        elif name == "move":
            self._moved = True
        elif name == "closed":
            kind = {"closed": pb.ClosedStreams(steps=[message.step], durable_steps=[message.durable_step])}
        await self._rpc.write(**kind)

    async def write_bytes(self, message: bytes) -> None:
        """Writes a serialized response. Raises CallEnded when the client has gone."""
        await self._rpc.write_bytes(message)

    async def receive_block(self, block: pb.Block, steps: list[int], width: int) -> None:
        """Takes a block whose rows are all of this stream and `width` bytes long."""
        self._pending.append(PendingBlock(block.block, steps))
        for row, step in enumerate(steps):
            values = block.values[row * width : (row + 1) * width]
            self.receive(pb.PredictRequest(timestep=pb.Timestep(step=step, values=values)))
        if self.lost is not None:
            await self._refuse_all()

    async def supersede(self) -> None:
        """The client opens the stream on this call again: refuses what is in flight, and ends this part for the script."""
        self.lost = self.lost or ("TAKEN_OVER", "STREAM_LOST")
        self.client_done()
        await self._refuse_all()

    async def _send_answer(self, on_sent: Callable[[], None], **kind: Any) -> None:
        if not self._pending:
            return  # it was refused in the meantime, with its block
        block = self._pending[0]
        block.add(on_sent, kind.get("prediction"), kind.get("error"))
        if not block.unanswered:
            self._pending.popleft()
            for each in block.on_sent:
                each()
            await self._rpc.write(block=block.message())

    async def _refuse_rest_of_block(self, reason: str | int, action: str) -> None:
        """Refuses the rest of a block that is partly answered."""
        if not self._pending or not self._pending[0].on_sent:
            return
        block = self._pending[0]
        for _ in range(block.unanswered):
            self._behind.discard(id(self._requests.get_nowait()))
            await self._refuse_behind(block.next_step, reason, action)

    async def _refuse_all(self) -> None:
        """Refuses everything in flight, with the reason of the loss."""
        assert self.lost is not None
        self._pop_received()
        self._behind.clear()
        self._requests.put_nowait(None)
        while self._pending:
            await self._refuse_behind(self._pending[0].next_step, *self.lost)

    # Checks -----------------------------------------------------------------------------------------------------------

    def check_second_open(self) -> None:
        """Checks a further open on the call."""
        if self._moved:
            self.run.add_violation("move", "got an open, expected the end of the requests")

    def report_handles(self, what: str, handles: Sequence[int]) -> None:
        """Reports a message with handles that were never assigned."""
        self.run.add_violation(
            "open-first", f"{what} has handles {list(handles)}, expected the handle of an open stream"
        )

    def report_columns(self, block: pb.Block) -> None:
        """Reports a block whose columns have inconsistent lengths."""
        handles, steps, values = len(block.handles), len(block.steps), len(block.values)
        self.run.add_violation(
            "same-values",
            f"block {block.block} has {handles} bytes of handles, {steps} of steps and {values} of values, "
            "expected 4, 8 and 4 per row",
        )


class PredictBlocksRpc:
    """One call of `PredictBlocks`: it knows what was opened on it, and to which stream a row belongs.

    Attributes:
        status: how the call ends; None for OK.
        ended: set when the call must end.
    """

    def __init__(self, context: Any, find: Callable[[str], ScenarioRun | str]) -> None:
        self.status: Any = None
        self.ended = asyncio.Event()
        self._context = context
        self._find = find
        self._calls: list[BlockCall] = []  # by handle, from 1
        self._current: BlockCall | None = None  # the last one that was opened

    async def receive(self, message: bytes) -> None:
        """Takes a request of the client."""
        request = pb.PredictBlocksRequest.FromString(message)
        kind = request.WhichOneof("kind")
        if kind == "open":
            await self._open(request.open)
        elif self._current is None:
            self._end("WRONG_ORDER", f"got a {kind}, expected an open")
        elif kind == "block":
            await self._block(request.block)
        elif kind == "close":
            self._close(request.close)

    def client_done(self) -> None:
        """The client has ended the requests."""
        if self._current is not None:
            self._current.client_done()
        else:
            self.ended.set()

    def finish(self, call: BlockCall) -> None:
        """A script has finished with a stream: ends the call, unless another stream is open."""
        if call is self._current and not self.ended.is_set():
            self.status = call.status
            self.ended.set()

    def give_handle(self, call: BlockCall) -> int:
        """Returns a handle for an open stream."""
        self._calls.append(call)
        return len(self._calls)

    async def write(self, **kind: Any) -> None:
        """Writes a response. Raises CallEnded when the client has gone."""
        await self.write_bytes(pb.PredictBlocksResponse(**kind).SerializeToString())

    async def write_bytes(self, message: bytes) -> None:
        """Writes a serialized response. Raises CallEnded when the client has gone."""
        await write_to(self._context, message)

    async def _open(self, open_request: pb.OpenStreams) -> None:
        if len(open_request.stream_ids) != 1 or len(open_request.resume_from) > 1:
            self._end(
                "INVALID_FIELD", f"stream_ids: got {len(open_request.stream_ids)}, expected one, the name of a scenario"
            )
            return
        run, before = self._find(open_request.stream_ids[0]), self._current
        if isinstance(run, str):
            self._end("INVALID_FIELD", run)
            return
        if before is not None:
            if before.run is not run and not before.run.finished:
                self._end(
                    "INVALID_FIELD", "stream_ids: got another scenario, expected the one that is played on this call"
                )
                return
            before.check_second_open()
        predict_open = pb.Open(
            stream_id=open_request.stream_ids[0],
            model=open_request.model,
            version=open_request.version,
            existence=open_request.existence,
            durability=open_request.durability,
            owner=open_request.owner,
            resume_from=open_request.resume_from[0] if open_request.resume_from else 0,
            kept_max=open_request.kept_max,
        )
        run.check_open(predict_open)
        self._current = BlockCall(self, run, predict_open)
        if before is not None:
            await before.supersede()
        run.add_call(self._current)

    async def _block(self, block: pb.Block) -> None:
        assert self._current is not None
        rows = len(block.handles) // 4
        if not rows or len(block.handles) % 4 or len(block.steps) not in (0, 8 * rows) or len(block.values) % rows:
            self._current.report_columns(block)
            await self._refuse(block, "values")
            return
        call = self._of(np.frombuffer(block.handles, "<u4").tolist(), "a block")
        if call is None:
            await self._refuse(block, "handles")
            return
        steps = np.frombuffer(block.steps, "<u8").tolist() or [0] * rows
        await call.receive_block(block, steps, len(block.values) // rows)

    def _close(self, close: pb.CloseStreams) -> None:
        call = self._of(list(close.handles), "a close")
        if call is not None:
            call.receive(pb.PredictRequest(close=pb.Close(forget=close.forget)))
        else:
            self._end("INVALID_FIELD", f"handles: got {list(close.handles)}, expected the handle of an open stream")

    def _of(self, handles: list[int], what: str) -> BlockCall | None:
        """Returns the stream of the handles; None when there are several streams, or a handle was never assigned."""
        assert self._current is not None
        wrong = [handle for handle in handles if not 0 < handle <= len(self._calls)]
        if not wrong and len(set(handles)) == 1:
            return self._calls[handles[0] - 1]
        self._current.report_handles(what, wrong or handles)
        return None

    async def _refuse(self, block: pb.Block, field: str) -> None:
        error = make_error(0, "INVALID_FIELD", "STREAM_LOST", 0)
        error.field = field
        await self.write(block=pb.PredictedBlock(block=block.block, refused=error))

    def _end(self, reason: str, text: str) -> None:
        status = make_status(grpc.StatusCode.INVALID_ARGUMENT, reason, "STREAM_LOST")
        self.status = status._replace(details=text)
        self.ended.set()


def _opened(opened: pb.Opened, handle: int, error: pb.Error | None = None) -> pb.OpenedStreams:
    """Returns the answer to the open of one stream in columns: opened, or refused with an error."""
    return pb.OpenedStreams(
        stream_ids=[opened.stream_id],
        handles=[handle],
        kinds=[opened.kind],
        next_steps=[opened.next_step],
        epochs=[opened.epoch],
        durable_steps=[opened.durable_step],
        answers_remembered=opened.answers_remembered,
        model=opened.model if handle else None,
        errors=[] if error is None else [pb.RowError(row=0, error=error)],
        message_bytes_max=opened.message_bytes_max,
    )
