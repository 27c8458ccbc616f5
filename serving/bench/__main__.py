"""`python -m serving.bench FILE`: a client process, which speaks with its parent over that open file.

Ctrl-C is the parent's business. When the parent is gone, the process closes its streams and ends.
"""

import asyncio
import sys
import time
from multiprocessing.connection import Connection

import uvloop

from serving.bench.load import Load
from serving.bench.words import Go, Seconds, Stop


class Link:
    """The parent, as heard from inside an event loop."""

    def __init__(self, connection: "Connection[object, object]", load: Load) -> None:
        self._connection = connection
        self._load = load
        self._loop = asyncio.get_running_loop()
        self.go: asyncio.Future[Go] = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._hear)

    def tell(self, word: object) -> None:
        """Tells the parent, if it is there."""
        try:
            self._connection.send(word)
        except BrokenPipeError:
            self._end()

    def _hear(self) -> None:
        try:
            word = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._loop.remove_reader(self._connection.fileno())
            self._end()
            return
        if isinstance(word, Go):
            self.go.set_result(word)
        elif isinstance(word, Stop):
            self._load.stop(word.end)

    def _end(self) -> None:
        now = time.monotonic()
        self._load.stop(now)
        if not self.go.done():
            self.go.set_result(Go(now, now, now))


async def serve(connection: "Connection[object, object]") -> None:
    """From the task to the report."""
    task = connection.recv()

    def tell(seconds: Seconds) -> None:
        link.tell(seconds)

    load = Load(task, tell)  # type: ignore[arg-type] # the parent's first word is a task
    link = Link(connection, load)
    try:
        link.tell(await load.open())
        link.tell(await load.run(await link.go))
    finally:
        await load.leave()


if __name__ == "__main__":
    uvloop.run(serve(Connection(int(sys.argv[1]))))
