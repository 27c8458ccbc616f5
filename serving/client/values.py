"""Timesteps as callers write them, made into float32 in the order of a model's features."""

from collections.abc import Mapping, Sequence

import numpy as np

from serving.client.arguments import shown
from serving.client.errors import InvalidTimestep
from serving.core.spec import Array, Feature, Floats

Values = Sequence[float] | Array | Mapping[str, float]

# Whole numbers, numbers and booleans; all else, None among it, would be guessed at.
NUMERIC = "iufb"
# More names than these nobody reads.
NAMES_SHOWN = 12


def floats(field: str, values: object, expected: str) -> Floats:
    """Numbers, in any shape. Infinity is left for the server to refuse.

    Raises:
        InvalidTimestep: one of them is no number, or they have no shape.

    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        array = np.empty(0, np.object_)
    if array.dtype.kind not in NUMERIC:
        raise InvalidTimestep(f"{field}: got {shown(values)}, expected {expected}", "INVALID_FIELD", field=field)
    with np.errstate(over="ignore"):  # it becomes infinite
        return array.astype("<f4", copy=False)


def pack(values: Values, features: Sequence[Feature] | None) -> bytes:
    """One timestep as it travels: one float32 a feature.

    Args:
        values: the numbers in the model's order, or a mapping from the names of features; one that is left out is NaN.
        features: the model's; None when they are not known: then the server finds out whether there are as many.

    Raises:
        InvalidTimestep: they are no numbers, not as many as the model has features, or a name is none of its features.

    """
    if isinstance(values, Mapping) and features is not None:
        values = _by_name(values, features)
    expected = "numbers" if features is None else f"{len(features)} numbers, one for each of {_names(features)}"
    packed = floats("values", values, f"{expected}; NaN means missing")
    if packed.ndim != 1:
        raise _wrong_width(f"shape {packed.shape}", expected)
    if features is not None and len(packed) != len(features):
        raise _wrong_width(f"{len(packed)} numbers", expected)
    return packed.tobytes()


def _by_name(values: Mapping[str, float], features: Sequence[Feature]) -> list[float]:
    names = [feature.name for feature in features]
    if unknown := values.keys() - set(names):
        raise InvalidTimestep(
            f"values: no feature is called {', '.join(sorted(map(str, unknown)))}; the model has {_names(features)}",
            "WRONG_WIDTH",
            field="values",
        )
    return [values.get(name, float("nan")) for name in names]


def _wrong_width(got: str, expected: str) -> InvalidTimestep:
    return InvalidTimestep(f"values: got {got}, expected {expected}", "WRONG_WIDTH", field="values")


def _names(features: Sequence[Feature]) -> str:
    names = ", ".join(feature.name for feature in features[:NAMES_SHOWN])
    return names + (", ..." if len(features) > NAMES_SHOWN else "")
