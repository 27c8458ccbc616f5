"""CSV or Parquet file -> `Series`, and back. Knows no network and no torch.

A missing value is NaN from here to the served graph; everything else that is not a finite number is refused by name.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from training.errors import (
    EmptyColumn,
    InfiniteValue,
    MissingColumn,
    SeriesTooShort,
    TextColumn,
    TimeColumnError,
    TimeOrderError,
    UnreadableTable,
)
from training.series import Floats, Series, Spans, Times, iso, steps_s_of

# A series counts as regular when this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9
# The year 2255; nanoseconds in 64 bits end seven years later, and today in milliseconds is far beyond.
LAST_UNIX_S = 9e9


def read(
    path: Path,
    *,
    name: str | None = None,
    time: str | None = None,
    columns: Sequence[str] = (),
    exclude: Sequence[str] = (),
    units: dict[str, str] | None = None,
) -> Series:
    """Read a `.csv` or `.parquet` file.

    Args:
        path: the file.
        name: what to call the data; the file's name when absent.
        time: the time column: time stamps, ISO 8601 text or Unix seconds. Found by itself when there is only one.
        columns: take these features, in this order; all but the time when empty.
        exclude: leave these out.
        units: by column.

    Raises:
        TableError: one of its kinds, naming the column, the row and the value that cannot be used.
    """
    content, table = _load(path)
    label = name or path.name
    time_name = _time_column(table, time, label)
    wanted = _wanted(table, time_name, columns, exclude, label)
    times = _times(table[time_name], time_name, label)
    features = [_numbers(table[column], column, label) for column in wanted]
    return Series(
        name=label,
        sha256=hashlib.sha256(content).hexdigest(),
        names=tuple(wanted),
        units=tuple((units or {}).get(column, "") for column in wanted),
        values=np.stack(features, axis=1),  # (time, features)
        times=times,
        period_s=_period_s(times),
    )


def write_csv(series: Series, path: Path, spans: Spans) -> None:
    """The rows of the spans as CSV: `time` in ISO 8601, then the features; a missing value is an empty cell.

    Nine digits bring back the same float32, so what is streamed from the file is what was scored.
    """
    lines = [",".join(["time", *(_quoted(name) for name in series.names)])]
    for first, end in spans:
        for time, row in zip(series.times[first:end], series.values[first:end], strict=True):
            cells = ("" if math.isnan(value) else f"{value:.9g}" for value in row.tolist())
            lines.append(",".join([iso(time), *cells]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"\n\r') else name


def _load(path: Path) -> tuple[bytes, Any]:
    """The file's bytes and its pyarrow table."""
    readers = {".csv": _read_csv, ".parquet": pa.parquet.read_table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UnreadableTable(
            f"data: {path} is neither a named data set nor a .csv or .parquet file; see `tidegate datasets`"
        )
    try:
        content = path.read_bytes()
        table = reader(io.BytesIO(content))
    except OSError as error:
        raise UnreadableTable(f"data: cannot read {path}: {error.strerror or error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableTable(f"data: {path} is not a readable table: {str(error).splitlines()[0]}") from error
    repeated = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
    if repeated:
        raise UnreadableTable(f"data: {path} has several columns called {repeated[0]!r}; expected each name once")
    if table.num_rows == 0:
        raise SeriesTooShort(f"data: {path} has no rows")
    return content, table


def _read_csv(source: io.BytesIO) -> Any:
    # One block: types are inferred from the whole file, so a word in the last row makes a text column, which we name,
    # and not a conversion error in the middle.
    whole = pa.csv.ReadOptions(block_size=max(len(source.getbuffer()), 1))
    # An empty cell is missing in a text column as well, so that the first real word is the one that is told.
    return pa.csv.read_csv(source, read_options=whole, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))


def _time_column(table: Any, chosen: str | None, label: str) -> str:
    if chosen is not None:
        if chosen not in table.column_names:
            raise MissingColumn(f"{label}: no time column {chosen!r}; there are: {', '.join(table.column_names)}")
        return chosen
    found = [field.name for field in table.schema if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)]
    if len(found) == 1:
        return str(found[0])
    got = f"several: {', '.join(found)}" if found else "none"
    raise TimeColumnError(f"{label}: expected one column of time stamps, got {got}; name it with --time")


def _wanted(table: Any, time: str, columns: Sequence[str], exclude: Sequence[str], label: str) -> list[str]:
    known = [name for name in table.column_names if name != time]
    for name in (*columns, *exclude):
        if name not in known:
            raise MissingColumn(f"{label}: no column {name!r}; there are: {', '.join(known)}")
    wanted = [name for name in (columns or known) if name not in exclude]
    if not wanted:
        raise MissingColumn(f"{label}: no feature column is left beside the time column {time!r}")
    return wanted


def _times(column: Any, name: str, label: str) -> Times:
    """(time,) datetime64[ns], strictly increasing."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        times = _unix_times(column.cast(pa.float64()).to_numpy(zero_copy_only=False), name, label)
    else:
        try:
            times = column.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False).astype("datetime64[ns]")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TimeColumnError(
                f"{label}: column {name!r} holds {column.type}, expected time stamps (ISO 8601) or Unix seconds: "
                f"{str(error).splitlines()[0]}"
            ) from error
    _check_order(times, name, label)
    return times


def _unix_times(seconds: npt.NDArray[np.float64], name: str, label: str) -> Times:
    """Unix seconds -> datetime64[ns]; a missing one is NaT."""
    known = np.isfinite(seconds)
    beyond = np.flatnonzero(known & (np.abs(seconds) > LAST_UNIX_S))
    if len(beyond):
        raise TimeColumnError(
            f"{label}: column {name!r} has {seconds[beyond[0]]:g} in row {beyond[0] + 1}, expected Unix seconds; "
            f"divide milliseconds by 1000"
        )
    nanoseconds = (np.where(known, seconds, 0.0) * 1e9).astype(np.int64).astype("datetime64[ns]")
    return np.where(known, nanoseconds, np.datetime64("NaT", "ns"))


def _check_order(times: Times, name: str, label: str) -> None:
    missing = np.flatnonzero(np.isnat(times))
    if len(missing):
        raise TimeOrderError(f"{label}: column {name!r} has no time in row {missing[0] + 1}; expected one in every row")
    wrong = np.flatnonzero(np.diff(times) <= np.timedelta64(0, "ns"))
    if len(wrong):
        row = int(wrong[0]) + 1  # index of the later of the two
        what = "repeats the time of" if times[row] == times[row - 1] else "is earlier than"
        raise TimeOrderError(
            f"{label}: row {row + 1} ({iso(times[row])}) {what} row {row} ({iso(times[row - 1])}) in column {name!r}; "
            f"expected strictly increasing times: sort the table and drop repeats"
        )


def _numbers(column: Any, name: str, label: str) -> Floats:
    """(time,) float32 with NaN for missing."""
    kind = column.type
    if column.null_count == len(column):
        raise EmptyColumn(f"{label}: column {name!r} is empty; leave it out with --exclude {name}")
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ):
        row, value = _first_text(column)
        raise TextColumn(
            f"{label}: column {name!r} holds {kind}, expected numbers; first in row {row}: {value!r}; "
            f"leave it out with --exclude {name}"
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())  # there is no cast from bool to float64
    wide = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null -> NaN
    with np.errstate(over="ignore"):
        numbers: Floats = wide.astype(np.float32)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise InfiniteValue(
            f"{label}: column {name!r} has {wide[infinite[0]]:g} in row {infinite[0] + 1}, expected finite float32 numbers; "
            f"leave the cell empty if the value is missing"
        )
    if np.isnan(numbers).all():
        raise EmptyColumn(f"{label}: column {name!r} holds only NaN; leave it out with --exclude {name}")
    return numbers


def _first_text(column: Any) -> tuple[int, str]:
    """The first row (counted from 1) whose value is no number, and that value."""
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            return row, str(value)
    return 1, str(column[0])


def _period_s(times: Times) -> float | None:
    steps_s = steps_s_of(times)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s))
    regular = np.abs(steps_s - usual) <= usual / 10
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
