"""A lane on the client that users have: `serving.client`, in a closed loop as they would write it.

What it costs is what a program in Python pays: several times as much as `light`, often more than the server. It sends again by
itself what the server had no room for, so refusals are those that it gave up on.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from serving.bench.load import CallRunner, LoadGenerator
from serving.bench.messages import Task
from serving.client import AnswerLost, Block, Client, ClientError, Stream, TimestepRefused
from serving.core.spec import Floats

# Less than `load` waits, so that it is the client that says why a stream could not be opened.
TIMEOUT_S = 5.0
# What a timestep of every row gives: the reasons of rows that were refused.
StepCall = Coroutine[Any, Any, Mapping[str, int]]


class PythonCallRunner(CallRunner):
    """One lane: a stream, a block of streams, or a stream whose timesteps are calls of their own.

    Args:
        load: whose it is.
        client: the connection.
        names: of its streams.
        values: (rows, features), sent round and round.
        offset: where among them the first stream begins.

    """

    def __init__(self, load: LoadGenerator, client: Client, names: list[str], values: Floats, offset: int) -> None:
        super().__init__(load, len(names))
        self._client = client
        self._names = names
        self._offset = offset
        self._row_count = len(values)
        self._values = np.resize(values, (len(values) + len(names), values.shape[1]))
        self._stack = AsyncExitStack()
        self._in_flight: dict[asyncio.Task[None], float] = {}  # due times
        self._open_task: asyncio.Task[None] | None = None
        self._step_number = 0
        self._step: Callable[[], StepCall]
        self._close_streams: Callable[[], Coroutine[Any, Any, None]]

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._in_flight

    def open(self) -> None:
        """Opens the streams."""
        self._open_task = self._load.start_task(self._open())

    def on_due(self, due: float, now: float) -> None:  # noqa: ARG002 - of a closed loop: it is now
        """The next timestep of every row is due, and after its answer the next."""
        task = self._load.start_task(self._step_loop(due))
        self._in_flight[task] = due
        task.add_done_callback(self._done)

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up what was not answered."""
        given_up = [(due, self.streams) for due in self._in_flight.values()]
        for task in self._in_flight:
            task.cancel()
        return given_up

    def close(self) -> None:
        """Asks the server to forget the streams."""
        self._load.start_task(self._close())

    def cancel(self) -> None:
        """Ends the streams at once."""
        if self._open_task is not None:
            self._open_task.cancel()
        self.end("DEADLINE_EXCEEDED", "the server did not answer in time")

    async def _open(self) -> None:
        plan = self._load.plan
        options = {"model": plan.model, "version": plan.version, "existence": "must_be_new"}
        try:
            if plan.unary:
                self._step, self._close_streams = self._predict_one, self._delete_stream
            elif plan.block is None:
                await self._open_stream(options)
            else:
                await self._open_block(options)
        except ClientError as error:
            self.end(error.reason, str(error))
            return
        if not self.opened.done():
            self.opened.set_result(None)

    async def _open_stream(self, options: Mapping[str, Any]) -> None:
        stream: Stream = await self._stack.enter_async_context(self._client.open(self._names[0], **options))
        rows = self._values.tolist()  # as a program has them that reads a sensor

        async def step() -> Mapping[str, int]:
            await stream.step(rows[(self._offset + self._step_number) % self._row_count])
            return {}

        self._step, self._close_streams = step, lambda: stream.close(forget=True)

    async def _open_block(self, options: Mapping[str, Any]) -> None:
        block: Block = await self._stack.enter_async_context(self._client.block(self._names, **options))
        self.refused = Counter(error.reason for error in block.refused.values())
        self.streams -= len(block.refused)
        rows = None if not block.refused else [row for row in range(len(self._names)) if row not in block.refused]

        async def step() -> Mapping[str, int]:
            first = (self._offset + self._step_number) % self._row_count
            answer = await block.step(self._values[first : first + self.streams], rows)
            return Counter(error.reason for error in answer.errors.values()) if answer.errors else {}

        self._step, self._close_streams = step, lambda: block.close(forget=True)

    async def _predict_one(self) -> Mapping[str, int]:
        row = self._values[(self._offset + self._step_number) % self._row_count]
        await self._client.predict_one(self._names[0], row, step=self._step_number)
        return {}

    async def _delete_stream(self) -> None:
        if self._step_number:
            await self._client.delete_stream(self._names[0])

    async def _step_loop(self, due: float) -> None:
        """Timestep after timestep, while the next is due as soon as the last was answered."""
        load = self._load
        counts, task = load.counts, asyncio.current_task()
        assert task is not None
        next_due: float | None = due
        while next_due is not None:
            due = self._in_flight[task] = next_due
            counts.add_offered(due, self.streams)
            self._step_number += 1
            refused: Mapping[str, int] = {}
            try:
                refused = await self._step()
            except (TimestepRefused, AnswerLost) as error:
                refused = {error.reason: self.streams}
                self._step_number -= isinstance(error, TimestepRefused)
            except ClientError as error:
                self.end(error.reason, str(error))
                return
            now = time.monotonic()
            applied = self.streams - sum(refused.values())
            if applied:
                counts.add_answered(now, due, due, applied)
            if refused:
                counts.add_refused(now, due, refused)
            next_due = load.next_due(self, now)

    def _done(self, task: "asyncio.Task[None]") -> None:
        del self._in_flight[task]
        if self._load.draining and self.idle:
            self._load.call_drained(self)

    async def _close(self) -> None:
        try:
            await self._close_streams()
            await self._stack.aclose()
        except ClientError as error:
            self.end(error.reason, str(error))
            return
        self.closed = True
        self.end()


async def make_python_runners(load: LoadGenerator, task: Task, stack: AsyncExitStack) -> list[PythonCallRunner]:
    """Makes the lanes of a task; the clients connect when they are asked."""
    clients = [
        await stack.enter_async_context(Client(task.plan.address, timeout_s=TIMEOUT_S)) for _ in range(task.connections)
    ]
    return [
        PythonCallRunner(load, clients[index % len(clients)], names, task.values, offset)
        for index, (names, offset) in enumerate(task.streams())
    ]
