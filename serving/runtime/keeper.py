"""Keeps the streams: opens them, parks them, forgets them, in step with their batcher and the store.

What may happen is decided in `core.streams`; here it is done, in the order that loses nothing.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from typing import Any
from weakref import WeakValueDictionary

from serving.core.errors import StateLost, Stopping, StreamNotFound, TooManyStreams
from serving.core.spec import Key, Prediction, Timestep
from serving.core.streams import Existence, Known, Lease, Phase, Streams, rule_on_open
from serving.rpc.native import CloseReason, Opening, ServedModel
from serving.runtime.metrics import Metrics
from serving.runtime.repository import Repository, Served
from serving.store import Record, Store

log = logging.getLogger("tidegate.streams")

# Nobody guesses 128 bits.
STREAM_ID_BYTES = 16
# A slot comes free when some stream parks; that is a matter of a connection closing, not of milliseconds.
RETRY_AFTER_MS = 1000


class Keeper:
    """Holds the streams of this process.

    Args:
        repository: the models.
        store: where streams rest.
        metrics: where to count.
        streams_max: the most streams, live and parked.

    """

    def __init__(self, repository: Repository, store: Store, metrics: Metrics, *, streams_max: int) -> None:
        self._repository = repository
        self._served = {id(served.slots): served for served in repository}
        self._store = store
        self._metrics = metrics
        self._streams_max = streams_max
        self._streams = Streams()
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        metrics.live_streams = self._streams.__len__
        metrics.parked_streams = self._parked

    def __repr__(self) -> str:
        return f"<Keeper {self._streams!r} {self._store!r}>"

    async def open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        """Opens a stream: begins it, resumes it, or takes it over from another call.

        Raises:
            StreamRefused: it may not be opened so; nothing has changed.
            Stopping: the server is going away.

        """
        if not key.stream_id:
            key = Key(key.tenant, secrets.token_urlsafe(STREAM_ID_BYTES))
        try:
            async with self._alone(key):
                opening = await self._open(key, model, version, existence, acknowledged_step)
        except Exception:
            self._metrics.opened["refused"] += 1
            raise
        self._metrics.opened[opening.kind.value] += 1
        return opening

    def submit(self, lease: Lease, timestep: Timestep) -> asyncio.Future[Prediction]:
        """Queues a timestep; see `Batcher.submit`."""
        return self._of(lease).batcher.submit(lease, timestep)

    def answered(self, lease: Lease, seconds: float) -> None:
        """Counts an answered timestep."""
        self._of(lease).metrics.step_seconds.observe(seconds)

    def park(self, lease: Lease, reason: CloseReason) -> None:
        """Parks a stream unless its lease is over; whoever ended it has taken care of the stream."""
        self._metrics.closed[reason] += 1
        if lease.ended is None:
            self._watch(self._park(lease))

    async def forget(self, lease: Lease) -> None:
        """Drops a stream and its state."""
        stream = lease.stream
        async with self._alone(stream.key):
            if lease.ended is not None:
                raise lease.ended
            await self._store.forget(stream.key, stream.epoch)
            lease.end(StreamNotFound(stream.key.stream_id))
            await self._of(lease).batcher.between(lambda: self._streams.forget(stream))

    def models(self) -> list[ServedModel]:
        """The models being served."""
        return [self._describe(served) for served in self._repository]

    def model(self, name: str, version: str) -> ServedModel:
        """One model; ModelNotFound when it is not served."""
        return self._describe(self._repository.find(name, version))

    async def close(self) -> None:
        """Opens nothing more, and waits until what was being parked is."""
        self._stopping = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        log.info("all streams parked: %r", self)

    async def failed(self) -> None:
        """Waits for ever, or raises what made a background task fail."""
        await self._failed

    async def _open(self, key: Key, model: str, version: str, existence: Existence, acknowledged_step: int) -> Opening:
        if self._stopping:
            raise Stopping
        stream = self._streams.find(key)
        record = await self._store.load(key)
        known: Known | None = None
        kept_step = 0
        if stream is not None:
            spec, kept_step = stream.slots.spec, stream.step
            known = Known(Phase.LIVE, spec.name, spec.version, spec.fingerprint)
        elif record is not None and record.checkpoint is not None:
            kept, kept_step = record.checkpoint, record.checkpoint.step
            known = Known(Phase.PARKED, kept.model, kept.version, kept.fingerprint)
        if known is not None and model in ("", known.model):
            model, version = known.model, version or known.version
        served = self._repository.find(model, version)
        kind = rule_on_open(key, known, served.spec, existence)
        if acknowledged_step > kept_step:
            self._metrics.state_lost += 1
            raise StateLost(key.stream_id, kept_step, acknowledged_step)
        if known is None and len(self._store) >= self._streams_max:
            raise TooManyStreams("known", self._streams_max, RETRY_AFTER_MS)
        seen_epoch = record.epoch if record is not None else 0
        if stream is not None:
            lease = self._streams.take_over(stream, await self._claim(key, seen_epoch))
        else:
            lease = await self._bring_in(key, served, record, seen_epoch)
        return Opening(lease, kind, lease.stream.step + 1, served.slots.answers)

    async def _bring_in(self, key: Key, served: Served, record: Record | None, seen_epoch: int) -> Lease:
        """Makes a stream live that this process does not hold."""
        if served.slots.full:
            raise TooManyStreams("live", served.slots.capacity, RETRY_AFTER_MS)
        slot = served.slots.acquire()
        try:
            epoch = await self._claim(key, seen_epoch)
        except BaseException:  # a client that went away leaves no slot behind
            served.slots.release(slot)
            raise
        if record is not None and record.checkpoint is not None:
            return self._streams.resume(record.checkpoint, served.slots, slot, epoch)
        return self._streams.begin(key, served.slots, slot, epoch)

    async def _claim(self, key: Key, seen_epoch: int) -> int:
        epoch = await self._store.claim(key, seen_epoch)
        assert epoch is not None, "another opener of this stream got past its lock"
        return epoch

    async def _park(self, lease: Lease) -> None:
        stream = lease.stream
        async with self._alone(stream.key):
            if lease.ended is not None:
                return
            checkpoint = await self._of(lease).batcher.between(lambda: self._streams.park(stream))
            await self._store.save(checkpoint)

    def _parked(self) -> int:
        return len(self._store) - len(self._streams)

    def _of(self, lease: Lease) -> Served:
        return self._served[id(lease.stream.slots)]

    def _describe(self, served: Served) -> ServedModel:
        return ServedModel(served.spec, served.metrics.batch_invariant, served.card_json)

    def _alone(self, key: Key) -> asyncio.Lock:
        """Lets one at a time open, park or forget a stream; gone when nobody uses it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs work beside the caller; its failure is the server's."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)
