"""The action of an error applies to its stream only, whatever the reason; and messages are as long as the server reads."""

import numpy as np
import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, closing, column, connected
from tests.client.test_actions import ACTIONS_LOST, NEW, unheard_of
from tests.timeouts import eventually
from tidegate.client import StreamLost, StreamRefused, TimestepRefused, ValuesDiffer
from tidegate.v1 import tidegate_pb2 as pb


async def test_other_values_lose_one_stream_of_many() -> None:
    """The others go on."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "VALUES_DIFFER"})
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert {row: type(error) for row, error in answer.errors.items()} == {1: ValuesDiffer}
        assert list(block.lost) == [1]


async def test_a_row_is_sent_again_or_dropped_on_the_action_of_the_server() -> None:
    """Each for its stream alone."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({0: unheard_of(pb.Error.ACTION_RETRY), 1: unheard_of(pb.Error.ACTION_DROP)})
        assert await call.serve_block() == [("a", 1, 1.0)]
        assert await call.serve_block() == [("b", 1, 5.0)]
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0, 3.0]
        assert {row: type(error) for row, error in answer.errors.items()} == {1: TimestepRefused}
        assert (await block.step(column(5), [1]))["sum"].item() == 5.0


async def test_a_row_opens_the_streams_again_on_the_action_of_the_server() -> None:
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
        await closing(call)

    scripts = row, block_refused, opening, ended, last
    async with connected(*scripts) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert (answer["sum"].ravel().tolist(), answer.errors) == ([1.0, 2.0, 3.0], {})


@pytest.mark.parametrize("action", ACTIONS_LOST)
async def test_a_row_loses_its_stream_on_the_action_of_the_server(action: int) -> None:
    """Or an action that this client does not know; the others continue."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: unheard_of(action)})
        assert await call.serve_block() == [("a", 2, 4.0), ("c", 2, 6.0)]
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
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

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        with pytest.raises(StreamLost, match="refused a block: nobody knows why"):
            await block.step(column(1, 2, 3))


async def test_a_stream_is_requested_again_on_the_action_of_the_server() -> None:
    """The others are open meanwhile."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": unheard_of(pb.Error.ACTION_RETRY)})
        ask = await call.read_streams()
        assert list(ask.stream_ids) == ["b"]
        await call.answer_open(ask, {})
        await closing(call)

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        assert (block.refused, block.kinds) == ({}, ["new"] * 3)


@pytest.mark.parametrize("action", [*ACTIONS_LOST, pb.Error.ACTION_DROP])
async def test_a_stream_is_refused_on_the_action_of_the_server(action: int) -> None:
    """The others are open."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": unheard_of(action)})
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        assert {stream: type(error) for stream, error in block.refused.items()} == {1: StreamRefused}


async def test_a_stream_that_ends_for_an_unknown_reason_is_lost() -> None:
    """Alone."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.write(ended=pb.EndedStreams(handles=[2], error=unheard_of(NEW)))
        await call.serve_block()
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert type(answer.errors[1]) is StreamLost
        assert list(block.lost) == [1]


async def test_a_stream_that_cannot_be_closed_yet_is_closed_again() -> None:
    """A stream that is lost meanwhile is reported."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.close_streams({"a": unheard_of(pb.Error.ACTION_RETRY), "b": unheard_of(NEW)})

    async def second(call: BlockCall) -> None:
        ask = await call.read_streams()
        assert list(ask.stream_ids) == ["a"]
        await call.answer_open(ask, {})
        assert await call.close_streams() == ["a"]

    async with connected(first, second) as (client, _, _):
        async with client.block(NAMES) as block:
            pass
        assert {stream: type(error) for stream, error in block.lost.items()} == {1: StreamLost}


# How large messages are --------------------------------------------------------------------------------------------------


async def test_blocks_are_no_longer_than_the_server_reads() -> None:
    """The server reports its limit; more rows are sent in several messages."""

    async def script(call: BlockCall) -> None:
        await call.open_streams(message_bytes_max=256)
        rows = 0
        while rows < 30:
            request = await call.next("block")
            assert pb.PredictBlocksRequest(block=request).ByteSize() <= 256
            call.take_block(request)
            rows += len(call.rows)
            await call.answer_block(call.apply())
        await closing(call)

    async with connected(script) as (client, _, _), client.block(30) as block:
        answer = await block.step(np.arange(30.0).reshape(30, 1))
        assert answer["sum"].ravel().tolist() == list(range(30))


async def test_opens_and_closes_are_no_longer_than_the_server_reads() -> None:
    """Once the server has reported it: those after a disconnect."""

    async def first(call: BlockCall) -> None:
        await call.open_streams(message_bytes_max=1024)
        await call.end()

    async def second(call: BlockCall) -> None:
        while len(call.names) < 1000:
            ask = await call.read_streams()
            assert pb.PredictBlocksRequest(open=ask).ByteSize() <= 1024
            await call.answer_open(ask, {}, message_bytes_max=1024)
        closed = 0
        while closed < 1000:
            request = await call.next("close")
            assert pb.PredictBlocksRequest(close=request).ByteSize() <= 1024
            names = [call.names[handle - 1] for handle in request.handles]
            await call.write(closed=pb.ClosedStreams(steps=[0] * len(names), durable_steps=[0] * len(names)))
            closed += len(names)

    async with connected(first, second) as (client, _, _), client.block(1000) as block:
        await eventually(lambda: block.reconnects == 1 and block._window.open.sum() == 1000, "the reconnect")
