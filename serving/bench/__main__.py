"""`python -m serving.bench FILE`: a client process, which speaks with its parent over that open file.

Ctrl-C is the parent's business. When the parent is gone, the process closes its streams and ends.
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

import uvloop

from serving.bench.library import make_library
from serving.bench.light import make_light
from serving.bench.load import Load, Make
from serving.bench.plan import Clients
from serving.bench.words import Go, Stop, Task

MAKE: Mapping[Clients, Make] = {"light": make_light, "python": make_library}


class Link:
    """The parent, as heard from inside an event loop."""

    def __init__(self, connection: "Connection[object, object]") -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._load: Load | None = None
        self._go: asyncio.Future[Go]
        self._task: asyncio.Future[Task | None] = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._hear)
        os.set_blocking(connection.fileno(), True)  # uvloop has taken that away, and a word may come in pieces

    async def run(self) -> None:
        """Task after task, until the parent is gone."""
        while (task := await self._task) is not None:
            self._task, self._go = self._loop.create_future(), self._loop.create_future()
            self._load = load = Load(task, self.tell, MAKE[task.plan.client])
            try:
                self.tell(await load.open())
                self.tell(await load.run(await self._go))
            finally:
                self._load = None
                await load.leave()

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
        if isinstance(word, Task):
            self._task.set_result(word)
        elif isinstance(word, Go):
            self._go.set_result(word)
        elif isinstance(word, Stop) and self._load is not None:
            self._load.stop(word.end)

    def _end(self) -> None:
        now = time.monotonic()
        if self._load is not None:
            self._load.stop(now)
            if not self._go.done():
                self._go.set_result(Go(now, now, now))
        if not self._task.done():
            self._task.set_result(None)


async def serve(connection: "Connection[object, object]") -> None:
    """From the first task to the last report."""
    await Link(connection).run()


if __name__ == "__main__":
    uvloop.run(serve(Connection(int(sys.argv[1]))))
