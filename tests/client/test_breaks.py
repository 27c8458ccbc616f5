"""Calls that break in every way, and what the user sees of it: nothing, or an error with a name."""

import asyncio
import logging

import pytest

from tests.calls import pack
from tests.scripted import closing, connected, resume_and_close, sums
from tests.scripted_calls import MODEL, Call
from tests.timeouts import eventually
from tidegate.client import AnswerLost, ClientError, Diverged, ModelMismatch, StreamLost, StreamNotFound, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN", "RESOURCE_EXHAUSTED"])
async def test_a_disconnect_is_not_seen(code: str) -> None:
    """What was not answered is sent again, and answered once."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2)
        await call.end(code=code)

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(2)
        await closing(call)

    async with connected(first, second) as (client, _, time):
        async with client.open("a") as stream:
            assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
            assert (stream.reconnects, stream.epoch) == (1, 2)
        assert time.slept == [0.0]  # the first try comes at once


async def test_a_call_that_the_server_ends_well_is_a_disconnect_too() -> None:
    """Nobody asked for it: a proxy may end calls so."""

    async def first(call: Call) -> None:
        await call.open()

    async with connected(first, resume_and_close) as (client, _, _), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 1, "the reconnect")


async def test_a_lost_answer_comes_once() -> None:
    """The server applied them all before the disconnect: they are repeats, and callers notice nothing."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1, 2, 3)
        await call.answer(1)
        await call.end()

    async def second(call: Call) -> None:
        await call.open(next_step=4)
        await call.expect(2, 3)
        await call.answer(2, 3)
        await closing(call)

    async with connected(first, second) as (client, server, _), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0, 3.0]) == [1.0, 3.0, 6.0]
        assert server.history == [1.0, 2.0, 3.0]


async def test_a_forgotten_answer_is_reported() -> None:
    """The timestep counts; only its prediction is gone, and the stream goes on."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.end()

    async def second(call: Call) -> None:
        await call.open(answers_remembered=0)
        await call.expect(1)
        await call.answer(1, outputs=[])
        await call.serve(2)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        with pytest.raises(AnswerLost, match="timestep 1 was applied"):
            await stream.step([1.0])
        assert await sums(stream, [2.0]) == [3.0]


async def test_what_a_crash_took_is_sent_again() -> None:
    """From where the server goes on; what was delivered is not delivered again, and order is kept."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, durable=1)
        await call.serve(2, 3, durable=1)
        await call.expect(4)
        call.server.crash(1)
        await call.end()

    async def second(call: Call) -> None:
        await call.open(durable_step=1)
        await call.serve(2, 3, 4, durable=1)
        await closing(call)

    async with connected(first, second) as (client, server, _), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0, 3.0, 4.0]) == [1.0, 3.0, 6.0, 10.0]
        assert server.history == [1.0, 2.0, 3.0, 4.0]


async def test_what_a_crash_lost_is_sent_again_without_a_caller() -> None:
    """Everything was delivered and the user does nothing: the server gets back what it lost all the same."""
    restored = asyncio.Event()

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        restored.set()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
        await restored.wait()


async def test_a_long_replay_keeps_to_the_window() -> None:
    """A hundred kept timesteps are sent again two at a time."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(*range(1, 101))
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open(answers_remembered=2)
        await call.expect(1, 2)
        await eventually(lambda: stream._session._call._writer_waiter is not None, "the client waiting")
        assert stream._window._in_flight.sum() == 2
        await call.answer(1, 2)
        await call.serve(*range(3, 101))
        await closing(call)

    async with connected(first, second) as (client, server, _), client.open("a") as stream:
        await sums(stream, range(100))
        await stream.close()
        assert server.history == list(range(100))


async def test_another_history_than_was_delivered_is_reported() -> None:
    """A replay is answered with other bits: the user has acted on what is no longer true."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1, outputs=[pack(1.5)])
        await call.gone()

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await eventually(stream._ended_event.is_set, "the end")
        with pytest.raises(Diverged, match="timestep 1"):
            await stream.step([2.0])


async def test_answers_are_not_compared_without_batch_invariance() -> None:
    """It found at its start that its predictions depend on the batch."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        model = pb.Model()
        model.CopyFrom(MODEL)
        model.batch_invariant = False
        await call.open(model=model)
        await call.expect(1)
        await call.answer(1, outputs=[pack(1.5)])
        await call.serve(2)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        assert await sums(stream, [1.0]) == [1.0]
        assert await sums(stream, [2.0]) == [3.0]


async def test_another_model_under_the_same_name_is_reported() -> None:
    """Old state is never fed to new weights, not even from here."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end()

    async def second(call: Call) -> None:
        model = pb.Model()
        model.CopyFrom(MODEL)
        model.fingerprint = "e" * 64
        await call.open(model=model)
        await call.gone()

    async with connected(first, second) as (client, _, _):
        with pytest.raises(ModelMismatch, match="ffffffffffff, and the server has eeeeeeeeeeee"):
            async with client.open("a") as stream:
                await stream.step([1.0])


async def test_a_stream_that_was_deleted_is_gone() -> None:
    """By an operator, under the feet of its client: it is not begun again."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end("STREAM_NOT_FOUND")

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamNotFound):
            async with client.open("a") as stream:
                await stream.step([1.0])


async def test_a_gap_that_cannot_be_opens_the_stream_again() -> None:
    """The server has lost the position of an open call: an open reports it. The old call ends before that."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2)
        call.server.crash(0)
        await call.refuse(2, reason="STEP_GAP", next_step=1)
        await call.gone()

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    async with connected(first, second) as (client, server, time), client.open("a") as stream:

        async def sleep(_: float) -> None:
            await server.left.wait()

        object.__setattr__(time.backoff, "sleep", sleep)
        assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]


async def test_an_unexpected_answer_ends_the_stream() -> None:
    """A server that speaks another protocol is not guessed at."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1)
        await call.write(block=pb.PredictedBlock(block=1))
        await call.gone()

    async with connected(script) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await eventually(lambda: stream._error is not None, "the end")
        with pytest.raises(StreamLost, match="nothing was in flight"):
            await stream.step([2.0])


async def test_a_bug_in_the_client_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The task dies, and not in silence: everybody who waits gets the cause, and the log has it."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1)
        await call.gone()

    async with connected(script) as (client, _, _):
        async with client.open("a") as stream:
            monkeypatch.setattr(stream._window, "match_answer", lambda *_, **__: 1 / 0)
            with caplog.at_level(logging.ERROR), pytest.raises(StreamLost, match="ZeroDivisionError") as caught:
                await stream.step([1.0])
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert "ZeroDivisionError" in caplog.text


async def test_a_bug_where_requests_are_made_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is grpc that calls, and grpc would cancel the call and say nothing."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    async with connected(script) as (client, _, _), client.open("a") as stream:
        monkeypatch.setattr(stream._window, "next_message", lambda: 1 / 0)
        with pytest.raises(ClientError, match="ZeroDivisionError"):
            await stream.step([1.0])


async def test_an_unraised_error_is_raised_on_close() -> None:
    """The stream was lost while the user did something else."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER")

    async with connected(script) as (client, _, _):
        with pytest.raises(TakenOver):
            async with client.open("a") as stream:
                await eventually(stream._ended_event.is_set, "the end")
