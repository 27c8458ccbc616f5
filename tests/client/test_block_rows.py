"""Rows of many streams on one call: how they are sent and answered, and how callers wait for room."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, closing, column, connected, opened_and_closed, sums
from tests.timeouts import eventually
from tidegate.client import ClientError, InvalidTimestep

# Sent and answered -----------------------------------------------------------------------------------------------------


async def test_a_block_is_one_message_there_and_one_back() -> None:
    """A row a stream, in columns."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 3.0)]
        assert await call.serve_block() == [("a", 2, 4.0), ("b", 2, 5.0), ("c", 2, 6.0)]
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        answer = await block.step(np.array(column(4, 5, 6)))
        assert answer["sum"].tolist() == [[5.0], [7.0], [9.0]]
        assert (answer.steps.tolist(), answer["count"].tolist()) == ([2, 2, 2], [2, 2, 2])
        assert (list(answer), len(answer)) == (["sum", "count"], 2)
        assert not answer.duplicates.any()
        assert block.next_steps.tolist() == [3, 3, 3]


async def test_rows_name_their_streams() -> None:
    """One that stands several times catches up, in the order its rows stand."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("c", 1, 1.0), ("a", 1, 2.0), ("c", 2, 3.0)]
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3), [2, 0, 2])
        assert (answer["sum"].ravel().tolist(), answer.steps.tolist()) == ([1.0, 2.0, 4.0], [1, 1, 2])
        assert (await block.step(np.zeros((0, 1)), [])).steps.tolist() == []


async def test_catching_up_keeps_to_the_window() -> None:
    """Half of it a message, so that one is answered while the next is on its way."""

    async def script(call: BlockCall) -> None:
        call.remembered = 4
        await call.open_streams()
        assert [step for _, step, _ in await call.read_block()] == [1, 2]
        errors = call.apply()
        first = call.number, call.rows
        assert [step for _, step, _ in await call.read_block()] == [3, 4]
        second = call.number, call.rows
        call.number, call.rows = first
        await call.answer_block(errors)
        call.number, call.rows = second
        await call.answer_block(call.apply())
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0] * 6, [0] * 6) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("x", "rows", "what"),
    [
        (column(1, 2), None, r"x: got shape \(2, 1\), expected numbers of shape \(3, 1\)"),
        ([[1.0, 2.0]] * 3, None, r"x: got shape \(3, 2\)"),
        ([1.0, 2.0, 3.0], None, r"x: got shape \(3,\)"),
        (column(1), [3], "rows: got 3 to 3, expected a list of indices from 0 to 2"),
        (column(1), [-1], "rows: got -1 to -1"),
        (column(1), [0.5], r"rows: got \[0.5\]"),
        (column(1), [True], r"rows: got \[True\]"),
        (column(1), [[0]], r"rows: got \[\[0\]\]"),
        (column(1), ["a"], r"rows: got \['a'\]"),
        (column(1), 0, "rows: got 0"),
        ([["1.5"], [2.0], [3.0]], None, r"x: got \[\['1.5'\]"),
        ([[None], [2.0], [3.0]], None, r"x: got \[\[None\]"),
        ([[1.0, 2.0], [2.0], [3.0]], None, "x: got .* expected numbers of shape"),
    ],
)
async def test_an_invalid_block_argument_is_reported(x: Any, rows: Any, what: str) -> None:
    """Nothing of it is sent."""
    async with connected(opened_and_closed) as (client, _, _), client.block(NAMES) as block:
        with pytest.raises(InvalidTimestep, match=what):
            await block.step(x, rows)


async def test_blocks_are_sent_ahead_and_answered_in_order() -> None:
    """All of some streams, or of every one; several wait for one answer."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        while len(call.server.histories["a"]) < 4:
            await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a", "b"]) as block:
        blocks = [column(1, 2), (column(3), [0]), np.array(column(5, 6)), (column(7), np.array([0]))]
        got = [answer["sum"].ravel().tolist() async for answer in block.predict(blocks)]
        assert got == [[1.0, 2.0], [4.0], [9.0, 8.0], [16.0]]


async def test_an_answer_does_not_wait_for_the_next_block() -> None:
    """Blocks that come live are answered as they come."""
    yielded = asyncio.Event()

    async def blocks() -> AsyncIterator[Any]:
        yield column(1)
        await yielded.wait()
        yield column(2)

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a"]) as block:
        got = []
        async for answer in block.predict(blocks()):
            got.append(answer["sum"].item())
            yielded.set()
        assert got == [1.0, 3.0]


async def test_blocks_that_are_left_early_are_applied() -> None:
    """Those that were read ahead."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        while len(call.server.histories["a"]) < 3:
            await call.serve_block()
        await closing(call)

    async with connected(script) as (client, server, _):
        async with client.block(["a"]) as block, aclosing(block.predict([column(1)] * 3)) as answers:
            async for _ in answers:
                break
        assert server.histories["a"] == [1.0] * 3


# Room ------------------------------------------------------------------------------------------------------------------


async def test_a_full_buffer_makes_callers_wait() -> None:
    """Until the server has stored some; first come, first served."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.serve_block()
        await eventually(lambda: len(waiting) == 2 and block._submit_lock.locked(), "the wait")
        await call.tell_durable(a=2)
        assert await call.serve_block() == [("a", 3, 3.0), ("b", 1, 4.0)]
        assert await call.serve_block() == [("a", 4, 5.0)]
        await closing(call)

    waiting: list[Any] = []
    async with connected(script, buffer_max=2) as (client, _, _), client.block(["a", "b"]) as block:
        assert await sums(block, [1.0], [0]) == [1.0]
        assert await sums(block, [2.0], [0]) == [3.0]
        waiting.append(asyncio.create_task(sums(block, [3.0, 4.0], [0, 1])))
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(sums(block, [5.0], [0])))
        assert await asyncio.gather(*waiting) == [[6.0, 4.0], [11.0]]


async def test_more_rows_than_a_stream_may_keep_go_in_as_there_is_room() -> None:
    """The caller waits until the last is answered."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        while len(call.server.histories["a"]) < 7:
            await call.read_block()
            errors = call.apply()
            call.server.stored["a"] = len(call.server.histories["a"])
            await call.answer_block(errors)
        await closing(call)

    async with connected(script, buffer_max=2) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0] * 7, [0] * 7) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_cancelled_caller_keeps_the_state_consistent() -> None:
    """While it waits for room nothing more is put in line; while it waits for an answer, the row is applied all the same."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await eventually(waiting.cancelled, "the cancellation")
        await call.answer_block(call.apply())
        await call.tell_durable(a=2)
        assert await call.serve_block() == [("a", 3, 9.0)]
        await closing(call)

    async with connected(script, buffer_max=2) as (client, server, _), client.block(["a"]) as block:
        waiting = asyncio.create_task(block.step(column(1, 2, 3), [0, 0, 0]))
        await eventually(lambda: block.next_steps[0] == 3, "two rows in line")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await sums(block, [9.0], [0]) == [12.0]
        assert server.histories["a"] == [1.0, 2.0, 9.0]
        assert not block._window._blocks


async def test_callers_that_wait_for_room_get_the_error_of_the_block() -> None:
    """And so does the one behind, and the one after."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await eventually(block._submit_lock.locked, "the wait")
        await call.end("STATE_LOST")

    async with connected(script, buffer_max=1) as (client, _, _), client.block(["a"]) as block:
        await block.step(column(1))
        both = await asyncio.gather(*[block.step(column(2)) for _ in range(2)], return_exceptions=True)
        assert {type(error).__name__ for error in both} == {"DataLost"}
        with pytest.raises(ClientError, match="STATE_LOST"):
            await block.step(column(3))
