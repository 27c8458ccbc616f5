"""The columns of a table as arrays, filled block by block, and what is wrong with them: all of it at once."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.training.data.cells import SAVE_AGAIN, UNCALCULATED, NumberFormat, is_number_like
from tidegate.training.data.parse import Codes, Doubles, Missing, codes_of, numbers_of
from tidegate.training.data.series import Floats, Times
from tidegate.training.data.table import Table
from tidegate.training.data.times import TimeReader
from tidegate.training.errors import InfiniteValue, TableError, TableErrors, TextColumn, UnheldNumber
from tidegate.training.settings import as_typed

# float32 holds whole numbers up to here.
WHOLE_FLOAT32 = 1 << 24
# A change from row to row that float32 loses this share of is lost.
LOST_SHARE = 0.05
# Words of a column; with more it holds names or remarks.
MAX_CATEGORIES = 100


@dataclass(frozen=True)
class Plan:
    """What to read of a table.

    Attributes:
        times: the reader of its times; None if it has none.
        roles: the columns of group, split key and label, by role.
        names: of the columns of numbers.
        categories: of these, those whose words become numbers, with the words if they are known.
        offsets: numbers to subtract, by column.
        missing: what means a missing value, by column.
        suffixes: the unit that stands behind each number of a column of text.
    """

    times: TimeReader | None
    roles: dict[str, str]
    names: Sequence[str]
    categories: dict[str, tuple[str, ...]]
    offsets: dict[str, float]
    missing: dict[str, Missing]
    suffixes: dict[str, str]


class TableArrays:
    """The columns of a table as arrays.

    `values` is (rows, features) float32, `times` (rows,) datetime64[ns]. For each role, `codes` holds the index of each
    row's text in `texts`, -1 if the cell is empty.
    """

    def __init__(self, table: Table, plan: Plan) -> None:
        self.table, self.plan, self.names = table, plan, list(plan.names)
        # Memory is touched only when it is filled, so rows that a text file might have cost nothing.
        self.values: Floats = np.empty((table.rows, len(self.names)), np.float32)
        self.times: Times = np.empty(0, "datetime64[ns]")
        self.time_about, self.in_utc = "", False
        self.codes: dict[str, Codes] = {role: np.empty(table.rows, np.int32) for role in plan.roles}
        self.texts: dict[str, dict[str, int]] = {role: {} for role in plan.roles}
        self.words: dict[str, dict[str, int]] = {
            column: {word: code for code, word in enumerate(words)} for column, words in plan.categories.items()
        }
        self.unknown_words: dict[str, list[str]] = {}
        self.late_text: list[str] = []
        self.rows = 0
        self._errors: dict[str, TableError] = {}

    def fill(self) -> None:
        """Read all blocks.

        Raises:
            TableError: a value cannot be used; `TableErrors` if several columns have such.
        """
        plan = self.plan
        columns = [*(plan.times.columns if plan.times else ()), *plan.roles.values(), *self.names]
        for batch in self.table.blocks(list(dict.fromkeys(columns))):
            part = slice(self.rows, self.rows + batch.num_rows)
            if plan.times and "" not in self._errors:
                self._try("", partial(plan.times.add, batch))
            for role, column in plan.roles.items():
                self.codes[role][part] = codes_of(batch.column(column), column, self.texts[role], self.table.name)
            for index, column in enumerate(self.names):
                self.values[part, index] = self._numbers(batch.column(column), column)
            self.rows = part.stop
        pa.default_memory_pool().release_unused()  # the memory of the blocks
        self.values = self.values[: self.rows]
        self.codes = {role: codes[: self.rows] for role, codes in self.codes.items()}
        if plan.times and "" not in self._errors:
            self._try("", self._finish_times)
        if len(self._errors) == 1:
            raise next(iter(self._errors.values()))
        if self._errors:
            raise TableErrors(list(self._errors.values()))
        for column in plan.categories:
            self._sort_words(column)

    def _finish_times(self) -> None:
        assert self.plan.times
        self.times, self.time_about, self.in_utc = self.plan.times.finish()

    def _try(self, key: str, read: Callable[[], None]) -> None:
        try:
            read()
        except TableError as error:
            self._errors[key] = error

    def _numbers(self, column: Any, name: str) -> Floats | float:
        """(rows,) float32 of a block with NaN for missing; an error is kept for the end."""
        label, before = self.table.name, self.rows
        if name in self._errors or name in self.late_text:
            return np.nan
        if name in self.plan.categories:
            return self._codes_of_words(column, name)
        numbers = self.table.numbers or NumberFormat()
        if name in self.plan.suffixes:
            unit = re.escape(self.plan.suffixes[name])
            column = pc.replace_substring_regex(column, rf"\s*{unit}\s*$", "")
        wide, bad = numbers_of(column, numbers, self.plan.missing.get(name, Missing()))
        if bad:
            if before and np.isnan(self.values[:before, self.names.index(name)]).all() and np.isnan(wide).all():
                self.late_text.append(name)
                return np.nan
            row, text = bad
            self._errors[name] = self._no_number(name, before + row + 1, text)
            return np.nan
        wide = wide - self.plan.offsets.get(name, 0.0)
        with np.errstate(over="ignore"):
            values: Floats = wide.astype(np.float32)
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            self._errors[name] = InfiniteValue(
                label,
                name,
                f"has {wide[infinite[0]]:g} in row {before + infinite[0] + 1}, expected finite float32 numbers; leave the cell "
                f"empty if the value is missing",
            )
        elif lost := _lost_change(wide, values):
            first = wide[np.isfinite(wide)][0]
            self._errors[name] = UnheldNumber(
                label,
                name,
                f"changes by {lost:g} from row to row at {first:.15g}, which float32 cannot hold; learn from its difference to "
                f"the first value with --offset {as_typed(f'{name}={first:.15g}')} (a client subtracts the same), or leave it "
                f"out with --exclude {as_typed(name)}",
            )
        return values

    def _no_number(self, name: str, row: int, text: str) -> TextColumn:
        numbers = self.table.numbers or NumberFormat()
        if is_number_like(text):
            sign = "comma" if numbers.decimal == "," else "point"
            advice = f"numbers with a decimal {sign}; say how they are written with --decimal and --thousands, or "
        elif text == UNCALCULATED:
            advice = (
                f"numbers; {SAVE_AGAIN}, or take it for a missing value with --missing-values {as_typed(text)}, or "
            )
        else:
            advice = f"numbers; if it means a missing value add --missing-values {as_typed(text)}, if the words are states --categories {as_typed(name)}, or "
        return TextColumn(
            self.table.name,
            name,
            f"holds {text!r} in row {row}, expected {advice}leave the column out with --exclude {as_typed(name)}",
        )

    def _codes_of_words(self, column: Any, name: str) -> Floats:
        words, fixed = self.words[name], bool(self.plan.categories[name])
        known = len(words)
        codes = codes_of(column, name, words, self.table.name)
        if fixed and len(words) > known:
            new = list(words)[known:]
            self.unknown_words.setdefault(name, []).extend(new)
            for word in new:
                del words[word]
            codes = np.where(codes >= known, -1, codes)
        if len(words) > MAX_CATEGORIES:
            self._errors[name] = TextColumn(
                self.table.name,
                name,
                f"has more than {MAX_CATEGORIES} different words, expected few states; leave it out of --categories",
            )
        return np.where(codes < 0, np.float32(np.nan), codes.astype(np.float32))

    def _sort_words(self, column: str) -> None:
        """Number the words in alphabetic order, unless their order is given."""
        if self.plan.categories[column]:
            return
        words = self.words[column]
        ranks = np.argsort(np.argsort(list(words))).astype(np.float32) if words else np.empty(0, np.float32)
        index = self.names.index(column)
        codes = self.values[:, index]
        known = ~np.isnan(codes)
        codes[known] = ranks[codes[known].astype(np.int64)]
        self.words[column] = {word: code for code, word in enumerate(sorted(words))}


def _lost_change(wide: Doubles, values: Floats) -> float:
    """The usual change from row to row of whole numbers that float32 rounds away; 0 if none is lost."""
    known = np.isfinite(wide)
    if not known.any() or np.abs(wide[known]).max() < WHOLE_FLOAT32:
        return 0.0
    rounding = np.abs(values[known] - wide[known]).max()
    changes = np.abs(np.diff(wide[known]))
    changes = changes[changes > 0]
    if rounding == 0 or not len(changes):
        return 0.0
    usual = float(np.median(changes))
    return usual if rounding > LOST_SHARE * usual else 0.0
