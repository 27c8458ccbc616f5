"""A CSV file of sensor rows, as timesteps of a model."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from itertools import pairwise
from pathlib import Path

import numpy as np

from tidegate.cli.file_kind import other_kind
from tidegate.cli.local_times import UnknownTime
from tidegate.cli.times import TIME_NAMES, Times, read_times
from tidegate.core.spec import Floats, Input

FLOAT32_MAX = float(np.finfo(np.float32).max)
# The usual ways to write a missing value and a yes or no; those of `training/data/cells.py`.
MISSING = frozenset(
    {"", "-", "--", "---", "?", ".", "na", "n/a", "#n/a", "#nv", "#na", "<na>", "nan", "-nan", "null", "none", "nil"}
    | {"nodata", "no data", "missing", "unknown", "unavailable", "#value!", "#div/0!", "1.#qnan", "-1.#ind"}
)
BOOLEANS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "on": 1.0, "off": 0.0}
# So many bytes at the start of a file show what it is.
HEAD_BYTES = 64
# What may stand around a cell; the byte order mark of a file that was joined to others among it.
BLANK = " \t\ufeff"
# A message names at most this many unknown words.
MAX_UNKNOWN = 5
# Training reads far more kinds of files. A file of another kind is refused with these words.
EXPECTED = (
    "expected UTF-8 with ',' between columns and a decimal point; `tidegate evaluate MODEL --data FILE --csv OUT.csv` reads "
    "all that a training reads, and writes it so"
)


class InvalidTable(Exception):
    """The file is not as expected. The message names the row, the column and what to do."""


def check_inputs(model: str, by_name: Sequence[Input]) -> None:
    """Raises InvalidTable when a model takes inputs that rows of numbers do not have. `by_name` are these inputs."""
    if by_name:
        names = ", ".join(f"'{part.name}' ({part.dtype} {list(part.shape)})" for part in by_name)
        raise InvalidTable(
            f"model {model} takes {names}, expected one vector of float32 only; this command sends rows of numbers: "
            "use the Python client for this model"
        )


@dataclass(frozen=True, slots=True)
class SensorTable:
    """Rows in time order.

    Attributes:
        label: the name of the column that says when a row was measured: the first one that is neither a feature nor the group.
        labels: the text of that column for each row, or the row number if there is no such column.
        features: the names of the features.
        values: (rows, features), NaN where a cell is empty.
        groups: the series that each row belongs to; empty when the file has one series.
        when: the times that the labels are; None if they cannot be read as times.
        labelled: whether the labels are those of a column, and not row numbers.
        notes: sentences for the user.
    """

    label: str
    labels: tuple[str, ...]
    features: tuple[str, ...]
    values: Floats
    groups: tuple[str, ...] = ()
    when: Times | None = None
    labelled: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def column(self, name: str) -> Floats:
        """Returns one feature: (rows,)."""
        return self.values[:, self.features.index(name)]

    def times(self) -> list[datetime] | None:
        """Returns when each row was measured; None if that is not known, or if it goes back: a line that goes back cannot be read."""
        moments = self.when.moments if self.when else ()
        return list(moments) if moments and all(before <= after for before, after in pairwise(moments)) else None

    def first(self, rows: int) -> "SensorTable":
        """Returns the first rows."""
        return self.take(range(min(rows, len(self))))

    def take(self, rows: Sequence[int]) -> "SensorTable":
        """Returns some rows, without their groups."""
        labels = tuple(self.labels[row] for row in rows)
        when = self.when.take(rows) if self.when else None
        return SensorTable(self.label, labels, self.features, self.values[list(rows)], when=when)

    def series(self) -> list[tuple[str, "SensorTable"]]:
        """Returns each series with its name, in the order of their first rows. Without groups there is one without a name."""
        if not self.groups:
            return [("", self)]
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(self.groups):
            rows.setdefault(group, []).append(row)
        return [(group, self.take(own)) for group, own in rows.items()]


def read_table(  # noqa: PLR0913  how a file was written has many parts
    path: Path,
    features: Sequence[str],
    group: str = "",
    *,
    time: str = "",
    groups_of_model: str = "",
    time_format: str = "",
    period_s: float | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    missing_values: Sequence[str] = (),
    zone: tzinfo | None = None,
) -> SensorTable:
    """Reads the columns of a CSV file that are features of the model, in the model's order.

    Args:
        path: the file.
        features: of the model.
        group: the column that says which series a row belongs to; empty for one series.
        time: the column that labels the rows, if the file has it; else the first one that is neither a feature nor the group.
        groups_of_model: the group column of the model's own data. A file that has it holds several series too.
        time_format: how the training was told that times are written, see `read_times`.
        period_s: of the model.
        categories: the words of features that were text in the training; a value is the place of its word.
        missing_values: what else means a missing value, as -999 or, for one column, flow=0.
        zone: of the clock that wrote the times, see `read_times`.

    Raises:
        InvalidTable: columns or cells are not as expected, the file cannot be read, or it holds several series and no `group`.
    """
    if group in features:
        raise InvalidTable(f"{path}: column {group} is a feature of the model, expected a column that names the series")
    try:
        # Opened once: what comes from a pipe can be read only once.
        with path.open("rb") as raw, io.TextIOWrapper(raw, newline="", encoding="utf-8-sig") as file:
            if kind := other_kind(raw.peek(HEAD_BYTES)):
                raise InvalidTable(f"{path}: this file is {kind}; {EXPECTED}")
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None:
                raise InvalidTable(
                    f"{path}: the file is empty, expected a header with the columns {', '.join(features)}"
                )
            names = [name.strip() for name in header]
            asked = group or (groups_of_model if groups_of_model in names else "")
            table = _read_rows(path, names, rows, features, asked, time, categories or {}, missing_values)
    except OSError as error:
        raise InvalidTable(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidTable(f"{path}: not a CSV file in UTF-8: {error}; {EXPECTED}") from error
    if table.labelled:
        named = table.label == time or table.label.lower() in TIME_NAMES
        try:
            when = read_times(
                table.labels, table.groups, numbers=named, trained=time_format, period_s=period_s, zone=zone
            )
        except UnknownTime as error:
            raise InvalidTable(f"{path}: column {table.label}: {error}") from error
        table = replace(table, when=when)
    return table if group or not asked else _single_series(path, table, asked)


def _single_series(path: Path, table: SensorTable, column: str) -> SensorTable:
    """The table without its groups, if there is one."""
    count = len(set(table.groups))
    if count > 1:
        raise InvalidTable(
            f"{path}: column {column} tells {count} series apart, as in the training of the model; send each to a stream of its "
            f"own with --group {column}"
        )
    return replace(table, groups=())


def _read_rows(
    path: Path,
    header: list[str],
    rows: Iterable[list[str]],
    features: Sequence[str],
    group: str,
    time: str,
    categories: Mapping[str, Sequence[str]],
    missing_values: Sequence[str],
) -> SensorTable:
    """Reads the rows below the header."""
    columns = _columns(path, header, features)
    (grouping,) = _columns(path, header, [group]) if group else (None,)
    others = [index for index, name in enumerate(header) if name not in {*features, group}]
    label = next((index for index in others if header[index] == time), others[0] if others else None)
    words = {index: header[index] for index in columns if header[index] in categories}
    absent = {index: _missing_of(missing_values, header[index]) for index in columns}
    cells: dict[int, list[str]] = {index: [] for index in words}
    values: list[list[float]] = []
    labels: list[str] = []
    groups: list[str] = []
    repeated: list[int] = []
    for number, row in _below(rows, header, repeated):
        if len(row) != len(header):
            raise InvalidTable(f"{path}, line {number}: got {len(row)} cells, expected {len(header)} as in the header")
        values.append(
            [
                math.nan if index in words else _number(path, number, header[index], row[index], absent[index])
                for index in columns
            ]
        )
        for index, column in cells.items():
            column.append(row[index].strip())
        labels.append(str(len(labels) + 1) if label is None else row[label])
        if grouping is not None:
            groups.append(_name(path, number, group, row[grouping]))
    if not values:
        raise InvalidTable(f"{path}: got a header and no rows")
    name = "row" if label is None else header[label]
    table = SensorTable(name, tuple(labels), tuple(features), np.array(values, np.float32), tuple(groups))
    notes = []
    if repeated:
        many = len(repeated)
        which = "1 line between the rows repeats" if many == 1 else f"{many} lines between the rows repeat"
        notes.append(f"{which} the header: left out")
    for index, column in cells.items():
        codes, unknown = _codes(column, categories[header[index]])
        table.values[:, columns.index(index)] = codes
        if unknown:
            notes.append(
                f"column {header[index]}: unknown words are missing values: {', '.join(unknown[:MAX_UNKNOWN])}"
            )
    return replace(table, labelled=label is not None, notes=tuple(notes))


def _below(rows: Iterable[list[str]], header: list[str], repeated: list[int]) -> Iterator[tuple[int, list[str]]]:
    """The rows with the numbers of their lines; those that are the header again go to `repeated`: files that were joined."""
    has_words = not all(map(_is_number, header))
    for number, row in enumerate(rows, start=2):
        if has_words and [cell.strip(BLANK) for cell in row] == header:
            repeated.append(number)
        elif row:  # an empty line is often the last one
            yield number, row


def _codes(cells: Sequence[str], words: Sequence[str]) -> tuple[list[float], list[str]]:
    """The places of the words, NaN for a missing or an unknown one; and the unknown ones.

    A file that `tidegate train --held-out` wrote has the places already: then all cells are numbers.
    """
    known = {word: float(code) for code, word in enumerate(words)}
    with suppress(ValueError):
        return [math.nan if cell.lower() in MISSING else float(cell) for cell in cells], []
    unknown = dict.fromkeys(cell for cell in cells if cell not in known and cell.lower() not in MISSING)
    return [known.get(cell, math.nan) for cell in cells], list(unknown)


def _name(path: Path, line: int, column: str, cell: str) -> str:
    """Returns the series that a row belongs to."""
    name = cell.strip()
    if not name:
        raise InvalidTable(f"{path}, line {line}, column {column}: got an empty cell, expected the name of a series")
    return name


def _columns(path: Path, header: Sequence[str], features: Sequence[str]) -> list[int]:
    if missing := [name for name in features if name not in header]:
        hint = f"; {EXPECTED}" if len(header) == 1 else ""
        raise InvalidTable(f"{path}: column {', '.join(missing)} is missing; the file has {', '.join(header)}{hint}")
    if twice := [name for name in features if header.count(name) > 1]:
        raise InvalidTable(f"{path}: column {', '.join(twice)} exists more than once")
    return [header.index(name) for name in features]


def _missing_of(words: Sequence[str], column: str) -> frozenset[str]:
    """What means a missing value in a column, beside the usual words; a number however it is written."""
    own = [word.removeprefix(f"{column}=") for word in words if "=" not in word or word.startswith(f"{column}=")]
    return frozenset(part for word in own for part in (word, _plain(word)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(text: str) -> str:
    """A number as Python writes it; any other text as it is."""
    with suppress(ValueError):
        return repr(float(text))
    return text


def _number(path: Path, line: int, column: str, cell: str, missing: frozenset[str] = frozenset()) -> float:
    text = cell.strip()
    lower = text.lower()
    if lower in MISSING or (missing and (text in missing or _plain(text) in missing)):
        return math.nan
    if lower in BOOLEANS:
        return BOOLEANS[lower]
    try:
        number = float(text)
    except ValueError:
        raise InvalidTable(
            f"{path}, line {line}, column {column}: got '{cell}', expected a number or an empty cell"
        ) from None
    if abs(number) > FLOAT32_MAX:
        raise InvalidTable(
            f"{path}, line {line}, column {column}: got {cell}, expected a finite number of at most 3.4e38 or an empty cell"
        )
    return number
