"""A checkpointer without a server, with a store that waits on request and a manual clock."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.engines import key
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import StoreUnavailable, TakenOver
from tidegate.core.self_check import SelfCheck
from tidegate.core.spec import Checkpoint, Checkpoints
from tidegate.core.streams import Lease, Stream, StreamTable
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule
from tidegate.runtime.checkpointer import Checkpointer
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.model_load import load_model
from tidegate.runtime.repository import Limits, ModelPhase, Repository, make_served
from tidegate.store import MemoryStore


class PausedStore(MemoryStore):
    """A store whose saves wait while it is paused, and fail while it is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[list[str]] = []  # the streams of each save, in order of the calls
        self.broken = False
        self._permits = asyncio.Semaphore(0)
        self._paused = False

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Waits, then saves what the fence allows."""
        keys = checkpoints.keys if isinstance(checkpoints, Checkpoints) else [each.key for each in checkpoints]
        self.saves.append([each.stream_id for each in keys])
        if self._paused:
            await self._permits.acquire()
        if self.broken:
            raise StoreUnavailable("test", "is broken")
        return await super().save(checkpoints)

    def pause(self) -> None:
        """Makes saves wait from now on."""
        self._paused = True

    def let_one(self) -> None:
        """Lets one save continue."""
        self._permits.release()

    def resume(self) -> None:
        """Lets all saves continue."""
        self._paused = False
        self._permits.release()

    async def asked(self, saves: int) -> None:
        """Waits until there were so many saves."""
        await eventually(lambda: len(self.saves) >= saves, f"save {saves}")


class CheckpointerSetup:
    """A checkpointer for one model, without a server."""

    def __init__(self, root: Path, capacity: int, times_s: CheckpointSchedule) -> None:
        metrics = Metrics({})
        self.now = 1000.0
        loaded = load_model("toy", "1", root / "toy" / "1")
        self.served = make_served(loaded, SelfCheck(tuple(range(1, 17))), Limits(capacity, 4, 16, 64))
        self.served.phase = ModelPhase.SERVING
        self.repository = Repository([self.served])
        self.slots = self.served.slots
        self.streams = StreamTable()
        self.store = PausedStore()
        self.checkpointer = Checkpointer(
            self.repository,
            self.streams,
            self.store,
            metrics,
            lambda _: True,
            self._refused,
            lambda *_: None,
            replace(times_s, clock=lambda: self.now),
        )

    async def _refused(self, stream: Stream) -> None:
        """Another call takes the stream over."""
        self.streams.drop(stream, TakenOver(stream.key.stream_id, stream.epoch + 1))

    async def begin(self, count: int) -> list[Lease]:
        """New streams, each open on a call."""
        leases = []
        for number in range(count):
            name = key(f"s{number}")
            record = await self.store.claim(name, 0, self.served.spec.id, "")
            assert record is not None
            leases.append(self.streams.begin(name, self.slots, self.slots.acquire(name), record.metadata.epoch))
        return leases

    def step(self, *leases: Lease) -> None:
        """Applies one more timestep to each."""
        self.slots.step[np.array([lease.stream.slot for lease in leases])] += 1

    def end_calls(self, *leases: Lease) -> None:
        """Ends their calls."""
        for lease in leases:
            self.streams.release(lease)
            self.checkpointer.park_soon(lease.stream)


Open = Callable[..., CheckpointerSetup]


@asynccontextmanager
async def running(made: CheckpointerSetup) -> AsyncIterator[None]:
    """Its checkpointer runs, and pauses after its first checkpoint."""
    task = asyncio.create_task(made.checkpointer.run())
    try:
        async with asyncio.timeout(2 * TIMEOUT_S):
            await asyncio.sleep(0)
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def stalled(made: CheckpointerSetup, lease: Lease) -> AsyncIterator[None]:
    """Its checkpointer has just had a commit of ten minutes, and pauses."""
    made.step(lease)
    made.store.pause()
    async with running(made):
        await made.store.asked(1)
        made.now += 600
        made.store.resume()
        await eventually(lambda: lease.durable_step == 1, "the commit")
        yield
