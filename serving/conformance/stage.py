"""What a script acts through: it follows the calls of one client, answers them as it is told, and notes each rule that is broken.

Every answer of the model that it plays is known, for a client sends the values 1, 2, 3, ... . A `Stage` follows a client over all its
calls, a `Call` one stream on one of them. Neither knows a wire: `predict` speaks `Predict`, `blocks` speaks `PredictBlocks`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.rules import RULES
from serving.conformance.toy import MODEL, WINDOW, end_status, error_of, pack

Coming = TypeVar("Coming")

# For a program to start and to open its stream: some take seconds on a busy machine, and four start at a time.
START_SECONDS = 30.0
# For a client to do what it is to do next: no wait of the protocol is longer than 5 s, but for those limits of 10 s for which a
# script waits of its own accord.
NEXT_SECONDS = 15.0
# The same for one that has broken a rule, which often ends in silence.
BROKEN_SECONDS = 2.0
# How long nobody may do what is forbidden, before it is taken for granted that nobody will.
QUIET_SECONDS = 0.3
# For a client to leave once its stream is closed.
LEAVE_SECONDS = 2.0


class Broken(NamedTuple):
    """A rule that was broken, and what was seen."""

    rule: str
    seen: str


class CallOver(Exception):
    """The client has ended its call, or the script has."""


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
        self.left = asyncio.Event()  # the client is a program, and has ended
        self.finished = False
        self.opens = 0
        self.answered = 0  # the last timestep of which the user was told
        self.was_open = False
        self.closing = False
        self._all: list[Call] = []
        self._first: pb.Open | None = None

    def broke(self, rule: str, seen: str) -> None:
        """Notes that a rule was broken; of each the first time counts."""
        assert rule in RULES
        if all(broken.rule != rule for broken in self.broken):
            self.broken.append(Broken(rule, seen))

    def output(self, step: int) -> bytes:
        """The true answer to a timestep that was applied."""
        return pack(sum(float(np.frombuffer(values, "<f4")[0]) for values in self.history[:step]))

    def enter(self, call: "Call") -> None:
        """A call came, whose open has been read."""
        self._all.append(call)
        self.calls.put_nowait(call)

    def finish(self) -> None:
        """The script is over: calls that it has left end, and who opens again is told."""
        self.finished = True
        for call in self._all:
            if not call.over.is_set():
                call.status = end_status(grpc.StatusCode.UNAVAILABLE, "", "")
                call.finish()

    async def coming(self, queue: "asyncio.Queue[Coming]", seconds: float) -> Coming | None:
        """What comes within that time; None when nothing does, or the client has ended and nothing of it is under way."""
        coming, left = asyncio.ensure_future(queue.get()), asyncio.ensure_future(self.left.wait())
        try:
            await asyncio.wait([coming, left], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([coming], timeout=min(seconds, QUIET_SECONDS) if left.done() else 0)
            return coming.result() if coming.done() else None
        finally:
            coming.cancel()
            left.cancel()

    @property
    def next_seconds(self) -> float:
        """How long the client may take to do what it is to do next."""
        if self.broken:
            return BROKEN_SECONDS
        return NEXT_SECONDS if self.begun.is_set() else START_SECONDS

    async def call(self, seconds: float = 0.0) -> "Call":
        """The next call, whose open has been read and is not answered; `seconds` where it may take longer than most."""
        seconds = max(seconds, self.next_seconds)
        if (call := await self.coming(self.calls, seconds)) is None:
            if not self.left.is_set():
                self.broke("finish", f"no open came within {seconds:g} s")
            raise CallOver
        return call

    async def open(self, next_step: int | None = None, *, alone: bool = False) -> "Call":
        """The next call, opened where the server is.

        With `alone`, each timestep has a block of its own where they come in blocks: it is told as soon as it is answered.
        """
        call = await self.call()
        window = 1 if alone and call.in_blocks else WINDOW
        await call.opened(len(self.history) + 1 if next_step is None else next_step, window=window)
        return call

    async def opens_soon(self, seconds: float = QUIET_SECONDS) -> "Call | None":
        """The next call, if one comes within a moment."""
        return await self.coming(self.calls, seconds)

    async def nobody_opens(self) -> None:
        """Sees that the client does not open its stream again."""
        if (call := await self.opens_soon()) is not None:
            self.broke("no-reopen-when-lost", f"an open came after {self.lost}")
            await call.end("UNAVAILABLE")

    async def nobody_calls(self) -> None:
        """Sees that the client sends no other single call."""
        if await self.coming(self.singles, QUIET_SECONDS) is not None:
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
