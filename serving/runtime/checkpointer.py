"""Carries state to the store, in the background, many streams in one commit.

The laws of this file:
1. What is copied is one timestep of a stream, whole: rows are copied between batches, state, number and answers together.
2. `durable_step` never runs ahead of the store: it rises when a commit has returned, and only then.
3. A store that is slow or down stops nobody at first; the lag is a metric. When it passes `ready_lag_s` the server says
   that it is not ready, and when it passes `lag_max_s` new timesteps are refused: nothing is left unprotected in silence.
4. A stream gives its slot back when its state is stored, never before.
5. A checkpoint that the store refuses was written under an old epoch, or the store has lost the stream: what is true is found
   out by `on_refused`.
6. A round stores everything, every so often. What somebody waits for is stored at once and by itself, also in the midst of a
   round: a `SYNC` stream, one whose call is asked to end, one without a call that is to give its slot back.
7. Nothing here keeps the event loop for longer than a slice, however many streams there are.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from serving.core.errors import StoreBehind, StoreGone, StoreUnavailable
from serving.core.slots import FREE, Slots
from serving.core.spec import Checkpoints, Ints
from serving.core.streams import Lease, Phase, Stream, Streams, checkpoint_rows
from serving.rpc.slices import SLICE_SECONDS, Slices
from serving.runtime.crash import crash_point
from serving.runtime.metrics import Metrics
from serving.runtime.pace import Pace, Work
from serving.runtime.repository import Repository, Served
from serving.store import Store

log = logging.getLogger("tidegate.checkpoints")

# One commit, one fsync; who waits for a stream that is not among these waits for it. They are copied at once, and nothing else runs
# meanwhile: half a millisecond for rows of a KB, a millisecond for as many bytes as there may be.
ROWS_A_COMMIT_MAX = 1024
BYTES_A_COMMIT_MAX = 4 << 20
# Streams that leave their slots between two batches. It takes a few microseconds each, more behind a long queue.
PARKED_AT_ONCE_MAX = 256
# Those who waited for the store go on to answer their clients, a hundred microseconds each: so many in a turn of the loop.
WOKEN_AT_ONCE_MAX = 16
# The step of a row whose silence begins anew: no row stands at it, free or not.
NEVER = FREE - 1
# A store that failed is tried again after this: it may be restarting.
RETRY_SECONDS = 0.25


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
        self._clock = pace.clock
        self._clean_at = self._clock()  # when everything there was had last been stored
        self._give_up_at = math.inf
        self._soon = asyncio.Event()  # something is to be stored, or a stream to leave, before the next round
        self._wanted: set[Stream] = set()  # somebody waits until they are stored
        self._waiting: dict[asyncio.Future[None], Lease | None] = {}  # who waits, in order, and for which stream
        self._flushing = False
        self._leaving: set[Stream] = set()  # no call has them open; they give their slots back when stored
        self._failing = False
        self.store_gone = False  # only a restart of the server helps
        self.watchers: list[Callable[[], None]] = []  # called at the end of each round
        self._silence = {served.spec.id: _Silence(served.slots.capacity) for served in repository}
        metrics.unsaved_seconds = self.unsaved_seconds

    def __repr__(self) -> str:
        return f"<Checkpointer: {len(self._leaving)} streams leaving, {self.unsaved_seconds():.3f} s unsaved>"

    @property
    def ready(self) -> bool:
        """Whether the store keeps up well enough to call the server ready."""
        return self._pace.ready(self.unsaved_seconds())

    @property
    def idle(self) -> bool:
        """Whether everything is stored and every stream without a call has left its slot."""
        return not self._leaving and not self._unsaved

    @property
    def _unsaved(self) -> bool:
        return any(served.slots.unsaved().size for served in self._repository)

    def unsaved_seconds(self) -> float:
        """How long the oldest change that is not stored may have been waiting; 0 when there is none."""
        return self._clock() - self._clean_at if self._unsaved else 0.0

    def leave(self, stream: Stream) -> None:
        """A stream's call has gone: it gives its slot back once it is stored, which happens soon."""
        self._leaving.add(stream)
        self._soon.set()

    def stay(self, stream: Stream) -> None:
        """A stream has been opened or woken: it does not leave, and its silence begins anew."""
        self._leaving.discard(stream)
        if stream.slot >= 0:
            self._silence[stream.slots.spec.id].end(stream.slot)

    def store_soon(self, lease: Lease) -> None:
        """Has a stream stored at once, for somebody who is about to wait for it with `durable`."""
        self._want(lease.stream)

    def _want(self, stream: Stream) -> None:
        if stream.phase is Phase.LIVE:
            self._wanted.add(stream)
            self._soon.set()

    async def durable(self, lease: Lease, step: int) -> None:
        """Waits until a timestep of a live stream is stored, which happens at once.

        Raises:
            StoreBehind: the store has been failing for too long, or for longer than `give_up_in` allows.
            TidegateError: the stream was taken over or dropped meanwhile.

        """
        while lease.ended is None and not _is_stored(lease, step):
            self._check_in_time()
            self.store_soon(lease)
            await self._stored_some(lease)
        if lease.ended is not None:
            raise lease.ended

    async def settled(self, stream: Stream) -> None:
        """Waits until what a stream has applied by now is stored, or it has left its slot. StoreBehind as above."""
        if stream.phase is not Phase.LIVE:
            return
        step = stream.step
        while stream.phase is Phase.LIVE and stream.slots.saved[stream.slot] < step:
            self._check_in_time()
            self._want(stream)
            await self._stored_some()

    def give_up_in(self, seconds: float) -> None:
        """From so many seconds from now on nobody waits for the store: the process is to end."""
        self._give_up_at = self._clock() + seconds

    async def flush(self) -> None:
        """Waits until everything is stored and every stream without a call has left its slot; nothing rests meanwhile."""
        self._flushing = True
        try:
            while not self.idle:
                self._soon.set()
                await self._stored_some()
        finally:
            self._flushing = False

    async def judge(self) -> None:
        """Acts on what is too late; to be called every so often, for a store may hang.

        While too much is unsaved, timesteps are refused. Who waits for the store learns that it is too late for that, or that its
        stream has ended.
        """
        unsaved_s = self.unsaved_seconds()
        if not unsaved_s:
            self._clean_at = self._clock()  # what changes next has waited since now at the most
        behind = self._behind() if self._pace.too_late(unsaved_s) else None
        for served in self._repository:
            served.batcher.refusing = behind
        too_late = behind is not None or self._clock() >= self._give_up_at
        await self._wake(
            [
                waiter
                for waiter, lease in self._waiting.items()
                if too_late or (lease is not None and lease.ended is not None)
            ]
        )

    async def run(self) -> None:
        """Stores what has changed, every so often, until cancelled."""
        while True:
            begun, used_s = self._clock(), -self._store.cpu_seconds()
            work = Work(self._round())
            stored = await work
            for notice in self.watchers:
                notice()
            await self._wake(list(self._waiting))
            if stored:
                used_s += work.used_s + self._store.cpu_seconds()
                stored = await self._rest(self._pace.rest_s(self._clock() - begun, used_s, self.unsaved_seconds()))
            if not stored:
                await asyncio.sleep(RETRY_SECONDS)

    async def _rest(self, rest_s: float) -> bool:
        """Waits for the next round, and stores at once what is wanted before that; gives whether the store took it."""
        ends = self._clock() + rest_s
        await asyncio.sleep(0)  # others run, however much there is to store
        while not self._flushing and (left_s := ends - self._clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._soon.wait()
            except TimeoutError:
                break
            self._soon.clear()
            if not await self._store_wanted():
                return False
        return True

    async def _round(self) -> bool:
        """Stores all that is unsaved now, then lets streams leave; gives whether the store took it."""
        begun = self._clock()
        for served in self._repository:
            slots = served.slots
            rows, at_once = slots.unsaved(), _rows_a_commit(slots)
            for first in range(0, len(rows), at_once):
                if not await self._store_wanted():
                    return False
                if not await self._commit(served, rows[first : first + at_once]):
                    return False
                await asyncio.sleep(0)  # a store may not have waited
            await self._park_silent(served)
        self._clean_at = max(self._clean_at, begun)
        return await self._store_wanted()

    async def _store_wanted(self) -> bool:
        """Stores what somebody waits for, and lets streams without a call leave; gives whether the store took it."""
        if not self._wanted and not self._leaving:
            return True
        wanted, self._wanted = self._wanted, set()
        rows: dict[Slots, list[int]] = {}
        slices = Slices()
        for stream in dict.fromkeys([*wanted, *self._leaving]):
            if stream.phase is Phase.LIVE and not stream.saved:
                rows.setdefault(stream.slots, []).append(stream.slot)
            await slices.rest()
        for slots, some in rows.items():
            at_once = _rows_a_commit(slots)
            for first in range(0, len(some), at_once):
                if not await self._commit(self._repository.of(slots), np.array(some[first : first + at_once])):
                    self._wanted |= wanted
                    return False
        await self._park_leaving()
        await self._wake(list(self._waiting))
        return True

    async def _commit(self, served: Served, rows: Ints) -> bool:
        """Stores rows that were unsaved, as they are now; gives whether the store took them."""
        copied = await served.batcher.between(partial(self._copy, served, rows))
        await asyncio.sleep(0)
        if copied is None:
            return True
        begun = perf_counter()
        crash_point("before-commit")
        try:
            kept = await self._store.save(copied.checkpoints)
        except StoreUnavailable as error:
            self._metrics.checkpoints["failed"] += len(copied.rows)
            return self._failed(error)
        crash_point("after-commit")
        if self._failing:
            log.info("the store is back")
        self._failing = False
        self._metrics.checkpoint_seconds.observe(perf_counter() - begun)
        self._stored(copied, kept)
        try:
            for stream, epoch, ok in zip(copied.streams, copied.checkpoints.epochs, kept, strict=True):
                if not ok:
                    await self._refused(stream, epoch)
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

    def _copy(self, served: Served, rows: Ints) -> "_Copied | None":
        """Copies what is still unsaved of rows, None when nothing is; between batches."""
        slots = served.slots
        rows = rows[slots.step[rows] > slots.saved[rows]]
        if not rows.size:
            return None
        held = self._streams.rows(slots)
        streams = [stream for row in rows.tolist() if (stream := held[row]) is not None]
        assert len(streams) == len(rows), "a row without a stream has changed"
        return _Copied(rows, streams, checkpoint_rows(streams))

    def _stored(self, copied: "_Copied", kept: Sequence[bool]) -> None:
        """Takes note of what the store has kept, and tells those who want to know."""
        slots = copied.streams[0].slots
        held = self._streams.rows(slots)
        rows = copied.rows.tolist()
        # Not of what was dropped meanwhile, whose row may be another's by now. One that was taken over here is still in its row, and
        # what was kept is its state: the claim went on from it.
        still = [
            place
            for place, (row, stream, ok) in enumerate(zip(rows, copied.streams, kept, strict=True))
            if ok and held[row] is stream
        ]
        slots.saved[copied.rows[still]] = copied.checkpoints.steps[still]
        self._metrics.checkpoints["ok"] += sum(kept)
        for place in still:
            lease = copied.streams[place].lease
            if lease is not None and lease.on_durable is not None:
                lease.on_durable()

    async def _refused(self, stream: Stream, epoch: int) -> None:
        """The store refused, which means nothing if we have raised the epoch ourselves meanwhile, or are just doing so."""
        self._metrics.checkpoints["fenced"] += 1
        if stream.phase is Phase.LIVE and stream.epoch == epoch and self._may_park(stream):
            await self._on_refused(stream)

    async def _park_leaving(self) -> None:
        """Lets streams without a call leave their slots."""
        for served in self._repository:
            await self._park_all(served, [stream for stream in self._leaving if stream.slots is served.slots])

    async def _park_silent(self, served: Served) -> None:
        """Lets streams leave their slots that a call has open but has long sent nothing on."""
        silent = []
        slices = Slices()
        held = self._streams.rows(served.slots)
        for row in self._silence[served.spec.id].rows(served.slots.step, self._clock(), self._pace.park_after_s):
            stream = held[row]
            if stream is not None and stream not in self._leaving:
                silent.append(stream)
            await slices.rest()
        await self._park_all(served, silent)

    async def _park_all(self, served: Served, streams: Iterable[Stream]) -> None:
        """Takes streams of one model out of their slots, as far as they may leave: a part of them between two batches."""
        left = deque(streams)
        while left:
            await served.batcher.between(partial(self._park_some, served, left))
            await asyncio.sleep(0)

    def _park_some(self, served: Served, left: deque[Stream]) -> None:
        """Takes streams off `left` and out of their slots, no longer than a slice; between batches."""
        ends = perf_counter() + SLICE_SECONDS
        for _ in range(min(len(left), PARKED_AT_ONCE_MAX)):
            stream = left.popleft()
            if self._park(served, stream):
                self._leaving.discard(stream)
            if perf_counter() >= ends:
                break

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

    async def _stored_some(self, lease: Lease | None = None) -> None:
        """Waits until something was stored, or it is too late for that, or the lease has ended."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = lease
        try:
            await waiter
        finally:
            del self._waiting[waiter]

    async def _wake(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        """Has those look again who wait, some in each turn of the loop."""
        for place, waiter in enumerate(waiters, 1):
            if not waiter.done():
                waiter.set_result(None)
            if place % WOKEN_AT_ONCE_MAX == 0:
                await asyncio.sleep(0)

    def _check_in_time(self) -> None:
        """Raises StoreBehind when it is too late to wait for the store."""
        if self._pace.too_late(self.unsaved_seconds()) or self._clock() >= self._give_up_at:
            raise self._behind()

    def _behind(self) -> StoreBehind:
        return StoreBehind(self.unsaved_seconds(), max(1, round(1000 * self._pace.every_s)))


def _is_stored(lease: Lease, step: int) -> bool:
    """Whether a timestep is stored of a stream that a call has open; that of a parked one always is."""
    return lease.durable_step >= step or lease.stream.slot < 0


def _rows_a_commit(slots: Slots) -> int:
    """How many rows of a model are copied and stored at once."""
    return max(1, min(ROWS_A_COMMIT_MAX, BYTES_A_COMMIT_MAX // slots.row_bytes(slots.answers)))


class _Copied(NamedTuple):
    """Rows as they were between two batches: where they stood, whose they were, and what is to be stored."""

    rows: Ints
    streams: Sequence[Stream]
    checkpoints: Checkpoints


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
