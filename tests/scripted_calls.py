"""Calls as a script plays them, of `Predict` and of `PredictBlocks`, with one stream; see `tests.scripted`."""

import asyncio
from collections import deque
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.calls import pack
from tests.client.reasons import action_of, error_of
from tidegate.v1 import tidegate_pb2 as pb

CODES = {"STOPPING": "UNAVAILABLE", "TAKEN_OVER": "ABORTED", "STATE_LOST": "DATA_LOSS", "STREAM_NOT_FOUND": "NOT_FOUND"}

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="f" * 64,
    features=[pb.Feature(name="x")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
    batch_invariant=True,
)


# Where each field of an `Opened` stands in an `OpenedStreams`.
COLUMNS = {
    "stream_id": "stream_ids",
    "kind": "kinds",
    "next_step": "next_steps",
    "epoch": "epochs",
    "durable_step": "durable_steps",
}


class Call:
    """One call, as a script plays it."""

    def __init__(self, server: Any, context: Any) -> None:
        self.server = server
        self.context = context
        self.ask = pb.Open()

    async def read(self) -> Any:
        """The next request, None after the last."""
        request = await self.context.read()
        return None if request is grpc.aio.EOF else request

    async def open(self, next_step: int | None = None, **more: Any) -> None:
        """Reads the open and answers it; goes on after what was applied unless told otherwise.

        Refuses it as the protocol says when it is not the first of its client, and that cannot go on.
        """
        await self.read_open()
        if self.ask.resume_from and self.server.owner != self.ask.owner:
            await self.refuse_open("TAKEN_OVER")
            return
        if self.ask.resume_from > len(self.server.history) + 1:
            await self.refuse_open("STATE_LOST")
            return
        self.server.epoch += 1
        self.server.owner = self.ask.owner
        opened = {
            "stream_id": self.ask.stream_id or "made-up",
            "kind": pb.Opened.KIND_RESUMED,
            "next_step": next_step or len(self.server.history) + 1,
            "epoch": self.server.epoch,
            "answers_remembered": 32,
            "durable_step": 0,
            "model": MODEL,
        }
        await self.tell_opened(**{**opened, **more})

    async def tell_opened(self, **opened: Any) -> None:
        """Tells how the stream was opened."""
        raise NotImplementedError

    async def refuse_open(self, reason: str | pb.Error, **more: Any) -> None:
        """Refuses the open that was read."""
        raise NotImplementedError

    async def read_open(self) -> None:
        """Reads the open and does not answer."""
        request = await self.read()
        assert request is not None, "the call ended, expected an open"
        assert request.HasField("open"), request
        self.take_open(request.open)

    def take_open(self, ask: Any) -> None:
        """Notes what is asked for."""
        self.ask = ask

    async def write(self, **kind: Any) -> None:
        """Writes a response."""
        raise NotImplementedError

    async def row(self) -> tuple[int, bytes] | None:
        """The next timestep, number and packed values; None when what comes is none."""
        raise NotImplementedError

    async def expect(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies those that are next."""
        for step in steps:
            row = await self.row()
            assert row is not None, f"expected timestep {step}"
            assert row[0] == step, f"{row}, expected timestep {step}"
            if step == len(self.server.history) + 1:
                self.server.history.append(np.frombuffer(row[1], "<f4").item())

    async def expect_unapplied(self, *steps: int) -> None:
        """Reads timesteps, which must be these, and applies none."""
        history = list(self.server.history)
        await self.expect(*steps)
        self.server.history[:] = history

    async def answer(self, *steps: int, durable: int = 0, outputs: list[bytes] | None = None) -> None:
        """Answers timesteps that were applied; with an empty list of outputs the server no longer remembers."""
        raise NotImplementedError

    async def serve(self, *steps: int, durable: int = 0) -> None:
        """Reads, applies and answers timesteps, one after the other."""
        for step in steps:
            await self.expect(step)
            await self.answer(step, durable=durable)

    async def refuse(self, *steps: int, reason: str | pb.Error, next_step: int = 0, retry_after_ms: int = 0) -> None:
        """Refuses timesteps."""
        for step in steps:
            if isinstance(reason, pb.Error):
                error = pb.Error(step=step, next_step=next_step or len(self.server.history) + 1)
                error.MergeFrom(reason)
            else:
                error = error_of(
                    reason,
                    step=step,
                    message=f"{step} is refused",
                    next_step=next_step or len(self.server.history) + 1,
                    retry_after_ms=retry_after_ms,
                )
            await self.refuse_row(error)

    async def refuse_row(self, error: pb.Error) -> None:
        """Refuses the next timestep that is not answered."""
        raise NotImplementedError

    async def durable(self, step: int) -> None:
        """Tells what is stored."""
        raise NotImplementedError

    async def move(self) -> None:
        """Asks the client to move."""
        await self.write(move=pb.Move(message="going"))

    async def close(self, durable: int | None = None, *, forget: bool = False) -> None:
        """Reads the close and answers it."""
        request = await self.read()
        assert request is not None, "the call ended, expected a close"
        assert request.HasField("close"), request
        assert request.close.forget is forget
        step = len(self.server.history)
        await self.tell_closed(step, step if durable is None else durable)

    async def tell_closed(self, step: int, durable: int) -> None:
        """Answers a close."""
        raise NotImplementedError

    async def end(
        self, reason: str = "", code: str = "", *, message: str = "", domain: str = "tidegate.v1", **metadata: str
    ) -> None:
        """Ends the call with a reason of the protocol and the action that belongs to it, or with a bare code: a break."""
        code = code or CODES.get(reason, "UNAVAILABLE")
        message = message or f"{reason or code} it is"
        details = []
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain=domain)
            info.metadata.update({"action": action_of(reason), **metadata})
            packed = any_pb2.Any()
            packed.Pack(info)
            details.append(packed)
            final = info.metadata["action"] not in ("RETRY", "REOPEN")
        else:
            final = code == "ABORTED" or "larger than max" in message
        status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=details)
        if final:
            self.server.final = rpc_status.to_status(status)
        await self.context.abort_with_status(rpc_status.to_status(status))

    async def gone(self) -> None:
        """Waits until the client has left the call."""
        while await self.read() is not None:
            pass
        await asyncio.Event().wait()


class PredictCall(Call):
    """A call of `Predict`."""

    async def write(self, **kind: Any) -> None:
        """Writes a response."""
        await self.context.write(pb.PredictResponse(**kind))

    async def tell_opened(self, **opened: Any) -> None:
        """Tells how the stream was opened."""
        await self.write(opened=pb.Opened(**opened))

    async def refuse_open(self, reason: str | pb.Error, **_: Any) -> None:
        """Refuses the open that was read, with the end of the call."""
        assert isinstance(reason, str)
        await self.end(reason)

    async def row(self) -> tuple[int, bytes] | None:
        """The next timestep."""
        request = await self.read()
        if request is None or not request.HasField("timestep"):
            return None
        return request.timestep.step, request.timestep.values

    async def answer(self, *steps: int, durable: int = 0, outputs: list[bytes] | None = None) -> None:
        """Answers timesteps that were applied."""
        for step in steps:
            packed = [pack(sum(self.server.history[:step]))] if outputs is None else outputs
            await self.write(prediction=pb.Prediction(step=step, outputs=packed, durable_step=durable))

    async def refuse_row(self, error: pb.Error) -> None:
        """Refuses a timestep."""
        await self.write(error=error)

    async def durable(self, step: int) -> None:
        """Tells what is stored."""
        await self.write(durable=pb.Durable(durable_step=step))

    async def tell_closed(self, step: int, durable: int) -> None:
        """Answers a close."""
        await self.write(closed=pb.Closed(step=step, durable_step=durable))


class BlocksCall(Call):
    """A call of `PredictBlocks` with one stream, row by row, however the client puts rows together.

    A block is answered when each of its rows is.
    """

    def __init__(self, server: Any, context: Any) -> None:
        super().__init__(server, context)
        self.rows: deque[Any] = deque()  # read and not looked at
        self.due: deque[pb.PredictedBlock] = deque()  # blocks that are not answered
        self.sizes: deque[int] = deque()  # how many rows each of these has

    async def write(self, **kind: Any) -> None:
        """Writes a response."""
        await self.context.write(pb.PredictBlocksResponse(**kind))

    async def tell_opened(self, **opened: Any) -> None:
        """Tells how the stream was opened."""
        for_all = {name: opened.pop(name) for name in ("answers_remembered", "model") if name in opened}
        columns = {COLUMNS[name]: [value] for name, value in opened.items()}
        await self.write(opened=pb.OpenedStreams(handles=[1], **columns, **for_all))

    async def refuse_open(self, reason: str | pb.Error, **more: Any) -> None:
        """Refuses the open that was read."""
        opened = pb.OpenedStreams(
            stream_ids=[self.ask.stream_id],
            handles=[0],
            kinds=[pb.Opened.KIND_UNSPECIFIED],
            next_steps=[0],
            epochs=[0],
            durable_steps=[0],
            errors=[pb.RowError(row=0, error=error_of(reason, **more))],
        )
        await self.write(opened=opened)

    def take_open(self, ask: pb.OpenStreams) -> None:
        """Notes what is asked for, as if it were an open of `Predict`."""
        assert len(ask.stream_ids) == 1, ask
        self.ask = pb.Open(
            stream_id=ask.stream_ids[0],
            model=ask.model,
            version=ask.version,
            existence=ask.existence,
            durability=ask.durability,
            owner=ask.owner,
            resume_from=ask.resume_from[0] if ask.resume_from else 0,
            kept_max=ask.kept_max,
        )

    async def row(self) -> tuple[int, bytes] | None:
        """The next timestep, number and packed values; None when what comes is none."""
        if not self.rows:
            request = await self.read()
            if request is None or not request.HasField("block"):
                return None
            steps = np.frombuffer(request.block.steps, "<u8").tolist()
            width = len(request.block.values) // len(steps)
            for place, step in enumerate(steps):
                self.rows.append((step, request.block.values[place * width : (place + 1) * width]))
            self.due.append(pb.PredictedBlock(block=request.block.block))
            self.sizes.append(len(steps))
        return self.rows.popleft()

    async def answer(self, *steps: int, durable: int = 0, outputs: list[bytes] | None = None) -> None:
        """Answers timesteps that were applied; without `outputs` the server no longer remembers."""
        for step in steps:
            block = self.due[0]
            packed = pack(sum(self.server.history[:step])) if outputs is None else b"".join(outputs)
            if not packed:
                block.forgotten_rows.append(len(block.steps) // 8)
                packed = pack(0.0)
            await self._answered(step, packed, durable)

    async def _answered(self, step: int, packed: bytes, durable: int) -> None:
        """A row of the first block is answered; so is the block when that was its last."""
        block = self.due[0]
        if not block.outputs:
            block.outputs.append(b"")
        block.outputs[0] += packed
        block.steps += np.array([step], "<u8").tobytes()
        block.durable_steps += np.array([durable], "<u8").tobytes()
        if len(block.steps) // 8 == self.sizes[0]:
            self.sizes.popleft()
            await self.write(block=self.due.popleft())

    async def refuse_row(self, error: pb.Error) -> None:
        """Refuses the next row of the first block."""
        self.due[0].errors.add(row=len(self.due[0].steps) // 8, error=error)
        await self._answered(error.step, pack(0.0), 0)

    async def durable(self, step: int) -> None:
        """Tells what is stored."""
        handles, steps = np.array([1], "<u4").tobytes(), np.array([step], "<u8").tobytes()
        await self.write(durable=pb.DurableStreams(handles=handles, durable_steps=steps))

    async def end_stream(self, reason: str | pb.Error, **more: Any) -> None:
        """Tells that the stream no longer belongs to the call."""
        await self.write(ended=pb.EndedStreams(handles=[1], error=error_of(reason, **more)))

    async def tell_closed(self, step: int, durable: int) -> None:
        """Answers a close."""
        await self.write(closed=pb.ClosedStreams(steps=[step], durable_steps=[durable]))
