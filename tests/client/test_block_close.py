"""How a call with many streams ends: closed, forgotten, left, or by a bug."""

import asyncio

import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, closing, column, connected, sums
from tests.timeouts import eventually
from tidegate.client import ServerUnavailable, StreamLost, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


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
