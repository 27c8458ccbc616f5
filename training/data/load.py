"""A table -> `Series`, and back to CSV. Knows no network and no torch.

A missing value is NaN from here to the served graph; everything else that is not a finite number is refused by name.
Columns are filled block by block, so that a series of millions of rows is held once.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data import features
from training.data.series import UNLABELLED, Floats, Group, Ints, Series, Spans, Times, inner_steps_s, iso
from training.data.table import Table, columns_of, open_table, table_of_arrays, table_of_frame
from training.errors import (
    EmptyColumn,
    GroupColumnError,
    InfiniteValue,
    LabelColumnError,
    MissingColumn,
    TextColumn,
    TimeColumnError,
    TimeOrderError,
    UnreadableTable,
)

# A series counts as regular when this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9
# The year 2255; nanoseconds in 64 bits end seven years later, and today in milliseconds is far beyond.
LAST_UNIX_S = 9e9

Codes = npt.NDArray[np.int32]


class Columns(TypedDict, total=False):
    """What the columns of a table are.

    Attributes:
        time: the column of times: time stamps, ISO 8601 text or Unix seconds. Found by itself when there is only one.
        period_s: seconds from row to row of a table without times, which then count from 1970.
        group: says which of several series a row belongs to. Rows of a group need not be together.
        split_by: says what a split must keep whole, such as the person; the same in all rows of a group.
        label: the class of each row, as text or whole numbers; an empty cell is unlabelled.
        columns: take these features, in this order; all but those above when empty. Those that the table does not have
            are made if `features` can.
        exclude: leave these out.
        made: features to make, unless the table has them.
    """

    time: str | None
    period_s: float | None
    group: str | None
    split_by: str | None
    label: str | None
    columns: Sequence[str]
    exclude: Sequence[str]
    made: Sequence[str]


def read(
    path: Path, *, name: str | None = None, units: dict[str, str] | None = None, **columns: Unpack[Columns]
) -> Series:
    """Read a `.csv`, `.parquet`, `.npy` or `.npz` file.

    Args:
        path: the file.
        name: what to call the data; the file's name when absent.
        units: by column.
        columns: what the columns are.

    Raises:
        TableError: one of its kinds, naming the column, the row and the value that cannot be used.
    """
    return _series(open_table(path, name or path.name), columns, units or {})


def series_of(
    data: Any,
    *,
    times: Any = None,
    names: Sequence[str] = (),
    name: str = "data",
    units: dict[str, str] | None = None,
    **columns: Unpack[Columns],
) -> Series:
    """A series from what a program has in memory.

    Args:
        data: numbers of shape (time, features), a structured array, a pandas or polars frame, or an Arrow table.
        times: of an array without a time column: (time,) of datetime64, or Unix seconds.
        names: of an array's columns; c0, c1, ... when absent.
        name: what to call the data.
        units: by column.
        columns: what the columns are.

    Raises:
        TableError: see `read`.
    """
    if hasattr(data, "columns") or hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_arrow"):
        if times is not None or names:
            raise UnreadableTable(f"{name}: got a frame and times or names beside it; expected both as its columns")
        return _series(table_of_frame(data, name), columns, units or {})
    parts = columns_of(np.asarray(data), names, name)
    if times is not None:
        if "time" in parts:
            raise TimeColumnError(f"{name}: got times and a column 'time'; expected one of them")
        parts = {"time": np.asarray(times), **parts}
        columns = {"time": "time", **columns}
    return _series(table_of_arrays(parts, name), columns, units or {})


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        UnreadableTable: see `read`.
    """
    return list(open_table(path, path.name).types)


def write_csv(series: Series, path: Path, spans: Spans) -> None:
    """The rows of the spans as CSV: `time` in ISO 8601, the group and the label if there are any, then the features.

    A missing value is an empty cell. Nine digits bring back the same float32, so what is streamed from the file is what was
    scored.
    """
    group, label = series.group_column or "group", series.label_column or "label"
    head = ["time", *([group] if series.groups else []), *([label] if series.labels is not None else [])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(_quoted(name) for name in [*head, *series.names]) + "\n")
        for first, end in spans:
            for row in range(first, end):
                cells = ("" if math.isnan(value) else f"{value:.9g}" for value in series.values[row].tolist())
                file.write(",".join([iso(series.times[row]), *_belonging(series, row), *cells]) + "\n")


def _belonging(series: Series, row: int) -> list[str]:
    """The cells of a row's group and label, as far as there are such columns."""
    cells = []
    if series.groups:
        place = bisect_right(series.groups, row, key=lambda group: group.first) - 1
        cells.append(_quoted(series.groups[place].name))
    if series.labels is not None:
        label = series.labels[row]
        cells.append("" if label == UNLABELLED else _quoted(series.classes[label]))
    return cells


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"\n\r') else name


def _series(table: Table, columns: Columns, units: dict[str, str]) -> Series:
    """Fill the columns, sort the rows by group, and look at what came of it."""
    roles = _roles(table, columns)
    time = _time_column(table, columns, roles)
    wanted, made = _wanted(table, columns, {*roles.values(), *([time] if time else [])})
    filled = _Filled(table, time, roles, wanted)
    filled.fill()
    groups = _arrange(filled, columns)
    labels, classes = _labels(filled)
    series = Series(
        name=table.name,
        sha256=table.sha256,
        names=tuple(wanted),
        units=tuple(units.get(column, "") for column in wanted),
        values=filled.values,
        times=filled.times,
        period_s=_period_s(filled.times, groups) if time else columns.get("period_s"),
        groups=groups,
        labels=labels,
        classes=classes,
        group_column=roles.get("group", ""),
        label_column=roles.get("label", ""),
    )
    return features.add(series, made)


def _arrange(filled: "_Filled", columns: Columns) -> tuple[Group, ...]:
    """Bring the rows of each group together and see that they are in order; returns the groups."""
    order, groups = _order(filled)
    _set_times(filled, columns, order, groups)
    if order is not None:
        for index in range(filled.values.shape[1]):  # one at a time, so that the table is not there twice
            filled.values[:, index] = filled.values[order, index]
        filled.codes = {role: codes[order] for role, codes in filled.codes.items()}
    return groups


def _roles(table: Table, columns: Columns) -> dict[str, str]:
    """The columns that say what the rows are, by role."""
    chosen = {"group": columns.get("group"), "split_by": columns.get("split_by"), "label": columns.get("label")}
    roles = {role: column for role, column in chosen.items() if column}
    for role, column in roles.items():
        _see(table, column, role.replace("_", "-"))
    if "split_by" in roles and "group" not in roles:
        raise GroupColumnError(
            f"{table.name}: split-by {roles['split_by']!r} without a group, expected to know which rows are one series; "
            f"name the column that says so with --group, {roles['split_by']} itself if need be"
        )
    if "label" in roles and roles["label"] in (roles.get("group"), roles.get("split_by")):
        raise LabelColumnError(
            f"{table.name}: label {roles['label']!r} is the column of the groups, expected another: what is told by the "
            f"group need not be learned"
        )
    return roles


def _see(table: Table, column: str, what: str) -> None:
    if column not in table.types:
        raise MissingColumn(f"{table.name}: no {what} column {column!r}; there are: {', '.join(table.types)}")


def _time_column(table: Table, columns: Columns, roles: dict[str, str]) -> str | None:
    """The column of times; None when rows are a period apart, or numbered."""
    chosen, period_s = columns.get("time"), columns.get("period_s")
    if chosen:
        _see(table, chosen, "time")
        if chosen in roles.values():
            raise TimeColumnError(
                f"{table.name}: column {chosen!r} is the time and the group or label; expected one of them"
            )
        found = [chosen]
    else:
        passed = {*roles.values(), *columns.get("exclude", ())}
        found = [
            column
            for column, kind in table.types.items()
            if column not in passed and (pa.types.is_timestamp(kind) or pa.types.is_date(kind))
        ]
    if period_s is not None and found:
        raise TimeColumnError(
            f"{table.name}: period {period_s:g} s beside the times of column {found[0]!r}, expected one of them; "
            f"leave --period out, or the column with --exclude {found[0]}"
        )
    if len(found) > 1:
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, got several: {', '.join(found)}; name it with --time"
        )
    if not found and period_s is None and not table.timeless:
        raise TimeColumnError(
            f"{table.name}: expected one column of time stamps, got none; name it with --time, or say with --period how "
            f"many seconds lie between two rows"
        )
    return found[0] if found else None


def _wanted(table: Table, columns: Columns, taken: set[str]) -> tuple[list[str], list[str]]:
    """The features to read and those to make."""
    known = [name for name in table.types if name not in taken]
    asked, excluded = columns.get("columns", ()), columns.get("exclude", ())
    for name in excluded:
        _see(table, name, "excluded")
    made = [name for name in (*asked, *columns.get("made", ())) if name not in known and features.can_make(name)]
    for name in asked:
        if name in taken:
            raise MissingColumn(
                f"{table.name}: column {name!r} is the time, the group or the label and no feature; there are: "
                f"{', '.join(known)}"
            )
        if name not in known and name not in made:
            raise MissingColumn(f"{table.name}: no column {name!r}; there are: {', '.join(known)}")
    wanted = [name for name in (asked or known) if name not in excluded and name not in made]
    if not wanted:
        raise MissingColumn(f"{table.name}: no feature column is left beside {', '.join(sorted(taken)) or 'nothing'}")
    return wanted, list(dict.fromkeys(made))


class _Filled:
    """The columns of a table while its blocks come in.

    `values` is (rows, features) float32, `times` (rows,) datetime64[ns]; `codes` has, for each role, the index of each
    row's text in `texts`, -1 where the cell is empty.
    """

    def __init__(self, table: Table, time: str | None, roles: dict[str, str], wanted: Sequence[str]) -> None:
        self.table, self.time, self.roles, self.wanted = table, time, roles, wanted
        # Not touched until it is filled, so that rows which a CSV file might have cost nothing.
        self.values: Floats = np.empty((table.rows, len(wanted)), np.float32)
        self.times: Times = np.empty(table.rows if time else 0, "datetime64[ns]")
        self.codes: dict[str, Codes] = {role: np.empty(table.rows, np.int32) for role in roles}
        self.texts: dict[str, dict[str, int]] = {role: {} for role in roles}
        self.rows = 0

    def fill(self) -> None:
        """Read all blocks.

        Raises:
            TableError: a value cannot be used.
        """
        columns = [*([self.time] if self.time else []), *dict.fromkeys(self.roles.values()), *self.wanted]
        for batch in self.table.blocks(columns, frozenset(self.roles.values())):
            part = slice(self.rows, self.rows + batch.num_rows)
            if self.time:
                self.times[part] = _block_times(batch.column(self.time), self.time, self.table.name, self.rows)
            for role, column in self.roles.items():
                self.codes[role][part] = _block_codes(batch.column(column), column, self.texts[role], self.table.name)
            for index, column in enumerate(self.wanted):
                self.values[part, index] = _block_numbers(batch.column(column), column, self.table.name, self.rows)
            self.rows = part.stop
        pa.default_memory_pool().release_unused()  # what the blocks needed
        self.values, self.times = self.values[: self.rows], self.times[: self.rows]
        self.codes = {role: codes[: self.rows] for role, codes in self.codes.items()}
        for index, column in enumerate(self.wanted):
            if np.isnan(self.values[:, index]).all():
                raise EmptyColumn(
                    f"{self.table.name}: column {column!r} is empty, expected a number in some row; "
                    f"leave it out with --exclude {column}"
                )


def _order(filled: _Filled) -> tuple[npt.NDArray[np.intp] | None, tuple[Group, ...]]:
    """The order of rows that brings groups together, None if they are, and the groups in order of their first rows."""
    if "group" not in filled.roles:
        return None, ()
    codes, column = filled.codes["group"], filled.roles["group"]
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise GroupColumnError(
            f"{filled.table.name}: group column {column!r} has no value in row {missing[0] + 1}; expected one in every row"
        )
    order = np.argsort(codes, kind="stable") if (codes[1:] < codes[:-1]).any() else None
    names = list(filled.texts["group"])
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    firsts = [0, *ends[:-1]]
    wholes = _wholes(filled, order, firsts, names)
    return order, tuple(
        Group(name, int(first), int(end), whole)
        for name, first, end, whole in zip(names, firsts, ends, wholes, strict=True)
    )


def _wholes(
    filled: _Filled, order: npt.NDArray[np.intp] | None, firsts: Sequence[int], names: Sequence[str]
) -> list[str]:
    """What each group must stay together with; empty where nothing says so."""
    if "split_by" not in filled.roles:
        return [""] * len(names)
    texts, codes = list(filled.texts["split_by"]), filled.codes["split_by"]
    codes = codes if order is None else codes[order]
    of_group = codes[list(firsts)]
    # The group of each row, in the new order.
    groups = np.repeat(np.arange(len(names)), np.diff([*firsts, len(codes)]))
    wrong = np.flatnonzero((codes != of_group[groups]) | (codes < 0))
    if len(wrong):
        row = int(wrong[0])
        column, told = (
            filled.roles["split_by"],
            [texts[code] if code >= 0 else "" for code in (of_group[groups[row]], codes[row])],
        )
        raise GroupColumnError(
            f"{filled.table.name}: group {names[groups[row]]!r} has {told[1]!r} in row {_row(order, row)} and {told[0]!r} before in "
            f"column {column!r}, expected the same in all its rows to split by it; choose another --split-by or --group"
        )
    return [texts[code] for code in of_group]


def _row(order: npt.NDArray[np.intp] | None, row: int) -> int:
    """The number of a row in the file, counted from 1."""
    return int(row if order is None else order[row]) + 1


def _labels(filled: _Filled) -> tuple[Ints | None, tuple[str, ...]]:
    """(time,) and the classes: whole numbers in their order, text in that of the alphabet."""
    if "label" not in filled.roles:
        return None, ()
    texts = list(filled.texts["label"])
    if len(texts) < 2:
        raise LabelColumnError(
            f"{filled.table.name}: label column {filled.roles['label']!r} holds {f'only {texts[0]!r}' if texts else 'nothing'}, "
            f"expected at least two classes"
        )
    whole = all(text.removeprefix("-").isdecimal() for text in texts)
    classes = sorted(texts, key=lambda text: (int(text) if whole else 0, text))
    places = np.array([*(classes.index(text) for text in texts), UNLABELLED], np.int64)
    return places[filled.codes["label"]], tuple(classes)


def _set_times(
    filled: _Filled, columns: Columns, order: npt.NDArray[np.intp] | None, groups: tuple[Group, ...]
) -> None:
    """Put the times in order, or make them; strictly increasing within each group."""
    if filled.time is None:
        # Without a period rows are numbered, which stands as seconds since 1970; the series then has none.
        step = np.timedelta64(round((columns.get("period_s") or 1.0) * 1e9), "ns")
        counts = [group.end - group.first for group in groups] or [filled.rows]
        filled.times = np.datetime64(0, "ns") + np.concatenate([np.arange(count) for count in counts]) * step
        return
    label, name = filled.table.name, filled.time
    missing = np.flatnonzero(np.isnat(filled.times))
    if len(missing):
        raise TimeOrderError(f"{label}: column {name!r} has no time in row {missing[0] + 1}; expected one in every row")
    if order is not None:
        filled.times = filled.times[order]
    times = filled.times
    bad = times[1:] <= times[:-1]
    bad[[group.first - 1 for group in groups[1:]]] = False
    if bad.any():
        at = int(bad.argmax()) + 1  # index of the later of the two
        what = "repeats the time of" if times[at] == times[at - 1] else "is earlier than"
        where = next((f" of group {group.name!r}" for group in groups if group.first <= at < group.end), "")
        advice = "" if groups else ", or name the column that tells several series apart with --group"
        raise TimeOrderError(
            f"{label}: row {_row(order, at)} ({iso(times[at])}) {what} row {_row(order, at - 1)} ({iso(times[at - 1])})"
            f"{where} in column {name!r}; expected strictly increasing times: sort the table and drop repeats{advice}"
        )


def _block_times(column: Any, name: str, label: str, before: int) -> Times:
    """(rows,) datetime64[ns], NaT where missing; `before` counts the rows of earlier blocks."""
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


def _block_codes(column: Any, name: str, texts: dict[str, int], label: str) -> Codes:
    """The index of each cell's text in `texts`, which grows in the order of the rows; -1 where the cell is empty."""
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
    # A dictionary may be in any order and hold what no row of the block has.
    used, firsts = np.unique(indices, return_index=True)
    for index in used[np.argsort(firsts)].tolist():
        if index < len(found) and found[index]:
            places[index] = texts.setdefault(found[index], len(texts))
    codes: Codes = places[indices]
    return codes


def _block_numbers(column: Any, name: str, label: str, before: int) -> Floats:
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
            f"leave it out with --exclude {name}, or name it with --group or --label if it says what a row belongs to"
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


def _first_text(column: Any) -> tuple[int, str]:
    """The first row (counted from 1) whose value is no number, and that value."""
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            return row, str(value)
    return 1, str(column[0])


def _period_s(times: Times, groups: tuple[Group, ...]) -> float | None:
    """The usual step within a group; None when the steps differ widely."""
    steps_s = inner_steps_s(times, groups)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s, overwrite_input=True))
    regular = (steps_s >= 0.9 * usual) & (steps_s <= 1.1 * usual)
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
