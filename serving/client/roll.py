"""The rows that a client keeps of many streams, in columns, in the order they came.

It grows at its end, and is swept now and then of the rows that have left it. A row is named by its place, which a sweep changes.
"""

import numpy as np

from serving.client.parcel import Bools
from serving.core.spec import Array, Floats, Ints

# Rows that have left are swept out when the roll is twice as long as after the last sweep, so that sweeping costs a row
# next to nothing. A shorter roll is not worth it.
SWEEP_ROWS_MIN = 4096


class Roll:
    """The rows.

    A row's `step` is 0 when it has left for good; its `check` counts when it is `checked`.
    """

    def __init__(self) -> None:
        self._count = 0
        self._all = _empty(0, 0)
        self._sweep_at = SWEEP_ROWS_MIN

    def __len__(self) -> int:
        """How many rows there are."""
        return self._count

    @property
    def rows(self) -> Array:
        """The rows, as they are kept: what is written to them stays."""
        return self._all[: self._count]

    def append(self, order: int, streams: Ints, steps: Ints, places: Ints, values: Floats) -> None:
        """Puts rows of an order at the end."""
        end = self._count + len(streams)
        if end > len(self._all):
            longer = _empty(max(end, 2 * len(self._all)), values.shape[1])
            if self._count:
                longer[: self._count] = self.rows
            self._all = longer
        new = self._all[self._count : end]
        new["order"], new["stream"], new["step"], new["place"], new["values"] = order, streams, steps, places, values
        new["checked"] = False
        self._count = end

    @property
    def long(self) -> bool:
        """Whether it is time for a sweep."""
        return self._count > self._sweep_at

    def sweep(self, stays: Bools) -> Ints:
        """Drops the rows that do not stay; gives the new place of each, -1 for those that are gone."""
        moved: Ints = np.where(stays, np.cumsum(stays) - 1, -1)
        self._all = self.rows[stays]
        self._count = len(self._all)
        self._sweep_at = max(SWEEP_ROWS_MIN, 2 * self._count)
        return moved

    def clear(self) -> None:
        """Drops all rows."""
        self._count = 0


def _empty(rows: int, features: int) -> Array:
    columns = [
        ("order", np.int64),
        ("stream", np.int64),
        ("step", np.int64),
        ("place", np.int64),
        ("check", np.uint64),
        ("checked", np.bool_),
        ("values", np.float32, (features,)),
    ]
    return np.empty(rows, np.dtype(columns, align=True))
