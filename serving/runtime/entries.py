"""What waits for a batch, and for whom: timesteps, and blocks of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.core.block import Block
from serving.core.engine import Verdict
from serving.core.errors import ModelFailed, TidegateError
from serving.core.spec import Array, Floats, Ints, Prediction, Timestep
from serving.core.streams import Lease
from serving.runtime.metrics import Outcome

# What a timestep counts as, by what became of it.
OUTCOMES: dict[int, Outcome] = {
    Verdict.APPLIED: "ok",
    Verdict.DUPLICATE: "duplicate",
    Verdict.GAP: "gap",
    Verdict.NOT_FINITE: "invalid",
    Verdict.FAILED: "failed",
    Verdict.POISONED: "failed",
    Verdict.NOT_HELD: "ended",
    Verdict.NO_STEP_LEFT: "invalid",
    Verdict.VALUES_DIFFER: "values_differ",
}


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


def columns_of(entries: Sequence[Entry]) -> tuple[Ints, Ints, Floats]:
    """A batch as the engine wants it: slots, numbers, values."""
    slots = np.array([entry.lease.stream.slot for entry in entries], np.int64)
    steps = np.array([entry.timestep.step for entry in entries], np.int64)
    x = np.frombuffer(b"".join([entry.timestep.values for entry in entries]), "<f4").reshape(len(entries), -1)
    return slots, steps, x


def cut(column: Array) -> list[bytes]:
    """One output of many rows, packed row by row."""
    if not len(column):
        return []
    packed = column.tobytes()
    width = len(packed) // len(column)
    return [packed[begin : begin + width] for begin in range(0, len(packed), width)]


def unexpected() -> ModelFailed:
    """What callers are told of a bug of ours."""
    return ModelFailed("the server met an unexpected error; see its log")


def fail_all(entries: Sequence[Entry | BlockEntry], error: TidegateError) -> None:
    """Ends the waiting of all that still wait."""
    for entry in entries:
        fail(entry.future, error)


def fail(future: asyncio.Future[Any], error: TidegateError) -> None:
    """Ends the waiting for an answer, unless nobody waits any longer."""
    if not future.done():
        future.set_exception(error)
