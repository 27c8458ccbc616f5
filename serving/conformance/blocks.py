"""A call of `PredictBlocks` with one stream, as a script plays it: row by row, however the client puts rows together.

A block is answered when each of its rows is; until then nothing of it counts as told. A call that ends before has told none of them.

A stream that was closed, or that the client is to open again, may be opened once more on the same call: that is a `BlockCall` of
its own, with a handle of its own.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.predict import write_to
from serving.conformance.stage import Call, CallOver, Stage
from serving.conformance.toy import end_status, error_of

# What ends one stream and not its call, as `EndedStreams` has it.
STREAM_REASONS = ("TAKEN_OVER", "STREAM_NOT_FOUND", "STREAM_EXPIRED", "STATE_LOST")


class Answered:
    """A block, and its answer as far as it is known."""

    def __init__(self, number: int, steps: list[int]) -> None:
        self.steps = steps
        self.told: list[Callable[[], None]] = []
        self._block = pb.PredictedBlock(block=number)
        self._outputs: list[bytes] = []
        self._durable_steps: list[int] = []

    @property
    def left(self) -> int:
        """How many of its rows are not answered."""
        return len(self.steps) - len(self.told)

    @property
    def next(self) -> int:
        """The number of the next row that is to be answered."""
        return self.steps[len(self.told)]

    def add(self, told: Callable[[], None], prediction: pb.Prediction | None, error: pb.Error | None) -> None:
        """The answer to its next row."""
        row = len(self.told)
        self.told.append(told)
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
        """The answer, once all rows have theirs."""
        self._block.steps = np.array(self.steps, "<u8").tobytes()
        self._block.outputs.append(b"".join(self._outputs))
        self._block.durable_steps = np.array(self._durable_steps, "<u8").tobytes()
        return self._block


class BlockCall(Call):
    """The stream, from one open of it on."""

    in_blocks = True

    def __init__(self, wire: "BlockWire", stage: Stage, ask: pb.Open) -> None:
        super().__init__(stage, ask)
        self.handle = 0  # 0 until the open is answered
        self.lost: tuple[str | int, str] | None = None  # the reason and action of what comes now
        self._moved = False
        self._wire = wire
        self._due: deque[Answered] = deque()  # blocks that are not answered, in order

    # What scripts do --------------------------------------------------------------------------------------------------

    async def refuse(self, step: int, reason: str | int, action: str, retry_s: float = 0.0) -> None:
        """Refuses a timestep, and those behind it in its block."""
        await super().refuse(step, reason, action, retry_s)
        await self._refuse_rest_of_block(*(("STEP_GAP", "REOPEN") if action in ("DROP", "RETRY") else (reason, action)))

    async def lose(self, code: str, reason: str, action: str) -> bool:
        """Ends the stream for good: alone, where the reason is one of a stream; else with the call."""
        if reason not in STREAM_REASONS:
            return await super().lose(code, reason, action)
        if not self.is_open:
            error = error_of(0, reason, action, 0)
            await self._wire.write(opened=_opened(pb.Opened(stream_id=self.ask.stream_id), 0, error))
            return False
        await self._refuse_rest_of_block(reason, action)
        self.lost = reason, action
        await self._wire.write(ended=pb.EndedStreams(handles=[self.handle], error=error_of(0, reason, action, 0)))
        with suppress(CallOver):  # who has read that it is lost may have left
            await self._refuse_all()
        return False

    def finish(self) -> None:
        """Lets the call end, unless the stream was opened on it once more."""
        super().finish()
        self._wire.finish(self)

    # What the wire does -----------------------------------------------------------------------------------------------

    async def write(self, **kind: Any) -> None:
        """Writes a response of `Predict` in columns. Raises CallOver when the client has gone."""
        ((name, message),) = kind.items()
        if name == "opened":
            self.handle = self._wire.give_handle(self)
            kind = {"opened": _opened(message, self.handle)}
        elif name == "durable":
            handles, steps = np.array([self.handle], "<u4"), np.array([message.durable_step], "<u8")
            kind = {"durable": pb.DurableStreams(handles=handles.tobytes(), durable_steps=steps.tobytes())}
        elif name == "move":
            self._moved = True
        elif name == "closed":
            kind = {"closed": pb.ClosedStreams(steps=[message.step], durable_steps=[message.durable_step])}
        await self._wire.write(**kind)

    async def write_bytes(self, message: bytes) -> None:
        """Writes a packed response. Raises CallOver when the client has gone."""
        await self._wire.write_bytes(message)

    async def take_block(self, block: pb.Block, steps: list[int], width: int) -> None:
        """A block came, whose rows are all of this stream and `width` bytes wide."""
        self._due.append(Answered(block.block, steps))
        for row, step in enumerate(steps):
            values = block.values[row * width : (row + 1) * width]
            self.take(pb.PredictRequest(timestep=pb.Timestep(step=step, values=values)))
        if self.lost is not None:
            await self._refuse_all()

    async def supersede(self) -> None:
        """The stream is opened on this call once more: what is in flight is refused, and the script told that this one is over."""
        self.lost = self.lost or ("TAKEN_OVER", "STREAM_LOST")
        self.leave()
        await self._refuse_all()

    async def _tell(self, told: Callable[[], None], **kind: Any) -> None:
        if not self._due:
            return  # it was refused meanwhile, with all of its block
        block = self._due[0]
        block.add(told, kind.get("prediction"), kind.get("error"))
        if not block.left:
            self._due.popleft()
            for each in block.told:
                each()
            await self._wire.write(block=block.message())

    async def _refuse_rest_of_block(self, reason: str | int, action: str) -> None:
        """Refuses what is left of a block of which a part is answered."""
        if not self._due or not self._due[0].told:
            return
        block = self._due[0]
        for _ in range(block.left):
            self._behind.discard(id(self._requests.get_nowait()))
            await self._refuse_behind(block.next, reason, action)

    async def _refuse_all(self) -> None:
        """Refuses all that is in flight, for what the stream was lost by."""
        assert self.lost is not None
        self._waiting()
        self._behind.clear()
        self._requests.put_nowait(None)
        while self._due:
            await self._refuse_behind(self._due[0].next, *self.lost)

    # Judging ----------------------------------------------------------------------------------------------------------

    def judge_open(self) -> None:
        """Another open came on the call."""
        if self._moved:
            self.stage.broke("move", "got an open, expected the end of the requests")

    def judge_handles(self, what: str, handles: Sequence[int]) -> None:
        """A message came that is about handles that were never given."""
        self.stage.broke(
            "open-first", f"{what} has handles {list(handles)}, expected one that an open was answered with"
        )

    def judge_columns(self, block: pb.Block) -> None:
        """A block came whose columns do not fit each other."""
        handles, steps, values = len(block.handles), len(block.steps), len(block.values)
        self.stage.broke(
            "same-values",
            f"block {block.block} has {handles} bytes of handles, {steps} of steps and {values} of values, expected 4, 8 and 4 a row",
        )


class BlockWire:
    """One call of `PredictBlocks`: whose a row is, and what has been opened on it.

    Attributes:
        status: how the call ends; None for OK.
        over: set when it is to end.

    """

    def __init__(self, context: Any, find: Callable[[str], Stage | str]) -> None:
        self.status: Any = None
        self.over = asyncio.Event()
        self._context = context
        self._find = find
        self._calls: list[BlockCall] = []  # by handle, from 1
        self._now: BlockCall | None = None  # the last that was opened

    async def take(self, message: bytes) -> None:
        """The client has sent something."""
        request = pb.PredictBlocksRequest.FromString(message)
        kind = request.WhichOneof("kind")
        if kind == "open":
            await self._open(request.open)
        elif self._now is None:
            self._end("WRONG_ORDER", f"got a {kind}, expected an open")
        elif kind == "block":
            await self._block(request.block)
        elif kind == "close":
            self._close(request.close)

    def leave(self) -> None:
        """The client sends nothing more."""
        if self._now is not None:
            self._now.leave()
        else:
            self.over.set()

    def finish(self, call: BlockCall) -> None:
        """A script has done with a stream: the call ends, if it has no other."""
        if call is self._now and not self.over.is_set():
            self.status = call.status
            self.over.set()

    def give_handle(self, call: BlockCall) -> int:
        """A handle for a stream that is open."""
        self._calls.append(call)
        return len(self._calls)

    async def write(self, **kind: Any) -> None:
        """Writes a response. Raises CallOver when the client has gone."""
        await self.write_bytes(pb.PredictBlocksResponse(**kind).SerializeToString())

    async def write_bytes(self, message: bytes) -> None:
        """Writes a packed response. Raises CallOver when the client has gone."""
        await write_to(self._context, message)

    async def _open(self, ask: pb.OpenStreams) -> None:
        if len(ask.stream_ids) != 1 or len(ask.resume_from) > 1:
            self._end("INVALID_FIELD", f"stream_ids: got {len(ask.stream_ids)}, expected one, the name of a scenario")
            return
        stage, before = self._find(ask.stream_ids[0]), self._now
        if isinstance(stage, str):
            self._end("INVALID_FIELD", stage)
            return
        if before is not None:
            if before.stage is not stage and not before.stage.finished:
                self._end(
                    "INVALID_FIELD", "stream_ids: got another scenario, expected the one that is played on this call"
                )
                return
            before.judge_open()
        one = pb.Open(
            stream_id=ask.stream_ids[0],
            model=ask.model,
            version=ask.version,
            existence=ask.existence,
            durability=ask.durability,
            owner=ask.owner,
            resume_from=ask.resume_from[0] if ask.resume_from else 0,
            kept_max=ask.kept_max,
        )
        stage.check_open(one)
        self._now = BlockCall(self, stage, one)
        if before is not None:
            await before.supersede()
        stage.enter(self._now)

    async def _block(self, block: pb.Block) -> None:
        assert self._now is not None
        rows = len(block.handles) // 4
        if not rows or len(block.handles) % 4 or len(block.steps) not in (0, 8 * rows) or len(block.values) % rows:
            self._now.judge_columns(block)
            await self._refuse(block, "values")
            return
        call = self._of(np.frombuffer(block.handles, "<u4").tolist(), "a block")
        if call is None:
            await self._refuse(block, "handles")
            return
        steps = np.frombuffer(block.steps, "<u8").tolist() or [0] * rows
        await call.take_block(block, steps, len(block.values) // rows)

    def _close(self, close: pb.CloseStreams) -> None:
        call = self._of(list(close.handles), "a close")
        if call is not None:
            call.take(pb.PredictRequest(close=pb.Close(forget=close.forget)))
        else:
            self._end("INVALID_FIELD", f"handles: got {list(close.handles)}, expected one that was given")

    def _of(self, handles: list[int], what: str) -> BlockCall | None:
        """The stream that all handles stand for; None when one was never given, or they are several."""
        assert self._now is not None
        wrong = [handle for handle in handles if not 0 < handle <= len(self._calls)]
        if not wrong and len(set(handles)) == 1:
            return self._calls[handles[0] - 1]
        self._now.judge_handles(what, wrong or handles)
        return None

    async def _refuse(self, block: pb.Block, field: str) -> None:
        error = error_of(0, "INVALID_FIELD", "STREAM_LOST", 0)
        error.field = field
        await self.write(block=pb.PredictedBlock(block=block.block, refused=error))

    def _end(self, reason: str, text: str) -> None:
        status = end_status(grpc.StatusCode.INVALID_ARGUMENT, reason, "STREAM_LOST")
        self.status = status._replace(details=text)
        self.over.set()


def _opened(opened: pb.Opened, handle: int, error: pb.Error | None = None) -> pb.OpenedStreams:
    """How one stream was opened, or why not, in columns."""
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
