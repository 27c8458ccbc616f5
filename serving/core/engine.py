"""One batch: check the number of each timestep, then gather, step, scatter.

Only the engine advances state. It is plain and synchronous: its owner calls `run`. When `run` returns or raises, every
row is either one timestep further or exactly as before.

A single timestep takes a shorter path, `run_one`, unless it needs special treatment.
"""

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.core.errors import ModelFailed, NoStepLeft, NotFinite, RunEnded, StepGap, TimestepRefused, ValuesDiffer
from tidegate.core.model import Model
from tidegate.core.shadow import Tap
from tidegate.core.slots import Slots
from tidegate.core.spec import STEP_MAX, Array, Arrays, Ints, Prediction, Timestep
from tidegate.core.value_hash import Hashes, value_hash

# How many rows of a batch may run until they are ended. The rows behind them fail without a run: else a batch would take
# as long as all of its rows are allowed together.
ENDED_RUNS_MAX = 2
NO_FAILURES: Mapping[int, ModelFailed] = {}
# Rows are hashed as words of 32 bits.
WORD_BYTES = 4


class RowStatus(IntEnum):
    """The outcome of a timestep."""

    APPLIED = 0
    DUPLICATE = 1  # its number was applied before, with the same values
    GAP = 2  # timesteps are missing before it
    NON_FINITE_VALUE = 3  # a value is infinite, or NaN and the model does not handle missing values
    FAILED = 4  # the model raised on this row
    NON_FINITE_STATE = 5  # the model produced a state that is not finite
    NOT_HELD = 6  # the call no longer holds the stream; set by `Block`, never by `Engine.run`
    NO_STEP_LEFT = 7  # the stream has used the last possible number
    VALUES_DIFFER = 8  # its number was applied before, with other values


class BatchResult(NamedTuple):
    """The outcome of a batch, in columns in the order of its rows."""

    steps: Ints
    """(batch,) the number of each timestep; where the client sent none, the number that the server assigned."""
    statuses: npt.NDArray[np.int8] | None
    """(batch,) a `RowStatus` each; None when all rows were applied."""
    applied: Ints | None
    """(applied,) the rows that were applied, in order; None when all were."""
    outputs: Arrays
    """One array (applied, *shape) for each output."""
    missing: int
    """How many values of the applied timesteps were NaN."""
    failures: Mapping[int, ModelFailed]
    """The error of each row that is FAILED."""


class Engine:
    """A model and the state of its live streams."""

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model = model
        self.slots = slots
        self.layout = slots.layout
        # The rows and outputs of the last batch, for whoever samples them. One assignment is all that a batch pays.
        self.latest: tuple[Array, Arrays] | None = None
        self.latest_one: tuple[bytes, tuple[bytes, ...]] | None = None
        self._hash = value_hash(self.layout.row_bytes // WORD_BYTES)
        self.tap: Tap | None = None  # gets what was applied, for a shadow

    def __repr__(self) -> str:
        return f"<Engine {self.model!r} {self.slots!r}>"

    def hash_rows(self, x: Array) -> Hashes | None:
        """Hashes each row of x. Returns None unless all values are finite.

        `run` accepts a part of the result. To hash a long block at once is cheaper: 256 rows take 10 us after a model
        has run, and 1,024 rows hardly more.
        """
        # The dot product is finite unless a value is not finite, or is beyond 1e19. Then `run` checks each batch.
        finite = math.isfinite(np.vdot(x, x)) if self.layout.plain else self.layout.finite(x)
        return self._hash.rows(x, finite=True) if finite else None

    def _hash_any(self, x: Array) -> Hashes:
        """Hashes each row of x, which may have NaN."""
        return self._hash.rows(x) if self.layout.plain else self._hash.rows(self.layout.canonical(x), finite=True)

    def run(self, slots: Ints, steps: Ints, x: Array, hashes: Hashes | None = None) -> BatchResult:
        """Applies one timestep to each of many streams.

        Args:
            slots: (batch,) the slots of the streams, each at most once.
            steps: (batch,) the numbers of the timesteps; 0 where the server assigns them.
            x: the rows of the batch, as `core.input_layout` says; NaN where a value is missing.
            hashes: (batch,) the rows' part of what `hash_rows` returned; None if it was not called.

        Returns:
            The outcome of each row. A row that was not applied keeps its state.

        """
        expected = self.slots.step[slots] + 1
        in_order = steps.tobytes() == expected.tobytes()  # the usual case, and comparing bytes costs next to nothing
        if not in_order:
            steps = np.where(steps == 0, expected, steps)
            # Only a timestep without a number can get a number beyond the last: others were refused when they were
            # decoded.
            in_order = np.array_equal(steps, expected) and bool(steps.max() <= STEP_MAX)
        if in_order and hashes is None:
            hashes = self.hash_rows(x)
        if in_order and hashes is not None:
            outputs, non_finite, failures = self._apply(slots, x, hashes)
            if not failures and not non_finite.size:
                self.latest = x, outputs
                if self.tap is not None:
                    self.tap.offer(slots, x, outputs)
                return BatchResult(steps, None, None, outputs, 0, NO_FAILURES)
            statuses = np.zeros(len(slots), np.int8)
            rows = np.arange(len(slots))
        else:
            statuses = np.zeros(len(slots), np.int8)
            invalid = self.layout.invalid(x, missing_allowed=self.model.spec.handles_missing)
            statuses[invalid] = RowStatus.NON_FINITE_VALUE
            statuses[steps > expected] = RowStatus.GAP
            self._check_repeats(statuses, np.flatnonzero(steps < expected), slots, steps, x)
            statuses[steps > STEP_MAX] = RowStatus.NO_STEP_LEFT
            rows = np.flatnonzero(statuses == RowStatus.APPLIED)
            if not rows.size:
                return BatchResult(steps, statuses, rows, (), 0, NO_FAILURES)
            outputs, non_finite, failures = self._apply(slots[rows], x[rows], self._hash_any(x[rows]))
        statuses[rows[non_finite]] = RowStatus.NON_FINITE_STATE
        failed = np.array(sorted(failures), np.int64)
        statuses[rows[failed]] = RowStatus.FAILED
        applied = np.flatnonzero(statuses == RowStatus.APPLIED)
        outputs = tuple(np.delete(part, np.union1d(non_finite, failed), axis=0) for part in outputs)
        rows_applied = x[applied]
        if applied.size:
            self.latest = rows_applied, outputs
        if self.tap is not None:
            self.tap.offer(slots[applied], rows_applied, outputs)
        missing = self.layout.missing(rows_applied)
        return BatchResult(
            steps, statuses, applied, outputs, missing, {int(rows[row]): why for row, why in failures.items()}
        )

    def run_one(self, slot: int, timestep: Timestep) -> Prediction | None:
        """Applies one timestep to one stream on a short path. Returns None when the timestep needs `run`.

        It does what `run` does to a batch of one, with the same bits, in a third of the time. A timestep needs `run`
        when it is out of order, has a value that is not finite, or makes the model fail. Then the state is unchanged.
        """
        row = self.model.row_binding
        step = self.slots.gather_row(slot, row.state) + 1
        if timestep.step not in (0, step) or step > STEP_MAX or not row.set_inputs(timestep.values):
            return None
        try:
            healthy = row.run()
        except Exception:  # noqa: BLE001 - `run` meets the same error and reports it
            return None
        if not healthy:
            return None
        self.slots.scatter_row(slot, row.next_state, row.outputs, self._hash.row(timestep.values), timestep.values)
        outputs = tuple([bytes(part) for part in row.outputs])
        self.latest_one = timestep.values, outputs
        if self.tap is not None:
            self.tap.offer_row(slot, timestep.values, outputs)
        return Prediction(step, outputs)

    def _check_repeats(self, statuses: npt.NDArray[np.int8], rows: Ints, slots: Ints, steps: Ints, x: Array) -> None:
        """Checks rows whose numbers were applied before: a true duplicate has the same values."""
        differs = self.slots.values_differ(slots[rows], steps[rows], self._hash_any(x[rows]))
        statuses[rows] = np.where(differs, RowStatus.VALUES_DIFFER, RowStatus.DUPLICATE)

    def _apply(self, slots: Ints, x: Array, hashes: Hashes) -> tuple[Arrays, Ints, Mapping[int, ModelFailed]]:
        """Advances rows and returns their outputs.

        Also returns the rows whose new state is not finite, and the errors of the rows on which the model failed. Both
        keep their state.
        """
        try:
            state = self.slots.gather(slots, self.model.state_buffers(len(slots)))
            outputs, next_state = self.model.step(x, state)
            non_finite = self.slots.scatter(slots, next_state, outputs, hashes, x)
        except ModelFailed:
            # Nothing was written yet. One row may have caused the error, and it must not harm the others.
            return self._apply_one_by_one(slots, x)
        return outputs, non_finite, NO_FAILURES

    def _apply_one_by_one(self, slots: Ints, x: Array) -> tuple[Arrays, Ints, Mapping[int, ModelFailed]]:
        """Runs each row alone, after the model raised on the whole batch."""
        outputs = tuple(np.zeros((len(slots), *output.shape), output.dtype) for output in self.model.spec.outputs)
        non_finite: list[int] = []
        failures: dict[int, ModelFailed] = {}
        ended: list[ModelFailed] = []
        for row in range(len(slots)):
            one = slice(row, row + 1)
            if len(ended) == ENDED_RUNS_MAX:
                failures[row] = ended[-1]
                continue
            try:
                state = self.slots.gather(slots[one])
                single_outputs, next_state = self.model.step(x[one], state)
            except ModelFailed as error:
                failures[row] = error
                if isinstance(error, RunEnded):
                    ended.append(error)
                continue
            non_finite.extend(
                [row] * self.slots.scatter(slots[one], next_state, single_outputs, self._hash_any(x[one]), x[one]).size
            )
            for part, value in zip(outputs, single_outputs, strict=True):
                part[row] = value[0]
        return outputs, np.array(non_finite, np.int64), failures


def refusal_error(slots: Slots, status: int, step: int, next_step: int, row: Array) -> TimestepRefused:
    """The error for a timestep that was refused with one of the statuses below. `row` has its values."""
    spec = slots.spec
    if status == RowStatus.GAP:
        return StepGap(step, next_step)
    if status == RowStatus.NON_FINITE_VALUE:
        return _not_finite(slots, row[np.newaxis])
    if status == RowStatus.NO_STEP_LEFT:
        return NoStepLeft(STEP_MAX)
    if status == RowStatus.VALUES_DIFFER:
        return ValuesDiffer(step)
    assert status == RowStatus.NON_FINITE_STATE
    return ModelFailed(f"model {spec.title} produced a state that is not finite; the timestep was not applied")


def _not_finite(slots: Slots, x: Array) -> NotFinite:
    """The error for the first invalid number of one row x."""
    spec, layout = slots.spec, slots.layout
    part, place, value = layout.first_invalid(x, missing_allowed=spec.handles_missing)
    if part is layout.values and place < len(spec.features):
        return NotFinite(spec.features[place].name, value, spec.title)
    where = f"{part.name}[{place}]"
    return NotFinite(where, value, spec.title, field="values" if part is layout.values else "inputs")
