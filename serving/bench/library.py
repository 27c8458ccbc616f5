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

from serving.bench.load import Load, Runner
from serving.bench.words import Task
from serving.client import AnswerLost, Block, Client, ClientError, Stream, TimestepRefused
from serving.core.spec import Floats

# Less than `load` waits, so that it is the client that says why a stream could not be opened.
TIMEOUT_S = 5.0
# What a timestep of every row gives: the reasons of rows that were refused.
Asked = Coroutine[Any, Any, Mapping[str, int]]


class Library(Runner):
    """One lane: a stream, a block of streams, or a stream whose timesteps are calls of their own.

    Args:
        load: whose it is.
        client: the connection.
        names: of its streams.
        values: (rows, features), sent round and round.
        offset: where among them the first stream begins.

    """

    def __init__(self, load: Load, client: Client, names: list[str], values: Floats, offset: int) -> None:
        super().__init__(load, len(names))
        self._client = client
        self._names = names
        self._offset = offset
        self._rounds = len(values)
        self._values = np.resize(values, (len(values) + len(names), values.shape[1]))
        self._stack = AsyncExitStack()
        self._under_way: dict[asyncio.Task[None], float] = {}  # due times
        self._opening: asyncio.Task[None] | None = None
        self._number = 0
        self._ask: Callable[[], Asked]
        self._forget: Callable[[], Coroutine[Any, Any, None]]

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def begin(self) -> None:
        """Opens the streams."""
        self._opening = self._load.keep(self._open())

    def due(self, at: float, now: float) -> None:  # noqa: ARG002 - of a closed loop: it is now
        """The next timestep of every row is due, and after its answer the next."""
        task = self._load.keep(self._steps(at))
        self._under_way[task] = at
        task.add_done_callback(self._done)

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up what was not answered."""
        given_up = [(due, self.streams) for due in self._under_way.values()]
        for task in self._under_way:
            task.cancel()
        return given_up

    def close(self) -> None:
        """Asks the server to forget the streams."""
        self._load.keep(self._close())

    def cut(self) -> None:
        """Ends the streams at once."""
        if self._opening is not None:
            self._opening.cancel()
        self.over("DEADLINE_EXCEEDED", "the server did not answer in time")

    async def _open(self) -> None:
        plan = self._load.plan
        ask = {"model": plan.model, "version": plan.version, "existence": "must_be_new"}
        try:
            if plan.unary:
                self._ask, self._forget = self._step_one, self._delete_one
            elif plan.block is None:
                await self._open_stream(ask)
            else:
                await self._open_block(ask)
        except ClientError as error:
            self.over(error.reason, str(error))
            return
        if not self.opened.done():
            self.opened.set_result(None)

    async def _open_stream(self, ask: Mapping[str, Any]) -> None:
        stream: Stream = await self._stack.enter_async_context(self._client.open(self._names[0], **ask))
        rows = self._values.tolist()  # as a program has them that reads a sensor

        async def step() -> Mapping[str, int]:
            await stream.step(rows[(self._offset + self._number) % self._rounds])
            return {}

        self._ask, self._forget = step, lambda: stream.close(forget=True)

    async def _open_block(self, ask: Mapping[str, Any]) -> None:
        block: Block = await self._stack.enter_async_context(self._client.block(self._names, **ask))
        self.refused = Counter(error.reason for error in block.refused.values())
        self.streams -= len(block.refused)
        rows = None if not block.refused else [row for row in range(len(self._names)) if row not in block.refused]

        async def step() -> Mapping[str, int]:
            first = (self._offset + self._number) % self._rounds
            answer = await block.step(self._values[first : first + self.streams], rows)
            return Counter(error.reason for error in answer.errors.values()) if answer.errors else {}

        self._ask, self._forget = step, lambda: block.close(forget=True)

    async def _step_one(self) -> Mapping[str, int]:
        row = self._values[(self._offset + self._number) % self._rounds]
        await self._client.predict_one(self._names[0], row, step=self._number)
        return {}

    async def _delete_one(self) -> None:
        if self._number:
            await self._client.delete_stream(self._names[0])

    async def _steps(self, due: float) -> None:
        """Timestep after timestep, while the next is due as soon as the last was answered."""
        load = self._load
        tally, task = load.tally, asyncio.current_task()
        assert task is not None
        following: float | None = due
        while following is not None:
            due = self._under_way[task] = following
            tally.due(due, self.streams)
            self._number += 1
            refused: Mapping[str, int] = {}
            try:
                refused = await self._ask()
            except (TimestepRefused, AnswerLost) as error:
                refused = {error.reason: self.streams}
                self._number -= isinstance(error, TimestepRefused)
            except ClientError as error:
                self.over(error.reason, str(error))
                return
            now = time.monotonic()
            applied = self.streams - sum(refused.values())
            if applied:
                tally.answered(now, due, due, applied)
            if refused:
                tally.let_go(now, due, refused)
            following = load.answered(self, now)

    def _done(self, task: "asyncio.Task[None]") -> None:
        del self._under_way[task]
        if self._load.draining and self.quiet:
            self._load.drained(self)

    async def _close(self) -> None:
        try:
            await self._forget()
            await self._stack.aclose()
        except ClientError as error:
            self.over(error.reason, str(error))
            return
        self.closed = True
        self.over()


async def make_library(load: Load, task: Task, stack: AsyncExitStack) -> list[Library]:
    """Makes the lanes of a task; the clients connect when they are asked."""
    clients = [
        await stack.enter_async_context(Client(task.plan.address, timeout_s=TIMEOUT_S)) for _ in range(task.connections)
    ]
    return [
        Library(load, clients[place % len(clients)], names, task.values, offset)
        for place, (names, offset) in enumerate(task.streams())
    ]
