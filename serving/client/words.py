"""Turns words into numbers, for features that were text in the training: a value is the place of its word.

Only values that are not numbers come here, so models without categories, and timesteps of numbers, are as fast as ever.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from tidegate.client.arguments import format_value
from tidegate.client.errors import InvalidTimestep
from tidegate.core.spec import Feature, Floats

# An error message shows at most this many words.
WORDS_SHOWN = 12


def has_categories(features: Sequence[Feature] | None) -> bool:
    """Whether any feature takes words."""
    return any(feature.categories for feature in features or ())


def coded_row(field: str, values: Sequence[Any], features: Sequence[Feature]) -> list[Any]:
    """The values of a timestep in the model's order, with a number for each word.

    Raises:
        InvalidTimestep: its feature does not have a word, or takes no words.

    """
    return [_code(field, value, feature) for value, feature in zip(values, features, strict=True)]


def coded_column(field: str, x: Any, feature: Feature) -> Floats:
    """The numbers of a column of a frame; what it marks as missing is NaN.

    Raises:
        InvalidTimestep: a value is neither a word of the feature nor a number.

    """
    # pyarrow, polars, then pandas and numpy.
    listed: Iterable[Any] = next(
        getattr(x, name)() for name in ("to_pylist", "to_list", "tolist") if hasattr(type(x), name)
    )
    codes = [np.nan if _is_missing(value) else _code(field, value, feature) for value in listed]
    return np.array(codes, np.float32)


def _code(field: str, value: Any, feature: Feature) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(feature.categories.index(value))
    except ValueError:
        _refuse(field, value, feature)


def _is_missing(value: Any) -> bool:
    """Whether a frame means that there is no value: None, or pandas' NA, which equals nothing."""
    return value is None or type(value).__name__ == "NAType"


def _refuse(field: str, word: str, feature: Feature) -> NoReturn:
    known = list(feature.categories)
    more = ", ..." if len(known) > WORDS_SHOWN else ""
    expected = f"one of its words: {', '.join(known[:WORDS_SHOWN])}{more}" if known else "a number"
    raise InvalidTimestep(
        f"{field}: got {format_value(word)} for {feature.name}, expected {expected}; NaN means missing",
        "INVALID_FIELD",
        field=field,
    )
