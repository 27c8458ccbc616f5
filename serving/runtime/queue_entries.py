"""Entries of the batcher's queues: single timesteps, and blocks."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.core.block import Block, RowStatuses
from tidegate.core.engine import BatchResult, RowStatus, refusal_error
from tidegate.core.errors import ModelFailed, TidegateError
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import Array, Ints, Prediction, Timestep
from tidegate.core.streams import Lease
from tidegate.runtime.metrics import Counts, Outcome

# The outcome under which each status is counted.
OUTCOMES: dict[int, Outcome] = {
    RowStatus.APPLIED: "ok",
    RowStatus.DUPLICATE: "duplicate",
    RowStatus.GAP: "gap",
    RowStatus.NON_FINITE_VALUE: "invalid",
    RowStatus.FAILED: "failed",
    RowStatus.NON_FINITE_STATE: "failed",
    RowStatus.NOT_HELD: "ended",
    RowStatus.NO_STEP_LEFT: "invalid",
    RowStatus.VALUES_DIFFER: "values_differ",
}


class QueuedStep:
    """A queued timestep and the future of its answer."""

    __slots__ = ("future", "lease", "queued_at", "timestep")

    def __init__(self, lease: Lease, timestep: Timestep, future: asyncio.Future[Prediction], queued_at: float) -> None:
        self.lease = lease
        self.timestep = timestep
        self.future = future
        self.queued_at = queued_at


class QueuedBlock:
    """A queued block and its future."""

    __slots__ = ("block", "future", "queued_at")

    def __init__(self, block: Block, future: asyncio.Future[Block], queued_at: float) -> None:
        self.block = block
        self.future = future
        self.queued_at = queued_at


def take_blocks(blocks: dict[HandleTable, deque[QueuedBlock]], room: int) -> tuple[list[QueuedBlock], int]:
    """Takes the block whose turn it is, and the blocks behind it whose remaining rows all fit into the same batch.

    A call has its next turn after all others have had theirs. Also returns how many rows nobody waits for any more; their
    blocks are dropped.
    """
    taken: list[QueuedBlock] = []
    waiting: list[tuple[HandleTable, deque[QueuedBlock]]] = []
    abandoned = 0
    while room > 0 and blocks:
        call, queue = next(iter(blocks.items()))
        if taken and queue[0].block.rows_left > room:
            break
        del blocks[call]
        entry = queue.popleft()
        if queue:
            waiting.append((call, queue))
        if entry.future.done():
            abandoned += entry.block.rows_left
        else:
            room -= entry.block.rows_left
            taken.append(entry)
    blocks.update(waiting)
    return taken, abandoned


def settle_refused(entry: QueuedStep, row: int, result: BatchResult, values: Array) -> None:
    """Answers a timestep that was not applied. `values` is its row."""
    assert result.statuses is not None
    stream, step, status = entry.lease.stream, int(result.steps[row]), RowStatus(int(result.statuses[row]))
    if entry.future.done():
        return
    if status is RowStatus.DUPLICATE:
        entry.future.set_result(Prediction(step, stream.slots.find_answer(stream.slot, step), duplicate=True))
    elif status is RowStatus.FAILED:
        fail(entry.future, result.failures[row])
    else:
        fail(entry.future, refusal_error(stream.slots, status, step, stream.step + 1, values))


def stack_steps(entries: Sequence[QueuedStep], row_dtype: np.dtype[Any]) -> tuple[Ints, Ints, Array]:
    """The columns of a batch: slots, step numbers, rows."""
    slots = np.array([entry.lease.stream.slot for entry in entries], np.int64)
    steps = np.array([entry.timestep.step for entry in entries], np.int64)
    x = np.frombuffer(b"".join([entry.timestep.values for entry in entries]), row_dtype).reshape(len(entries), -1)
    return slots, steps, x


def count_statuses(counts: Counts[Outcome], statuses: RowStatuses) -> None:
    """Counts timesteps by outcome."""
    for status, count in enumerate(np.bincount(statuses).tolist()):
        if count:
            counts[OUTCOMES[status]] += count


def split_rows(column: Array) -> list[bytes]:
    """Splits one output of many rows into packed rows."""
    if not len(column):
        return []
    packed = column.tobytes()
    width = len(packed) // len(column)
    return [packed[start : start + width] for start in range(0, len(packed), width)]


def unexpected_error() -> ModelFailed:
    """The error that callers get when the server has a bug."""
    return ModelFailed("the server had an unexpected error; see its log")


def fail_all(entries: Sequence[QueuedStep | QueuedBlock], error: TidegateError) -> None:
    """Fails the futures of all entries that are still pending."""
    for entry in entries:
        fail(entry.future, error)


def fail(future: asyncio.Future[Any], error: TidegateError) -> None:
    """Fails a future if it is still pending."""
    if not future.done():
        future.set_exception(error)
