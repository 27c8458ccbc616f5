"""Entries of the batcher's queues: single timesteps, and blocks."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.core.block import Block
from serving.core.engine import RowStatus
from serving.core.errors import ModelFailed, TidegateError
from serving.core.spec import Array, Floats, Ints, Prediction, Timestep
from serving.core.streams import Lease
from serving.runtime.metrics import Outcome

# The outcome under which each status is counted.
OUTCOMES: dict[int, Outcome] = {
    RowStatus.APPLIED: "ok",
    RowStatus.DUPLICATE: "duplicate",
    RowStatus.GAP: "gap",
    RowStatus.NOT_FINITE: "invalid",
    RowStatus.FAILED: "failed",
    RowStatus.POISONED: "failed",
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


def stack_steps(entries: Sequence[QueuedStep]) -> tuple[Ints, Ints, Floats]:
    """The columns of a batch: slots, step numbers, values."""
    slots = np.array([entry.lease.stream.slot for entry in entries], np.int64)
    steps = np.array([entry.timestep.step for entry in entries], np.int64)
    x = np.frombuffer(b"".join([entry.timestep.values for entry in entries]), "<f4").reshape(len(entries), -1)
    return slots, steps, x


def split_rows(column: Array) -> list[bytes]:
    """Splits one output of many rows into packed rows."""
    if not len(column):
        return []
    packed = column.tobytes()
    width = len(packed) // len(column)
    return [packed[begin : begin + width] for begin in range(0, len(packed), width)]


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
