"""Many streams on one call: what a gateway sees of its streams, and what one stream's misfortune does to the others: nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import BlockCall, closing, connected, error_of, opened_and_closed
from tests.scripted import let_time_out
from tests.timeouts import eventually
from tidegate.client import (
    AnswerLost,
    Block,
    Client,
    ClientError,
    InvalidTimestep,
    ModelFailed,
    Overloaded,
    ServerUnavailable,
    StoreUnavailable,
    StreamExpired,
    StreamLost,
    StreamNotFound,
    TakenOver,
    session_streams,
)
from tidegate.v1 import tidegate_pb2 as pb

NAMES = ["a", "b", "c"]


def column(*values: float) -> list[list[float]]:
    """Timesteps of one feature."""
    return [[value] for value in values]


async def sums(block: Block, values: Sequence[float], rows: Sequence[int] | None = None) -> list[float]:
    """Sends timesteps; gives the sums that were answered, none of which may be an error."""
    answer = await block.step(column(*values), rows)
    assert not answer.errors
    return answer["sum"].ravel().tolist()


# Opening ---------------------------------------------------------------------------------------------------------------


async def test_an_open_carries_its_options() -> None:
    """Names, model, existence, durability, owner and `kept_max`; and the answer for each stream is there."""

    async def script(call: BlockCall) -> None:
        call.server.histories["b"] = [1.0, 2.0]
        call.server.stored["b"] = 1
        await call.open_streams()
        assert call.opens == [
            pb.OpenStreams(
                stream_ids=NAMES, model="toy", version="1", existence=pb.EXISTENCE_MUST_BE_NEW, durability=pb.DURABILITY_SYNC,
                owner="gate-1", kept_max=70, independent=True,
            )
        ]  # fmt: skip
        await closing(call)

    async with (
        connected(script, buffer_max=70) as (client, _, _),
        client.block(NAMES, model="toy", version="1", existence="must_be_new", sync=True, owner="gate-1") as block,
    ):
        assert block.owner == "gate-1"
        assert (block.stream_ids, block.kinds, block.model.name) == (NAMES, ["new", "resumed", "new"], "toy")
        assert (block.next_steps.tolist(), block.durable_steps.tolist()) == ([1, 3, 1], [0, 1, 0])
        assert (block.window, block.reconnects, block.refused, block.lost) == (32, 0, {}, {})


async def test_a_number_of_streams_is_given_names() -> None:
    """By the server; they are opened again under these."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.end()

    async with connected(first, opened_and_closed) as (client, server, _), client.block(2) as block:
        assert block.stream_ids == ["made-0", "made-1"]
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        await eventually(lambda: block.reconnects == 1, "the reconnect")
        assert list(server.calls[1].opens[0].stream_ids) == ["made-0", "made-1"]


async def test_many_names_go_out_in_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other; the later ones ask for the model that the first were given."""
    monkeypatch.setattr(session_streams, "NAMES_MAX", 3)
    monkeypatch.setattr(session_streams, "NAMES_BYTES_MAX", 40)

    async def script(call: BlockCall) -> None:
        for lot in (["a", "b", "c"], ["d" * 28], ["e", "f"]):
            ask = await call.read_streams()
            assert list(ask.stream_ids) == lot
            assert (ask.model, ask.version) == (("", "") if lot[0] == "a" else ("toy", "1"))
            await call.answer_open(ask, {})
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a", "b", "c", "d" * 28, "e", "f"]) as block:
        assert await sums(block, [1.0] * 6) == [1.0] * 6


async def test_a_stream_that_is_refused_leaves_the_others_open() -> None:
    """Its rows say why it is."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": error_of("STREAM_EXPIRED", next_step=9)})
        await call.serve_block()
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        assert list(block.refused) == [1]
        assert isinstance(block.refused[1], StreamExpired)
        assert block.refused[1].next_step == 9
        assert block.kinds == ["new", "", "new"]
        answer = await block.step(column(1, 2, 3))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0, 3.0]
        assert answer.errors == block.refused
        assert block.lost == {}


async def test_a_block_of_which_nothing_can_be_opened_is_refused() -> None:
    """With the reason of the first."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"a": "STREAM_NOT_FOUND", "b": "STREAM_EXPIRED"})
        await call.gone()

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamNotFound):
            async with client.block(["a", "b"], existence="must_exist"):
                pass


async def test_an_open_that_is_refused_as_a_whole_is_reported() -> None:
    """As with one stream."""

    async def script(call: BlockCall) -> None:
        await call.read_streams()
        await call.end("MODEL_NOT_FOUND", "NOT_FOUND")

    async with connected(script) as (client, _, _):
        with pytest.raises(ClientError, match="MODEL_NOT_FOUND"):
            async with client.block(NAMES):
                pass


@pytest.mark.parametrize("reason", ["STORE_UNAVAILABLE", "TOO_MANY_STREAMS"])
async def test_a_stream_for_which_there_is_no_room_yet_is_tried_again(reason: str) -> None:
    """As long as the server may be waited for; the others are open meanwhile."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": error_of(reason, retry_after_ms=1000)})
        await call.open_streams()
        await closing(call)

    async with connected(script) as (client, _, time), client.block(NAMES) as block:
        assert (block.refused, block.kinds) == ({}, ["new"] * 3)
        assert time.slept == [pytest.approx(1.5)]


async def test_trying_to_open_has_an_end() -> None:
    """After `timeout_s` the stream is refused, and the others go on."""

    async def script(call: BlockCall) -> None:
        for _ in range(3):
            await call.open_streams({"b": error_of("STORE_UNAVAILABLE", retry_after_ms=1000)})
        await closing(call)

    async with connected(script, timeout_s=2.0) as (client, _, time), client.block(NAMES) as block:
        assert isinstance(block.refused[1], ServerUnavailable)
        assert time.slept == [pytest.approx(1.5)] * 2


@pytest.mark.parametrize("streams", [[], 0, ["a", "b", "a"], "abc"])
async def test_invalid_names_of_a_block_are_reported(streams: Any) -> None:
    """Before anything is sent."""
    async with Client("localhost:1") as client:
        with pytest.raises(ValueError, match="streams: got"):
            client.block(streams)


async def test_an_open_that_is_not_answered_is_given_up() -> None:
    """After `timeout_s`, like that of a stream."""

    async def script(call: BlockCall) -> None:
        await call.gone()

    async with connected(script, timeout_s=0.5, reconnect_s=0) as (client, _, _):
        with pytest.raises(ServerUnavailable, match="no answer to open"):
            async with client.block(NAMES):
                pass


async def test_every_lot_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is not answered; and when all are, nothing is waited for."""
    monkeypatch.setattr(session_streams, "NAMES_MAX", 2)

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_streams()
        let_time_out(client)
        await call.gone()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await opened_and_closed(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        assert block._session._call._watchdog is None


@pytest.mark.parametrize(
    "opened",
    [
        pb.OpenedStreams(),
        pb.OpenedStreams(
            stream_ids=["a"], handles=[0], kinds=[pb.Opened.KIND_NEW], next_steps=[1], epochs=[1], durable_steps=[0]
        ),
        pb.OpenedStreams(stream_ids=["a"], handles=[1], kinds=[pb.Opened.KIND_NEW], next_steps=[1], epochs=[1]),
    ],
)
async def test_an_answer_that_does_not_fit_the_open_is_reported(opened: pb.OpenedStreams) -> None:
    """The server violates the protocol, so the call ends."""

    async def script(call: BlockCall) -> None:
        await call.read_streams()
        await call.write(opened=opened)
        await call.gone()

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamLost, match=r"not requested|without a handle"):
            async with client.block(["a"]):
                pass


async def test_durable_steps_of_streams_opened_later_are_reported() -> None:
    """Their handles came later."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": "STORE_UNAVAILABLE"})
        call.server.histories["a"] = [1.0] * 5
        await call.tell_durable(a=5)
        await call.open_streams()
        await call.tell_durable(b=7, a=6)
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, server, _), client.block(["a", "b"]) as block:
        await eventually(lambda: block.durable_steps.tolist() == [6, 7], "the news")
        server.histories["a"].clear()
        await block.step(column(1, 2))


# Timesteps -------------------------------------------------------------------------------------------------------------


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
