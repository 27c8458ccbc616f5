"""Timesteps for the check of a model: any numbers that it accepts will do."""

import numpy as np

from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Arrays, Input, Spec

# A neighbour with values so much larger than usual changes the scale of a batch that is quantised as a whole.
LOUD = 100.0
NEIGHBOURS = 4
MISSING = 0.1  # how often a value is missing, where that may be


class CheckRows:
    """Rows in the ranges that the features had in training.

    Attributes:
        count: how many rows.
        x: the rows of each timestep, as `core.input_layout` says.
        quiet, loud: rows with small and with large values, to stand beside others.

    """

    def __init__(self, spec: Spec, steps: int, count: int) -> None:
        self.count = count
        self._spec = spec
        self._layout = InputLayout(spec.inputs)
        # A fixed seed makes reports comparable.
        self._rng = np.random.default_rng(0)
        self._low = np.array([-1.0 if feature.low is None else feature.low for feature in spec.features])
        self._high = np.array([1.0 if feature.high is None else feature.high for feature in spec.features])
        self._bounded = all(feature.low is not None and feature.high is not None for feature in spec.features)
        self.x = [self._pack(count) for _ in range(steps)]
        if spec.handles_missing and self._layout.plain:
            for rows in self.x:
                rows[self._rng.random(rows.shape) < MISSING] = np.nan
        self.quiet = self._pack(NEIGHBOURS, 0.0)
        self.loud = self._pack(NEIGHBOURS, 1.0 if self._bounded else LOUD)

    def with_stream_inputs(self, state: Arrays) -> Arrays:
        """The state with values of the inputs that a stream begins with."""
        own = state[: len(self._spec.state)]
        return (*own, *(self._values(part, self.count) for part in self._spec.stream_inputs))

    def _pack(self, rows: int, extreme: float | None = None) -> Array:
        """Rows of one timestep. `extreme` places their values: 0 at the middle of their range, 1 at its upper end."""
        columns = {part.name: self._values(part, rows, extreme).tobytes() for part in self._layout.timestep}
        return self._layout.pack(columns, rows)

    def _values(self, part: Input, rows: int, extreme: float | None = None) -> Array:
        """(rows, *shape) values of an input."""
        shape = (rows, *part.shape)
        is_x = part is self._spec.x
        low = np.broadcast_to(self._low.reshape(part.shape) if is_x else -1.0, shape)
        high = np.broadcast_to(self._high.reshape(part.shape) if is_x else 1.0, shape)
        middle = (low + high) / 2
        drawn = self._rng.uniform(low, high) if extreme is None else middle + extreme * (high - middle)
        if part.dtype.kind == "f":
            return drawn.astype(part.dtype)
        # Whole numbers are often indices, and an unknown range begins at 0.
        return (np.rint(drawn) if is_x and self._bounded else np.abs(np.rint(drawn))).astype(part.dtype)
