"""One Arrow column -> NumPy: times, numbers, or codes of text. An error names the cell that cannot be used."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegate.training.data.series import Floats, Times
from tidegate.training.errors import InfiniteValue, TextColumn, TimeColumnError

# The year 2255. Nanoseconds in 64 bits end seven years later, and today in milliseconds is far beyond.
LAST_UNIX_S = 9e9

Codes = npt.NDArray[np.int32]


def times_of(column: Any, name: str, label: str, before: int) -> Times:
    """(rows,) datetime64[ns], NaT if missing; `before` counts the rows of earlier blocks."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return _unix_times(column.cast(pa.float64()).to_numpy(zero_copy_only=False), name, label, before)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())  # there is no cast from the former to times
    try:
        times: Times = column.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False).astype("datetime64[ns]")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TimeColumnError(
            f"{label}: column {name!r} holds {column.type}, expected time stamps (ISO 8601) or Unix seconds: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return times


def codes_of(column: Any, name: str, texts: dict[str, int], label: str) -> Codes:
    """The index of each cell's text in `texts`, which grows in the order of the rows; -1 if the cell is empty."""
    kind = column.type
    if pa.types.is_floating(kind):  # whole numbers with empty cells, as frames keep them
        try:
            column = pa.array(column.to_numpy(zero_copy_only=False), from_pandas=True).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise TextColumn(
                f"{label}: column {name!r} holds fractions, expected text or whole numbers to tell groups or classes apart: "
                f"{str(error).splitlines()[0]}"
            ) from error
    try:
        encoded = column if pa.types.is_dictionary(kind) else column.cast(pa.string()).dictionary_encode()
        found = encoded.dictionary.cast(pa.string()).to_pylist()
    except pa.ArrowNotImplementedError as error:
        raise TextColumn(f"{label}: column {name!r} holds {kind}, expected text or whole numbers") from error
    indices = encoded.indices.cast(pa.int64()).fill_null(len(found)).to_numpy(zero_copy_only=False)
    places = np.full(len(found) + 1, -1, np.int32)
    # A dictionary may be in any order, and may hold text that no row of the block has.
    used, firsts = np.unique(indices, return_index=True)
    for index in used[np.argsort(firsts)].tolist():
        if index < len(found) and found[index]:
            places[index] = texts.setdefault(found[index], len(texts))
    codes: Codes = places[indices]
    return codes


def numbers_of(column: Any, name: str, label: str, before: int) -> Floats:
    """(rows,) float32 with NaN for missing; `before` counts the rows of earlier blocks."""
    kind = column.type
    if column.null_count == len(column):
        return np.full(len(column), np.nan, np.float32)
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ):
        row, value = _first_text(column)
        raise TextColumn(
            f"{label}: column {name!r} holds {kind}, expected numbers; first in row {before + row}: {value!r}; "
            f"leave it out with --exclude {name}, or name it with --group or --label if it is a group or a class"
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())  # there is no cast from bool to float64
    wide = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null -> NaN
    with np.errstate(over="ignore"):
        numbers: Floats = wide.astype(np.float32)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise InfiniteValue(
            f"{label}: column {name!r} has {wide[infinite[0]]:g} in row {before + infinite[0] + 1}, expected finite float32 "
            f"numbers; leave the cell empty if the value is missing"
        )
    return numbers


def _unix_times(seconds: npt.NDArray[np.float64], name: str, label: str, before: int) -> Times:
    """Unix seconds -> datetime64[ns]; a missing one is NaT."""
    known = np.isfinite(seconds)
    beyond = np.flatnonzero(known & (np.abs(seconds) > LAST_UNIX_S))
    if len(beyond):
        raise TimeColumnError(
            f"{label}: column {name!r} has {seconds[beyond[0]]:g} in row {before + beyond[0] + 1}, expected Unix seconds; "
            f"divide milliseconds by 1000"
        )
    nanoseconds = (np.where(known, seconds, 0.0) * 1e9).astype(np.int64).astype("datetime64[ns]")
    return np.where(known, nanoseconds, np.datetime64("NaT", "ns"))


def _first_text(column: Any) -> tuple[int, str]:
    """The first row (from 1) whose value is no number, and that value."""
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            return row, str(value)
    return 1, str(column[0])
