"""A block whose streams run under several versions of a model, as they do while some have moved to a new one.

Each version runs its rows as a block of its own. Afterwards the results stand in the order of the rows, and the block is
read like any other.
"""

from collections.abc import Sequence

import numpy as np

from tidegate.core.block import Block
from tidegate.core.errors import TimestepRefused
from tidegate.core.spec import Array, Ints


class MixedBlock:
    """Rows of several versions. Attributes as in `Block`; results are there after `merge`.

    Args:
        parts: the rows of each version, and the block of these rows. The versions have the same outputs.

    """

    def __init__(self, parts: Sequence[tuple[Ints, Block]]) -> None:
        assert len(parts) > 1
        self.parts = parts
        count = sum(len(part) for _, part in parts)
        self._part_of: Ints = np.zeros(count, np.int64)  # by row: the index of its part, and its row there
        self._row_in_part: Ints = np.zeros(count, np.int64)
        for index, (rows, _) in enumerate(parts):
            self._part_of[rows] = index
            self._row_in_part[rows] = np.arange(len(rows))
        self.handles: Ints = self._gather([part.handles for _, part in parts])
        self.all_applied = False
        self.steps: Ints = np.zeros(count, np.int64)
        self.statuses = np.zeros(count, np.int8)
        self.forgotten = np.zeros(count, np.bool_)
        self.outputs: tuple[Array, ...] = ()

    def __repr__(self) -> str:
        return f"<MixedBlock of {len(self)} rows, {len(self.parts)} versions>"

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._part_of)

    @property
    def pieces(self) -> Sequence[Block]:
        """The blocks that run."""
        return [part for _, part in self.parts]

    @property
    def all_live(self) -> bool:
        """Whether every stream is live and held by the call."""
        return all(part.all_live for part in self.pieces)

    @property
    def not_live(self) -> Ints:
        """The handles of the rows whose streams are not."""
        return np.concatenate([part.not_live for part in self.pieces])

    @property
    def draining(self) -> bool:
        """Whether streams of a version may be about to move to another one."""
        return any(part.draining for part in self.pieces)

    def merge(self) -> None:
        """Collects the results of the parts, all of which have run."""
        self.all_applied = all(part.all_applied for part in self.pieces)
        self.steps = self._gather([part.steps for part in self.pieces])
        self.statuses = self._gather([part.statuses for part in self.pieces])
        self.forgotten = self._gather([part.forgotten for part in self.pieces])
        outputs = zip(*(part.outputs for part in self.pieces), strict=True)
        self.outputs = tuple(self._gather(columns) for columns in outputs)

    def report_durable(self) -> Ints:
        """The durable step of each row's stream, which counts as reported from now on."""
        return self._gather([part.report_durable() for part in self.pieces])

    def refusal_error(self, row: int) -> TimestepRefused:
        """The error for a row that the engine refused."""
        part: Block = self.pieces[int(self._part_of[row])]
        return part.refusal_error(int(self._row_in_part[row]))

    def next_steps(self, rows: Ints) -> Ints:
        """The number that each row's stream expects now; the row's own number where the stream is not live."""
        found: Ints = np.zeros(len(rows), np.int64)
        for index, part in enumerate(self.pieces):
            ours = self._part_of[rows] == index
            found[ours] = part.next_steps(self._row_in_part[rows[ours]])
        return found

    def _gather(self, columns: Sequence[Array]) -> Array:
        """One column of each part, in the order of the rows."""
        whole = np.empty((len(self._part_of), *columns[0].shape[1:]), columns[0].dtype)
        for (rows, _), column in zip(self.parts, columns, strict=True):
            whole[rows] = column
        return whole
