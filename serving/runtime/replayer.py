"""Replays timesteps into a model, beside the event loop.

A replay of a stream takes as long as its timesteps take in serving. So it runs in a thread, which the event loop does
not wait for, with memory of its own. Streams that wait for the same model at the same time are replayed together.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tidegate.core.model import Model
from tidegate.core.spec import Array, Arrays
from tidegate.core.swap import replay

# One batch: more streams do not get faster, and each waits for all of its batch.
TOGETHER_MAX = 64

Waiting = tuple[Array, Arrays, "asyncio.Future[Arrays]"]


class Replayer:
    """Replays streams, one batch at a time."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Model, int], list[Waiting]] = {}  # by model and number of timesteps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="replay")
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Replayer: {sum(map(len, self._waiting.values()))} streams waiting>"

    async def state_after(self, model: Model, rows: Array, inputs: Arrays, *, together: bool) -> Arrays:
        """The state of a stream after the timesteps rows (steps, ...), one array of its own shape for each tensor.

        `inputs` are those that the stream began with. `together` allows that it is computed in a batch with others.
        Raises ModelFailed.
        """
        if not together:
            return _row(await self._run(model, [(rows, inputs)]), 0)
        future: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((model, len(rows)), []).append((rows, inputs, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Replays what waits, until nothing does."""
        while self._waiting:
            model, steps = next(iter(self._waiting))
            waiting = self._waiting.pop((model, steps))
            batch, rest = waiting[:TOGETHER_MAX], waiting[TOGETHER_MAX:]
            if rest:
                self._waiting[model, steps] = rest
            try:
                state = await self._run(model, [(rows, inputs) for rows, inputs, _ in batch])
            except Exception as error:  # noqa: BLE001 - passed to the callers
                _fail(batch, error)
            else:
                for place, (_, _, future) in enumerate(batch):
                    if not future.done():
                        future.set_result(_row(state, place))

    async def _run(self, model: Model, streams: Sequence[tuple[Array, Arrays]]) -> Arrays:
        """Replays streams with as many timesteps each, as one batch."""
        rows = np.stack([rows for rows, _ in streams])
        inputs = tuple(np.stack(column) for column in zip(*(inputs for _, inputs in streams), strict=True))
        return await asyncio.get_running_loop().run_in_executor(self._thread, replay, model, rows, inputs)

    def close(self) -> None:
        """Ends the thread after its batch."""
        self._thread.shutdown(wait=False)


def _row(state: Arrays, place: int) -> Arrays:
    """The state of one stream."""
    return tuple(part[place] for part in state)


def _fail(batch: Sequence[Waiting], error: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            future.set_exception(error)
