"""Opens of one stream, first and again: options, where it resumes, whose it is, and when that is refused."""

import asyncio
from typing import Any

import pytest

from tests.scripted import closing, connected, resume_and_close, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate.client import Client, DataLost, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


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


# Where a stream resumes ------------------------------------------------------------------------------------------------


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


# Owners ----------------------------------------------------------------------------------------------------------------


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
