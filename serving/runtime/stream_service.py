"""Opens, wakes, releases and deletes streams for calls.

`core.streams` decides what may happen. This module does it together with the batcher, the checkpointer and the store,
in an order that loses nothing. The rules of this file:
1. One task at a time opens, wakes or drops a stream: it holds `StreamRegistry.lock`. Meanwhile the stream is not
   parked.
2. The previous writer may save a stream until it is claimed. So a record that was read before the claim only decides
   whether to claim. The stream continues from the record that the claim returned.
3. A claim that has begun is completed, whether or not anybody waits for it. If nobody does, the stream is released.
4. What the store returns is compared with what this process knows to be stored: see `runtime.stream_registry`.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial

from tidegate.core.block import Block
from tidegate.core.errors import (
    ModelMismatch,
    StateLost,
    Stopping,
    StreamNotFound,
    TakenOver,
    TidegateError,
    TooManyStreams,
)
from tidegate.core.spec import Key
from tidegate.core.stream_inputs import decide_inputs
from tidegate.core.streams import Lease, OpenKind, OpenOptions, Phase, Stream, StreamStatus, decide_open
from tidegate.core.swap_policy import Moved, MoveRequest, may_move
from tidegate.rpc.backend import CloseReason, ModelInfo, OpenResult
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.crash_points import crash_point
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.repository import Repository, ServedModel
from tidegate.runtime.spans import SPANS
from tidegate.runtime.stream_log import log_event
from tidegate.runtime.stream_mover import StreamMover
from tidegate.runtime.stream_registry import RETRY_AFTER_MS, StreamRegistry, contention_error, is_ours
from tidegate.runtime.version_loader import VersionLoader
from tidegate.store import Record, Residency, ResidencyUpdate, Store, Tombstone

log = logging.getLogger("tidegate.streams")

# Nobody can guess 128 bits.
STREAM_ID_BYTES = 16
# When processes open one stream concurrently, one of them wins each time: a handful of tries is plenty.
CLAIM_TRIES = 8

# The phase of a stream that no server has in memory, by its tombstone. A deleted stream may begin again.
PHASE_BY_TOMBSTONE = {Tombstone.NONE: Phase.PARKED, Tombstone.EXPIRED: Phase.EXPIRED, Tombstone.DELETED: Phase.NEW}


class StreamService:
    """Opens, wakes, releases and deletes streams.

    Args:
        repository: the models.
        loader: loads versions on demand.
        store: where checkpoints are kept.
        metrics: the metrics of the process.
        registry: the streams of this process.

    """

    def __init__(
        self, repository: Repository, loader: VersionLoader, store: Store, metrics: Metrics, registry: StreamRegistry
    ) -> None:
        self._repository = repository
        self._loader = loader
        self._store = store
        self._metrics = metrics
        self._registry = registry
        self._streams = registry.streams
        self._stopping = False
        self.checkpointer = registry.checkpointer
        self.peers = registry.peers
        self.mover = StreamMover(repository, store, registry)

    def __repr__(self) -> str:
        return f"<StreamService {self._streams!r} {self._store!r}>"

    async def open(self, key: Key, model: str, version: str, options: OpenOptions) -> OpenResult:
        """Opens a stream: begins it, resumes it, or takes it over from another call.

        Raises:
            StreamRefused: the stream may not be opened this way; nothing has changed.
            TakenOver: the client continues, and another owner has opened the stream since; nothing has changed.
            CheckpointBroken: its stored state cannot be read; nothing has changed.
            StoreUnavailable: the store cannot be reached.
            Stopping: the server stops.

        """
        if not key.stream_id:
            key = Key(key.tenant, secrets.token_urlsafe(STREAM_ID_BYTES))
        with SPANS.span("open", of_call=True, model=model, version=version) as span:
            try:
                async with self._registry.lock(key):
                    opening = await self._open(key, model, version, options)
            except Exception as error:
                self._metrics.opened["refused"] += 1
                log_event("refused", key, span=span, reason=str(error))
                if isinstance(error, StateLost):
                    self._registry.record_loss(error)
                raise
            self._metrics.opened[opening.kind.value] += 1
            stream = opening.lease.stream
            if opening.kind is not OpenKind.NEW:
                span.rename("resume")
            log_event(opening.kind.value, key, stream.slots.spec, span, step=stream.step, epoch=stream.epoch)
            return opening

    def acquire_idle(self, key: Key, model: str, version: str) -> Lease | None:
        """Opens an idle stream; see `StreamRegistry.acquire_idle`."""
        return self._registry.acquire_idle(key, model, version)

    def release_to_idle(self, lease: Lease, *, opened: bool) -> None:
        """Releases a stream that is likely to be opened again soon; see `StreamRegistry.release_to_idle`."""
        if opened:
            self._metrics.closed["closed"] += 1
        self._registry.release_to_idle(lease)

    async def wake(self, lease: Lease) -> Moved:
        """Puts a parked stream that a call has open back into a slot, and moves it to another version if it is to move.

        Raises what ended the lease; or TooManyStreams, CheckpointBroken or StoreUnavailable, and then the stream stays
        parked.
        """
        stream = lease.stream
        async with self._registry.lock(stream.key):
            if lease.ended is not None:
                raise lease.ended
            if stream.phase is Phase.LIVE:
                return await self.mover.move(lease, allowed=lease.accept_move)
            record = await self._store.load(stream.key)
            if is_ours(record, stream) and self._registry.may_expire(record.metadata):
                # Announced before the load: another server could let the stream expire before it learns that it is
                # live.
                await self._store.set_residency([ResidencyUpdate(stream.key, stream.epoch, Residency.LIVE)])
                record = await self._store.load(stream.key)
            if not is_ours(record, stream) or record.metadata.step < lease.durable_step:
                self._registry.drop_parked(stream, record)
                assert lease.ended is not None
                raise lease.ended
            slot = self._acquire(self._repository.of(stream.slots), stream.key)
            try:
                self._streams.wake(stream, record.checkpoint, slot)
                self.checkpointer.cancel_park(stream)
            except BaseException:
                stream.slots.release(slot)
                raise
            self.peers.announce(stream)
            return await self.mover.move(lease, allowed=lease.accept_move)

    async def model(self, name: str, version: str) -> ModelInfo:
        """One model, loaded if need be; ModelNotFound when it is not served."""
        return (await self._loader.find(name, version, begun=True)).info

    def queue(self, lease: Lease) -> Batcher:
        """The queue for the timesteps of a stream."""
        return self._repository.of(lease.stream.slots).batcher

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues timesteps of many streams; see `Batcher.submit_block`."""
        if block.slots not in self._repository:  # unloaded: the call holds none of these streams any more
            done: asyncio.Future[Block] = asyncio.get_running_loop().create_future()
            done.set_result(block.refuse_all())
            return done
        return self._repository.of(block.slots).batcher.submit_block(block)

    def request_save(self, lease: Lease) -> None:
        """Has a stream stored at once; see `Checkpointer.request_save`."""
        self.checkpointer.request_save(lease)

    async def wait_durable(self, lease: Lease, step: int) -> None:
        """Waits until a timestep is stored; see `Checkpointer.wait_durable`."""
        await self.checkpointer.wait_durable(lease, step)

    def observe_block(self, block: Block, seconds: float) -> None:
        """Counts the timesteps of an answered block."""
        if block.slots in self._repository:
            self._repository.of(block.slots).metrics.step_seconds.observe(seconds, len(block))

    def add_listener(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` whenever something was stored. Returns a function that ends this."""
        self.checkpointer.listeners.append(callback)
        return partial(self.checkpointer.listeners.remove, callback)

    def release(self, lease: Lease, reason: CloseReason) -> None:
        """Releases a stream, which is parked soon. Does nothing to the stream when the lease has ended."""
        self._metrics.closed[reason] += 1
        stream = lease.stream
        step = stream.step if stream.slot >= 0 else lease.durable_step
        log_event("released", stream.key, stream.slots.spec, step=step, reason=reason)
        self._registry.release(lease)

    async def delete(self, lease: Lease) -> None:
        """Deletes the stream that a call has open. Raises what ended the lease when another server has the stream."""
        stream = lease.stream
        async with self._registry.lock(stream.key):
            if lease.ended is not None:
                raise lease.ended
            record = await self._store.load(stream.key)
            if is_ours(record, stream) and await self._store.delete(stream.key, stream.epoch):
                self._registry.known_count -= 1
                await self._registry.drop(stream, StreamNotFound(stream.key.stream_id))
                log_event("deleted", stream.key, stream.slots.spec, step=record.metadata.step)
                return
            await self._registry.drop(stream, self._registry.gone_error(stream, await self._store.load(stream.key)))
            assert lease.ended is not None
            raise lease.ended

    async def close(self) -> None:
        """Opens no more streams, and waits until every stream is stored."""
        self._stopping = True
        self._registry.idle_streams.clear()
        await self.checkpointer.flush()
        await self.peers.flush()
        self.mover.close()
        log.info("all streams stored")

    async def _open(self, key: Key, model: str, version: str, options: OpenOptions) -> OpenResult:
        for _ in range(CLAIM_TRIES):
            if self._stopping:
                raise Stopping
            stream, record, status = await self._find(key)
            served = await self._choose(status, model, version, options)
            kind = decide_open(key, status, served.spec, options)
            exists = status is not None and status.phase in (Phase.LIVE, Phase.PARKED)
            stored = record.checkpoint if record is not None and exists else None
            decide_inputs(key, served.slots, options.inputs, stream, stored)  # before anything changes
            with served.held():
                if not exists:
                    await self._registry.tenants.add(key.tenant)
                with nullcontext(None) if exists else self._registry.reserve_new() as confirm:
                    lease = await self._finish_claim(self._claim(key, served, stream, record, options))
                    if lease is not None and confirm is not None:
                        confirm()
            if lease is not None:
                self._registry.mark_in_use(lease.stream)
                changed = exists and status is not None and status.owner != options.owner
                moved = await self._move_opened(lease, version, options)
                return OpenResult(lease, kind, lease.stream.step + 1, served.slots.answers, changed, moved)
        raise contention_error(key)

    async def _choose(self, status: StreamStatus | None, model: str, version: str, options: OpenOptions) -> ServedModel:
        """The version under which a stream is opened. It may move to the default one right after that."""
        if status is None or status.phase is Phase.NEW or model not in ("", status.model.name):
            return await self._loader.find(model, version)
        find = partial(self._loader.find, begun=True)
        name = status.model.name
        if version and options.move_now and version != status.model.version:
            await self._loader.load(name, status.model.version)
            own, wanted = self._repository.loaded(status.model.title), await find(name, version)
            request = MoveRequest(self._repository.settings(name).swap_policy, allowed=True, step=status.step)
            is_default = wanted is self._repository.default(name)
            if own is not None and is_default and may_move(own.spec, wanted.spec, request):
                return own
        return await find(name, version or status.model.version)

    async def _move_opened(self, lease: Lease, version: str, options: OpenOptions) -> Moved:
        """Moves a stream that was opened just now, if it is to move. Its lease is released when this raises."""
        lease.accept_move, lease.answered = options.accept_move, options.answered
        try:
            moved = await self.mover.move(lease, allowed=options.move_now)
            _check_version(lease, version)
        except BaseException:
            self._registry.release(lease)
            raise
        return moved

    async def _find(self, key: Key) -> tuple[Stream | None, Record | None, StreamStatus | None]:
        """What this process and the store have of a stream. Drops the stream here if another server owns it."""
        record = await self._store.load(key)
        stream = self._streams.find(key)
        if stream is not None and record is None and await self._registry.restore(stream):
            record = await self._store.load(key)
        if stream is not None and not is_ours(record, stream):
            await self._registry.drop(stream, self._registry.gone_error(stream, record))
            stream = None
        if lost := self._registry.find_loss(key, record):
            raise lost
        if record is None:
            return None, None, None
        head, model = record.metadata, record.model
        if stream is not None and stream.phase is Phase.LIVE:
            phase = Phase.LIVE if stream.lease is not None else Phase.PARKED
            return stream, record, StreamStatus(phase, stream.step, stream.slots.spec.id, head.owner, head.epoch)
        if stream is not None:  # parked while a call has it open: that call loses the stream
            assert stream.lease is not None
            if head.step < stream.lease.durable_step:
                lost = StateLost(key.stream_id, head.step, stream.lease.durable_step)
                self._streams.drop(stream, lost)
                raise lost
            return stream, record, StreamStatus(Phase.LIVE, head.step, model, head.owner, head.epoch)
        return (
            None,
            record,
            StreamStatus(PHASE_BY_TOMBSTONE[head.tombstone], head.step, model, head.owner, head.epoch),
        )

    async def _finish_claim(self, claim: Coroutine[None, None, Lease | None]) -> Lease | None:
        """Completes a claim, whether or not the caller waits for it.

        Else the store would know an owner that does not exist. And a live stream with an old epoch here and a new one
        in the store would never be stored again.
        """
        task = asyncio.create_task(claim)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([task])  # nobody else opens the stream until then
            finally:
                task.add_done_callback(self._release_abandoned)
            raise

    def _release_abandoned(self, task: asyncio.Task[Lease | None]) -> None:
        """Releases a stream that was claimed for a call that has ended meanwhile."""
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("a stream was not opened; its call had ended before: %s", error)
        elif (lease := task.result()) is not None:
            self._registry.release(lease)

    async def _claim(
        self, key: Key, served: ServedModel, stream: Stream | None, seen: Record | None, options: OpenOptions
    ) -> Lease | None:
        """Makes this process the only writer of the stream. Returns None when another server was faster."""
        seen_epoch = seen.metadata.epoch if seen is not None else 0
        if stream is not None and stream.phase is Phase.LIVE:
            record = await self._store.claim(key, seen_epoch, served.spec.id, options.owner)
            crash_point("during-take-over")
            if record is None:
                return None
            self._registry.mark_in_use(stream)
            # Between batches: a timestep that is running now is applied, and the new call continues after it.
            take_over = partial(self._take_over, stream, record.metadata.epoch, options)
            return await self._repository.of(stream.slots).batcher.run_between(take_over)
        slot = self._acquire(served, key)
        try:
            record = await self._store.claim(key, seen_epoch, served.spec.id, options.owner)
            crash_point("during-take-over")
            if record is None:
                served.slots.release(slot)
                return None
            return self._make_live(record, served, slot, seen, options)
        except BaseException:  # the store is unreachable, or the record does not fit
            served.slots.release(slot)
            raise

    def _take_over(self, stream: Stream, epoch: int, options: OpenOptions) -> Lease:
        """Gives a live stream to the call that has claimed it."""
        lease = self._streams.take_over(stream, epoch, options.owner)
        if stream.slots.stream_inputs:
            try:
                inputs = decide_inputs(stream.key, stream.slots, options.inputs, stream, None)
            except TidegateError:  # its first timestep was applied meanwhile
                self._registry.release(lease)
                raise
            stream.slots.set_stream_inputs(stream.slot, inputs)
        return lease

    def _make_live(
        self, record: Record, served: ServedModel, slot: int, seen: Record | None, options: OpenOptions
    ) -> Lease:
        """Makes a stream live from the record that the claim returned."""
        head, slots = record.metadata, served.slots
        try:
            parked = self._streams.find(head.key)
            if parked is not None:
                self._streams.drop(parked, TakenOver(head.key.stream_id, head.epoch))
            _check_not_older(record, seen)
            inputs = decide_inputs(head.key, slots, options.inputs, parked, record.checkpoint)
            if record.checkpoint is not None:
                lease = self._streams.resume(record.checkpoint, slots, slot, head.epoch, head.owner)
            else:
                lease = self._streams.begin(head.key, slots, slot, head.epoch, head.owner)
        except TidegateError:
            self.peers.announce_update(ResidencyUpdate(head.key, head.epoch, Residency.RELEASED))
            raise
        slots.set_stream_inputs(slot, inputs)
        return lease

    def _acquire(self, served: ServedModel, key: Key) -> int:
        if served.slots.full:
            raise TooManyStreams("live", served.slots.capacity, RETRY_AFTER_MS)
        live = sum(each.slots.used_by_tenant.get(key.tenant, 0) for each in self._repository)
        self._registry.tenants.check_live(key.tenant, live)
        return served.slots.acquire(key)


def _check_version(lease: Lease, version: str) -> None:
    """Raises ModelMismatch when a stream that was to move to a version could not do so now."""
    runs = lease.stream.slots.spec
    if version not in ("", runs.version):
        raise ModelMismatch(lease.stream.key.stream_id, f"{runs.name}/{version}", runs.title)


def _check_not_older(record: Record, seen: Record | None) -> None:
    """Raises StateLost when the store returns less of a stream than before."""
    head = record.metadata
    if seen is not None and not seen.metadata.tombstone and head.step < seen.metadata.step:
        raise StateLost(head.key.stream_id, head.step, seen.metadata.step)
