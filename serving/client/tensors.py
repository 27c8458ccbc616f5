"""Converts what callers give to rows of a model with any inputs; see `tidegate.core.input_layout`.

A model with one float32 input takes what `tidegate.client.inputs` reads. Any other takes one value for each input, by name; or
the value itself where it has a single one. Integers are never converted through floating-point numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.client.arguments import format_value
from tidegate.client.errors import InvalidArgument, InvalidTimestep
from tidegate.client.inputs import Packer, Timesteps, Values, columns, indices_of, invalid_values
from tidegate.client.types import Model
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Input, Ints

# Which kinds convert to each kind without a guess: integers stay integers, booleans count as 0 and 1.
SOURCE_KINDS = {"f": "fiub", "i": "iub", "u": "iub", "b": "iub"}
# The name and the packed values of each input that a stream begins with.
StreamInputs = tuple[tuple[str, bytes], ...]
BeginInputs = Mapping[str, Any]


def row_packer(model: Model) -> Callable[[Values], bytes]:
    """Packs single timesteps of a model."""
    layout = model.layout
    return Packer(model.features) if layout.plain and len(layout.timestep[0].shape) == 1 else RowPacker(model)


class RowPacker:
    """Packs single timesteps of a model with other inputs than one vector of float32.

    A call raises InvalidTimestep when an input is missing or unknown, has another shape, or cannot be of its type.
    """

    def __init__(self, model: Model) -> None:
        self._layout = model.layout
        self._packer = Packer(model.features) if self._layout.values else None

    def __call__(self, values: Values) -> bytes:
        """Packs one timestep: a mapping from the names of the inputs, or the value of the only one."""
        layout = self._layout
        named = _by_name("values", values, layout)
        packed = {part.name: self._pack(part, named[part.name]) for part in layout.timestep}
        return layout.pack(packed, 1).tobytes()

    def _pack(self, part: Input, value: Any) -> bytes:
        if part is self._layout.values and self._packer is not None and _shape_of(value) != part.shape:
            return self._packer(value)
        return convert("values", value, part, [part.shape, (math.prod(part.shape),)]).tobytes()


def block_rows(x: Timesteps, rows: Sequence[int] | Ints | None, streams: int, model: Model) -> tuple[Array, Ints]:
    """Converts timesteps of many streams: (n, ...) rows, and (n,) indices of their streams.

    Args:
        x: what `tidegate.client.inputs.columns` reads; or for other inputs than one vector of float32 an array (n, *shape), a
            mapping from the names of the inputs to such arrays, or a list of n timesteps.
        rows: (n,) indices; None for all streams.
        streams: the number of streams.
        model: that of the streams.

    Raises:
        InvalidTimestep: x or rows have other shapes or types, or name unknown streams or inputs.

    """
    layout = model.layout
    given: Any = x
    if layout.plain:
        shape = layout.timestep[0].shape
        if len(shape) != 1 and (got := _shape_of(given)) and got[1:] == shape:
            given = np.asarray(given).reshape(got[0], -1)
        return columns(given, rows, streams, model.features)
    indices = np.arange(streams) if rows is None else indices_of(rows, streams)
    if isinstance(given, list | tuple) and given and all(isinstance(row, Mapping) for row in given):
        if len(given) != len(indices):
            raise invalid_values("x", f"{len(given)} timesteps", f"{len(indices)}")
        packer = RowPacker(model)
        packed = b"".join([packer(row) for row in given])
        return np.frombuffer(packed, layout.row_dtype).reshape(len(given), -1), indices
    named, count = _by_name("x", given, layout), len(indices)
    parts = {
        part.name: convert("x", named[part.name], part, _column_shapes(count, part)).tobytes()
        for part in layout.timestep
    }
    return layout.pack(parts, count), indices


def stream_inputs(inputs: BeginInputs, model: Model, streams: int | None = None) -> list[StreamInputs]:
    """Converts the inputs with which streams begin. Returns those of each stream.

    Args:
        inputs: by name; for many streams (streams, *shape), or one value for all of them.
        model: that of the streams.
        streams: their number; None for a single stream.

    Raises:
        InvalidArgument: an input is missing or unknown, has another shape, or cannot be of its type.

    """
    layout, count = model.layout, streams or 1
    try:
        _check_names("inputs", inputs, layout.stream)
        packed: list[tuple[str, list[bytes]]] = []
        for part in layout.stream:
            shapes = [part.shape] if streams is None else [(count, *part.shape), part.shape]
            array = convert("inputs", inputs[part.name], part, shapes)
            rows = np.broadcast_to(array, (count, *part.shape))
            packed.append((part.name, [row.tobytes() for row in rows]))
    except InvalidTimestep as error:
        raise InvalidArgument(str(error), field="inputs") from None
    return [tuple((name, rows[place]) for name, rows in packed) for place in range(count)]


def convert(field: str, value: Any, part: Input, shapes: Sequence[tuple[int, ...]]) -> Array:
    """Converts a value to the type of an input. It must have one of these shapes. A single number counts as an array of one.

    Raises:
        InvalidTimestep: it has another shape, or is not of this type and cannot become it exactly.

    """
    if type(value) is np.ndarray and value.dtype == part.dtype and value.shape in shapes:
        return value  # the usual case of a fast sensor
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths in one
        array = np.empty(0, np.object_)
    wrong = ""
    if part.dtype.kind in "iu" and array.dtype.kind in "fO" and _shape_of(value) and _are_integers(value):
        array = np.asarray(value, np.object_)  # numpy makes floats of integers that no type of its own holds
    elif array.dtype.kind not in SOURCE_KINDS[part.dtype.kind]:
        wrong = str(array.dtype) if array.dtype.kind in "fiub" else format_value(value)
    elif isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        if part.dtype.kind != "f":
            wrong = "masked values"
        array = np.where(np.ma.getmaskarray(value), np.nan, array)
    if not wrong and array.shape not in shapes and not (array.ndim == 0 and math.prod(shapes[0]) == 1):
        wrong = f"shape {_shape(array.shape)}"
    if wrong:
        raise invalid_values(field, f"{wrong} for '{part.name}'", f"{part.dtype} of shape {_or(shapes)}")
    if part.dtype.kind in "iub" and array.dtype != part.dtype:
        _check_range(field, array, part)
    with np.errstate(over="ignore"):  # it becomes infinite, and the server refuses it
        converted = array.astype(part.dtype)
    return converted if array.shape in shapes else converted.reshape(shapes[0])


def _check_range(field: str, array: Array, part: Input) -> None:
    """Raises InvalidTimestep when an integer is beyond the type of its input."""
    if not array.size:
        return
    low, high = (0, 1) if part.dtype.kind == "b" else (np.iinfo(part.dtype).min, np.iinfo(part.dtype).max)
    smallest, largest = int(array.min()), int(array.max())
    if smallest < low or largest > high:
        got = largest if largest > high else smallest
        raise invalid_values(field, f"{got} in '{part.name}'", f"{part.dtype}: {low} to {high}")


def _are_integers(value: Any) -> bool:
    """Whether lists have integers only."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_are_integers, value))
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _by_name(field: str, given: Any, layout: InputLayout) -> Mapping[str, Any]:
    """The value of each input."""
    if isinstance(given, Mapping) and not layout.plain:
        _check_names(field, given, layout.timestep)
        return given
    if len(layout.timestep) > 1:
        names = ", ".join(_describe(part) for part in layout.timestep)
        raise invalid_values(field, format_value(given), f"a mapping with {names}")
    return {layout.timestep[0].name: given}


def _check_names(field: str, given: Mapping[str, Any], expected: Sequence[Input]) -> None:
    """Raises InvalidTimestep unless each input is given, and nothing else."""
    known = [part.name for part in expected]
    wrong = [f"no '{name}'" for name in known if name not in given]
    wrong = [f"'{name}'" for name in given if name not in known] or wrong
    if wrong:
        names = ", ".join(_describe(part) for part in expected)
        raise invalid_values(field, ", ".join(wrong), names or "none: the model has no inputs of this kind")


def _column_shapes(count: int, part: Input) -> list[tuple[int, ...]]:
    """The shapes that a column of `count` rows may have: flat too, and without an axis of a single number."""
    size = math.prod(part.shape)
    return [(count, *part.shape), (count, size), *([(count,)] if size == 1 else [])]


def _shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of an array, of lists in lists, or of a number; None for anything else."""
    if not isinstance(value, np.ndarray | list | tuple | int | float | np.generic):
        return None
    try:
        return np.shape(value)
    except ValueError:  # lists of different lengths in one
        return None


def _describe(part: Input) -> str:
    return f"'{part.name}' ({part.dtype} {_shape(part.shape)})"


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _or(shapes: Sequence[tuple[int, ...]]) -> str:
    return " or ".join(dict.fromkeys(map(_shape, shapes)))
