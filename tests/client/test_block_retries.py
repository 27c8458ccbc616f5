"""A call with many streams that is tried again, elsewhere or later: moves, restarts, poisoned rows, full servers."""

import asyncio
from typing import Any

import grpc
import pytest

from tests.client.scripted_blocks import (
    NAMES,
    BlockCall,
    ScriptedBlocks,
    closing,
    column,
    connected,
    error_of,
    opened_and_closed,
    sums,
)
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ServerUnavailable, StreamLost, TooManyStreams
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


async def test_a_server_that_is_killed_and_comes_back_is_found_again() -> None:
    """A real connection that breaks, a port that refuses, a server that is there again: nothing is seen of it."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.gone()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    servicer = ScriptedBlocks([first, second])

    async def start(port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server, port

    server, port = await start(0)
    async with asyncio.timeout(TIMEOUT_S), Client(f"127.0.0.1:{port}") as client, client.block(NAMES) as block:
        await sums(block, [1, 2, 3])
        await server.stop(None)
        waiting = asyncio.create_task(sums(block, [1, 2, 3]))
        await eventually(lambda: block._session._retry.tries > 2, "tries in vain")
        server, _ = await start(port)
        assert await waiting == [2.0, 4.0, 6.0]
    await server.stop(None)
    assert not servicer.failed


async def test_a_move_is_followed() -> None:
    """What is under way is answered, nothing more is sent to the old server, and the user sees nothing."""
    moving = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.move()
        await moving.wait()
        await call.answer_block(call.apply())
        assert await call.read() is None, "sent to a server that asked to move"
        await call.end("STOPPING")

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        one = asyncio.create_task(sums(block, [1.0]))
        await eventually(lambda: block._session._call.half_closed, "the move")
        other = asyncio.create_task(sums(block, [2.0]))
        await asyncio.sleep(0)
        moving.set()
        assert [await one, await other] == [[1.0], [3.0]]


async def test_a_row_that_finds_the_server_stopping_is_sent_elsewhere() -> None:
    """So is a block, and a stream that was to be opened."""

    async def open_refused(call: BlockCall) -> None:
        await call.open_streams({"b": "STOPPING"})
        await call.gone()

    async def row_refused(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "STOPPING"})
        await call.gone()

    async def block_refused(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.refuse_block("STOPPING")
        await call.gone()

    async def last(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    scripts = open_refused, row_refused, block_refused, last
    async with connected(*scripts) as (client, _, _), client.block(["a", "b"]) as block:
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]


async def test_tries_have_an_end() -> None:
    """After `reconnect_s` without a new answer: it concerns them all."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def down(call: BlockCall) -> None:
        await call.end("STOPPING")

    async with connected(first, *[down] * 3, reconnect_s=0.1) as (client, _, time), client.block(NAMES) as block:
        with pytest.raises(ServerUnavailable, match="STOPPING"):
            await block.step(column(1, 2, 3))
        assert time.slept == [0.0, 0.05, pytest.approx(0.05)]


async def test_a_poisoned_row_is_not_sent_for_ever() -> None:
    """Answers to replays are no progress: a row that crashes its server is given up with it."""

    async def script(call: BlockCall) -> None:
        call.remembered = 2  # so that the replay and the poisoned row go one after the other
        await call.open_streams()
        while not any(value == 13 for _, _, value in await call.read_block()):
            await call.answer_block(call.apply())
        call.server.lose_unstored()
        await call.end()

    async with connected(*[script] * 4, reconnect_s=0.1) as (client, _, _), client.block(["a"]) as block:
        await block.step(column(1))
        with pytest.raises(ServerUnavailable):
            await block.step(column(13))


async def test_a_poisoned_row_is_the_only_one_lost() -> None:
    """It breaks the server each time. The others get on behind it, and it is not sent for ever because they do."""
    poisoned: asyncio.Task[Any]

    async def crashing(call: BlockCall) -> None:
        await call.open_streams()
        while (request := await call.read()) is not None:
            call.take_block(request.block)
            if any(value == 13.0 for _, _, value in call.rows):
                call.server.lose_unstored()
                call.server.scripts.append(crashing)
                await call.end()
            await call.answer_block(call.apply())
            call.server.stored.update({name: len(history) for name, history in call.server.histories.items()})

    async with connected(crashing, reconnect_s=5.0) as (client, server, _):
        bad, *good = await asyncio.gather(*(client.open(name).__aenter__() for name in ["bad", "x", "y", "z"]))
        poisoned = asyncio.create_task(bad.step([13.0]))
        for count in range(1, 10):
            answers = await asyncio.gather(*(stream.step([1.0]) for stream in good))
            assert [answer["sum"].item() for answer in answers] == [count] * 3
        with pytest.raises(ServerUnavailable, match="tried for 5 s"):
            await poisoned
        assert (await good[0].step([1.0]))["sum"].item() == 10
        assert not server.scripts


@pytest.mark.parametrize("value", [1.0, -1.0])
async def test_an_answer_resets_the_backoff(value: float) -> None:
    """Or a refusal: each break is one of its own, however many there are."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.end()

    scripts = [script] * 5
    async with connected(*scripts, opened_and_closed, reconnect_s=0.1) as (client, _, time):
        async with client.block(["a"]) as block:
            for number in range(5):
                await block.step(column(value))
                await eventually(lambda: block.reconnects > number, "the reconnect")  # noqa: B023 - awaited here
        assert time.slept == [0.0] * 5


async def test_a_server_that_falls_over_at_once_is_not_run_over() -> None:
    """It opens, and breaks: the waits go on growing though each open is answered, and for ever."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    scripts = [script] * 5
    async with connected(*scripts, opened_and_closed, reconnect_s=0.2) as (client, _, time):
        async with client.block(NAMES) as block:
            await eventually(lambda: block.reconnects == 5, "the reconnects")
        assert time.slept == [0.0, 0.05, 0.1, 0.2, 0.2]


async def test_a_full_server_is_tried_again_after_a_disconnect() -> None:
    """A slot comes free when others leave; the streams that have theirs go on meanwhile."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": error_of("TOO_MANY_STREAMS", retry_after_ms=100)})
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, time), client.block(["a", "b"]) as block:
        await eventually(lambda: block._window.open.sum() == 2 and block.reconnects == 1, "the second open")
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        assert time.slept == [0.0, pytest.approx(0.15)]


async def test_a_stream_that_was_open_has_its_own_time_to_be_opened_again() -> None:
    """That the server had no room for it the first time is long ago."""
    short = error_of("STORE_UNAVAILABLE", retry_after_ms=1000)

    async def first(call: BlockCall) -> None:
        await call.open_streams({"b": short})
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": short})
        await opened_and_closed(call)

    async with connected(first, second, reconnect_s=1.4) as (client, _, time), client.block(["a", "b"]) as block:
        await eventually(lambda: block._window.open.sum() == 2 and block.reconnects == 1, "the reconnect")
        assert (block.lost, block.refused) == ({}, {})
        assert time.slept == [pytest.approx(1.5), 0.0, pytest.approx(1.5)]


async def test_a_wait_ends_with_its_call() -> None:
    """What was waited for is done by the next open: a stream is not asked for twice, nor is anything left behind."""
    woken = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams({"b": "TOO_MANY_STREAMS"})
        await eventually(lambda: bool(block._session._tasks), "the wait")
        await call.end()

    async def third(call: BlockCall) -> None:
        await call.open_streams()
        woken.set()
        await call.serve_block({0: "OVERLOADED"})
        await eventually(lambda: bool(block._session._tasks), "the other wait")
        await call.gone()

    async with connected(first, second, third) as (client, _, time):
        sleep = time.sleep

        async def sleep_long(seconds: float) -> None:
            await (woken.wait() if seconds > 0.06 else sleep(seconds))

        object.__setattr__(time.backoff, "sleep", sleep_long)
        block = await client.block(["a", "b"]).__aenter__()
        await eventually(lambda: block.reconnects == 2, "the reconnects")
        woken.clear()
        step = asyncio.create_task(block.step(column(1, 2)))
        await eventually(lambda: bool(block._session._tasks), "the wait")
        await client.close()
        with pytest.raises(StreamLost):
            await step
        await eventually(lambda: not block._session._tasks, "the end of the wait")


async def test_waiting_for_a_full_server_has_an_end() -> None:
    """The stream is lost, and the others go on."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        for _ in range(2):
            await call.open_streams({"b": error_of("TOO_MANY_STREAMS", retry_after_ms=1000)})
        await call.serve_block()
        assert await call.close_streams() == ["a"]

    async with connected(first, second, reconnect_s=1.0) as (client, _, _), client.block(["a", "b"]) as block:
        await eventually(lambda: bool(block.lost), "the loss")
        answer = await block.step(column(1, 2))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0]
        assert isinstance(answer.errors[1], TooManyStreams)
        assert list(block.lost) == [1]
