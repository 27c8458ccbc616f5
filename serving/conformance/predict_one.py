"""Scenarios for clients of `PredictOne`."""

import asyncio
import time
from typing import Any

import grpc

from tidegate.conformance.scenario_run import CallEnded, ScenarioRun
from tidegate.conformance.scenarios import RETRY_SECONDS, check_back_off, check_retry_after, scenario
from tidegate.conformance.toy_model import make_status
from tidegate.v1 import tidegate_pb2 as pb

ONE = ("one",)
# A longer deadline counts as none: a client must notice a frozen server within a minute.
DEADLINE_SECONDS_MAX = 60.0


class PredictOneCall:
    """One call of `PredictOne`, which a script answers."""

    def __init__(self, context: Any, run: ScenarioRun, request: pb.PredictOneRequest) -> None:
        self._context = context
        self._run = run
        self.request = request
        self.reply: asyncio.Future[pb.PredictOneResponse | Any] = asyncio.get_running_loop().create_future()

    def answer(self) -> None:
        """Applies the timestep, unless it is applied already, and answers it."""
        run, step = self._run, self.request.step
        duplicate = step <= len(run.applied)
        self.apply()
        if step > run.last_answered:
            run.last_answered = step
            run.expected_output.append((step, run.output(step)))
        prediction = pb.Prediction(step=step, outputs=[run.output(step)], durable_step=step, duplicate=duplicate)
        self.reply.set_result(pb.PredictOneResponse(prediction=prediction, model="toy", version="1"))

    def apply(self) -> None:
        """Applies the timestep, unless it is applied already."""
        if self.request.step > len(self._run.applied):
            self._run.applied.append(self._run.inputs[self.request.step - 1])

    def end(self, code: str, reason: str = "", action: str = "", retry_s: float = 0.0) -> None:
        """Ends the call with a status."""
        if action == "DROP":
            del self._run.inputs[self.request.step - 1]
            self._run.expected_output.append(None)
        self.reply.set_result(make_status(grpc.StatusCode[code], reason, action, retry_s))


def check_request(run: ScenarioRun, request: pb.PredictOneRequest, seconds_left: float | None) -> None:
    """Checks a request."""
    run.started.set()
    if seconds_left is None or seconds_left > DEADLINE_SECONDS_MAX:
        run.add_violation(
            "deadline", f"a call has a deadline in {seconds_left} s, expected at most {DEADLINE_SECONDS_MAX:g} s"
        )
    if request.durability == pb.DURABILITY_ASYNC:
        run.add_violation("durability", "a call asks for DURABILITY_ASYNC")
    if request.step != run.last_answered + 1:
        run.add_violation("numbers-in-order", f"got timestep {request.step}, expected {run.last_answered + 1}")
    elif request.step <= len(run.inputs) and request.values != run.inputs[request.step - 1]:
        run.add_violation("same-values", f"timestep {request.step} has other values than expected")


async def next_call(run: ScenarioRun, step: int) -> PredictOneCall:
    """Waits for the next call, which must be for that timestep."""
    seconds = run.next_seconds
    call: PredictOneCall | None = await run.wait_for_item(run.single_calls, seconds)
    if call is None:
        if not run.client_exited.is_set():
            run.add_violation("finish", f"no call came within {seconds:g} s")
        raise CallEnded
    if call.request.step != step:
        run.add_violation("numbers-in-order", f"got timestep {call.request.step}, expected {step}")
        raise CallEnded
    return call


async def serve(run: ScenarioRun, first: int, last: int | None = None) -> None:
    """Answers timesteps, up to the last one by default."""
    for step in range(first, (last or len(run.inputs)) + 1):
        (await next_call(run, step)).answer()


async def lost_by(run: ScenarioRun, code: str, reason: str, action: str = "STREAM_LOST") -> None:
    """Refuses the third timestep for good."""
    await serve(run, 1, 2)
    run.lost_reason = reason
    (await next_call(run, 3)).end(code, reason, action)
    await run.expect_no_call()


@scenario(ONE)
async def single_plain(run: ScenarioRun) -> None:
    """No failure."""
    await serve(run, 1)


@scenario(ONE)
async def single_break(run: ScenarioRun) -> None:
    """A call ends UNAVAILABLE."""
    await serve(run, 1, 2)
    (await next_call(run, 3)).end("UNAVAILABLE")
    await serve(run, 3)


@scenario(ONE)
async def single_lost_answer(run: ScenarioRun) -> None:
    """The server applies a timestep, and the call ends before the answer."""
    await serve(run, 1, 2)
    call = await next_call(run, 3)
    call.apply()
    call.end("UNAVAILABLE")
    await serve(run, 3)


@scenario(ONE)
async def single_values_differ(run: ScenarioRun) -> None:
    """Another client has sent another timestep with this number."""
    await lost_by(run, "ALREADY_EXISTS", "VALUES_DIFFER")


@scenario(ONE)
async def single_step_gap(run: ScenarioRun) -> None:
    """The server has lost timesteps."""
    await lost_by(run, "OUT_OF_RANGE", "STEP_GAP")


@scenario(ONE)
async def single_unknown_action(run: ScenarioRun) -> None:
    """A call ends with an action that the client cannot know."""
    await lost_by(run, "UNAVAILABLE", "REASON_OF_TOMORROW", "ACTION_OF_TOMORROW")


@scenario(ONE)
async def single_unknown_reason(run: ScenarioRun) -> None:
    """A call ends with a reason that the client cannot know, and the action RETRY."""
    await serve(run, 1, 2)
    (await next_call(run, 3)).end("FAILED_PRECONDITION", "REASON_OF_TOMORROW", "RETRY")
    await serve(run, 3)


@scenario(ONE)
async def single_retry(run: ScenarioRun) -> None:
    """The server has no capacity for a timestep and asks the client to send it again later."""
    await serve(run, 1, 2)
    (await next_call(run, 3)).end("RESOURCE_EXHAUSTED", "OVERLOADED", "RETRY", RETRY_SECONDS)
    refused = time.monotonic()
    call = await next_call(run, 3)
    check_retry_after(run, refused)
    call.answer()
    await serve(run, 4)


@scenario(ONE)
async def single_drop(run: ScenarioRun) -> None:
    """The server refuses a timestep for good. The next one takes its number."""
    await serve(run, 1, 2)
    (await next_call(run, 3)).end("INVALID_ARGUMENT", "NOT_FINITE", "DROP")
    await serve(run, 3)


@scenario(ONE)
async def single_away(run: ScenarioRun) -> None:
    """The server is unavailable for a while."""
    await serve(run, 1, 2)

    async def fail_next() -> None:
        (await next_call(run, 3)).end("UNAVAILABLE")

    await check_back_off(run, fail_next)
    await serve(run, 3)
