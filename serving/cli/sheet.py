"""A CSV file of sensor rows, read as a model wants its timesteps."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.core.spec import Floats

FLOAT32_MAX = float(np.finfo(np.float32).max)
# What people and programs write where a value is missing.
MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "-"})


class BadSheet(Exception):
    """The file is not what was expected; the message names the row, the column and what to do."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows in time order.

    `values` is (rows, features), NaN where a cell is empty; `labels` has the text of the column that says when each row
    was measured (the first one that is not a feature), or the row number where there is no such column.
    """

    label: str
    labels: tuple[str, ...]
    features: tuple[str, ...]
    values: Floats

    def __len__(self) -> int:
        """The rows."""
        return len(self.labels)

    def column(self, name: str) -> Floats:
        """One feature: (rows,)."""
        return self.values[:, self.features.index(name)]


def read_sheet(path: Path, features: Sequence[str]) -> Sheet:
    """Reads the columns of a CSV file that a model's features name, in the model's order.

    Raises:
        BadSheet: a column is missing or twice there, a cell is not a number, or the file cannot be read.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None:
                raise BadSheet(
                    f"{path}: the file is empty, expected a header line with the columns {', '.join(features)}"
                )
            header = [name.strip() for name in header]
            columns = _columns(path, header, features)
            label = next((place for place, name in enumerate(header) if name not in features), None)
            values: list[list[float]] = []
            labels: list[str] = []
            for number, row in enumerate(rows, start=2):
                if not row:
                    continue  # an empty line, as editors leave it at the end
                if len(row) != len(header):
                    raise BadSheet(
                        f"{path}, line {number}: got {len(row)} cells, expected {len(header)} as in the header"
                    )
                values.append([_number(path, number, header[place], row[place]) for place in columns])
                labels.append(str(len(labels) + 1) if label is None else row[label])
    except OSError as error:
        raise BadSheet(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadSheet(f"{path}: not a CSV file in UTF-8: {error}") from error
    if not values:
        raise BadSheet(f"{path}: there is a header but no row below it")
    name = "row" if label is None else header[label]
    return Sheet(name, tuple(labels), tuple(features), np.array(values, np.float32))


def _columns(path: Path, header: Sequence[str], features: Sequence[str]) -> list[int]:
    if missing := [name for name in features if name not in header]:
        raise BadSheet(f"{path}: column {', '.join(missing)} is missing; the file has {', '.join(header)}")
    if twice := [name for name in features if header.count(name) > 1]:
        raise BadSheet(f"{path}: column {', '.join(twice)} is there more than once")
    return [header.index(name) for name in features]


def _number(path: Path, line: int, column: str, cell: str) -> float:
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        raise BadSheet(f"{path}, line {line}, column {column}: got '{cell}', expected a number, or nothing") from None
    if abs(number) > FLOAT32_MAX:
        raise BadSheet(
            f"{path}, line {line}, column {column}: got {cell}, expected a finite number of at most 3.4e38, or nothing"
        )
    return number
