"""Rows that are refused and streams that are lost on a call with many streams: the others go on."""

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, closing, column, connected, error_of, sums
from tests.scripted import let_time_out
from tests.timeouts import eventually
from tidegate.client import (
    AnswerLost,
    ClientError,
    InvalidTimestep,
    ModelFailed,
    Overloaded,
    StoreUnavailable,
    StreamExpired,
    StreamLost,
    StreamNotFound,
    TakenOver,
)
from tidegate.v1 import tidegate_pb2 as pb

# Refusals --------------------------------------------------------------------------------------------------------------


async def test_a_refused_row_leaves_the_others_alone() -> None:
    """And those of its stream behind it move up."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        assert await call.serve_block() == [("b", 1, 4.0)]
        await closing(call)

    async with connected(script) as (client, server, _), client.block(NAMES) as block:
        answer = await block.step(column(1, -2, 3, 4), [0, 1, 2, 1])
        assert list(answer.errors) == [1]
        assert isinstance(answer.errors[1], InvalidTimestep)
        assert answer.steps.tolist() == [1, 0, 1, 1]
        assert answer["sum"].ravel().tolist() == [1.0, 0.0, 3.0, 4.0]
        assert server.histories["b"] == [4.0]
        assert block.next_steps.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("reason", "error"),
    [("MODEL_FAILED", ModelFailed), ("WRONG_WIDTH", InvalidTimestep)],
)
async def test_a_refusal_has_a_name(reason: str, error: type[ClientError]) -> None:
    """Of its reason."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: reason})
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert type(answer.errors[1]) is error
        assert list(answer.errors) == [1]


@pytest.mark.parametrize("reason", ["OVERLOADED", "STORE_UNAVAILABLE", "TOO_MANY_STREAMS"])
async def test_a_row_without_room_is_sent_again(reason: str) -> None:
    """After the wait that was asked for; meanwhile the others go on."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: error_of(reason, retry_after_ms=200)})
        assert await call.serve_block() == [("a", 2, 10.0)]
        woken.set()
        assert await call.serve_block() == [("b", 1, 2.0), ("b", 2, 4.0)]
        await closing(call)

    async with connected(script) as (client, _, time):
        woken, slept = asyncio.Event(), []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await woken.wait()

        object.__setattr__(time.backoff, "sleep", sleep)
        async with client.block(NAMES) as block:
            waiting = asyncio.create_task(block.step(column(1, 2, 3, 4), [0, 1, 2, 1]))
            await eventually(lambda: bool(slept), "the refusal")
            assert await sums(block, [10.0], [0]) == [11.0]
            answer = await waiting
            assert (answer["sum"].ravel().tolist(), answer.errors) == ([1.0, 2.0, 3.0, 6.0], {})
            assert slept == [pytest.approx(0.3)]


@pytest.mark.parametrize(("reason", "error"), [("OVERLOADED", Overloaded), ("STORE_UNAVAILABLE", StoreUnavailable)])
async def test_waiting_for_room_has_an_end(reason: str, error: type[ClientError]) -> None:
    """The row fails `reconnect_s` after its first refusal; the next one takes its number, and has a time-out of its own."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        for _ in range(4):
            await call.serve_block({0: error_of(reason, retry_after_ms=1000)})
        await call.serve_block()
        await closing(call)

    async with connected(script, reconnect_s=2.5) as (client, server, time), client.block(["a"]) as block:
        answer = await block.step(column(1, 2), [0, 0])
        assert isinstance(answer.errors[0], error)
        assert (answer.steps.tolist(), server.histories["a"]) == ([0, 1], [2.0])
        assert time.slept == [pytest.approx(1.5)] * 3


@pytest.mark.parametrize("reason", ["OVERLOADED", "STORE_UNAVAILABLE"])
async def test_a_block_without_room_is_sent_again(reason: str) -> None:
    """Whole."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.refuse_block(reason, retry_after_ms=200)
        assert await call.serve_block() == [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 3.0), ("a", 2, 4.0)]
        await closing(call)

    async with connected(script) as (client, _, time), client.block(NAMES) as block:
        assert await sums(block, [1, 2, 3, 4], [0, 1, 2, 0]) == [1.0, 2.0, 3.0, 5.0]
        assert time.slept == [pytest.approx(0.3)]


async def test_an_invalid_block_is_reported() -> None:
    """The server finds its columns wrong: that is nothing that waiting mends."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.refuse_block("INVALID_FIELD")
        await call.gone()

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        with pytest.raises(StreamLost, match="refused a block"):
            await block.step(column(1, 2, 3))


async def test_an_applied_row_without_an_answer_is_reported() -> None:
    """Its number is taken: the next has the next."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.apply()
        await call.answer_block({1: error_of("STORE_UNAVAILABLE", step=1, next_step=2)})
        assert await call.serve_block() == [("b", 2, 5.0)]
        await closing(call)

    async with connected(script, reconnect_s=0) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert isinstance(answer.errors[1], AnswerLost)
        assert answer.steps.tolist() == [1, 1, 1]
        assert await sums(block, [5.0], [1]) == [7.0]


async def test_a_replay_that_finds_no_room_loses_its_stream() -> None:
    """It can be neither dropped nor failed; the others continue."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({0: "OVERLOADED", 1: "MODEL_FAILED"})
        await call.serve_block({0: "OVERLOADED"})
        await call.serve_block()
        assert await call.close_streams() == ["c"]

    async with connected(first, second, reconnect_s=0.05) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        await eventually(lambda: len(block.lost) == 2, "the loss of a and b")
        answer = await block.step(column(4, 5, 6))
        assert answer["sum"].ravel().tolist() == [0.0, 0.0, 9.0]
    assert {stream: type(error).__name__ for stream, error in block.lost.items()} == {
        0: "ServerUnavailable",
        1: "Diverged",
    }


async def test_a_replay_has_its_own_time() -> None:
    """That it found no room when it was new is long ago."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({0: error_of("OVERLOADED", retry_after_ms=1000)})
        await call.serve_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({0: error_of("OVERLOADED", retry_after_ms=1000)})
        await call.serve_block()
        await closing(call)

    async with connected(first, second, reconnect_s=1.4) as (client, _, time), client.block(["a"]) as block:
        assert await sums(block, [1.0]) == [1.0]
        await block.close()
        assert block.lost == {}
        assert time.slept == [pytest.approx(1.5), 0.0, pytest.approx(1.5)]


async def test_a_gap_that_cannot_be_opens_the_streams_again() -> None:
    """The server has lost its position; an open reports it."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.answer_block({1: error_of("STEP_GAP", step=1, next_step=1)})
        await call.gone()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a", "b"]) as block:
        answer = await block.step(column(1, 2))
        assert answer["sum"].ravel().tolist()[1] == 2.0
        assert block.reconnects == 1


async def test_a_refusal_without_a_caller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its caller has gone."""
    cancelled = asyncio.Event()

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await cancelled.wait()
        await call.answer_block(call.apply())
        while not call.server.histories["a"]:
            await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a", "b"]) as block:
        step = asyncio.create_task(block.step(column(-1, 2)))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        cancelled.set()
        with caplog.at_level(logging.WARNING):
            await block.step(column(1, 2))
        assert "1 of 2 timesteps whose caller was cancelled" in caplog.text


# Streams that are lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "error"),
    [("TAKEN_OVER", TakenOver), ("STREAM_NOT_FOUND", StreamNotFound), ("STREAM_EXPIRED", StreamExpired)],
)
async def test_the_end_of_a_stream_affects_no_other(reason: str, error: type[ClientError]) -> None:
    """The others continue; its callers get the error, later ones too."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.end_streams(reason, "b")
        await call.answer_block(call.apply({1: reason}))
        assert await call.serve_block() == [("a", 2, 4.0), ("c", 2, 6.0)]
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        for _ in range(2):
            answer = await block.step(column(4, 5, 6))
            assert list(answer.errors) == [1]
            assert type(answer.errors[1]) is error
        assert block.lost == answer.errors
        assert answer["sum"].ravel().tolist() == [8.0, 0.0, 12.0]


async def test_a_row_may_be_the_first_sign_that_its_stream_has_ended() -> None:
    """It is lost all the same, and not sent again."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "TAKEN_OVER"})
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert isinstance(answer.errors[1], TakenOver)
        assert list(block.lost) == [1]


async def test_a_block_whose_streams_are_all_lost_ends_quietly() -> None:
    """Every row has the error, though the call has ended; there is nothing to close."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.end_streams("TAKEN_OVER", *NAMES)
        await call.end(code="FAILED_PRECONDITION")

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        await eventually(lambda: len(block.lost) == 3, "the loss")
        for _ in range(2):
            assert list((await block.step(column(1, 2, 3))).errors) == [0, 1, 2]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_block_whose_streams_are_all_lost_is_left_on_an_open_call(ends: bool) -> None:
    """With a half-close; a server that does not end the call is not waited for longer than `timeout_s`."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.end_streams("TAKEN_OVER", *NAMES)
        assert await call.read() is None
        if not ends:
            let_time_out(client)
            await call.gone()

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        await eventually(lambda: len(block.lost) == 3, "the loss")


async def test_an_unknown_handle_is_reported() -> None:
    """The server violates the protocol, so the call ends."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.write(ended=pb.EndedStreams(handles=[7], error=error_of("TAKEN_OVER")))
        await call.gone()

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamLost, match="never gave out"):
            async with client.block(NAMES) as block:
                await block._ended_event.wait()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"steps": b"12345678"},
        {"steps": b"123"},
        {"outputs": [b"1234" * 3]},
        {"outputs": [b"1234", b"12345678" * 3]},
        {"durable_steps": b""},
        {"duplicate_rows": [3]},
        {"errors": [pb.RowError(row=9)]},
        {"block": 5},
    ],
)
async def test_an_answer_that_does_not_fit_is_reported(spoilt: dict[str, Any]) -> None:
    """It is not guessed at."""
    whole: dict[str, Any] = {
        "block": 1,
        "steps": np.ones(3, "<u8").tobytes(),
        "outputs": [b"1234" * 3, b"12345678" * 3],
        "durable_steps": np.zeros(3, "<u8").tobytes(),
    }

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.write(block=pb.PredictedBlock(**{**whole, **spoilt}))
        await call.gone()

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        with pytest.raises(StreamLost, match=r"does not fit|expected"):
            await block.step(column(1, 2, 3))


async def test_kinds_that_this_client_does_not_know_mean_nothing() -> None:
    """A newer server may say more."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.write()
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        assert await sums(block, [1, 2, 3]) == [1.0, 2.0, 3.0]
