"""One run of a scenario: it follows the calls of one client, answers them as the script asks, and records violations.

The client sends the values 1, 2, 3, ..., so the answer to each timestep is known. A `ScenarioRun` follows a client over
all its calls. A `Call` is one stream on one of them, independent of the gRPC method: `predict` and `blocks` implement it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import numpy as np

from tidegate.conformance.rules import RULES, Violation
from tidegate.conformance.toy_model import MODEL, WINDOW, make_error, make_status, pack
from tidegate.v1 import tidegate_pb2 as pb

Item = TypeVar("Item")

# The time limit for a program to start and to open its stream. Some need seconds on a busy machine.
START_SECONDS = 30.0
# The time limit for the next action of a client. No wait of the protocol is longer than 5 s, except for the limits of
# 10 s, for which a script waits explicitly.
NEXT_SECONDS = 15.0
# The same after a violation: often nothing more comes.
AFTER_VIOLATION_SECONDS = 2.0
# How long a script watches for something that must not happen, and how long after the loss of the stream.
WATCH_SECONDS, LOST_SECONDS = 0.3, 3.0
# How long after the end of a program its last message may still be under way.
UNDER_WAY_SECONDS = 0.3
# The time limit for the end of the call after the close.
END_OF_CALL_SECONDS = 2.0


class CallEnded(Exception):
    """The client or the script has ended the call."""


class ScenarioRun:
    """One run of a scenario by one client.

    Attributes:
        applied: the values that the server has applied, in order.
        inputs: the values that the client must send as timestep 1, 2, 3, ...; a dropped timestep is removed.
        durable: the last timestep that the client knows to be durable.
        expected_output: what its user must see: number and packed output, or None for a dropped or lost timestep.
        lost_reason: the reason of the loss of the stream; empty when it ends well.
        violations: the violated rules.
    """

    def __init__(self, level: str, rows: int) -> None:
        self.level = level
        self.rows = rows
        self.applied: list[bytes] = []
        self.inputs = [pack(value) for value in range(1, rows + 1)]
        self.durable = 0
        self.expected_output: list[tuple[int, bytes] | None] = []
        self.lost_reason = ""
        self.violations: list[Violation] = []
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.single_calls: asyncio.Queue[Any] = asyncio.Queue()  # of `PredictOneCall`
        self.started = asyncio.Event()  # the client has made a call
        self.client_exited = asyncio.Event()  # the client program has ended
        self.finished = False
        self.open_count = 0
        self.last_answered = 0  # the last timestep whose answer was sent
        self.was_open = False
        self.closing = False
        self._calls: list[Call] = []
        self._first: pb.Open | None = None

    def add_violation(self, rule: str, detail: str) -> None:
        """Records a violation. Only the first one of each rule counts."""
        assert rule in RULES
        if all(violation.rule != rule for violation in self.violations):
            self.violations.append(Violation(rule, detail))

    def output(self, step: int) -> bytes:
        """Returns the correct answer to an applied timestep."""
        return pack(sum(float(np.frombuffer(values, "<f4")[0]) for values in self.applied[:step]))

    def add_call(self, call: "Call") -> None:
        """Adds a call whose open has been read."""
        self._calls.append(call)
        self.calls.put_nowait(call)

    def finish(self) -> None:
        """The script has ended: ends the remaining calls."""
        self.finished = True
        for call in self._calls:
            if not call.ended.is_set():
                call.status = make_status(grpc.StatusCode.UNAVAILABLE, "", "")
                call.finish()

    async def wait_for_item(self, queue: "asyncio.Queue[Item]", seconds: float) -> Item | None:
        """Waits for an item of a queue. Returns None after the time limit, or when the client has ended and nothing is left."""
        item, exited = asyncio.ensure_future(queue.get()), asyncio.ensure_future(self.client_exited.wait())
        try:
            await asyncio.wait([item, exited], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([item], timeout=min(seconds, UNDER_WAY_SECONDS) if exited.done() else 0)
            return item.result() if item.done() else None
        finally:
            item.cancel()
            exited.cancel()

    @property
    def next_seconds(self) -> float:
        """The time limit for the next action of the client."""
        if self.violations:
            return AFTER_VIOLATION_SECONDS
        return NEXT_SECONDS if self.started.is_set() else START_SECONDS

    async def next_call(self, seconds: float = 0.0) -> "Call":
        """Waits for the next call. Its open is read but not answered. `seconds` is a longer time limit."""
        seconds = max(seconds, self.next_seconds)
        if (call := await self.wait_for_item(self.calls, seconds)) is None:
            if not self.client_exited.is_set():
                self.add_violation("finish", f"no open came within {seconds:g} s")
            raise CallEnded
        return call

    async def open_next_call(self, *, window_of_one: bool = False) -> "Call":
        """Waits for the next call and answers its open with the server's next step.

        With `window_of_one` one timestep is in flight: the next one shows that the client has read the answer.
        """
        call = await self.next_call()
        window = 1 if window_of_one else WINDOW
        await call.send_opened(len(self.applied) + 1, window=window)
        return call

    async def wait_for_open(self, seconds: float | None = None) -> "Call | None":
        """Returns the next call, if one comes within the time."""
        return await self.wait_for_item(self.calls, WATCH_SECONDS if seconds is None else seconds)

    async def expect_no_open(self) -> None:
        """Checks that the client does not open its stream again."""
        if (call := await self.wait_for_open(LOST_SECONDS)) is not None:
            self.add_violation("no-reopen-when-lost", f"an open came after {self.lost_reason}")
            await call.end("UNAVAILABLE")

    async def expect_no_call(self) -> None:
        """Checks that the client makes no more calls of `PredictOne`."""
        if await self.wait_for_item(self.single_calls, LOST_SECONDS) is not None:
            self.add_violation("no-reopen-when-lost", f"a call came after {self.lost_reason}")

    async def serve_rest(self, call: "Call") -> None:
        """Answers the remaining timesteps and closes the stream."""
        while (step := await call.next_step()) is not None:
            await call.answer(step)
        await call.send_closed()

    def check_open(self, open_request: pb.Open) -> None:
        """Checks an open."""
        self.started.set()
        self.open_count += 1
        if not open_request.owner:
            self.add_violation("owner-kept", "an open has no owner")
        if self.level == "simple" and open_request.durability != pb.DURABILITY_SYNC:
            self.add_violation("durability", f"an open asks for {pb.Durability.Name(open_request.durability)}")
        if self._first is None:
            self._first = pb.Open.FromString(open_request.SerializeToString())
            if open_request.resume_from:
                self.add_violation(
                    "resume-from", f"a first open has resume_from {open_request.resume_from}, expected 0"
                )
            return
        if open_request.owner != self._first.owner:
            self.add_violation("owner-kept", "an open has another owner than the first")
        if open_request.stream_id != self._first.stream_id or open_request.existence == pb.EXISTENCE_MUST_BE_NEW:
            self.add_violation(
                "same-stream",
                f"an open after a break asks for stream '{open_request.stream_id}' in another way than the first",
            )
        expected = min(self.durable, self.last_answered) + 1
        if self.was_open and not 0 < open_request.resume_from <= expected:
            self.add_violation(
                "resume-from", f"an open after a break has resume_from {open_request.resume_from}, expected {expected}"
            )


class Call(ABC):
    """One stream on one call.

    Attributes:
        open_request: its open.
        status: how the call ends; None for OK.
        ended: set when the script has finished with the call.
        run: the run that it belongs to.
        in_flight: how many timesteps are not answered.
    """

    def __init__(self, run: ScenarioRun, open_request: pb.Open) -> None:
        self.open_request = open_request
        self.ended = asyncio.Event()
        self.status: Any = None
        self.run = run
        self._client_done = asyncio.Event()  # the client has ended the requests
        self._requests: asyncio.Queue[pb.PredictRequest | None] = asyncio.Queue()
        self._next_due_step: int | None = None  # the expected number; None before the open is answered
        # The number of a refused timestep that must be sent again. Timesteps before that were sent behind it.
        self._retry_step: int | None = None
        self._behind: set[int] = set()  # identities of the requests that were sent behind a refused timestep
        self.in_flight = 0
        self._window = WINDOW
        self._closing_expected = False  # only the end of the requests may follow

    # For scripts ------------------------------------------------------------------------------------------------------

    async def send_opened(self, next_step: int, *, window: int = WINDOW) -> None:
        """Answers the open."""
        await asyncio.sleep(0.02)  # a client that does not wait for the answer is noticed
        run = self.run
        self._next_due_step = min(next_step, run.last_answered + 1)
        self._window = 1 if run.level == "simple" else window
        run.was_open, run.closing = True, False
        opened = pb.Opened(
            stream_id=self.open_request.stream_id,
            kind=pb.Opened.KIND_NEW if next_step == 1 else pb.Opened.KIND_RESUMED,
            next_step=next_step,
            epoch=run.open_count,
            durable_step=min(run.durable, next_step - 1),
            answers_remembered=window,
            model=MODEL,
            message_bytes_max=1 << 22,
        )
        await self.write(opened=opened)

    async def next_step(self) -> int | None:
        """Waits for the next timestep and returns its number; None for a close."""
        while True:
            seconds = self.run.next_seconds
            try:
                async with asyncio.timeout(seconds):
                    request = await self._requests.get()
            except TimeoutError:
                self.run.add_violation("finish", f"nothing came for {seconds:g} s")
                raise CallEnded from None
            if request is None:
                raise CallEnded
            if id(request) not in self._behind:
                return request.timestep.step if request.HasField("timestep") else None
            self._behind.discard(id(request))
            await self._refuse_behind(request.timestep.step, "STEP_GAP", "REOPEN")

    async def expect_step(self, step: int) -> int:
        """Waits for that timestep.

        The client may first send again applied timesteps whose answers it has not received.
        """
        got = await self.next_step()
        while got is not None and got < step and got <= len(self.run.applied):
            await self.answer(got)
            got = await self.next_step()
        if got != step:
            self.run.add_violation(
                "numbers-in-order", f"got {'a close' if got is None else got}, expected timestep {step}"
            )
            raise CallEnded
        return step

    async def answer(self, step: int, *, output: bytes | None = None, store: bool = True, send: bool = True) -> None:
        """Applies a timestep, unless it is applied already, and answers it. `store` makes it durable."""
        run = self.run
        duplicate = step <= len(run.applied)
        if not duplicate:
            run.applied.append(run.inputs[step - 1])
        if not send:
            return
        true = run.output(step)
        stored = store or self.open_request.durability == pb.DURABILITY_SYNC
        durable = max(run.durable, step if stored else 0)

        def on_sent() -> None:
            if step > run.last_answered:
                run.last_answered = step
                run.expected_output.append(None if output == b"" else (step, true))
            run.durable = max(run.durable, durable)
            self.in_flight -= 1

        outputs = [true if output is None else output] if output != b"" else []
        prediction = pb.Prediction(step=step, outputs=outputs, durable_step=durable, duplicate=duplicate)
        await self._send_answer(on_sent, prediction=prediction)

    async def serve(self, *steps: int, store: bool = True) -> None:
        """Waits for timesteps and answers them."""
        for step in steps:
            await self.answer(await self.expect_step(step), store=store)

    async def serve_until_read(self, *steps: int, store: bool = True) -> None:
        """Answers timesteps, with a window of one, until the client has read that: the end of a call may overtake answers."""
        await self.serve(*steps, store=store)
        await self.expect_step(steps[-1] + 1)

    async def answer_received(self) -> None:
        """Answers what has come so far."""
        for request in self._pop_received():
            if request is not None and request.HasField("timestep"):
                await self.answer(request.timestep.step)
            else:
                self._requests.put_nowait(request)

    async def refuse(self, step: int, reason: str | int, action: str, retry_s: float = 0.0) -> None:
        """Refuses a timestep. When it is dropped, the ones behind it move up."""
        run = self.run

        def on_sent() -> None:
            self.in_flight -= 1
            if action == "DROP":
                del run.inputs[step - 1]
                run.expected_output.append(None)
            if action in ("DROP", "RETRY"):
                self._retry_step = step
                waiting = self._pop_received()
                for request in waiting:
                    self._requests.put_nowait(request)
                self._behind |= {id(request) for request in waiting if request is not None}

        await self._send_answer(on_sent, error=make_error(step, reason, action, len(run.applied) + 1, retry_s))

    async def send_durable(self, step: int) -> None:
        """Reports what is durable, without a prediction."""
        self.run.durable = max(self.run.durable, step)
        await self.write(durable=pb.Durable(durable_step=step))

    async def send_closed(self, durable: int | None = None) -> None:
        """Answers a close, and waits until the client has ended the call."""
        run = self.run
        durable = len(run.applied) if durable is None else durable
        run.durable = max(run.durable, durable)
        await self.write(closed=pb.Closed(step=len(run.applied), durable_step=durable))
        self._closing_expected = True
        await self.wait_for_end(END_OF_CALL_SECONDS)
        self.finish()

    async def end(self, code: str, reason: str = "", action: str = "", retry_s: float = 0.0) -> None:
        """Ends the call with a status."""
        self.status = make_status(grpc.StatusCode[code], reason, action, retry_s)
        self.finish()

    async def end_stream(self, code: str, reason: str, action: str) -> bool:
        """Ends the stream for good. Returns whether that ended the call."""
        await self.end(code, reason, action)
        return True

    def finish(self) -> None:
        """Lets the call end."""
        self.ended.set()

    async def wait_for_end(self, seconds: float) -> bool:
        """Returns whether the client ends the call within the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._client_done.wait()
        except TimeoutError:
            return False
        return True

    def expect_silence(self) -> None:
        """From now on the client may send nothing."""
        self._closing_expected = True

    @property
    def is_open(self) -> bool:
        """Whether its open was answered."""
        return self._next_due_step is not None

    # For the gRPC method ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def write(self, **kind: Any) -> None:
        """Writes a response, given as one of `Predict`, that answers no timestep. Raises CallEnded."""

    @abstractmethod
    async def write_bytes(self, message: bytes) -> None:
        """Writes a serialized response of an unknown kind. Raises CallEnded."""

    @abstractmethod
    async def _send_answer(self, on_sent: Callable[[], None], **kind: Any) -> None:
        """Answers the oldest unanswered timestep. Calls `on_sent` when the answer is written."""

    def client_done(self) -> None:
        """The client has ended the requests."""
        self._client_done.set()
        self._requests.put_nowait(None)

    def receive(self, request: pb.PredictRequest) -> None:
        """Checks a request of the client at once, and keeps it for the script."""
        self._check_request(request)
        self._requests.put_nowait(request)  # the queue keeps the object, so its identity is unique

    def _pop_received(self) -> list[pb.PredictRequest | None]:
        """Removes and returns the requests that were not read yet."""
        return [self._requests.get_nowait() for _ in range(self._requests.qsize())]

    async def _refuse_behind(self, step: int, reason: str | int, action: str) -> None:
        """Refuses a timestep that was sent behind a refused one."""

        def on_sent() -> None:
            self.in_flight -= 1

        await self._send_answer(on_sent, error=make_error(step, reason, action, len(self.run.applied) + 1))

    # Checks -----------------------------------------------------------------------------------------------------------

    def _check_request(self, request: pb.PredictRequest) -> None:
        run, kind = self.run, request.WhichOneof("kind")
        if self._closing_expected:
            run.add_violation(
                "half-close" if run.closing else "move", f"got a {kind}, expected the end of the requests"
            )
        elif self._next_due_step is None:
            run.add_violation("open-first", f"got a {kind} before the open was answered")
        elif kind == "close":
            run.closing = True
            if self.in_flight or len(run.applied) < len(run.inputs):
                run.add_violation("close-when-answered", f"a close came with {self.in_flight} timesteps in flight")
            self._closing_expected = True
        elif kind == "timestep":
            self._check_timestep(request)
        else:
            run.add_violation("open-first", f"got a {kind} on an open call")

    def _check_timestep(self, request: pb.PredictRequest) -> None:
        run, step = self.run, request.timestep.step
        assert self._next_due_step is not None
        self.in_flight += 1
        if self.in_flight > self._window:
            run.add_violation("window", f"{self.in_flight} timesteps are in flight, expected at most {self._window}")
        if step == self._retry_step:
            self._next_due_step, self._retry_step = step, None
        elif self._retry_step is not None:
            self._behind.add(id(request))
        if step != self._next_due_step:
            run.add_violation("numbers-in-order", f"got timestep {step}, expected {self._next_due_step}")
        self._next_due_step = step + 1
        if self._retry_step is None:
            self._check_values(step, request.timestep.values)

    def _check_values(self, step: int, values: bytes) -> None:
        run, kept_max = self.run, self.open_request.kept_max
        if kept_max and step - run.durable > kept_max:
            run.add_violation(
                "kept-bounded", f"timestep {step} came, with durable step {run.durable} and kept_max {kept_max}"
            )
        if 0 < step <= len(run.inputs) and values != run.inputs[step - 1]:
            got, expected = (np.frombuffer(part, "<f4").tolist() for part in (values, run.inputs[step - 1]))
            run.add_violation("same-values", f"timestep {step} has {got}, expected {expected}")
