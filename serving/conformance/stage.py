"""What a script acts through: it follows the calls of one client, answers them as it is told, and notes each rule that is broken.

The model that it plays has one feature and one output, the sum of all values so far, so every answer is known. A client sends the
values 1, 2, 3, ... .
"""

import asyncio
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.rules import RULES

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="0" * 64,
    features=[pb.Feature(name="x")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
    batch_invariant=True,
)
WINDOW = 8
# How long a client may take to do what it is to do next: longer than the longest wait that the protocol knows, 10 s and 5 s.
NEXT_SECONDS = 30.0
# How long nobody may do what is forbidden, before it is taken for granted that nobody will.
QUIET_SECONDS = 0.3


class Broken(NamedTuple):
    """A rule that was broken, and what was seen."""

    rule: str
    seen: str


class CallOver(Exception):
    """The client has ended its call, or the script has."""


def pack(*values: float) -> bytes:
    """Values as they travel."""
    return np.array(values, "<f4").tobytes()


def end_status(code: grpc.StatusCode, reason: str, action: str, retry_s: float = 0.0) -> Any:
    """A status of the service; without a reason, one of the network."""
    status = status_pb2.Status(code=code.value[0], message=f"{reason or code.name} by the script")
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="tidegate.v1", metadata={"action": action})
        retry = error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=retry_s))
        for detail in (info, retry) if retry_s else (info,):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
    return rpc_status.to_status(status)


class Stage:
    """One scenario, as one client goes through it.

    Attributes:
        history: the values that the server has applied, in order.
        given: the values that the client shall give to numbers 1, 2, 3, ...; a timestep that is dropped is taken out.
        durable: the last timestep that the client was told to be stored.
        delivered: what its user is to see: number and packed output, or None for a timestep that was dropped or lost.
        lost: the reason by which the stream ends, empty when it ends well.
        broken: the rules that were broken.

    """

    def __init__(self, level: str, rows: int) -> None:
        self.level = level
        self.rows = rows
        self.history: list[bytes] = []
        self.given = [pack(value) for value in range(1, rows + 1)]
        self.durable = 0
        self.delivered: list[tuple[int, bytes] | None] = []
        self.lost = ""
        self.broken: list[Broken] = []
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.singles: asyncio.Queue[Any] = asyncio.Queue()  # of `Single`, of the other level
        self.begun = asyncio.Event()  # a client has called
        self.finished = False
        self.opens = 0
        self.answered = 0  # the last timestep of which the user was told
        self.was_open = False
        self.closing = False
        self._first: pb.Open | None = None

    def broke(self, rule: str, seen: str) -> None:
        """Notes that a rule was broken; of each the first time counts."""
        assert rule in RULES
        if all(broken.rule != rule for broken in self.broken):
            self.broken.append(Broken(rule, seen))

    def output(self, step: int) -> bytes:
        """The true answer to a timestep that was applied."""
        return pack(sum(float(np.frombuffer(values, "<f4")[0]) for values in self.history[:step]))

    async def call(self) -> "Call":
        """The next call, whose open has been read and is not answered."""
        try:
            async with asyncio.timeout(NEXT_SECONDS):
                return await self.calls.get()
        except TimeoutError:
            self.broke("finish", f"no open came within {NEXT_SECONDS:g} s")
            raise CallOver from None

    async def open(self, next_step: int | None = None) -> "Call":
        """The next call, opened where the server is."""
        call = await self.call()
        await call.opened(len(self.history) + 1 if next_step is None else next_step)
        return call

    async def opens_soon(self, seconds: float = QUIET_SECONDS) -> "Call | None":
        """The next call, if one comes within a moment."""
        try:
            async with asyncio.timeout(seconds):
                return await self.calls.get()
        except TimeoutError:
            return None

    async def nobody_opens(self) -> None:
        """Sees that the client does not open its stream again."""
        if (call := await self.opens_soon()) is not None:
            self.broke("no-reopen-when-lost", f"an open came after {self.lost}")
            await call.end("UNAVAILABLE")

    async def nobody_calls(self) -> None:
        """Sees that the client sends no other single call."""
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await self.singles.get()
        except TimeoutError:
            return
        self.broke("no-reopen-when-lost", f"a call came after {self.lost}")

    async def rest(self, call: "Call") -> None:
        """Answers what is left, and closes the stream."""
        while (step := await call.next()) is not None:
            await call.answer(step)
        await call.closed()

    def check_open(self, ask: pb.Open) -> None:
        """Judges an open."""
        self.begun.set()
        self.opens += 1
        if not ask.owner:
            self.broke("owner-kept", "an open has no owner")
        if self.level == "simple" and ask.durability != pb.DURABILITY_SYNC:
            self.broke("durability", f"an open asks for {pb.Durability.Name(ask.durability)}")
        if self._first is None:
            self._first = pb.Open.FromString(ask.SerializeToString())
            if ask.resume_from:
                self.broke("resume-from", f"a first open has resume_from {ask.resume_from}, expected 0")
            return
        if ask.owner != self._first.owner:
            self.broke("owner-kept", "an open has another owner than the first")
        if ask.stream_id != self._first.stream_id or ask.existence == pb.EXISTENCE_MUST_BE_NEW:
            self.broke(
                "same-stream", f"an open after a break asks for stream '{ask.stream_id}' otherwise than the first"
            )
        expected = min(self.durable, self.answered) + 1
        if self.was_open and not 0 < ask.resume_from <= expected:
            self.broke("resume-from", f"an open after a break has resume_from {ask.resume_from}, expected {expected}")


class Call:
    """One streaming call of the client, as a script plays it."""

    def __init__(self, context: Any, stage: Stage, ask: pb.Open) -> None:
        self._context = context
        self._stage = stage
        self.ask = ask
        self.over = asyncio.Event()
        self.status: Any = None
        self._requests: asyncio.Queue[pb.PredictRequest | None] = asyncio.Queue()
        self._next: int | None = None  # the number that is due; None before it is open
        self._again: int | None = (
            None  # the number that was refused and is to come again; what comes before it is behind it
        )
        self._behind: set[int] = set()  # the requests that were sent behind a refused timestep, by identity
        self._in_flight = 0
        self._silent = False  # nothing more may come but the end
        self._reading = asyncio.create_task(self._read())

    # What scripts do --------------------------------------------------------------------------------------------------

    async def opened(self, next_step: int, *, fingerprint: str = MODEL.fingerprint) -> None:
        """Answers the open."""
        await asyncio.sleep(0.02)  # who does not wait for the answer is seen
        stage = self._stage
        self._next = min(next_step, stage.answered + 1)
        stage.was_open, stage.closing = True, False
        model = pb.Model.FromString(MODEL.SerializeToString())
        model.fingerprint = fingerprint
        opened = pb.Opened(
            stream_id=self.ask.stream_id,
            kind=pb.Opened.KIND_NEW if next_step == 1 else pb.Opened.KIND_RESUMED,
            next_step=next_step,
            epoch=stage.opens,
            durable_step=min(stage.durable, next_step - 1),
            answers_remembered=WINDOW,
            model=model,
            message_bytes_max=1 << 22,
        )
        await self.write(opened=opened)

    async def next(self) -> int | None:
        """The number of the next timestep that the client has sent; None when it has sent its close."""
        while True:
            try:
                async with asyncio.timeout(NEXT_SECONDS):
                    request = await self._requests.get()
            except TimeoutError:
                self._stage.broke("finish", f"nothing came for {NEXT_SECONDS:g} s")
                raise CallOver from None
            if request is None:
                raise CallOver
            if id(request) not in self._behind:
                return request.timestep.step if request.HasField("timestep") else None
            self._in_flight -= 1
            self._behind.discard(id(request))
            gap = error_of(request.timestep.step, "STEP_GAP", "REOPEN", len(self._stage.history) + 1)
            await self.write(error=gap)

    async def expect(self, step: int) -> int:
        """Reads the next timestep, which is that one."""
        got = await self.next()
        if got != step:
            self._stage.broke("numbers-in-order", f"got {'a close' if got is None else got}, expected timestep {step}")
            raise CallOver
        return step

    async def answer(self, step: int, *, output: bytes | None = None, store: bool = True, send: bool = True) -> None:
        """Applies a timestep, if it was not, and answers it; `store` says that it is stored."""
        stage = self._stage
        duplicate = step <= len(stage.history)
        if not duplicate:
            stage.history.append(stage.given[step - 1])
        if not send:
            return
        if step > stage.answered:
            stage.answered = step
            stage.delivered.append(None if output == b"" else (step, stage.output(step)))
        if store or self.ask.durability == pb.DURABILITY_SYNC:
            stage.durable = max(stage.durable, step)
        self._in_flight -= 1
        true = stage.output(step)
        outputs = [true if output is None else output] if output != b"" else []
        await self.write(
            prediction=pb.Prediction(step=step, outputs=outputs, durable_step=stage.durable, duplicate=duplicate)
        )

    async def serve(self, *steps: int, store: bool = True) -> None:
        """Reads and answers timesteps."""
        for step in steps:
            await self.answer(await self.expect(step), store=store)

    async def serve_sent(self) -> None:
        """Answers what has come so far."""
        sent = [self._requests.get_nowait() for _ in range(self._requests.qsize())]
        for request in sent:
            if request is not None and request.HasField("timestep"):
                await self.answer(request.timestep.step)
            else:
                self._requests.put_nowait(request)

    async def refuse(self, step: int, reason: str | int, action: str, retry_s: float = 0.0) -> None:
        """Refuses a timestep; one that is dropped makes room for those behind it."""
        stage = self._stage
        self._in_flight -= 1
        if action == "DROP":
            del stage.given[step - 1]
            stage.delivered.append(None)
        if action in ("DROP", "RETRY"):
            self._again = step
            waiting = [self._requests.get_nowait() for _ in range(self._requests.qsize())]
            for request in waiting:
                self._requests.put_nowait(request)
            self._behind |= {id(request) for request in waiting if request is not None}
        await self.write(error=error_of(step, reason, action, len(stage.history) + 1, retry_s))

    async def closed(self, durable: int | None = None) -> None:
        """Answers a close, and waits for the end of the requests."""
        stage = self._stage
        durable = len(stage.history) if durable is None else durable
        stage.durable = max(stage.durable, durable)
        await self.write(closed=pb.Closed(step=len(stage.history), durable_step=durable))
        self._silent = True
        await asyncio.wait([self._reading], timeout=2.0)
        self.finish()

    async def end(self, code: str, reason: str = "", action: str = "", retry_s: float = 0.0) -> None:
        """Ends the call with a status."""
        self.status = end_status(grpc.StatusCode[code], reason, action, retry_s)
        self.finish()

    def finish(self) -> None:
        """Lets the call end."""
        self._reading.cancel()
        self.over.set()

    async def gone(self, seconds: float) -> bool:
        """Whether the client ends the call within that time."""
        done, _ = await asyncio.wait([self._reading], timeout=seconds)
        return bool(done)

    async def write(self, **kind: Any) -> None:
        """Writes a response."""
        try:
            await self._context.write(pb.PredictResponse(**kind).SerializeToString())
        except (grpc.aio.InternalError, asyncio.InvalidStateError):
            raise CallOver from None  # the client has gone

    async def write_bytes(self, message: bytes) -> None:
        """Writes a response of a kind that nobody knows."""
        await self._context.write(message)

    def be_silent(self) -> None:
        """From now on the client may send nothing."""
        self._silent = True

    @property
    def is_open(self) -> bool:
        """Whether its open was answered."""
        return self._next is not None

    # What the client does ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Reads what the client sends, as soon as it comes, and judges it."""
        try:
            while (message := await self._context.read()) is not grpc.aio.EOF:
                request = pb.PredictRequest.FromString(message)
                self._judge(request)
                self._requests.put_nowait(request)  # kept by the queue, so its identity is its own
        finally:
            self._requests.put_nowait(None)

    def _judge(self, request: pb.PredictRequest) -> None:
        stage, kind = self._stage, request.WhichOneof("kind")
        if self._silent:
            stage.broke(
                "half-close" if self._stage.closing else "move", f"got a {kind}, expected the end of the requests"
            )
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
        stage, step = self._stage, request.timestep.step
        assert self._next is not None
        self._in_flight += 1
        window = 1 if stage.level == "simple" else WINDOW
        if self._in_flight > window:
            stage.broke("window", f"{self._in_flight} timesteps are in flight, expected at most {window}")
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
        stage, kept_max = self._stage, self.ask.kept_max
        if kept_max and step - stage.durable > kept_max:
            stage.broke("kept-bounded", f"timestep {step} came, with {stage.durable} stored and kept_max {kept_max}")
        if 0 < step <= len(stage.given) and values != stage.given[step - 1]:
            got, expected = (np.frombuffer(part, "<f4").tolist() for part in (values, stage.given[step - 1]))
            stage.broke("same-values", f"timestep {step} has {got}, expected {expected}")


def error_of(step: int, reason: str | int, action: str, next_step: int, retry_s: float = 0.0) -> pb.Error:
    """A refusal of a timestep; a reason that is a number is one that nobody knows."""
    number = reason if isinstance(reason, int) else pb.Error.Reason.Value(f"REASON_{reason}")
    return pb.Error(
        step=step,
        reason=number,  # type: ignore[arg-type]  # also one that is in no list
        message=f"{reason} by the script",
        next_step=next_step,
        retry_after=timedelta(seconds=retry_s) if retry_s else None,
        action=f"ACTION_{action}",
    )
