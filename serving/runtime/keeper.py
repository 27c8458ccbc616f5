"""Keeps the streams: opens, wakes and forgets them, in step with their batcher, the checkpointer and the store.

What may happen is decided in `core.streams`; here it is done, in the order that loses nothing. One at a time opens, wakes
or drops a stream (`_alone`), and while somebody does, the checkpointer leaves it where it is.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from serving.core.block import Block
from serving.core.errors import (
    CheckpointBroken,
    InvalidField,
    ModelNotFound,
    StateLost,
    Stopping,
    StoreUnavailable,
    StreamExists,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
    TooManyStreams,
)
from serving.core.imported import check_imported
from serving.core.slots import Slots
from serving.core.spec import Checkpoint, Key
from serving.core.streams import (
    Existence,
    Known,
    Lease,
    OpenKind,
    Phase,
    Stream,
    Streams,
    check_fits,
    checkpoint_rows,
    rule_on_open,
)
from serving.rpc.desk import CloseReason, Opening, ServedModel, StreamInfo
from serving.runtime.batcher import Batcher
from serving.runtime.checkpointer import Checkpointer, Pace
from serving.runtime.crash import crash_point
from serving.runtime.metrics import Metrics
from serving.runtime.repository import Repository, Served
from serving.store import Head, Record, Store, decode, encode

log = logging.getLogger("tidegate.streams")

# Nobody guesses 128 bits.
STREAM_ID_BYTES = 16
# A slot comes free when some stream parks; that is a matter of a connection closing, not of milliseconds.
RETRY_AFTER_MS = 1000
# Two openers of one stream in different processes: one of them wins each time, so a handful of tries is many.
CLAIM_TRIES = 8
# How often old streams are looked for, in seconds: expiry is counted in hours.
SWEEP_SECONDS = 60.0
# A tombstone is kept so many times as long as the state was: long enough to tell a late client what happened.
TOMBSTONE_FACTOR = 10
NANOSECONDS = 1_000_000_000


class Keeper:
    """Holds the streams of this process.

    Args:
        repository: the models.
        store: where streams rest.
        metrics: where to count.
        streams_max: the most streams, live and parked.
        forget_after_s: how long a stream may be silent before it is forgotten, in seconds; 0 for ever.
        pace: see `Checkpointer`.

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
        self._streams = Streams()
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._stopping = False
        self._known = 0  # streams in the store, as of the last sweep and what this process has done since
        self.checkpointer = Checkpointer(
            repository,
            self._streams,
            store,
            metrics,
            self._may_park,
            pace,
        )
        metrics.live_streams = self._live
        metrics.known_streams = lambda: self._known

    def __repr__(self) -> str:
        return f"<Keeper {self._streams!r} {self._store!r}>"

    async def open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        """Opens a stream: begins it, resumes it, or takes it over from another call.

        Raises:
            StreamRefused: it may not be opened so; nothing has changed.
            CheckpointBroken: its stored state cannot be read; nothing has changed.
            StoreUnavailable: the store cannot be asked.
            Stopping: the server is going away.

        """
        if not key.stream_id:
            key = Key(key.tenant, secrets.token_urlsafe(STREAM_ID_BYTES))
        try:
            async with self._alone(key):
                opening = await self._open(key, model, version, existence, acknowledged_step)
        except Exception as error:
            self._metrics.opened["refused"] += 1
            if isinstance(error, StateLost):
                self._metrics.state_lost += 1
            raise
        self._metrics.opened[opening.kind.value] += 1
        self._known += opening.kind is OpenKind.NEW
        return opening

    async def wake(self, lease: Lease) -> None:
        """Puts a parked stream that a call has open back into a slot.

        Raises what ended the lease, or TooManyStreams, CheckpointBroken, StoreUnavailable: then it stays parked.
        """
        stream = lease.stream
        async with self._alone(stream.key):
            if lease.ended is not None:
                raise lease.ended
            if stream.phase is Phase.LIVE:
                return
            record = await self._store.load(stream.key)
            if record is None or record.head.epoch != stream.epoch:
                self._streams.drop(stream, _why_gone(stream, record))
                assert lease.ended is not None
                raise lease.ended
            slot = self._acquire(self._repository.of(stream.slots), stream.key)
            try:
                self._streams.wake(stream, record.checkpoint, slot)
                self.checkpointer.stay(stream)
            except BaseException:
                stream.slots.release(slot)
                raise

    def line(self, lease: Lease) -> Batcher:
        """Where the timesteps of a stream are queued."""
        return self._repository.of(lease.stream.slots).batcher

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues timesteps of many streams; see `Batcher.submit_block`."""
        return self._repository.of(block.slots).batcher.submit_block(block)

    async def durable(self, lease: Lease, step: int) -> None:
        """Waits until a timestep is stored; see `Checkpointer.durable`."""
        await self.checkpointer.durable(lease, step)

    def answered_block(self, block: Block, seconds: float) -> None:
        """Counts the timesteps of a block that was answered."""
        self._repository.of(block.slots).metrics.step_seconds.observe(seconds, len(block))

    def watch(self, notice: Callable[[], None]) -> Callable[[], None]:
        """Has `notice` called whenever something was stored; gives what ends that."""
        self.checkpointer.watchers.append(notice)
        return partial(self.checkpointer.watchers.remove, notice)

    def leave(self, lease: Lease, reason: CloseReason) -> None:
        """Lets go of a stream, which is parked soon; nothing happens to it if the lease is over already."""
        self._metrics.closed[reason] += 1
        self._let_go(lease)

    async def forget(self, lease: Lease) -> None:
        """Drops the stream that a call has open, and its state."""
        await self.delete(lease.stream.key)

    def models(self) -> list[ServedModel]:
        """The models being served."""
        return [_describe(served) for served in self._repository]

    def model(self, name: str, version: str) -> ServedModel:
        """One model; ModelNotFound when it is not served."""
        return _describe(self._repository.find(name, version))

    async def list(self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None) -> list[StreamInfo]:
        """Streams in the order of their ids, those after `after`; at most `limit`, those in `phase` only."""
        found: list[StreamInfo] = []
        while len(found) < limit:
            heads = await self._store.scan(tenant, prefix, after, limit)
            infos = [self._info(head) for head in heads]
            found += [info for info in infos if phase is None or info.phase is phase]
            if len(heads) < limit:
                break
            after = heads[-1].key.stream_id
        return found[:limit]

    async def describe(self, key: Key) -> StreamInfo:
        """One stream; StreamNotFound when it is not known."""
        return self._info((await self._load(key)).head)

    async def delete(self, key: Key) -> StreamInfo:
        """Drops a stream and its state; a call that has it open ends. StreamNotFound when it is not known."""
        async with self._alone(key):
            record = await self._load(key)
            info = self._info(record.head)
            if not await self._store.forget(key, record.head.epoch):
                raise TakenOver(key.stream_id, record.head.epoch + 1)
            self._known -= not record.head.expired
            stream = self._streams.find(key)
            if stream is not None:
                await self._drop(stream, StreamNotFound(key.stream_id))
            return info

    async def export(self, key: Key) -> tuple[bytes, StreamInfo]:
        """A stream's state as a record, as of its last applied timestep. StreamNotFound when it is not known."""
        async with self._alone(key):
            checkpoint, info = await self._latest(key)
            return encode(checkpoint), info

    async def import_(self, tenant: str, record: bytes, stream_id: str) -> StreamInfo:
        """Makes a stream from a record.

        Raises:
            InvalidField: the record is damaged or of a newer format, or no server of this model can have written it.
            ModelNotFound: its model is not served.
            StreamExists: there is a stream of that id.

        """
        try:
            checkpoint = decode(record, "checkpoint")
        except CheckpointBroken as error:  # a client's mistake, not a loss of the store's
            raise InvalidField("checkpoint", error.message) from error
        return await self._plant(checkpoint, Key(tenant, stream_id or checkpoint.key.stream_id), check_imported)

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Makes a stream that starts at another one's state. StreamNotFound, StreamExists."""
        async with self._alone(source):
            checkpoint, _ = await self._latest(source)
        return await self._plant(checkpoint, Key(source.tenant, stream_id or secrets.token_urlsafe(STREAM_ID_BYTES)))

    async def sweep(self) -> None:
        """Forgets streams after long silence, and keeps count, until cancelled."""
        while True:
            try:
                if self._forget_after_s:
                    now = time.time_ns()
                    age = round(self._forget_after_s * NANOSECONDS)
                    forgotten = await self._store.expire(now - age, now - TOMBSTONE_FACTOR * age)
                    if forgotten:
                        log.info("%d streams forgotten after %g s of silence", forgotten, self._forget_after_s)
                self._known = await self._store.count()
            except StoreUnavailable as error:
                log.error("%s; streams are not swept", error)
            await asyncio.sleep(min(SWEEP_SECONDS, self._forget_after_s / 4 or SWEEP_SECONDS))

    async def close(self) -> None:
        """Opens nothing more, and waits until every stream is in the store."""
        self._stopping = True
        await self.checkpointer.flush()
        log.info("all streams stored")

    async def _open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        for _ in range(CLAIM_TRIES):
            if self._stopping:
                raise Stopping
            stream, record, known = await self._look(key)
            if known is not None and model in ("", known.model.name):
                served = self._repository.find(known.model.name, version or known.model.version)
            else:
                served = self._repository.find(model, version)
            kind = rule_on_open(key, known, served.spec, existence, acknowledged_step)
            if kind is OpenKind.NEW and self._known >= self._streams_max:
                raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
            seen_epoch = record.head.epoch if record is not None else 0
            if stream is not None and stream.phase is Phase.LIVE:
                lease = await self._take_over(stream, served, seen_epoch)
            else:
                lease = await self._bring_in(key, served, record, seen_epoch)
            if lease is not None:
                self.checkpointer.stay(lease.stream)
                return Opening(lease, kind, lease.stream.step + 1, served.slots.answers)
        raise StoreUnavailable("", f"stream '{key.stream_id}' is being opened by too many at once; try again")

    async def _look(self, key: Key) -> tuple[Stream | None, Record | None, Known | None]:
        """What there is of a stream, here and in the store; what another process has taken is dropped here."""
        record = await self._store.load(key)
        stream = self._streams.find(key)
        if stream is not None and (record is None or record.head.epoch != stream.epoch):
            await self._drop(stream, _why_gone(stream, record))
            stream = None
        if record is None:
            return None, None, None
        head = record.head
        if stream is not None and stream.phase is Phase.LIVE:
            phase = Phase.LIVE if stream.lease is not None else Phase.PARKED
            return stream, record, Known(phase, stream.step, stream.slots.spec.id)
        if stream is not None:  # parked, though a call has it open: that call loses it
            return stream, record, Known(Phase.LIVE, head.step, head.model)
        return None, record, Known(Phase.EXPIRED if head.expired else Phase.PARKED, head.step, head.model)

    async def _take_over(self, stream: Stream, served: Served, seen_epoch: int) -> Lease | None:
        """Gives a stream that is live here to another call; None when another process was faster.

        Once begun it is done, whether or not the caller waits for it: with the old epoch here and the new one in the store,
        what is not yet stored never would be.
        """
        taking = asyncio.create_task(self._claim_live(stream, served, seen_epoch))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([taking])  # nobody else opens it until then
            finally:
                taking.add_done_callback(self._nobody_took)
            raise

    def _nobody_took(self, taking: asyncio.Task[Lease | None]) -> None:
        """Lets go of a stream that was taken over for a call that went away meanwhile."""
        if taking.cancelled():
            return
        if (error := taking.exception()) is not None:
            log.error("a stream was not taken over, and the call that wanted it has gone: %s", error)
        elif (lease := taking.result()) is not None:
            self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        if lease.ended is None:
            stream = lease.stream
            self._streams.let_go(lease)
            if stream.phase is Phase.LIVE:
                self.checkpointer.leave(stream)
            else:
                self._streams.drop(stream, StreamNotFound(stream.key.stream_id))  # it is in the store, and nowhere else

    async def _claim_live(self, stream: Stream, served: Served, seen_epoch: int) -> Lease | None:
        epoch = await self._store.claim(stream.key, seen_epoch, served.spec.id)
        crash_point("during-take-over")
        if epoch is None:
            return None
        self.checkpointer.stay(stream)
        # Between batches: a timestep that is being run now is applied, and the new call goes on after it.
        return await self._repository.of(stream.slots).batcher.between(partial(self._streams.take_over, stream, epoch))

    async def _bring_in(self, key: Key, served: Served, record: Record | None, seen_epoch: int) -> Lease | None:
        """Makes a stream live that is not; None when another process was faster."""
        slot = self._acquire(served, key)
        try:
            epoch = await self._store.claim(key, seen_epoch, served.spec.id)
            crash_point("during-take-over")
            if epoch is None:
                served.slots.release(slot)
                return None
            parked = self._streams.find(key)
            if parked is not None:
                self._streams.drop(parked, TakenOver(key.stream_id, epoch))
            if record is not None and record.checkpoint is not None:
                return self._streams.resume(record.checkpoint, served.slots, slot, epoch)
            return self._streams.begin(key, served.slots, slot, epoch)
        except BaseException:  # a client that went away, a store that is down, a record that does not fit
            served.slots.release(slot)
            raise

    def _acquire(self, served: Served, key: Key) -> int:
        if served.slots.full:
            raise TooManyStreams("live", served.slots.capacity, RETRY_AFTER_MS)
        return served.slots.acquire(key)

    async def _drop(self, stream: Stream, reason: TidegateError) -> None:
        """Holds a stream no longer, whatever of it is not stored."""
        self.checkpointer.stay(stream)
        batcher = self._repository.of(stream.slots).batcher
        await batcher.between(lambda: self._streams.drop(stream, reason))

    async def _load(self, key: Key) -> Record:
        record = await self._store.load(key)
        if record is None:
            raise StreamNotFound(key.stream_id)
        return record

    async def _latest(self, key: Key) -> tuple[Checkpoint, StreamInfo]:
        """A stream as of its last applied timestep, wherever it is."""
        record = await self._load(key)
        info = self._info(record.head)
        stream = self._streams.find(key)
        if stream is not None and stream.phase is Phase.LIVE and stream.epoch == record.head.epoch:
            batcher = self._repository.of(stream.slots).batcher
            return (await batcher.between(lambda: checkpoint_rows([stream])))[0], info
        if record.checkpoint is None:  # expired, or opened and never stepped
            raise StreamNotFound(key.stream_id)
        return record.checkpoint, info

    async def _plant(
        self, checkpoint: Checkpoint, key: Key, check: Callable[[Checkpoint, Slots], None] = check_fits
    ) -> StreamInfo:
        """Stores a state as a new stream."""
        served = [one for one in self._repository if one.spec.fingerprint == checkpoint.model.fingerprint]
        if not served:
            titles = [f"{one.spec.title} ({one.spec.fingerprint[:12]})" for one in self._repository]
            raise ModelNotFound(checkpoint.model.title, f"with fingerprint {checkpoint.model.fingerprint[:12]}", titles)
        check(checkpoint, served[0].slots)
        async with self._alone(key):
            record = await self._store.load(key)
            if record is not None and not record.head.expired:
                raise StreamExists(key.stream_id)
            epoch = await self._store.claim(key, record.head.epoch if record else 0, served[0].spec.id)
            if epoch is None:
                raise StreamExists(key.stream_id)
            self._known += 1
            await self._store.save([replace(checkpoint, key=key, epoch=epoch, model=served[0].spec.id)])
            return self._info((await self._load(key)).head)

    def _info(self, head: Head) -> StreamInfo:
        """A stream as an operator sees it: what the store knows, or what is newer here."""
        stream = self._streams.find(head.key)
        held = stream is not None and stream.phase is Phase.LIVE and stream.epoch == head.epoch
        phase = Phase.LIVE if held else Phase.EXPIRED if head.expired else Phase.PARKED
        step = stream.step if held and stream is not None else head.step
        return StreamInfo(
            head.key.stream_id,
            phase,
            head.model,
            step,
            head.step,
            head.epoch,
            head.created_unix_nano,
            head.updated_unix_nano,
            head.state_bytes,
        )

    def _may_park(self, stream: Stream) -> bool:
        """Whether nobody is opening, waking or dropping a stream now."""
        lock = self._locks.get(stream.key)
        return lock is None or not lock.locked()

    def _live(self) -> int:
        return sum(len(served.slots) for served in self._repository)

    def _alone(self, key: Key) -> asyncio.Lock:
        """Lets one at a time open, wake or drop a stream; gone when nobody uses it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def _why_gone(stream: Stream, record: Record | None) -> TidegateError:
    """Why the store no longer knows a stream under the epoch that it has here."""
    if record is None:
        return StreamNotFound(stream.key.stream_id)
    if record.head.expired:
        return StreamExpired(stream.key.stream_id, record.head.step)
    return TakenOver(stream.key.stream_id, record.head.epoch)


def _describe(served: Served) -> ServedModel:
    return ServedModel(served.spec, served.metrics.batch_invariant, served.card_json)
