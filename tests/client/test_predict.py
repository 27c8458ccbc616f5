"""Many rows at once: sent ahead, answered in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.scripted import closing, connected, sent, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate.client import InvalidTimestep, Prediction, TakenOver


async def collect(predictions: AsyncIterator[Prediction], got: list[float]) -> None:
    """Adds the sums that come to `got`, up to the error."""
    async for prediction in predictions:
        got.append(prediction["sum"].item())  # noqa: PERF401 - what came before an error counts


async def one_by_one(rows: list[list[float]]) -> AsyncIterator[list[float]]:
    """Rows that come so slowly that each has a message of its own."""
    for row in rows:
        yield row
        await sent()


async def test_rows_are_sent_ahead_and_answered_in_order() -> None:
    """As many as the server remembers answers for are under way before the first is answered."""

    async def script(call: Call) -> None:
        await call.open(answers_remembered=3)
        await call.expect(1, 2, 3)
        await call.answer(1, 2, 3)
        await call.serve(4, 5)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        got = [(answer.step, answer["sum"].item()) async for answer in stream.predict([[1.0]] * 5)]
        assert got == [(step, step) for step in range(1, 6)]


async def test_no_rows_give_no_predictions() -> None:
    """Nothing is sent."""

    async def script(call: Call) -> None:
        await call.open()
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        assert [answer async for answer in stream.predict([])] == []


async def test_a_prediction_does_not_wait_for_the_next_row() -> None:
    """Rows that come live, a minute apart, are answered as they come."""
    yielded = asyncio.Event()

    async def rows() -> AsyncIterator[list[float]]:
        yield [1.0]
        await yielded.wait()
        yield [2.0]

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        got = []
        async for answer in stream.predict(rows()):
            got.append(answer["sum"].item())
            yielded.set()
        assert got == [1.0, 3.0]


async def test_predictions_continue_after_a_disconnect() -> None:
    """Those under way are had again, the rest follows."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1, 2)
        await call.answer(1)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.expect(2)
        await call.answer(2)
        await call.serve(3)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        rows = one_by_one([[1.0], [2.0], [3.0]])
        assert [answer["sum"].item() async for answer in stream.predict(rows)] == [1.0, 3.0, 6.0]


async def test_no_row_after_a_refused_one_is_applied() -> None:
    """Those that were sent ahead are not sent again: the user goes on where it stopped, and others are not harmed."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2, 3)
        await call.refuse(2, reason="WRONG_WIDTH")
        await call.refuse(3, reason="STEP_GAP")
        await call.serve(2)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        got: list[float] = []
        with pytest.raises(InvalidTimestep):
            await collect(stream.predict([[1.0], [99.0], [3.0]]), got)
        assert (got, stream.next_step) == ([1.0], 2)
        assert await sums(stream, [5.0]) == [6.0]
        assert server.history == [1.0, 5.0]


async def test_no_row_that_waited_for_room_after_a_refused_one_is_applied() -> None:
    """The refusal makes room, and the row comes too late."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2)
        await eventually(stream._submit_lock.locked, "waiting for room")
        await call.refuse(2, reason="WRONG_WIDTH")
        await closing(call)

    async with connected(script, buffer_max=2) as (client, _server, _), client.open("a") as stream:
        with pytest.raises(InvalidTimestep):
            await collect(stream.predict([[1.0], [99.0], [3.0]]), [])
        assert stream.next_step == 2


async def test_leaving_early_drops_predictions_only() -> None:
    """Rows that were read ahead are applied, as when a step is cancelled; the next prediction is the next row's."""
    left = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open(answers_remembered=3)
        await call.expect(1, 2, 3)
        await call.answer(1)
        await left.wait()
        await call.answer(2, 3)
        await call.serve(4)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        async with aclosing(stream.predict(one_by_one([[1.0]] * 3))) as predictions:
            async for _ in predictions:
                break
        left.set()
        assert await sums(stream, [1.0]) == [4.0]
        assert len(server.history) == 4


async def test_the_end_of_the_stream_ends_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its error, once; the later ones leave no warning about errors that were never retrieved."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect(2, 3)
        await call.end("TAKEN_OVER")

    async with connected(script) as (client, _, _), client.open("a") as stream:
        submit, tickets = stream._submit, []

        async def noted(*arguments: Any) -> Any:
            tickets.append(await submit(*arguments))
            return tickets[-1]

        monkeypatch.setattr(stream, "_submit", noted)
        got: list[float] = []
        with pytest.raises(TakenOver):
            await collect(stream.predict(one_by_one([[1.0]] * 3)), got)
        assert got == [1.0]
        assert [ticket._log_traceback for ticket in tickets] == [False] * 3


async def test_an_error_of_the_rows_is_the_users() -> None:
    """It comes through; the stream stays usable."""

    async def rows() -> AsyncIterator[list[float]]:
        yield [1.0]
        raise KeyError("a bad file")

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        with pytest.raises(KeyError, match="a bad file"):
            await collect(stream.predict(rows()), [])
        assert await sums(stream, [1.0]) == [2.0]


async def test_rows_that_are_still_awaited_are_released() -> None:
    """Cancelled while the next row is on its way: nothing waits for it any more."""
    closed = asyncio.Event()

    async def rows() -> AsyncIterator[list[float]]:
        yield [1.0]
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        predictions = stream.predict(rows())
        await anext(predictions)
        waiting = asyncio.ensure_future(anext(predictions))
        await asyncio.sleep(0)  # it reads the next row
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert closed.is_set()
