"""One batch: judge each timestep by its number, then gather, step, scatter.

The engine is the only one that moves state forward. It is plain and synchronous: whoever owns it calls `run`, and when
`run` returns or raises, every row is either one timestep further or exactly as it was.

A timestep that comes alone takes a shorter way, `run_alone`, as long as nothing is special about it.
"""

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.core.errors import ModelFailed, NoStepLeft, NotFinite, StepGap, TimestepRefused, ValuesDiffer
from serving.core.model import Model
from serving.core.slots import Slots
from serving.core.spec import STEP_MAX, Arrays, Floats, Ints, Prediction, Spec, Timestep
from serving.core.value_hash import Hashes, value_hash

NO_FAILURES: Mapping[int, ModelFailed] = {}


class Verdict(IntEnum):
    """What became of a timestep."""

    APPLIED = 0
    DUPLICATE = 1  # its number was applied before
    GAP = 2  # timesteps are missing before it
    NOT_FINITE = 3  # a value is infinite, or NaN and the model does not handle missing values
    FAILED = 4  # the model raised on this row
    POISONED = 5  # the model made a state that is not finite
    NOT_HELD = 6  # the stream no longer belongs to the call that sent it; never from `Engine.run`
    NO_STEP_LEFT = 7  # the stream has had the last number that there is
    VALUES_DIFFER = 8  # its number was applied before, with other values


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
    failures: Mapping[int, ModelFailed]
    """Why each row that is FAILED is."""


class Engine:
    """A model and the state of the streams that run under it."""

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model = model
        self.slots = slots
        self._hash = value_hash(len(model.spec.features))

    def __repr__(self) -> str:
        return f"<Engine {self.model!r} {self.slots!r}>"

    def hashes(self, x: Floats) -> Hashes | None:
        """The hash of each row of x (rows, features), None unless all values are finite: for `run`, of many batches at once.

        A batch of 256 rows takes 10 us for it after a model has run, and 1,024 rows hardly longer.
        """
        # A dot product is finite unless a value is not, or is beyond 1e19; then each batch is looked at.
        return self._hash.rows(x, finite=True) if math.isfinite(np.vdot(x, x)) else None

    def run(self, slots: Ints, steps: Ints, x: Floats, hashes: Hashes | None = None) -> Report:
        """Applies one timestep to each of many streams.

        Args:
            slots: (batch,) the streams' rows, each at most once.
            steps: (batch,) the timesteps' numbers, 0 where the server shall number.
            x: (batch, features), NaN where missing.
            hashes: (batch,) what `hashes` gave for x, if it was asked.

        Returns:
            What became of each. Rows that were not applied have their state untouched.

        """
        expected = self.slots.step[slots] + 1
        in_order = (
            steps.tobytes() == expected.tobytes()
        )  # so they mostly come, and to compare bytes costs next to nothing
        if not in_order:
            steps = np.where(steps == 0, expected, steps)
            # Only a timestep without a number comes to one beyond the last: one that has it was refused at the door.
            in_order = np.array_equal(steps, expected) and bool(steps.max() <= STEP_MAX)
        if in_order and hashes is None:
            hashes = self.hashes(x)
        if in_order and hashes is not None:
            outputs, poisoned, failures = self._apply(slots, x, hashes)
            if not failures and not poisoned.size:
                return Report(steps, None, None, outputs, 0, NO_FAILURES)
            verdicts = np.zeros(len(slots), np.int8)
            rows = np.arange(len(slots))
        else:
            verdicts = np.zeros(len(slots), np.int8)
            verdicts[refused_values(self.model.spec, x).any(axis=1)] = Verdict.NOT_FINITE
            verdicts[steps > expected] = Verdict.GAP
            self._judge_repeats(verdicts, np.flatnonzero(steps < expected), slots, steps, x)
            verdicts[steps > STEP_MAX] = Verdict.NO_STEP_LEFT
            rows = np.flatnonzero(verdicts == Verdict.APPLIED)
            if not rows.size:
                return Report(steps, verdicts, rows, (), 0, NO_FAILURES)
            outputs, poisoned, failures = self._apply(slots[rows], x[rows], self._hash.rows(x[rows]))
        verdicts[rows[poisoned]] = Verdict.POISONED
        failed = np.array(sorted(failures), np.int64)
        verdicts[rows[failed]] = Verdict.FAILED
        applied = np.flatnonzero(verdicts == Verdict.APPLIED)
        outputs = tuple(np.delete(part, np.union1d(poisoned, failed), axis=0) for part in outputs)
        missing = int(np.isnan(x[applied]).sum())
        return Report(
            steps, verdicts, applied, outputs, missing, {int(rows[row]): why for row, why in failures.items()}
        )

    def run_alone(self, slot: int, timestep: Timestep) -> Prediction | None:
        """Applies one timestep to one stream, if nothing is special about it; else gives None, and `run` tells what is.

        What it does is what `run` does to a batch of one, bit for bit, at a third of the price. Special is what is not
        next in order, or not finite, or fails: then the state is untouched.
        """
        row = self.model.row
        step = self.slots.gather_row(slot, row.state) + 1
        if timestep.step not in (0, step) or step > STEP_MAX or not row.take(timestep.values):
            return None
        try:
            healthy = row.run()
        except Exception:  # noqa: BLE001 - `run` meets it again, and has the words for it
            return None
        if not healthy:
            return None
        self.slots.scatter_row(slot, row.next_state, row.outputs, self._hash.row(timestep.values))
        return Prediction(step, tuple([bytes(part) for part in row.outputs]))

    def _judge_repeats(self, verdicts: npt.NDArray[np.int8], rows: Ints, slots: Ints, steps: Ints, x: Floats) -> None:
        """Judges the rows whose numbers were applied before: a repeat has the values that were applied."""
        differ = self.slots.differ(slots[rows], steps[rows], self._hash.rows(x[rows]))
        verdicts[rows] = np.where(differ, Verdict.VALUES_DIFFER, Verdict.DUPLICATE)

    def _apply(self, slots: Ints, x: Floats, hashes: Hashes) -> tuple[Arrays, Ints, Mapping[int, ModelFailed]]:
        """Moves rows forward; gives their outputs, and the rows left as they were: those poisoned, and why others failed."""
        try:
            state = self.slots.gather(slots, self.model.room(len(slots)))
            outputs, next_state = self.model.step(x, state)
            poisoned = self.slots.scatter(slots, next_state, outputs, hashes)
        except ModelFailed:
            # Nothing was written yet. One row may be at fault, and it must not harm the others.
            return self._apply_apart(slots, x)
        return outputs, poisoned, NO_FAILURES

    def _apply_apart(self, slots: Ints, x: Floats) -> tuple[Arrays, Ints, Mapping[int, ModelFailed]]:
        """Runs each row alone, after the model raised on all of them together."""
        outputs = tuple(np.zeros((len(slots), *output.shape), output.dtype) for output in self.model.spec.outputs)
        poisoned: list[int] = []
        failures: dict[int, ModelFailed] = {}
        for row in range(len(slots)):
            one = slice(row, row + 1)
            try:
                state = self.slots.gather(slots[one])
                alone, next_state = self.model.step(x[one], state)
            except ModelFailed as error:
                failures[row] = error
                continue
            poisoned.extend([row] * self.slots.scatter(slots[one], next_state, alone, self._hash.rows(x[one])).size)
            for part, value in zip(outputs, alone, strict=True):
                part[row] = value[0]
        return outputs, np.array(poisoned, np.int64), failures


def refused_values(spec: Spec, x: Floats) -> npt.NDArray[np.bool_]:
    """Marks the values of x that no timestep may have: infinity, and NaN unless the model handles missing values."""
    return np.isinf(x) if spec.handles_missing else ~np.isfinite(x)


def refusal(spec: Spec, verdict: int, step: int, next_step: int, x: Floats) -> TimestepRefused:
    """Why a timestep (features,) was refused as GAP, NOT_FINITE, POISONED, NO_STEP_LEFT or VALUES_DIFFER."""
    if verdict == Verdict.GAP:
        return StepGap(step, next_step)
    if verdict == Verdict.NOT_FINITE:
        column = int(np.flatnonzero(refused_values(spec, x))[0])
        return NotFinite(spec.features[column].name, float(x[column]), spec.title)
    if verdict == Verdict.NO_STEP_LEFT:
        return NoStepLeft(STEP_MAX)
    if verdict == Verdict.VALUES_DIFFER:
        return ValuesDiffer(step)
    assert verdict == Verdict.POISONED
    return ModelFailed(f"model {spec.title} made a state that is not finite; the timestep was not applied")
