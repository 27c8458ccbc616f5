"""Streams of a client share a call: what they have in common, and what each has alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests import scripted
from tests.client.scripted_blocks import MODEL, BlockCall, ScriptedBlocks, connected
from tests.scripted import sent
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Block, Client, Prediction, Stream
from tidegate.client.errors import ModelNotFound, StreamLost, TakenOver, TooManyStreams
from tidegate.client.retry import Backoff
from tidegate.v1 import tidegate_pb2 as pb

OTHER = pb.Model()
OTHER.CopyFrom(MODEL)
OTHER.name = "other"


def closed_on(call: BlockCall) -> list[str]:
    """The streams that the client has closed there, as far as `serve` has answered."""
    names: list[str] = vars(call).setdefault("closed", [])
    return names


async def serve(call: BlockCall, requests: int | None = None) -> None:
    """Answers whatever comes: so many requests, or all until the client half-closes."""
    while requests is None or (requests := requests - 1) >= 0:
        request = await call.read()
        if request is None:
            assert requests is None, "the client has left the call"
            return
        if request.HasField("open"):
            call.opens.append(request.open)
            await call.answer_open(request.open, {})
        elif request.HasField("block"):
            call.take_block(request.block)
            await call.answer_block(call.apply())
        else:
            names = [call.names[handle - 1] for handle in request.close.handles]
            call.server.stored.update({name: len(call.server.histories[name]) for name in names})
            steps = [call.server.stored[name] for name in names]
            closed_on(call).extend(names)
            await call.write(closed=pb.ClosedStreams(steps=steps, durable_steps=steps))


async def rest(call: BlockCall) -> None:
    """Answers whatever comes until the client half-closes."""
    await serve(call)


async def fail_in(opening: Any, then: Callable[[Any], Awaitable[Any]]) -> None:
    """Opens a stream, does something with it, and leaves it by an exception."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is left
        async with opening as kept:
            await then(kept)
            raise ZeroDivisionError


@asynccontextmanager
async def held_back(*scripts: Any) -> AsyncIterator[tuple[Client, ScriptedBlocks, asyncio.Event, asyncio.Event]]:
    """A client that waits between calls until it is let go: gives it, its server, whether it waits, and what lets it go."""
    waits, go = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        waits.set()
        await go.wait()

    async with (
        scripted.scripted(*scripts, make=ScriptedBlocks) as server,
        Client(server.address, backoff=Backoff(sleep=sleep)) as client,
    ):
        yield client, server, waits, go


async def test_streams_of_a_client_share_a_call_and_a_message() -> None:
    """Streams and blocks alike: what is submitted in one turn leaves in one message."""

    async def script(call: BlockCall) -> None:
        await serve(call, 3)
        assert await call.serve_block() == [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 3.0), ("d", 1, 4.0)]
        await rest(call)

    async with (
        connected(script) as (client, _, _),
        client.open("a") as a,
        client.open("b") as b,
        client.block(["c", "d"]) as block,
    ):
        first, second, both = await asyncio.gather(a.step([1.0]), b.step([2.0]), block.step([[3.0], [4.0]]))
        assert (first["sum"].item(), second["sum"].item(), both["sum"].tolist()) == (1.0, 2.0, [[3.0], [4.0]])


async def test_many_streams_in_a_loop_keep_the_server_at_work() -> None:
    """The half that is answered first has sent its next timesteps when the other half begins: one message is read before the other is answered."""
    streams = 64
    sizes: list[int] = []

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        sizes.append(len(await call.serve_block()))
        first, number = await call.read_block(), call.number
        second, later = await call.read_block(), call.number
        sizes.extend([len(first), len(second)])
        for call.rows, call.number in ((first, number), (second, later)):
            await call.answer_block(call.apply())
        await rest(call)

    async def loop(stream: Stream) -> list[float]:
        return [(await stream.step([1.0]))["sum"].item() for _ in range(2)]

    async with connected(script) as (client, _, _), AsyncExitStack() as stack:
        opening = [stack.enter_async_context(client.open(f"s{number}")) for number in range(streams)]
        assert await asyncio.gather(*map(loop, await asyncio.gather(*opening))) == [[1.0, 2.0]] * streams
    assert sizes == [64, 32, 32]


async def test_streams_of_two_models_share_a_call() -> None:
    """Each message has timesteps of one of them."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.open_streams(model=OTHER)
        messages = [await call.read_block(), []]
        await call.answer_block(call.apply())
        messages[1] = await call.serve_block()
        assert messages == [[("a", 1, 1.0), ("a", 2, 3.0)], [("b", 1, 2.0)]]
        await rest(call)

    async with (
        connected(script) as (client, _, _),
        client.open("a", model="toy") as a,
        client.open("b", model="other") as b,
    ):
        answers = await asyncio.gather(a.step([1.0]), b.step([2.0]), a.step([3.0]))
        assert [answer["sum"].item() for answer in answers] == [1.0, 2.0, 4.0]
        assert (a.model.name, b.model.name) == ("toy", "other")


async def test_many_streams_that_are_opened_in_one_turn_are_opened_in_one_message() -> None:
    """A gateway that opens them one by one is not slower than a block."""
    names = [f"s{number}" for number in range(50)]

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        assert list(call.opens[0].stream_ids) == names
        await rest(call)
        assert sorted(closed_on(call)) == sorted(names)

    async with connected(script) as (client, _, _), AsyncExitStack() as stack:
        streams = await asyncio.gather(*(stack.enter_async_context(client.open(name)) for name in names))
        assert [stream.stream_id for stream in streams] == names


async def test_a_stream_joins_while_another_is_at_work() -> None:
    """What is in flight is answered behind its open."""
    in_flight = asyncio.Event()

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        in_flight.set()
        await call.open_streams()
        await call.answer_block(call.apply())
        await rest(call)

    async with connected(script) as (client, _, _), client.open("a") as a:
        step = asyncio.create_task(a.step([1.0]))
        await in_flight.wait()
        async with client.open("b") as b:
            assert (await b.step([2.0]))["sum"].item() == 2.0
        assert (await step)["sum"].item() == 1.0
        assert a.reconnects == 0


async def test_a_stream_joins_while_the_call_is_broken() -> None:
    """It is opened with the others on the next call, and what waited for that is sent."""

    async def breaks(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async with held_back(breaks, rest) as (client, server, waits, go), client.open("a") as a:
        await waits.wait()
        step = asyncio.create_task(a.step([1.0]))
        opening = asyncio.create_task(client.open("b").__aenter__())
        await sent()
        assert not opening.done()
        go.set()
        b = await opening
        assert (await b.step([2.0]))["sum"].item() == 2.0
        assert (await step)["sum"].item() == 1.0
        assert [name for ask in server.calls[1].opens for name in ask.stream_ids] == ["a", "b"]
        assert (a.reconnects, b.reconnects) == (1, 0)


async def test_a_stream_leaves_while_the_call_is_broken() -> None:
    """The next call is about the others alone, and closes nothing."""

    async def breaks(call: BlockCall) -> None:
        await serve(call, 2)
        await call.end()

    async with held_back(breaks, rest) as (client, server, waits, go), client.open("a") as a:
        await fail_in(client.open("b"), lambda _: waits.wait())
        go.set()
        assert (await a.step([1.0]))["sum"].item() == 1.0
        assert [list(ask.stream_ids) for ask in server.calls[1].opens] == [["a"]]
        assert closed_on(server.calls[1]) == []


async def test_a_stream_that_is_left_by_an_exception_is_closed_in_the_background() -> None:
    """The others notice nothing, and a stream that is opened then has nothing of it, whatever was in flight."""
    in_flight = asyncio.Event()

    async def script(call: BlockCall) -> None:
        await serve(call, 2)
        assert await call.read_block() == [("a", 1, 1.0), ("b", 1, 2.0)]
        in_flight.set()
        await serve(call, 2)
        assert closed_on(call) == ["b"]
        await call.answer_block(call.apply())
        await rest(call)

    async with connected(script) as (client, _, _), client.open("a") as a:
        steps: list[asyncio.Task[Prediction]] = []

        async def step(b: Stream) -> None:
            steps.extend(asyncio.create_task(stream.step([value])) for stream, value in ((a, 1.0), (b, 2.0)))
            await in_flight.wait()

        await fail_in(client.open("b"), step)
        async with client.open("c") as c:
            assert (await c.step([3.0]))["sum"].item() == 3.0
            assert c.next_step == 2
        assert (await steps[0])["sum"].item() == 1.0
        with pytest.raises(StreamLost, match="was left"):
            await steps[1]
        assert a.reconnects == 0


async def test_a_refused_open_that_ends_the_call_does_not_affect_others() -> None:
    """The others are open again at once, and lose nothing of what was in flight."""
    in_flight = asyncio.Event()

    async def refuses(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        in_flight.set()
        await call.read_streams()
        await call.end("MODEL_NOT_FOUND", "NOT_FOUND")

    async with connected(refuses, rest) as (client, server, time), client.open("a") as a:
        step = asyncio.create_task(a.step([1.0]))
        await in_flight.wait()
        with pytest.raises(ModelNotFound):
            async with client.open("b", model="gone"):
                pass
        assert (await step)["sum"].item() == 1.0
        assert a.reconnects == 1
        assert list(server.calls[1].opens[0].stream_ids) == ["a"]
        assert time.slept == []


async def test_of_a_stream_that_a_client_opens_twice_the_first_is_taken_over() -> None:
    """As if another client had opened it; the second goes on where the first was, and stays open when the first is left."""
    async with connected(rest) as (client, server, _), client.open("a") as older:
        assert (await older.step([1.0]))["sum"].item() == 1.0
        async with client.open("a") as newer:
            assert newer.next_step == 2
            with pytest.raises(TakenOver):
                await older.step([2.0])
            assert (await newer.step([3.0]))["sum"].item() == 4.0
        assert server.histories == {"a": [1.0, 3.0]}


async def test_a_call_ends_when_the_last_stream_has_left() -> None:
    """And another begins with the next stream."""
    async with connected(rest, rest) as (client, server, _):
        async with client.open("a"), client.open("b"):
            pass
        assert closed_on(server.calls[0]) == ["b", "a"]
        async with client.open("c") as c:
            assert (await c.step([1.0]))["sum"].item() == 1.0
        assert [call.names for call in server.calls] == [["a", "b"], ["c"]]


async def test_a_stream_whose_answers_wait_for_the_store_has_a_call_of_its_own() -> None:
    """It would hold up the others; such streams share one."""
    async with (
        connected(rest, rest) as (client, server, _),
        client.open("a"),
        client.open("b", sync=True),
        client.block(["c"], sync=True),
        client.open("d"),
    ):
        assert [call.names for call in server.calls] == [["a", "d"], ["b", "c"]]
        assert {ask.durability for ask in server.calls[0].opens} == {pb.DURABILITY_ASYNC}
        assert {ask.durability for ask in server.calls[1].opens} == {pb.DURABILITY_SYNC}


async def test_streams_are_spread_over_connections() -> None:
    """As many as were asked for; one that is opened twice stays where it is."""
    async with (
        connected(rest, rest, calls=2) as (client, server, _),
        client.open("a"),
        client.open("b"),
        client.open("c"),
        client.open("d") as older,
    ):
        names = sorted(call.names for call in server.calls)
        assert names == [["a", "c"], ["b", "d"]]
        assert len({call.context.peer() for call in server.calls}) == 2
        async with client.open("d"):
            assert sorted(call.names for call in server.calls) == [["a", "c"], ["b", "d", "d"]]
        with pytest.raises(TakenOver):
            await older.step([1.0])


async def test_a_lost_stream_is_opened_again() -> None:
    """What is left of the first, once its call has ended, is not closed on the call of the second."""

    async def lost(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.answer_block(call.apply({0: "TAKEN_OVER"}))
        assert await call.read() is None

    async with connected(lost, rest) as (client, server, _):
        async with client.open("a") as a:
            with pytest.raises(TakenOver):
                await a.step([1.0])
            await eventually(lambda: client._sessions[False][0]._task is None, "the end of the call")
        async with client.open("a") as a:
            assert (await a.step([1.0]))["sum"].item() == 1.0
            await sent()
            assert (await a.step([2.0]))["sum"].item() == 3.0
            assert closed_on(server.calls[1]) == []


async def test_an_old_answer_is_requested_again_when_the_server_wants_its_streams_opened_again() -> None:
    """The message with it was refused as a whole, before the call ended."""

    async def going(call: BlockCall) -> None:
        await serve(call, 2)
        await call.read_block()
        await call.refuse_block("STOPPING")
        await call.end("STOPPING")

    async with connected(going, rest) as (client, _, _), client.open("a") as a:
        assert (await a.step([1.0]))["sum"].item() == 1.0
        assert (await a.step([1.0], step=1))["sum"].item() == 1.0


async def test_a_stream_has_all_the_time_that_it_may_take() -> None:
    """Whatever another, which has left, had taken of its own."""

    async def full(call: BlockCall) -> None:
        await call.open_streams()
        while "c" not in (ask := await call.read_streams()).stream_ids:
            await call.answer_open(ask, {"b": "TOO_MANY_STREAMS"})
        await call.answer_open(ask, {"c": "TOO_MANY_STREAMS"})
        await rest(call)

    async with connected(full) as (client, _, time), client.open("a"):
        with pytest.raises(TooManyStreams):
            async with client.open("b"):
                pass
        time.now += 10 * TIMEOUT_S
        async with client.open("c") as c:
            assert c.next_step == 1


async def test_a_stream_that_was_left_closes_no_other() -> None:
    """Another has its index by then."""
    async with connected(rest) as (client, server, _), client.open("a"):
        kept: list[Stream | Block] = []

        async def keep(stream: Stream | Block) -> None:
            kept.append(stream)

        await fail_in(client.open("b"), keep)
        await fail_in(client.block(["c"]), keep)
        await eventually(lambda: closed_on(server.calls[0]) == ["b", "c"], "the close in the background")
        async with client.block(["d", "e"]) as others:
            await asyncio.gather(*(stream.close() for stream in kept))
            await sent()
            assert (await others.step([[1.0], [2.0]]))["sum"].tolist() == [[1.0], [2.0]]


async def test_a_stream_is_not_suspected_in_place_of_another() -> None:
    """Which was alone in flight when the server broke, and has left: this one has its index, and a break is no fault of it."""
    now, go = 0.0, asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds:  # what is suspected is held back for as long as the test takes
            await asyncio.Event().wait()

    async def breaks(call: BlockCall) -> None:
        while (request := await call.read()) is not None and request.HasField("open"):
            await call.answer_open(request.open, {})
        await call.end()

    async def breaks_once_more(call: BlockCall) -> None:
        await serve(call, 4)  # an open, a timestep of b, the close of a, and another open
        await go.wait()
        await call.end()

    async with (
        scripted.scripted(*[breaks] * 4, breaks_once_more, rest, make=ScriptedBlocks) as server,
        Client(server.address, backoff=Backoff(clock=lambda: now, sleep=sleep, dice=lambda: 0.0)) as client,
    ):
        a = client.open("a")
        stream, b = await a.__aenter__(), await client.open("b").__aenter__()
        steps = [asyncio.create_task(one.step([1.0])) for one in (stream, b)]
        assert (await steps[1])["sum"].item() == 1.0
        await a.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
        with pytest.raises(StreamLost, match="was left"):
            await steps[0]
        c = await client.open("c").__aenter__()
        now = 1000.0
        go.set()
        assert (await c.step([2.0]))["sum"].item() == 2.0


async def test_a_name_occurs_in_a_message_once() -> None:
    """A server may open the streams of a message in any order, and the one that was asked for last has it in the end."""

    async def breaks(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async with held_back(breaks, rest) as (client, server, waits, go):
        older = await client.open("a", model="toy", version="1").__aenter__()
        await waits.wait()
        opening = asyncio.create_task(client.open("a", model="toy", version="1").__aenter__())
        await sent()
        go.set()
        newer = await opening
        assert [list(ask.stream_ids) for ask in server.calls[1].opens] == [["a"], ["a"]]
        assert (await newer.step([1.0]))["sum"].item() == 1.0
        with pytest.raises(TakenOver):
            await older.step([2.0])
