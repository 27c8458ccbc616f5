"""A table -> `Series`.

A missing value becomes NaN. A column of words, without a value or with always the same one is left out, and said so; anything
else that is not a finite number is an error that names column, row and value. Columns are filled block by block, so that a
series of millions of rows is in memory once.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tidegate.training.data import features
from tidegate.training.data.arrays import Plan, TableArrays
from tidegate.training.data.cells import SAVE_AGAIN, UNCALCULATED, NumberFormat, is_missing, units_of_cells
from tidegate.training.data.columns import Columns, feature_columns, role_columns, time_columns
from tidegate.training.data.dialect import is_unit
from tidegate.training.data.formats import open_table
from tidegate.training.data.gaps import fill_gaps
from tidegate.training.data.parse import Missing, is_text, kind_of, text_of
from tidegate.training.data.resample import resample
from tidegate.training.data.rows import arrange
from tidegate.training.data.sentinels import likely_sentinels
from tidegate.training.data.series import UNLABELLED, Group, Ints, Series, Times, group_steps_s
from tidegate.training.data.table import Table, columns_of, table_of_arrays, table_of_frame
from tidegate.training.data.times import TimeReader
from tidegate.training.errors import LabelColumnError, MissingColumn, TimeColumnError, UnreadableTable
from tidegate.training.settings import Format

# A series is regular if this share of its steps lies within a tenth of the median step.
REGULAR_SHARE = 0.9
_CLOCK = re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?")
# Names of columns that number the rows; their values must do so too.
COUNTERS = frozenset({"#", "no", "no.", "nr", "nr.", "row", "record", "recnbr", "index", "id", "idx", "unnamed: 0"})


def read(
    path: Path,
    *,
    name: str | None = None,
    units: dict[str, str] | None = None,
    options: Format | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    **columns: Unpack[Columns],
) -> Series:
    """Read a file, a folder or a pattern of files; see `files.KINDS`.

    Args:
        path: the file; `-` is standard input.
        name: of the data; the name of the file if absent.
        units: by column.
        options: overrule what is guessed of the file, and say what to do with its values and rows.
        words: of categories, by column, in the order of a model; by default those of the table in alphabetic order.
        columns: the roles of the columns.

    Raises:
        TableError: one of its kinds; it names the column, the row and the value that cannot be used.
    """
    options = options or Format()
    return _build_series(open_table(path, name or path.name, options), columns, units or {}, options, words or {})


def series_of(
    data: Any,
    *,
    times: Any = None,
    names: Sequence[str] = (),
    name: str = "data",
    units: dict[str, str] | None = None,
    options: Format | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    **columns: Unpack[Columns],
) -> Series:
    """A series from data in memory.

    Args:
        data: numbers of shape (time, features), a structured array, a pandas or polars frame, or an Arrow table.
        times: of an array without a time column: (time,) of datetime64, or Unix seconds.
        names: of the columns of an array; c0, c1, ... if absent.
        name: of the data.
        units: by column.
        options: what to do with values and rows.
        words: of categories, see `read`.
        columns: the roles of the columns.

    Raises:
        TableError: see `read`.
    """
    if hasattr(data, "columns") or hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_arrow"):
        if times is not None or names:
            raise UnreadableTable(f"{name}: got a frame and times or names beside it; expected both as its columns")
        return _build_series(table_of_frame(data, name), columns, units or {}, options or Format(), words or {})
    parts = columns_of(np.asarray(data), names, name)
    if times is not None:
        if "time" in parts:
            raise TimeColumnError(f"{name}: got times and a column 'time'; expected one of them")
        parts = {"time": np.asarray(times), **parts}
        columns = {"time": "time", **columns}
    return _build_series(table_of_arrays(parts, name), columns, units or {}, options or Format(), words or {})


def column_names(path: Path, options: Format | None = None) -> list[str]:
    """The columns of a file.

    Raises:
        UnreadableTable: see `read`.
    """
    return list(open_table(path, path.name, options).types)


def _build_series(
    table: Table, columns: Columns, units: dict[str, str], options: Format, words: Mapping[str, Sequence[str]]
) -> Series:
    """Read the columns, bring the rows into order, and build the series."""
    _check_numbers(table)
    missing = _missing_of(options.missing_values, table)
    head = next(iter(table.blocks(list(table.types))), None)
    numbers = (table.numbers or NumberFormat()).reader()
    kinds = {
        name: kind_of(head.column(name), numbers, missing.get(name, Missing()).words) if head else "empty"
        for name in table.types
    }
    roles = role_columns(table, columns)
    timed = {name for name, kind in kinds.items() if head and kind == "date" and _has_clock(head.column(name))}
    times = time_columns(table, columns, roles, kinds, timed)
    names, derived = feature_columns(table, columns, {*roles.values(), *times})
    suffixes = _suffixes(names, kinds, options, head)
    names, left_out = _usable(table, columns, options, names, kinds | dict.fromkeys(suffixes, "number"), head)
    decimal = table.numbers.decimal if table.numbers else "."
    plan = Plan(
        times=TimeReader(times, table.name, options.time_format, decimal, table.days_before) if times else None,
        roles=roles,
        names=names,
        # A file that we wrote has the numbers of the words.
        categories={
            name: tuple(words.get(name, ()))
            for name in options.categories
            if name in names and not (name in words and kinds[name] == "number")
        },
        offsets=_offsets(options.offset, table),
        missing=missing,
        suffixes=suffixes,
    )
    arrays = TableArrays(table, plan)
    arrays.fill()
    arranged = arrange(arrays, columns, options)
    groups, notes = resample(arrays, arranged.groups, options)
    left_out |= _drop_idle(arrays, columns)
    labels, classes = _labels(arrays)
    told = _told(table, arrays, left_out, [*arranged.notes, *notes])
    series = Series(
        name=table.name,
        sha256=_sha256(table, options),
        names=tuple(arrays.names),
        units=tuple((table.units | suffixes | units).get(column, "") for column in arrays.names),
        values=arrays.values,
        times=arrays.times,
        period_s=_period_s(arrays.times, groups) if times else columns.get("period_s"),
        groups=groups,
        labels=labels,
        classes=classes,
        group_column=roles.get("group", ""),
        label_column=roles.get("label", ""),
        categories={column: tuple(known) for column, known in arrays.words.items() if column in arrays.names},
        notes=told,
        timezone="UTC" if arrays.in_utc else "",
    )
    # Before the derived features, which depend on the times and on the rows that follow.
    return features.add_derived(fill_gaps(series, columns.get("fill_gaps", 0)), derived)


def _has_clock(column: Any) -> bool:
    """Whether dates in text have a time of day other than midnight: then one in another column is something else."""
    if not is_text(column.type):
        return False
    cells = [cell for cell in text_of(column).to_pylist() if cell]
    return any(found[0] not in ("0:00", "00:00", "00:00:00") for found in map(_CLOCK.search, cells) if found)


def _check_numbers(table: Table) -> None:
    if table.numbers is None:
        sign = "," if "," in table.ambiguous else "."
        raise UnreadableTable(
            f"data: {table.name}: {table.ambiguous!r} may be {table.ambiguous.replace(sign, '.')} or "
            f"{table.ambiguous.replace(sign, '')}; say which with --decimal , or --decimal ."
        )


def _usable(
    table: Table, columns: Columns, options: Format, names: list[str], kinds: dict[str, str], head: Any
) -> tuple[list[str], dict[str, str]]:
    """The columns that hold numbers or categories; and why others are left out, by name."""
    for name in options.categories:
        if name not in table.types:
            raise MissingColumn(f"{table.name}: no column {name!r} of categories; there are: {', '.join(table.types)}")
    wanted = {*columns.get("columns", ()), *columns.get("keep", ()), *options.categories}
    left_out = {}
    for name in names:
        if name in wanted:
            continue
        if kinds[name] in ("text", "date", "clock"):
            left_out[name] = _why(name, kinds[name], head)
        elif _is_counter(name, list(table.types), head):
            left_out[name] = "counts the rows"
    usable = [name for name in names if name not in left_out]
    if not usable:
        listed = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        raise MissingColumn(f"{table.name}: no column of numbers is left; left out: {listed}{table.advice}")
    return usable, left_out


def _why(name: str, kind: str, head: Any) -> str:
    """Why a column of no numbers is left out."""
    if kind != "text" or not is_text(head.column(name).type):
        return "times" if kind != "text" else "neither numbers nor text"
    cells = _known_cells(head, name)
    if UNCALCULATED in cells:
        return f"formulas without a value: {SAVE_AGAIN}"
    units = units_of_cells(cells)
    if len(units) > 1 and "" not in units:
        return f"numbers with several units: {', '.join(sorted(units)[:5])}"
    return "text, for --categories if its words are states"


def _known_cells(head: Any, name: str) -> list[str]:
    return [cell for cell in text_of(head.column(name)).to_pylist() if cell is not None and not is_missing(cell)]


def _suffixes(names: Sequence[str], kinds: dict[str, str], options: Format, head: Any) -> dict[str, str]:
    """The unit that stands behind each number of a column of text, by column."""
    found = {}
    for name in names:
        if kinds[name] != "text" or name in options.categories or not is_text(head.column(name).type):
            continue
        units = units_of_cells(_known_cells(head, name))
        if len(units) == 1 and is_unit(min(units)):
            found[name] = min(units)
    return found


def _is_counter(name: str, names: list[str], head: Any) -> bool:
    """Whether a column only numbers the rows, as loggers write it, and frames their index."""
    unnamed = name == "c0" and names[0] == "c0" and "c1" not in names
    if not (unnamed or name.lower() in COUNTERS) or len(names) < 2 or not head or len(head) < 2:
        return False
    try:
        steps = np.diff(np.array([int(cell) for cell in head.column(name).to_pylist()]))
    except (TypeError, ValueError):
        return False
    return bool((steps == 1).all())


def _drop_idle(arrays: TableArrays, columns: Columns) -> dict[str, str]:
    """Leave out the columns without a value or with always the same; why, by name."""
    wanted = {*columns.get("columns", ()), *columns.get("keep", ()), *columns.get("derived", ())}
    idle = dict.fromkeys(arrays.late_text, "text")
    for index, name in enumerate(arrays.names):
        column = arrays.values[:, index]
        known = column[~np.isnan(column)]
        if name in wanted or name in idle:
            continue
        if not len(known):
            idle[name] = "empty"
        elif len(column) > 1 and known.min() == known.max() and len(known) == len(column):
            idle[name] = f"always {known[0]:g}"
    if len(idle) == len(arrays.names):  # what is asked of them tells what is wrong
        return {}
    kept = [index for index, name in enumerate(arrays.names) if name not in idle]
    if idle:
        arrays.values = np.ascontiguousarray(arrays.values[:, kept])
        arrays.names = [arrays.names[index] for index in kept]
    return idle


def _told(table: Table, arrays: TableArrays, left_out: dict[str, str], notes: Sequence[str]) -> tuple[str, ...]:
    """What was understood of the table and done to it: one line, and one for each thing that a person should know."""
    parts = [table.understood, f"time = {arrays.time_about}" if arrays.time_about else ""]
    understood = ", ".join(part for part in parts if part)
    told = [f"{table.name}: {understood}"] if understood else []
    told += [*table.notes, *table.later_notes()]
    if left_out:
        told.append(f"left out: {', '.join(f'{name} ({reason})' for name, reason in left_out.items())}")
    told += [
        f"column {name!r}: unknown words are missing values: {', '.join(sorted(set(words))[:5])}"
        for name, words in arrays.unknown_words.items()
    ]
    told += [
        f"column {name!r}: {', '.join(f'{word} = {code}' for word, code in words.items())}"
        for name, words in arrays.words.items()
    ]
    return (*told, *notes, *likely_sentinels(arrays.names, arrays.values))


def _missing_of(given: Sequence[str], table: Table) -> dict[str, Missing]:
    """What means a missing value, for each column of the table."""
    everywhere: list[str] = []
    own: dict[str, list[str]] = {}
    for token in given:
        column, sign, value = token.rpartition("=")
        if sign and column in table.types:
            own.setdefault(column, []).append(value)
        else:
            everywhere.append(token)
    return {name: _missing([*everywhere, *own.get(name, ())]) for name in table.types if everywhere or name in own}


def _missing(tokens: Sequence[str]) -> Missing:
    numbers = []
    for token in tokens:
        try:
            numbers.append(float(token))
        except ValueError:
            continue
    return Missing(tuple(numbers), frozenset(token.strip().lower() for token in tokens))


def _offsets(given: Sequence[str], table: Table) -> dict[str, float]:
    """Numbers by column, from `column=number`."""
    pairs = {}
    for text in given:
        column, _, number = text.rpartition("=")
        try:
            pairs[column] = float(number)
        except ValueError:
            column = ""
        if column not in table.types:
            raise MissingColumn(
                f"offset: got {text!r}, expected a column and a number, as temp=273.15; there are: {', '.join(table.types)}"
            )
    return pairs


def _sha256(table: Table, options: Format) -> str:
    """The checksum of the content; what changes the rows changes it too, for a model knows its rows by it."""
    changing = {"untimed", "duplicates", "resample", "resample_by", "timezone"}
    changed = options.model_dump(include=changing, exclude_defaults=True)
    if not changed:
        return table.sha256
    return hashlib.sha256(f"{table.sha256} {sorted(changed.items())}".encode()).hexdigest()


def _labels(arrays: TableArrays) -> tuple[Ints | None, tuple[str, ...]]:
    """(time,) labels and the classes: numbers in numeric order, text in alphabetic order."""
    if "label" not in arrays.plan.roles:
        return None, ()
    texts = list(arrays.texts["label"])
    if len(texts) < 2:
        raise LabelColumnError(
            f"{arrays.table.name}: label column {arrays.plan.roles['label']!r} holds {f'only {texts[0]!r}' if texts else 'nothing'}, "
            f"expected at least two classes"
        )
    numeric = all(text.removeprefix("-").isdecimal() for text in texts)
    classes = sorted(texts, key=lambda text: (int(text) if numeric else 0, text))
    places = np.array([*(classes.index(text) for text in texts), UNLABELLED], np.int64)
    return places[arrays.codes["label"]], tuple(classes)


def _period_s(times: Times, groups: tuple[Group, ...]) -> float | None:
    """The usual step within a group; None if the steps differ widely."""
    steps_s = group_steps_s(times, groups)
    if len(steps_s) == 0:
        return None
    usual = float(np.median(steps_s, overwrite_input=True))
    regular = (steps_s >= 0.9 * usual) & (steps_s <= 1.1 * usual)
    return usual if float(np.mean(regular)) >= REGULAR_SHARE else None
