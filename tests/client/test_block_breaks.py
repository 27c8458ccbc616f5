"""Disconnects of a call with many streams, and how it ends: lost timesteps are sent again, answers are not delivered twice."""

import asyncio
import random
from typing import Any

import grpc
import numpy as np
import pytest

from tests.client.scripted_blocks import (
    MODEL,
    NAMES,
    BlockCall,
    ScriptedBlocks,
    closing,
    column,
    connected,
    error_of,
    opened_and_closed,
    sums,
)
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    AnswerLost,
    Client,
    DataLost,
    Diverged,
    InvalidTimestep,
    ModelMismatch,
    ServerUnavailable,
    StreamLost,
    TakenOver,
    TooManyStreams,
)
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN", "RESOURCE_EXHAUSTED"])
async def test_a_disconnect_is_not_seen(code: str) -> None:
    """What was not answered is sent again, and answered once."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.read_block()
        await call.end(code=code)

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("a", 2, 4.0), ("b", 2, 5.0), ("c", 2, 6.0)]
        await closing(call)

    async with connected(first, second) as (client, _, time):
        async with client.block(NAMES) as block:
            assert await sums(block, [1, 2, 3]) == [1.0, 2.0, 3.0]
            assert await sums(block, [4, 5, 6]) == [5.0, 7.0, 9.0]
            assert block.reconnects == 1
        assert time.slept == [0.0]


async def test_lost_answers_come_once() -> None:
    """The server applied them before the disconnect, only for one stream: they are repeats, and callers notice nothing."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.rows = call.rows[:1]
        call.apply()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 3.0)]
        await closing(call)

    async with connected(first, second) as (client, server, _), client.block(NAMES) as block:
        assert await sums(block, [1, 2, 3]) == [1.0, 2.0, 3.0]
        assert list(server.histories.values()) == [[1.0], [2.0], [3.0]]


async def test_a_forgotten_answer_is_reported() -> None:
    """The timestep counts; only its prediction is gone."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.apply()
        await call.end()

    async def second(call: BlockCall) -> None:
        call.remembered = 0
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        answer = await block.step(column(1))
        assert isinstance(answer.errors[0], AnswerLost)
        assert (answer.steps.tolist(), answer.duplicates.tolist()) == ([1], [True])


async def test_what_a_crash_took_is_sent_again() -> None:
    """Each stream from where the server goes on; rows of several blocks are packed anew; nothing is delivered twice."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        for stored in ({}, {"a": 1, "b": 1}, {}):
            await call.read_block()
            errors = call.apply()
            call.server.stored.update(stored)
            await call.answer_block(errors)
        await call.read_block()
        call.server.stored["b"] = 2
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        rows = await call.serve_block()
        assert [(name, step) for name, step, _ in rows] == [
            ("c", 1), ("a", 2), ("c", 2), ("a", 3), ("b", 3), ("c", 3), ("a", 4), ("b", 4), ("c", 4)
        ]  # fmt: skip
        await closing(call)

    async with connected(first, second) as (client, server, _), client.block(NAMES) as block:
        for step in (1, 2, 3, 4):
            assert await sums(block, [1, 2, 3]) == [step, 2 * step, 3 * step]
        assert server.histories == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}


async def test_what_a_crash_lost_is_sent_again_without_a_caller() -> None:
    """Everything was delivered and the user does nothing: the server gets back what it lost all the same."""
    restored = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        restored.set()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        await restored.wait()


async def test_an_open_after_a_disconnect_has_resume_from_of_each_stream() -> None:
    """The first timestep that can be sent again: of one that is all here, one that was stored, one whose beginning others sent."""

    async def first(call: BlockCall) -> None:
        call.server.histories["c"] = [1.0] * 7
        await call.open_streams()
        await call.read_block()
        errors = call.apply()
        call.server.stored["b"] = 1
        await call.answer_block(errors)
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert call.opens == [
            pb.OpenStreams(
                stream_ids=NAMES, resume_from=[1, 2, 8], model="toy", version="1", durability=pb.DURABILITY_SYNC,
                owner=block.owner, kept_max=70, independent=True,
            )
        ]  # fmt: skip
        await closing(call)

    async with (
        connected(first, second, buffer_max=70) as (client, _, _),
        client.block(NAMES, sync=True) as block,
    ):
        await block.step(column(1, 2, 3))
        await eventually(lambda: block.reconnects == 1, "the reconnect")


async def test_streams_that_were_not_yet_opened_are_opened_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call broke between two lots: those of the first are resumed, the others are begun."""
    monkeypatch.setattr("tidegate.client.session_streams.NAMES_MAX", 1)

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        for _ in NAMES:
            await call.open_streams()
        assert [(list(ask.stream_ids), ask.existence, list(ask.resume_from)) for ask in call.opens] == [
            (["a"], pb.EXISTENCE_UNSPECIFIED, [1]),
            (["b"], pb.EXISTENCE_MUST_BE_NEW, []),
            (["c"], pb.EXISTENCE_MUST_BE_NEW, []),
        ]
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES, existence="must_be_new") as block:
        assert block.kinds == ["new"] * 3


async def test_a_stream_whose_state_was_lost_is_the_only_one_lost() -> None:
    """The others go on."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        errors = call.apply()
        call.server.stored.update(a=1, b=1, c=1)
        await call.answer_block(errors)
        await call.end()

    async def second(call: BlockCall) -> None:
        call.server.histories["a"].clear()
        await call.open_streams()
        await call.serve_block()
        assert await call.close_streams() == ["b", "c"]

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        answer = await block.step(column(4, 5, 6))
        assert {row: type(error) for row, error in answer.errors.items()} == {0: DataLost}
        assert answer["sum"].ravel().tolist() == [0.0, 7.0, 9.0]


async def test_a_stream_that_another_client_has_opened_is_the_only_one_lost() -> None:
    """Whether it has advanced the stream or not: the open shows it for each stream; the others continue."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.end()

    async def second(call: BlockCall) -> None:
        call.server.histories["a"].append(9.0)
        call.server.owners.update(a="another", b="another")
        await call.open_streams()
        await call.serve_block()
        assert await call.close_streams() == ["c"]

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert {row: type(error) for row, error in answer.errors.items()} == {0: TakenOver, 1: TakenOver}
        assert answer["sum"].ravel().tolist() == [0.0, 0.0, 3.0]


async def test_our_own_opens_are_not_taken_for_anothers() -> None:
    """Two opens were seen by the server and their answers lost: the owner is the same."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.apply()
        await call.end()

    async def lost(call: BlockCall) -> None:
        await call.read_streams()
        await call.end()

    async def last(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, lost, lost, last) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0]) == [1.0]


async def test_a_server_that_is_killed_and_comes_back_is_found_again() -> None:
    """A real connection that breaks, a port that refuses, a server that is there again: nothing is seen of it."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.gone()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    servicer = ScriptedBlocks([first, second])

    async def start(port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server, port

    server, port = await start(0)
    async with asyncio.timeout(TIMEOUT_S), Client(f"127.0.0.1:{port}") as client, client.block(NAMES) as block:
        await sums(block, [1, 2, 3])
        await server.stop(None)
        waiting = asyncio.create_task(sums(block, [1, 2, 3]))
        await eventually(lambda: block._session._retry.tries > 2, "tries in vain")
        server, _ = await start(port)
        assert await waiting == [2.0, 4.0, 6.0]
    await server.stop(None)
    assert not servicer.failed


@pytest.mark.parametrize("invariant", [True, False])
async def test_another_history_than_was_delivered_is_reported(invariant: bool) -> None:
    """A replay of one stream is answered with other bits; a server that promises no bits is not held to them."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.stored["b"] = 1
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        model = pb.Model()
        model.CopyFrom(MODEL)
        model.batch_invariant = invariant
        await call.open_streams(model=model)
        assert [name for name, _, _ in await call.read_block()] == ["a"]
        await call.answer_block(call.apply(), bits=0.5)
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a", "b"]) as block:
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        await eventually(lambda: block.reconnects == 1 and block._window.drained, "the replay")
        assert list(block.lost) == ([0] if invariant else [])
        answer = await block.step(column(3, 4))
        assert [type(error) for error in answer.errors.values()] == ([Diverged] if invariant else [])
        assert answer["sum"].ravel().tolist() == [0.0 if invariant else 4.0, 6.0]


async def test_a_stream_that_diverges_and_is_refused_is_lost_once() -> None:
    """Both in one answer; the other row of its stream gets the error."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.read_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert [step for _, step, _ in await call.read_block()] == [1, 2]
        await call.answer_block(call.apply(), bits=0.5)
        assert await call.read() is None

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0]) == [1.0]
        answer = await block.step(column(-2))
        assert isinstance(answer.errors[0], Diverged)


async def test_another_model_under_the_same_name_is_reported() -> None:
    """Old state is never fed to new weights: that concerns them all."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams(model=pb.Model(fingerprint="e" * 64))
        await call.gone()

    async with connected(first, second) as (client, _, _):
        with pytest.raises(ModelMismatch, match="ffffffffffff, and the server has eeeeeeeeeeee"):
            async with client.block(NAMES) as block:
                await block.step(column(1, 2, 3))


async def test_a_move_is_followed() -> None:
    """What is under way is answered, nothing more is sent to the old server, and the user sees nothing."""
    moving = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.move()
        await moving.wait()
        await call.answer_block(call.apply())
        assert await call.read() is None, "sent to a server that asked to move"
        await call.end("STOPPING")

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        one = asyncio.create_task(sums(block, [1.0]))
        await eventually(lambda: block._session._call.half_closed, "the move")
        other = asyncio.create_task(sums(block, [2.0]))
        await asyncio.sleep(0)
        moving.set()
        assert [await one, await other] == [[1.0], [3.0]]


async def test_a_row_that_finds_the_server_stopping_is_sent_elsewhere() -> None:
    """So is a block, and a stream that was to be opened."""

    async def open_refused(call: BlockCall) -> None:
        await call.open_streams({"b": "STOPPING"})
        await call.gone()

    async def row_refused(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "STOPPING"})
        await call.gone()

    async def block_refused(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.refuse_block("STOPPING")
        await call.gone()

    async def last(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    scripts = open_refused, row_refused, block_refused, last
    async with connected(*scripts) as (client, _, _), client.block(["a", "b"]) as block:
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]


async def test_tries_have_an_end() -> None:
    """After `reconnect_s` without a new answer: it concerns them all."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def down(call: BlockCall) -> None:
        await call.end("STOPPING")

    async with connected(first, *[down] * 3, reconnect_s=0.1) as (client, _, time), client.block(NAMES) as block:
        with pytest.raises(ServerUnavailable, match="STOPPING"):
            await block.step(column(1, 2, 3))
        assert time.slept == [0.0, 0.05, pytest.approx(0.05)]


async def test_a_poisoned_row_is_not_sent_for_ever() -> None:
    """Answers to replays are no progress: a row that crashes its server is given up with it."""

    async def script(call: BlockCall) -> None:
        call.remembered = 2  # so that the replay and the poisoned row go one after the other
        await call.open_streams()
        while not any(value == 13 for _, _, value in await call.read_block()):
            await call.answer_block(call.apply())
        call.server.lose_unstored()
        await call.end()

    async with connected(*[script] * 4, reconnect_s=0.1) as (client, _, _), client.block(["a"]) as block:
        await block.step(column(1))
        with pytest.raises(ServerUnavailable):
            await block.step(column(13))


async def test_a_poisoned_row_is_the_only_one_lost() -> None:
    """It breaks the server each time. The others get on behind it, and it is not sent for ever because they do."""
    poisoned: asyncio.Task[Any]

    async def crashing(call: BlockCall) -> None:
        await call.open_streams()
        while (request := await call.read()) is not None:
            call.take_block(request.block)
            if any(value == 13.0 for _, _, value in call.rows):
                call.server.lose_unstored()
                call.server.scripts.append(crashing)
                await call.end()
            await call.answer_block(call.apply())
            call.server.stored.update({name: len(history) for name, history in call.server.histories.items()})

    async with connected(crashing, reconnect_s=5.0) as (client, server, _):
        bad, *good = await asyncio.gather(*(client.open(name).__aenter__() for name in ["bad", "x", "y", "z"]))
        poisoned = asyncio.create_task(bad.step([13.0]))
        for count in range(1, 10):
            answers = await asyncio.gather(*(stream.step([1.0]) for stream in good))
            assert [answer["sum"].item() for answer in answers] == [count] * 3
        with pytest.raises(ServerUnavailable, match="tried for 5 s"):
            await poisoned
        assert (await good[0].step([1.0]))["sum"].item() == 10
        assert not server.scripts


@pytest.mark.parametrize("value", [1.0, -1.0])
async def test_an_answer_resets_the_backoff(value: float) -> None:
    """Or a refusal: each break is one of its own, however many there are."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.end()

    scripts = [script] * 5
    async with connected(*scripts, opened_and_closed, reconnect_s=0.1) as (client, _, time):
        async with client.block(["a"]) as block:
            for number in range(5):
                await block.step(column(value))
                await eventually(lambda: block.reconnects > number, "the reconnect")  # noqa: B023 - awaited here
        assert time.slept == [0.0] * 5


async def test_a_server_that_falls_over_at_once_is_not_run_over() -> None:
    """It opens, and breaks: the waits go on growing though each open is answered, and for ever."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    scripts = [script] * 5
    async with connected(*scripts, opened_and_closed, reconnect_s=0.2) as (client, _, time):
        async with client.block(NAMES) as block:
            await eventually(lambda: block.reconnects == 5, "the reconnects")
        assert time.slept == [0.0, 0.05, 0.1, 0.2, 0.2]


async def test_a_full_server_is_tried_again_after_a_disconnect() -> None:
    """A slot comes free when others leave; the streams that have theirs go on meanwhile."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": error_of("TOO_MANY_STREAMS", retry_after_ms=100)})
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, time), client.block(["a", "b"]) as block:
        await eventually(lambda: block._window.open.sum() == 2 and block.reconnects == 1, "the second open")
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        assert time.slept == [0.0, pytest.approx(0.15)]


async def test_a_stream_that_was_open_has_its_own_time_to_be_opened_again() -> None:
    """That the server had no room for it the first time is long ago."""
    short = error_of("STORE_UNAVAILABLE", retry_after_ms=1000)

    async def first(call: BlockCall) -> None:
        await call.open_streams({"b": short})
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": short})
        await opened_and_closed(call)

    async with connected(first, second, reconnect_s=1.4) as (client, _, time), client.block(["a", "b"]) as block:
        await eventually(lambda: block._window.open.sum() == 2 and block.reconnects == 1, "the reconnect")
        assert (block.lost, block.refused) == ({}, {})
        assert time.slept == [pytest.approx(1.5), 0.0, pytest.approx(1.5)]


async def test_a_wait_ends_with_its_call() -> None:
    """What was waited for is done by the next open: a stream is not asked for twice, nor is anything left behind."""
    woken = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": "TOO_MANY_STREAMS"})
        await eventually(lambda: bool(block._session._tasks), "the wait")
        await call.end()

    async def third(call: BlockCall) -> None:
        await call.open_streams()
        woken.set()
        await call.serve_block({0: "OVERLOADED"})
        await eventually(lambda: bool(block._session._tasks), "the other wait")
        await call.gone()

    async with connected(first, second, third) as (client, _, time):
        sleep = time.sleep

        async def sleep_long(seconds: float) -> None:
            await (woken.wait() if seconds > 0.06 else sleep(seconds))

        object.__setattr__(time.backoff, "sleep", sleep_long)
        block = await client.block(["a", "b"]).__aenter__()
        await eventually(lambda: block.reconnects == 2, "the reconnects")
        woken.clear()
        step = asyncio.create_task(block.step(column(1, 2)))
        await eventually(lambda: bool(block._session._tasks), "the wait")
        await client.close()
        with pytest.raises(StreamLost):
            await step
        await eventually(lambda: not block._session._tasks, "the end of the wait")


async def test_waiting_for_a_full_server_has_an_end() -> None:
    """The stream is lost, and the others go on."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        for _ in range(2):
            await call.open_streams({"b": error_of("TOO_MANY_STREAMS", retry_after_ms=1000)})
        await call.serve_block()
        assert await call.close_streams() == ["a"]

    async with connected(first, second, reconnect_s=1.0) as (client, _, _), client.block(["a", "b"]) as block:
        await eventually(lambda: bool(block.lost), "the loss")
        answer = await block.step(column(1, 2))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0]
        assert isinstance(answer.errors[1], TooManyStreams)
        assert list(block.lost) == [1]


# The end ---------------------------------------------------------------------------------------------------------------


async def test_a_close_waits_for_what_is_in_flight() -> None:
    """And takes no more."""
    asked = asyncio.Event()

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await asked.wait()
        await call.answer_block(call.apply())
        await closing(call)
        assert await call.read() is None

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        step = asyncio.create_task(sums(block, [1, 2, 3]))
        await asyncio.sleep(0)
        closes = [asyncio.create_task(block.close(forget=forget)) for forget in (False, True)]
        await asyncio.sleep(0)
        with pytest.raises(StreamLost, match="being closed"):
            await block.step(column(1, 2, 3))
        asked.set()
        await asyncio.gather(*closes)
        assert await step == [1.0, 2.0, 3.0]
        assert block.durable_steps.tolist() == [1, 1, 1]
        with pytest.raises(StreamLost, match="closed"):
            await block.step(column(1, 2, 3))


async def test_a_close_survives_a_disconnect() -> None:
    """What was lost is sent again, and those that were not closed are closed."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.next("close")
        call.server.stored["a"] = 1
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("b", 1, 2.0), ("c", 1, 3.0)]
        closed = await call.close_streams()  # "a" has nothing left to send, and may go first
        if closed == ["a"]:
            closed += await call.close_streams()
        assert closed == ["a", "b", "c"]

    async with connected(first, second) as (client, _, _):
        async with client.block(NAMES) as block:
            await block.step(column(1, 2, 3))
        assert block.durable_steps.tolist() == [1, 1, 1]


async def test_a_close_is_not_over_before_everything_is_stored() -> None:
    """Streams that a server closes with less, or cannot close now, are opened and closed again; those only."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.stored["a"] = 1
        await call.close_streams({"b": "STORE_UNAVAILABLE"}, store=False)

    async def second(call: BlockCall) -> None:
        ask = await call.read_streams()
        assert list(ask.stream_ids) == ["b", "c"]
        await call.answer_open(ask, {})
        assert await call.close_streams() == ["b", "c"]

    async with connected(first, second) as (client, _, _):
        async with client.block(NAMES) as block:
            await block.step(column(1, 2, 3))
        assert (block.durable_steps.tolist(), block.lost) == ([1, 1, 1], {})


async def test_a_close_waits_for_streams_that_are_still_to_be_opened() -> None:
    """After a break the server had no room for one at first."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.next("close")
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": "TOO_MANY_STREAMS"})
        assert await call.close_streams() == ["a"]
        await call.open_streams()
        assert await call.close_streams() == ["b"]

    async with connected(first, second) as (client, _, _), client.block(["a", "b"]):
        pass


async def test_many_streams_are_closed_in_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last is the end."""
    monkeypatch.setattr("tidegate.client.session.HANDLES_MAX", 2)

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.close_streams() == ["a", "b"]
        assert await call.close_streams() == ["c"]
        assert await call.read() is None

    async with connected(script) as (client, _, _), client.block(NAMES):
        pass


async def test_a_close_that_is_never_stored_is_reported() -> None:
    """After `reconnect_s`: the user must know that the server may lose it."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        if not call.server.histories["a"]:
            await call.serve_block()
        await call.close_streams(store=False)

    async with connected(*[script] * 3, reconnect_s=0.05) as (client, _, _):
        with pytest.raises(ServerUnavailable, match="1 of them are not stored"):
            async with client.block(["a"]) as block:
                await block.step(column(1))


async def test_a_stream_that_is_gone_when_it_is_closed_is_lost() -> None:
    """Another has it; there is nothing to be stored from here."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.close_streams({"b": "TAKEN_OVER"})

    async with connected(script) as (client, _, _):
        async with client.block(NAMES) as block:
            pass
        assert {stream: type(error) for stream, error in block.lost.items()} == {1: TakenOver}


async def test_streams_can_be_forgotten() -> None:
    """A break opens those that must exist, wherever the server is now; one that is not there any more is done."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.tell_durable(c=1)
        await call.next("close")
        del call.server.histories["a"]
        call.server.histories["c"].clear()
        await call.end()

    async def second(call: BlockCall) -> None:
        ask = await call.read_streams()
        assert (ask.existence, list(ask.resume_from)) == (pb.EXISTENCE_MUST_EXIST, [1, 1, 1])
        await call.answer_open(ask, {})
        assert await call.close_streams({"c": "STREAM_NOT_FOUND"}, store=False, forget=True) == ["b", "c"]

    async with connected(first, second) as (client, _, _):
        async with client.block(NAMES) as block:
            await block.step(column(1, 2, 3))
            await eventually(lambda: block.durable_steps[2] == 1, "the news")
            await block.close(forget=True)
        assert (block.lost, block.refused, block.kinds) == ({}, {}, ["new"] * 3)


async def test_leaving_by_an_exception_does_not_wait() -> None:
    """The server parks the streams when the call ends."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.gone()

    async with connected(script) as (client, server, _):
        with pytest.raises(KeyError):
            async with client.block(NAMES):
                raise KeyError
        await server.left.wait()
        assert not client._views


async def test_a_client_that_is_closed_leaves_its_blocks() -> None:
    """All callers get the error."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.gone()

    async with connected(script) as (client, _, _):
        block = await client.block(NAMES).__aenter__()
        waiting = asyncio.create_task(block.step(column(1, 2, 3)))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(StreamLost):
            await waiting


async def test_a_bug_in_the_client_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task dies, and not in silence."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.gone()

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        monkeypatch.setattr(block._window, "match_answer", lambda *_, **__: 1 / 0)
        with pytest.raises(StreamLost, match="ZeroDivisionError"):
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


# All at once -----------------------------------------------------------------------------------------------------------


class Haunted:
    """A server that answers, and now and then stores, refuses, breaks, crashes and moves; as a script."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    async def __call__(self, call: BlockCall) -> None:
        """Plays one call."""
        call.remembered = 4
        while (request := await call.read()) is not None:
            if self.dice.random() < 0.02:
                await call.end()
            kind = request.WhichOneof("kind")
            if kind == "open":
                await call.answer_open(request.open, {})
            elif kind == "close":
                await self.close(call, request.close)
            else:
                await self.block(call, request.block)
                if self.dice.random() < 0.03:
                    await call.move()
                    return

    async def block(self, call: BlockCall, request: pb.Block) -> None:
        """Answers a block, or not; and may store some streams."""
        call.take_block(request)
        fate = self.dice.random()
        if fate < 0.1:
            await call.refuse_block("OVERLOADED", retry_after_ms=1)
            return
        busy = {row: "OVERLOADED" for row in range(len(call.rows)) if self.dice.random() < 0.05}
        errors = call.apply(busy)
        if fate < 0.2:
            call.server.lose_unstored()
        if fate < 0.3:
            await call.end()
        await call.answer_block(errors)
        if fate > 0.7:
            names = [name for name in call.names if self.dice.random() < 0.5]
            await call.tell_durable(**{name: len(call.server.histories[name]) for name in names})

    async def close(self, call: BlockCall, request: pb.CloseStreams) -> None:
        """Closes streams, and stores them."""
        names = [call.names[handle - 1] for handle in request.handles]
        steps = [len(call.server.histories[name]) for name in names]
        call.server.stored.update(zip(names, steps, strict=True))
        await call.write(closed=pb.ClosedStreams(steps=steps, durable_steps=steps))


@pytest.mark.parametrize("seed", range(8))
async def test_a_haunted_server_changes_nothing(seed: int) -> None:
    """Breaks, crashes, moves and refusals at any moment: every good timestep is applied and answered once, in order."""
    dice = random.Random(seed)
    server_dice = random.Random(-seed - 1)
    streams = [f"s{number}" for number in range(7)]
    expected: dict[str, list[float]] = {name: [] for name in streams}

    async def work(block: Any) -> None:
        for _ in range(15):
            rows = [dice.randrange(len(streams)) for _ in range(dice.randrange(1, 20))]
            values = [float(dice.randrange(1, 50) * (-1 if dice.random() < 0.1 else 1)) for _ in rows]
            asked.append((rows, values, asyncio.create_task(block.step(np.array(values).reshape(-1, 1), rows))))
            if dice.random() < 0.5:
                await asked[-1][2]

    asked: list[Any] = []
    async with connected(*[Haunted(server_dice)] * 1000) as (client, server, _):
        async with client.block(streams) as block:
            await work(block)
            await asyncio.wait([task for _, _, task in asked])
        for rows, values, task in asked:
            answer = task.result()
            for row, (stream, value) in enumerate(zip(rows, values, strict=True)):
                if value < 0:
                    assert isinstance(answer.errors[row], InvalidTimestep)
                    continue
                history = expected[streams[stream]]
                history.append(value)
                assert row not in answer.errors
                assert (answer.steps[row], answer["count"][row]) == (len(history), len(history))
                assert answer["sum"][row] == sum(history)
        assert server.histories == {name: history for name, history in expected.items() if name in server.histories}
        assert block.durable_steps.tolist() == [len(expected[name]) for name in streams]
        server.scripts.clear()
