"""Engines and batchers without a server, and a gate that holds a batch."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.timeouts import TIMEOUT_S
from tidegate.core.engine import Engine
from tidegate.core.model import Model
from tidegate.core.slots import Slots
from tidegate.core.spec import Key
from tidegate.core.streams import Lease, StreamTable
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.metrics import ModelMetrics


def load(graph: bytes, name: str = "toy", version: str = "1", sidecar: str | None = None) -> Model:
    """A model from toy bytes."""
    return Model(name, version, graph, sidecar)


def make_engine(graph: bytes, *, capacity: int = 8, answers: int = 4) -> Engine:
    """An engine with new slots."""
    model = load(graph)
    return Engine(model, Slots(model.spec, capacity, answers))


def key(name: str) -> Key:
    """The key of a stream."""
    return Key("default", name)


class BatcherSetup:
    """A batcher on a real engine, with streams to submit timesteps for."""

    def __init__(self, graph: bytes, *, batch_max: int = 16, queue_max: int = 64, capacity: int = 32) -> None:
        self.engine = make_engine(graph, capacity=capacity)
        self.metrics = ModelMetrics("toy", "1", self.engine.model.spec.fingerprint)
        self.batcher = Batcher(self.engine, self.metrics, batch_max=batch_max, queue_max=queue_max)
        self.streams = StreamTable()
        self.batches: list[tuple[int, ...]] = []
        inner = self.engine.run

        def noted(slots: Any, *columns: Any) -> Any:
            self.batches.append(tuple(slots.tolist()))
            return inner(slots, *columns)

        alone = self.engine.run_one

        def noted_alone(slot: Any, timestep: Any) -> Any:
            prediction = alone(slot, timestep)
            if prediction is not None:
                self.batches.append((slot,))
            return prediction

        self.engine.run = noted  # type: ignore[method-assign]
        self.engine.run_one = noted_alone  # type: ignore[method-assign]

    def begin(self, name: str) -> Lease:
        """A new live stream with that name."""
        slots = self.engine.slots
        return self.streams.begin(key(name), slots, slots.acquire(key(name)), 1)


@asynccontextmanager
async def run_batcher(graph: bytes, **limits: int) -> AsyncIterator[BatcherSetup]:
    """A setup whose batcher runs."""
    bench = BatcherSetup(graph, **limits)
    task = asyncio.create_task(bench.batcher.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Gate:
    """Blocks every batch of an engine in its thread, before it touches anything, until the gate lets it through."""

    def __init__(self, batcher: Batcher) -> None:
        self._inner = batcher.engine.run
        self._permits = threading.Semaphore(0)
        self._opened = False
        self._entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.held = 0
        batcher.cost.single_row_seconds = 1e9  # so slow that every batch goes to the thread
        batcher.engine.run = self._run  # type: ignore[method-assign]

    def _run(self, *arguments: Any) -> Any:
        self.held += 1
        self._loop.call_soon_threadsafe(self._entered.set)
        assert self._opened or self._permits.acquire(timeout=TIMEOUT_S), "nobody opened the gate"
        return self._inner(*arguments)

    async def entered(self) -> None:
        """Waits until a batch is blocked."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._entered.wait()

    def let_one(self) -> None:
        """Lets the blocked batch through, and blocks the next one."""
        self._entered.clear()
        self._permits.release()

    def open(self) -> None:
        """Lets this batch and all later ones through."""
        self._opened = True
        self._permits.release()
