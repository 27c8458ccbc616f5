"""The client follows the action of an error, whatever its reason: a newer server may have reasons that this client does not know."""

from typing import Any

import pytest

from tests.client.reasons import error_of
from tests.scripted import closing, connected, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate.client import (
    ClientError,
    InvalidTimestep,
    ServerUnavailable,
    StreamLost,
    StreamRefused,
    TimestepRefused,
    ValuesDiffer,
)
from tidegate.v1 import tidegate_pb2 as pb

# A reason, and an action, that this client does not know.
NEW = 99
ACTIONS_LOST = [pb.Error.ACTION_STREAM_LOST, pb.Error.ACTION_UNSPECIFIED, NEW]


def unheard_of(action: int, **more: Any) -> pb.Error:
    """An error for a reason that is not known."""
    return pb.Error(reason=NEW, action=action, message="nobody knows why", **more)


# One stream, in band -----------------------------------------------------------------------------------------------------


async def test_a_timestep_is_sent_again_on_the_action_of_the_server() -> None:
    """After the wait that it asks for."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason=error_of(unheard_of(pb.Error.ACTION_RETRY, retry_after={"nanos": 200_000_000})))
        await call.refuse(2, reason="STEP_GAP")
        await call.serve(1, 2)
        await closing(call)

    async with connected(script) as (client, _, time), client.open("a") as stream:
        assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
        assert time.slept == [pytest.approx(0.3)]


async def test_a_timestep_that_is_retried_too_long_is_refused() -> None:
    """By the general name of that, with the reason's number."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason=unheard_of(pb.Error.ACTION_RETRY))
        await closing(call)

    async with connected(script, reconnect_s=0) as (client, _, _), client.open("a") as stream:
        with pytest.raises(TimestepRefused, match="nobody knows why") as caught:
            await stream.step([1.0])
        assert (type(caught.value), caught.value.reason) == (TimestepRefused, str(NEW))


async def test_a_timestep_is_dropped_on_the_action_of_the_server() -> None:
    """Its caller gets the error; the next one takes its number."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason=unheard_of(pb.Error.ACTION_DROP))
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        with pytest.raises(TimestepRefused) as caught:
            await stream.step([1.0])
        assert type(caught.value) is TimestepRefused
        assert await sums(stream, [2.0]) == [2.0]


async def test_a_stream_is_opened_again_on_the_action_of_the_server() -> None:
    """The user sees nothing, nor does a caller that requests an old answer."""

    async def first(call: Call) -> None:
        call.server.history.append(1.0)
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason=unheard_of(pb.Error.ACTION_REOPEN))
        await call.gone()

    async def second(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1)
        await call.expect_unapplied(2)
        await call.refuse(2, reason=unheard_of(pb.Error.ACTION_REOPEN))
        await call.gone()

    async def third(call: Call) -> None:
        await call.open()
        await call.serve(2)
        await closing(call)

    async with connected(first, second, third) as (client, _, _), client.open("a") as stream:
        assert (await stream.step([1.0], step=1))["sum"].item() == 1.0
        assert await sums(stream, [2.0]) == [3.0]
        assert stream.reconnects == 2


async def test_a_reopen_that_is_refused_for_an_unknown_reason_is_a_loss() -> None:
    """The stream was open: it is not refused but lost, as when its call had ended so."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end("", "UNAVAILABLE")

    async def second(call: Call) -> None:
        await call.read_open()
        await call.end("UNHEARD_OF", "ABORTED", action="STREAM_LOST")

    async with connected(first, second) as (client, _, _):
        with pytest.raises(StreamLost) as caught:
            async with client.open("a") as stream:
                await stream.step([1.0])
        assert type(caught.value) is StreamLost


@pytest.mark.parametrize("action", ACTIONS_LOST)
@pytest.mark.parametrize("step", [None, 1], ids=["new", "asked for again"])
async def test_a_stream_is_lost_on_the_action_of_the_server(action: int, step: int | None) -> None:
    """Or for an action that this client does not know: continuing might lose data."""

    async def script(call: Call) -> None:
        call.server.history.append(1.0)
        await call.open()
        number = step or 2
        await call.expect_unapplied(number)
        await call.refuse(number, reason=unheard_of(action))
        await call.gone()

    async with connected(script) as (client, _, _), client.open("a") as stream:
        for _ in range(2):
            with pytest.raises(StreamLost, match="nobody knows why") as caught:
                await stream.step([1.0], step=step)
            assert type(caught.value) is StreamLost


# One stream, at the end of a call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["RETRY", "REOPEN"])
async def test_a_call_that_ends_for_a_while_is_opened_again(action: str) -> None:
    """Neither its first open nor a later one gives up."""

    async def refused(call: Call) -> None:
        await call.read_open()
        await call.end("UNHEARD_OF", "RESOURCE_EXHAUSTED", action=action)

    async def broken(call: Call) -> None:
        await call.open()
        await call.end("UNHEARD_OF", "ABORTED", action=action)

    async def last(call: Call) -> None:
        await call.open()
        await closing(call)

    async with connected(refused, broken, refused, last) as (client, _, _), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 1, "the reconnect")


@pytest.mark.parametrize("action", ["RETRY", "REOPEN"])
async def test_a_call_that_ends_for_ever_is_unavailable(action: str) -> None:
    """The general class for a server that cannot be reached."""

    async def refused(call: Call) -> None:
        await call.read_open()
        await call.end("UNHEARD_OF", "FAILED_PRECONDITION", action=action)

    async with connected(refused, reconnect_s=0) as (client, _, _):
        with pytest.raises(ServerUnavailable, match="UNHEARD_OF it is; tried for 0 s") as caught:
            async with client.open("a"):
                pass
        assert caught.value.reason == "UNHEARD_OF"


@pytest.mark.parametrize("action", ["DROP", "STREAM_LOST", "SHRUG", ""])
@pytest.mark.parametrize(("opens", "error"), [(False, StreamRefused), (True, StreamLost)])
async def test_a_call_that_ends_for_good_is_not_opened_again(
    action: str, opens: bool, error: type[ClientError]
) -> None:
    """Though its code is that of a break: the service knows better. A stream that was open is lost, another refused."""

    async def script(call: Call) -> None:
        await (call.open() if opens else call.read_open())
        await call.end("UNHEARD_OF", "UNAVAILABLE", action=action)

    async with connected(script) as (client, _, _):
        with pytest.raises(error) as caught:
            async with client.open("a") as stream:
                await stream.step([1.0])
        assert (type(caught.value), caught.value.reason) == (error, "UNHEARD_OF")


async def test_a_known_reason_with_another_action_is_acted_on() -> None:
    """The reason only gives the name."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER", action="REOPEN")

    async def second(call: Call) -> None:
        await call.open()
        await call.end("STOPPING", action="STREAM_LOST")

    async with connected(first, second) as (client, _, _):
        with pytest.raises(StreamLost, match=r"^STOPPING it is$"):
            async with client.open("a") as stream:
                await eventually(stream._ended_event.is_set, "the end")


async def test_details_that_another_made_are_no_word_of_the_service() -> None:
    """A proxy may send google.rpc.ErrorInfo too: only its code counts."""

    async def first(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER", "UNAVAILABLE", domain="proxy.example", action="STREAM_LOST")

    async def second(call: Call) -> None:
        await call.open()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await eventually(lambda: stream.reconnects == 1, "the reconnect")


@pytest.mark.parametrize(("opens", "error"), [(False, StreamRefused), (True, StreamLost)])
async def test_a_message_that_is_too_large_is_not_sent_again(opens: bool, error: type[ClientError]) -> None:
    """It is refused by gRPC, as calls too many are: tried again it would be as large for a minute."""

    async def script(call: Call) -> None:
        await (call.open() if opens else call.read_open())
        await call.end(
            code="RESOURCE_EXHAUSTED", message="SERVER: Received message larger than max (5000019 vs. 4194304)"
        )

    async with connected(script) as (client, _, time):
        with pytest.raises(error, match=r"a message was too long: .* \(5000019 vs. 4194304\); send less") as caught:
            async with client.open("a") as stream:
                await stream.step([1.0])
        assert (caught.value.reason, time.slept) == ("RESOURCE_EXHAUSTED", [])


# Values that differ ------------------------------------------------------------------------------------------------------


async def test_other_values_under_a_new_number_lose_the_stream() -> None:
    """Somebody else has written under it: whatever this client sends next is about another history."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason="VALUES_DIFFER", next_step=2)
        await call.gone()

    async with connected(script) as (client, _, _), client.open("a") as stream:
        for _ in range(2):
            with pytest.raises(ValuesDiffer, match="1 is refused"):
                await stream.step([1.0])


async def test_other_values_in_a_replay_lose_the_stream() -> None:
    """The server goes on from a history that is not the one that was delivered."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason="VALUES_DIFFER")
        await call.refuse(2, reason="STEP_GAP")
        await call.gone()

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0, 2.0])
        await eventually(stream._ended_event.is_set, "the end")
        with pytest.raises(ValuesDiffer):
            await stream.step([3.0])


async def test_a_repeat_with_other_values_fails_alone() -> None:
    """The stream has sent nothing wrong: it goes on, and the right values are answered."""

    async def script(call: Call) -> None:
        call.server.history.append(1.0)
        await call.open()
        await call.expect(1)
        await call.refuse(1, reason="VALUES_DIFFER")
        await call.expect(1)
        await call.answer(1)
        await call.serve(2)
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        with pytest.raises(InvalidTimestep, match="1 is refused") as caught:
            await stream.step([9.0], step=1)
        assert (caught.value.reason, caught.value.field) == ("VALUES_DIFFER", "values")
        assert (await stream.step([1.0], step=1))["sum"].item() == 1.0
        assert await sums(stream, [2.0]) == [3.0]
