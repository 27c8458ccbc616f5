"""Collects timesteps that arrive one at a time into batches.

The rules of this file:
1. One batch at a time. Only the running batch reads or writes state.
2. There is no timer. A timestep runs in the next turn of the event loop, or together with others, as soon as a turn
   brings no more of them. What arrives meanwhile is the next batch. `batch_max` and the cost of a row limit its size:
   see `runtime.row_cost`.
3. State is written after the model has succeeded and before any answer is sent.
4. Everything else that touches state (open, close, park, checkpoint) happens between batches, through `run_between`. So
   a slot is never reused during a batch, and a caller that disconnects affects nobody else.
5. The queue has a bound. When it is full, a timestep is refused at once with an error that says so.
6. It never fails silently. An unexpected error fails the callers of that batch and ends `run`, whose owner stops the
   server.

Timesteps come one at a time, or many in a block, which runs in chunks. A chunk is a batch like any other. Chunks and
batches of single timesteps alternate, so a long block delays others by one chunk at most. Calls that send blocks take
turns, one chunk each, however many blocks they have queued. The chunks of a call that sends alone are longer.

A batch is short: to wake a task for each would cost as much as the batch itself. So a callback of the event loop runs
it. Only what a callback cannot do is left to `run`: to wait for a thread, or to end with an error. The thread is for
slow models, which would block the event loop for too long with a single row. The way to the thread and back may take
milliseconds, so whole batches go there.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from time import perf_counter, thread_time
from typing import TypeVar

import numpy as np

from tidegate.core.block import Block, RowStatuses, run_blocks
from tidegate.core.engine import BatchResult, Engine
from tidegate.core.errors import InvalidField, Overloaded, Stopping, TidegateError, TimestepRefused, WrongWidth
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import STEP_MAX, Array, Prediction, Timestep
from tidegate.core.streams import Lease, Stream
from tidegate.runtime.crash_points import crash_point
from tidegate.runtime.metrics import ModelMetrics
from tidegate.runtime.queue_entries import (
    QueuedBlock,
    QueuedStep,
    count_statuses,
    fail,
    fail_all,
    settle_refused,
    split_rows,
    stack_steps,
    take_blocks,
    unexpected_error,
)
from tidegate.runtime.row_cost import LOOP_SECONDS_MAX, THREAD_ROWS_MAX, RowCost, measure_single_row
from tidegate.runtime.senders import SINGLE_TIMESTEPS, Senders

T = TypeVar("T")
E = TypeVar("E", QueuedStep, QueuedBlock)

# A full queue drains in a few batches. A client that waits this long finds room unless others keep the queue full.
RETRY_AFTER_MS = 20
# How many rows of blocks may wait: a quarter of a second with a small model, and some tens of megabytes at most. Blocks
# of up to `batch_max` rows find room when longer ones do not: they wait for a few turns only.
BLOCK_ROWS_MAX = 1 << 18
SHORT_BLOCK_ROWS_MAX = 2 * BLOCK_ROWS_MAX


class Batcher:
    """Owns an engine. `run` is its task.

    Args:
        engine: the model and its state.
        metrics: the metrics of the model.
        batch_max: the largest number of timesteps in a batch.
        queue_max: the largest number of timesteps that may wait.
        senders: who sends to this worker, shared by all its batchers.
        clock: the processor time of the current thread, in seconds.

    """

    def __init__(
        self,
        engine: Engine,
        metrics: ModelMetrics,
        *,
        batch_max: int,
        queue_max: int,
        senders: Senders | None = None,
        clock: Callable[[], float] = thread_time,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.batch_max = batch_max
        self.queue_max = queue_max
        self._senders = senders or Senders()
        self._queue: deque[QueuedStep] = deque()
        self._blocks: dict[HandleTable, deque[QueuedBlock]] = {}  # by call, in the order of their turns
        self._last_was_block = False  # whether the last batch was a chunk of a block
        self._last_queued = 0  # the length of the queue in the last turn
        self._turn_scheduled = True  # whether a turn is scheduled; at first `run` schedules one
        self._handover: asyncio.Future[None]  # set by a turn for `run`: the next batch is for the thread, or an error
        self.runs_in_thread = False  # whether a batch runs in the thread
        self.running_since = 0.0  # when the batch began that runs now, by `perf_counter`; 0 when none does
        self._deferred: deque[Callable[[], None]] = deque()
        self._clock = clock
        self._measure_cpu = False  # the last single timestep took long, or had to wait for the processor
        self.cost = RowCost(measure_single_row(engine.model, clock))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{engine.model.spec.title}")
        self._row_bytes, self._row_dtype = engine.layout.row_bytes, engine.layout.row_dtype
        self._stop_error: TidegateError | None = None
        self.refuse_with: TimestepRefused | None = None  # the error for new timesteps while they are refused
        metrics.queue_depth = self._queue.__len__

    def __repr__(self) -> str:
        return f"<Batcher {self.engine.model.spec.title}: {len(self._queue)} of {self.queue_max} queued>"

    def submit(self, lease: Lease, timestep: Timestep) -> asyncio.Future[Prediction]:
        """Queues a timestep of a live stream. The future returns the answer.

        The future may raise a `TimestepRefused`, or what ended the lease. Cancelling it drops the timestep if its batch
        has not started, and only its answer otherwise.

        Raises:
            WrongWidth: the timestep does not have one value for each feature.
            InvalidField: its number is out of range.
            Overloaded: the queue is full.
            TimestepRefused: as `refuse_with` says.

        """
        if self._stop_error is not None or self.refuse_with is not None:
            self._raise_refusal(1)
        if len(timestep.values) != self._row_bytes:
            self.metrics.steps["invalid"] += 1
            raise WrongWidth(len(timestep.values), [feature.name for feature in self.engine.model.spec.features])
        if timestep.step > STEP_MAX:
            self.metrics.steps["invalid"] += 1
            raise InvalidField("step", f"got {timestep.step}, expected at most {STEP_MAX}")
        if len(self._queue) >= self.queue_max:
            self.metrics.steps["overloaded"] += 1
            raise Overloaded(self.queue_max, RETRY_AFTER_MS)
        future: asyncio.Future[Prediction] = self._loop.create_future()
        self._queue.append(QueuedStep(lease, timestep, future, perf_counter()))
        if not self._turn_scheduled:
            self._schedule_turn()
        return future

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues a block. When the future returns it, every row has run or was refused.

        Cancelling the future drops the chunks that have not started.

        Raises:
            Overloaded: too many rows are waiting.
            TimestepRefused: as `refuse_with` says.

        """
        if self._stop_error is not None or self.refuse_with is not None:
            self._raise_refusal(len(block))
        # An empty queue accepts any block, however long. The bound counts for the blocks behind it.
        waiting = sum([entry.block.rows_left for entry in self._queued_blocks()]) if self._blocks else 0
        bound = BLOCK_ROWS_MAX if len(block) > self.batch_max else SHORT_BLOCK_ROWS_MAX
        if waiting and waiting + len(block) > bound:
            self.metrics.steps["overloaded"] += len(block)
            raise Overloaded(BLOCK_ROWS_MAX, RETRY_AFTER_MS)
        future: asyncio.Future[Block] = self._loop.create_future()
        entry = QueuedBlock(block, future, perf_counter())
        self._blocks.setdefault(block.table, deque()).append(entry)
        self._senders.note(id(block.table), entry.queued_at)
        if not self._turn_scheduled:
            self._schedule_turn()
        return future

    def _schedule_turn(self) -> None:
        self._turn_scheduled = True
        self._loop.call_soon(self._run_turn)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, cached: asking for it is a system call each time (Python 3.11 checks for a fork)."""
        return asyncio.get_running_loop()

    def _raise_refusal(self, timesteps: int) -> None:
        """Raises the error that refuses this number of timesteps."""
        if self._stop_error is not None:
            # one error object for all callers: tracebacks must not accumulate on it
            raise self._stop_error.with_traceback(None)
        if self.refuse_with is not None:
            self.metrics.steps["store_behind"] += timesteps
            raise self.refuse_with.with_traceback(None)

    def observe_step(self, seconds: float) -> None:
        """Counts an answered timestep. `seconds` is the time from reading it to handing its answer to gRPC."""
        self.metrics.step_seconds.observe(seconds)

    def has_queued(self, stream: Stream) -> bool:
        """Whether a timestep of a live stream is queued."""
        return any(entry.lease.stream is stream for entry in self._queue) or any(
            entry.block.slots is stream.slots and entry.block.contains_slot(stream.slot)
            for entry in self._queued_blocks()
        )

    async def run_between(self, act: Callable[[], T]) -> T:
        """Runs `act` between two batches, at once when none is running. Returns or raises what `act` does.

        Once called it happens, whether or not the caller waits for it.
        """
        if not self.runs_in_thread:
            return act()
        done: asyncio.Future[T] = self._loop.create_future()

        def perform() -> None:
            try:
                result = act()
            except Exception as error:  # noqa: BLE001 - passed to the caller
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self._deferred.append(perform)
        return await done

    async def run(self) -> None:
        """Runs batches until cancelled. Afterwards the queue is empty: everything that was queued has been refused."""
        try:
            while True:
                self._handover = self._loop.create_future()
                self._loop.call_soon(self._run_turn)
                await self._handover
                if self._block_is_next:
                    rows_max = self._rows_max
                    if blocks := self._take_blocks(rows_max):
                        await self._run_in_thread(blocks, partial(self._run_blocks, rows_max), self._settle_blocks)
                elif entries := self._take_steps():
                    await self._run_in_thread(entries, self._run_batch, self._settle)
        finally:
            self._stop_error = Stopping()
            fail_all([*self._queue, *self._queued_blocks()], self._stop_error)
            self._queue.clear()
            self._blocks.clear()
            self._thread.shutdown(wait=False)

    def _run_turn(self) -> None:
        """Runs one batch, or leaves it to `run` when it may take long."""
        if self._handover.done():
            return  # `run` was cancelled, and is about to refuse what is queued
        seen, self._last_queued = self._last_queued, len(self._queue)
        if max(1, seen) < self._last_queued < self._rows_max and not self._blocks:
            # More arrived since the last turn, so the loop is still reading. To wait for more rows costs less than a
            # batch.
            self._loop.call_soon(self._run_turn)
            return
        if (self._queue or self._blocks) and self.cost.needs_thread:
            self._handover.set_result(None)
            return
        taken: Sequence[QueuedStep | QueuedBlock] = ()
        try:
            if self._block_is_next:
                rows_max = self._block_rows_max
                if blocks := self._take_blocks(rows_max):
                    taken = blocks
                    started = self.running_since = perf_counter()
                    self._settle_blocks(blocks, self._run_blocks(rows_max, blocks), started)
            elif entries := self._take_steps():
                taken = entries
                self._run_in_loop(entries)
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            fail_all(taken, unexpected_error())
            self._handover.set_exception(error)
            return
        self.running_since = 0.0
        # Between two batches the loop serves the network: answers leave, timesteps arrive.
        self._last_queued = len(self._queue)
        self._turn_scheduled = bool(self._queue or self._blocks)
        if self._turn_scheduled:
            self._loop.call_soon(self._run_turn)

    @property
    def _block_is_next(self) -> bool:
        """Whether the next batch is a chunk of a block. Chunks and batches of single timesteps alternate."""
        return bool(self._blocks) and not (self._queue and self._last_was_block)

    @property
    def _rows_max(self) -> int:
        """The largest number of rows in the next batch."""
        return min(self.batch_max, THREAD_ROWS_MAX if self.cost.needs_thread else self.cost.rows_max)

    @property
    def _block_rows_max(self) -> int:
        """The same when the next batch is a chunk."""
        call = next(iter(self._blocks))
        if self.cost.needs_thread or self._queue or not self._senders.is_alone(id(call), perf_counter()):
            return self._rows_max
        return min(self.batch_max, self.cost.rows_max_alone)

    def _take_blocks(self, room: int) -> list[QueuedBlock]:
        """Takes the blocks of the next batch, which has this much room; see `take_blocks`."""
        self._last_was_block = True
        taken, abandoned = take_blocks(self._blocks, room)
        if abandoned:
            self.metrics.steps["abandoned"] += abandoned
        return taken

    def _queued_blocks(self) -> Iterator[QueuedBlock]:
        """The queued blocks."""
        return chain.from_iterable(self._blocks.values())

    def _run_blocks(self, rows_max: int, entries: Sequence[QueuedBlock]) -> list[RowStatuses]:
        """Runs the next chunks of blocks as one batch, in any thread. Returns the statuses of each block's rows."""
        started = self._clock()
        statuses = run_blocks(self.engine, [entry.block for entry in entries], rows_max)
        self.cost.record(sum(map(len, statuses)), self._clock() - started)
        return statuses

    def _run_batch(self, entries: Sequence[QueuedStep]) -> tuple[BatchResult, Array]:
        """Runs a batch of timesteps, in any thread. Returns the result and the values."""
        columns, started = stack_steps(entries, self._row_dtype), self._clock()
        result = self.engine.run(*columns)
        self.cost.record(len(entries), self._clock() - started)
        return result, columns[2]

    def _run_in_loop(self, entries: Sequence[QueuedStep]) -> None:
        """Runs one batch in the event loop."""
        started = self.running_since = perf_counter()
        if len(entries) == 1:
            (entry,) = entries
            cpu_started = self._clock() if self._measure_cpu else 0.0
            prediction = self.engine.run_one(entry.lease.stream.slot, entry.timestep)
            if prediction is not None:
                run_seconds = perf_counter() - started
                # Reading the processor time costs as much as the answer of a single timestep. So it is read only after
                # a slow one.
                self.cost.record(1, self._clock() - cpu_started if self._measure_cpu else run_seconds)
                self._measure_cpu = run_seconds > LOOP_SECONDS_MAX
                self._settle_one(entry, prediction, started, run_seconds)
                return
        self._settle(entries, self._run_batch(entries), started)

    async def _run_in_thread(
        self, entries: Sequence[E], run: Callable[[Sequence[E]], T], settle: Callable[[Sequence[E], T, float], None]
    ) -> None:
        """Runs one batch in the thread, and settles its entries in the loop."""
        started = perf_counter()
        try:
            settle(entries, await self._in_thread(partial(run, entries)), started)
        except BaseException:
            fail_all(entries, unexpected_error())
            raise
        finally:
            self._run_deferred()

    async def _in_thread(self, run: Callable[[], T]) -> T:
        """Runs the engine in its thread. What must not happen meanwhile waits in `_deferred`."""
        self.runs_in_thread = True
        self.running_since = perf_counter()
        running = self._loop.run_in_executor(self._thread, run)
        try:
            return await asyncio.shield(running)
        finally:
            if not running.done():  # cancelled: the thread still changes state, so nobody else may touch it yet
                await asyncio.wait([running])
            self.running_since = 0.0

    def _run_deferred(self) -> None:
        """Does what had to wait for the end of a batch in the thread."""
        self.runs_in_thread = False
        while self._deferred:
            self._deferred.popleft()()

    def _take_steps(self) -> list[QueuedStep]:
        """Takes a batch from the queue: at most one timestep of each stream, in order of arrival."""
        self._last_was_block = False
        self._senders.note(SINGLE_TIMESTEPS, perf_counter())
        queue = self._queue
        entries: list[QueuedStep] = []
        later: list[QueuedStep] = []
        taken: set[Stream] = set()
        rows_max = self._rows_max if len(queue) > 1 else 1
        while queue and len(entries) < rows_max:
            entry = queue.popleft()
            if entry.future.done():
                self.metrics.steps["abandoned"] += 1
            elif entry.lease.ended is not None:
                self.metrics.steps["ended"] += 1
                fail(entry.future, entry.lease.ended)
            elif entry.lease.stream in taken:
                later.append(entry)
            else:
                assert entry.lease.stream.slot >= 0, "a stream was parked with a timestep in the queue"
                taken.add(entry.lease.stream)
                entries.append(entry)
        queue.extendleft(reversed(later))
        return entries

    def _settle(self, entries: Sequence[QueuedStep], batch: tuple[BatchResult, Array], started: float) -> None:
        """Gives each caller its answer. A caller that has disconnected loses only its own."""
        result, x = batch
        self._observe_batch(len(entries), perf_counter() - started)
        self.metrics.queue_seconds.observe_many([started - entry.queued_at for entry in entries])
        crash_point("before-answer")
        steps = result.steps.tolist()
        applied = range(len(entries)) if result.applied is None else result.applied.tolist()
        for row, outputs in zip(applied, zip(*map(split_rows, result.outputs), strict=True), strict=True):
            future = entries[row].future
            if not future.done():
                future.set_result(Prediction(steps[row], outputs))
        if result.statuses is not None:
            for row in np.flatnonzero(result.statuses).tolist():
                settle_refused(entries[row], row, result, x[row])
        self.metrics.missing_values += result.missing
        if result.statuses is None:
            self.metrics.steps["ok"] += len(entries)
        else:
            count_statuses(self.metrics.steps, result.statuses)

    def _settle_blocks(self, entries: Sequence[QueuedBlock], statuses: Sequence[RowStatuses], started: float) -> None:
        """Queues blocks again, or returns them to their callers after their last chunk."""
        self._observe_batch(sum(map(len, statuses)), perf_counter() - started)
        for entry, block_statuses in zip(entries, statuses, strict=True):
            self.metrics.queue_seconds.observe(started - entry.queued_at, len(block_statuses))
            if entry.block.all_applied:
                self.metrics.steps["ok"] += len(block_statuses)
            else:
                count_statuses(self.metrics.steps, block_statuses)
        crash_point("before-answer")
        for entry in entries:
            if entry.block.rows_left:
                entry.queued_at = perf_counter()
                self._blocks.setdefault(entry.block.table, deque()).appendleft(entry)
                continue
            self.metrics.missing_values += entry.block.missing
            if not entry.future.done():
                entry.future.set_result(entry.block)

    def _settle_one(self, entry: QueuedStep, prediction: Prediction, started: float, run_seconds: float) -> None:
        """Gives the only caller of a batch its answer."""
        self._observe_batch(1, run_seconds)
        self.metrics.queue_seconds.observe(started - entry.queued_at)
        self.metrics.steps["ok"] += 1
        crash_point("before-answer")
        if not entry.future.done():
            entry.future.set_result(prediction)

    def _observe_batch(self, size: int, run_seconds: float) -> None:
        """Records the size and the duration of a batch."""
        self.metrics.batch_size.observe(size)
        self.metrics.run_seconds.observe(run_seconds)
