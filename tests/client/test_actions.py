"""What a server says to do is done, whatever its reason: a newer server may have reasons that this client has never heard of."""

from typing import Any

import numpy as np
import pytest

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client import (
    ClientError,
    InvalidTimestep,
    ServerUnavailable,
    StreamLost,
    StreamRefused,
    TimestepRefused,
    ValuesDiffer,
)
from tests.client.scripted import Call, closing, connected, eventually, sums
from tests.client.scripted_blocks import BlockCall, error_of
from tests.client.scripted_blocks import closing as closing_streams
from tests.client.scripted_blocks import connected as connected_blocks
from tests.client.test_block import NAMES, column

# A reason, and an action, that this client does not know.
NEW = 99
ACTIONS_LOST = [pb.Error.ACTION_STREAM_LOST, pb.Error.ACTION_UNSPECIFIED, NEW]


def unheard_of(action: int, **more: Any) -> pb.Error:
    """An error for a reason that is not known."""
    return pb.Error(reason=NEW, action=action, message="nobody knows why", **more)


# One stream, in band -----------------------------------------------------------------------------------------------------


async def test_a_timestep_is_sent_again_when_the_server_says_so() -> None:
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


async def test_a_timestep_that_is_sent_again_in_vain_is_refused() -> None:
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


async def test_a_timestep_is_dropped_when_the_server_says_so() -> None:
    """Its caller is told; the next takes its number."""

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


async def test_a_stream_is_opened_again_when_the_server_says_so() -> None:
    """The user sees nothing, nor does whoever asks for an old answer."""

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


@pytest.mark.parametrize("action", ACTIONS_LOST)
@pytest.mark.parametrize("step", [None, 1], ids=["new", "asked for again"])
async def test_a_stream_is_lost_when_the_server_says_so(action: int, step: int | None) -> None:
    """Or when it says what this client does not know: going on might lose something."""

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
    """The general name of a server that is tried in vain."""

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
                await eventually(stream._task.done, "the end")


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
        with pytest.raises(error, match=r"a message is longer .* \(5000019 vs. 4194304\)") as caught:
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
        await call.expect_unapplied(1)
        await call.refuse(1, reason="VALUES_DIFFER")
        await call.gone()

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0, 2.0])
        await eventually(stream._task.done, "the end")
        with pytest.raises(ValuesDiffer):
            await stream.step([3.0])


async def test_whoever_asks_again_with_other_values_is_told_alone() -> None:
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


async def test_other_values_lose_one_stream_of_many() -> None:
    """The others go on."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "VALUES_DIFFER"})
        assert await call.close_streams() == ["a", "c"]

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert {row: type(error) for row, error in answer.errors.items()} == {1: ValuesDiffer}
        assert list(block.lost) == [1]


# Many streams ------------------------------------------------------------------------------------------------------------


async def test_a_row_is_sent_again_or_dropped_when_the_server_says_so() -> None:
    """Each for its stream alone."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({0: unheard_of(pb.Error.ACTION_RETRY), 1: unheard_of(pb.Error.ACTION_DROP)})
        assert await call.serve_block() == [("a", 1, 1.0)]
        assert await call.serve_block() == [("b", 1, 5.0)]
        await closing_streams(call)

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0, 3.0]
        assert {row: type(error) for row, error in answer.errors.items()} == {1: TimestepRefused}
        assert (await block.step(column(5), [1]))["sum"].item() == 5.0


async def test_a_row_opens_the_streams_again_when_the_server_says_so() -> None:
    """So does a block, a stream that could not be opened, and one that ended."""

    async def row(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: unheard_of(pb.Error.ACTION_REOPEN)})
        await call.gone()

    async def block_refused(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.write(block=pb.PredictedBlock(block=call.number, refused=unheard_of(pb.Error.ACTION_REOPEN)))
        await call.gone()

    async def opening(call: BlockCall) -> None:
        await call.open_streams({"b": unheard_of(pb.Error.ACTION_REOPEN)})
        await call.gone()

    async def ended(call: BlockCall) -> None:
        await call.open_streams()
        await call.write(ended=pb.EndedStreams(handles=[1], error=unheard_of(pb.Error.ACTION_REOPEN)))
        await call.gone()

    async def last(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing_streams(call)

    scripts = row, block_refused, opening, ended, last
    async with connected_blocks(*scripts) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert (answer["sum"].ravel().tolist(), answer.errors) == ([1.0, 2.0, 3.0], {})


@pytest.mark.parametrize("action", ACTIONS_LOST)
async def test_a_row_loses_its_stream_when_the_server_says_so(action: int) -> None:
    """Or says what this client does not know; the others go on."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: unheard_of(action)})
        assert await call.serve_block() == [("a", 2, 4.0), ("c", 2, 6.0)]
        assert await call.close_streams() == ["a", "c"]

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        for _ in range(2):
            answer = await block.step(column(4, 5, 6))
            assert {row: type(error) for row, error in answer.errors.items()} == {1: StreamLost}


@pytest.mark.parametrize("action", [*ACTIONS_LOST, pb.Error.ACTION_DROP])
async def test_a_block_that_is_refused_for_good_loses_all_streams(action: int) -> None:
    """What is wrong with it would be wrong again."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.write(block=pb.PredictedBlock(block=call.number, refused=unheard_of(action)))
        await call.gone()

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        with pytest.raises(StreamLost, match="refused a block: nobody knows why"):
            await block.step(column(1, 2, 3))


async def test_a_stream_is_asked_for_again_when_the_server_says_so() -> None:
    """The others are open meanwhile."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": unheard_of(pb.Error.ACTION_RETRY)})
        ask = await call.read_streams()
        assert list(ask.stream_ids) == ["b"]
        await call.answer_open(ask, {})
        await closing_streams(call)

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        assert (block.refused, block.kinds) == ({}, ["new"] * 3)


@pytest.mark.parametrize("action", [*ACTIONS_LOST, pb.Error.ACTION_DROP])
async def test_a_stream_is_refused_when_the_server_says_so(action: int) -> None:
    """The others are open."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": unheard_of(action)})
        assert await call.close_streams() == ["a", "c"]

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        assert {stream: type(error) for stream, error in block.refused.items()} == {1: StreamRefused}


async def test_a_stream_that_ends_for_an_unknown_reason_is_lost() -> None:
    """Alone."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.write(ended=pb.EndedStreams(handles=[2], error=unheard_of(NEW)))
        await call.serve_block()
        assert await call.close_streams() == ["a", "c"]

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert type(answer.errors[1]) is StreamLost
        assert list(block.lost) == [1]


async def test_a_stream_that_cannot_be_closed_yet_is_closed_again() -> None:
    """One that is lost meanwhile is told."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.close_streams({"a": unheard_of(pb.Error.ACTION_RETRY), "b": unheard_of(NEW)})

    async def second(call: BlockCall) -> None:
        ask = await call.read_streams()
        assert list(ask.stream_ids) == ["a"]
        await call.answer_open(ask, {})
        assert await call.close_streams() == ["a"]

    async with connected_blocks(first, second) as (client, _, _):
        async with client.block(NAMES) as block:
            pass
        assert {stream: type(error) for stream, error in block.lost.items()} == {1: StreamLost}


# How large messages are --------------------------------------------------------------------------------------------------


async def test_blocks_are_no_longer_than_the_server_reads() -> None:
    """It says how long that is; more rows go in several."""

    async def script(call: BlockCall) -> None:
        await call.open_streams(message_bytes_max=256)
        rows = 0
        while rows < 30:
            request = await call.next("block")
            assert pb.PredictBlocksRequest(block=request).ByteSize() <= 256
            call.take_block(request)
            rows += len(call.rows)
            await call.answer_block(call.apply())
        await closing_streams(call)

    async with connected_blocks(script) as (client, _, _), client.block(30) as block:
        answer = await block.step(np.arange(30.0).reshape(30, 1))
        assert answer["sum"].ravel().tolist() == list(range(30))


async def test_opens_and_closes_are_no_longer_than_the_server_reads() -> None:
    """Once it has said so: those after a break."""

    async def first(call: BlockCall) -> None:
        await call.open_streams(message_bytes_max=2048)
        await call.end()

    async def second(call: BlockCall) -> None:
        while len(call.names) < 300:
            ask = await call.read_streams()
            assert pb.PredictBlocksRequest(open=ask).ByteSize() <= 2048
            await call.answer_open(ask, {}, message_bytes_max=2048)
        closed = 0
        while closed < 300:
            request = await call.next("close")
            assert pb.PredictBlocksRequest(close=request).ByteSize() <= 2048
            names = [call.names[handle - 1] for handle in request.handles]
            await call.write(closed=pb.ClosedStreams(steps=[0] * len(names), durable_steps=[0] * len(names)))
            closed += len(names)

    async with connected_blocks(first, second) as (client, _, _), client.block(300) as block:
        await eventually(lambda: block.reconnects == 1, "the reconnect")
