"""Refused timesteps: retried, or failed to their caller; later ones continue in order."""

import asyncio
import logging

import pytest

from tests.scripted import closing, connected, sent, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate.client import (
    AnswerLost,
    ClientError,
    InvalidTimestep,
    ModelFailed,
    Overloaded,
    ServerUnavailable,
    StepGap,
    StoreUnavailable,
    TimestepRefused,
)


@pytest.mark.parametrize("reason", ["OVERLOADED", "STORE_UNAVAILABLE", "TOO_MANY_STREAMS"])
async def test_a_server_without_room_is_waited_for(reason: str) -> None:
    """As long as it asks for and up to half of it more; the user sees nothing, and order is kept."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason=reason, retry_after_ms=200)
        await call.refuse(2, reason="STEP_GAP")
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason=reason)  # without a time: the client chooses
        await call.refuse(2, reason="STEP_GAP")
        await call.serve(1, 2)
        await closing(call)

    async with connected(script) as (client, _, time), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
        assert time.slept == [pytest.approx(0.3), pytest.approx(0.075)]
        assert stream.reconnects == 0


@pytest.mark.parametrize(("reason", "error"), [("OVERLOADED", Overloaded), ("STORE_UNAVAILABLE", StoreUnavailable)])
async def test_waiting_for_room_has_an_end(reason: str, error: type[TimestepRefused]) -> None:
    """`reconnect_s` after its first refusal the caller gets the error; the next one takes its number."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason=reason, retry_after_ms=1000)
        await call.refuse(2, reason="STEP_GAP")
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason=reason, retry_after_ms=1000)
        await call.refuse(2, reason="STEP_GAP")
        await call.serve(1)
        await closing(call)

    async with connected(script, reconnect_s=1.5) as (client, server, _), client.open("a") as stream:
        refused, answered = await asyncio.gather(stream.step([1.0]), stream.step([2.0]), return_exceptions=True)
        assert isinstance(refused, error)
        assert refused.retry_after_s == 1.0
        assert (answered.step, server.history) == (1, [2.0])


async def test_a_client_that_does_not_retry_gets_the_error_at_once() -> None:
    """With `reconnect_s=0`."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason="OVERLOADED", retry_after_ms=1000)
        await closing(call)

    async with connected(script, reconnect_s=0) as (client, _, time), client.open("a") as stream:
        with pytest.raises(Overloaded):
            await stream.step([1.0])
        assert time.slept == []


@pytest.mark.parametrize(
    ("reason", "error"),
    [("WRONG_WIDTH", InvalidTimestep), ("NOT_FINITE", InvalidTimestep), ("MODEL_FAILED", ModelFailed)],
)
async def test_a_bad_timestep_does_not_affect_later_ones(reason: str, error: type[TimestepRefused]) -> None:
    """Its caller gets the error, and later ones are applied in order under consecutive numbers."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2, 3, 4)
        await call.refuse(2, reason=reason)
        await call.refuse(3, 4, reason="STEP_GAP")
        await call.serve(2, 3)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        steps = [stream.step([value]) for value in (1.0, 99.0, 3.0, 4.0)]
        one, bad, three, four = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(bad, error)
        assert (bad.reason, bad.next_step) == (reason, 2)
        assert [(answer.step, answer["sum"].item()) for answer in (one, three, four)] == [(1, 1), (2, 4), (3, 8)]
        assert (server.history, stream.next_step) == ([1.0, 3.0, 4.0], 4)


async def test_a_disconnect_after_a_refusal_brings_nothing_out_of_order() -> None:
    """The call ends before the server has answered the later ones."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1, 2, 3)
        await call.refuse(1, reason="WRONG_WIDTH")
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        steps = []
        for value in (99.0, 2.0, 3.0):
            steps.append(asyncio.create_task(stream.step([value])))
            await sent()
        bad, two, three = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(bad, InvalidTimestep)
        assert [two["sum"].item(), three["sum"].item()] == [2.0, 5.0]


async def test_a_timestep_that_was_applied_and_not_stored_keeps_its_number() -> None:
    """A SYNC server applied it and cannot store: the next one must not be taken for its repeat."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.refuse(1, reason="STORE_UNAVAILABLE", retry_after_ms=1000)
        await call.expect(1)
        await call.refuse(1, reason="STORE_UNAVAILABLE", retry_after_ms=1000)
        await call.serve(2)
        await closing(call)

    async with connected(script, reconnect_s=1) as (client, server, _), client.open("a", sync=True) as stream:
        with pytest.raises(AnswerLost, match="timestep 1 was applied, but could not be answered"):
            await stream.step([1.0])
        assert await sums(stream, [2.0]) == [3.0]
        assert server.history == [1.0, 2.0]


async def test_a_replay_that_finds_no_room_ends_the_stream() -> None:
    """Its answer was delivered, so it can be neither dropped nor failed."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        for _ in range(2):
            await call.expect_unapplied(1)
            await call.refuse(1, reason="OVERLOADED", retry_after_ms=1000)
        await call.gone()

    async with connected(first, second, reconnect_s=1) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await eventually(stream._ended_event.is_set, "the end")
        with pytest.raises(ServerUnavailable, match="timestep 1 could not be sent again for 1 s"):
            await stream.step([2.0])


async def test_a_refused_timestep_whose_caller_has_gone_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """There is no other caller."""
    cancelled = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await cancelled.wait()
        await call.refuse(1, reason="MODEL_FAILED")
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        step = asyncio.create_task(stream.step([1.0]))
        await eventually(lambda: stream._window._in_flight.sum() == 1, "the request")
        step.cancel()
        with caplog.at_level(logging.WARNING):
            cancelled.set()
            await eventually(lambda: stream.next_step == 1, "the refusal")
        assert "a timestep whose caller was cancelled was refused" in caplog.text
        assert await sums(stream, [2.0]) == [2.0]


async def test_a_cancelled_step_is_applied_once_and_its_prediction_dropped() -> None:
    """Nothing of the call is touched: the next one is answered on it."""
    cancelled = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await cancelled.wait()
        await call.answer(1)
        await call.serve(2)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        step = asyncio.create_task(stream.step([1.0]))
        await eventually(lambda: stream._window._in_flight.sum() == 1, "the request")
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        cancelled.set()
        assert await sums(stream, [2.0]) == [3.0]
        assert (server.history, stream.reconnects) == ([1.0, 2.0], 0)


async def test_a_full_buffer_makes_callers_wait() -> None:
    """Until the server reports what is stored; the first to come is the first to continue."""
    full = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open()
        assert call.ask.kept_max == 2
        await call.serve(1, 2)
        await full.wait()
        await call.durable(1)
        await call.serve(3)
        await call.durable(3)
        await call.serve(4, 5)
        await closing(call)

    async with connected(script, buffer_max=2) as (client, _, _), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
        waiting = [asyncio.create_task(stream.step([value])) for value in (3.0, 4.0, 5.0)]
        await asyncio.sleep(0)
        assert (stream.next_step, stream.durable_step) == (3, 0)
        full.set()
        assert [(await answer)["sum"].item() for answer in waiting] == [6.0, 10.0, 15.0]
        assert stream.durable_step == 3


async def test_a_refused_timestep_makes_room() -> None:
    """A buffer of one, and a timestep that will never be stored."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason="NOT_FINITE")
        await call.serve(1, durable=1)
        await closing(call)

    async with connected(script, buffer_max=1) as (client, _, _), client.open("a") as stream:
        bad, good = await asyncio.gather(stream.step([1.0]), stream.step([2.0]), return_exceptions=True)
        assert isinstance(bad, InvalidTimestep)
        assert good["sum"].item() == 2.0


async def test_callers_that_wait_for_room_get_the_error() -> None:
    """All of them, though there will never be room."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await eventually(lambda: len(stream._submit_lock._waiters or ()) == 1, "the waiting")
        await call.end("TAKEN_OVER")

    async with connected(script, buffer_max=1) as (client, _, _), client.open("a") as stream:
        steps = [stream.step([value]) for value in (1.0, 2.0, 3.0)]
        answers = await asyncio.gather(*steps, return_exceptions=True)
        assert [getattr(answer, "reason", "") for answer in answers] == ["TAKEN_OVER"] * 3


async def test_a_step_that_is_cancelled_while_it_waits_for_room_was_never_sent() -> None:
    """It had no number yet."""
    cancelled = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await cancelled.wait()
        await call.durable(1)
        await call.serve(2, durable=2)
        await closing(call)

    async with connected(script, buffer_max=1) as (client, server, _), client.open("a") as stream:
        await sums(stream, [1.0])
        step = asyncio.create_task(stream.step([99.0]))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        cancelled.set()
        assert await sums(stream, [2.0]) == [3.0]
        assert server.history == [1.0, 2.0]


async def test_an_old_answer_can_be_requested_again() -> None:
    """By its number; a client that was restarted may have applied what it never saw the answer of."""

    async def script(call: Call) -> None:
        call.server.history[:] = [1.0, 2.0]
        await call.open()
        await call.expect(2)
        await call.answer(2)
        await call.expect(1)
        await call.answer(1, outputs=[])
        await call.serve(3)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        assert (await stream.step([99.0], step=2))["sum"].item() == 3.0
        assert dict(await stream.step([99.0], step=1)) == {}  # no longer remembered
        assert (await stream.step([3.0], step=3))["sum"].item() == 6.0
        assert server.history == [1.0, 2.0, 3.0]


async def test_a_number_ahead_of_the_stream_is_a_gap() -> None:
    """It is not sent; the stream stays usable."""
    async with connected(closing_after_open) as (client, _, _), client.open("a") as stream:
        with pytest.raises(StepGap, match="got 5, expected 1") as caught:
            await stream.step([1.0], step=5)
        assert caught.value.next_step == 1


async def closing_after_open(call: Call) -> None:
    """Opens, and has nothing more to do."""
    await call.open()
    await closing(call)


async def test_a_number_that_is_in_flight_is_not_given_twice() -> None:
    """Its answer is not there yet to be asked for again."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        one, again = await asyncio.gather(stream.step([1.0]), stream.step([2.0], step=1), return_exceptions=True)
        assert one["sum"].item() == 1.0
        assert isinstance(again, InvalidTimestep)


async def test_values_may_be_named() -> None:
    """A name left out is missing; a name that the model does not have is refused here."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        assert (await stream.step({"x": 4.0}))["sum"].item() == 4.0
        with pytest.raises(InvalidTimestep, match="no feature is called y; the model has x"):
            await stream.step({"y": 4.0})


def test_every_error_has_its_type() -> None:
    """One root, a reason, and a sentence at each class."""
    from tidegate.client import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, ClientError) and kind.__doc__ for kind in kinds)
    drawn = set(errors.__doc__.split())
    assert {kind.__name__ for kind in kinds} <= drawn
