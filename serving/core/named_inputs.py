"""Checks inputs that a client has sent by name, and packs them into rows."""

from collections.abc import Iterable, Sequence

import numpy as np

from tidegate.core.errors import InvalidField, join_names
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Input

FIELD = "inputs"

# The name and the packed values of each input, as a client has sent them.
Named = Sequence[tuple[str, bytes]]


def check_named(named: Named, expected: Sequence[Input], rows: int = 1) -> dict[str, bytes]:
    """The packed values of each expected input by name, for a number of rows.

    Raises:
        InvalidField: an input is missing, is unknown, comes twice, has a wrong size, or has a boolean that is not 0 or 1.

    """
    known = {part.name: part for part in expected}
    found: dict[str, bytes] = {}
    for name, packed in named:
        part = known.get(name)
        if part is None:
            raise InvalidField(FIELD, f"got '{join_names([name])}', expected {describe(expected)}")
        if name in found:
            raise InvalidField(FIELD, f"got '{name}' twice, expected each input once")
        if len(packed) != rows * part.nbytes:
            raise InvalidField(FIELD, f"'{name}' has {len(packed)} bytes, expected {_size(part, rows)}")
        if part.dtype == np.bool_ and np.frombuffer(packed, np.uint8).max(initial=0) > 1:
            raise InvalidField(
                FIELD, f"'{name}' has a byte that is neither 0 nor 1, expected booleans of one byte each"
            )
        found[name] = packed
    if len(found) < len(known):
        missing = [name for name in known if name not in found]
        raise InvalidField(FIELD, f"got no '{join_names(missing)}', expected {describe(expected)}")
    return found


def pack_rows(layout: InputLayout, named: Named, values: bytes, rows: int = 1) -> Array:
    """The rows of timesteps, from their inputs by name and from `values`, which has the input of that kind.

    Only for a layout that is not plain. Raises InvalidField as `check_named` does, and for `values` of a wrong size.
    """
    columns = check_named(named, layout.named, rows)
    if layout.values is not None:
        if len(values) != rows * layout.values.nbytes:
            got = f"got {len(values)} bytes for '{layout.values.name}'"
            raise InvalidField("values", f"{got}, expected {_size(layout.values, rows)}")
        columns[layout.values.name] = values
    elif values:
        raise InvalidField("values", f"got {len(values)} bytes, expected none; send {describe(layout.named)} by name")
    return layout.pack(columns, rows)


def describe(inputs: Sequence[Input]) -> str:
    """Names, types and shapes of inputs, for errors."""
    return ", ".join(f"'{part.name}' ({part.dtype} {format_shape(part.shape)})" for part in inputs) or "none"


def format_shape(shape: Iterable[int]) -> str:
    """A shape as messages write it."""
    return "[" + ", ".join(map(str, shape)) + "]"


def _size(part: Input, rows: int) -> str:
    size = f"{rows * part.nbytes}: {part.dtype} of shape {format_shape(part.shape)}"
    return size if rows == 1 else f"{size} for each of {rows} rows"
