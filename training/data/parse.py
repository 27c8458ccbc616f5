"""One Arrow column -> NumPy: numbers, or codes of text. The cell that cannot be used is named by its row."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.training.data.cells import NumberFormat, is_clock, is_missing, is_number_like, is_time_like
from tidegate.training.errors import TextColumn

_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|-?nan", re.IGNORECASE)
Codes = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Missing:
    """What means a missing value beside the usual words: numbers, and text in lower case."""

    numbers: tuple[float, ...] = ()
    words: frozenset[str] = frozenset()


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text of some kind."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: Any) -> bool:
    """Whether an Arrow type is numbers, true and false, or nothing at all."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def text_of(column: Any) -> Any:
    """The column as text of one type, whatever kind of text it is."""
    if pa.types.is_dictionary(column.type):
        texts = column.dictionary.cast(pa.string())
        return pa.DictionaryArray.from_arrays(column.indices, texts).dictionary_decode()
    return column.cast(pa.string())


def codes_of(column: Any, name: str, texts: dict[str, int], label: str) -> Codes:
    """The index of each cell's text in `texts`, which grows in the order of the rows; -1 if the cell is empty."""
    kind = column.type
    if pa.types.is_floating(kind):  # whole numbers with empty cells, as frames keep them
        try:
            column = pa.array(column.to_numpy(zero_copy_only=False), from_pandas=True).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise TextColumn(
                label,
                name,
                f"holds fractions, expected text or whole numbers to tell groups or classes apart: "
                f"{str(error).splitlines()[0]}",
            ) from error
    try:
        encoded = column if pa.types.is_dictionary(kind) else column.cast(pa.string()).dictionary_encode()
        found = [text and text.strip() for text in encoded.dictionary.cast(pa.string()).to_pylist()]
    except pa.ArrowNotImplementedError as error:
        raise TextColumn(label, name, f"holds {kind}, expected text or whole numbers") from error
    indices = encoded.indices.cast(pa.int64()).fill_null(len(found)).to_numpy(zero_copy_only=False)
    places = np.full(len(found) + 1, -1, np.int32)
    # A dictionary may be in any order, and may hold text that no row of the block has.
    used, firsts = np.unique(indices, return_index=True)
    for index in used[np.argsort(firsts)].tolist():
        if index < len(found) and found[index]:
            places[index] = texts.setdefault(found[index], len(texts))
    codes: Codes = places[indices]
    return codes


def numbers_of(column: Any, numbers: NumberFormat, missing: Missing) -> tuple[Doubles, tuple[int, str] | None]:
    """(rows,) float64 with NaN for missing; and the first row (from 0) that holds no number, with its text."""
    kind = column.type
    if column.null_count == len(column):
        return np.full(len(column), np.nan), None
    bad = None
    if is_text(kind):
        values, bad = _numbers_of_text(text_of(column), numbers, missing.words)
    elif is_number(kind):
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())  # there is no cast from bool to float64
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null -> NaN
    else:
        first = int(np.argmax(column.is_valid().to_numpy(zero_copy_only=False)))
        return np.full(len(column), np.nan), (first, str(column[first]))
    if missing.numbers:
        values = np.where(np.isin(values, missing.numbers), np.nan, values)
    return values, bad


def _numbers_of_text(
    text: Any, numbers: NumberFormat, words: Collection[str]
) -> tuple[Doubles, tuple[int, str] | None]:
    """Fast where all cells are plain numbers; else each different cell is read by its grammar."""
    plain = text
    if numbers.decimal == "," and not pc.any(pc.match_substring(text, ".")).as_py():
        plain = pc.replace_substring(text, ",", ".")
    # A cast that fails is slow: the first cell tells that of most columns.
    if (numbers.decimal == "." or plain is not text) and _PLAIN.fullmatch(plain.drop_null()[0].as_py()):
        try:
            return np.asarray(plain.cast(pa.float64()).to_numpy(zero_copy_only=False)), None
        except pa.ArrowInvalid:
            pass
    read = numbers.reader()
    encoded = text.dictionary_encode()
    cells = encoded.dictionary.to_pylist()
    read_cells = [float("nan") if cell.strip().lower() in words else read(cell) for cell in cells]
    values = np.array([*(np.nan if value is None else value for value in read_cells), np.nan])
    indices = encoded.indices.cast(pa.int64()).fill_null(len(cells)).to_numpy(zero_copy_only=False)
    wrong = np.array([*(value is None for value in read_cells), False])[indices]
    bad = None
    if wrong.any():
        row = int(wrong.argmax())
        bad = (row, cells[indices[row]])
    return values[indices], bad


def kind_of(column: Any, read: Callable[[str], float | None], words: Collection[str]) -> str:
    """What the cells of a block are: empty, number, date (with or without a time of day), clock (without a date) or text.

    A column with some numbers is one of numbers, and one with mostly dates is one of dates, whatever else it holds: a bad cell
    is then named, not taken for a word.
    """
    kind = column.type
    if not is_text(kind):
        return _kind_of_type(kind)
    if column.null_count == len(column):
        return "empty"
    # Enough cells of a block, whose first may be alike.
    cells = pc.unique(text_of(column).drop_null()).to_pylist()[:1000]
    cells = [cell for cell in cells if not is_missing(cell) and cell.strip().lower() not in words]
    if not cells:
        return "empty"
    if 2 * sum(map(is_time_like, cells)) > len(cells):
        return "clock" if all(map(is_clock, cells)) else "date"
    # Numbers in another notation are no words: they are refused.
    numbers = any(read(cell) is not None for cell in cells) or all(map(is_number_like, cells))
    return "number" if numbers else "text"


def _kind_of_type(kind: Any) -> str:
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "date"
    if pa.types.is_null(kind):
        return "empty"
    return "clock" if pa.types.is_time(kind) else "number" if is_number(kind) else "text"
