"""What the streams send: random rows within what the model was trained on."""

import numpy as np

from serving.client import Model
from serving.core.spec import Floats

# Sent round and round, every stream from a row of its own; a model that is never at rest needs no more.
RANDOM_ROWS = 4096
# Of a file. Every client process holds them, twice.
FILE_ROWS_MAX = 65_536


def random_values(model: Model, missing: float, seed: int) -> Floats:
    """Rows (rows, features), uniform over each feature's training range, normal where it is unknown; a share is NaN."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(RANDOM_ROWS, len(model.features))).astype(np.float32)
    for index, feature in enumerate(model.features):
        if feature.low is not None and feature.high is not None:
            values[:, index] = rng.uniform(feature.low, feature.high, RANDOM_ROWS)
    values[rng.random(values.shape) < missing] = np.nan
    return values
