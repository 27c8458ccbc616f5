"""CSV or Parquet file -> `Series`, split by time, and the scaler of its training part. Knows no network and no torch.

A missing value is NaN from here to the served graph; everything else that is not a finite number is refused by name.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from training.errors import (
    ConstantTarget,
    EmptyColumn,
    InfiniteValue,
    MissingColumn,
    SeriesTooShort,
    TextColumn,
    TimeColumnError,
    TimeOrderError,
    UnreadableTable,
)

Floats = npt.NDArray[np.float32]
Times = npt.NDArray[np.datetime64]

# A step longer than this many periods is a gap: one late sample is jitter, a missing row is not.
GAP_PERIODS = 1.5
# Irregular series have no period; only a silence much longer than the usual step cuts them.
GAP_STEPS_IRREGULAR = 10.0
# A series counts as regular when this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9
# The year 2255; nanoseconds in 64 bits end seven years later, and today in milliseconds is far beyond.
LAST_UNIX_S = 9e9
# float32 keeps seven digits: a spread smaller than this part of the mean is rounding, not signal.
CONSTANT_SPREAD = 1e-6


@dataclass(frozen=True)
class Series:
    """A table of sensor values over time.

    Attributes:
        name: what the data is called in cards and tables.
        sha256: of the file that it was read from.
        names, units: of the columns of `values`; a unit is empty where unknown.
        values: (time, features) float32 in raw units; NaN is missing, infinity never occurs.
        times: (time,) strictly increasing, nanoseconds.
        period_s: the usual step in seconds; None when the steps are irregular.
    """

    name: str
    sha256: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    values: Floats
    times: Times
    period_s: float | None

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> int:
        """The index of a feature.

        Raises:
            MissingColumn: the series has no such feature.
        """
        if name not in self.names:
            raise MissingColumn(f"{self.name}: no column {name!r}; there are: {', '.join(self.names)}")
        return self.names.index(name)

    def stretches(self, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """The runs of rows (first, end) within [start, stop) that no time gap interrupts, in order."""
        end = len(self) if stop is None else stop
        steps_s = _steps_s(self.times[start:end])
        usual_s, factor = self.period_s, GAP_PERIODS
        if usual_s is None:
            usual_s, factor = float(np.median(steps_s)) if len(steps_s) else 0.0, GAP_STEPS_IRREGULAR
        cuts = [start, *(int(i) + start + 1 for i in np.flatnonzero(steps_s > factor * usual_s)), end]
        return [(first, last) for first, last in pairwise(cuts) if last > first]


@dataclass(frozen=True)
class Split:
    """Rows [0, train) teach, [train, validation) choose, [validation, test) are held out and judge."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Scaler:
    """What the training part looks like, per feature: mean, standard deviation and range, all (features,) float32.

    `constant` names the features whose spread is nil; their `std` is 1, so that they are zero, not NaN, when scaled.
    """

    mean: Floats
    std: Floats
    low: Floats
    high: Floats
    constant: tuple[str, ...]


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


def split_by_time(series: Series, *, train: float, validation: float, horizon: int) -> Split:
    """Cut at two moments, so that nothing later than a part has ever been seen by it.

    Args:
        series: what to cut.
        train: share of the rows that teach.
        validation: share of the rows that choose; the rest is held out.
        horizon: the furthest step that will be forecast.

    Raises:
        SeriesTooShort: some part is too short to hold one forecast and what came true.
    """
    rows = len(series)
    split = Split(train=int(rows * train), validation=int(rows * (train + validation)), test=rows)
    parts = {
        "training": split.train,
        "validation": split.validation - split.train,
        "held-out": split.test - split.validation,
    }
    for part, size in parts.items():
        if size < horizon + 2:
            raise SeriesTooShort(
                f"{series.name}: the {part} part has {size} of {rows} rows, expected at least {horizon + 2} "
                f"for a horizon of {horizon} steps; give more rows or smaller --horizons"
            )
    return split


def fit_scaler(series: Series, stop: int) -> Scaler:
    """Mean, spread and range of rows [0, stop), ignoring missing values.

    Raises:
        EmptyColumn: a feature has no value in these rows.
    """
    values = series.values[:stop].astype(np.float64)  # sums of 1e7 rows lose digits in float32
    for index, column in enumerate(series.names):
        if np.isnan(values[:, index]).all():
            raise EmptyColumn(
                f"{series.name}: column {column!r} has no value in the training part (rows 1 to {stop}); "
                f"leave it out with --exclude {column}"
            )
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    constant = std <= CONSTANT_SPREAD * np.abs(mean)
    return Scaler(
        mean=mean.astype(np.float32),
        std=np.where(constant, 1.0, std).astype(np.float32),
        low=np.nanmin(values, axis=0).astype(np.float32),
        high=np.nanmax(values, axis=0).astype(np.float32),
        constant=tuple(name for name, flat in zip(series.names, constant, strict=True) if flat),
    )


def check_targets(series: Series, scaler: Scaler, targets: Sequence[str]) -> None:
    """See that each target exists and moves in the training part.

    Raises:
        MissingColumn: it is not a feature of the series.
        ConstantTarget: it never changes.
    """
    for target in targets:
        index = series.column(target)
        if target in scaler.constant:
            raise ConstantTarget(
                f"{series.name}: target {target!r} is always {scaler.mean[index]:g} in the training part; "
                f"expected a column that changes"
            )


def ahead(series: Series, targets: Sequence[int], horizons: Sequence[int], start: int, stop: int) -> Floats:
    """What comes true: (stop - start, horizons, targets), NaN where it is missing, past a gap, or at or after `stop`."""
    truth = np.full((stop - start, len(horizons), len(targets)), np.nan, np.float32)
    for first, end in series.stretches(start, stop):
        for index, horizon in enumerate(horizons):
            if end - first > horizon:
                truth[first - start : end - start - horizon, index] = series.values[
                    first + horizon : end, list(targets)
                ]
    return truth


def write_csv(series: Series, path: Path, *, start: int, stop: int) -> None:
    """Rows [start, stop) as CSV: `time` in ISO 8601, then the features; a missing value is an empty cell.

    Nine digits bring back the same float32, so what is streamed from the file is what was scored.
    """
    lines = [",".join(["time", *(_quoted(name) for name in series.names)])]
    for time, row in zip(series.times[start:stop], series.values[start:stop], strict=True):
        cells = ("" if math.isnan(value) else f"{value:.9g}" for value in row.tolist())
        lines.append(",".join([_iso(time), *cells]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _iso(time: np.datetime64) -> str:
    whole = time.astype("datetime64[s]")
    return str(whole if whole == time else time)


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
            f"{label}: row {row + 1} ({_iso(times[row])}) {what} row {row} ({_iso(times[row - 1])}) in column {name!r}; "
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


def _steps_s(times: Times) -> npt.NDArray[np.float64]:
    return np.diff(times).astype(np.float64) / 1e9


def _period_s(times: Times) -> float | None:
    steps_s = _steps_s(times)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s))
    regular = np.abs(steps_s - usual) <= usual / 10
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
