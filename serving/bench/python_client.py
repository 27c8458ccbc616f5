"""Calls on `tidegate.client`, the client that users have, in a closed loop as users would write it.

This measures what a Python program gets. The client needs several times the CPU of `light_client`, often more than the
server. It retries by itself what the server had no capacity for, so a refusal here is one after which it gave up.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from tidegate.bench.load import CallRunner, LoadGenerator
from tidegate.bench.messages import Task
from tidegate.client import AnswerLost, Block, Client, ClientError, Stream, TimestepRefused
from tidegate.core.spec import Floats

# Shorter than the time limit of `load`, so that the client reports why a stream could not be opened.
TIMEOUT_S = 5.0
# Sends a timestep of every row, and returns what the client does.
StepCall = Coroutine[Any, Any, Any]
NOTHING_REFUSED: Mapping[str, int] = {}


class PythonCallRunner(CallRunner):
    """Runs a stream, a block of streams, or a stream whose timesteps are calls of `PredictOne`.

    Args:
        load: the load generator.
        client: the client to use.
        names: the ids of the streams.
        values: (rows, features), sent in a loop.
        offset: the index of the row that the first stream sends first.
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
        self._is_block = False
        self._close_streams: Callable[[], Coroutine[Any, Any, None]]

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._in_flight

    def open(self) -> None:
        """Opens the streams."""
        self._open_task = self._load.start_task(self._open())

    def on_due(self, due: float, now: float) -> None:  # noqa: ARG002 - in a closed loop a timestep is due now
        """Starts a loop: each answer makes the next timestep of every row due."""
        task = self._load.start_task(self._step_loop(due))
        self._in_flight[task] = due
        task.add_done_callback(self._done)

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up all unanswered timesteps."""
        given_up = [(due, self.streams) for due in self._in_flight.values()]
        for task in self._in_flight:
            task.cancel()
        return given_up

    def close(self) -> None:
        """Asks the server to close and delete the streams."""
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
        rows = self._values.tolist()  # lists, as a program that reads a sensor has them

        def step() -> StepCall:
            return stream.step(rows[(self._offset + self._step_number) % self._row_count])

        self._step, self._close_streams = step, lambda: stream.close(forget=True)

    async def _open_block(self, options: Mapping[str, Any]) -> None:
        block: Block = await self._stack.enter_async_context(self._client.block(self._names, **options))
        self.refused = Counter(error.reason for error in block.refused.values())
        self.streams -= len(block.refused)
        rows = None if not block.refused else [row for row in range(len(self._names)) if row not in block.refused]

        def step() -> StepCall:
            first = (self._offset + self._step_number) % self._row_count
            return block.step(self._values[first : first + self.streams], rows)

        self._step, self._close_streams = step, lambda: block.close(forget=True)
        self._is_block = True

    def _predict_one(self) -> StepCall:
        row = self._values[(self._offset + self._step_number) % self._row_count]
        return self._client.predict_one(self._names[0], row, step=self._step_number)

    async def _delete_stream(self) -> None:
        if self._step_number:
            await self._client.delete_stream(self._names[0])

    async def _step_loop(self, due: float) -> None:
        """Sends one timestep after another, as long as an answer makes the next one due at once."""
        load = self._load
        counts, task = load.counts, asyncio.current_task()
        assert task is not None
        next_due: float | None = due
        while next_due is not None:
            due = self._in_flight[task] = next_due
            counts.add_offered(due, self.streams)
            self._step_number += 1
            refused = NOTHING_REFUSED
            try:
                answer = await self._step()
                if self._is_block and answer.errors:
                    refused = Counter(error.reason for error in answer.errors.values())
            except (TimestepRefused, AnswerLost) as error:
                refused = {error.reason: self.streams}
                self._step_number -= isinstance(error, TimestepRefused)
            except ClientError as error:
                self.end(error.reason, str(error))
                return
            now = time.monotonic()
            applied = self.streams
            if refused:
                applied -= sum(refused.values())
                counts.add_refused(now, due, refused)
            if applied:
                counts.add_answered(now, due, due, applied)
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
    """Makes the runners for the calls of a task. The clients connect on first use."""
    clients = [
        await stack.enter_async_context(Client(task.plan.address, timeout_s=TIMEOUT_S)) for _ in range(task.connections)
    ]
    return [
        PythonCallRunner(load, clients[index % len(clients)], names, task.values, offset)
        for index, (names, offset) in enumerate(task.streams())
    ]
