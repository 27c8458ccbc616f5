"""What is played to clients that stream: each scenario is a script, the levels it is for, and how many timesteps it needs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance.stage import Call, Stage
from serving.conformance.toy import WINDOW, pack

Script = Callable[[Stage], Awaitable[None]]

ROWS = 20
# More than a client keeps that says so, and less than takes long.
MANY_ROWS = 1200
BOTH = ("simple", "full")
FULL = ("full",)
# How often a client may ask a server that is away: the waits between tries are drawn from 50 ms, 100 ms, 200 ms, ...
AWAY_SECONDS, OPENS_WHILE_AWAY_MAX = 1.0, 20
RETRY_SECONDS = 0.3
# Until a client acts that has been told to: it does so at once.
AGAIN_SECONDS = 5.0
# The limit of 10 s on an open, and as much again for a slow machine.
LIMIT_SECONDS = 20.0
UNKNOWN_REASON = 999


class Scenario(NamedTuple):
    """A script, what it shows, and how many timesteps a client is to send."""

    play: Script
    levels: tuple[str, ...]
    rows: int

    @property
    def sentence(self) -> str:
        """What is played."""
        return (self.play.__doc__ or "").split("\n")[0]


SCENARIOS: dict[str, Scenario] = {}


def scenario(levels: tuple[str, ...], rows: int = ROWS) -> Callable[[Script], Script]:
    """Puts a script on the list, under its name."""

    def add(script: Script) -> Script:
        SCENARIOS[getattr(script, "__name__").replace("_", "-")] = Scenario(script, levels, rows)  # noqa: B009 - a callable has one
        return script

    return add


@scenario(BOTH)
async def plain(stage: Stage) -> None:
    """Nothing breaks."""
    await stage.rest(await stage.open())


@scenario(BOTH)
async def call_ends(stage: Stage) -> None:
    """The call ends UNAVAILABLE between two timesteps."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def lost_answer(stage: Stage) -> None:
    """A timestep is applied, and the call ends before its answer."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.answer(await call.expect(3), send=False)
    await call.end("UNAVAILABLE")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def internal(stage: Stage) -> None:
    """The call ends INTERNAL, without a word of the service's, as some libraries tell it."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("INTERNAL")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def gone_before_opened(stage: Stage) -> None:
    """The first call ends before its open is answered."""
    await (await stage.call()).end("UNAVAILABLE")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def silent_open(stage: Stage) -> None:
    """The server does not answer an open after a break."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    call = await stage.call()
    if not await call.gone(LIMIT_SECONDS):
        stage.broke("open-limit", f"the open was waited for longer than {LIMIT_SECONDS:g} s")
        await call.end("UNAVAILABLE")
    call.finish()
    await stage.rest(await stage.open())


@scenario(FULL)
async def crash(stage: Stage) -> None:
    """The server dies with answered timesteps that it had not stored."""
    call = await stage.open(alone=True)
    await call.serve(1, 2)
    await call.serve(3, 4, store=False)
    await call.end("UNAVAILABLE")
    del stage.history[2:]
    await stage.rest(await stage.open())


@scenario(FULL)
async def crash_and_other_bits(stage: Stage) -> None:
    """A replay is answered otherwise than it was before."""
    call = await stage.open(alone=True)
    await call.serve(1, 2, store=False)
    await call.end("UNAVAILABLE")
    stage.history.clear()
    call = await stage.open(alone=True)
    await call.answer(await call.expect(1), output=pack(-1), store=False)
    stage.lost = "DIVERGED"
    if not await call.gone(AGAIN_SECONDS):
        stage.broke("diverged", "the client went on after a replay was answered otherwise")
        await call.end("UNAVAILABLE")
    call.finish()
    await stage.nobody_opens()


async def lost_by(stage: Stage, call: Call, code: str, reason: str, action: str = "STREAM_LOST") -> None:
    """Ends a call for good.

    Some libraries tell INTERNAL instead when a write is under way; a client that opens again is refused, and that is the end.
    """
    stage.lost = reason
    by_end = await call.lose(code, reason, action)
    if by_end and call.is_open and (again := await stage.opens_soon()) is not None:
        await again.lose(code, reason, action)
    await stage.nobody_opens()
    call.finish()


@scenario(BOTH)
async def state_lost(stage: Stage) -> None:
    """The store has lost timesteps that the client cannot send again."""
    call = await stage.open(alone=True)
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    await lost_by(stage, await stage.call(), "DATA_LOSS", "STATE_LOST")


@scenario(BOTH)
async def taken_over(stage: Stage) -> None:
    """Another client opens the stream while the call is open."""
    call = await stage.open(alone=True)
    await call.serve(1, 2)
    await lost_by(stage, call, "ABORTED", "TAKEN_OVER")


@scenario(BOTH)
async def taken_over_meanwhile(stage: Stage) -> None:
    """Another client has opened the stream while the server was away."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    await lost_by(stage, await stage.call(), "ABORTED", "TAKEN_OVER")


@scenario(BOTH)
async def unknown_reason_reopen(stage: Stage) -> None:
    """The call ends with a reason that the client cannot know, and the action REOPEN."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE", "REASON_OF_TOMORROW", "REOPEN")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def unknown_reason_lost(stage: Stage) -> None:
    """The call ends with a reason that the client cannot know, and the action STREAM_LOST."""
    call = await stage.open()
    await call.serve(1, 2)
    await lost_by(stage, call, "UNAVAILABLE", "REASON_OF_TOMORROW")


@scenario(BOTH)
async def unknown_action(stage: Stage) -> None:
    """The call ends with an action that the client cannot know."""
    call = await stage.open()
    await call.serve(1, 2)
    await lost_by(stage, call, "UNAVAILABLE", "REASON_OF_TOMORROW", "ACTION_OF_TOMORROW")


@scenario(BOTH)
async def drop(stage: Stage) -> None:
    """A timestep is refused for good, with others in flight behind it."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.refuse(await call.expect(3), "NOT_FINITE", "DROP")
    await call.serve(3, 4)
    await stage.rest(call)


@scenario(BOTH)
async def drop_by_unknown_reason(stage: Stage) -> None:
    """A timestep is refused for good, for a reason that the client cannot know."""
    call = await stage.open()
    await call.refuse(await call.expect(1), UNKNOWN_REASON, "DROP")
    await stage.rest(call)


@scenario(BOTH)
async def drop_and_break(stage: Stage) -> None:
    """The call ends when a timestep was refused, and those in flight behind it are not answered."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.refuse(await call.expect(3), "MODEL_FAILED", "DROP")
    await asyncio.sleep(0.1)
    await call.end("UNAVAILABLE")
    await stage.rest(await stage.open())


@scenario(BOTH)
async def retry(stage: Stage) -> None:
    """A timestep finds no room, and shall come again after a time."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.refuse(await call.expect(3), "OVERLOADED", "RETRY", RETRY_SECONDS)
    refused = time.monotonic()
    step = await call.expect(3)
    if (waited := time.monotonic() - refused) < RETRY_SECONDS * 0.95:
        stage.broke("retry-after", f"timestep 3 came again after {waited:.2f} s, expected {RETRY_SECONDS:g} s")
    await call.answer(step)
    await stage.rest(call)


@scenario(BOTH)
async def stopping(stage: Stage) -> None:
    """A timestep is refused because the server stops."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.refuse(await call.expect(3), "STOPPING", "REOPEN")
    if not await call.gone(AGAIN_SECONDS):
        stage.broke("act-on-action", "the client went on with a call whose timestep was refused with REOPEN")
    call.finish()
    await stage.rest(await stage.open())


@scenario(BOTH)
async def values_differ(stage: Stage) -> None:
    """Another client has sent another timestep under this number."""
    call = await stage.open()
    await call.serve(1, 2)
    stage.lost = "VALUES_DIFFER"
    await call.refuse(await call.expect(3), "VALUES_DIFFER", "STREAM_LOST")
    if not await call.gone(AGAIN_SECONDS):
        stage.broke("act-on-action", "the client went on with a stream that another client writes to")
    call.finish()
    await stage.nobody_opens()


@scenario(FULL)
async def answer_lost(stage: Stage) -> None:
    """A timestep was applied, and its answer is no longer remembered."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.answer(await call.expect(3), send=False)
    await call.end("UNAVAILABLE")
    call = await stage.open()
    await call.answer(await call.expect(3), output=b"")
    await stage.rest(call)


@scenario(FULL)
async def move(stage: Stage) -> None:
    """The server asks the client to move, and ends the call a little later."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.write(move=pb.Move(message="by the script"))
    await asyncio.sleep(0.1)
    call.be_silent()
    await call.serve_sent()  # there would be room for more
    await asyncio.sleep(0.1)
    await call.end("UNAVAILABLE", "STOPPING", "REOPEN")
    await stage.rest(await stage.open())


@scenario(FULL)
async def move_without_end(stage: Stage) -> None:
    """The server asks the client to move, and never ends the call."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.write(move=pb.Move(message="by the script"))
    again = await stage.call(LIMIT_SECONDS)
    call.finish()
    await again.opened(len(stage.history) + 1)
    await stage.rest(again)


@scenario(FULL)
async def full_window(stage: Stage) -> None:
    """The server answers nothing until all that may be is in flight."""
    call = await stage.open()
    await asyncio.sleep(0.3)
    await call.serve(*range(1, WINDOW + 1))
    await stage.rest(call)


@scenario(FULL, rows=MANY_ROWS)
async def nothing_is_stored(stage: Stage) -> None:
    """The server answers, and for long stores nothing."""
    call = await stage.open()
    kept_max = min(call.ask.kept_max or MANY_ROWS, MANY_ROWS)
    for step in range(1, kept_max + 1):
        await call.serve(step, store=False)
    await asyncio.sleep(0.1)
    await call.tell_durable(kept_max)
    await stage.rest(call)


@scenario(BOTH)
async def unknown_kind(stage: Stage) -> None:
    """The server tells what the client cannot know, and what is stored, between two answers."""
    call = await stage.open(alone=True)
    await call.serve(1)
    await call.write_bytes(b"\xfa\x01\x02\x08\x01")  # field 31, which no version has
    await call.tell_durable(1)
    await call.serve(2)
    await stage.rest(call)


@scenario(BOTH)
async def break_at_close(stage: Stage) -> None:
    """The call ends between close and its answer."""
    call = await stage.open()
    while (step := await call.next()) is not None:
        await call.answer(step)
    await call.end("UNAVAILABLE")
    await stage.rest(await stage.open())


@scenario(FULL)
async def close_before_all_is_stored(stage: Stage) -> None:
    """The server closes the stream, with less stored than was answered."""
    call = await stage.open()
    while (step := await call.next()) is not None:
        await call.answer(step, store=False)
    await call.closed(durable=len(stage.history) - 1)
    if (again := await stage.opens_soon(AGAIN_SECONDS)) is None:
        stage.broke("close-until-stored", "the stream was not opened again, though its last timestep is not stored")
        return
    await again.opened(len(stage.history) + 1)
    await stage.rest(again)


@scenario(BOTH)
async def away(stage: Stage) -> None:
    """The server is away for a while."""
    call = await stage.open()
    await call.serve(1, 2)
    await call.end("UNAVAILABLE")
    ends, opens = time.monotonic() + AWAY_SECONDS, 0
    while time.monotonic() < ends:
        await (await stage.call()).end("UNAVAILABLE")
        opens += 1
    if opens > OPENS_WHILE_AWAY_MAX:
        stage.broke(
            "back-off", f"{opens} opens came within {AWAY_SECONDS:g} s, expected at most {OPENS_WHILE_AWAY_MAX}"
        )
    await stage.rest(await stage.open())


@scenario(BOTH)
async def no_more_calls(stage: Stage) -> None:
    """GRPC itself refuses a call, for it has too many."""
    call = await stage.open()
    await call.serve(1)
    await call.end("RESOURCE_EXHAUSTED")
    await stage.rest(await stage.open())
