"""The streams of this process, and a lock for each. Compares what the store returns with what is known to be stored.

If the store returns less than this process knows to be stored, it has lost state. A live stream is then stored again
from memory. For any other stream the call gets an error, and the loss is counted. A loss is never ignored.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard
from weakref import WeakValueDictionary

from tidegate.core.access import TenantLimits
from tidegate.core.errors import (
    CheckpointBroken,
    StateLost,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
    TooManyStreams,
)
from tidegate.core.high_water_marks import HighWaterMarks
from tidegate.core.slots import Slots
from tidegate.core.spec import Key
from tidegate.core.streams import Lease, Phase, Stream, StreamTable, checkpoint_rows
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule
from tidegate.runtime.checkpointer import Checkpointer
from tidegate.runtime.idle_streams import IdleStreams
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.peers import Peers
from tidegate.runtime.repository import ModelPhase, Repository
from tidegate.runtime.sweeper import Sweeper
from tidegate.runtime.tenant_streams import TenantStreams
from tidegate.store import Record, Residency, ResidencyUpdate, Store, StreamMetadata, Tombstone

log = logging.getLogger("tidegate.streams")

# A slot becomes free when a stream is parked: that takes as long as a connection to close, not milliseconds.
RETRY_AFTER_MS = 1000
NANOSECONDS = 1_000_000_000


class StreamRegistry:
    """The streams of this process, and the background tasks that keep them.

    Args:
        repository: the models.
        store: where checkpoints are kept.
        metrics: the metrics of the process.
        streams_max: the largest number of streams, live and parked.
        forget_after_s: how long a stream may be silent before it is deleted, in seconds; 0 for ever.
        schedule: see `Checkpointer`.

    Attributes:
        streams: the streams, by key.
        known_count: the number of streams in the store, as of the last sweep and the changes by this process since.

    """

    def __init__(
        self,
        repository: Repository,
        store: Store,
        metrics: Metrics,
        *,
        limits_of: Callable[[str], TenantLimits],
        streams_max: int,
        forget_after_s: float,
        schedule: CheckpointSchedule,
    ) -> None:
        self._repository = repository
        self._store = store
        self._metrics = metrics
        self._streams_max = streams_max
        self._forget_after_s = forget_after_s
        self.streams = StreamTable()
        self._high_water_marks = HighWaterMarks()  # of streams that have left this process
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self.known_count = 0
        self._starting = 0  # streams that are being created and not yet in `known_count`
        self.peers = Peers(store, self._on_notice, lambda: bool(self.streams), self._on_store_restart)
        self.checkpointer = Checkpointer(
            repository,
            self.streams,
            store,
            metrics,
            self._may_park,
            self._on_save_refused,
            self._on_parked,
            schedule,
        )
        self.tenants = TenantStreams(store, limits_of)
        self.sweeper = Sweeper(store, forget_after_s, self._set_known_count)
        self.idle_streams = IdleStreams(self.checkpointer.park_soon)
        metrics.live_streams = self._count_live
        metrics.known_streams = lambda: self.known_count

    def __repr__(self) -> str:
        return f"<StreamRegistry {self.streams!r} {self._store!r}>"

    def lock(self, key: Key) -> asyncio.Lock:
        """The lock of a stream. Whoever opens, wakes or drops the stream holds it; meanwhile the stream is not parked.

        Unused locks are freed.
        """
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    @contextmanager
    def reserve_new(self) -> Iterator[Callable[[], None]]:
        """Reserves room for a stream that is created inside the context. Call the returned function once it exists.

        Raises TooManyStreams. The room is reserved before the first await, so concurrent creations see each other.
        """
        if self.known_count + self._starting >= self._streams_max:
            raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
        self._starting += 1
        try:
            yield self._began
        finally:
            self._starting -= 1

    def _began(self) -> None:
        self.known_count += 1

    def release(self, lease: Lease) -> None:
        """Releases the stream of a call. It is parked soon. Does nothing when the lease has ended."""
        if lease.ended is None:
            stream = lease.stream
            self.streams.release(lease)
            if stream.phase is Phase.LIVE:
                self.checkpointer.park_soon(stream)
            else:
                self.streams.drop(stream, StreamNotFound(stream.key.stream_id))  # it is in the store, and nowhere else
                self._high_water_marks.record(stream.key, stream.epoch, lease.durable_step)
                self.peers.announce_update(ResidencyUpdate(stream.key, stream.epoch, Residency.RELEASED))

    def release_to_idle(self, lease: Lease) -> None:
        """Releases the stream of a call and keeps it live for the next one. Does nothing when the lease has ended."""
        stream = lease.stream
        serving = self._repository.of(stream.slots).phase is ModelPhase.SERVING
        if lease.ended is None and stream.phase is Phase.LIVE and serving:
            self.streams.release(lease)
            self.idle_streams.add(stream)
        else:
            self.release(lease)

    def acquire_idle(self, key: Key, model: str, version: str) -> Lease | None:
        """A lease on an idle stream of that model, unless somebody opens or drops the stream."""
        stream = self.streams.find(key)
        # Other streams without a call wait to be stored. They have an owner, which must learn of this open.
        if stream is None or stream not in self.idle_streams or not self._may_park(stream):
            return None
        spec = stream.slots.spec
        if model not in ("", spec.name) or version not in ("", spec.version):
            return None
        if not version and stream.slots.draining:
            return None  # it is to move, which `open` does
        self.mark_in_use(stream)
        return self.streams.reacquire(stream)

    def park_unopened(self, slots: Slots) -> None:
        """Parks the streams of a model that no call has open: it is about to be unloaded."""
        self.idle_streams.clear(slots)

    def forget_model(self, slots: Slots) -> None:
        """Frees what is kept for a model that has no streams here."""
        self.streams.forget(slots)
        self.idle_streams.forget(slots)
        self.checkpointer.idle_times.pop(slots, None)
        slots.free()

    def mark_in_use(self, stream: Stream) -> None:
        """Marks a stream as opened by a call: it is neither idle nor about to be parked."""
        self.idle_streams.discard(stream)
        self.checkpointer.cancel_park(stream)

    async def drop(self, stream: Stream, reason: TidegateError) -> None:
        """Removes a stream from this process, even if it is not stored."""
        self.mark_in_use(stream)
        batcher = self._repository.of(stream.slots).batcher
        await batcher.run_between(lambda: self.streams.drop(stream, reason))

    def drop_parked(self, stream: Stream, record: Record | None) -> None:
        """Removes a parked stream: another server has it, or its state is lost."""
        self.streams.drop(stream, self.gone_error(stream, record))
        if is_ours(record, stream):
            self.peers.announce_update(ResidencyUpdate(stream.key, stream.epoch, Residency.RELEASED))

    def gone_error(self, stream: Stream, record: Record | None) -> TidegateError:
        """Why this process can no longer hold a stream, from what the store returned. Counts a loss."""
        stream_id = stream.key.stream_id
        durable = stream.lease.durable_step if stream.lease is not None else 0
        if record is not None and record.metadata.tombstone is Tombstone.EXPIRED:
            return StreamExpired(stream_id, record.metadata.step)
        if record is not None and record.metadata.tombstone is Tombstone.DELETED:
            return StreamNotFound(stream_id)
        if record is not None and record.metadata.epoch > stream.epoch:
            log.info("stream %s was taken over by another server", stream_id)
            return TakenOver(stream_id, record.metadata.epoch)
        # Neither deleted nor taken over: the store has lost the stream or its last state, and perhaps somebody has
        # begun it again.
        if durable == 0 and record is None:
            return StreamNotFound(stream_id)
        lost = StateLost(stream_id, record.metadata.step if record is not None else 0, durable)
        self.record_loss(lost)
        return lost

    def record_loss(self, error: StateLost) -> None:
        """Counts and logs a loss of state."""
        self._metrics.state_lost += 1
        log.error("%s", error)

    def find_loss(self, key: Key, record: Record | None) -> StateLost | None:
        """The loss, when a record has less than this process knows to be stored; else None."""
        if record is not None and record.metadata.tombstone:
            return None
        epoch, step = (record.metadata.epoch, record.metadata.step) if record is not None else (0, 0)
        durable_step = self._high_water_marks.find_loss(key, epoch, step)
        return StateLost(key.stream_id, step, durable_step) if durable_step else None

    async def restore(self, stream: Stream) -> bool:
        """Stores a live stream again that the store has lost. Returns whether that was possible."""
        if stream.phase is not Phase.LIVE or not stream.step:
            return False
        batcher = self._repository.of(stream.slots).batcher
        [checkpoint] = await batcher.run_between(lambda: checkpoint_rows([stream]))
        if not await self._store.restore(checkpoint, stream.owner):
            return False
        log.error(
            "stream %s: the store had lost it; it is stored again, at step %d", stream.key.stream_id, checkpoint.step
        )
        return True

    def may_expire(self, head: StreamMetadata) -> bool:
        """Whether a parked stream is so old that it may expire before it is announced as live."""
        return 0 < self._forget_after_s < 2 * (time.time_ns() - head.updated_unix_nano) / NANOSECONDS

    async def _on_save_refused(self, stream: Stream) -> None:
        """Handles a checkpoint that the store has refused: finds out why, and stores the stream again or drops it.

        Raises StoreUnavailable.
        """
        async with self.lock(stream.key):
            if stream.phase is not Phase.LIVE:
                return
            try:
                record = await self._store.load(stream.key)
            except CheckpointBroken as error:
                await self.drop(stream, error)
                return
            if record is None and await self.restore(stream):
                return
            if not is_ours(record, stream):
                await self.drop(stream, self.gone_error(stream, record))

    async def _on_notice(self, key: Key) -> None:
        """Handles a notice: another server has opened or deleted the stream, or wants to read it."""
        async with self.lock(key):
            record = await self._store.load(key)
            stream = self.streams.find(key)
            if stream is not None and not is_ours(record, stream):
                await self.drop(stream, self.gone_error(stream, record))
                return
        if record is None or not record.metadata.is_ours:
            return
        head = record.metadata
        if stream is not None:
            await self.checkpointer.wait_settled(stream)
        if stream is None or stream.epoch == head.epoch:
            mark = Residency.RELEASED
            if self.streams.find(key) is not None and stream is not None:
                mark = Residency.LIVE if stream.phase is Phase.LIVE else Residency.OPEN_PARKED
            await self._store.set_residency([ResidencyUpdate(key, head.epoch, mark, head.save_requests)])

    async def _on_store_restart(self) -> None:
        """Handles a restart of the store: every live stream whose stored state may be lost is stored again."""
        log.warning("the store was restarted; all live streams are stored again")
        self.streams.record_durable_steps()
        for served in self._repository:
            await served.batcher.run_between(served.slots.mark_unsaved)

    def _on_parked(self, stream: Stream, step: int) -> None:
        """Handles a stream that has left its slot."""
        self.idle_streams.discard(stream)
        if stream.lease is None:
            self._high_water_marks.record(stream.key, stream.epoch, step)
        self.peers.announce(stream)

    def _may_park(self, stream: Stream) -> bool:
        """Whether nobody opens, wakes or drops the stream now."""
        lock = self._locks.get(stream.key)
        return lock is None or not lock.locked()

    def _set_known_count(self, count: int) -> None:
        """Takes the number of streams in the store from a sweep."""
        self.known_count = count

    def _count_live(self) -> int:
        return sum(len(served.slots) for served in self._repository)


def is_ours(record: Record | None, stream: Stream) -> TypeGuard[Record]:
    """Whether the store has the stream under the epoch of this process, with this process as its writer."""
    return (
        record is not None
        and record.metadata.is_ours
        and record.metadata.epoch == stream.epoch
        and not record.metadata.tombstone
    )


def contention_error(key: Key) -> StoreUnavailable:
    """The error when other servers were faster each time."""
    return StoreUnavailable("", f"stream '{key.stream_id}' is being opened by too many clients at once; try again")
