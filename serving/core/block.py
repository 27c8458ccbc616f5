"""A block: timesteps of many streams in columns, on their way through the engine, a piece at a time.

Rows of one stream are applied in the order they stand, each in another piece, so that a piece is a batch like any other:
the same bits as one at a time.
"""

import numpy as np
import numpy.typing as npt

from serving.core.engine import Engine, Verdict, refusal
from serving.core.errors import ModelFailed, TimestepRefused
from serving.core.handles import Selection
from serving.core.spec import Array, Floats, Ints
from serving.core.value_hash import Hashes

# Rows of a piece: a slice of the block where they stand in a row, as they mostly do.
Piece = slice | Ints


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

    def run_piece(self, engine: Engine, rows_max: int) -> npt.NDArray[np.int8]:
        """Runs the next rows, at most so many; gives the verdicts on them (rows,). Only while some are `left`."""
        if self.left == len(self):
            self._hashes = engine.hashes(self.x)
        piece = self._take_piece(rows_max)
        handles = self.handles[piece]
        held = self.held.held(handles, self.slots)
        if held.all():
            self._run(engine, piece, handles)
        else:
            self.clean = False
            rows = np.arange(len(self))[piece]
            self.verdicts[rows[~held]] = Verdict.NOT_HELD
            if held.any():
                self._run(engine, rows[held], handles[held])
        return self.verdicts[piece]

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

    def _run(self, engine: Engine, piece: Piece, handles: Ints) -> None:
        slots = self.held.slots(handles)
        sent = self.steps[piece]
        hashes = None if self._hashes is None else self._hashes[piece]
        report = engine.run(slots, sent, self.x[piece], hashes)
        if report.steps is not sent:  # as they mostly are, and then the client's own are told again
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
        self._repeat(rows, slots)
        refused = np.flatnonzero(report.verdicts > Verdict.DUPLICATE)
        self._expected[rows[refused]] = self.slots.step[slots[refused]] + 1
        for place, why in report.failures.items():
            self._failures[int(rows[place])] = why

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
