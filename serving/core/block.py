"""A block: timesteps of many streams in columns. The engine runs it in chunks.

Rows of one stream run in the order of the block, each in another chunk. So a chunk is a batch like any other, and its
results are the same bits as those of one timestep at a time.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.core.engine import BatchResult, Engine, RowStatus, refusal_error
from tidegate.core.errors import ModelFailed, TimestepRefused
from tidegate.core.handle_table import Selection
from tidegate.core.input_layout import InputLayout
from tidegate.core.masks import Mask, all_true
from tidegate.core.spec import Array, Ints
from tidegate.core.value_hash import Hashes

# Which rows of a block: a slice where the rows are contiguous, which is the usual case, else their numbers.
RowIndex = slice | Ints
RowStatuses = npt.NDArray[np.int8]


class Chunk(NamedTuple):
    """The next rows of a block, ready to run."""

    rows: RowIndex
    """The rows that were taken from the block."""
    live_rows: RowIndex
    """Those of `rows` whose streams are live. Only these run; the columns below belong to them."""
    slots: Ints
    steps: Ints
    x: Array
    hashes: Hashes | None


class Block:
    """Timesteps of streams that one call holds, and their results.

    Args:
        streams: (rows,) the stream of each row.
        steps: (rows,) the number of each timestep; 0 where the server assigns it.
        x: the rows, as `core.input_layout` says; NaN where a value is missing.

    Attributes:
        steps: (rows,) the numbers, including those that the server assigned.
        all_applied: whether every row that has run was applied.
        statuses: (rows,) a `RowStatus` each.
        outputs: one array (rows, *shape) for each output; zero for rows without an answer.
        missing: how many values of the applied timesteps were NaN.
        rows_left: how many rows have not run.

    """

    def __init__(self, streams: Selection, steps: Ints, x: Array) -> None:
        self.streams = streams
        self.table, self.handles, self.slots, self._order, self._pass_ends = streams
        handles = self.handles
        self.x = x
        self.steps = self._sent_steps = steps
        self.all_applied = True
        self.statuses = np.zeros(len(handles), np.int8)
        self.outputs: tuple[Array, ...] = tuple(
            np.zeros((len(handles), *output.shape), output.dtype) for output in self.slots.spec.outputs
        )
        self.missing = 0
        self.rows_left = len(handles)
        self._hashes: Hashes | None = None  # of x; None until the first chunk, and when values are missing
        self._pass = 0  # the index in `_pass_ends` of the pass that runs now
        self._failures: dict[int, ModelFailed] = {}

    def __repr__(self) -> str:
        return f"<Block of {len(self)} rows, {self.rows_left} not run>"

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.handles)

    @cached_property
    def forgotten(self) -> Mask:
        """(rows,) duplicates whose answers are no longer remembered. Made when it is first needed: rarely."""
        return np.zeros(len(self), np.bool_)

    @cached_property
    def _expected(self) -> Ints:
        """(rows,) the number that the stream of a refused row expected.

        It is for `refusal_error`, which builds a message only when it is asked: thousands of messages would block the loop.
        """
        return np.zeros(len(self), np.int64)

    @property
    def all_live(self) -> bool:
        """Whether every stream is live and held by the call."""
        return all_true(self.streams.live_mask())

    @property
    def not_live(self) -> Ints:
        """The handles of the rows whose streams are not."""
        return self.handles[~self.streams.live_mask()]

    @property
    def draining(self) -> bool:
        """Whether streams of its version are to move to another one, and the client of some of them accepts that."""
        return self.slots.draining and self.table.accept_moves(self.handles)

    @property
    def pieces(self) -> Sequence["Block"]:
        """The blocks that run: this one."""
        return (self,)

    def report_durable(self) -> Ints:
        """The durable step of each row's stream, which counts as reported from now on."""
        return self.table.report_durable(self.handles, self.slots)

    def contains_slot(self, slot: int) -> bool:
        """Whether a row belongs to the stream in that slot."""
        return bool((self.table.slots_of(self.handles) == slot).any())

    def next_chunk(self, engine: Engine, rows_max: int) -> "Chunk":
        """Takes at most `rows_max` rows to run now.

        Give their result to `apply_result`. Only while `rows_left` is not 0.
        """
        if self.rows_left == len(self):
            self._hashes = engine.hash_rows(self.x)
        rows = live_rows = self._next_rows(rows_max)
        slots, is_live = self.table.live_slots(self.handles[rows], self.slots)
        if not all_true(is_live):
            self.all_applied = False
            indices = np.arange(len(self))[rows]
            self.statuses[indices[~is_live]] = RowStatus.NOT_HELD
            live_rows, slots = indices[is_live], slots[is_live]
        hashes = None if self._hashes is None else self._hashes[live_rows]
        return Chunk(rows, live_rows, slots, self.steps[live_rows], self.x[live_rows], hashes)

    def apply_result(self, chunk: "Chunk", result: BatchResult) -> None:
        """Stores the result of a chunk that has just run."""
        live_rows = chunk.live_rows
        if result.steps is not chunk.steps:  # usually they are the same, and the client gets its own numbers back
            if self.steps is self._sent_steps:
                self.steps = self.steps.copy()
            self.steps[live_rows] = result.steps
        self.missing += result.missing
        if result.statuses is None or result.applied is None:
            for output, values in zip(self.outputs, result.outputs, strict=True):
                output[live_rows] = values
            return
        self.all_applied = False
        rows = np.arange(len(self))[live_rows]
        self.statuses[rows] = result.statuses
        if result.applied.size:
            for output, values in zip(self.outputs, result.outputs, strict=True):
                output[rows[result.applied]] = values
        self._answer_duplicates(rows, chunk.slots)
        refused = np.flatnonzero(result.statuses > RowStatus.DUPLICATE)
        self._expected[rows[refused]] = self.slots.step[chunk.slots[refused]] + 1
        for index, error in result.failures.items():
            self._failures[int(rows[index])] = error

    def refuse_all(self) -> "Block":
        """Refuses every row: the call holds none of the streams any more, and their model is not loaded."""
        self.all_applied = False
        self.statuses[:] = RowStatus.NOT_HELD
        self.rows_left = 0
        return self

    def refusal_error(self, row: int) -> TimestepRefused:
        """The error for a row that the engine refused."""
        return self._failures.get(row) or refusal_error(
            self.slots, int(self.statuses[row]), int(self.steps[row]), int(self._expected[row]), self.x[row]
        )

    def next_steps(self, rows: Ints) -> Ints:
        """The number that each row's stream expects now; the row's own number where the stream is not live."""
        handles = self.handles[rows]
        next_steps = self.slots.step[self.table.slots_of(handles)] + 1
        return np.where(self.table.live_mask(handles, self.slots), next_steps, self.steps[rows])

    def _next_rows(self, rows_max: int) -> RowIndex:
        """The next rows: at most `rows_max`, all of the same pass."""
        assert self.rows_left
        assert rows_max > 0
        first = len(self) - self.rows_left
        end = min(first + rows_max, self._pass_ends[self._pass])
        self._pass += end == self._pass_ends[self._pass]
        self.rows_left = len(self) - end
        return slice(first, end) if self._order is None else self._order[first:end]

    def _answer_duplicates(self, rows: Ints, slots: Ints) -> None:
        """Answers the duplicates among rows that have just run, while their answers are still in the ring."""
        indices = np.flatnonzero(self.statuses[rows] == RowStatus.DUPLICATE)
        if not indices.size:
            return
        duplicates = rows[indices]
        found, answers = self.slots.find_answers(slots[indices], self.steps[duplicates])
        self.forgotten[duplicates] = ~found
        for output, values in zip(self.outputs, answers, strict=True):
            output[duplicates] = values


def run_blocks(engine: Engine, blocks: Sequence[Block], rows_max: int) -> list[RowStatuses]:
    """Runs the next rows of several blocks as one batch, at most `rows_max` in all.

    Returns the statuses of each block's rows, (rows,).

    The blocks belong to different calls, so no live stream is in two of them. Every block but the first must fit into
    the room that the blocks before it leave.
    """
    chunk: list[Chunk] = []
    for block in blocks:
        chunk.append(block.next_chunk(engine, rows_max))
        rows_max -= len(chunk[-1].steps)
    layout = engine.layout
    running = [(block, chunk_part) for block, chunk_part in zip(blocks, chunk, strict=True) if chunk_part.slots.size]
    if len(running) == 1:
        ((block, chunk_part),) = running
        block.apply_result(chunk_part, engine.run(chunk_part.slots, chunk_part.steps, chunk_part.x, chunk_part.hashes))
    elif running:
        chunks = [chunk_part for _, chunk_part in running]
        slots, steps, x = (
            np.concatenate(column) for column in zip(*(chunk_part[2:5] for chunk_part in chunks), strict=True)
        )
        found = [chunk_part.hashes for chunk_part in chunks if chunk_part.hashes is not None]
        hashes = np.concatenate(found) if len(found) == len(chunks) else None
        result = engine.run(slots, steps, x, hashes)
        start = 0
        for block, chunk_part in running:
            block.apply_result(
                chunk_part, _slice_result(result, start, start + chunk_part.slots.size, chunk_part.x, layout)
            )
            start += chunk_part.slots.size
    return [block.statuses[chunk_part.rows] for block, chunk_part in zip(blocks, chunk, strict=True)]


def _slice_result(result: BatchResult, start: int, end: int, x: Array, layout: InputLayout) -> BatchResult:
    """The part of a batch result that belongs to the rows from `begin` to `end`, whose values are x."""
    steps = result.steps[start:end]
    if result.statuses is None or result.applied is None:
        return BatchResult(
            steps, None, None, tuple(chunk_part[start:end] for chunk_part in result.outputs), 0, result.failures
        )
    first, last = np.searchsorted(result.applied, (start, end)).tolist()
    applied = result.applied[first:last] - start
    outputs = tuple(chunk_part[first:last] for chunk_part in result.outputs)
    failures = {row - start: why for row, why in result.failures.items() if start <= row < end}
    return BatchResult(steps, result.statuses[start:end], applied, outputs, layout.missing(x[applied]), failures)
