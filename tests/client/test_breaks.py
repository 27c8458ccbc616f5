"""Calls that break in every way, and what the user sees of it: nothing, or an error with a name."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from tests.calls import pack
from tests.scripted import Scripted, closing, connected, let_time_out, sums
from tests.scripted_calls import MODEL, Call
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    AnswerLost,
    Client,
    ClientError,
    DataLost,
    Diverged,
    ModelMismatch,
    ModelNotFound,
    ServerUnavailable,
    StreamLost,
    StreamNotFound,
    TakenOver,
    TooManyStreams,
)
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


async def resume_and_close(call: Call) -> None:
    """Opens, has nothing to do, is closed."""
    await call.open()
    await closing(call)


async def test_an_open_carries_its_options() -> None:
    """Name, model, durability, who asks, and how much this client keeps."""

    async def script(call: Call) -> None:
        await call.open(kind=pb.Opened.KIND_NEW)
        assert call.ask == pb.Open(
            stream_id="a",
            model="toy",
            version="1",
            existence=pb.EXISTENCE_MUST_BE_NEW,
            durability=pb.DURABILITY_SYNC,
            owner="boat-1",
            kept_max=70,
        )
        await closing(call)

    async with (
        connected(script, buffer_max=70) as (client, _, _),
        client.open("a", model="toy", version="1", existence="must_be_new", sync=True, owner="boat-1") as stream,
    ):
        assert stream.owner == "boat-1"
        assert (stream.kind, stream.epoch, stream.next_step, stream.durable_step) == ("new", 1, 1, 0)
        assert stream.reconnects == 0


async def test_timesteps_go_on_where_the_server_is() -> None:
    """The open has the next number."""

    async def script(call: Call) -> None:
        call.server.history[:] = [1.0, 2.0]
        await call.open()
        await call.serve(3)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        prediction = await stream.step([4.0])
        assert (prediction.step, prediction["sum"].item(), stream.next_step) == (3, 7.0, 4)


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


async def resumed_from(resume_from: int, *serving: Any, **opening: Any) -> None:
    """Plays `serving` on the first call and looks at the second's open."""

    async def first(call: Call) -> None:
        call.server.history[:] = [1.0] * (opening.get("next_step", 1) - 1)
        await call.open(**opening)
        for step, durable in serving:
            await call.serve(step, durable=durable)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        assert call.ask == pb.Open(
            stream_id="made-up",
            model="toy",
            version="1",
            durability=pb.DURABILITY_SYNC,
            owner=stream.owner,
            resume_from=resume_from,
            kept_max=70,
        )
        await closing(call)

    async with (
        connected(first, second, buffer_max=70) as (client, _, _),
        client.open(sync=True, existence="must_be_new") as stream,
    ):
        await sums(stream, [1.0] * len(serving))
        await eventually(lambda: stream.reconnects == 1, "the reconnect")


async def test_a_stream_with_all_timesteps_kept_may_begin_again() -> None:
    """Its first timestep is still kept: a crash that took the whole stream has taken nothing."""
    await resumed_from(1, (1, 0), (2, 0))


async def test_a_stream_without_timesteps_may_begin_again() -> None:
    """Nothing is everything then."""
    await resumed_from(1)


async def test_a_stream_that_was_stored_must_be_as_far() -> None:
    """The open has the first timestep that can be sent again; a server that has less answers DATA_LOSS."""
    await resumed_from(2, (1, 0), (2, 1))


async def test_a_stream_of_which_nothing_is_kept_must_be_where_it_was() -> None:
    """All of it was stored: the next is the first that can be sent."""
    await resumed_from(3, (1, 1), (2, 2))


async def test_a_stream_with_earlier_timesteps_must_have_them_on_reopen() -> None:
    """Another client began it, and this one got no durable step: it must not begin again silently."""
    await resumed_from(8, (8, 0), next_step=8)


async def test_every_client_has_an_owner_of_its_own() -> None:
    """By it the server recognizes a client that comes back."""

    async def script(call: Call) -> None:
        await call.open()
        await closing(call)

    async with connected(script, script) as (client, server, _):
        async with client.open("a") as stream:
            owners = {stream.owner}
        async with Client(server.address) as other, other.open("a") as stream:
            owners.add(stream.owner)
        assert len(owners) == 2
        assert {call.ask.owner for call in server.calls} == owners
        assert [call.ask.resume_from for call in server.calls] == [0, 0]


async def test_an_open_whose_answer_was_lost_is_sent_once_more() -> None:
    """By the same owner, as the first time: a stream that must be new still is."""

    async def lost(call: Call) -> None:
        await call.read_open()
        await call.end()

    async with (
        connected(lost, resume_and_close) as (client, server, _),
        client.open("a", existence="must_be_new") as stream,
    ):
        first, second = (call.ask for call in server.calls)
        assert first == second
        assert (first.existence, first.resume_from, first.owner) == (pb.EXISTENCE_MUST_BE_NEW, 0, stream.owner)


async def test_lost_data_is_reported() -> None:
    """The server has less than it acknowledged: no silent beginning from zero."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, durable=1)
        await call.end()

    async def second(call: Call) -> None:
        await call.read_open()
        await call.end("STATE_LOST")

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        with pytest.raises(DataLost, match="STATE_LOST"):
            await stream.step([2.0])


@pytest.mark.parametrize(("reason", "code"), [("TAKEN_OVER", ""), ("", "ABORTED")])
async def test_a_take_over_is_never_undone(reason: str, code: str) -> None:
    """Two clients would take the stream from each other for ever: the user gets one error, and nothing is opened."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.end(reason, code)

    async with connected(script) as (client, server, _):
        async with client.open("a") as stream:
            with pytest.raises(TakenOver, match=reason or code):
                await stream.step([1.0])
            with pytest.raises(TakenOver):
                await stream.step([1.0])
        assert len(server.calls) == 1


async def test_a_take_over_is_raised_to_all_callers() -> None:
    """Whatever is on its way to the server meanwhile; what another has is never taken back."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.end_stream("TAKEN_OVER")
        await call.gone()

    async with connected(script) as (client, server, _), client.open("a") as stream:
        answers = await asyncio.gather(*(stream.step([value]) for value in range(100)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {TakenOver}
        assert (stream.reconnects, len(server.calls)) == (0, 1)


async def test_a_stream_opened_by_another_client_is_lost() -> None:
    """Though the other has sent nothing: the server knows the last owner, which may be about to send."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.end()

    async def second(call: Call) -> None:
        call.server.owner = "another"
        await call.open()

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        with pytest.raises(TakenOver, match="TAKEN_OVER"):
            await stream.step([1.0])


async def test_our_own_opens_are_not_taken_for_anothers() -> None:
    """Two opens were seen by the server and their answers lost: the owner is the same."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.end()

    async def lost(call: Call) -> None:
        await call.read_open()
        call.server.owner = call.ask.owner
        await call.end()

    async def last(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1)
        await closing(call)

    async with connected(first, lost, lost, last) as (client, _, _), client.open("a") as stream:
        assert await sums(stream, [1.0]) == [1.0]


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


async def test_a_move_is_followed() -> None:
    """What is under way is answered, nothing more is sent to the old server, and the user sees nothing."""
    moving = asyncio.Event()

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.move()
        await moving.wait()
        await call.answer(1)
        assert await call.read() is None, "sent to a server that asked to move"
        await call.end("STOPPING")

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(2)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        one = asyncio.create_task(stream.step([1.0]))
        await eventually(lambda: stream._session._call.half_closed, "the move")
        other = asyncio.create_task(stream.step([2.0]))
        await asyncio.sleep(0)
        moving.set()
        assert [(await one)["sum"].item(), (await other)["sum"].item()] == [1.0, 3.0]


async def test_a_move_without_an_end_is_left() -> None:
    """A server that hangs while it stops is not waited for longer than `timeout_s`."""

    async def first(call: Call) -> None:
        await call.open()
        await call.move()
        assert await call.read() is None
        let_time_out(client)
        await call.gone()

    async with connected(first, resume_and_close) as (client, server, _):
        async with client.open("a") as stream:
            await eventually(lambda: stream.reconnects == 1, "the reconnect")
        assert server.left.is_set()


async def test_tries_are_delayed_more_and_more() -> None:
    """At once, then within 50 ms, doubling to 1 s; the dice show the most each time."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end()

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    async with connected(first, *[down] * 9, resume_and_close) as (client, _, time), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 1, "the reconnect")
        assert time.slept == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]


async def test_a_server_that_falls_over_at_once_is_not_run_over() -> None:
    """It opens, and breaks: the waits go on growing though each open is answered, and for ever."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end()

    scripts = [script] * 5
    async with connected(*scripts, resume_and_close, reconnect_s=0.2) as (client, _, time), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 5, "the reconnects")
        assert time.slept == [0.0, 0.05, 0.1, 0.2, 0.2]


async def test_a_call_that_lived_long_resets_the_backoff() -> None:
    """A break an hour after another is a break of its own."""
    turns: asyncio.Queue[None] = asyncio.Queue(1)

    async def script(call: Call) -> None:
        await call.open()
        await turns.get()
        await call.end()

    async with connected(script, script, script, resume_and_close) as (client, _, time), client.open("a") as stream:
        for epoch in (1, 2, 3):
            await eventually(lambda epoch=epoch: stream.epoch == epoch, "the open")
            time.now += 5.0
            await turns.put(None)
        await eventually(lambda: stream.reconnects == 3, "the reconnects")
        assert time.slept == [0.0, 0.0, 0.0]


async def test_a_new_prediction_resets_the_backoff() -> None:
    """And the time for trying: a line that drops every few seconds goes on for ever, as long as it gets on."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(len(call.server.history) + 1)
        await call.end()

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    scripts = [script, down, down] * 4
    async with connected(*scripts, resume_and_close, reconnect_s=0.2) as (client, _, time), client.open("a") as stream:
        for total in (1.0, 2.0, 3.0, 4.0):
            assert await sums(stream, [1.0]) == [total]
        await eventually(lambda: stream.reconnects == 4, "the reconnects")
        assert time.slept == [0.0, 0.05, 0.1] * 4


async def test_trying_has_an_end() -> None:
    """After `reconnect_s` all callers get the reason; no timestep of a lost stream waits for ever."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.end()

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    async with connected(first, *[down] * 3, reconnect_s=0.11) as (client, _, time):
        with pytest.raises(ServerUnavailable, match=r"STOPPING it is; tried for 0\.11 s") as caught:
            async with client.open("a") as stream:
                await stream.step([1.0])
        assert caught.value.reason == "STOPPING"
        assert time.slept == [0.0, 0.05, pytest.approx(0.06)]


async def test_trying_may_have_no_end() -> None:
    """With `reconnect_s=None`."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end()

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    async with connected(first, *[down] * 100, resume_and_close, reconnect_s=None) as (client, _, time):
        async with client.open("a") as stream:
            await eventually(lambda: stream.reconnects == 1, "the reconnect")
        assert time.now > 90


async def test_a_timestep_that_kills_its_server_is_not_sent_for_ever() -> None:
    """The replay before it succeeds each time; that is no progress."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        call.server.crash(0)
        await call.end()

    async def poisoned(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2)
        call.server.crash(0)
        await call.end()

    async with connected(first, *[poisoned] * 5, reconnect_s=0.5) as (client, _, _), client.open("a") as stream:
        await stream.step([1.0])
        with pytest.raises(ServerUnavailable, match=r"tried for 0\.5 s"):
            await stream.step([2.0])


async def test_a_server_that_does_not_answer_an_open_is_left() -> None:
    """It was reached and does not answer: the next try may reach another server."""

    async def silent(call: Call) -> None:
        await call.read_open()
        let_time_out(client)
        await call.gone()

    async def first(call: Call) -> None:
        await call.open()
        await call.end()

    async with connected(first, silent, resume_and_close) as (client, server, _):
        async with client.open("a") as stream:
            await eventually(lambda: stream.reconnects == 1, "the reconnect")
        assert server.left.is_set()


async def test_an_open_that_was_answered_has_all_the_time() -> None:
    """A stream may be silent for longer than an open may take."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        assert stream._session._call._watchdog is None
        assert await sums(stream, [1.0]) == [1.0]
        assert stream.reconnects == 0


async def test_a_first_open_is_tried_for_as_long_as_any_question() -> None:
    """Within `timeout_s`, not `reconnect_s`: a user who starts a program must see soon that the address is wrong."""

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    async with connected(*[down] * 16, timeout_s=10.0) as (client, _, time):
        with pytest.raises(ServerUnavailable, match="STOPPING"):
            async with client.open("a"):
                pass
        assert time.slept == pytest.approx([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 8, 0.45])


async def test_a_first_open_survives_a_restart() -> None:
    """A program that starts while the server does gets its stream."""

    async def down(call: Call) -> None:
        await call.end("STOPPING")

    async with connected(down, resume_and_close) as (client, _, _), client.open("a") as stream:
        assert stream.reconnects == 0


@pytest.mark.parametrize(
    ("reason", "code", "error"),
    [
        ("MODEL_NOT_FOUND", "NOT_FOUND", ModelNotFound),
        ("STREAM_NOT_FOUND", "NOT_FOUND", StreamNotFound),
    ],
)
async def test_an_open_that_is_refused_is_not_tried_again(reason: str, code: str, error: type[ClientError]) -> None:
    """The user gets the error at once."""

    async def script(call: Call) -> None:
        await call.read_open()
        await call.end(reason, code)

    async with connected(script) as (client, _, _):
        with pytest.raises(error, match=reason) as caught:
            async with client.open("a"):
                pass
        assert caught.value.reason == reason


async def test_a_full_server_is_waited_for() -> None:
    """As long as any first open; then the user gets the error that it is full."""

    async def full(call: Call) -> None:
        await call.read_open()
        await call.end("TOO_MANY_STREAMS", "RESOURCE_EXHAUSTED")

    async with connected(full, full, resume_and_close) as (client, _, _), client.open("a") as stream:
        assert stream.reconnects == 0
    async with connected(full, reconnect_s=0) as (client, _, _):
        with pytest.raises(TooManyStreams, match="tried for 0 s"):
            async with client.open("a"):
                pass


async def test_a_full_server_is_tried_again_after_a_disconnect() -> None:
    """A slot comes free when others leave; a stream that was open is worth waiting for."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end()

    async def full(call: Call) -> None:
        await call.read_open()
        await call.end("TOO_MANY_STREAMS", "RESOURCE_EXHAUSTED")

    async with connected(first, full, resume_and_close) as (client, _, _), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 1, "the reconnect")


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


async def test_a_server_that_is_killed_and_comes_back_is_found_again() -> None:
    """A real connection that breaks, a port that refuses, and a server that is there again: nothing is seen of it."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.gone()

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(2)
        await closing(call)

    servicer = Scripted([first, second])

    async def start(port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server, port

    server, port = await start(0)
    async with asyncio.timeout(TIMEOUT_S), Client(f"127.0.0.1:{port}") as client, client.open("a") as stream:
        await sums(stream, [1.0])
        await server.stop(None)
        waiting = asyncio.create_task(stream.step([2.0]))
        await eventually(lambda: stream._session._retry.tries > 2, "tries in vain")
        server, _ = await start(port)
        assert (await waiting)["sum"].item() == 3.0
    await server.stop(None)
    assert not servicer.failed
