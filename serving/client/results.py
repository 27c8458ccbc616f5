"""The answers to a message, and the futures of the callers that wait for them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.client.errors import AnswerLost, ClientError
from tidegate.client.types import Prediction, Predictions
from tidegate.core.spec import Array, Ints, Output

log = logging.getLogger("tidegate.client")

Bools = npt.NDArray[np.bool_]


class Answers(NamedTuple):
    """The answers to a message, in columns in the order of its rows.

    `outputs` has an array (rows, *shape) for each output. `duplicates` marks rows that had been applied before, `forgotten` rows whose
    answers the server no longer has, `refused` rows that were not applied. `plain` is True when no row is marked.
    """

    steps: Ints
    outputs: Sequence[Array]
    durable_steps: Ints
    duplicates: Bools
    forgotten: Bools
    refused: Bools
    plain: bool


# The future of a caller.
Waiter = asyncio.Future[Any]
Delivery = Sequence[tuple[Waiter, Prediction]]
Deliver = Callable[[Delivery], None]


def deliver(delivery: Delivery) -> None:
    """Completes the futures with their predictions, except those that were cancelled."""
    for waiter, prediction in delivery:
        if not waiter.done():
            waiter.set_result(prediction)


class Group:
    """Timesteps of one stream that depend on each other: when one is refused for good, `failed` is set, and the later ones are dropped."""

    failed = False


def answer_lost(step: int) -> AnswerLost:
    """The error for an applied timestep whose answer the server no longer has."""
    return AnswerLost(f"timestep {step} was applied, but the server no longer remembers its answer", "ANSWER_LOST")


class BlockResults:
    """The results of many rows for one caller, who gets `Predictions` when no row is pending.

    Rows that were not applied have zeros in all columns but `durable_steps`, and their error in `errors`.

    Args:
        outputs: those of the model.
        rows: the number of rows.
        waiter: the caller's future.

    Attributes:
        pending: the number of rows without a result.
        id: the number of these results while rows are kept for them; 0 before.

    """

    def __init__(self, outputs: Sequence[Output], rows: int, waiter: Waiter) -> None:
        self.pending = rows
        self.id = 0
        self.errors: dict[int, ClientError] = {}
        self._outputs = outputs
        self._waiter = waiter
        self._failed = False  # by an error of all streams
        self.steps: Ints = np.zeros(rows, np.int64)
        self.durable_steps: Ints = np.zeros(rows, np.int64)
        self.duplicates: Bools = np.zeros(rows, np.bool_)
        self.columns: list[Array] = [np.zeros((rows, *output.shape), output.dtype) for output in outputs]
        self._finish()

    def settle(self, places: Ints, rows: Ints, answers: Answers) -> None:
        """Fills in the answers of these rows."""
        self.steps[places] = answers.steps[rows]
        self.durable_steps[places] = answers.durable_steps[rows]
        for column, got in zip(self.columns, answers.outputs, strict=True):
            column[places] = got[rows]
        if not answers.plain:
            self.duplicates[places] = answers.duplicates[rows] | answers.forgotten[rows]
            for row in np.flatnonzero(answers.forgotten[rows]).tolist():
                place = int(places[row])
                self.errors[place] = answer_lost(int(self.steps[place]))
        self.pending -= len(rows)
        self._finish()

    def fail(self, place: int, error: ClientError, step: int, durable_step: int, *, shared: bool = False) -> None:
        """Fills in the error of one row. `step` is its number if it was applied all the same, else 0.

        With `shared` the error ends all rows, and the caller gets it as an exception.
        """
        if shared and not self._waiter.done():
            self._waiter.set_exception(error)
            self._failed = True
        self.errors[place] = error
        self.steps[place] = step
        self.durable_steps[place] = durable_step
        self.pending -= 1
        self._finish()

    def drop_last(self, rows: int) -> None:
        """Gives up the last rows, which will not be submitted because their caller was cancelled."""
        self.pending -= rows
        self._finish()

    def _finish(self) -> None:
        if self.pending:
            return
        if not self._waiter.done():
            outputs = {output.name: column for output, column in zip(self._outputs, self.columns, strict=True)}
            self._waiter.set_result(Predictions(self.steps, outputs, self.durable_steps, self.duplicates, self.errors))
        elif self.errors and not self._failed:
            row, error = next(iter(self.errors.items()))
            log.warning(
                "%d of %d timesteps whose caller was cancelled were refused; row %d: %s",
                len(self.errors), len(self.steps), row, error,
            )  # fmt: skip


def split_rows(column: Array, count: int) -> list[bytes]:
    """Splits the packed bytes of one output into its rows."""
    packed = column.tobytes()
    width = len(packed) // max(1, count)
    return [packed[begin : begin + width] for begin in range(0, count * width, width)] if width else [b""] * count
