"""How a stream ends: closed when everything is stored, forgotten, or left at once."""

import asyncio
import gc

import pytest

from tests.scripted import closing, connected, scripted, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate.client import Client, ServerUnavailable, StreamLost, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


async def test_a_close_waits_for_what_is_in_flight() -> None:
    """The close is the last request, and nothing that was sent before it stays unanswered."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await call.close()
        assert await call.read() is None

    async with connected(script) as (client, _, _), client.open("a") as stream:
        steps = asyncio.gather(stream.step([1.0]), stream.step([2.0]))
        await asyncio.sleep(0)
        await stream.close()
        assert [answer["sum"].item() for answer in await steps] == [1.0, 3.0]
        assert stream.durable_step == 2


async def test_a_close_does_nothing_the_second_time() -> None:
    """Nor does leaving the context after it."""

    async def script(call: Call) -> None:
        await call.open()
        await closing(call)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        await stream.close()
        await stream.close()
        with pytest.raises(StreamLost, match="closed"):
            await stream.step([1.0])


async def test_a_stream_that_is_being_closed_takes_no_more() -> None:
    """Nor another close: the first one decides whether the stream is kept."""
    asked = asyncio.Event()

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await asked.wait()
        await call.answer(1)
        await call.close(forget=False)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        step = asyncio.create_task(stream.step([1.0]))
        await asyncio.sleep(0)
        closes = [asyncio.create_task(stream.close(forget=forget)) for forget in (False, True)]
        await asyncio.sleep(0)
        with pytest.raises(StreamLost, match="being closed"):
            await stream.step([2.0])
        asked.set()
        await asyncio.gather(*closes)
        assert (await step)["sum"].item() == 1.0


async def test_a_close_survives_a_disconnect() -> None:
    """The stream is opened again, what was lost is sent again, and then it is closed."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        request = await call.read()
        assert request is not None
        assert request.HasField("close")
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    async with connected(first, second) as (client, _, _):
        async with client.open("a") as stream:
            await sums(stream, [1.0, 2.0])
        assert stream.durable_step == 2


async def test_a_close_is_not_over_before_everything_is_stored() -> None:
    """A server that closes with less is asked again."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.close(durable=0)

    async def second(call: Call) -> None:
        await call.open(durable_step=1)
        await closing(call)

    async with connected(first, second) as (client, _, _):
        async with client.open("a") as stream:
            await sums(stream, [1.0])
        assert (stream.durable_step, stream.reconnects) == (1, 1)


async def test_a_close_that_is_never_stored_is_reported() -> None:
    """After `reconnect_s`: the user must know that the server may lose it."""

    async def script(call: Call) -> None:
        await call.open()
        if not call.server.history:
            await call.serve(1)
        await call.close(durable=0)

    async with connected(script, script, script, reconnect_s=0.05) as (client, _, _):
        with pytest.raises(ServerUnavailable, match="not stored up to their last answer"):
            async with client.open("a") as stream:
                await sums(stream, [1.0])


async def test_a_stream_can_be_forgotten() -> None:
    """The server drops it."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.close(durable=0, forget=True)

    async with connected(script) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await stream.close(forget=True)


async def test_a_stream_that_is_gone_already_is_forgotten() -> None:
    """The answer to the close was lost: the next open finds no stream, and makes none."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, durable=1)
        await call.read()
        await call.end()

    async def second(call: Call) -> None:
        await call.read_open()
        assert (call.ask.existence, call.ask.resume_from) == (pb.EXISTENCE_MUST_EXIST, 1)
        await call.refuse_open("STREAM_NOT_FOUND")

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await stream.close(forget=True)


async def test_a_stream_that_is_still_there_is_forgotten_without_a_replay() -> None:
    """After a break it matters no more what the server still has of it."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.read()
        call.server.crash(0)
        await call.end()

    async def second(call: Call) -> None:
        await call.open()
        await call.close(forget=True)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        await sums(stream, [1.0])
        await stream.close(forget=True)


async def test_leaving_by_an_exception_does_not_wait() -> None:
    """The call ends at once, whatever is in flight; callers get an error."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.gone()

    async with connected(script) as (client, server, _):
        opening = client.open("a")
        stream = await opening.__aenter__()
        waiting = asyncio.create_task(stream.step([1.0]))
        await eventually(lambda: stream._window._in_flight.sum() == 1, "the request")
        assert not await opening.__aexit__(KeyError, KeyError(), None)
        with pytest.raises(StreamLost):
            await waiting
        await server.left.wait()


async def test_leaving_by_cancellation_does_not_wait() -> None:
    """Neither when the server is there nor while it is being looked for."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    async with connected(script) as (client, server, _):

        async def work() -> None:
            async with client.open("a"):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await eventually(lambda: any(stream._ready.is_set() for stream in client._views), "the open")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await server.left.wait()


async def test_a_task_that_is_cancelled_from_outside_ends() -> None:
    """As when the event loop is shut down: it does not take that for a break, and look for the server again."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    async with connected(script) as (client, server, _), client.open("a") as stream:
        stream._session._task.cancel()
        await stream._ended_event.wait()
        with pytest.raises(StreamLost):
            await stream.step([1.0])
        await server.left.wait()


async def test_leaving_does_not_wait_for_a_back_off() -> None:
    """The server is away, and the next try is a minute off."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end()

    async with connected(script) as (client, _, time):
        sleeping = asyncio.Event()

        async def sleep(_: float) -> None:
            sleeping.set()
            await asyncio.Event().wait()

        object.__setattr__(time.backoff, "sleep", sleep)
        opening = client.open("a")
        await opening.__aenter__()
        await sleeping.wait()
        assert not await opening.__aexit__(KeyError, KeyError(), None)


async def test_an_open_that_is_cancelled_leaves_nothing() -> None:
    """Nobody answers it; the call ends with its caller."""

    async def silent(call: Call) -> None:
        await call.read_open()
        await call.gone()

    async with connected(silent) as (client, server, _):
        opening = asyncio.create_task(client.open("a").__aenter__())
        await eventually(lambda: bool(server.calls) and server.calls[0].ask.stream_id == "a", "the open")
        opening.cancel()
        await asyncio.wait([opening])
        await server.left.wait()
        assert not client._views


async def test_a_raised_error_is_not_raised_again_on_close() -> None:
    """The user has dealt with it."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER")

    async with connected(script) as (client, _, _), client.open("a") as stream:
        with pytest.raises(TakenOver):
            await stream.step([1.0])


async def test_a_stream_that_is_lost_at_once_is_entered() -> None:
    """Opened and lost before its user had a turn: the error comes with its use, as it does a moment later."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER")

    async with connected(script) as (client, _, _):
        opening = client.open("a")
        stream = opening._stream = await opening._begin()
        await stream._ended_event.wait()
        await stream.start()
        with pytest.raises(TakenOver):
            await stream.step([1.0])


async def test_a_client_that_is_closed_leaves_its_streams() -> None:
    """They do not go on looking for the server over a connection that is gone."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    async with scripted(script) as server:
        client = Client(server.address)
        opening = client.open("a")
        stream = await opening.__aenter__()
        await client.close()
        assert stream._ended_event.is_set()
        with pytest.raises(StreamLost):
            await stream.step([1.0])
        await opening.__aexit__(None, None, None)
        await server.left.wait()


async def test_a_stream_that_ends_unexpectedly_is_opened_again() -> None:
    """A server that closes by itself has not closed it for us."""

    async def first(call: Call) -> None:
        await call.open()
        await call.context.write(pb.PredictResponse(closed=pb.Closed()))

    async def second(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(first, second) as (client, _, _), client.open("a") as stream:
        assert await sums(stream, [1.0]) == [1.0]


async def test_a_stream_is_not_closed_by_the_garbage_collector() -> None:
    """The context was entered by hand and thrown away: the stream stays open until its client is closed."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.gone()

    async with scripted(script) as server:
        async with Client(server.address) as client:
            stream = await client.open("a").__aenter__()
            gc.collect()
            assert await sums(stream, [1.0]) == [1.0]
        await server.left.wait()
