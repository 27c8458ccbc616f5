"""Carries state to the store, in the background, many streams in one commit.

The laws of this file:
1. What is copied is one timestep of a stream, whole: rows are copied between batches, state, number and answers together.
2. `durable_step` never runs ahead of the store: it rises when a commit has returned, and only then.
3. A store that is slow or down stops nobody at first; the lag is a metric. When it passes `ready_lag_s` the server says
   that it is not ready, and when it passes `lag_max_s` new timesteps are refused: nothing is left unprotected in silence.
4. A stream gives its slot back when its state is stored, never before.
5. A checkpoint that the store refuses was written under an old epoch, or the store has lost the stream: what is true is found
   out by `on_refused`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from serving.core.errors import StoreBehind, StoreGone, StoreUnavailable
from serving.core.slots import FREE
from serving.core.spec import Checkpoint, Ints
from serving.core.streams import Lease, Phase, Stream, Streams, checkpoint_rows
from serving.runtime.crash import crash_point
from serving.runtime.metrics import Metrics
from serving.runtime.repository import Repository, Served
from serving.store import Store

log = logging.getLogger("tidegate.checkpoints")

# Copying a row and wrapping it costs a few microseconds, during which nothing else runs.
ROWS_A_COMMIT_MAX = 1024
# After a round the machine is left to predictions for so many times as long as the round took: storing ten thousand streams
# takes the better part of a second of a core, and shall not take all of it. Somebody who waits for it shortens that to once.
REST_FACTOR = 3
# The step of a row whose silence begins anew: no row stands at it, free or not.
NEVER = FREE - 1
# A store that failed is tried again after this, at least: it may be restarting.
RETRY_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Pace:
    """Times, in seconds.

    State is stored every `every_s`; a silent stream leaves its slot after `park_after_s`; `ready_lag_s` and `lag_max_s`
    are those of law 3.
    """

    every_s: float
    park_after_s: float
    ready_lag_s: float
    lag_max_s: float


class Checkpointer:
    """Stores what has changed; `run` is its task.

    Args:
        repository: the models and their slots.
        streams: the streams that this process holds.
        store: where to.
        metrics: where to count.
        may_park: whether a stream may leave its slot now; False while it is being opened.
        on_refused: finds out why the store refused a stream, and stores it again or drops it.
        on_parked: takes note that a stream has left its slot, and at which timestep.
        pace: how often, and how late is too late.

    """

    def __init__(
        self,
        repository: Repository,
        streams: Streams,
        store: Store,
        metrics: Metrics,
        may_park: Callable[[Stream], bool],
        on_refused: Callable[[Stream], Awaitable[None]],
        on_parked: Callable[[Stream, int], None],
        pace: Pace,
    ) -> None:
        self._repository = repository
        self._streams = streams
        self._store = store
        self._metrics = metrics
        self._may_park = may_park
        self._on_refused = on_refused
        self._on_parked = on_parked
        self._pace = pace
        self._clean_at = perf_counter()  # when everything there was had last been stored
        self._soon = asyncio.Event()
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving: set[Stream] = set()  # no call has them open; they give their slots back when stored
        self._failing = False
        self.store_gone = False  # only a restart of the server helps
        self.watchers: list[Callable[[], None]] = []  # called whenever something was stored
        self._silence = {served.spec.id: _Silence(served.slots.capacity) for served in repository}
        metrics.unsaved_seconds = self.unsaved_seconds

    def __repr__(self) -> str:
        return f"<Checkpointer: {len(self._leaving)} streams leaving, {self.unsaved_seconds():.3f} s unsaved>"

    @property
    def ready(self) -> bool:
        """Whether the store keeps up well enough to call the server ready."""
        return self.unsaved_seconds() <= self._pace.ready_lag_s

    @property
    def idle(self) -> bool:
        """Whether everything is stored and every stream without a call has left its slot."""
        return not self._leaving and not any(served.slots.unsaved().size for served in self._repository)

    def unsaved_seconds(self) -> float:
        """How long the oldest change that is not stored may have been waiting; 0 when there is none."""
        if not any(served.slots.unsaved().size for served in self._repository):
            return 0.0
        return perf_counter() - self._clean_at

    def leave(self, stream: Stream) -> None:
        """A stream's call has gone: it gives its slot back once it is stored, which happens soon."""
        self._leaving.add(stream)
        self._soon.set()

    def stay(self, stream: Stream) -> None:
        """A stream has been opened or woken: it does not leave, and its silence begins anew."""
        self._leaving.discard(stream)
        if stream.slot >= 0:
            self._silence[stream.slots.spec.id].end(stream.slot)

    async def durable(self, lease: Lease, step: int) -> None:
        """Waits until a timestep of a live stream is stored, which happens soon.

        Raises:
            StoreBehind: the store has been failing for too long.
            TidegateError: the stream was taken over or dropped meanwhile.

        """
        while lease.ended is None and lease.durable_step < step:
            if self.unsaved_seconds() > self._pace.lag_max_s:
                raise self._behind()
            self._soon.set()
            await self._round_end()
        if lease.ended is not None:
            raise lease.ended

    async def settled(self, stream: Stream) -> None:
        """Waits until what a stream has applied by now is stored, or it has left its slot. StoreBehind as above."""
        if stream.phase is not Phase.LIVE:
            return
        step = stream.step
        while stream.phase is Phase.LIVE and stream.slots.saved[stream.slot] < step:
            if self.unsaved_seconds() > self._pace.lag_max_s:
                raise self._behind()
            self._soon.set()
            await self._round_end()

    async def flush(self) -> None:
        """Waits until everything is stored and every stream without a call has left its slot."""
        while not self.idle:
            self._soon.set()
            await self._round_end()

    def judge(self) -> None:
        """Has timesteps refused while too much is unsaved; to be called every so often, for a store may hang."""
        behind = self._behind() if self.unsaved_seconds() > self._pace.lag_max_s else None
        for served in self._repository:
            served.batcher.refusing = behind

    async def run(self) -> None:
        """Stores what has changed, every so often, until cancelled."""
        while True:
            begun = perf_counter()
            failed = await self._round()
            settled, self._settled = self._settled, asyncio.get_running_loop().create_future()
            settled.set_result(None)
            for notice in self.watchers:
                notice()
            took = perf_counter() - begun
            if failed:
                await asyncio.sleep(max(RETRY_SECONDS, self._pace.every_s))
            else:
                await self._rest(took, max(self._pace.every_s - took, REST_FACTOR * took))

    async def _rest(self, least: float, most: float) -> None:
        """Waits; no longer than `least` when something is to be stored soon. Always lets others run."""
        await asyncio.sleep(least)
        try:
            async with asyncio.timeout(most - least):
                await self._soon.wait()
        except TimeoutError:
            pass
        self._soon.clear()

    async def _round(self) -> bool:
        """Stores all that is unsaved now, then lets streams leave; gives whether the store failed."""
        begun = perf_counter()
        for served in self._repository:
            rows = served.slots.unsaved()
            for first in range(0, len(rows), ROWS_A_COMMIT_MAX):
                if not await self._commit(served, rows[first : first + ROWS_A_COMMIT_MAX].tolist()):
                    return True
            await self._park_silent(served)
        self._clean_at = begun
        await self._park_leaving()
        return False

    async def _commit(self, served: Served, rows: Sequence[int]) -> bool:
        """Stores rows that were unsaved, as they are now; gives whether the store took them."""
        streams, checkpoints = await served.batcher.between(lambda: self._copy(served, rows))
        if not checkpoints:
            return True
        begun = perf_counter()
        crash_point("before-commit")
        try:
            kept = await self._store.save(checkpoints)
        except StoreUnavailable as error:
            self._metrics.checkpoints["failed"] += len(checkpoints)
            return self._failed(error)
        crash_point("after-commit")
        if self._failing:
            log.info("the store is back")
        self._failing = False
        self._metrics.checkpoint_seconds.observe(perf_counter() - begun)
        try:
            for stream, checkpoint, ok in zip(streams, checkpoints, kept, strict=True):
                if ok:
                    self._stored(stream, checkpoint)
                else:
                    await self._refused(stream, checkpoint)
        except StoreUnavailable as error:
            return self._failed(error)
        return True

    def _failed(self, error: StoreUnavailable) -> bool:
        """Says so once; always False."""
        if not self._failing:
            log.error("%s; predictions go on, unsaved", error)
        self._failing = True
        self.store_gone |= isinstance(error, StoreGone)
        return False

    def _copy(self, served: Served, rows: Sequence[int]) -> tuple[list[Stream], list[Checkpoint]]:
        """Copies what is still unsaved of rows; between batches."""
        unsaved = []
        for row in rows:
            key = served.slots.keys[row]
            stream = None if key is None else self._streams.find(key)
            if stream is not None and stream.slot == row and stream.slots is served.slots:
                unsaved.append(stream)
        return unsaved, checkpoint_rows(unsaved)

    def _stored(self, stream: Stream, checkpoint: Checkpoint) -> None:
        self._metrics.checkpoints["ok"] += 1
        if stream.phase is Phase.LIVE:  # else it was dropped meanwhile
            stream.slots.saved[stream.slot] = checkpoint.step
            if stream.lease is not None and stream.epoch == checkpoint.epoch:
                stream.lease.stored(checkpoint.step)

    async def _refused(self, stream: Stream, checkpoint: Checkpoint) -> None:
        """The store refused, which means nothing if we have raised the epoch ourselves meanwhile, or are just doing so."""
        self._metrics.checkpoints["fenced"] += 1
        if stream.phase is Phase.LIVE and stream.epoch == checkpoint.epoch and self._may_park(stream):
            await self._on_refused(stream)

    async def _park_leaving(self) -> None:
        """Lets streams without a call leave their slots."""
        for stream in [stream for stream in self._leaving if self._may_park(stream)]:
            served = self._repository.of(stream.slots)
            if await served.batcher.between(partial(self._park, served, stream)):
                self._leaving.discard(stream)

    async def _park_silent(self, served: Served) -> None:
        """Lets streams leave their slots that a call has open but has long sent nothing on."""
        silent = self._silence[served.spec.id].rows(served.slots.step, perf_counter(), self._pace.park_after_s)
        for row in silent:
            key = served.slots.keys[row]
            stream = None if key is None else self._streams.find(key)
            if stream is not None and stream not in self._leaving and self._may_park(stream):
                await served.batcher.between(partial(self._park, served, stream))

    def _park(self, served: Served, stream: Stream) -> bool:
        """Takes a stream out of its slot, if it is stored and has nothing to do; between batches."""
        if stream.phase is not Phase.LIVE:
            return True
        if not stream.saved or not self._may_park(stream) or served.batcher.has_queued(stream):
            return False
        crash_point("during-park")
        step = stream.step
        self._streams.park(stream)
        self._on_parked(stream, step)
        return True

    async def _round_end(self) -> None:
        """Waits for the end of a round, but not for ever: a store may hang."""
        await asyncio.wait([self._settled], timeout=RETRY_SECONDS)

    def _behind(self) -> StoreBehind:
        return StoreBehind(self.unsaved_seconds(), max(1, round(1000 * self._pace.every_s)))


class _Silence:
    """Since when each row of the slots has stood at the same timestep."""

    def __init__(self, capacity: int) -> None:
        self._step = np.full(capacity, FREE, np.int64)
        self._since = np.full(capacity, np.inf)

    def end(self, row: int) -> None:
        """A row's silence begins anew: another stream may have it, or the same one after it was away."""
        self._step[row] = NEVER

    def rows(self, step: Ints, now: float, longer_than: float) -> list[int]:
        """The rows that have not moved for longer than that."""
        moved = step != self._step
        self._step[moved] = step[moved]
        self._since[moved] = now
        silent: list[int] = np.flatnonzero((now - self._since > longer_than) & (step != FREE)).tolist()
        return silent
