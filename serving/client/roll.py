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
    """The rows, by the names of their columns: what is written to a column stays.

    `order`, `stream`, `step`, `place` and `values` say what a row is; `step` is 0 when it has left for good. `check` is the
    checksum of its answer, which counts when it is `checked`.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sweep_at = SWEEP_ROWS_MIN
        self._columns: dict[str, Array] = {
            **{name: np.empty(0, np.int64) for name in ("order", "stream", "step", "place")},
            "check": np.empty(0, np.uint64),
            "checked": np.empty(0, np.bool_),
            "values": np.empty((0, 0), np.float32),
        }

    def __len__(self) -> int:
        """How many rows there are."""
        return self._count

    def __getitem__(self, column: str) -> Array:
        return self._columns[column][: self._count]

    def append(self, order: int, streams: Ints, steps: Ints, places: Ints, values: Floats) -> None:
        """Puts rows of an order at the end."""
        end = self._count + len(streams)
        if end > len(self._columns["step"]):
            self._grow(max(end, 2 * self._count), values.shape[1])
        new = {"order": order, "stream": streams, "step": steps, "place": places, "checked": False, "values": values}
        for name, column in new.items():
            self._columns[name][self._count : end] = column
        self._count = end

    @property
    def long(self) -> bool:
        """Whether it is time for a sweep."""
        return self._count > self._sweep_at

    def sweep(self, stays: Bools) -> Ints:
        """Drops the rows that do not stay; gives the new place of each, -1 for those that are gone."""
        moved: Ints = np.where(stays, np.cumsum(stays) - 1, -1)
        self._columns = {name: column[: self._count][stays] for name, column in self._columns.items()}
        self._count = len(self._columns["step"])
        self._sweep_at = max(SWEEP_ROWS_MIN, 2 * self._count)
        return moved

    def clear(self) -> None:
        """Drops all rows."""
        self._count = 0

    def _grow(self, rows: int, features: int) -> None:
        for name, column in self._columns.items():
            longer = np.empty((rows, features) if name == "values" else rows, column.dtype)
            if self._count:
                longer[: self._count] = column[: self._count]
            self._columns[name] = longer
