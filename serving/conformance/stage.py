"""What a script acts through: it follows the calls of one client, answers them as it is told, and notes each rule that is broken.

The model that it plays has one feature and one output, the sum of all values so far, so every answer is known. A client sends the
values 1, 2, 3, ... .
"""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.rules import RULES

if TYPE_CHECKING:
    from serving.conformance.call import Call
    from serving.conformance.single import Single

Coming = TypeVar("Coming")

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="0" * 64,
    features=[pb.Feature(name="x")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
    batch_invariant=True,
)
WINDOW = 8
# For a program to start and to open its stream: some take seconds on a busy machine, and four start at a time.
START_SECONDS = 30.0
# For a client to do what it is to do next: no wait of the protocol is longer than 5 s, but for those limits of 10 s for which a
# script waits of its own accord.
NEXT_SECONDS = 15.0
# The same for one that has broken a rule, which often ends in silence.
BROKEN_SECONDS = 2.0
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
        self.singles: asyncio.Queue[Single] = asyncio.Queue()
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
