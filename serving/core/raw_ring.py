"""The last few timesteps of each stream as they came: from them a stream is replayed into another version of its model.

Only models whose streams move by replay (`core.swap`) have such a ring. It belongs to the content of a slot, behind
everything else:

    4 bytes   b"TGRW"
    uint32    steps, how many timesteps the ring has room for
    int64     the first timestep that is kept
    ...       the values by ring index: those of timestep s at index s % steps
"""

import struct

import numpy as np
import numpy.typing as npt

from tidegate.core.spec import Array, Bytes, Ints

MAGIC = b"TGRW"
_HEADER = struct.Struct("<4sIq")
_SINCE = slice(8, 16)


class RawRing:
    """The last `steps` timesteps of up to `capacity` streams: rows of so many bytes, as `core.input_layout` says."""

    def __init__(self, row_bytes: int, capacity: int, steps: int) -> None:
        assert steps > 0
        self.steps = steps
        self._width = row_bytes
        self._values: Bytes = np.zeros((capacity, steps, self._width), np.uint8)
        self._since: Ints = np.ones(capacity, np.int64)  # the first timestep whose values are kept

    def clear(self, slot: int) -> None:
        """Empties the ring of a stream at step 0."""
        self._values[slot] = 0  # a checkpoint of this stream must not contain the values of another
        self._since[slot] = 1

    def is_full(self, slot: int, step: int) -> bool:
        """Whether a stream at `step` has as many timesteps here as there is room for, or all that it ever had."""
        return step - int(self._since[slot]) + 1 >= min(step, self.steps)

    def record(self, slots: Ints, steps: Ints, x: Array) -> None:
        """Keeps the rows x (batch, ...) of the timesteps with these numbers."""
        values = np.ascontiguousarray(x).view(np.uint8).reshape(len(slots), self._width)
        self._values[slots, steps % self.steps] = values

    def record_row(self, slot: int, step: int, values: bytes) -> None:
        """Keeps the packed row of one timestep."""
        self._values[slot, step % self.steps] = np.frombuffer(values, np.uint8)

    @property
    def row_bytes(self) -> int:
        """The size of a row's part of a checkpoint."""
        return _HEADER.size + self.steps * self._width

    def pack(self, slots: Ints) -> Bytes:
        """Copies the rings of many rows to (batch, bytes)."""
        packed = np.empty((len(slots), self.row_bytes), np.uint8)
        packed[:, : _HEADER.size] = np.frombuffer(_HEADER.pack(MAGIC, self.steps, 0), np.uint8)
        packed[:, _SINCE] = self._since[slots].astype("<i8").reshape(-1, 1).view(np.uint8)
        packed[:, _HEADER.size :] = self._values[slots].reshape(len(slots), -1)
        return packed

    def unpack(self, slot: int, step: int, content: bytes) -> None:
        """Fills a row that is at `step` from the result of `pack`, perhaps of a ring of another size, or from nothing."""
        if not content:
            self._since[slot] = step + 1
            return
        since, rows = unpack_rows(content, self._width, step)
        kept = min(len(rows), self.steps)
        self._since[slot] = max(since, step - kept + 1)
        self._values[slot, np.arange(step - kept + 1, step + 1) % self.steps] = rows[len(rows) - kept :]


def is_ring(content: bytes, width: int) -> bool:
    """Whether the end of a slot's content is a ring of timesteps of `width` bytes, or nothing."""
    if not content:
        return True
    if len(content) < _HEADER.size:
        return False
    magic, steps, _ = _HEADER.unpack_from(content)
    return magic == MAGIC and steps > 0 and len(content) == _HEADER.size + int(steps) * width


def unpack_rows(content: bytes, width: int, step: int) -> tuple[int, npt.NDArray[np.uint8]]:
    """The kept timesteps of a ring that is at `step`: the number of the first, and their values (rows, bytes) in order."""
    _, steps, since = _HEADER.unpack_from(content)
    since = max(since, step - steps + 1, 1)
    ring = np.frombuffer(content, np.uint8, steps * width, _HEADER.size).reshape(steps, width)
    return since, ring[np.arange(since, step + 1) % steps]
