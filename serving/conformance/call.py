"""One stream on one call of a client, as a script plays it: what it sends is judged as it comes, and answered as the script says.

`Call` knows no wire. `PredictCall` here speaks `Predict`, and `serving.conformance.blocks` speaks `PredictBlocks`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.stage import MODEL, WINDOW, CallOver, Stage, end_status, error_of

# For a client to leave once its stream is closed.
LEAVE_SECONDS = 2.0


class Call(ABC):
    """One stream on one call.

    Attributes:
        ask: its open.
        status: how the call ends; None for OK.
        over: set when the script has done with it.
        stage: the scenario that it belongs to.

    """

    # Whether timesteps are told one by one, or with the others of their block.
    in_blocks = False

    def __init__(self, stage: Stage, ask: pb.Open) -> None:
        self.ask = ask
        self.over = asyncio.Event()
        self.status: Any = None
        self.stage = stage
        self._left = asyncio.Event()  # the client sends nothing more
        self._requests: asyncio.Queue[pb.PredictRequest | None] = asyncio.Queue()
        self._next: int | None = None  # the number that is due; None before it is open
        # The number that was refused and is to come again; what comes before it is behind it.
        self._again: int | None = None
        self._behind: set[int] = set()  # the requests that were sent behind a refused timestep, by identity
        self._in_flight = 0
        self._window = WINDOW
        self._silent = False  # nothing more may come but the end

    # What scripts do --------------------------------------------------------------------------------------------------

    async def opened(self, next_step: int, *, window: int = WINDOW) -> None:
        """Answers the open."""
        await asyncio.sleep(0.02)  # who does not wait for the answer is seen
        stage = self.stage
        self._next = min(next_step, stage.answered + 1)
        self._window = 1 if stage.level == "simple" else window
        stage.was_open, stage.closing = True, False
        opened = pb.Opened(
            stream_id=self.ask.stream_id,
            kind=pb.Opened.KIND_NEW if next_step == 1 else pb.Opened.KIND_RESUMED,
            next_step=next_step,
            epoch=stage.opens,
            durable_step=min(stage.durable, next_step - 1),
            answers_remembered=window,
            model=MODEL,
            message_bytes_max=1 << 22,
        )
        await self.write(opened=opened)

    async def next(self) -> int | None:
        """The number of the next timestep that the client has sent; None when it has sent its close."""
        while True:
            seconds = self.stage.next_seconds
            try:
                async with asyncio.timeout(seconds):
                    request = await self._requests.get()
            except TimeoutError:
                self.stage.broke("finish", f"nothing came for {seconds:g} s")
                raise CallOver from None
            if request is None:
                raise CallOver
            if id(request) not in self._behind:
                return request.timestep.step if request.HasField("timestep") else None
            self._behind.discard(id(request))
            await self._refuse_behind(request.timestep.step, "STEP_GAP", "REOPEN")

    async def expect(self, step: int) -> int:
        """Reads the next timestep, which is that one.

        One that was applied, and whose answer the client has not had, may be asked for again before it.
        """
        got = await self.next()
        while got is not None and got < step and got <= len(self.stage.history):
            await self.answer(got)
            got = await self.next()
        if got != step:
            self.stage.broke("numbers-in-order", f"got {'a close' if got is None else got}, expected timestep {step}")
            raise CallOver
        return step

    async def answer(self, step: int, *, output: bytes | None = None, store: bool = True, send: bool = True) -> None:
        """Applies a timestep, if it was not, and answers it; `store` says that it is stored."""
        stage = self.stage
        duplicate = step <= len(stage.history)
        if not duplicate:
            stage.history.append(stage.given[step - 1])
        if not send:
            return
        true = stage.output(step)
        stored = store or self.ask.durability == pb.DURABILITY_SYNC
        durable = max(stage.durable, step if stored else 0)

        def told() -> None:
            if step > stage.answered:
                stage.answered = step
                stage.delivered.append(None if output == b"" else (step, true))
            stage.durable = max(stage.durable, durable)
            self._in_flight -= 1

        outputs = [true if output is None else output] if output != b"" else []
        prediction = pb.Prediction(step=step, outputs=outputs, durable_step=durable, duplicate=duplicate)
        await self._tell(told, prediction=prediction)

    async def serve(self, *steps: int, store: bool = True) -> None:
        """Reads and answers timesteps."""
        for step in steps:
            await self.answer(await self.expect(step), store=store)

    async def serve_sent(self) -> None:
        """Answers what has come so far."""
        for request in self._waiting():
            if request is not None and request.HasField("timestep"):
                await self.answer(request.timestep.step)
            else:
                self._requests.put_nowait(request)

    async def refuse(self, step: int, reason: str | int, action: str, retry_s: float = 0.0) -> None:
        """Refuses a timestep; one that is dropped makes room for those behind it."""
        stage = self.stage

        def told() -> None:
            self._in_flight -= 1
            if action == "DROP":
                del stage.given[step - 1]
                stage.delivered.append(None)
            if action in ("DROP", "RETRY"):
                self._again = step
                waiting = self._waiting()
                for request in waiting:
                    self._requests.put_nowait(request)
                self._behind |= {id(request) for request in waiting if request is not None}

        await self._tell(told, error=error_of(step, reason, action, len(stage.history) + 1, retry_s))

    async def tell_durable(self, step: int) -> None:
        """Tells what is stored, when no prediction is due."""
        self.stage.durable = max(self.stage.durable, step)
        await self.write(durable=pb.Durable(durable_step=step))

    async def closed(self, durable: int | None = None) -> None:
        """Answers a close, and waits until the client has left."""
        stage = self.stage
        durable = len(stage.history) if durable is None else durable
        stage.durable = max(stage.durable, durable)
        await self.write(closed=pb.Closed(step=len(stage.history), durable_step=durable))
        self._silent = True
        await self.gone(LEAVE_SECONDS)
        self.finish()

    async def end(self, code: str, reason: str = "", action: str = "", retry_s: float = 0.0) -> None:
        """Ends the call with a status."""
        self.status = end_status(grpc.StatusCode[code], reason, action, retry_s)
        self.finish()

    async def lose(self, code: str, reason: str, action: str) -> bool:
        """Ends the stream for good; gives whether it was told by the end of the call."""
        await self.end(code, reason, action)
        return True

    def finish(self) -> None:
        """Lets the call end."""
        self.over.set()

    async def gone(self, seconds: float) -> bool:
        """Whether the client ends the call within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._left.wait()
        except TimeoutError:
            return False
        return True

    def be_silent(self) -> None:
        """From now on the client may send nothing."""
        self._silent = True

    @property
    def is_open(self) -> bool:
        """Whether its open was answered."""
        return self._next is not None

    # What the wire does -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def write(self, **kind: Any) -> None:
        """Writes a response of `Predict`, as this wire says it, that is no answer to a timestep. Raises CallOver."""

    @abstractmethod
    async def write_bytes(self, message: bytes) -> None:
        """Writes a response of a kind that nobody knows. Raises CallOver."""

    @abstractmethod
    async def _tell(self, told: Callable[[], None], **kind: Any) -> None:
        """Answers the timestep read first of those that are not answered; calls `told` when its answer is written."""

    def leave(self) -> None:
        """The client sends nothing more."""
        self._left.set()
        self._requests.put_nowait(None)

    def take(self, request: pb.PredictRequest) -> None:
        """Judges what the client has sent, as soon as it comes, and keeps it for the script."""
        self._judge(request)
        self._requests.put_nowait(request)  # kept by the queue, so its identity is its own

    def _waiting(self) -> list[pb.PredictRequest | None]:
        """Takes what has come and was not looked at."""
        return [self._requests.get_nowait() for _ in range(self._requests.qsize())]

    async def _refuse_behind(self, step: int, reason: str | int, action: str) -> None:
        """Refuses a timestep that was sent behind a refused one."""

        def told() -> None:
            self._in_flight -= 1

        await self._tell(told, error=error_of(step, reason, action, len(self.stage.history) + 1))

    # Judging ----------------------------------------------------------------------------------------------------------

    def _judge(self, request: pb.PredictRequest) -> None:
        stage, kind = self.stage, request.WhichOneof("kind")
        if self._silent:
            stage.broke("half-close" if stage.closing else "move", f"got a {kind}, expected the end of the requests")
        elif self._next is None:
            stage.broke("open-first", f"got a {kind} before the open was answered")
        elif kind == "close":
            stage.closing = True
            if self._in_flight or len(stage.history) < len(stage.given):
                stage.broke("close-when-answered", f"a close came with {self._in_flight} timesteps in flight")
            self._silent = True
        elif kind == "timestep":
            self._judge_timestep(request)
        else:
            stage.broke("open-first", f"got a {kind} on an open call")

    def _judge_timestep(self, request: pb.PredictRequest) -> None:
        stage, step = self.stage, request.timestep.step
        assert self._next is not None
        self._in_flight += 1
        if self._in_flight > self._window:
            stage.broke("window", f"{self._in_flight} timesteps are in flight, expected at most {self._window}")
        if step == self._again:
            self._next, self._again = step, None
        elif self._again is not None:
            self._behind.add(id(request))
        if step != self._next:
            stage.broke("numbers-in-order", f"got timestep {step}, expected {self._next}")
        self._next = step + 1
        if self._again is None:
            self._judge_values(step, request.timestep.values)

    def _judge_values(self, step: int, values: bytes) -> None:
        stage, kept_max = self.stage, self.ask.kept_max
        if kept_max and step - stage.durable > kept_max:
            stage.broke("kept-bounded", f"timestep {step} came, with {stage.durable} stored and kept_max {kept_max}")
        if 0 < step <= len(stage.given) and values != stage.given[step - 1]:
            got, expected = (np.frombuffer(part, "<f4").tolist() for part in (values, stage.given[step - 1]))
            stage.broke("same-values", f"timestep {step} has {got}, expected {expected}")


class PredictCall(Call):
    """A call of `Predict`, which has one stream."""

    def __init__(self, context: Any, stage: Stage, ask: pb.Open) -> None:
        super().__init__(stage, ask)
        self._context = context

    async def write(self, **kind: Any) -> None:
        """Writes a response. Raises CallOver when the client has gone."""
        await self.write_bytes(pb.PredictResponse(**kind).SerializeToString())

    async def write_bytes(self, message: bytes) -> None:
        """Writes a packed response. Raises CallOver when the client has gone."""
        await write_to(self._context, message)

    async def _tell(self, told: Callable[[], None], **kind: Any) -> None:
        told()
        await self.write(**kind)


async def write_to(context: Any, message: bytes) -> None:
    """Writes a packed response. Raises CallOver when the client has gone."""
    try:
        await context.write(message)
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        raise CallOver from None
