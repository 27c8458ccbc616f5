"""Forks children from a process that has a client, and prints what each of them got. Started by `test_connection`.

A process of its own: what is tested is that of a user who imports the client first, and forks.
"""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.timeouts import TIMEOUT_S
from tidegate import blocking
from tidegate.client import Client


def in_child(act: Callable[[], Any]) -> str:
    """What `act` returns or raises in a forked child; or how the child ended without an answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = f"gave {act()!r}"
        except BaseException as error:  # noqa: BLE001 - the parent judges
            result = f"{type(error).__name__}: {error}"
        os.write(writing, result.encode())
        os._exit(0)  # nothing of the parent's may run twice
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], TIMEOUT_S / 2)
    result = os.read(reading, 4096).decode() if ready else "hangs"
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(reading)
    return result or f"died with status {status}"


def say(*words: Any) -> None:
    """Writes a line at once: what is left in a buffer, a child would write again."""
    os.write(sys.stdout.fileno(), (" ".join(map(str, words)) + "\n").encode())


def with_blocking(address: str) -> None:
    """Everything that waits, and what does not."""
    with (
        blocking.Client(address) as client,
        client.open("a") as stream,
        client.block(["b", "c"]) as block,
    ):
        stream.step([1.0])
        say("nothing", *(in_child(lambda: None) for _ in range(10)))
        say("close", in_child(client.close))
        say("models", in_child(client.models))
        say("describe_stream", in_child(lambda: client.describe_stream("a")))
        say("open", in_child(lambda: client.open("d").__enter__()))
        say("step", in_child(lambda: stream.step([2.0])))
        say("predict", in_child(lambda: next(stream.predict([[2.0]]))))
        say("block.step", in_child(lambda: block.step([[1.0], [2.0]])))
        say("stream.close", in_child(stream.close))
        say("block.close", in_child(block.close))
        say("sum", stream.step([2.0])["sum"].item())


async def with_asynchronous(address: str) -> None:
    """The same, in an event loop that the child makes."""
    async with (
        Client(address) as client,
        client.open("e") as stream,
        client.block(["f"]) as block,
    ):
        await stream.step([1.0])

        def child(act: Callable[[], Any]) -> str:
            def run() -> Any:
                asyncio._set_running_loop(None)  # that of the parent runs on in the parent
                return asyncio.run(act())

            return in_child(run)

        say("close", child(client.close))
        say("models", child(client.models))
        say("open", child(client.open("g").__aenter__))
        say("step", child(lambda: stream.step([2.0])))
        say("block.step", child(lambda: block.step([[1.0]])))
        say("stream.close", child(stream.close))
        say("block.close", child(block.close))
        say("sum", (await stream.step([2.0]))["sum"].item())


if __name__ == "__main__":
    with_blocking(sys.argv[1])
    asyncio.run(with_asynchronous(sys.argv[1]))
