"""A client process: `python -m tidegate.bench FD`.

FD is the descriptor of an open pipe to the parent process. The parent handles Ctrl-C. When the parent has gone, this
process closes its streams and ends.
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

import uvloop

from tidegate.bench.light_client import make_light_runners
from tidegate.bench.load import LoadGenerator, MakeRunners
from tidegate.bench.messages import RunTimes, Stop, Task
from tidegate.bench.plan import Clients
from tidegate.bench.python_client import make_python_runners

MAKE_RUNNERS: Mapping[Clients, MakeRunners] = {"light": make_light_runners, "python": make_python_runners}


class ParentConnection:
    """The connection to the parent process, read by the event loop."""

    def __init__(self, connection: "Connection[object, object]") -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._load: LoadGenerator | None = None
        self._times: asyncio.Future[RunTimes]
        self._task: asyncio.Future[Task | None] = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._on_readable)
        os.set_blocking(
            connection.fileno(), True
        )  # uvloop made it non-blocking, but a message can arrive in several parts

    async def run(self) -> None:
        """Runs one task after another, until the parent has gone."""
        while (task := await self._task) is not None:
            self._task, self._times = self._loop.create_future(), self._loop.create_future()
            self._load = load = LoadGenerator(task, self.send, MAKE_RUNNERS[task.plan.client])
            try:
                self.send(await load.open())
                self.send(await load.run(await self._times))
            finally:
                self._load = None
                await load.close()

    def send(self, message: object) -> None:
        """Sends a message to the parent, if it still runs."""
        try:
            self._connection.send(message)
        except BrokenPipeError:
            self._on_parent_gone()

    def _on_readable(self) -> None:
        try:
            message = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._loop.remove_reader(self._connection.fileno())
            self._on_parent_gone()
            return
        if isinstance(message, Task):
            self._task.set_result(message)
        elif isinstance(message, RunTimes):
            self._times.set_result(message)
        elif isinstance(message, Stop) and self._load is not None:
            self._load.stop(message.end)

    def _on_parent_gone(self) -> None:
        now = time.monotonic()
        if self._load is not None:
            self._load.stop(now)
            if not self._times.done():
                self._times.set_result(RunTimes(now, now, now))
        if not self._task.done():
            self._task.set_result(None)


async def serve(connection: "Connection[object, object]") -> None:
    """Runs tasks until the parent has gone."""
    await ParentConnection(connection).run()


if __name__ == "__main__":
    uvloop.run(serve(Connection(int(sys.argv[1]))))
