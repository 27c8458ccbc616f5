"""Converts timesteps, as callers write them, to float32 in the order of a model's features.

Laws:
1. What has names is read by its names, what has none by its order. Never is what has names read by its order.
2. A feature whose name is left out is missing: NaN. A name that is none of the features' is refused, so is one that stands there
   twice, and so is a row or a frame in which not one of them is named. Only an empty mapping is a timestep without a measurement.
3. Labels that are numbers are no names. Those that pandas gives where nobody gave any, 0, 1, 2, ..., mean the order; others are
   refused: nobody can tell what they mean.
4. The labels of a frame's rows are not looked at: its rows are in the order of the streams, or of time.

Frames are known by what they can do: nothing here imports pandas, polars or pyarrow.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is a class
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np

from tidegate.client.arguments import format_value
from tidegate.client.errors import InvalidTimestep
from tidegate.core.spec import Array, Feature, Floats, Ints

T = TypeVar("T")


class Keyed(Protocol):
    """A row that says its names itself, as a pandas Series and a row of a database do."""

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


Values = Sequence[float] | Array | np.void | Mapping[str, float] | Keyed | Fields
# What `Block.predict` reads: the next timestep of every stream, or those of some of them.
Timesteps = Array | Sequence[Values] | Frame
Some = tuple[Timesteps, Sequence[int] | Ints]

# Whole numbers, numbers and booleans; all else, None among it, would be guessed at.
NUMERIC_KINDS = "iufb"
# More names than these nobody reads.
NAMES_SHOWN = 12
# What is packed one by one to the same bits as in an array. Whole numbers are not: an array rounds them once, this way twice.
EXACT_TYPES = frozenset({float, np.float64, np.float32})
FLOAT32, FLOAT64 = np.dtype("<f4"), np.dtype("<f8")
# Up to here numbers one by one are quicker than an array that must be told not to warn.
SMALL_ROW_MAX = 64
# What has no names, and is met most often.
UNNAMED_TYPES = frozenset({list, tuple, float, int, str, bytes, type(None)})
# What `DataFrame.itertuples` calls the label of a row, before the columns.
ROW_LABEL = "Index"


class Packer:
    """Timesteps of one model as they travel: one float32 a feature. For a stream to keep.

    Args:
        features: the model's; None when they are not known: then values may have no names, and the server finds out whether
            there are as many as the model has features.
        field: what the values are called in errors.

    """

    __slots__ = ("_features", "_field", "_names", "_pack", "_shape")

    def __init__(self, features: Sequence[Feature] | None, field: str = "values") -> None:
        self._features = features
        self._field = field
        self._names = dict.fromkeys(feature.name for feature in features or ())
        self._shape = (-1 if features is None else len(features),)
        self._pack = Struct(f"<{len(features or ())}f").pack

    def __call__(self, values: Values) -> bytes:
        """One timestep; see `pack`."""
        values_by_name: Any = values
        kind = type(values_by_name)
        try:
            if kind is list or kind is tuple:
                if EXACT_TYPES.issuperset(map(type, values_by_name)):
                    return self._pack(*values_by_name)
            elif kind is np.ndarray and values_by_name.shape == self._shape:
                if values_by_name.dtype is FLOAT32:
                    return cast(bytes, values_by_name.tobytes())
                if values_by_name.dtype is FLOAT64 and len(values_by_name) <= SMALL_ROW_MAX:
                    return self._pack(*values_by_name.tolist())
        except (StructError, OverflowError):  # not as many; or one that becomes infinite
            pass
        return self._convert(values_by_name)

    def _convert(self, values: Any) -> bytes:
        """The same for all that can be given, and with words for what cannot."""
        named = _split_named(self._field, values)
        ordered = values if named is None else self._in_model_order(values, *named)
        if named is not None and EXACT_TYPES.issuperset(map(type, ordered)):
            try:
                return self._pack(*ordered)
            except OverflowError:  # as above
                pass
        packed = _floats(ordered)
        if packed is None or packed.ndim != 1 or self._shape[0] not in (-1, len(packed)):
            raise _shape_error(self._field, values, packed, self._features)
        return packed.tobytes()

    def _in_model_order(self, values: Any, names: list[Any], parts: Iterable[Any]) -> list[Any]:
        """The parts of a row with names in the model's order, NaN where there is none."""
        if self._features is None:
            raise _invalid(
                self._field, format_value(values), "numbers without names, as the model's features are not known"
            )
        if isinstance(values, tuple) and names[:1] == [ROW_LABEL] and ROW_LABEL not in self._names:
            names, parts = names[1:], values[1:]
        values_by_name = dict(zip(names, parts, strict=True))
        if (
            not values_by_name.keys() <= self._names.keys()
            or len(values_by_name) < len(names)
            or not (values_by_name or isinstance(values, Mapping))
        ):
            _check_names(self._field, names, self._features)
        return [values_by_name.get(name, np.nan) for name in self._names]


def pack(values: Values, features: Sequence[Feature] | None) -> bytes:
    """One timestep as it travels: one float32 a feature.

    Args:
        values: (features,) numbers in the model's order; or what has names: a mapping, a pandas Series, a namedtuple, an
            instance of a dataclass, a structured array without axes, a row of a database that has `keys`. A name left out is NaN. The `Index` that
            `DataFrame.itertuples` puts first is left aside unless a feature is called so.
        features: the model's; None when they are not known: see `Packer`.

    Raises:
        InvalidTimestep: they are no numbers, not as many as the model has features, or their names do not fit.

    """
    return Packer(features)(values)


def has_names(values: object) -> bool:
    """Whether these are read by names, so that `pack` must know the features. Raises InvalidTimestep for labels that are none."""
    return _split_named("values", values) is not None


def columns(
    x: Timesteps, rows: Sequence[int] | Ints | None, streams: int, features: Sequence[Feature]
) -> tuple[Floats, Ints]:
    """Timesteps of many streams as columns: (n, features) values, and (n,) indices of the streams they are for.

    Args:
        x: (n, features) numbers; or what has names: a frame, a structured array (n,), or a list of n rows as `pack` takes them.
        rows: (n,) indices; None for all streams.
        streams: how many there are.
        features: the model's.

    Raises:
        InvalidTimestep: x or rows are no numbers, do not have these shapes, or name streams or features that there are not.

    """
    indices = np.arange(streams) if rows is None else _indices(rows, streams)
    expected = (len(indices), len(features))
    values = _table("x", x, features)
    if values is None or (values.shape != expected and (values.size or len(indices))):
        got = format_value(x) if values is None else f"shape {values.shape}"
        raise _invalid("x", got, f"numbers of shape {expected}: a row a timestep, a column a feature")
    return values.reshape(expected), indices


def split_block(block: Timesteps | Some) -> tuple[Timesteps, Sequence[int] | Ints | None]:
    """What `Block.step` takes: x, and the streams that its rows are for; None for all."""
    if not isinstance(block, tuple):
        return block, None
    if len(block) != 2:
        raise _invalid("blocks", f"a tuple of {len(block)}", "x or (x, rows)")
    return cast(Some, block)


def rows_in_order(rows: T, features: Sequence[Feature]) -> T | Floats:
    """What `Stream.predict` iterates over: instead of a frame or a structured array (n,), (n, features) numbers.

    All else is given back: its rows are looked at one by one. Raises InvalidTimestep when a frame does not fit.
    """
    if not (_is_frame(rows) or _is_structured(rows)):
        return rows
    values = _table("rows", rows, features)
    if values is None:
        raise _invalid("rows", format_value(rows), "columns of numbers; NaN means missing")
    return values


# Names ---------------------------------------------------------------------------------------------------------------


def _split_named(field: str, values: Any) -> tuple[list[Any], Iterable[Any]] | None:
    """The names of a row and its values in the same order; None when it has no names."""
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
    """The same of an instance of a dataclass, and of a row that says its names itself."""
    kind = type(values)
    if dataclasses.is_dataclass(values):
        names = [part.name for part in dataclasses.fields(values)]
        return names, [getattr(values, name) for name in names]
    if not (callable(getattr(kind, "keys", None)) and hasattr(kind, "__getitem__")):
        return None
    labels = list(values.keys())
    if not hasattr(kind, "to_numpy"):
        return labels, [values[label] for label in labels]
    # A Series: it has numbers where nobody gave labels, and labels may stand there twice.
    if _are_positions(field, labels):
        return None
    column = _column(values)
    return labels, list(values) if column is None else column.tolist()


def _are_positions(field: str, labels: Sequence[Any]) -> bool:
    """Whether labels are those that pandas gives where nobody gave any; raises when they are neither those nor names."""
    if labels and all(isinstance(label, str) for label in labels):
        return False
    if labels == list(range(len(labels))):
        return True
    raise _invalid(
        field, f"labels {_join_names(labels)}", "names of features; to_numpy() has the values without labels"
    )


def _check_names(field: str, names: Sequence[Any], features: Sequence[Feature]) -> None:
    """Raises InvalidTimestep for names that are not those of features, one at least and each once at most."""
    known = [feature.name for feature in features]
    values_by_name = set(names)
    unknown = [name for name in names if name not in known]
    missing = [name for name in known if name not in values_by_name]
    if unknown:
        message = f"no feature is called {_join_names(unknown)}"
    elif not values_by_name:
        message = "got no names, expected those of features"
    elif len(values_by_name) < len(names):
        message = f"got {_join_names([name for name in values_by_name if names.count(name) > 1])} more than once, expected each name once"
    else:
        return
    message += f"; the model has {_join_names(known)}"
    if unknown and 0 < len(missing) < len(features):
        message += f"; left out: {_join_names(missing)}"
    raise InvalidTimestep(f"{field}: {message}", "WRONG_WIDTH", field=field)


def _join_names(names: Sequence[Any]) -> str:
    """Names as an error message shows them."""
    some = ", ".join(" ".join(str(name).split()) for name in names[:NAMES_SHOWN])
    return some + (", ..." if len(names) > NAMES_SHOWN else "")


# Tables --------------------------------------------------------------------------------------------------------------


def _is_frame(x: Any) -> bool:
    """Whether it has columns by name. Asked of its class: a Series has its labels as attributes."""
    kind = type(x)
    return hasattr(kind, "columns") and hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def _is_structured(x: Any) -> bool:
    """Whether it is an array of rows with names."""
    return isinstance(x, np.ndarray) and x.dtype.names is not None and x.ndim == 1


def _table(field: str, x: Any, features: Sequence[Feature]) -> Floats | None:
    """Timesteps as numbers, in any shape; None when one of them is none."""
    if _is_structured(x):
        return _by_column(field, x, list(x.dtype.names), features)
    if _is_frame(x):
        # The `columns` of pyarrow are the columns themselves.
        names = list(x.column_names if hasattr(type(x), "column_names") else x.columns)
        return _floats(x) if _are_positions(field, names) else _by_column(field, x, names, features)
    many = not isinstance(x, np.ndarray | str | bytes | Mapping) and isinstance(x, Sequence)
    if many and any(_split_named(field, row) is not None for row in x):
        packer = Packer(features, field)
        packed = b"".join([packer(row) for row in x])
        return np.frombuffer(packed, FLOAT32).reshape(len(x), len(features))
    return _floats(x)


def _by_column(field: str, x: Any, names: list[Any], features: Sequence[Feature]) -> Floats:
    """(n, features) of the columns with these names, NaN where a feature has none."""
    _check_names(field, names, features)
    values = np.full((len(x), len(features)), np.nan, FLOAT32)
    for place, feature in enumerate(features):
        if feature.name not in names:
            continue
        column = _column(x[feature.name])
        if column is None or column.shape != (len(x),):
            got = f"column {feature.name} of {getattr(x[feature.name], 'dtype', 'something else')}"
            raise _invalid(field, got, "columns of numbers; NaN means missing")
        values[:, place] = column
    return values


def _column(x: Any) -> Floats | None:
    """A column or a Series as numbers; None when one of them is none. What it marks as missing, if it does so, is NaN."""
    values = _floats(x)
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if values is None and hasattr(type(x), "to_numpy") and kind in tuple(NUMERIC_KINDS):
        return _floats(x.to_numpy(dtype=np.float64, na_value=np.nan))  # numbers of pandas that are not those of numpy
    return values


def _indices(rows: Sequence[int] | Ints, streams: int) -> Ints:
    expected = f"a list of indices from 0 to {streams - 1}, one a row of x"
    try:
        indices = np.asarray(rows)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        indices = np.empty(0, np.object_)
    if indices.ndim != 1 or (indices.dtype.kind not in "iu" and len(rows)):
        raise _invalid("rows", format_value(rows), expected)
    if np.any((indices < 0) | (indices >= streams)):
        raise _invalid("rows", f"{indices.min()} to {indices.max()}", expected)
    return indices.astype(np.int64)


def _floats(values: object) -> Floats | None:
    """Numbers, in any shape; None when one of them is none, or they have no shape. Infinity is left for the server to refuse."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        return None
    if array.dtype.kind not in NUMERIC_KINDS:
        return None
    if isinstance(values, np.ma.MaskedArray):  # an array drops the mask, and shows what is behind it
        array = np.where(np.ma.getmaskarray(values), np.nan, array)
    if array.dtype == FLOAT32:
        return array
    with np.errstate(over="ignore"):  # it becomes infinite
        return array.astype(FLOAT32)


# Errors --------------------------------------------------------------------------------------------------------------


def _invalid(field: str, got: str, expected: str) -> InvalidTimestep:
    return InvalidTimestep(f"{field}: got {got}, expected {expected}", "INVALID_FIELD", field=field)


def _shape_error(
    field: str, values: Values, packed: Floats | None, features: Sequence[Feature] | None
) -> InvalidTimestep:
    """The error for what does not make a timestep; `packed` are its numbers, if it is numbers."""
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
