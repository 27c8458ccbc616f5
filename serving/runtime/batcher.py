"""Turns timesteps that arrive one at a time into batches.

The laws of this file:
1. One batch at a time. Only the batch that runs reads or writes state.
2. There is no timer. A timestep runs in the next turn of the loop, or with others, as soon as a turn brings no more of
   them; what arrives meanwhile is the next batch. `batch_max` bounds it, and what a row costs: see `runtime.row_cost`.
3. State is written after the model succeeded and before any reply is sent.
4. What else touches state (open, close, park, checkpoint) happens between batches, through `between`; so a slot is
   never used again under a running batch, and a caller that goes away affects nobody else.
5. The queue has a bound; when it is full, a timestep is refused at once, and told so.
6. It never dies quietly. An unexpected error fails that batch's callers and ends `run`, whose owner stops the server.

Timesteps come one at a time, or many in a block, which is run in pieces. A piece is a batch like any other, and takes turns with
the batches of single timesteps, so that a long block holds up nobody for longer than one piece. Calls that send blocks take turns
with each other, a piece each, however many blocks they have in the line.

A batch is short: a task that wakes for each would cost as much as the batch does. So a turn of the loop runs it, as a
plain callback, and only what a turn cannot do itself, to wait for a thread or to end with an error, is left to `run`. The thread
is for models of which one row alone would keep the loop: to get there and back may take milliseconds, so whole batches go there.
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

from serving.core.block import Block, Verdicts, run_together
from serving.core.engine import Engine, Report, Verdict, refusal
from serving.core.errors import (
    InvalidField,
    Overloaded,
    Stopping,
    TidegateError,
    TimestepRefused,
    WrongWidth,
)
from serving.core.handles import Handles
from serving.core.spec import STEP_MAX, Floats, Prediction, Timestep
from serving.core.streams import Lease, Stream
from serving.runtime.crash import crash_point
from serving.runtime.entries import OUTCOMES, BlockEntry, Entry, columns_of, cut, fail, fail_all, unexpected
from serving.runtime.metrics import ModelMetrics
from serving.runtime.row_cost import HOLD_SECONDS, RowCost, time_alone

T = TypeVar("T")

# A full queue drains in a few batches; a client that waits this long finds room unless others keep it full.
RETRY_AFTER_MS = 20
# Rows of blocks that may wait: a quarter of a second with a small model, and some tens of megabytes at most. Blocks of one
# piece find room when long ones have none: they wait for one turn.
BLOCK_ROWS_MAX = 1 << 18
SHORT_BLOCK_ROWS_MAX = 2 * BLOCK_ROWS_MAX


class Batcher:
    """Owns an engine; `run` is its task.

    Args:
        engine: the model and its state.
        metrics: where to count.
        batch_max: the most timesteps in a batch.
        queue_max: the most timesteps that may wait.
        clock: tells how much of the processor its thread has used, in seconds.

    """

    def __init__(
        self,
        engine: Engine,
        metrics: ModelMetrics,
        *,
        batch_max: int,
        queue_max: int,
        clock: Callable[[], float] = thread_time,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.batch_max = batch_max
        self.queue_max = queue_max
        self._queue: deque[Entry] = deque()
        self._blocks: dict[Handles, deque[BlockEntry]] = {}  # by call, in the order of their turns
        self._block_ran = False  # the last batch was a piece of one
        self._seen = 0  # how many were queued in the last turn
        self._due = True  # a turn will come without being asked for; at first, when `run` begins
        self._to_run: asyncio.Future[None]  # from a turn to `run`: the next batch is for the thread, or what went wrong
        self._running = False  # a batch is in the thread
        self._between: deque[Callable[[], None]] = deque()
        self._clock = clock
        self._in_doubt = False  # the last lone timestep took long, or had to wait for the processor
        self.cost = RowCost(time_alone(engine.model, clock))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{engine.model.spec.title}")
        self._width = 4 * len(engine.model.spec.features)
        self._dead: TidegateError | None = None
        self.refusing: TimestepRefused | None = None  # set while new timesteps are to be refused
        metrics.queue_depth = self._queue.__len__

    def __repr__(self) -> str:
        return f"<Batcher {self.engine.model.spec.title}: {len(self._queue)} of {self.queue_max} queued>"

    def submit(self, lease: Lease, timestep: Timestep) -> asyncio.Future[Prediction]:
        """Queues a timestep of a live stream; the answer comes through the future.

        The future ends with a `TimestepRefused`, or with why the lease ended. Cancelling it drops the timestep if its
        batch has not been taken up, and its answer otherwise.

        Raises:
            WrongWidth: the timestep does not hold one value a feature.
            InvalidField: its number cannot be one.
            Overloaded: the queue is full.
            TimestepRefused: what `refusing` says.

        """
        self._check_open(1)
        if len(timestep.values) != self._width:
            self.metrics.steps["invalid"] += 1
            raise WrongWidth(len(timestep.values), [feature.name for feature in self.engine.model.spec.features])
        if timestep.step > STEP_MAX:
            self.metrics.steps["invalid"] += 1
            raise InvalidField("step", f"got {timestep.step}, expected at most {STEP_MAX}")
        if len(self._queue) >= self.queue_max:
            self.metrics.steps["overloaded"] += 1
            raise Overloaded(self.queue_max, RETRY_AFTER_MS)
        future: asyncio.Future[Prediction] = self._loop.create_future()
        self._queue.append(Entry(lease, timestep, future, perf_counter()))
        self._turn_soon()
        return future

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues a block; when the future gives it back, every row has been run or refused.

        Cancelling the future drops the pieces that have not been taken up.

        Raises:
            Overloaded: too many rows are waiting.
            TimestepRefused: what `refusing` says.

        """
        self._check_open(len(block))
        # One block is always let in, however long: behind it the bound counts.
        waiting = sum(entry.block.left for entry in self._block_entries())
        bound = BLOCK_ROWS_MAX if len(block) > self.batch_max else SHORT_BLOCK_ROWS_MAX
        if waiting and waiting + len(block) > bound:
            self.metrics.steps["overloaded"] += len(block)
            raise Overloaded(BLOCK_ROWS_MAX, RETRY_AFTER_MS)
        future: asyncio.Future[Block] = self._loop.create_future()
        self._blocks.setdefault(block.held, deque()).append(BlockEntry(block, future, perf_counter()))
        self._turn_soon()
        return future

    def _turn_soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop; to ask for it is a call of the system each time (Python 3.11 looks whether it was forked)."""
        return asyncio.get_running_loop()

    def _check_open(self, timesteps: int) -> None:
        """Raises why so many timesteps are not taken."""
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # one error for all: traces must not pile up on it
        if self.refusing is not None:
            self.metrics.steps["store_behind"] += timesteps
            raise self.refusing.with_traceback(None)

    def answered(self, seconds: float) -> None:
        """Counts a timestep that was answered, from being read to its answer being handed to the network."""
        self.metrics.step_seconds.observe(seconds)

    def has_queued(self, stream: Stream) -> bool:
        """Whether a timestep of a live stream is waiting for its batch."""
        return any(entry.lease.stream is stream for entry in self._queue) or any(
            entry.block.slots is stream.slots and entry.block.holds(stream.slot) for entry in self._block_entries()
        )

    async def between(self, act: Callable[[], T]) -> T:
        """Runs `act` between two batches, at once when none is running; gives what it returns or raises.

        Once called it happens, whether or not the caller waits for it.
        """
        if not self._running:
            return act()
        done: asyncio.Future[T] = self._loop.create_future()

        def perform() -> None:
            try:
                result = act()
            except Exception as error:  # noqa: BLE001 - handed to the caller, whoever it is about
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self._between.append(perform)
        return await done

    async def run(self) -> None:
        """Has batches run until cancelled. Afterwards nothing waits: what was queued has been refused."""
        try:
            while True:
                self._to_run = self._loop.create_future()
                self._loop.call_soon(self._turn)
                await self._to_run
                if self._piece_is_due:
                    if pieces := self._take_pieces(self.batch_max):
                        await self._run_pieces_in_thread(pieces)
                elif entries := self._take():
                    await self._run_in_thread(entries)
        finally:
            self._dead = Stopping()
            fail_all([*self._queue, *self._block_entries()], self._dead)
            self._queue.clear()
            self._blocks.clear()
            self._thread.shutdown(wait=False)

    def _turn(self) -> None:
        """Runs one batch, or has `run` do so when that may take long."""
        if self._to_run.done():
            return  # `run` was cancelled, and is about to refuse what is queued
        seen, self._seen = self._seen, len(self._queue)
        if max(1, seen) < self._seen < self._rows_max and not self._blocks:
            # More came since the last turn, so the loop is just reading what has arrived: company costs less than a batch.
            self._loop.call_soon(self._turn)
            return
        if (self._queue or self._blocks) and self.cost.in_thread:
            self._to_run.set_result(None)
            return
        taken: Sequence[Entry | BlockEntry] = ()
        try:
            if self._piece_is_due:
                rows_max = self._rows_max
                if pieces := self._take_pieces(rows_max):
                    taken = pieces
                    begun = perf_counter()
                    self._settle_pieces(pieces, self._run_pieces(pieces, rows_max), begun)
            elif entries := self._take():
                taken = entries
                self._run_here(entries)
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            fail_all(taken, unexpected())
            self._to_run.set_exception(error)
            return
        # Between two batches there is a turn for the network: answers leave, timesteps arrive.
        self._seen = len(self._queue)
        self._due = bool(self._queue or self._blocks)
        if self._due:
            self._loop.call_soon(self._turn)

    @property
    def _piece_is_due(self) -> bool:
        """Whether the next batch is a piece of a block: those and single timesteps take turns."""
        return bool(self._blocks) and not (self._queue and self._block_ran)

    @property
    def _rows_max(self) -> int:
        """The most rows of the next batch."""
        return self.batch_max if self.cost.in_thread else min(self.batch_max, self.cost.rows_max)

    def _take_pieces(self, room: int) -> list[BlockEntry]:
        """Takes the block off the line whose piece is due, and with it those behind it of which there is room for all that is left.

        A call has its next turn when all others have had theirs.
        """
        self._block_ran = True
        taken: list[BlockEntry] = []
        waiting: list[tuple[Handles, deque[BlockEntry]]] = []
        while room > 0 and self._blocks:
            call, line = next(iter(self._blocks.items()))
            if taken and line[0].block.left > room:
                break
            del self._blocks[call]
            entry = line.popleft()
            if line:
                waiting.append((call, line))
            if entry.future.done():
                self.metrics.steps["abandoned"] += entry.block.left
            else:
                room -= entry.block.left
                taken.append(entry)
        self._blocks.update(waiting)
        return taken

    def _block_entries(self) -> Iterator[BlockEntry]:
        """The blocks in the line."""
        return chain.from_iterable(self._blocks.values())

    def _run_pieces(self, entries: Sequence[BlockEntry], rows_max: int) -> list[Verdicts]:
        """Runs the next pieces of blocks as one batch, wherever; gives the verdicts on the rows of each."""
        begun = self._clock()
        verdicts = run_together(self.engine, [entry.block for entry in entries], rows_max)
        self.cost.took(sum(map(len, verdicts)), self._clock() - begun)
        return verdicts

    def _run_batch(self, entries: Sequence[Entry]) -> tuple[Report, Floats]:
        """Runs a batch of timesteps, wherever; gives what became of them, and their values."""
        columns, begun = columns_of(entries), self._clock()
        report = self.engine.run(*columns)
        self.cost.took(len(entries), self._clock() - begun)
        return report, columns[2]

    def _run_here(self, entries: Sequence[Entry]) -> None:
        """Runs one batch in the event loop."""
        begun = perf_counter()
        if len(entries) == 1:
            (entry,) = entries
            started = self._clock() if self._in_doubt else 0.0
            prediction = self.engine.run_alone(entry.lease.stream.slot, entry.timestep)
            if prediction is not None:
                run_seconds = perf_counter() - begun
                # Asking for the processor's time costs a lone timestep as much as its answer: only where the other clock gives cause.
                self.cost.took(1, self._clock() - started if self._in_doubt else run_seconds)
                self._in_doubt = run_seconds > HOLD_SECONDS
                self._settle_alone(entry, prediction, begun, run_seconds)
                return
        self._settle(entries, *self._run_batch(entries), begun)

    async def _run_in_thread(self, entries: list[Entry]) -> None:
        """Runs one batch beside the event loop."""
        begun = perf_counter()
        try:
            self._settle(entries, *await self._in_thread(partial(self._run_batch, entries)), begun)
        except BaseException:
            fail_all(entries, unexpected())
            raise
        finally:
            self._go_on()

    async def _run_pieces_in_thread(self, entries: Sequence[BlockEntry]) -> None:
        """Runs pieces of blocks beside the event loop."""
        begun = perf_counter()
        try:
            self._settle_pieces(
                entries, await self._in_thread(partial(self._run_pieces, entries, self.batch_max)), begun
            )
        except BaseException:
            fail_all(entries, unexpected())
            raise
        finally:
            self._go_on()

    async def _in_thread(self, run: Callable[[], T]) -> T:
        """Runs the engine in its thread; what must not happen meanwhile waits in `_between`."""
        self._running = True
        running = self._loop.run_in_executor(self._thread, run)
        try:
            return await asyncio.shield(running)
        finally:
            if not running.done():  # cancelled: the thread still moves state, so nobody else may touch it yet
                await asyncio.wait([running])

    def _go_on(self) -> None:
        """Does what had to wait for the end of a batch in the thread."""
        self._running = False
        while self._between:
            self._between.popleft()()

    def _take(self) -> list[Entry]:
        """Takes a batch off the queue: at most one timestep of a stream, in the order they came."""
        self._block_ran = False
        queue = self._queue
        entries: list[Entry] = []
        later: list[Entry] = []
        taken: set[Stream] = set()
        rows_max = self._rows_max
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

    def _settle(self, entries: Sequence[Entry], report: Report, x: Floats, begun: float) -> None:
        """Hands each caller its own answer; one that has gone away loses only its own."""
        self._measure(len(entries), perf_counter() - begun)
        self.metrics.queue_seconds.observe_many([begun - entry.queued_at for entry in entries])
        crash_point("before-answer")
        steps = report.steps.tolist()
        applied = range(len(entries)) if report.applied is None else report.applied.tolist()
        for row, outputs in zip(applied, zip(*map(cut, report.outputs), strict=True), strict=True):
            future = entries[row].future
            if not future.done():
                future.set_result(Prediction(steps[row], outputs))
        if report.verdicts is not None:
            for row in np.flatnonzero(report.verdicts).tolist():
                self._settle_refused(entries[row], row, Verdict(int(report.verdicts[row])), report, x[row])
        self.metrics.missing_values += report.missing
        if report.verdicts is None:
            self.metrics.steps["ok"] += len(entries)
        else:
            self._count(report.verdicts)

    def _settle_pieces(self, entries: Sequence[BlockEntry], verdicts: Sequence[Verdicts], begun: float) -> None:
        """Puts blocks back in the line, or gives them to their callers when that was their last piece."""
        self._measure(sum(map(len, verdicts)), perf_counter() - begun)
        for entry, found in zip(entries, verdicts, strict=True):
            self.metrics.queue_seconds.observe(begun - entry.queued_at, len(found))
            if entry.block.clean:
                self.metrics.steps["ok"] += len(found)
            else:
                self._count(found)
        crash_point("before-answer")
        for entry in entries:
            if entry.block.left:
                entry.queued_at = perf_counter()
                self._blocks.setdefault(entry.block.held, deque()).appendleft(entry)
                continue
            self.metrics.missing_values += entry.block.missing
            if not entry.future.done():
                entry.future.set_result(entry.block)

    def _settle_alone(self, entry: Entry, prediction: Prediction, begun: float, run_seconds: float) -> None:
        """Hands the only caller of a batch its answer."""
        self._measure(1, run_seconds)
        self.metrics.queue_seconds.observe(begun - entry.queued_at)
        self.metrics.steps["ok"] += 1
        crash_point("before-answer")
        if not entry.future.done():
            entry.future.set_result(prediction)

    def _settle_refused(self, entry: Entry, row: int, verdict: Verdict, report: Report, x: Floats) -> None:
        """Answers a timestep that the model did not apply."""
        stream, step = entry.lease.stream, int(report.steps[row])
        if entry.future.done():
            return
        if verdict is Verdict.DUPLICATE:
            entry.future.set_result(Prediction(step, stream.slots.answer(stream.slot, step), duplicate=True))
        elif verdict is Verdict.FAILED:
            fail(entry.future, report.failures[row])
        else:
            fail(entry.future, refusal(self.engine.model.spec, verdict, step, stream.step + 1, x))

    def _measure(self, size: int, run_seconds: float) -> None:
        """Takes note of a batch of timesteps that has just run."""
        self.metrics.batch_size.observe(size)
        self.metrics.run_seconds.observe(run_seconds)

    def _count(self, verdicts: Verdicts) -> None:
        """Counts timesteps by what became of them."""
        for verdict, count in enumerate(np.bincount(verdicts).tolist()):
            if count:
                self.metrics.steps[OUTCOMES[verdict]] += count
