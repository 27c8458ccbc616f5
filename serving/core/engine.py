"""One batch: judge each timestep by its number, then gather, step, scatter.

The engine is the only one that moves state forward. It is plain and synchronous: whoever owns it calls `run`, and when
`run` returns or raises, every row is either one timestep further or exactly as it was.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.core.errors import ModelFailed
from serving.core.model import Model
from serving.core.slots import Slots
from serving.core.spec import Arrays, Floats, Ints


class Verdict(IntEnum):
    """What became of a timestep."""

    APPLIED = 0
    DUPLICATE = 1  # its number was applied before
    GAP = 2  # timesteps are missing before it
    NOT_FINITE = 3  # a value is infinite, or NaN and the model does not handle missing values
    FAILED = 4  # the model raised on this row
    POISONED = 5  # the model made a state that is not finite


class Report(NamedTuple):
    """What became of a batch; columns in the order of its rows."""

    steps: Ints
    """(batch,) the number of each timestep; for those sent without one, the number it was given."""
    verdicts: npt.NDArray[np.int8] | None
    """(batch,) a `Verdict` each; None when all were applied."""
    applied: Ints | None
    """(applied,) the rows that were applied, in order; None when all were."""
    outputs: Arrays
    """One array (applied, *shape) an output."""
    missing: int
    """How many values of the applied timesteps were NaN."""
    failure: ModelFailed | None
    """Why rows are FAILED."""


class Engine:
    """A model and the state of the streams that run under it."""

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model = model
        self.slots = slots

    def __repr__(self) -> str:
        return f"<Engine {self.model!r} {self.slots!r}>"

    def run(self, slots: Ints, steps: Ints, x: Floats) -> Report:
        """Applies one timestep to each of many streams.

        Args:
            slots: (batch,) the streams' rows, each at most once.
            steps: (batch,) the timesteps' numbers, 0 where the server shall number.
            x: (batch, features), NaN where missing.

        Returns:
            What became of each. Rows that were not applied have their state untouched.

        """
        expected = self.slots.step[slots] + 1
        steps = np.where(steps == 0, expected, steps)
        # One dot product is finite unless a value is NaN or infinite, or beyond 1e19; then the rows are looked at.
        clean = np.isfinite(np.vdot(x, x))
        if clean and np.array_equal(steps, expected):
            outputs, poisoned, failure = self._apply(slots, x)
            if failure is None and not poisoned.size:
                return Report(steps, None, None, outputs, 0, None)
            verdicts = np.zeros(len(slots), np.int8)
            rows = np.arange(len(slots))
        else:
            verdicts = np.zeros(len(slots), np.int8)
            verdicts[self.refused_values(x).any(axis=1)] = Verdict.NOT_FINITE
            verdicts[steps > expected] = Verdict.GAP
            verdicts[steps < expected] = Verdict.DUPLICATE
            rows = np.flatnonzero(verdicts == Verdict.APPLIED)
            if not rows.size:
                return Report(steps, verdicts, rows, (), 0, None)
            outputs, poisoned, failure = self._apply(slots[rows], x[rows])
        verdicts[rows[poisoned]] = Verdict.POISONED if failure is None else Verdict.FAILED
        applied = np.flatnonzero(verdicts == Verdict.APPLIED)
        outputs = tuple(np.delete(part, poisoned, axis=0) for part in outputs)
        return Report(steps, verdicts, applied, outputs, int(np.isnan(x[applied]).sum()), failure)

    def refused_values(self, x: Floats) -> npt.NDArray[np.bool_]:
        """Marks the values of x that no timestep may have: infinity, and NaN unless the model handles missing values."""
        return np.isinf(x) if self.model.spec.handles_missing else ~np.isfinite(x)

    def _apply(self, slots: Ints, x: Floats) -> tuple[Arrays, Ints, ModelFailed | None]:
        """Moves rows forward; gives their outputs, the rows that were left as they were, and why if the model raised."""
        try:
            state = self.slots.gather(slots)
            outputs, next_state = self.model.step(x, state)
            poisoned = self.slots.scatter(slots, next_state, outputs)
        except ModelFailed as failure:
            # Nothing was written yet. One row may be at fault, and it must not harm the others.
            return self._apply_apart(slots, x, failure)
        return outputs, poisoned, None

    def _apply_apart(self, slots: Ints, x: Floats, failure: ModelFailed) -> tuple[Arrays, Ints, ModelFailed]:
        """Runs each row alone, after the model raised on all of them together."""
        outputs = tuple(np.zeros((len(slots), *output.shape), output.dtype) for output in self.model.spec.outputs)
        left = []
        for row in range(len(slots)):
            one = slice(row, row + 1)
            try:
                state = self.slots.gather(slots[one])
                alone, next_state = self.model.step(x[one], state)
            except ModelFailed as error:
                failure = error
                left.append(row)
                continue
            left.extend([row] * self.slots.scatter(slots[one], next_state, alone).size)
            for part, value in zip(outputs, alone, strict=True):
                part[row] = value[0]
        return outputs, np.array(left, np.int64), failure
