"""Turns timesteps that arrive one at a time into batches.

The laws of this file:
1. One task owns the engine. Nobody else reads or writes state.
2. There is no timer. When idle it runs at once; what arrived meanwhile is the next batch. `batch_max` bounds it.
3. State is written after the model succeeded and before any reply is sent.
4. What else touches state (open, close, park, checkpoint) happens between batches, through `between`; so a slot is
   never used again under a running batch, and a caller that goes away affects nobody else.
5. The queue has a bound; when it is full, a timestep is refused at once, and told so.
6. It never dies quietly. An unexpected error fails that batch's callers and ends `run`, whose owner stops the server.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.core.block import Block
from serving.core.engine import Engine, Report, Verdict
from serving.core.errors import (
    InvalidField,
    ModelFailed,
    Overloaded,
    Stopping,
    TidegateError,
    TimestepRefused,
    WrongWidth,
)
from serving.core.spec import STEP_MAX, Floats, Prediction, Timestep
from serving.core.streams import Lease, Stream
from serving.runtime.crash import crash_point
from serving.runtime.metrics import ModelMetrics, Outcome

T = TypeVar("T")

# A hop to a thread and back costs about as much as a small model; above this a batch would hold up the network.
INLINE_SECONDS = 0.0005
# How much a batch's time counts in the running mean by which a thread is chosen: a single slow one does not switch.
RUN_SECONDS_WEIGHT = 0.1
# A full queue drains in a few batches; a client that waits this long finds room unless others keep it full.
RETRY_AFTER_MS = 20
# Rows of blocks that may wait: a quarter of a second with a small model, and some tens of megabytes at most.
BLOCK_ROWS_MAX = 1 << 18


class Entry:
    """A timestep in the queue and the one who waits for its answer."""

    __slots__ = ("future", "lease", "queued_at", "timestep")

    def __init__(self, lease: Lease, timestep: Timestep, future: asyncio.Future[Prediction], queued_at: float) -> None:
        self.lease = lease
        self.timestep = timestep
        self.future = future
        self.queued_at = queued_at


class BlockEntry:
    """A block in the line and the one who waits for it."""

    __slots__ = ("block", "future", "queued_at")

    def __init__(self, block: Block, future: asyncio.Future[Block], queued_at: float) -> None:
        self.block = block
        self.future = future
        self.queued_at = queued_at


class Batcher:
    """Owns an engine; `run` is its task.

    Args:
        engine: the model and its state.
        metrics: where to count.
        batch_max: the most timesteps in a batch.
        queue_max: the most timesteps that may wait.

    """

    def __init__(self, engine: Engine, metrics: ModelMetrics, *, batch_max: int, queue_max: int) -> None:
        self.engine = engine
        self.metrics = metrics
        self.batch_max = batch_max
        self.queue_max = queue_max
        self._queue: deque[Entry] = deque()
        self._blocks: deque[BlockEntry] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._running = False  # a batch is in the thread
        self._between: deque[Callable[[], None]] = deque()
        self._run_seconds = 0.0
        self._piece_seconds = 0.0
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
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # one error for all: traces must not pile up on it
        if self.refusing is not None:
            self.metrics.steps["store_behind"] += 1
            raise self.refusing.with_traceback(None)
        if len(timestep.values) != self._width:
            self.metrics.steps["invalid"] += 1
            raise WrongWidth(len(timestep.values), [feature.name for feature in self.engine.model.spec.features])
        if timestep.step > STEP_MAX:
            self.metrics.steps["invalid"] += 1
            raise InvalidField("step", f"got {timestep.step}, expected at most {STEP_MAX}")
        if len(self._queue) >= self.queue_max:
            self.metrics.steps["overloaded"] += 1
            raise Overloaded(self.queue_max, RETRY_AFTER_MS)
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._queue.append(Entry(lease, timestep, future, perf_counter()))
        self._have_run()
        return future

    def submit_block(self, block: Block) -> asyncio.Future[Block]:
        """Queues a block; when the future gives it back, every row has been run or refused.

        Cancelling the future drops the pieces that have not been taken up.

        Raises:
            Overloaded: too many rows are waiting.
            TimestepRefused: what `refusing` says.

        """
        if self._dead is not None:
            raise self._dead.with_traceback(None)
        if self.refusing is not None:
            self.metrics.steps["store_behind"] += len(block)
            raise self.refusing.with_traceback(None)
        # One block is always let in, however long: behind it the bound counts.
        waiting = sum(len(entry.block) for entry in self._blocks)
        if waiting and waiting + len(block) > BLOCK_ROWS_MAX:
            self.metrics.steps["overloaded"] += len(block)
            raise Overloaded(BLOCK_ROWS_MAX, RETRY_AFTER_MS)
        block.cut(self.batch_max)
        future: asyncio.Future[Block] = asyncio.get_running_loop().create_future()
        self._blocks.append(BlockEntry(block, future, perf_counter()))
        self._have_run()
        return future

    def has_queued(self, stream: Stream) -> bool:
        """Whether a timestep of a live stream is waiting for its batch."""
        return any(entry.lease.stream is stream for entry in self._queue) or any(
            entry.block.slots is stream.slots and entry.block.holds(stream.slot) for entry in self._blocks
        )

    async def between(self, act: Callable[[], T]) -> T:
        """Runs `act` between two batches, at once when none is running; gives what it returns or raises.

        Once called it happens, whether or not the caller waits for it.
        """
        if not self._running:
            return act()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

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
        """Runs batches until cancelled. Afterwards nothing waits: what was queued has been refused."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._queue and not self._blocks:
                    self._wake = loop.create_future()
                    await self._wake
                    self._wake = None
                if entries := self._take():
                    await self._run(entries)
                if self._blocks:  # a piece of one block, then it is the others' turn
                    await self._run_piece(self._blocks.popleft())
                # A turn for the network: answers leave, timesteps arrive, and they are the next batch.
                await asyncio.sleep(0)
        finally:
            self._dead = Stopping()
            for entry in self._queue:
                _fail(entry.future, self._dead)
            self._queue.clear()
            for waiting in self._blocks:
                _fail(waiting.future, self._dead)
            self._blocks.clear()
            self._thread.shutdown(wait=False)

    def _take(self) -> list[Entry]:
        """Takes a batch off the queue: at most one timestep of a stream, in the order they came."""
        queue = self._queue
        entries: list[Entry] = []
        later: list[Entry] = []
        taken: set[Stream] = set()
        while queue and len(entries) < self.batch_max:
            entry = queue.popleft()
            if entry.future.done():
                self.metrics.steps["abandoned"] += 1
            elif entry.lease.ended is not None:
                self.metrics.steps["ended"] += 1
                _fail(entry.future, entry.lease.ended)
            elif entry.lease.stream in taken:
                later.append(entry)
            else:
                assert entry.lease.stream.slot >= 0, "a stream was parked with a timestep in the queue"
                taken.add(entry.lease.stream)
                entries.append(entry)
        queue.extendleft(reversed(later))
        return entries

    async def _run(self, entries: list[Entry]) -> None:
        """Runs one batch and settles it."""
        begun = perf_counter()
        try:
            slots = np.array([entry.lease.stream.slot for entry in entries], np.int64)
            steps = np.array([entry.timestep.step for entry in entries], np.int64)
            x = np.frombuffer(b"".join([entry.timestep.values for entry in entries]), "<f4").reshape(len(entries), -1)
            if self._run_seconds < INLINE_SECONDS:
                report = self.engine.run(slots, steps, x)
            else:
                report = await self._in_thread(partial(self.engine.run, slots, steps, x))
            run_seconds = perf_counter() - begun
            self._settle(entries, report, x)
        except BaseException:
            for entry in entries:
                _fail(entry.future, ModelFailed("the server met an unexpected error; see its log"))
            raise
        finally:
            self._between_batches()
        self._run_seconds += RUN_SECONDS_WEIGHT * (run_seconds - self._run_seconds)
        self._measure(entries, report, begun, run_seconds)

    async def _run_piece(self, entry: BlockEntry) -> None:
        """Runs one piece of a block, which goes back to the end of the line, or to its caller when it was the last."""
        block, future = entry.block, entry.future
        if future.done():
            self.metrics.steps["abandoned"] += block.left
            return
        begun = perf_counter()
        try:
            if self._piece_seconds < INLINE_SECONDS:
                verdicts = block.run_piece(self.engine)
            else:
                verdicts = await self._in_thread(partial(block.run_piece, self.engine))
            crash_point("before-answer")
        except BaseException:
            _fail(future, ModelFailed("the server met an unexpected error; see its log"))
            raise
        finally:
            self._between_batches()
        run_seconds = perf_counter() - begun
        self._piece_seconds += RUN_SECONDS_WEIGHT * (run_seconds - self._piece_seconds)
        self.metrics.batch_size.observe(len(verdicts))
        self.metrics.run_seconds.observe(run_seconds)
        self.metrics.queue_seconds.observe(begun - entry.queued_at, len(verdicts))
        self._count(verdicts)
        if block.left:
            entry.queued_at = perf_counter()
            self._blocks.append(entry)
            return
        self.metrics.missing_values += block.missing
        if not future.done():
            future.set_result(block)

    async def _in_thread(self, run: Callable[[], T]) -> T:
        """Runs the engine beside the event loop; what must not happen meanwhile waits in `_between`."""
        self._running = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, run)
        try:
            return await asyncio.shield(running)
        finally:
            if not running.done():  # cancelled: the thread still moves state, so nobody else may touch it yet
                await asyncio.wait([running])

    def _have_run(self) -> None:
        """Wakes the task if it waits."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _between_batches(self) -> None:
        """Does what had to wait for the end of a batch."""
        self._running = False
        while self._between:
            self._between.popleft()()

    def _settle(self, entries: Sequence[Entry], report: Report, x: Floats) -> None:
        """Hands each caller its own answer; one that has gone away loses only its own."""
        crash_point("before-answer")
        steps = report.steps.tolist()
        applied = range(len(entries)) if report.applied is None else report.applied.tolist()
        columns = [(column.tobytes(), column.nbytes // max(1, len(applied))) for column in report.outputs]
        for place, row in enumerate(applied):
            future = entries[row].future
            if not future.done():
                outputs = tuple([packed[place * width : (place + 1) * width] for packed, width in columns])
                future.set_result(Prediction(steps[row], outputs))
        if report.verdicts is not None:
            for row in np.flatnonzero(report.verdicts).tolist():
                self._settle_refused(entries[row], row, Verdict(int(report.verdicts[row])), report, x[row])

    def _settle_refused(self, entry: Entry, row: int, verdict: Verdict, report: Report, x: Floats) -> None:
        """Answers a timestep that the model did not apply."""
        stream, step = entry.lease.stream, int(report.steps[row])
        if entry.future.done():
            return
        if verdict is Verdict.DUPLICATE:
            entry.future.set_result(Prediction(step, stream.slots.answer(stream.slot, step), duplicate=True))
        elif verdict is Verdict.FAILED:
            _fail(entry.future, report.failures[row])
        else:
            _fail(entry.future, self.engine.refusal(verdict, step, stream.step + 1, x))

    def _measure(self, entries: Sequence[Entry], report: Report, begun: float, run_seconds: float) -> None:
        metrics = self.metrics
        metrics.batch_size.observe(len(entries))
        metrics.run_seconds.observe(run_seconds)
        queue = metrics.queue_seconds
        for entry in entries:
            queue.observe(begun - entry.queued_at)
        metrics.missing_values += report.missing
        if report.verdicts is None:
            metrics.steps["ok"] += len(entries)
        else:
            self._count(report.verdicts)

    def _count(self, verdicts: npt.NDArray[np.int8]) -> None:
        for verdict, count in enumerate(np.bincount(verdicts).tolist()):
            self.metrics.steps[OUTCOMES[verdict]] += count


OUTCOMES: dict[int, Outcome] = {
    Verdict.APPLIED: "ok",
    Verdict.DUPLICATE: "duplicate",
    Verdict.GAP: "gap",
    Verdict.NOT_FINITE: "invalid",
    Verdict.FAILED: "failed",
    Verdict.POISONED: "failed",
    Verdict.NOT_HELD: "ended",
}


def _fail(future: asyncio.Future[T], error: TidegateError) -> None:
    if not future.done():
        future.set_exception(error)
