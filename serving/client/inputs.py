"""Converts timesteps, as callers write them, to float32 in the order of a model's features.

Laws:
1. Named values are read by name, never by order. Values without names are read by order.
2. A feature that is not named is missing: NaN. A name of no feature, a name that occurs twice, and a row or frame that names no
   feature at all are refused. Only an empty mapping is a timestep without any value.
3. Numbers are not names. The default labels of pandas, 0, 1, 2, ..., mean the order; other numbers are refused as ambiguous.
4. Row labels of a frame are ignored: its rows are in the order of the streams, or of time.
5. A word stands for its number where the model has categories. Any other word is refused: it would be a guess.

Frames are recognized by their methods: nothing here imports pandas, polars or pyarrow.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is a class
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np

from tidegate.client.arguments import format_value
from tidegate.client.errors import InvalidTimestep
from tidegate.client.words import coded_column, coded_row, has_categories
from tidegate.core.spec import Array, Feature, Floats, Ints

T = TypeVar("T")


class Keyed(Protocol):
    """A row that lists its names, such as a pandas Series or a row of a database."""

    def keys(self) -> Iterable[Any]:
        """The names."""

    def __getitem__(self, key: Any, /) -> Any: ...


class Fields(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Frame(Protocol):
    """Columns with names: a DataFrame of pandas or polars, a Table or a RecordBatch of pyarrow."""

    @property
    def columns(self) -> Any:
        """The names, or the columns themselves."""

    def __len__(self) -> int: ...
    def __getitem__(self, name: Any, /) -> Any: ...


# Models with other inputs than one vector of float32 take more; see `tidegate.client.tensors`.
Values = Sequence[float] | float | Array | np.void | Mapping[str, Any] | Keyed | Fields
# What `Block.predict` reads: the next timestep of every stream, or with `Some` of a part of the streams.
Timesteps = Array | Sequence[Values] | Mapping[str, Any] | Frame
Some = tuple[Timesteps, Sequence[int] | Ints]

# Integers, floats and booleans. Converting anything else, such as None, would be a guess.
NUMERIC_KINDS = "iufb"
# An error message shows at most this many names.
NAMES_SHOWN = 12
# Types that pack to the same bits as in an array. Integers do not: an array rounds them once, packing rounds twice.
EXACT_TYPES = frozenset({float, np.float64, np.float32})
FLOAT32, FLOAT64 = np.dtype("<f4"), np.dtype("<f8")
# Up to this size, packing one by one is faster than an array with its warnings switched off.
SMALL_ROW_MAX = 64
# Types without names, checked first because they are frequent.
UNNAMED_TYPES = frozenset({list, tuple, float, int, str, bytes, type(None)})
# `DataFrame.itertuples` puts the row label first, under this name.
ROW_LABEL = "Index"


class Packer:
    """Packs timesteps of one model: one little-endian float32 a feature. Each stream keeps one.

    Args:
        features: those of the model; None when they are unknown: then names are refused, and the server checks the number of values.
        field: the name of the values in errors.

    """

    __slots__ = ("_features", "_field", "_names", "_pack", "_shape", "_words")

    def __init__(self, features: Sequence[Feature] | None, field: str = "values") -> None:
        self._features = features
        self._field = field
        self._names = dict.fromkeys(feature.name for feature in features or ())
        self._shape = (-1 if features is None else len(features),)
        self._words = has_categories(features)
        self._pack = Struct(f"<{len(features or ())}f").pack

    def __call__(self, values: Values) -> bytes:
        """Packs one timestep; see `pack`."""
        row: Any = values
        kind = type(row)
        try:
            if kind is list or kind is tuple:
                if EXACT_TYPES.issuperset(map(type, row)):
                    return self._pack(*row)
            elif kind is np.ndarray and row.shape == self._shape:
                if row.dtype is FLOAT32:
                    packed: bytes = row.tobytes()
                    return packed
                if row.dtype is FLOAT64 and len(row) <= SMALL_ROW_MAX:
                    return self._pack(*row.tolist())
        except (StructError, OverflowError):  # wrong number of values, or one beyond float32
            pass
        return self._convert(row)

    def _convert(self, values: Any) -> bytes:
        """Packs any valid values, and explains invalid ones."""
        named = _split_named(self._field, values)
        ordered = values if named is None else self._in_model_order(values, *named)
        if self._words:
            ordered = self._coded(ordered)
        if named is not None and EXACT_TYPES.issuperset(map(type, ordered)):
            try:
                return self._pack(*ordered)
            except OverflowError:  # as above
                pass
        packed = _floats(ordered)
        if packed is None or packed.ndim != 1 or self._shape[0] not in (-1, len(packed)):
            raise _shape_error(self._field, values, packed, self._features)
        return packed.tobytes()

    def _coded(self, ordered: Any) -> Any:
        """The values with a number for each word; values that are no row of the right length are returned as they are, and refused later."""
        row = ordered.tolist() if isinstance(ordered, np.ndarray) else ordered
        if self._features is None or not isinstance(row, list | tuple) or len(row) != len(self._features):
            return ordered
        return coded_row(self._field, row, self._features) if any(isinstance(value, str) for value in row) else ordered

    def _in_model_order(self, values: Any, names: list[Any], parts: Iterable[Any]) -> list[Any]:
        """Sorts named values in the model's order, with NaN for missing ones."""
        if self._features is None:
            expected = "numbers without names, as the model's features are not known"
            raise invalid_values(self._field, format_value(values), expected)
        if isinstance(values, tuple) and names[:1] == [ROW_LABEL] and ROW_LABEL not in self._names:
            names, parts = names[1:], values[1:]
        named = dict(zip(names, parts, strict=True))
        if (
            not named.keys() <= self._names.keys()
            or len(named) < len(names)
            or not (named or isinstance(values, Mapping))
        ):
            _check_names(self._field, names, self._features)
        return [named.get(name, np.nan) for name in self._names]


def pack(values: Values, features: Sequence[Feature] | None) -> bytes:
    """Packs one timestep: one little-endian float32 a feature.

    Args:
        values: (features,) numbers in the model's order; or named values: a mapping, a pandas Series, a namedtuple, an instance of a
            dataclass, a structured array without axes, a row of a database with `keys`. A missing name is NaN. The `Index` of
            `DataFrame.itertuples` is ignored unless a feature has that name. A feature with categories takes its words.
        features: those of the model; None when they are unknown, see `Packer`.

    Raises:
        InvalidTimestep: the values are not numbers, their number is wrong, or their names do not match.

    """
    return Packer(features)(values)


def has_names(values: object) -> bool:
    """Whether values are named, so that `pack` needs the features. Raises InvalidTimestep for labels that are not names."""
    return _split_named("values", values) is not None


def columns(
    x: Timesteps, rows: Sequence[int] | Ints | None, streams: int, features: Sequence[Feature]
) -> tuple[Floats, Ints]:
    """Converts timesteps of many streams: (n, features) values, and (n,) indices of their streams.

    Args:
        x: (n, features) numbers; or named values: a frame, a structured array (n,), or a list of n rows as in `pack`.
        rows: (n,) indices; None for all streams.
        streams: the number of streams.
        features: those of the model.

    Raises:
        InvalidTimestep: x or rows are not numbers, have other shapes, or name unknown streams or features.

    """
    indices = np.arange(streams) if rows is None else indices_of(rows, streams)
    expected = (len(indices), len(features))
    values = _table("x", x, features)
    if values is None or (values.shape != expected and (values.size or len(indices))):
        got = format_value(x) if values is None else f"shape {values.shape}"
        raise invalid_values("x", got, f"numbers of shape {expected}: a row a timestep, a column a feature")
    return values.reshape(expected), indices


def split_block(block: Timesteps | Some) -> tuple[Timesteps, Sequence[int] | Ints | None]:
    """Splits what `Block.predict` reads into the arguments of `Block.step`: x, and rows or None."""
    if not isinstance(block, tuple):
        return block, None
    if len(block) != 2:
        raise invalid_values("blocks", f"a tuple of {len(block)}", "x or (x, rows)")
    return cast(Some, block)


def rows_in_order(rows: T, features: Sequence[Feature]) -> T | Floats:
    """Converts a frame or a structured array (n,) to (n, features) numbers, for `Stream.predict`.

    Anything else is returned as it is, and converted row by row. Raises InvalidTimestep for an invalid frame.
    """
    if not (_is_frame(rows) or _is_structured(rows)):
        return rows
    values = _table("rows", rows, features)
    if values is None:
        raise invalid_values("rows", format_value(rows), "columns of numbers; NaN means missing")
    return values


# Names ---------------------------------------------------------------------------------------------------------------


def _split_named(field: str, values: Any) -> tuple[list[Any], Iterable[Any]] | None:
    """Splits a row into its names and its values; None when it has no names."""
    if type(values) in UNNAMED_TYPES:
        return None
    if isinstance(values, np.ndarray | np.void):
        fields = values.dtype.names
        return None if fields is None or values.ndim else (list(fields), [values[name] for name in fields])
    if isinstance(values, dict | Mapping):
        return list(values.keys()), values.values()
    if isinstance(values, tuple):
        return (list(values._fields), values) if hasattr(values, "_fields") else None
    return None if isinstance(values, type) or _is_frame(values) else _split_named_object(field, values)


def _split_named_object(field: str, values: Any) -> tuple[list[Any], Iterable[Any]] | None:
    """The same for an instance of a dataclass and for a row with `keys`."""
    kind = type(values)
    if dataclasses.is_dataclass(values):
        names = [part.name for part in dataclasses.fields(values)]
        return names, [getattr(values, name) for name in names]
    if not (callable(getattr(kind, "keys", None)) and hasattr(kind, "__getitem__")):
        return None
    labels = list(values.keys())
    if not hasattr(kind, "to_numpy"):
        return labels, [values[label] for label in labels]
    # A Series: its labels may be numbers or occur twice.
    if _are_positions(field, labels):
        return None
    column = _column(values)
    return labels, list(values) if column is None else column.tolist()


def _are_positions(field: str, labels: Sequence[Any]) -> bool:
    """Whether labels are the default ones of pandas. Raises InvalidTimestep when they are neither these nor names."""
    if labels and all(isinstance(label, str) for label in labels):
        return False
    if labels == list(range(len(labels))):
        return True
    raise invalid_values(
        field, f"labels {_join_names(labels)}", "names of features; to_numpy() has the values without labels"
    )


def _check_names(field: str, names: Sequence[Any], features: Sequence[Feature]) -> None:
    """Raises InvalidTimestep unless all names are those of features, at least one, and each at most once."""
    known = [feature.name for feature in features]
    distinct = set(names)
    unknown = [name for name in names if name not in known]
    missing = [name for name in known if name not in distinct]
    if unknown:
        message = f"no feature is called {_join_names(unknown)}"
    elif not distinct:
        message = "got no names, expected those of features"
    elif len(distinct) < len(names):
        message = f"got {_join_names([name for name in distinct if names.count(name) > 1])} more than once, expected each name once"
    else:
        return
    message += f"; the model has {_join_names(known)}"
    if unknown and 0 < len(missing) < len(features):
        message += f"; left out: {_join_names(missing)}"
    raise InvalidTimestep(f"{field}: {message}", "WRONG_WIDTH", field=field)


def _join_names(names: Sequence[Any]) -> str:
    """Joins names for an error message."""
    some = ", ".join(" ".join(str(name).split()) for name in names[:NAMES_SHOWN])
    return some + (", ..." if len(names) > NAMES_SHOWN else "")


# Tables --------------------------------------------------------------------------------------------------------------


def _is_frame(x: Any) -> bool:
    """Whether it has named columns. Checks the class, because the labels of a Series are attributes of the instance."""
    kind = type(x)
    return hasattr(kind, "columns") and hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def _is_structured(x: Any) -> bool:
    """Whether it is a one-dimensional structured array."""
    return isinstance(x, np.ndarray) and x.dtype.names is not None and x.ndim == 1


def _table(field: str, x: Any, features: Sequence[Feature]) -> Floats | None:
    """Converts timesteps to numbers, in any shape; None when one is not a number."""
    if _is_structured(x):
        return _by_column(field, x, list(x.dtype.names), features)
    if _is_frame(x):
        # In pyarrow, `columns` has the columns and not the names.
        names = list(x.column_names if hasattr(type(x), "column_names") else x.columns)
        return _floats(x) if _are_positions(field, names) else _by_column(field, x, names, features)
    if isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "OU" and has_categories(features):
        x = x.tolist()
    many = not isinstance(x, np.ndarray | str | bytes | Mapping) and isinstance(x, Sequence)
    if many and any(
        _split_named(field, row) is not None or (has_categories(features) and _has_words(row)) for row in x
    ):
        packer = Packer(features, field)
        packed = b"".join([packer(row) for row in x])
        return np.frombuffer(packed, FLOAT32).reshape(len(x), len(features))
    return _floats(x)


def _has_words(row: Any) -> bool:
    """Whether a row without names has a word."""
    return isinstance(row, list | tuple) and any(isinstance(value, str) for value in row)


def _by_column(field: str, x: Any, names: list[Any], features: Sequence[Feature]) -> Floats:
    """Converts the named columns to (n, features), with NaN for missing features."""
    _check_names(field, names, features)
    values = np.full((len(x), len(features)), np.nan, FLOAT32)
    for place, feature in enumerate(features):
        if feature.name not in names:
            continue
        column = _column(x[feature.name])
        if column is None and feature.categories:
            column = coded_column(field, x[feature.name], feature)
        if column is None or column.shape != (len(x),):
            got = f"column {feature.name} of {getattr(x[feature.name], 'dtype', 'something else')}"
            raise invalid_values(field, got, "columns of numbers; NaN means missing")
        values[:, place] = column
    return values


def _column(x: Any) -> Floats | None:
    """Converts a column or a Series to numbers; None when one is not a number. Values that it marks as missing are NaN."""
    values = _floats(x)
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if values is None and hasattr(type(x), "to_numpy") and kind in tuple(NUMERIC_KINDS):
        return _floats(x.to_numpy(dtype=np.float64, na_value=np.nan))  # a numeric type of pandas' own
    return values


def indices_of(rows: Sequence[int] | Ints, streams: int) -> Ints:
    """Converts the indices of streams. Raises InvalidTimestep when one of them is not below `streams`."""
    expected = f"a list of indices from 0 to {streams - 1}, one a row of x"
    try:
        indices = np.asarray(rows)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        indices = np.empty(0, np.object_)
    if indices.ndim != 1 or (indices.dtype.kind not in "iu" and len(rows)):
        raise invalid_values("rows", format_value(rows), expected)
    if np.any((indices < 0) | (indices >= streams)):
        raise invalid_values("rows", f"{indices.min()} to {indices.max()}", expected)
    return indices.astype(np.int64)


def _floats(values: object) -> Floats | None:
    """Converts to float32, in any shape; None for anything but numbers of one shape. The server refuses infinity."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        return None
    if array.dtype.kind not in NUMERIC_KINDS:
        return None
    if isinstance(values, np.ma.MaskedArray):  # np.asarray drops the mask
        array = np.where(np.ma.getmaskarray(values), np.nan, array)
    if array.dtype == FLOAT32:
        return array
    with np.errstate(over="ignore"):  # it becomes infinite
        return array.astype(FLOAT32)


# Errors --------------------------------------------------------------------------------------------------------------


def invalid_values(field: str, got: str, expected: str) -> InvalidTimestep:
    """The error for a timestep that cannot be converted."""
    return InvalidTimestep(f"{field}: got {got}, expected {expected}", "INVALID_FIELD", field=field)


def _shape_error(
    field: str, values: Values, packed: Floats | None, features: Sequence[Feature] | None
) -> InvalidTimestep:
    """The error for values that are no timestep; `packed` has their numbers, None when they are not numbers."""
    if packed is None:
        got = format_value(values)
    else:
        got = f"{len(packed)} numbers" if packed.ndim == 1 else f"numbers of shape {packed.shape}"
    if features is None:
        expected = "numbers"
    else:
        names = _join_names([feature.name for feature in features])
        expected = f"{len(features)} number{'s' * (len(features) > 1)}: {names}"
    return InvalidTimestep(
        f"{field}: got {got}, expected {expected}; NaN means missing",
        "INVALID_FIELD" if packed is None else "WRONG_WIDTH",
        field=field,
    )
