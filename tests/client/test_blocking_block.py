"""Many streams on one call, without an event loop."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import BlockCall, ScriptedBlocks, closing, column
from tests.client.test_blocking import played as played_by
from tidegate.blocking import Client
from tidegate.client import InvalidTimestep, TakenOver


def played(work: Any, *scripts: Any) -> Any:
    """What `work` gives with a client of a server that plays these scripts."""
    return played_by(work, *scripts, make=ScriptedBlocks)


def test_blocks_are_answered_and_disconnects_not_seen() -> None:
    """It is the same block underneath; rows that are refused are in the answer."""

    async def first(call: BlockCall) -> None:
        await call.open_streams({"c": "STREAM_EXPIRED"})
        await call.serve_block()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block({1: "TAKEN_OVER"})
        await closing(call)

    def work(client: Client) -> Any:
        with client.block(["a", "b", "c"], existence="any") as block:
            one = block.step(column(1, 2, 3))
            two = block.step(np.array(column(-3, 4)), [0, 1])
            assert isinstance(two.errors[0], InvalidTimestep)
            assert isinstance(two.errors[1], TakenOver)
            assert (block.stream_ids, block.kinds) == (["a", "b", "c"], ["new", "new", ""])
            assert (block.model.name, block.reconnects, list(block.refused), list(block.lost)) == ("toy", 1, [2], [1])
        return one["sum"].ravel().tolist(), block.next_steps.tolist(), block.durable_steps.tolist()

    assert played(work, first, second) == ([1.0, 2.0, 0.0], [2, 2, 1], [1, 0, 0])


def test_blocks_are_sent_ahead() -> None:
    """They are read in the caller's thread."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        while len(call.server.histories["a"]) < 3:
            await call.serve_block()
        await call.close_streams(forget=True)

    def work(client: Client) -> Any:
        threads = set()

        def blocks() -> Iterator[Any]:
            for block in (column(1, 2), (column(3), [0]), np.array(column(4, 5))):
                threads.add(threading.current_thread())
                yield block

        with client.block(["a", "b"]) as block:
            got = [answer["sum"].ravel().tolist() for answer in block.predict(blocks())]
            block.close(forget=True)
        assert threads == {threading.current_thread()}
        return got

    assert played(work, script) == [[1.0, 2.0], [4.0], [8.0, 7.0]]


def test_leaving_by_an_exception_does_not_wait() -> None:
    """The server sends nothing more, and the exception is raised."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.gone()

    def work(client: Client) -> Any:
        with pytest.raises(KeyboardInterrupt), client.block(2):
            raise KeyboardInterrupt

    played(work, script)
