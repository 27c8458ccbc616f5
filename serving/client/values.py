"""Timesteps as callers write them, made into float32 in the order of a model's features."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from serving.client.arguments import shown
from serving.client.errors import InvalidTimestep
from serving.core.spec import Array, Feature, Floats, Ints

Values = Sequence[float] | Array | Mapping[str, float]
# What `Block.predict` reads: the next timestep of every stream, or those of some of them.
Timesteps = Array | Sequence[Sequence[float]]
Some = tuple[Timesteps, Sequence[int] | Ints]

# Whole numbers, numbers and booleans; all else, None among it, would be guessed at.
NUMERIC = "iufb"
# More names than these nobody reads.
NAMES_SHOWN = 12


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
    packed = _floats(values)
    if packed is None or packed.ndim != 1 or (features is not None and len(packed) != len(features)):
        raise _no_timestep(values, packed, features)
    return packed.tobytes()


def columns(x: Timesteps, rows: Sequence[int] | Ints | None, streams: int, features: int) -> tuple[Floats, Ints]:
    """Timesteps of many streams as columns: (n, features) values, and (n,) indices of the streams they are for.

    Args:
        x: (n, features) numbers.
        rows: (n,) indices; None for all streams.
        streams: how many there are.
        features: how many the model has.

    Raises:
        InvalidTimestep: x or rows are no numbers, do not have these shapes, or name streams that there are not.

    """
    indices = np.arange(streams) if rows is None else _indices(rows, streams)
    expected = (len(indices), features)
    values = _floats(x)
    if values is None or (values.shape != expected and (values.size or len(indices))):
        got = shown(x) if values is None else f"shape {values.shape}"
        raise _malformed("x", got, f"numbers of shape {expected}: a row a timestep, a column a feature")
    return values.reshape(expected), indices


def parts_of(block: Timesteps | Some) -> tuple[Timesteps, Sequence[int] | Ints | None]:
    """What `Block.step` takes: x, and the streams that its rows are for; None for all."""
    if not isinstance(block, tuple):
        return block, None
    if len(block) != 2:
        raise _malformed("blocks", f"a tuple of {len(block)}", "x or (x, rows)")
    return cast(Some, block)


def _indices(rows: Sequence[int] | Ints, streams: int) -> Ints:
    expected = f"a list of indices from 0 to {streams - 1}, one a row of x"
    try:
        indices = np.asarray(rows)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        indices = np.empty(0, np.object_)
    if indices.ndim != 1 or (indices.dtype.kind not in "iu" and len(rows)):
        raise _malformed("rows", shown(rows), expected)
    if np.any((indices < 0) | (indices >= streams)):
        raise _malformed("rows", f"{indices.min()} to {indices.max()}", expected)
    return indices.astype(np.int64)


def _malformed(field: str, got: str, expected: str) -> InvalidTimestep:
    return InvalidTimestep(f"{field}: got {got}, expected {expected}", "INVALID_FIELD", field=field)


def _floats(values: object) -> Floats | None:
    """Numbers, in any shape; None when one of them is none, or they have no shape. Infinity is left for the server to refuse."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        return None
    if array.dtype.kind not in NUMERIC:
        return None
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):  # it becomes infinite
        return array.astype("<f4")


def _by_name(values: Mapping[str, float], features: Sequence[Feature]) -> list[float]:
    names = [feature.name for feature in features]
    if unknown := values.keys() - set(names):
        raise InvalidTimestep(
            f"values: no feature is called {', '.join(sorted(map(str, unknown)))}; the model has {_names(features)}",
            "WRONG_WIDTH",
            field="values",
        )
    return [values.get(name, float("nan")) for name in names]


def _no_timestep(values: Values, packed: Floats | None, features: Sequence[Feature] | None) -> InvalidTimestep:
    """The error for what does not make a timestep; `packed` are its numbers, if it is numbers."""
    if packed is None:
        got = shown(values)
    else:
        got = f"{len(packed)} numbers" if packed.ndim == 1 else f"numbers of shape {packed.shape}"
    count = "numbers" if features is None else f"{len(features)} number{'s' * (len(features) > 1)}: {_names(features)}"
    return InvalidTimestep(
        f"values: got {got}, expected {count}; NaN means missing",
        "INVALID_FIELD" if packed is None else "WRONG_WIDTH",
        field="values",
    )


def _names(features: Sequence[Feature]) -> str:
    names = ", ".join(feature.name for feature in features[:NAMES_SHOWN])
    return names + (", ..." if len(features) > NAMES_SHOWN else "")
