"""The client without an event loop: the same streams, from any thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.scripted import Script, Scripted, Time, closing, scripted
from tests.scripted_calls import Call
from tests.timeouts import TIMEOUT_S
from tidegate.blocking import Client
from tidegate.client import InvalidTimestep, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


def played(work: Callable[[Client], Any], *scripts: Script, make: Any = Scripted, **settings: Any) -> Any:
    """What `work` gives with a client of a server that plays these scripts, on a loop of its own."""

    async def play() -> Any:
        def run() -> Any:
            with Client(server.address, backoff=Time().backoff, **settings) as client:
                return work(client)

        async with scripted(*scripts, make=make) as server:
            return await asyncio.to_thread(run)

    return asyncio.run(play())


async def answers_three(call: Call) -> None:
    """Three timesteps, and a close."""
    await call.open()
    await call.serve(1, 2, 3)
    await closing(call)


def test_timesteps_are_answered() -> None:
    """One after the other; what was asked of the open is asked of the server."""

    async def script(call: Call) -> None:
        await answers_three(call)
        assert (call.ask.durability, call.ask.existence) == (pb.DURABILITY_SYNC, pb.EXISTENCE_MUST_EXIST)

    def work(client: Client) -> Any:
        with client.open("a", sync=True, existence="must_exist") as stream:
            got = [stream.step([value])["sum"].item() for value in (1.0, 2.0, 3.0)]
            return got, stream.next_step, stream.stream_id, stream.kind, stream.model.name, stream.epoch

    assert played(work, script) == ([1.0, 3.0, 6.0], 4, "a", "resumed", "toy", 1)


def test_rows_are_sent_ahead() -> None:
    """Two are under way before the first is answered; the rows are read in the caller's thread."""

    async def script(call: Call) -> None:
        await call.open(answers_remembered=2)
        await call.expect(1, 2)
        await call.answer(1, 2)
        await call.serve(3)
        await closing(call)

    def work(client: Client) -> Any:
        threads = set()

        def rows() -> Iterator[list[float]]:
            for value in (1.0, 2.0, 3.0):
                threads.add(threading.current_thread())
                yield [value]

        with client.open("a") as stream:
            got = [answer["sum"].item() for answer in stream.predict(rows())]
        assert threads == {threading.current_thread()}
        return got

    assert played(work, script) == [1.0, 3.0, 6.0]


def test_no_row_after_a_refused_one_is_applied() -> None:
    """As with the asynchronous client."""

    async def script(call: Call) -> None:
        await call.open(answers_remembered=2)
        await call.expect_unapplied(1, 2)
        await call.refuse(1, reason="NOT_FINITE")
        await call.refuse(2, reason="STEP_GAP")
        await call.serve(1)
        await closing(call)

    def work(client: Client) -> Any:
        with client.open("a") as stream:
            with pytest.raises(InvalidTimestep):
                list(stream.predict([[1.0], [2.0], [3.0]]))
            return stream.step([5.0])["sum"].item()

    assert played(work, script) == 5.0


def test_a_disconnect_is_not_seen() -> None:
    """It is the same stream underneath."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.end()

    def work(client: Client) -> Any:
        with client.open("a") as stream:
            got = [stream.step([value])["sum"].item() for value in (1.0, 2.0, 3.0)]
        return got, stream.reconnects, stream.epoch, stream.durable_step

    assert played(work, first, answers_three) == ([1.0, 3.0, 6.0], 1, 2, 3)


def test_a_stream_can_be_forgotten() -> None:
    """With a close before the end of the context."""

    async def script(call: Call) -> None:
        await call.open()
        await call.close(forget=True)

    def work(client: Client) -> Any:
        with client.open("a") as stream:
            stream.close(forget=True)

    played(work, script)


def test_leaving_by_an_exception_does_not_wait() -> None:
    """The server sends nothing more, and the exception is raised."""

    async def script(call: Call) -> None:
        await call.open()
        await call.gone()

    def work(client: Client) -> Any:
        with pytest.raises(KeyboardInterrupt), client.open("a"):
            raise KeyboardInterrupt

    played(work, script)


def test_an_error_is_that_of_the_asynchronous_client() -> None:
    """Raised in the thread of the caller."""

    async def script(call: Call) -> None:
        await call.open()
        await call.end("TAKEN_OVER")

    def work(client: Client) -> Any:
        with client.open("a") as stream, pytest.raises(TakenOver):
            stream.step([1.0])

    played(work, script)


def test_a_client_that_cannot_be_made_leaves_no_thread() -> None:
    """Its settings are wrong."""
    before = threading.active_count()
    with pytest.raises(ValueError, match="buffer_max: got 0"):
        Client("localhost:1", buffer_max=0)
    assert threading.active_count() == before


def test_a_client_is_closed_once() -> None:
    """The second time nothing happens; its thread has gone."""
    client = Client("localhost:1")
    client.close()
    client.close()
    client._thread.join(TIMEOUT_S)
    assert not client._thread.is_alive()
