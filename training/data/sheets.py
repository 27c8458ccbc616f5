"""A workbook -> the rows of cells of one of its sheets: which sheet, what merged cells hold, which formulas have no value.

Hidden rows and columns are read as all others. This module knows no table.
"""

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree as ET

import pyarrow as pa
import python_calamine

from tidegate.training.data import table
from tidegate.training.data.cells import UNCALCULATED, is_number_like, is_time_like
from tidegate.training.errors import UnreadableTable

# A cell with a formula and no value, as programs write it that do not calculate. A formula may have an empty text as its value.
_FORMULA = re.compile(
    rb'<c\b(?![^>]*\bt="str")[^>]*?\br="([A-Z]+)(\d+)"[^>]*>\s*<f\b(?:[^>]*/>|[^>]*>[^<]*</f>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>'
)
_CELL, _END = b"<c ", b"</sheetData>"
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_OFFICE = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"


@dataclass(frozen=True)
class Sheet:
    """The rows of a sheet that are not empty.

    Attributes:
        name: of the sheet.
        rows: of cells; an empty one is "".
        numbers: of the rows, as a spreadsheet program shows them, from 1.
        others: the names of the other sheets.
        since_1904: whether days are counted from 1904, as old Macintoshes did.
    """

    name: str
    rows: list[list[Any]]
    numbers: list[int]
    others: tuple[str, ...]
    since_1904: bool


def read_sheet(content: bytes, wanted: str | None, label: str) -> Sheet:
    """The sheet that is wanted; else the first with a row of values, of those that are not hidden if there is one.

    Raises:
        UnreadableTable: it is no workbook, it is encrypted, it is empty, or no sheet has that name.
    """
    try:
        with python_calamine.CalamineWorkbook.from_object(pa.BufferReader(content)) as book:
            sheets = [part for part in book.sheets_metadata if part.typ == python_calamine.SheetTypeEnum.WorkSheet]
            names = [part.name for part in sheets]
            if wanted and wanted not in names:
                raise UnreadableTable(f"data: {label} has no sheet {wanted!r}; there are: {', '.join(names)}")
            hidden = [part.name for part in sheets if part.visible != python_calamine.SheetVisibleEnum.Visible]
            order = [wanted] if wanted else [*(name for name in names if name not in hidden), *hidden]
            name, rows, numbers = _first_with_values(book, content, order)
    except (python_calamine.CalamineError, python_calamine.PasswordError) as error:
        raise UnreadableTable(f"data: {label} is not a readable table: {error}") from error
    if not rows:
        raise UnreadableTable(f"data: {label} is not a readable table: its sheets are empty: {', '.join(names)}")
    others = tuple(other for other in names if other != name)
    return Sheet(name, rows, numbers, others, since_1904=_since_1904(content))


def _first_with_values(book: Any, content: bytes, order: Sequence[str]) -> tuple[str, list[list[Any]], list[int]]:
    """The first sheet with a row of values below another row, else the first with two rows, else the last; see `Sheet`."""
    texts = None
    name, rows, numbers = "", [], []  # type: tuple[str, list[list[Any]], list[int]]
    for name in order:
        rows, numbers = _rows_of(book.get_sheet_by_name(name), content)
        if any(_is_value(cell) for row in rows[1:] for cell in row):
            return name, rows, numbers
        if len(rows) > 1 and texts is None:  # such as a sheet of notes
            texts = name, rows, numbers
    return texts or (name, rows, numbers)


def _is_value(cell: Any) -> bool:
    return cell != "" and (not isinstance(cell, str) or is_number_like(cell) or is_time_like(cell))


def _rows_of(sheet: Any, content: bytes) -> tuple[list[list[Any]], list[int]]:
    """The rows that are not empty, and their numbers."""
    cells = sheet.to_python(skip_empty_area=False)
    for row, column in _uncalculated(content, sheet.name):
        if row < len(cells) and column < len(cells[row]) and cells[row][column] == "":
            cells[row][column] = UNCALCULATED
    kept = [number for number, row in enumerate(cells) if any(cell != "" for cell in row)]
    # A merged cell counts for each of its rows. A name above several columns is that of none of them.
    for (first, column), (last, _) in sheet.merged_cell_ranges or ():
        for row in range(first + 1, min(last + 1, len(cells))):
            if cells[row][column] == "":
                cells[row][column] = cells[first][column]
    left = sheet.start[1] if sheet.start else 0
    return [cells[number][left:] for number in kept], [number + 1 for number in kept]


def _uncalculated(content: bytes, sheet: str) -> Iterator[tuple[int, int]]:
    """The places, row and column from 0, of formulas whose values no program has calculated."""
    if not zipfile.is_zipfile(BytesIO(content)):
        return
    with zipfile.ZipFile(BytesIO(content)) as archive:
        part = _part_of(archive, sheet)
        if part not in archive.namelist():
            return
        left = b""
        with archive.open(part) as raw:
            while block := raw.read(table.BLOCK_BYTES):
                text = left + block
                # The last cell may go on in the next block.
                end = max(text.rfind(_CELL), text.rfind(_END), 0)
                for found in _FORMULA.finditer(text, 0, end):
                    yield int(found[2]) - 1, _column_of(found[1].decode())
                left = text[end:]


def _part_of(archive: zipfile.ZipFile, sheet: str) -> str:
    """The name of the part of an .xlsx file that holds a sheet; empty for other files."""
    book, links = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
    if not {book, links} <= set(archive.namelist()):
        return ""
    sheets = {each.get("name"): each.get(f"{_OFFICE}id") for each in _xml(archive, book).iter(f"{_MAIN}sheet")}
    targets = {
        each.get("Id"): each.get("Target") or "" for each in _xml(archive, links).iter(f"{_PACKAGE}Relationship")
    }
    target = targets.get(sheets.get(sheet), "")
    return target.removeprefix("/") if target.startswith("/") else f"xl/{target}"


def _since_1904(content: bytes) -> bool:
    """Whether an .xlsx file counts days from 1904."""
    if not zipfile.is_zipfile(BytesIO(content)):
        return False
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if "xl/workbook.xml" not in archive.namelist():
            return False
        told = _xml(archive, "xl/workbook.xml").find(f"{_MAIN}workbookPr")
    return told is not None and told.get("date1904") in ("1", "true")


def _xml(archive: zipfile.ZipFile, part: str) -> ET.Element:
    return ET.fromstring(archive.read(part))  # noqa: S314  expat bounds what entities become


def _column_of(letters: str) -> int:
    """The place of a column from 0: A is 0, AA is 26."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
