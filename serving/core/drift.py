"""How far what a model gets has moved from what it was trained on, over all streams.

The moments of the training part come with the model. Those of live rows are weighted averages, in which a row loses half of
its weight in `HALF_LIFE_SECONDS`. They are updated from samples, not from every row: a timestep must not pay for this.
"""

import numpy as np
import numpy.typing as npt

from tidegate.core.spec import Array, Spec

# A day: a series with a daily pattern does not seem to move each morning.
HALF_LIFE_SECONDS = 86_400.0
# An average of fewer rows says little.
ROWS_MIN = 30.0
# More would be too many series for each model.
FEATURES_MAX = 64
# The output with the error of the last forecast, in standard deviations of the errors in training.
ERROR_OUTPUT = "surprise"

Floats64 = npt.NDArray[np.float64]


class WeightedMoments:
    """Mean and standard deviation of columns, in which old rows count less. A missing value does not count."""

    def __init__(self, columns: int) -> None:
        self._weight: Floats64 = np.zeros(columns)
        self._sum: Floats64 = np.zeros(columns)
        self._squares: Floats64 = np.zeros(columns)

    def add(self, rows: Floats64, elapsed_s: float) -> None:
        """Adds rows (rows, columns), `elapsed_s` seconds after the ones before."""
        decay = 0.5 ** (elapsed_s / HALF_LIFE_SECONDS)
        known = np.isfinite(rows)
        values = np.where(known, rows, 0.0)
        self._weight = self._weight * decay + known.sum(axis=0)
        self._sum = self._sum * decay + values.sum(axis=0)
        self._squares = self._squares * decay + (values * values).sum(axis=0)

    def mean(self) -> Floats64:
        """(columns,) the means; NaN while there are few rows."""
        return np.where(self._weight >= ROWS_MIN, self._sum / np.maximum(self._weight, 1.0), np.nan)

    def std(self) -> Floats64:
        """(columns,) the standard deviations; NaN while there are few rows."""
        mean = self.mean()
        return np.sqrt(np.maximum(self._squares / np.maximum(self._weight, 1.0) - mean * mean, 0.0))

    def root_mean_square(self) -> Floats64:
        """(columns,) the root of the mean square; NaN while there are few rows."""
        return np.where(self._weight >= ROWS_MIN, np.sqrt(self._squares / np.maximum(self._weight, 1.0)), np.nan)


class Drift:
    """The drift of one model.

    Attributes:
        features: the names of the features whose moments the model has.
        targets: the names of the targets whose errors the model puts out.

    """

    def __init__(self, spec: Spec) -> None:
        known = [
            index
            for index, feature in enumerate(spec.features)
            if feature.mean is not None and feature.std is not None and feature.std > 0
        ][:FEATURES_MAX]
        self._columns = np.array(known, np.int64)
        self._mean = np.array([spec.features[index].mean for index in known], np.float64)
        self._std = np.array([spec.features[index].std for index in known], np.float64)
        self.features = tuple(spec.features[index].name for index in known)
        outputs = [(place, output) for place, output in enumerate(spec.outputs) if output.name == ERROR_OUTPUT]
        self._error_place = outputs[0][0] if outputs else -1
        self.targets = outputs[0][1].targets[:FEATURES_MAX] if outputs else ()
        self._inputs = WeightedMoments(len(self.features))
        self._errors = WeightedMoments(len(self.targets))

    @property
    def measurable(self) -> bool:
        """Whether the model says enough about its training."""
        return bool(self.features or self.targets)

    def add(self, x: Array, outputs: tuple[Array, ...], elapsed_s: float) -> None:
        """Adds a sample: rows (rows, features) and their outputs, `elapsed_s` seconds after the sample before."""
        self._inputs.add((x[:, self._columns] - self._mean) / self._std, elapsed_s)
        if self._error_place >= 0:
            errors = outputs[self._error_place].reshape(len(x), -1)[:, : len(self.targets)]
            self._errors.add(errors.astype(np.float64), elapsed_s)

    def input_shift(self) -> Floats64:
        """(features,) how far the mean has moved, in standard deviations of the training part; NaN while unknown."""
        return self._inputs.mean()

    def input_spread(self) -> Floats64:
        """(features,) the standard deviation, as a multiple of that of the training part; NaN while unknown."""
        return self._inputs.std()

    def error_spread(self) -> Floats64:
        """(targets,) the root of the mean squared error of a forecast, as a multiple of that in training; NaN while unknown."""
        return self._errors.root_mean_square()
