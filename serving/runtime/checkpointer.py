"""Stores checkpoints in the background, many streams in one commit.

The rules of this file:
1. A checkpoint is one complete timestep of a stream: rows are copied between batches, state, number and answers
   together.
2. `durable_step` never runs ahead of the store. It rises only after a commit has returned.
3. A slow or unreachable store stops nobody at first; the lag is a metric. When the lag exceeds `ready_lag_s` the server
   is not ready. When it exceeds `lag_max_s` new timesteps are refused, so nothing stays unsaved without a notice.
4. A stream releases its slot only after its state is stored.
5. When the store refuses a checkpoint, it was written under an old epoch, or the store has lost the stream.
   `on_refused` finds out which.
6. A checkpoint of all streams is taken at intervals. What somebody waits for is stored at once, also during a
   checkpoint: a `SYNC` stream, a stream whose call was asked to end, and a stream without a call that is to release its
   slot.
7. Nothing here blocks the event loop for longer than a time slice, however many streams there are.
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

from tidegate.core.errors import StoreBehind, StoreGone, StoreUnavailable
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoints, Ints
from tidegate.core.streams import Lease, Phase, Stream, StreamTable, checkpoint_rows
from tidegate.rpc.time_slice import SLICE_SECONDS, TimeSlice
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule, CpuMeter
from tidegate.runtime.crash_points import crash_point
from tidegate.runtime.idle_times import IdleTimesByModel
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.repository import Repository, ServedModel
from tidegate.store import Store

log = logging.getLogger("tidegate.checkpoints")

# One commit is one fsync, and a caller whose stream is not in it waits for it too. The rows are copied at once, and
# nothing else runs meanwhile: half a millisecond for rows of 1 KB, a millisecond for the largest number of bytes.
ROWS_A_COMMIT_MAX = 1024
BYTES_A_COMMIT_MAX = 4 << 20
# How many streams leave their slots between two batches. Each takes a few microseconds, more behind a long queue.
PARKED_AT_ONCE_MAX = 256
# How many waiters are woken in one turn of the event loop. Each then answers its client, which takes a hundred
# microseconds.
WOKEN_AT_ONCE_MAX = 16
# The delay before the store is tried again after a failure, in seconds: it may be restarting.
RETRY_SECONDS = 0.25


class Checkpointer:
    """Stores what has changed. `run` is its task.

    Args:
        repository: the models and their slots.
        streams: the streams of this process.
        store: where checkpoints are kept.
        metrics: the metrics of the process.
        may_park: whether a stream may leave its slot now; False while it is being opened.
        on_refused: finds out why the store refused a stream, and stores it again or drops it.
        on_parked: called when a stream has left its slot, with its last timestep.
        schedule: the interval, and which lag is too long.

    """

    def __init__(
        self,
        repository: Repository,
        streams: StreamTable,
        store: Store,
        metrics: Metrics,
        may_park: Callable[[Stream], bool],
        on_refused: Callable[[Stream], Awaitable[None]],
        on_parked: Callable[[Stream, int], None],
        schedule: CheckpointSchedule,
    ) -> None:
        self._repository = repository
        self._streams = streams
        self._store = store
        self._metrics = metrics
        self._may_park = may_park
        self._on_refused = on_refused
        self._on_parked = on_parked
        self._schedule = schedule
        self._clock = schedule.clock
        self._all_saved_at = self._clock()  # the last time when every change was stored
        self._deadline = math.inf
        # something must be stored, or a stream be parked, before the next checkpoint
        self._work_event = asyncio.Event()
        self._requested: set[Stream] = set()  # streams that somebody waits for
        self._waiting: dict[asyncio.Future[None], Lease | None] = {}  # who waits, in order, and for which stream
        self._flushing = False
        self._parking: set[Stream] = set()  # no call has them open; they leave their slots when they are stored
        self._failing = False
        self.store_gone = False  # only a restart of the server helps
        self.listeners: list[Callable[[], None]] = []  # called after each checkpoint
        self.idle_times = IdleTimesByModel()
        metrics.unsaved_seconds = self.unsaved_seconds

    def __repr__(self) -> str:
        return f"<Checkpointer: {len(self._parking)} streams to park, {self.unsaved_seconds():.3f} s unsaved>"

    @property
    def ready(self) -> bool:
        """Whether the store keeps up well enough for the server to be ready."""
        return self._schedule.ready(self.unsaved_seconds())

    @property
    def idle(self) -> bool:
        """Whether everything is stored and every stream without a call has left its slot."""
        return not self._parking and not self._unsaved

    @property
    def _unsaved(self) -> bool:
        return any(served.slots.unsaved().size for served in self._repository)

    def unsaved_seconds(self) -> float:
        """How long the oldest unsaved change may have been waiting; 0 when there is none."""
        return self._clock() - self._all_saved_at if self._unsaved else 0.0

    def park_soon(self, stream: Stream) -> None:
        """Parks a stream whose call has ended, as soon as it is stored."""
        self._parking.add(stream)
        self._work_event.set()

    def cancel_park(self, stream: Stream) -> None:
        """Keeps a stream that was opened or woken in its slot. Its idle time starts again."""
        self._parking.discard(stream)
        if stream.slot >= 0:
            self.idle_times[stream.slots].end(stream.slot)

    def request_save(self, lease: Lease) -> None:
        """Has a stream stored at once, for a caller that will wait for it with `wait_durable`."""
        self._request(lease.stream)

    def _request(self, stream: Stream) -> None:
        if stream.phase is Phase.LIVE:
            self._requested.add(stream)
            self._work_event.set()

    async def wait_durable(self, lease: Lease, step: int) -> None:
        """Has a timestep of a live stream stored at once and waits for it.

        Raises:
            StoreBehind: the store has failed for too long, or the deadline of `set_deadline` has passed.
            TidegateError: the stream was taken over or dropped meanwhile.

        """
        while lease.ended is None and not _is_stored(lease, step):
            self._check_in_time()
            self.request_save(lease)
            await self._wait_for_save(lease)
        if lease.ended is not None:
            raise lease.ended

    async def wait_settled(self, stream: Stream) -> None:
        """Waits until the timesteps that a stream has applied by now are stored, or it has left its slot.

        Raises StoreBehind as `wait_durable` does.
        """
        if stream.phase is not Phase.LIVE:
            return
        step = stream.step
        while stream.phase is Phase.LIVE and stream.slots.durable_step[stream.slot] < step:
            self._check_in_time()
            self._request(stream)
            await self._wait_for_save()

    def set_deadline(self, seconds: float) -> None:
        """Sets the time from now after which nobody waits for the store: the process is about to end."""
        self._deadline = self._clock() + seconds

    async def flush(self) -> None:
        """Waits until everything is stored and every stream without a call has left its slot.

        Meanwhile there are no pauses.
        """
        self._flushing = True
        try:
            while not self.idle:
                self._work_event.set()
                await self._wait_for_save()
        finally:
            self._flushing = False

    async def check_lag(self) -> None:
        """Handles a lag that is too long. Called regularly, because a store may hang.

        While the lag is too long, new timesteps are refused. Callers that wait for the store get an error then, and
        also when their stream has ended.
        """
        unsaved_s = self.unsaved_seconds()
        if not unsaved_s:
            self._all_saved_at = self._clock()  # the next change can have waited only from now on
        error = self._lag_error() if self._schedule.too_late(unsaved_s) else None
        for served in self._repository:
            served.batcher.refuse_with = error
        too_late = error is not None or self._clock() >= self._deadline
        await self._wake_waiters(
            [
                waiter
                for waiter, lease in self._waiting.items()
                if too_late or (lease is not None and lease.ended is not None)
            ]
        )

    async def run(self) -> None:
        """Stores what has changed, at intervals, until cancelled."""
        while True:
            started, used_s = self._clock(), -self._store.cpu_seconds()
            work = CpuMeter(self._round())
            stored = await work
            for callback in self.listeners:
                callback()
            await self._wake_waiters(list(self._waiting))
            if stored:
                used_s += work.used_s + self._store.cpu_seconds()
                stored = await self._pause(
                    self._schedule.pause_s(self._clock() - started, used_s, self.unsaved_seconds())
                )
            if not stored:
                await asyncio.sleep(RETRY_SECONDS)

    async def _pause(self, rest_s: float) -> bool:
        """Waits for the next checkpoint, and stores at once what is requested before.

        Returns whether the store accepted it.
        """
        deadline = self._clock() + rest_s
        await asyncio.sleep(0)  # other tasks run first, however much there is to store
        while not self._flushing and (left_s := deadline - self._clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._work_event.wait()
            except TimeoutError:
                break
            self._work_event.clear()
            if not await self._save_requested():
                return False
        return True

    async def _round(self) -> bool:
        """Stores everything that is unsaved now, then parks streams. Returns whether the store accepted it."""
        started = self._clock()
        for served in self._repository:
            slots = served.slots
            rows, at_once = slots.unsaved(), _rows_a_commit(slots)
            for first in range(0, len(rows), at_once):
                if not await self._save_requested():
                    return False
                if not await self._commit(served, rows[first : first + at_once]):
                    return False
                await asyncio.sleep(0)  # a store may return without waiting
            await self._park_idle(served)
        self._all_saved_at = max(self._all_saved_at, started)
        return await self._save_requested()

    async def _save_requested(self) -> bool:
        """Stores what somebody waits for, and parks streams without a call. Returns whether the store accepted it."""
        if not self._requested and not self._parking:
            return True
        requested, self._requested = self._requested, set()
        rows: dict[Slots, list[int]] = {}
        time_slice = TimeSlice()
        for stream in dict.fromkeys([*requested, *self._parking]):
            if stream.phase is Phase.LIVE and not stream.is_saved:
                rows.setdefault(stream.slots, []).append(stream.slot)
            await time_slice.maybe_yield()
        for slots, slot_rows in rows.items():
            if slots not in self._repository:  # the last of its streams has ended meanwhile
                continue
            at_once = _rows_a_commit(slots)
            for first in range(0, len(slot_rows), at_once):
                if not await self._commit(self._repository.of(slots), np.array(slot_rows[first : first + at_once])):
                    self._requested |= requested
                    return False
        await self._park_released()
        await self._wake_waiters(list(self._waiting))
        return True

    async def _commit(self, served: ServedModel, rows: Ints) -> bool:
        """Stores unsaved rows as they are now. Returns whether the store accepted them."""
        snapshot = await served.batcher.run_between(partial(self._copy, served, rows))
        await asyncio.sleep(0)
        if snapshot is None:
            return True
        started = perf_counter()
        crash_point("before-commit")
        try:
            accepted = await self._store.save(snapshot.checkpoints)
        except StoreUnavailable as error:
            self._metrics.checkpoints["failed"] += len(snapshot.rows)
            return self._on_store_error(error)
        crash_point("after-commit")
        if self._failing:
            log.info("the store is back")
        self._failing = False
        self._metrics.checkpoint_seconds.observe(perf_counter() - started)
        self._on_saved(snapshot, accepted)
        try:
            for stream, epoch, ok in zip(snapshot.streams, snapshot.checkpoints.epochs, accepted, strict=True):
                if not ok:
                    await self._handle_refused(stream, epoch)
        except StoreUnavailable as error:
            return self._on_store_error(error)
        return True

    def _on_store_error(self, error: StoreUnavailable) -> bool:
        """Logs the first of consecutive failures. Always returns False."""
        if not self._failing:
            log.error("%s; predictions continue, unsaved", error)
        self._failing = True
        self.store_gone |= isinstance(error, StoreGone)
        return False

    def _copy(self, served: ServedModel, rows: Ints) -> "_Snapshot | None":
        """Copies those of the rows that are still unsaved; None when there are none. Runs between batches."""
        slots = served.slots
        rows = rows[slots.step[rows] > slots.durable_step[rows]]
        if not rows.size:
            return None
        streams_by_slot = self._streams.by_slot(slots)
        streams = [stream for row in rows.tolist() if (stream := streams_by_slot[row]) is not None]
        assert len(streams) == len(rows), "a row without a stream has changed"
        return _Snapshot(rows, streams, checkpoint_rows(streams))

    def _on_saved(self, snapshot: "_Snapshot", accepted: Sequence[bool]) -> None:
        """Records which checkpoints the store has accepted, and notifies the calls of these streams."""
        slots = snapshot.streams[0].slots
        streams_by_slot = self._streams.by_slot(slots)
        rows = snapshot.rows.tolist()
        # A stream that was dropped meanwhile is left out: its row may belong to another stream. A stream that was taken
        # over here is still in its row, and the stored state is its own: the claim continued from it.
        still = [
            index
            for index, (row, stream, ok) in enumerate(zip(rows, snapshot.streams, accepted, strict=True))
            if ok and streams_by_slot[row] is stream
        ]
        slots.durable_step[snapshot.rows[still]] = snapshot.checkpoints.steps[still]
        self._metrics.checkpoints["ok"] += sum(accepted)
        for index in still:
            lease = snapshot.streams[index].lease
            if lease is not None and lease.on_durable is not None:
                lease.on_durable()

    async def _handle_refused(self, stream: Stream, epoch: int) -> None:
        """Handles a refused checkpoint.

        It means nothing if this process has raised the epoch itself, or is doing so now.
        """
        self._metrics.checkpoints["fenced"] += 1
        if stream.phase is Phase.LIVE and stream.epoch == epoch and self._may_park(stream):
            await self._on_refused(stream)

    async def _park_released(self) -> None:
        """Parks streams without a call."""
        for served in self._repository:
            await self._park_all(served, [stream for stream in self._parking if stream.slots is served.slots])

    async def _park_idle(self, served: ServedModel) -> None:
        """Parks streams that a call has open but that have been silent for long."""
        silent = []
        time_slice = TimeSlice()
        streams_by_slot = self._streams.by_slot(served.slots)
        for row in self.idle_times[served.slots].rows(served.slots.step, self._clock(), self._schedule.park_after_s):
            stream = streams_by_slot[row]
            if stream is not None and stream not in self._parking:
                silent.append(stream)
            await time_slice.maybe_yield()
        await self._park_all(served, silent)

    async def _park_all(self, served: ServedModel, streams: Iterable[Stream]) -> None:
        """Parks those streams of one model that may leave their slots, some of them between two batches."""
        remaining = deque(streams)
        while remaining:
            await served.batcher.run_between(partial(self._park_some, served, remaining))
            await asyncio.sleep(0)

    def _park_some(self, served: ServedModel, remaining: deque[Stream]) -> None:
        """Parks streams from `remaining`, for at most a time slice. Runs between batches."""
        deadline = perf_counter() + SLICE_SECONDS
        for _ in range(min(len(remaining), PARKED_AT_ONCE_MAX)):
            stream = remaining.popleft()
            if self._park(served, stream):
                self._parking.discard(stream)
            if perf_counter() >= deadline:
                break

    def _park(self, served: ServedModel, stream: Stream) -> bool:
        """Parks a stream if it is stored and has nothing queued. Runs between batches."""
        if stream.phase is not Phase.LIVE:
            return True
        if not stream.is_saved or not self._may_park(stream) or served.batcher.has_queued(stream):
            return False
        crash_point("during-park")
        step = stream.step
        self._streams.park(stream)
        self._on_parked(stream, step)
        return True

    async def _wait_for_save(self, lease: Lease | None = None) -> None:
        """Waits until something was stored, the lag is too long, or the lease has ended."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = lease
        try:
            await waiter
        finally:
            del self._waiting[waiter]

    async def _wake_waiters(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        """Wakes waiters, some in each turn of the event loop."""
        for index, waiter in enumerate(waiters, 1):
            if not waiter.done():
                waiter.set_result(None)
            if index % WOKEN_AT_ONCE_MAX == 0:
                await asyncio.sleep(0)

    def _check_in_time(self) -> None:
        """Raises StoreBehind when the lag is too long to wait for the store."""
        if self._schedule.too_late(self.unsaved_seconds()) or self._clock() >= self._deadline:
            raise self._lag_error()

    def _lag_error(self) -> StoreBehind:
        return StoreBehind(self.unsaved_seconds(), max(1, round(1000 * self._schedule.interval_s)))


def _is_stored(lease: Lease, step: int) -> bool:
    """Whether a timestep of a stream is stored. Every timestep of a parked stream is."""
    return lease.durable_step >= step or lease.stream.slot < 0


def _rows_a_commit(slots: Slots) -> int:
    """How many rows of a model are copied and stored at once."""
    return max(1, min(ROWS_A_COMMIT_MAX, BYTES_A_COMMIT_MAX // slots.row_bytes(slots.answers)))


class _Snapshot(NamedTuple):
    """A copy of rows between two batches: their slots, their streams, and their checkpoints."""

    rows: Ints
    streams: Sequence[Stream]
    checkpoints: Checkpoints
