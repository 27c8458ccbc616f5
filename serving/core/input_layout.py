"""The inputs of a timestep as one row of bytes.

Inside the server and the client a timestep is one row, whatever inputs its model has:
1. The ordinary model has one float32 input. Its rows are float32 arrays (rows, values), and a packed row is
   `Timestep.values` as it was sent. Such a layout is `plain`.
2. The rows of any other model are arrays of bytes (rows, row_bytes): the inputs that come with each timestep, in the
   order of `Spec.inputs`. Each begins at a multiple of 8 bytes, so that it is aligned; the bytes between are zero.

Repeats are found by comparing rows, so a number never passes through another type. What is given once for each stream
is not in the row: it is kept with the state of the stream, see `core.slots`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.core.spec import Array, Arrays, Input

Bools = npt.NDArray[np.bool_]
# The packed values of the inputs that a stream begins with, in the order of `InputLayout.stream`.
StreamInputs = tuple[bytes, ...]

FLOAT32 = np.dtype("<f4")
# The largest size of a number: at a multiple of it, every type is aligned.
ALIGNMENT = 8


class InputLayout:
    """Where each input is in a row.

    Attributes:
        timestep: the inputs that come with each timestep.
        stream: the inputs that are given once, when a stream begins.
        values: the one that travels in `Timestep.values`: the first of `timestep`, if it is float32; else None.
        named: the others of `timestep`, which travel by name.
        plain: whether rows are float32 arrays.
        row_bytes: the size of a row.
        row_dtype: the dtype of an array of rows.

    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.timestep = tuple(part for part in inputs if part.kind == "timestep")
        self.stream = tuple(part for part in inputs if part.kind == "stream")
        first = self.timestep[0]
        self.values: Input | None = first if first.dtype == np.float32 else None
        self.named = self.timestep[1:] if self.values else self.timestep
        self.plain = not self.named
        self.row_dtype: np.dtype[Any] = FLOAT32 if self.plain else np.dtype(np.uint8)
        self._slices: dict[str, slice] = {}
        end = 0
        for part in self.timestep:
            self._slices[part.name] = slice(end, end + part.nbytes)
            end += part.nbytes if self.plain else -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        self.row_bytes = end

    def __repr__(self) -> str:
        names = ", ".join(part.name for part in self.timestep)
        return f"<InputLayout of {names}: {self.row_bytes} bytes>"

    def zeros(self, rows: int) -> Array:
        """So many rows of zeros."""
        return np.zeros((rows, self.row_bytes // self.row_dtype.itemsize), self.row_dtype)

    def pack(self, columns: Mapping[str, bytes | bytearray | memoryview], rows: int) -> Array:
        """Rows from the packed values of each input: those of all rows, one after the other."""
        packed = self.zeros(rows)
        for part in self.timestep:
            column = np.frombuffer(columns[part.name], np.uint8).reshape(rows, part.nbytes)
            packed.view(np.uint8)[:, self._slices[part.name]] = column
        return packed

    def unpack(self, x: Array) -> Arrays:
        """Views of the rows x: one array (rows, *shape) for each input of `timestep`."""
        if self.plain:
            return (x.reshape(len(x), *self.timestep[0].shape),)
        return tuple(
            x[:, self._slices[part.name]].view(part.dtype).reshape(len(x), *part.shape) for part in self.timestep
        )

    def column(self, x: Array, name: str) -> Array:
        """A view of the bytes of one input in the rows x: (rows, bytes)."""
        return x.view(np.uint8)[:, self._slices[name]]

    def finite(self, x: Array) -> bool:
        """Whether every number of the rows x is finite."""
        if self.plain:
            # The dot product is finite unless a value is not finite, or is beyond 1e19; then each value is looked at.
            return math.isfinite(np.vdot(x, x)) or bool(np.isfinite(x).all())
        return all(bool(np.isfinite(part).all()) for part in self._floats(x))

    def invalid(self, x: Array, *, missing_allowed: bool) -> Bools:
        """(rows,) whether a row has a number that no timestep may have: infinity, and NaN unless it is allowed."""
        found: Bools = np.zeros(len(x), np.bool_)
        for part in self._floats(x):
            bad = np.isinf(part) if missing_allowed else ~np.isfinite(part)
            found |= bad.reshape(len(x), -1).any(axis=1)
        return found

    def first_invalid(self, x: Array, *, missing_allowed: bool) -> tuple[Input, int, float]:
        """The first number in one row x that `invalid` finds: its input, its place in the input, and its value."""
        for part, numbers in zip(self.timestep, self.unpack(x), strict=True):
            if numbers.dtype.kind == "f":
                flat = numbers.reshape(-1)
                bad = np.isinf(flat) if missing_allowed else ~np.isfinite(flat)
                if bad.any():
                    place = int(bad.argmax())
                    return part, place, float(flat[place])
        raise AssertionError("every number is valid")

    def missing(self, x: Array) -> int:
        """How many numbers of the rows x are NaN."""
        return sum(int(np.isnan(part).sum()) for part in self._floats(x))

    def canonical(self, x: Array) -> Array:
        """The rows x with one kind of NaN, so that equal rows have equal bytes; x itself when it has no NaN."""
        if not self.missing(x):
            return x
        x = x.copy()
        for part in self._floats(x):
            part[np.isnan(part)] = np.nan
        return x

    def _floats(self, x: Array) -> list[Array]:
        """The inputs that are floating-point numbers, as `unpack` returns them."""
        return [part for part in self.unpack(x) if part.dtype.kind == "f"]
