"""What travels between the callers of a block, its books and its server: orders, parcels, answers.

An *order* is what one caller waits for, a *parcel* what is sent in one message. Usually one makes the other; but large orders
are sent in several parcels, small ones together, and after a break a parcel is packed anew from what is left of many orders.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.client.errors import ClientError
from serving.core.spec import Array, Floats, Ints, Output

Bools = npt.NDArray[np.bool_]


class Order:
    """The timesteps that one caller waits for, and their answers.

    Rows that were not applied have zeros in all columns but `durable_steps`, and their error in `errors`.

    Attributes:
        number: in the order they came.
        ticket: whatever its caller waits for.
        left: how many rows are not settled.

    """

    def __init__(self, number: int, rows: int, outputs: Sequence[Output], ticket: Any) -> None:
        self.number = number
        self.ticket = ticket
        self.left = rows
        self.steps: Ints = np.zeros(rows, np.int64)
        self.durable_steps: Ints = np.zeros(rows, np.int64)
        self.duplicates: Bools = np.zeros(rows, np.bool_)
        self.outputs: list[Array] = [np.zeros((rows, *output.shape), output.dtype) for output in outputs]
        self.errors: dict[int, ClientError] = {}


class Answers(NamedTuple):
    """What came back for a parcel, in columns in the order of its rows.

    `outputs` has an array (rows, *shape) for each output. `duplicates` had been applied before and were answered all the
    same, the answers of `forgotten` ones are gone, `refused` ones were not applied.
    """

    steps: Ints
    outputs: Sequence[Array]
    durable_steps: Ints
    duplicates: Bools
    forgotten: Bools
    refused: Bools


class Parcel:
    """Timesteps that are sent together.

    Attributes:
        number: counts from 1.
        streams: one a row.
        steps: their numbers, one a row.
        values: (rows, features)
        at: their places in the roll; -1 where the answer is to be ignored.

    """

    def __init__(self, number: int, streams: Ints, steps: Ints, values: Floats, at: Ints) -> None:
        self.number = number
        self.streams = streams
        self.steps = steps
        self.values = values
        self.at = at
