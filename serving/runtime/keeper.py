"""Keeps the streams: opens, wakes and forgets them, in step with their batcher, the checkpointer and the store.

What may happen is decided in `core.streams`; here it is done, in the order that loses nothing. The laws of this file:
1. One at a time opens, wakes or drops a stream (`_alone`), and while somebody does, the checkpointer leaves it where it is.
2. Whoever had a stream may store it until it is claimed. So what was read before a claim decides whether to claim, and nothing
   runs from it: a stream goes on from the record that the claim gave.
3. A claim that has begun is finished, whether or not anybody waits for it; what nobody waits for is let go.
4. What the store gives is compared with what this process knows to have been stored. If it is less, the state is lost: it is
   stored again from memory where there is one, and else the call is told, and the loss is counted.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TypeGuard
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
from serving.core.marks import HighWaterMarks
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
from serving.runtime.checkpointer import Checkpointer
from serving.runtime.crash import crash_point
from serving.runtime.metrics import Metrics
from serving.runtime.pace import Pace
from serving.runtime.peers import HolderSilent, Peers
from serving.runtime.repository import Repository, Served
from serving.runtime.sweeper import Sweeper
from serving.store import Head, Holder, Mark, Marking, Record, Store, Tombstone, Wanted, decode, encode

log = logging.getLogger("tidegate.streams")

# Nobody guesses 128 bits.
STREAM_ID_BYTES = 16
# A slot comes free when some stream parks; that is a matter of a connection closing, not of milliseconds.
RETRY_AFTER_MS = 1000
# Two openers of one stream in different processes: one of them wins each time, so a handful of tries is many.
CLAIM_TRIES = 8
NANOSECONDS = 1_000_000_000

# Where a stream is in its life that nobody has in memory, by what is left of it. What was deleted may begin anew.
LEFT = {Tombstone.NONE: Phase.PARKED, Tombstone.EXPIRED: Phase.EXPIRED, Tombstone.DELETED: Phase.NEW}
# What to look for in the store when streams in a phase are listed.
WANTED = {Phase.LIVE: Wanted.HELD, Phase.PARKED: Wanted.ALL, Phase.EXPIRED: Wanted.EXPIRED}


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
        self._marks = HighWaterMarks()  # of streams that have left this process
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._stopping = False
        self._known = 0  # streams in the store, as of the last sweep and what this process has done since
        self._beginning = 0  # streams that are being begun, and are not in `_known`
        self.peers = Peers(store, self._look_at, lambda: bool(self._streams))
        self.checkpointer = Checkpointer(
            repository,
            self._streams,
            store,
            metrics,
            self._may_park,
            self._refused,
            self._parked,
            pace,
        )
        self.sweeper = Sweeper(store, forget_after_s, self._count)
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
                self._lost(error)
            raise
        self._metrics.opened[opening.kind.value] += 1
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
            if _is_ours(record, stream) and self._may_expire(record.head):
                # Another server could let it expire before it is told that the stream is live.
                await self._store.mark([Marking(stream.key, stream.epoch, Mark.LIVE)])
                record = await self._store.load(stream.key)
            if not _is_ours(record, stream) or record.head.step < lease.durable_step:
                self._end(stream, record)
                assert lease.ended is not None
                raise lease.ended
            slot = self._acquire(self._repository.of(stream.slots), stream.key)
            try:
                self._streams.wake(stream, record.checkpoint, slot)
                self.checkpointer.stay(stream)
            except BaseException:
                stream.slots.release(slot)
                raise
            self.peers.say(stream)

    def line(self, lease: Lease) -> Batcher:
        """Where the timesteps of a stream are queued."""
        return self._repository.of(lease.stream.slots).batcher

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues timesteps of many streams; see `Batcher.submit_block`."""
        return self._repository.of(block.slots).batcher.submit_block(block)

    def store_soon(self, lease: Lease) -> None:
        """Has a stream stored at once; see `Checkpointer.store_soon`."""
        self.checkpointer.store_soon(lease)

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
        """Deletes the stream that a call has open; raises what ended the lease when it is another's by now."""
        stream = lease.stream
        async with self._alone(stream.key):
            if lease.ended is not None:
                raise lease.ended
            record = await self._store.load(stream.key)
            if _is_ours(record, stream) and await self._store.forget(stream.key, stream.epoch):
                self._known -= 1
                await self._drop(stream, StreamNotFound(stream.key.stream_id))
                return
            await self._drop(stream, self._why_gone(stream, await self._store.load(stream.key)))
            assert lease.ended is not None
            raise lease.ended

    def models(self) -> list[ServedModel]:
        """The models being served."""
        return [_describe(served) for served in self._repository]

    def model(self, name: str, version: str) -> ServedModel:
        """One model; ModelNotFound when it is not served."""
        return _describe(self._repository.find(name, version))

    async def list(self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None) -> list[StreamInfo]:
        """Streams in the order of their ids, those after `after`; at most `limit`, those in `phase` only.

        What another server has in memory is told as of its last checkpoint.
        """
        wanted = Wanted.ALL if phase is None else WANTED.get(phase, Wanted.ALL)
        found: list[StreamInfo] = []
        following: str | None = after
        while following is not None and len(found) < limit:
            heads, following = await self._store.scan(tenant, prefix, following, limit - len(found), wanted)
            found += [info for info in map(self._info, heads) if phase is None or info.phase is phase]
        return found

    async def describe(self, key: Key) -> StreamInfo:
        """One stream, as of its last applied timestep, whichever server has it; StreamNotFound when it is not known."""
        async with self._alone(key):
            return self._info((await self._settled(key)).head)

    async def delete(self, key: Key) -> StreamInfo:
        """Deletes a stream and its state; a call that has it open ends, at another server soon.

        Raises StreamNotFound when it is not known.
        """
        async with self._alone(key):
            for _ in range(CLAIM_TRIES):
                try:
                    record = await self._settled(key)
                except HolderSilent:  # it may be frozen, and must not keep anybody from deleting
                    record = await self._load(key)
                info = self._info(record.head)
                if await self._store.forget(key, record.head.epoch):
                    self._known -= not record.head.tombstone
                    stream = self._streams.find(key)
                    if stream is not None:
                        await self._drop(stream, StreamNotFound(key.stream_id))
                    return info
        raise _contended(key)

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
            TooManyStreams: the server knows as many as it may.

        """
        try:
            checkpoint = decode(record, "checkpoint")
        except CheckpointBroken as error:  # a client's mistake, not a loss of the store's
            raise InvalidField("checkpoint", error.message) from error
        return await self._plant(checkpoint, Key(tenant, stream_id or checkpoint.key.stream_id), check_imported)

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Makes a stream that starts at another one's state. StreamNotFound, StreamExists, TooManyStreams."""
        async with self._alone(source):
            checkpoint, _ = await self._latest(source)
        return await self._plant(checkpoint, Key(source.tenant, stream_id or secrets.token_urlsafe(STREAM_ID_BYTES)))

    async def close(self) -> None:
        """Opens nothing more, and waits until every stream is in the store."""
        self._stopping = True
        await self.checkpointer.flush()
        await self.peers.flush()
        log.info("all streams stored")

    async def _open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        for _ in range(CLAIM_TRIES):
            if self._stopping:
                raise Stopping
            stream, record, known = await self._look(key)
            if known is not None and known.phase is not Phase.NEW and model in ("", known.model.name):
                served = self._repository.find(known.model.name, version or known.model.version)
            else:
                served = self._repository.find(model, version)
            kind = rule_on_open(key, known, served.spec, existence, acknowledged_step)
            if kind is OpenKind.NEW:
                lease = await self._begin(self._claim(key, served, stream, record))
            else:
                lease = await self._once_begun(self._claim(key, served, stream, record))
            if lease is not None:
                self.checkpointer.stay(lease.stream)
                return Opening(lease, kind, lease.stream.step + 1, served.slots.answers)
        raise _contended(key)

    async def _look(self, key: Key) -> tuple[Stream | None, Record | None, Known | None]:
        """What there is of a stream, here and in the store; what is held here wrongly is dropped."""
        record = await self._store.load(key)
        stream = self._streams.find(key)
        if stream is not None and record is None and await self._restore(stream):
            record = await self._store.load(key)
        if stream is not None and not _is_ours(record, stream):
            await self._drop(stream, self._why_gone(stream, record))
            stream = None
        if lost := self._known_lost(key, record):
            raise lost
        if record is None:
            return None, None, None
        head = record.head
        if stream is not None and stream.phase is Phase.LIVE:
            phase = Phase.LIVE if stream.lease is not None else Phase.PARKED
            return stream, record, Known(phase, stream.step, stream.slots.spec.id)
        if stream is not None:  # parked, though a call has it open: that call loses it
            assert stream.lease is not None
            if head.step < stream.lease.durable_step:
                lost = StateLost(key.stream_id, head.step, stream.lease.durable_step)
                self._streams.drop(stream, lost)
                raise lost
            return stream, record, Known(Phase.LIVE, head.step, head.model)
        return None, record, Known(LEFT[head.tombstone], head.step, head.model)

    def _known_lost(self, key: Key, record: Record | None) -> StateLost | None:
        """What is wrong with a record that tells less than this process knows to have been stored."""
        if record is not None and record.head.tombstone:
            return None
        epoch, step = (record.head.epoch, record.head.step) if record is not None else (0, 0)
        known = self._marks.lost(key, epoch, step)
        return StateLost(key.stream_id, step, known) if known else None

    def _parked(self, stream: Stream, step: int) -> None:
        """A stream has left its slot."""
        if stream.lease is None:
            self._marks.note(stream.key, stream.epoch, step)
        self.peers.say(stream)

    async def _begin(self, claim: Coroutine[None, None, Lease | None]) -> Lease | None:
        """Makes a claim that begins a stream, unless there are too many."""
        # Counted before anything is waited for: those that begin side by side see each other.
        if self._known + self._beginning >= self._streams_max:
            claim.close()
            raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
        self._beginning += 1
        try:
            lease = await self._once_begun(claim)
        finally:
            self._beginning -= 1
        self._known += lease is not None
        return lease

    async def _once_begun(self, claim: Coroutine[None, None, Lease | None]) -> Lease | None:
        """Finishes a claim, whether or not the caller waits for it.

        Else the store would know of an owner that is none. And with the old epoch here and the new one in the store, what a live
        stream has not yet stored never would be.
        """
        claiming = asyncio.create_task(claim)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([claiming])  # nobody else opens it until then
            finally:
                claiming.add_done_callback(self._nobody_waits)
            raise

    def _nobody_waits(self, claiming: asyncio.Task[Lease | None]) -> None:
        """Lets go of a stream that was claimed for a call that went away meanwhile."""
        if claiming.cancelled():
            return
        if (error := claiming.exception()) is not None:
            log.error("a stream was not opened, and the call that wanted it has gone: %s", error)
        elif (lease := claiming.result()) is not None:
            self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        if lease.ended is None:
            stream = lease.stream
            self._streams.let_go(lease)
            if stream.phase is Phase.LIVE:
                self.checkpointer.leave(stream)
            else:
                self._streams.drop(stream, StreamNotFound(stream.key.stream_id))  # it is in the store, and nowhere else
                self._marks.note(stream.key, stream.epoch, lease.durable_step)
                self.peers.say_of(Marking(stream.key, stream.epoch, Mark.RELEASED))

    async def _claim(self, key: Key, served: Served, stream: Stream | None, seen: Record | None) -> Lease | None:
        """Makes this process the stream's only owner; None when another was faster."""
        seen_epoch = seen.head.epoch if seen is not None else 0
        if stream is not None and stream.phase is Phase.LIVE:
            record = await self._store.claim(key, seen_epoch, served.spec.id)
            crash_point("during-take-over")
            if record is None:
                return None
            self.checkpointer.stay(stream)
            # Between batches: a timestep that is being run now is applied, and the new call goes on after it.
            take_over = partial(self._streams.take_over, stream, record.head.epoch)
            return await self._repository.of(stream.slots).batcher.between(take_over)
        slot = self._acquire(served, key)
        try:
            record = await self._store.claim(key, seen_epoch, served.spec.id)
            crash_point("during-take-over")
            if record is None:
                served.slots.release(slot)
                return None
            return self._bring_in(record, served, slot, seen)
        except BaseException:  # a store that is down, a record that does not fit
            served.slots.release(slot)
            raise

    def _bring_in(self, record: Record, served: Served, slot: int, seen: Record | None) -> Lease:
        """Makes a stream live from what the claim gave."""
        head = record.head
        try:
            parked = self._streams.find(head.key)
            if parked is not None:
                self._streams.drop(parked, TakenOver(head.key.stream_id, head.epoch))
            _check_not_older(record, seen)
            if record.checkpoint is not None:
                return self._streams.resume(record.checkpoint, served.slots, slot, head.epoch)
            return self._streams.begin(head.key, served.slots, slot, head.epoch)
        except TidegateError:
            self.peers.say_of(Marking(head.key, head.epoch, Mark.RELEASED))
            raise

    async def _refused(self, stream: Stream) -> None:
        """The store has refused to store a stream: finds out why, and stores it again or drops it. StoreUnavailable."""
        async with self._alone(stream.key):
            if stream.phase is not Phase.LIVE:
                return
            try:
                record = await self._store.load(stream.key)
            except CheckpointBroken as error:
                await self._drop(stream, error)
                return
            if record is None and await self._restore(stream):
                return
            if not _is_ours(record, stream):
                await self._drop(stream, self._why_gone(stream, record))

    async def _restore(self, stream: Stream) -> bool:
        """Stores a live stream again that the store has lost; gives whether it could."""
        if stream.phase is not Phase.LIVE or not stream.step:
            return False
        batcher = self._repository.of(stream.slots).batcher
        [checkpoint] = await batcher.between(lambda: checkpoint_rows([stream]))
        if not await self._store.restore(checkpoint):
            return False
        log.error(
            "stream %s: the store had lost it; it is stored again, at step %d", stream.key.stream_id, checkpoint.step
        )
        return True

    async def _look_at(self, key: Key) -> None:
        """Another server opened or deleted a stream, or wants to read it."""
        async with self._alone(key):
            record = await self._store.load(key)
            stream = self._streams.find(key)
            if stream is not None and not _is_ours(record, stream):
                await self._drop(stream, self._why_gone(stream, record))
                return
        if record is None or not record.head.mine:
            return
        head = record.head
        if stream is not None:
            await self.checkpointer.settled(stream)
        if stream is None or stream.epoch == head.epoch:
            mark = Mark.RELEASED
            if self._streams.find(key) is not None and stream is not None:
                mark = Mark.LIVE if stream.phase is Phase.LIVE else Mark.ASLEEP
            await self._store.mark([Marking(key, head.epoch, mark, head.asked)])

    def _acquire(self, served: Served, key: Key) -> int:
        if served.slots.full:
            raise TooManyStreams("live", served.slots.capacity, RETRY_AFTER_MS)
        return served.slots.acquire(key)

    async def _drop(self, stream: Stream, reason: TidegateError) -> None:
        """Holds a stream no longer, whatever of it is not stored."""
        self.checkpointer.stay(stream)
        batcher = self._repository.of(stream.slots).batcher
        await batcher.between(lambda: self._streams.drop(stream, reason))

    def _end(self, stream: Stream, record: Record | None) -> None:
        """Holds a parked stream no longer: it is another's, or its state is lost."""
        self._streams.drop(stream, self._why_gone(stream, record))
        if _is_ours(record, stream):
            self.peers.say_of(Marking(stream.key, stream.epoch, Mark.RELEASED))

    def _why_gone(self, stream: Stream, record: Record | None) -> TidegateError:
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
        self._lost(lost)
        return lost

    def _lost(self, error: StateLost) -> None:
        self._metrics.state_lost += 1
        log.error("%s", error)

    async def _load(self, key: Key) -> Record:
        return _found(key, await self._store.load(key))

    async def _settled(self, key: Key) -> Record:
        """What is held of a stream, after another server that has it in memory has stored it."""
        return _found(key, await self.peers.settled(key))

    async def _latest(self, key: Key) -> tuple[Checkpoint, StreamInfo]:
        """A stream as of its last applied timestep, wherever it is."""
        record = await self._settled(key)
        info = self._info(record.head)
        stream = self._streams.find(key)
        if stream is not None and stream.phase is Phase.LIVE and _is_ours(record, stream):
            batcher = self._repository.of(stream.slots).batcher
            return (await batcher.between(lambda: checkpoint_rows([stream])))[0], info
        if record.checkpoint is None:  # expired, or opened and never stepped
            raise StreamNotFound(key.stream_id)
        return record.checkpoint, info

    async def _plant(
        self, checkpoint: Checkpoint, key: Key, check: Callable[[Checkpoint, Slots], None] = check_fits
    ) -> StreamInfo:
        """Stores a state as a new stream, in one write: so there is all of it, or nothing."""
        served = [one for one in self._repository if one.spec.fingerprint == checkpoint.model.fingerprint]
        if not served:
            titles = [f"{one.spec.title} ({one.spec.fingerprint[:12]})" for one in self._repository]
            raise ModelNotFound(checkpoint.model.title, f"with fingerprint {checkpoint.model.fingerprint[:12]}", titles)
        check(checkpoint, served[0].slots)
        if self._known + self._beginning >= self._streams_max:
            raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
        self._beginning += 1
        try:
            async with self._alone(key):
                seen = await self._store.load(key)
                if seen is not None and not seen.head.tombstone:
                    raise StreamExists(key.stream_id)
                planted = replace(checkpoint, key=key, model=served[0].spec.id)
                record = await self._store.plant(planted, seen.head.epoch if seen is not None else 0)
                if record is None:
                    raise StreamExists(key.stream_id)
                self._known += 1
                return self._info(record.head)
        finally:
            self._beginning -= 1

    def _info(self, head: Head) -> StreamInfo:
        """A stream as an operator sees it: what the store knows, or what is newer here."""
        stream = self._streams.find(head.key)
        held = stream is not None and stream.phase is Phase.LIVE and stream.epoch == head.epoch and head.mine
        elsewhere = head.holder is Holder.OTHER and head.live
        phase = Phase.LIVE if held or elsewhere else LEFT[head.tombstone]
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

    def _may_expire(self, head: Head) -> bool:
        """Whether a parked stream is so old that it may expire within the time that it takes to say that it is live."""
        return 0 < self._forget_after_s < 2 * (time.time_ns() - head.updated_unix_nano) / NANOSECONDS

    def _may_park(self, stream: Stream) -> bool:
        """Whether nobody is opening, waking or dropping a stream now."""
        lock = self._locks.get(stream.key)
        return lock is None or not lock.locked()

    def _count(self, known: int) -> None:
        """Takes note of how many streams the store knows."""
        self._known = known

    def _live(self) -> int:
        return sum(len(served.slots) for served in self._repository)

    def _alone(self, key: Key) -> asyncio.Lock:
        """Lets one at a time open, wake or drop a stream; gone when nobody uses it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def _is_ours(record: Record | None, stream: Stream) -> TypeGuard[Record]:
    """Whether the store knows a stream as the one that this process holds."""
    return record is not None and record.head.mine and record.head.epoch == stream.epoch and not record.head.tombstone


def _check_not_older(record: Record, seen: Record | None) -> None:
    """Raises StateLost when a store gives less of a stream than it did before."""
    head = record.head
    if seen is not None and not seen.head.tombstone and head.step < seen.head.step:
        raise StateLost(head.key.stream_id, head.step, seen.head.step)


def _found(key: Key, record: Record | None) -> Record:
    if record is None or record.head.tombstone is Tombstone.DELETED:
        raise StreamNotFound(key.stream_id)
    return record


def _contended(key: Key) -> StoreUnavailable:
    return StoreUnavailable("", f"stream '{key.stream_id}' is being opened by too many at once; try again")


def _describe(served: Served) -> ServedModel:
    return ServedModel(served.spec, served.metrics.batch_invariant, served.card_json)
