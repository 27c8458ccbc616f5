"""Keeps the streams: opens, wakes and forgets them, in step with their batcher, the checkpointer and the store.

What may happen is decided in `core.streams`; here it is done, in the order that loses nothing. The laws of this file:
1. One at a time opens, wakes or drops a stream (`Holdings.alone`), and while somebody does, the checkpointer leaves it where it is.
2. Whoever had a stream may store it until it is claimed. So what was read before a claim decides whether to claim, and nothing
   runs from it: a stream goes on from the record that the claim gave.
3. A claim that has begun is finished, whether or not anybody waits for it; what nobody waits for is let go.
4. What the store gives is compared with what this process knows to have been stored: see `runtime.holdings`.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial

from serving.core.block import Block
from serving.core.errors import (
    StateLost,
    Stopping,
    StreamNotFound,
    TakenOver,
    TidegateError,
    TooManyStreams,
)
from serving.core.spec import Key
from serving.core.streams import Ask, Known, Lease, Phase, Stream, rule_on_open
from serving.rpc.desk import CloseReason, Opening, ServedModel
from serving.runtime.batcher import Batcher
from serving.runtime.crash import crash_point
from serving.runtime.holdings import RETRY_AFTER_MS, Holdings, contended, is_ours
from serving.runtime.metrics import Metrics
from serving.runtime.repository import Repository, Served
from serving.store import Mark, Marking, Record, Store, Tombstone, Wanted

log = logging.getLogger("tidegate.streams")

# Nobody guesses 128 bits.
STREAM_ID_BYTES = 16
# Two openers of one stream in different processes: one of them wins each time, so a handful of tries is many.
CLAIM_TRIES = 8
NANOSECONDS = 1_000_000_000

# Where a stream is in its life that nobody has in memory, by what is left of it. What was deleted may begin anew.
LEFT = {Tombstone.NONE: Phase.PARKED, Tombstone.EXPIRED: Phase.EXPIRED, Tombstone.DELETED: Phase.NEW}
# What to look for in the store when streams in a phase are listed.
WANTED = {Phase.LIVE: Wanted.HELD, Phase.PARKED: Wanted.ALL, Phase.EXPIRED: Wanted.EXPIRED}


class Keeper:
    """Opens, wakes and lets go of streams, for calls.

    Args:
        repository: the models.
        store: where streams rest.
        metrics: where to count.
        holdings: the streams of this process.

    """

    def __init__(self, repository: Repository, store: Store, metrics: Metrics, holdings: Holdings) -> None:
        self._repository = repository
        self._store = store
        self._metrics = metrics
        self._holdings = holdings
        self._streams = holdings.streams
        self._stopping = False
        self.checkpointer = holdings.checkpointer
        self.peers = holdings.peers

    def __repr__(self) -> str:
        return f"<Keeper {self._streams!r} {self._store!r}>"

    async def open(self, key: Key, model: str, version: str, ask: Ask) -> Opening:
        """Opens a stream: begins it, resumes it, or takes it over from another call.

        Raises:
            StreamRefused: it may not be opened so; nothing has changed.
            TakenOver: the client goes on with it, and another owner has opened it since; nothing has changed.
            CheckpointBroken: its stored state cannot be read; nothing has changed.
            StoreUnavailable: the store cannot be asked.
            Stopping: the server is going away.

        """
        if not key.stream_id:
            key = Key(key.tenant, secrets.token_urlsafe(STREAM_ID_BYTES))
        try:
            async with self._holdings.alone(key):
                opening = await self._open(key, model, version, ask)
        except Exception as error:
            self._metrics.opened["refused"] += 1
            if isinstance(error, StateLost):
                self._holdings.lost(error)
            raise
        self._metrics.opened[opening.kind.value] += 1
        return opening

    def go_on(self, key: Key, model: str, version: str) -> Lease | None:
        """Opens a stream again that was left in memory; see `Holdings.go_on`."""
        return self._holdings.go_on(key, model, version)

    def rest(self, lease: Lease, *, opened: bool) -> None:
        """Lets go of a stream that is likely to be opened again soon; see `Holdings.rest`."""
        if opened:
            self._metrics.closed["closed"] += 1
        self._holdings.rest(lease)

    async def wake(self, lease: Lease) -> None:
        """Puts a parked stream that a call has open back into a slot.

        Raises what ended the lease, or TooManyStreams, CheckpointBroken, StoreUnavailable: then it stays parked.
        """
        stream = lease.stream
        async with self._holdings.alone(stream.key):
            if lease.ended is not None:
                raise lease.ended
            if stream.phase is Phase.LIVE:
                return
            record = await self._store.load(stream.key)
            if is_ours(record, stream) and self._holdings.may_expire(record.head):
                # Another server could let it expire before it is told that the stream is live.
                await self._store.mark([Marking(stream.key, stream.epoch, Mark.LIVE)])
                record = await self._store.load(stream.key)
            if not is_ours(record, stream) or record.head.step < lease.durable_step:
                self._holdings.end(stream, record)
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

    def model(self, name: str, version: str) -> ServedModel:
        """One model; ModelNotFound when it is not served."""
        return self._repository.find(name, version).described

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
        self._holdings.let_go(lease)

    async def forget(self, lease: Lease) -> None:
        """Deletes the stream that a call has open; raises what ended the lease when it is another's by now."""
        stream = lease.stream
        async with self._holdings.alone(stream.key):
            if lease.ended is not None:
                raise lease.ended
            record = await self._store.load(stream.key)
            if is_ours(record, stream) and await self._store.forget(stream.key, stream.epoch):
                self._holdings.known -= 1
                await self._holdings.drop(stream, StreamNotFound(stream.key.stream_id))
                return
            await self._holdings.drop(stream, self._holdings.why_gone(stream, await self._store.load(stream.key)))
            assert lease.ended is not None
            raise lease.ended

    async def close(self) -> None:
        """Opens nothing more, and waits until every stream is in the store."""
        self._stopping = True
        self._holdings.resting.leave()
        await self.checkpointer.flush()
        await self.peers.flush()
        log.info("all streams stored")

    async def _open(self, key: Key, model: str, version: str, ask: Ask) -> Opening:
        for _ in range(CLAIM_TRIES):
            if self._stopping:
                raise Stopping
            stream, record, known = await self._look(key)
            if known is not None and known.phase is not Phase.NEW and model in ("", known.model.name):
                served = self._repository.find(known.model.name, version or known.model.version)
            else:
                served = self._repository.find(model, version)
            kind = rule_on_open(key, known, served.spec, ask)
            there = known is not None and known.phase in (Phase.LIVE, Phase.PARKED)
            with nullcontext(None) if there else self._holdings.one_more() as began:
                lease = await self._once_begun(self._claim(key, served, stream, record, ask.owner))
                if lease is not None and began is not None:
                    began()
            if lease is not None:
                self._holdings.stay(lease.stream)
                changed = there and known is not None and known.owner != ask.owner
                return Opening(lease, kind, lease.stream.step + 1, served.slots.answers, changed)
        raise contended(key)

    async def _look(self, key: Key) -> tuple[Stream | None, Record | None, Known | None]:
        """What there is of a stream, here and in the store; what is held here wrongly is dropped."""
        record = await self._store.load(key)
        stream = self._streams.find(key)
        if stream is not None and record is None and await self._holdings.restore(stream):
            record = await self._store.load(key)
        if stream is not None and not is_ours(record, stream):
            await self._holdings.drop(stream, self._holdings.why_gone(stream, record))
            stream = None
        if lost := self._holdings.known_lost(key, record):
            raise lost
        if record is None:
            return None, None, None
        head = record.head
        if stream is not None and stream.phase is Phase.LIVE:
            phase = Phase.LIVE if stream.lease is not None else Phase.PARKED
            return stream, record, Known(phase, stream.step, stream.slots.spec.id, head.owner, head.epoch)
        if stream is not None:  # parked, though a call has it open: that call loses it
            assert stream.lease is not None
            if head.step < stream.lease.durable_step:
                lost = StateLost(key.stream_id, head.step, stream.lease.durable_step)
                self._streams.drop(stream, lost)
                raise lost
            return stream, record, Known(Phase.LIVE, head.step, head.model, head.owner, head.epoch)
        return None, record, Known(LEFT[head.tombstone], head.step, head.model, head.owner, head.epoch)

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
            self._holdings.let_go(lease)

    async def _claim(
        self, key: Key, served: Served, stream: Stream | None, seen: Record | None, owner: str
    ) -> Lease | None:
        """Makes this process the stream's only owner; None when another was faster."""
        seen_epoch = seen.head.epoch if seen is not None else 0
        if stream is not None and stream.phase is Phase.LIVE:
            record = await self._store.claim(key, seen_epoch, served.spec.id, owner)
            crash_point("during-take-over")
            if record is None:
                return None
            self._holdings.stay(stream)
            # Between batches: a timestep that is being run now is applied, and the new call goes on after it.
            take_over = partial(self._streams.take_over, stream, record.head.epoch, owner)
            return await self._repository.of(stream.slots).batcher.between(take_over)
        slot = self._acquire(served, key)
        try:
            record = await self._store.claim(key, seen_epoch, served.spec.id, owner)
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
                return self._streams.resume(record.checkpoint, served.slots, slot, head.epoch, head.owner)
            return self._streams.begin(head.key, served.slots, slot, head.epoch, head.owner)
        except TidegateError:
            self.peers.say_of(Marking(head.key, head.epoch, Mark.RELEASED))
            raise

    def _acquire(self, served: Served, key: Key) -> int:
        if served.slots.full:
            raise TooManyStreams("live", served.slots.capacity, RETRY_AFTER_MS)
        return served.slots.acquire(key)


def _check_not_older(record: Record, seen: Record | None) -> None:
    """Raises StateLost when a store gives less of a stream than it did before."""
    head = record.head
    if seen is not None and not seen.head.tombstone and head.step < seen.head.step:
        raise StateLost(head.key.stream_id, head.step, seen.head.step)
