"""Scenarios for clients that stream. Each has a script, its levels, and its number of timesteps."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tidegate.conformance import scenario_run
from tidegate.conformance.scenario_run import Call, ScenarioRun
from tidegate.conformance.toy_model import WINDOW, pack
from tidegate.v1 import tidegate_pb2 as pb

Script = Callable[[ScenarioRun], Awaitable[None]]

ROWS = 20
# More than a client with `kept_max` keeps, but still quick.
MANY_ROWS = 1200
BOTH = ("simple", "full")
FULL = ("full",)
# How often a client may try an unavailable server: its waits are at most 50 ms, 100 ms, 200 ms, ...
UNAVAILABLE_SECONDS, TRIES_MAX = 1.0, 20
RETRY_SECONDS = 0.3
# The time limit for a reaction that should come at once.
AGAIN_SECONDS = 5.0
# The time limit for a client to half-close after a Move.
MOVE_SECONDS = 2.0
# The limit of 10 s on an open, and reserve for a slow machine.
LIMIT_SECONDS = 20.0
UNKNOWN_REASON = 999


class Scenario(NamedTuple):
    """A script, the levels that it is for, and the number of timesteps that the client sends."""

    play: Script
    levels: tuple[str, ...]
    rows: int

    @property
    def text(self) -> str:
        """The description: the first line of the script's docstring."""
        return (self.play.__doc__ or "").split("\n")[0]


SCENARIOS: dict[str, Scenario] = {}


def scenario(levels: tuple[str, ...], rows: int = ROWS) -> Callable[[Script], Script]:
    """Registers a script as a scenario, under its name."""

    def add(script: Script) -> Script:
        SCENARIOS[getattr(script, "__name__").replace("_", "-")] = Scenario(script, levels, rows)  # noqa: B009 - a function has one
        return script

    return add


def check_retry_after(run: ScenarioRun, refused: float) -> None:
    """Checks that timestep 3 was not sent again before the time that the refusal at `refused` asked for."""
    if (waited := time.monotonic() - refused) < RETRY_SECONDS * 0.95:
        run.add_violation("retry-after", f"timestep 3 came again after {waited:.2f} s, expected {RETRY_SECONDS:g} s")


async def check_back_off(run: ScenarioRun, fail_next: Callable[[], Awaitable[None]]) -> None:
    """Fails the tries of the client for a while, and checks that there are not too many."""
    end, tries = time.monotonic() + UNAVAILABLE_SECONDS, 0
    while time.monotonic() < end and tries <= TRIES_MAX:
        await fail_next()
        tries += 1
    if tries > TRIES_MAX:
        run.add_violation("back-off", f"{tries} tries within {UNAVAILABLE_SECONDS:g} s, expected at most {TRIES_MAX}")


@scenario(BOTH)
async def plain(run: ScenarioRun) -> None:
    """No failure."""
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def call_ends(run: ScenarioRun) -> None:
    """The call ends UNAVAILABLE between two timesteps."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def lost_answer(run: ScenarioRun) -> None:
    """The server applies a timestep, and the call ends before the answer."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.answer(await call.expect_step(3), send=False)
    await call.end("UNAVAILABLE")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def internal(run: ScenarioRun) -> None:
    """The call ends INTERNAL without details, as some gRPC libraries report a broken connection."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.end("INTERNAL")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def gone_before_opened(run: ScenarioRun) -> None:
    """The first call ends before the open is answered."""
    await (await run.next_call()).end("UNAVAILABLE")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def silent_open(run: ScenarioRun) -> None:
    """The server does not answer an open after a break."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    call = await run.next_call()
    if not await call.wait_for_end(LIMIT_SECONDS):
        run.add_violation("open-limit", f"the client waited longer than {LIMIT_SECONDS:g} s for the answer to its open")
        await call.end("UNAVAILABLE")
    call.finish()
    await run.serve_rest(await run.open_next_call())


@scenario(FULL)
async def crash(run: ScenarioRun) -> None:
    """The server crashes and loses answered timesteps that were not durable."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve(1, 2)
    await call.serve_until_read(3, 4, store=False)
    await call.end("UNAVAILABLE")
    del run.applied[2:]
    await run.serve_rest(await run.open_next_call())


@scenario(FULL)
async def crash_and_other_bits(run: ScenarioRun) -> None:
    """A timestep that is sent again gets another answer."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2, store=False)
    await call.end("UNAVAILABLE")
    run.applied.clear()
    call = await run.open_next_call(window_of_one=True)
    await call.answer(await call.expect_step(1), output=pack(-1), store=False)
    run.lost_reason = "DIVERGED"
    if not await call.wait_for_end(AGAIN_SECONDS):
        run.add_violation("diverged", "the client continued although a timestep got another answer")
        await call.end("UNAVAILABLE")
    call.finish()
    await run.expect_no_open()


async def lost_by(run: ScenarioRun, call: Call, code: str, reason: str, action: str = "STREAM_LOST") -> None:
    """Ends the stream for good.

    Some gRPC libraries report INTERNAL instead while a write is in progress. A client that opens the stream again is refused.
    """
    run.lost_reason = reason
    by_end = await call.end_stream(code, reason, action)
    if by_end and call.is_open and (again := await run.wait_for_open()) is not None:
        await again.end_stream(code, reason, action)
    await run.expect_no_open()
    call.finish()


@scenario(BOTH)
async def state_lost(run: ScenarioRun) -> None:
    """The store has lost timesteps that the client cannot send again."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2)
    await call.end("UNAVAILABLE")
    await lost_by(run, await run.next_call(), "DATA_LOSS", "STATE_LOST")


@scenario(BOTH)
async def taken_over(run: ScenarioRun) -> None:
    """Another client opens the stream while the call is open."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2)
    await lost_by(run, call, "ABORTED", "TAKEN_OVER")


@scenario(BOTH)
async def taken_over_meanwhile(run: ScenarioRun) -> None:
    """Another client has opened the stream while the server was unavailable."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2)
    await call.end("UNAVAILABLE")
    await lost_by(run, await run.next_call(), "ABORTED", "TAKEN_OVER")


@scenario(BOTH)
async def unknown_reason_reopen(run: ScenarioRun) -> None:
    """The call ends with a reason that the client cannot know, and the action REOPEN."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE", "REASON_OF_TOMORROW", "REOPEN")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def unknown_reason_lost(run: ScenarioRun) -> None:
    """The call ends with a reason that the client cannot know, and the action STREAM_LOST."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2)
    await lost_by(run, call, "UNAVAILABLE", "REASON_OF_TOMORROW")


@scenario(BOTH)
async def unknown_action(run: ScenarioRun) -> None:
    """The call ends with an action that the client cannot know."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve_until_read(1, 2)
    await lost_by(run, call, "UNAVAILABLE", "REASON_OF_TOMORROW", "ACTION_OF_TOMORROW")


@scenario(BOTH)
async def drop(run: ScenarioRun) -> None:
    """The server refuses a timestep for good, with others in flight behind it."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.refuse(await call.expect_step(3), "NOT_FINITE", "DROP")
    await call.serve(3, 4)
    await run.serve_rest(call)


@scenario(BOTH)
async def drop_by_unknown_reason(run: ScenarioRun) -> None:
    """The server refuses a timestep for good, for a reason that the client cannot know."""
    call = await run.open_next_call()
    await call.refuse(await call.expect_step(1), UNKNOWN_REASON, "DROP")
    await run.serve_rest(call)


@scenario(BOTH)
async def drop_and_break(run: ScenarioRun) -> None:
    """The server refuses a timestep, and the call ends before those in flight behind it are answered."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.refuse(await call.expect_step(3), "MODEL_FAILED", "DROP")
    await asyncio.sleep(0.1)
    await call.end("UNAVAILABLE")
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def retry(run: ScenarioRun) -> None:
    """The server has no capacity for a timestep and asks the client to send it again later."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.refuse(await call.expect_step(3), "OVERLOADED", "RETRY", RETRY_SECONDS)
    refused = time.monotonic()
    step = await call.expect_step(3)
    check_retry_after(run, refused)
    await call.answer(step)
    await run.serve_rest(call)


@scenario(BOTH)
async def stopping(run: ScenarioRun) -> None:
    """The server refuses a timestep because it is stopping."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.refuse(await call.expect_step(3), "STOPPING", "REOPEN")
    if not await call.wait_for_end(AGAIN_SECONDS):
        run.add_violation("act-on-action", "the client continued a call after a timestep was refused with REOPEN")
    call.finish()
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def values_differ(run: ScenarioRun) -> None:
    """Another client has sent another timestep with this number."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    run.lost_reason = "VALUES_DIFFER"
    await call.refuse(await call.expect_step(3), "VALUES_DIFFER", "STREAM_LOST")
    if not await call.wait_for_end(AGAIN_SECONDS):
        run.add_violation("act-on-action", "the client continued a stream that another client writes to")
    call.finish()
    await run.expect_no_open()


@scenario(FULL)
async def answer_lost(run: ScenarioRun) -> None:
    """The server applied a timestep and no longer remembers the answer."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.answer(await call.expect_step(3), send=False)
    await call.end("UNAVAILABLE")
    call = await run.open_next_call()
    await call.answer(await call.expect_step(3), output=b"")
    await run.serve_rest(call)


@scenario(FULL)
async def move(run: ScenarioRun) -> None:
    """The server asks the client to move, and ends the call a little later."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.write(move=pb.Move(message="by the script"))
    await call.wait_for_end(MOVE_SECONDS)  # what was sent before the client read it is no violation
    call.expect_silence()
    await call.answer_received()  # the window would allow more
    await asyncio.sleep(0.1)
    await call.end("UNAVAILABLE", "STOPPING", "REOPEN")
    await run.serve_rest(await run.open_next_call())


@scenario(FULL)
async def move_without_end(run: ScenarioRun) -> None:
    """The server asks the client to move, and never ends the call."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.write(move=pb.Move(message="by the script"))
    again = await run.next_call(LIMIT_SECONDS)
    call.finish()
    await again.send_opened(len(run.applied) + 1)
    await run.serve_rest(again)


async def wait_in_flight(call: Call, count: int, seconds: float) -> None:
    """Waits until a number of timesteps are in flight, for a limited time."""
    end = time.monotonic() + seconds
    while call.in_flight < count and time.monotonic() < end:  # noqa: ASYNC110 - requests are counted where they are checked
        await asyncio.sleep(0.01)


@scenario(FULL)
async def full_window(run: ScenarioRun) -> None:
    """The server answers nothing until the window is full."""
    call = await run.open_next_call()
    await wait_in_flight(call, WINDOW, run.next_seconds)
    await wait_in_flight(call, WINDOW + 1, scenario_run.WATCH_SECONDS)
    await call.serve(*range(1, WINDOW + 1))
    await run.serve_rest(call)


@scenario(FULL, rows=MANY_ROWS)
async def nothing_is_stored(run: ScenarioRun) -> None:
    """The server answers, but stores nothing for a long time."""
    call = await run.open_next_call()
    kept_max = min(call.open_request.kept_max or MANY_ROWS, MANY_ROWS)
    for step in range(1, kept_max + 1):
        await call.serve(step, store=False)
    await asyncio.sleep(0.1)
    await call.send_durable(kept_max)
    await run.serve_rest(call)


@scenario(BOTH)
async def unknown_kind(run: ScenarioRun) -> None:
    """Between two answers the server sends an unknown kind of response, and what is durable."""
    call = await run.open_next_call(window_of_one=True)
    await call.serve(1)
    await call.write_bytes(b"\xfa\x01\x02\x08\x01")  # field 31, which no version has
    await call.send_durable(1)
    await call.serve(2)
    await run.serve_rest(call)


@scenario(BOTH)
async def break_at_close(run: ScenarioRun) -> None:
    """The call ends between the close and its answer."""
    call = await run.open_next_call()
    while (step := await call.next_step()) is not None:
        await call.answer(step)
    await call.end("UNAVAILABLE")
    await run.serve_rest(await run.open_next_call())


@scenario(FULL)
async def close_before_all_is_stored(run: ScenarioRun) -> None:
    """The server closes the stream, but not all answered timesteps are durable."""
    call = await run.open_next_call()
    while (step := await call.next_step()) is not None:
        await call.answer(step, store=False)
    await call.send_closed(durable=len(run.applied) - 1)
    if (again := await run.wait_for_open(AGAIN_SECONDS)) is None:
        run.add_violation(
            "close-until-stored", "the stream was not opened again, although its last timestep is not durable"
        )
        return
    await again.send_opened(len(run.applied) + 1)
    await run.serve_rest(again)


@scenario(BOTH)
async def away(run: ScenarioRun) -> None:
    """The server is unavailable for a while."""
    call = await run.open_next_call()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")

    async def fail_next() -> None:
        await (await run.next_call()).end("UNAVAILABLE")

    await check_back_off(run, fail_next)
    await run.serve_rest(await run.open_next_call())


@scenario(BOTH)
async def no_more_calls(run: ScenarioRun) -> None:
    """The gRPC library of the server refuses a call because it has too many."""
    call = await run.open_next_call()
    await call.serve(1)
    await call.end("RESOURCE_EXHAUSTED")
    await run.serve_rest(await run.open_next_call())
