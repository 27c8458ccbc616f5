"""The values that the streams send."""

import numpy as np

from tidegate.client import Model
from tidegate.core.spec import Floats

# All streams send these rows in a loop, each from another row.
RANDOM_ROWS = 4096
# The rows that are read from a file. Every client process holds them twice.
FILE_ROWS_MAX = 65_536


def random_values(model: Model, missing: float, seed: int) -> Floats:
    """Returns random rows (rows, features).

    A feature is uniform over its training range, or normal when that is unknown. `missing` is the share of NaN.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(RANDOM_ROWS, len(model.features))).astype(np.float32)
    for index, feature in enumerate(model.features):
        if feature.low is not None and feature.high is not None:
            values[:, index] = rng.uniform(feature.low, feature.high, RANDOM_ROWS)
    values[rng.random(values.shape) < missing] = np.nan
    return values
