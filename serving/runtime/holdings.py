"""The streams that this process holds: one at a time changes one, and what the store says of them is compared with what is known.

If the store gives less than this process knows to have been stored, the state is lost. It is stored again from memory where there
is one; else the call is told, and the loss is counted. It never goes on in silence.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard
from weakref import WeakValueDictionary

from serving.core.errors import (
    CheckpointBroken,
    StateLost,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
    TooManyStreams,
)
from serving.core.marks import HighWaterMarks
from serving.core.spec import Key
from serving.core.streams import Lease, Phase, Stream, Streams, checkpoint_rows
from serving.runtime.checkpointer import Checkpointer
from serving.runtime.metrics import Metrics
from serving.runtime.pace import Pace
from serving.runtime.peers import Peers
from serving.runtime.repository import Repository
from serving.runtime.resting import Resting
from serving.runtime.sweeper import Sweeper
from serving.store import Head, Mark, Marking, Record, Store, Tombstone

log = logging.getLogger("tidegate.streams")

# A slot comes free when some stream parks; that is a matter of a connection closing, not of milliseconds.
RETRY_AFTER_MS = 1000
NANOSECONDS = 1_000_000_000


class Holdings:
    """What this process holds, and who looks after it in the background.

    Args:
        repository: the models.
        store: where streams rest.
        metrics: where to count.
        streams_max: the most streams, live and parked.
        forget_after_s: how long a stream may be silent before it is forgotten, in seconds; 0 for ever.
        pace: see `Checkpointer`.

    Attributes:
        streams: the streams, by key.
        known: streams in the store, as of the last sweep and what this process has done since.

    """

    def __init__(
        self,
        repository: Repository,
        store: Store,
        metrics: Metrics,
        *,
        streams_max: int,
        forget_after_s: float,
        pace: Pace,
    ) -> None:
        self._repository = repository
        self._store = store
        self._metrics = metrics
        self._streams_max = streams_max
        self._forget_after_s = forget_after_s
        self.streams = Streams()
        self._marks = HighWaterMarks()  # of streams that have left this process
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self.known = 0
        self._beginning = 0  # streams that are being begun, and are not in `known`
        self.peers = Peers(store, self._look_at, lambda: bool(self.streams), self._store_all_again)
        self.checkpointer = Checkpointer(
            repository,
            self.streams,
            store,
            metrics,
            self._may_park,
            self._refused,
            self._parked,
            pace,
        )
        self.sweeper = Sweeper(store, forget_after_s, self._count)
        self.resting = Resting(self.checkpointer.leave)
        metrics.live_streams = self._live
        metrics.known_streams = lambda: self.known

    def __repr__(self) -> str:
        return f"<Holdings {self.streams!r} {self._store!r}>"

    def alone(self, key: Key) -> asyncio.Lock:
        """Lets one at a time open, wake or drop a stream, and keeps that from being parked; gone when nobody uses it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    @contextmanager
    def one_more(self) -> Iterator[Callable[[], None]]:
        """Room for a stream that is begun inside; it counts for good once what this gives was called.

        Raises TooManyStreams. It is counted before anything is waited for: those that begin side by side see each other.
        """
        if self.known + self._beginning >= self._streams_max:
            raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
        self._beginning += 1
        try:
            yield self._began
        finally:
            self._beginning -= 1

    def _began(self) -> None:
        self.known += 1

    def let_go(self, lease: Lease) -> None:
        """Lets a call go: its stream is parked soon. Nothing happens when the lease has ended."""
        if lease.ended is None:
            stream = lease.stream
            self.streams.let_go(lease)
            if stream.phase is Phase.LIVE:
                self.checkpointer.leave(stream)
            else:
                self.streams.drop(stream, StreamNotFound(stream.key.stream_id))  # it is in the store, and nowhere else
                self._marks.note(stream.key, stream.epoch, lease.durable_step)
                self.peers.say_of(Marking(stream.key, stream.epoch, Mark.RELEASED))

    def rest(self, lease: Lease) -> None:
        """Lets a call go, and keeps its stream live for the next. Nothing happens when the lease has ended."""
        stream = lease.stream
        if lease.ended is None and stream.phase is Phase.LIVE:
            self.streams.let_go(lease)
            self.resting.add(stream)
        else:
            self.let_go(lease)

    def go_on(self, key: Key, model: str, version: str) -> Lease | None:
        """A new hold on a stream of that model that rests, and that nobody is opening or dropping."""
        stream = self.streams.find(key)
        # Others that no call has open are on their way to the store: they have an owner, who is to learn of this open.
        if stream is None or stream not in self.resting or not self._may_park(stream):
            return None
        spec = stream.slots.spec
        if model not in ("", spec.name) or version not in ("", spec.version):
            return None
        self.stay(stream)
        return self.streams.go_on(stream)

    def stay(self, stream: Stream) -> None:
        """A call has opened a stream: it neither rests nor leaves."""
        self.resting.discard(stream)
        self.checkpointer.stay(stream)

    async def drop(self, stream: Stream, reason: TidegateError) -> None:
        """Holds a stream no longer, whatever of it is not stored."""
        self.stay(stream)
        batcher = self._repository.of(stream.slots).batcher
        await batcher.between(lambda: self.streams.drop(stream, reason))

    def end(self, stream: Stream, record: Record | None) -> None:
        """Holds a parked stream no longer: it is another's, or its state is lost."""
        self.streams.drop(stream, self.why_gone(stream, record))
        if is_ours(record, stream):
            self.peers.say_of(Marking(stream.key, stream.epoch, Mark.RELEASED))

    def why_gone(self, stream: Stream, record: Record | None) -> TidegateError:
        """Why a stream can no longer be held here, by what the store says of it; a loss is counted."""
        stream_id = stream.key.stream_id
        durable = stream.lease.durable_step if stream.lease is not None else 0
        if record is not None and record.head.tombstone is Tombstone.EXPIRED:
            return StreamExpired(stream_id, record.head.step)
        if record is not None and record.head.tombstone is Tombstone.DELETED:
            return StreamNotFound(stream_id)
        if record is not None and record.head.epoch > stream.epoch:
            log.info("stream %s was taken over by another server", stream_id)
            return TakenOver(stream_id, record.head.epoch)
        # Neither deleted nor taken over: the store has lost it, or what was stored last, and perhaps somebody began it anew.
        if durable == 0 and record is None:
            return StreamNotFound(stream_id)
        lost = StateLost(stream_id, record.head.step if record is not None else 0, durable)
        self.lost(lost)
        return lost

    def lost(self, error: StateLost) -> None:
        """Counts a loss and says so."""
        self._metrics.state_lost += 1
        log.error("%s", error)

    def known_lost(self, key: Key, record: Record | None) -> StateLost | None:
        """What is wrong with a record that tells less than this process knows to have been stored."""
        if record is not None and record.head.tombstone:
            return None
        epoch, step = (record.head.epoch, record.head.step) if record is not None else (0, 0)
        known = self._marks.lost(key, epoch, step)
        return StateLost(key.stream_id, step, known) if known else None

    async def restore(self, stream: Stream) -> bool:
        """Stores a live stream again that the store has lost; gives whether it could."""
        if stream.phase is not Phase.LIVE or not stream.step:
            return False
        batcher = self._repository.of(stream.slots).batcher
        [checkpoint] = await batcher.between(lambda: checkpoint_rows([stream]))
        if not await self._store.restore(checkpoint, stream.owner):
            return False
        log.error(
            "stream %s: the store had lost it; it is stored again, at step %d", stream.key.stream_id, checkpoint.step
        )
        return True

    def may_expire(self, head: Head) -> bool:
        """Whether a parked stream is so old that it may expire within the time that it takes to say that it is live."""
        return 0 < self._forget_after_s < 2 * (time.time_ns() - head.updated_unix_nano) / NANOSECONDS

    async def _refused(self, stream: Stream) -> None:
        """The store has refused to store a stream: finds out why, and stores it again or drops it. StoreUnavailable."""
        async with self.alone(stream.key):
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
                await self.drop(stream, self.why_gone(stream, record))

    async def _look_at(self, key: Key) -> None:
        """Another server opened or deleted a stream, or wants to read it."""
        async with self.alone(key):
            record = await self._store.load(key)
            stream = self.streams.find(key)
            if stream is not None and not is_ours(record, stream):
                await self.drop(stream, self.why_gone(stream, record))
                return
        if record is None or not record.head.mine:
            return
        head = record.head
        if stream is not None:
            await self.checkpointer.settled(stream)
        if stream is None or stream.epoch == head.epoch:
            mark = Mark.RELEASED
            if self.streams.find(key) is not None and stream is not None:
                mark = Mark.LIVE if stream.phase is Phase.LIVE else Mark.ASLEEP
            await self._store.mark([Marking(key, head.epoch, mark, head.asked)])

    async def _store_all_again(self) -> None:
        """The store was restarted: what it has less than was stored it gets again, from all that is live."""
        log.warning("the store was restarted; all live streams are stored again")
        self.streams.note_durable()
        for served in self._repository:
            await served.batcher.between(served.slots.store_again)

    def _parked(self, stream: Stream, step: int) -> None:
        """A stream has left its slot."""
        self.resting.discard(stream)
        if stream.lease is None:
            self._marks.note(stream.key, stream.epoch, step)
        self.peers.say(stream)

    def _may_park(self, stream: Stream) -> bool:
        """Whether nobody is opening, waking or dropping a stream now."""
        lock = self._locks.get(stream.key)
        return lock is None or not lock.locked()

    def _count(self, known: int) -> None:
        """Takes note of how many streams the store knows."""
        self.known = known

    def _live(self) -> int:
        return sum(len(served.slots) for served in self._repository)


def is_ours(record: Record | None, stream: Stream) -> TypeGuard[Record]:
    """Whether the store knows a stream as the one that this process holds."""
    return record is not None and record.head.mine and record.head.epoch == stream.epoch and not record.head.tombstone


def contended(key: Key) -> StoreUnavailable:
    """Says that others were always faster."""
    return StoreUnavailable("", f"stream '{key.stream_id}' is being opened by too many at once; try again")
