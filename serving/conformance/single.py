"""What is played to clients of single calls."""

import asyncio
import time
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.scenarios import AWAY_SECONDS, OPENS_WHILE_AWAY_MAX, RETRY_SECONDS, scenario
from serving.conformance.stage import CallOver, Stage
from serving.conformance.toy import end_status

ONE = ("one",)
# A deadline that is longer is none: a frozen server is noticed within a minute.
DEADLINE_SECONDS_MAX = 60.0


class Single:
    """One single call, and the way to answer it."""

    def __init__(self, context: Any, stage: Stage, request: pb.PredictOneRequest) -> None:
        self._context = context
        self._stage = stage
        self.request = request
        self.reply: asyncio.Future[pb.PredictOneResponse | Any] = asyncio.get_running_loop().create_future()

    def answer(self) -> None:
        """Applies the timestep, if it was not, and answers it."""
        stage, step = self._stage, self.request.step
        duplicate = step <= len(stage.history)
        self.apply()
        if step > stage.answered:
            stage.answered = step
            stage.delivered.append((step, stage.output(step)))
        prediction = pb.Prediction(step=step, outputs=[stage.output(step)], durable_step=step, duplicate=duplicate)
        self.reply.set_result(pb.PredictOneResponse(prediction=prediction, model="toy", version="1"))

    def apply(self) -> None:
        """Applies the timestep, if it was not."""
        if self.request.step > len(self._stage.history):
            self._stage.history.append(self._stage.given[self.request.step - 1])

    def end(self, code: str, reason: str = "", action: str = "", retry_s: float = 0.0) -> None:
        """Refuses it."""
        if action == "DROP":
            del self._stage.given[self.request.step - 1]
            self._stage.delivered.append(None)
        self.reply.set_result(end_status(grpc.StatusCode[code], reason, action, retry_s))


def judge(stage: Stage, request: pb.PredictOneRequest, seconds_left: float | None) -> None:
    """Judges a single call."""
    stage.begun.set()
    if seconds_left is None or seconds_left > DEADLINE_SECONDS_MAX:
        stage.broke(
            "deadline", f"a call has a deadline in {seconds_left} s, expected at most {DEADLINE_SECONDS_MAX:g} s"
        )
    if request.durability == pb.DURABILITY_ASYNC:
        stage.broke("durability", "a call asks for DURABILITY_ASYNC")
    if request.step != stage.answered + 1:
        stage.broke("numbers-in-order", f"got timestep {request.step}, expected {stage.answered + 1}")
    elif request.step <= len(stage.given) and request.values != stage.given[request.step - 1]:
        stage.broke("same-values", f"timestep {request.step} has other values than that of its place")


async def next_call(stage: Stage, step: int) -> Single:
    """The next call, which is about that timestep."""
    seconds = stage.next_seconds
    call: Single | None = await stage.coming(stage.singles, seconds)
    if call is None:
        if not stage.left.is_set():
            stage.broke("finish", f"no call came within {seconds:g} s")
        raise CallOver
    if call.request.step != step:
        stage.broke("numbers-in-order", f"got timestep {call.request.step}, expected {step}")
        raise CallOver
    return call


async def serve(stage: Stage, first: int, last: int | None = None) -> None:
    """Answers timesteps; without a last one, all that are left."""
    for step in range(first, (last or len(stage.given)) + 1):
        (await next_call(stage, step)).answer()


async def lost_by(stage: Stage, code: str, reason: str, action: str = "STREAM_LOST") -> None:
    """Refuses the third timestep for good."""
    await serve(stage, 1, 2)
    stage.lost = reason
    (await next_call(stage, 3)).end(code, reason, action)
    await stage.nobody_calls()


@scenario(ONE)
async def single_plain(stage: Stage) -> None:
    """Nothing breaks."""
    await serve(stage, 1)


@scenario(ONE)
async def single_break(stage: Stage) -> None:
    """A call ends UNAVAILABLE."""
    await serve(stage, 1, 2)
    (await next_call(stage, 3)).end("UNAVAILABLE")
    await serve(stage, 3)


@scenario(ONE)
async def single_lost_answer(stage: Stage) -> None:
    """A timestep is applied, and its call ends before it is answered."""
    await serve(stage, 1, 2)
    call = await next_call(stage, 3)
    call.apply()
    call.end("UNAVAILABLE")
    await serve(stage, 3)


@scenario(ONE)
async def single_values_differ(stage: Stage) -> None:
    """Another client has sent another timestep under this number."""
    await lost_by(stage, "ALREADY_EXISTS", "VALUES_DIFFER")


@scenario(ONE)
async def single_step_gap(stage: Stage) -> None:
    """The server has lost timesteps."""
    await lost_by(stage, "OUT_OF_RANGE", "STEP_GAP")


@scenario(ONE)
async def single_unknown_action(stage: Stage) -> None:
    """A call ends with an action that the client cannot know."""
    await lost_by(stage, "UNAVAILABLE", "REASON_OF_TOMORROW", "ACTION_OF_TOMORROW")


@scenario(ONE)
async def single_unknown_reason(stage: Stage) -> None:
    """A call ends with a reason that the client cannot know, and the action RETRY."""
    await serve(stage, 1, 2)
    (await next_call(stage, 3)).end("FAILED_PRECONDITION", "REASON_OF_TOMORROW", "RETRY")
    await serve(stage, 3)


@scenario(ONE)
async def single_retry(stage: Stage) -> None:
    """A timestep finds no room, and shall come again after a time."""
    await serve(stage, 1, 2)
    (await next_call(stage, 3)).end("RESOURCE_EXHAUSTED", "OVERLOADED", "RETRY", RETRY_SECONDS)
    refused = time.monotonic()
    call = await next_call(stage, 3)
    if (waited := time.monotonic() - refused) < RETRY_SECONDS * 0.95:
        stage.broke("retry-after", f"timestep 3 came again after {waited:.2f} s, expected {RETRY_SECONDS:g} s")
    call.answer()
    await serve(stage, 4)


@scenario(ONE)
async def single_drop(stage: Stage) -> None:
    """A timestep is refused for good; the next takes its number."""
    await serve(stage, 1, 2)
    (await next_call(stage, 3)).end("INVALID_ARGUMENT", "NOT_FINITE", "DROP")
    await serve(stage, 3)


@scenario(ONE)
async def single_away(stage: Stage) -> None:
    """The server is away for a while."""
    await serve(stage, 1, 2)
    ends, calls = time.monotonic() + AWAY_SECONDS, 0
    while time.monotonic() < ends:
        (await next_call(stage, 3)).end("UNAVAILABLE")
        calls += 1
    if calls > OPENS_WHILE_AWAY_MAX:
        stage.broke(
            "back-off", f"{calls} calls came within {AWAY_SECONDS:g} s, expected at most {OPENS_WHILE_AWAY_MAX}"
        )
    await serve(stage, 3)
