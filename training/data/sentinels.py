"""Values that look like codes for "no value", such as -9999: reported, never dropped."""

from collections.abc import Iterator, Sequence

import numpy as np

from tidegate.training.data.series import Floats
from tidegate.training.settings import as_typed

# The distance of the value from all others, in multiples of their range: no sensor jumps there and back again and again.
DISTANCE = 3.0
# Fewer occurrences may be outliers, and fewer others tell no range.
OCCURRENCES = 2
OTHERS = 10


def likely_sentinels(names: Sequence[str], values: Floats) -> Iterator[str]:
    """A sentence for each column whose lowest or highest value repeats far from all others."""
    for index, name in enumerate(names):
        column = values[:, index]
        column = column[~np.isnan(column)]
        for _ in range(2):  # one below and one above
            found = _sentinel(column)
            if found is None:
                break
            rest = column[column != found]
            yield (
                f"column {name!r} has {found:g} in {len(column) - len(rest)} rows, far from its other values "
                f"({rest.min():g} to {rest.max():g}): if it means a missing value, add --missing-values {as_typed(f'{name}={found:g}')}"
            )
            column = rest


def _sentinel(column: Floats) -> float | None:
    """The lowest or highest value, if it repeats at a distance; that which is farther away first."""
    if not len(column):
        return None
    candidates = sorted({float(column.min()), float(column.max())}, key=abs, reverse=True)
    for value in candidates:
        rest = column[column != value]
        others = rest[~np.isin(rest, candidates)] if len(np.unique(rest[:1000])) > 1 else rest
        if len(column) - len(rest) < OCCURRENCES or len(others) < OTHERS:
            continue
        low, high = float(others.min()), float(others.max())
        away = low - value if value < low else value - high
        if high > low and away > DISTANCE * (high - low):
            return value
    return None
