"""Calls that come when they cannot be made: after the end, or twice."""

import asyncio
from typing import Any

import pytest

from tests.client.test_blocking import played
from tests.scripted import closing, connected, scripted, sums
from tests.scripted_calls import Call
from tidegate import blocking
from tidegate.client import Client, StreamLost, WrongOrder


async def test_a_closed_client_raises_an_error() -> None:
    """Whatever is called; to close it again does nothing."""
    client = Client("localhost:1")
    await client.close()
    await client.close()
    calls: list[Any] = [
        client.models,
        client.describe,
        lambda: client.streams_page("", "", 10, ""),
        lambda: client.describe_stream("a"),
        lambda: client.delete_stream("a"),
        lambda: client.export_stream("a"),
        lambda: client.import_stream(b"state"),
        lambda: client.fork_stream("a"),
        lambda: client.predict_one("a", [1.0], step=1),
        lambda: client.predict_one("a", {"x": 1.0}, step=1),
        lambda: client.open("a").__aenter__(),
        lambda: client.block(["a"]).__aenter__(),
        client.__aenter__,
    ]
    for call in calls:
        with pytest.raises(WrongOrder, match=r"^client: is closed; make another one$"):
            await call()
    with pytest.raises(WrongOrder, match="closed"):
        [info async for info in client.streams()]


def test_a_closed_blocking_client_raises_an_error() -> None:
    """Whatever is called; to close it again does nothing."""
    client = blocking.Client("localhost:1")
    client.close()
    client.close()
    calls: list[Any] = [
        client.models,
        client.describe,
        lambda: list(client.streams()),
        lambda: client.describe_stream("a"),
        lambda: client.delete_stream("a"),
        lambda: client.export_stream("a"),
        lambda: client.import_stream(b"state"),
        lambda: client.fork_stream("a"),
        lambda: client.predict_one("a", [1.0], step=1),
        lambda: client.open("a").__enter__(),
        lambda: client.block(["a"]).__enter__(),
        client.__enter__,
    ]
    for call in calls:
        with pytest.raises(WrongOrder, match=r"^client: is closed; make another one$"):
            call()


async def test_a_unary_call_during_close_is_reported() -> None:
    """It raises an error and no CancelledError, as no caller was cancelled."""
    client = Client("localhost:1")
    question = asyncio.create_task(client.models())
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(WrongOrder, match="was closed before ListModels was answered"):
        await question


async def test_what_was_entered_is_not_entered_again() -> None:
    """Neither a client nor what it opens; what is open goes on."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    async with connected(script) as (client, _, _):
        with pytest.raises(WrongOrder, match="client: was entered before"):
            await client.__aenter__()
        opening = client.open("a")
        async with opening as stream:
            with pytest.raises(WrongOrder, match="open: was entered before"):
                await opening.__aenter__()
            assert await sums(stream, [1.0]) == [1.0]
        with pytest.raises(WrongOrder, match="open: was entered before"):
            await opening.__aenter__()


def test_what_was_entered_is_not_entered_again_by_a_blocking_client() -> None:
    """As above."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await closing(call)

    def work(client: blocking.Client) -> None:
        with pytest.raises(WrongOrder, match="client: was entered before"):
            client.__enter__()
        opening = client.open("a")
        with opening as stream:
            with pytest.raises(WrongOrder, match="open: was entered before"):
                opening.__enter__()
            assert stream.step([1.0])["sum"].item() == 1.0
        with pytest.raises(WrongOrder, match="open: was entered before"):
            opening.__enter__()

    played(work, script)


async def test_a_stream_outlives_its_client_by_nothing() -> None:
    """It is detached when the client is closed, and raises an error; closing it is no error."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    def run() -> None:
        with blocking.Client(server.address) as client, client.open("a") as stream:
            client.close()
            with pytest.raises(WrongOrder, match="client: is closed"):
                stream.step([1.0])

    async with scripted(script, script) as server:
        async with Client(server.address) as client, client.open("a") as stream:
            await client.close()
            with pytest.raises(StreamLost):
                await stream.step([1.0])
        await asyncio.to_thread(run)
