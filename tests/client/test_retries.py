"""A call with one stream that is tried again, elsewhere or later: moves, restarts, the backoff, full servers."""

import asyncio

import grpc
import pytest

from tests.scripted import Scripted, closing, connected, let_time_out, resume_and_close, sums
from tests.scripted_calls import Call
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ClientError, ModelNotFound, ServerUnavailable, StreamNotFound, TooManyStreams
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


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
