"""A block: timesteps of many streams in columns, on their way through the engine, a piece at a time.

Rows of one stream are applied in the order they stand, each in another piece, so that a piece is a batch like any other:
the same bits as one at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.core.engine import Engine, Report, Verdict, refusal
from serving.core.errors import ModelFailed, TimestepRefused
from serving.core.handles import Selection
from serving.core.spec import Array, Floats, Ints
from serving.core.value_hash import Hashes

# Rows of a piece: a slice of the block where they stand in a row, as they mostly do.
Piece = slice | Ints
Verdicts = npt.NDArray[np.int8]


class Taken(NamedTuple):
    """Rows of a block that are being run."""

    piece: Piece
    """The rows that were taken off the block."""
    rows: Piece
    """Those of them whose streams are live: these are run. What follows is theirs."""
    slots: Ints
    steps: Ints
    x: Floats
    hashes: Hashes | None


class Block:
    """Timesteps of streams that one call holds, and what became of them.

    Args:
        streams: (rows,) whose each timestep is.
        steps: (rows,) their numbers, 0 where the server shall number.
        x: (rows, features), NaN where missing.

    Attributes:
        steps: the numbers, also those that the server gave.
        clean: whether all that was run so far was applied.
        verdicts: (rows,) a `Verdict` each.
        outputs: one array (rows, *shape) an output; zero for rows without an answer.
        forgotten: (rows,) duplicates whose answers are no longer remembered.
        missing: how many values of the timesteps that were applied so far were NaN.
        left: how many rows have not been run.

    """

    def __init__(self, streams: Selection, steps: Ints, x: Floats) -> None:
        self.streams = streams
        self.held, self.handles, self.slots, self._order, self._ends = streams
        handles = self.handles
        self.x = x
        self.steps = self._sent = steps
        self.clean = True
        self.verdicts = np.zeros(len(handles), np.int8)
        self.outputs: tuple[Array, ...] = tuple(
            np.zeros((len(handles), *output.shape), output.dtype) for output in self.slots.spec.outputs
        )
        self.forgotten = np.zeros(len(handles), np.bool_)
        self.missing = 0
        self.left = len(handles)
        self._hashes: Hashes | None = None  # of x, from the first piece on, unless values are missing
        self._turn = 0  # the place in `_ends` up to which rows may be run now
        # What `refusal` is made of, once somebody asks: a sentence for each of thousands of rows would hold up all others.
        self._expected: Ints = np.zeros(len(handles), np.int64)
        self._failures: dict[int, ModelFailed] = {}

    def __repr__(self) -> str:
        return f"<Block of {len(self)} rows, {self.left} left>"

    def __len__(self) -> int:
        """How many rows it has."""
        return len(self.handles)

    def holds(self, slot: int) -> bool:
        """Whether a timestep of the stream in that row is among them."""
        return bool((self.held.slots(self.handles) == slot).any())

    def take(self, engine: Engine, rows_max: int) -> "Taken":
        """Takes the next rows, at most so many, to be run at once; `settle` gets what became of them. Only while some are `left`."""
        if self.left == len(self):
            self._hashes = engine.hashes(self.x)
        piece = rows = self._take_piece(rows_max)
        handles = self.handles[piece]
        held = self.held.held(handles, self.slots)
        if not held.all():
            self.clean = False
            places = np.arange(len(self))[piece]
            self.verdicts[places[~held]] = Verdict.NOT_HELD
            rows, handles = places[held], handles[held]
        hashes = None if self._hashes is None else self._hashes[rows]
        return Taken(piece, rows, self.held.slots(handles), self.steps[rows], self.x[rows], hashes)

    def settle(self, taken: "Taken", report: Report) -> None:
        """Takes note of what became of rows, as soon as they have run."""
        piece = taken.rows
        if report.steps is not taken.steps:  # as they mostly are, and then the client's own are told again
            if self.steps is self._sent:
                self.steps = self.steps.copy()
            self.steps[piece] = report.steps
        self.missing += report.missing
        if report.verdicts is None or report.applied is None:
            for mine, part in zip(self.outputs, report.outputs, strict=True):
                mine[piece] = part
            return
        self.clean = False
        rows = np.arange(len(self))[piece]
        self.verdicts[rows] = report.verdicts
        if report.applied.size:
            for mine, part in zip(self.outputs, report.outputs, strict=True):
                mine[rows[report.applied]] = part
        self._repeat(rows, taken.slots)
        refused = np.flatnonzero(report.verdicts > Verdict.DUPLICATE)
        self._expected[rows[refused]] = self.slots.step[taken.slots[refused]] + 1
        for place, why in report.failures.items():
            self._failures[int(rows[place])] = why

    def refusal(self, row: int) -> TimestepRefused:
        """Why the engine refused a row."""
        return self._failures.get(row) or refusal(
            self.slots.spec, int(self.verdicts[row]), int(self.steps[row]), int(self._expected[row]), self.x[row]
        )

    def next_steps(self, rows: Ints) -> Ints:
        """What the streams of rows expect next, as of now; a row's own number when that is not known."""
        handles = self.handles[rows]
        following = self.slots.step[self.held.slots(handles)] + 1
        return np.where(self.held.held(handles, self.slots), following, self.steps[rows])

    def _take_piece(self, rows_max: int) -> Piece:
        """The next rows: so many, or what is left of those that may go together."""
        assert self.left
        assert rows_max > 0
        first = len(self) - self.left
        end = min(first + rows_max, self._ends[self._turn])
        self._turn += end == self._ends[self._turn]
        self.left = len(self) - end
        return slice(first, end) if self._order is None else self._order[first:end]

    def _repeat(self, rows: Ints, slots: Ints) -> None:
        """Answers the duplicates among rows that have just been run: now their answers are still in the ring."""
        places = np.flatnonzero(self.verdicts[rows] == Verdict.DUPLICATE)
        if not places.size:
            return
        again = rows[places]
        known, answers = self.slots.remembered(slots[places], self.steps[again])
        self.forgotten[again] = ~known
        for mine, part in zip(self.outputs, answers, strict=True):
            mine[again] = part


def run_together(engine: Engine, blocks: Sequence[Block], rows_max: int) -> list[Verdicts]:
    """Runs the next rows of blocks, at most so many of all together, as one batch; gives the verdicts on those of each (rows,).

    The blocks are of different calls, so no live stream is in two of them. All but the first are to have as many rows left as there
    is room for at most.
    """
    taken: list[Taken] = []
    for block in blocks:
        taken.append(block.take(engine, rows_max))
        rows_max -= len(taken[-1].steps)
    running = [(block, part) for block, part in zip(blocks, taken, strict=True) if part.slots.size]
    if len(running) == 1:
        ((block, part),) = running
        block.settle(part, engine.run(part.slots, part.steps, part.x, part.hashes))
    elif running:
        parts = [part for _, part in running]
        slots, steps, x = (np.concatenate(column) for column in zip(*(part[2:5] for part in parts), strict=True))
        known = [part.hashes for part in parts if part.hashes is not None]
        hashes = np.concatenate(known) if len(known) == len(parts) else None
        report = engine.run(slots, steps, x, hashes)
        begin = 0
        for block, part in running:
            block.settle(part, _part_of(report, begin, begin + part.slots.size, part.x))
            begin += part.slots.size
    return [block.verdicts[part.piece] for block, part in zip(blocks, taken, strict=True)]


def _part_of(report: Report, begin: int, end: int, x: Floats) -> Report:
    """What became of some rows of a batch, whose values are x."""
    steps = report.steps[begin:end]
    if report.verdicts is None or report.applied is None:
        return Report(steps, None, None, tuple(part[begin:end] for part in report.outputs), 0, report.failures)
    first, last = np.searchsorted(report.applied, (begin, end)).tolist()
    applied = report.applied[first:last] - begin
    outputs = tuple(part[first:last] for part in report.outputs)
    failures = {row - begin: why for row, why in report.failures.items() if begin <= row < end}
    return Report(steps, report.verdicts[begin:end], applied, outputs, int(np.isnan(x[applied]).sum()), failures)
