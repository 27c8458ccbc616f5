"""How a text file holds a table: encoding, delimiter, numbers, and where names, units and rows begin.

All of it is guessed from the head of the file; an option overrules each guess. What cannot be told is refused with both
readings. We tried DuckDB's sniffer on the same files: it took a preamble or the header of a logger for the table, and it
guesses neither numbers, units nor dates.
"""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tidegate.training.data.cells import (
    POINT,
    NumberFormat,
    doubtful_point,
    guess_number_format,
    is_missing,
    is_number_like,
    is_time_like,
)
from tidegate.training.errors import UnreadableTable
from tidegate.training.settings import Format

# Bytes and lines of the head that guesses are made from.
HEAD_BYTES = 1 << 18
HEAD_LINES = 2000
DELIMITERS = (",", ";", "\t", "|")
SPACE = " "
WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
COMMENT = "#"
_LINE = re.compile(r"\r\n|\n|\r")
_UNITS = frozenset(
    "° °c °f degc degf deg c c f k pa hpa kpa mpa bar mbar psi atm % %rh rh pct m cm mm km m/s km/h mph kn ft in w kw mw gw"
    " wh kwh mwh j kj mj v mv kv a ma ka va kva var kvar hz khz mhz rpm 1/min l ml m3 m³ l/s l/min l/h m3/h m³/h kg g t mg"
    " kg/h µg/m3 µg/m³ ug/m3 mg/m3 ppm ppb ph ms s sec min h hr d day utc lux lx db dba w/m2 w/m² n nm ohm ω g/kg mg/l ntu"
    " µs/cm ms/cm bool int text string ts smp avg rn hh:mm yyyy-mm-dd date time 1".replace("deg c", "deg").split()
)
_UNIT = re.compile(r"[\[(].*[\])]|[^:,]*[°²³µ/%][^:,]*")
LONGEST_UNIT = 12
# The unit behind a name: `Temp (°C)`, `Temp [°C]`.
_NAME_UNIT = re.compile(r".*\S\s*[\[(]([^\[\]()]+)[\])]\s*")


@dataclass(frozen=True)
class Dialect:
    """How a text file holds a table.

    Attributes:
        encoding: the name of Python's codec.
        delimiter: between cells; a space stands for any run of blanks.
        numbers: how numbers are written; None if 1,234 may be either notation.
        comment: how a line that is a comment begins; empty if there are none.
        skip: characters before the first row, without the byte order mark.
        names: as they stand in the file, one for each cell of a row; empty if there is no line of names.
        units: one for each cell of a row; empty if there are none.
        names_line: the number of the line of names, from 1; 0 if there is none.
        rows: of the head.
        example: a cell that shows why `numbers` is None.
        doubtful: a cell whose point is taken for the decimal one, though it may group thousands; empty if that is known.
    """

    encoding: str
    delimiter: str = ","
    numbers: NumberFormat | None = POINT
    comment: str = ""
    skip: int = 0
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    names_line: int = 0
    rows: tuple[tuple[str, ...], ...] = ()
    example: str = ""
    doubtful: str = ""

    @property
    def width(self) -> int:
        """The number of cells in a row."""
        return len(self.rows[0]) if self.rows else len(self.names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know, as sentences."""
        if not self.doubtful:
            return ()
        without = self.doubtful.replace(".", "")
        return (f"{self.doubtful} is read with a decimal point; if it means {without}, add --thousands .",)

    def describe(self) -> str:
        """In words, for the user."""
        shown = {"\t": "tab", SPACE: "blanks"}.get(self.delimiter, f"`{self.delimiter}`")
        parts = [f"{shown} between columns"]
        if self.numbers and self.numbers.decimal == ",":
            parts.append("decimal comma")
        if self.numbers and self.numbers.thousands:
            parts.append(f"`{self.numbers.thousands}` between thousands")
        if self.encoding not in ("utf-8", "utf-8-sig"):
            parts.append(self.encoding)
        if self.names_line > 1:
            parts.append(f"names in line {self.names_line}")
        elif not self.names:
            parts.append("no names in the first line")
        if any(self.units):
            parts.append("units below the names")
        return ", ".join(parts)


@dataclass(frozen=True)
class Line:
    """A line of the head: its number from 1, the character after its end, and its cells."""

    number: int
    end: int
    cells: tuple[str, ...]


def guess_encoding(head: bytes, name: str, *, is_utf8: bool) -> str:
    """The encoding of a file; `is_utf8` tells whether all of its bytes are UTF-8.

    Raises:
        UnreadableTable: it is one of many for other scripts.
    """
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Text has no zero bytes, but each Latin letter in UTF-16 has one.
    if head and head.count(0) > len(head) // 4:
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    if is_utf8:
        return "utf-8"
    # Latin letters with accents stand alone among others, or by two; those of other scripts stand together.
    high = re.findall(rb"[\x80-\xff]+", head)
    if sum(len(run) for run in high if len(run) > 2) > sum(map(len, high)) / 2:
        raise UnreadableTable(
            f"data: {name} is neither UTF-8 nor Latin-1; name its encoding with --encoding, such as cp1251, gbk or shift-jis"
        )
    # Windows has signs where Latin-1 has control characters.
    return "cp1252" if re.search(rb"[\x80-\x9f]", head) else "latin-1"


def guess_dialect(text: str, encoding: str, options: Format, name: str, kind: str = ".csv") -> Dialect:
    """The dialect of a file from its head.

    Args:
        text: whole lines.
        encoding: of the file.
        options: what overrules the guesses.
        name: of the file, in messages.
        kind: `.tsv` has tabs.

    Raises:
        UnreadableTable: there is no table.
    """
    comment = COMMENT if options.comment is None else options.comment
    lines, bare = _lines(text, comment, options.skip_lines or 0)
    delimiter = WORDS.get(options.delimiter or "", options.delimiter or "")
    if not delimiter and bare and (told := re.fullmatch(r"sep=(.)", bare[0][2].strip())):
        delimiter, bare = told[1], bare[1:]
    if not delimiter and kind == ".tsv":
        delimiter = "\t"
    if not bare:
        raise UnreadableTable(f"data: {name} is not a readable table: it is empty")
    delimiter = delimiter or _guess_delimiter([line for _, _, line in bare])
    rows = [Line(number, end, _split(line, delimiter)) for number, end, line in bare]
    dialect = _place(rows, Dialect(encoding, delimiter, comment=comment), options, name)
    if not dialect.names and dialect.rows and options.header is None:
        dialect = _commented_names(dialect, lines, comment)
    return _with_numbers(dialect, options)


def repeated_lines(above: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of the lines above the rows those that are none if they come again, as in exports that were joined: they have words."""
    return [
        cells
        for cells in above
        if any(cell and not (is_missing(cell) or is_number_like(cell) or is_time_like(cell)) for cell in cells)
    ]


def repeated_texts(head: str, dialect: Dialect) -> list[str]:
    """The same of the head of a text file, as lines without the blanks around them."""
    above = [line.strip() for line in _LINE.split(head[: dialect.skip]) if line.strip()]
    cells = {line: _split(line, dialect.delimiter) for line in above}
    known = set(repeated_lines(list(cells.values())))
    return [line for line, parts in cells.items() if parts in known]


def repeated_note(count: int) -> tuple[str, ...]:
    """What the user is told of them."""
    if not count:
        return ()
    which = "1 line between the rows repeats" if count == 1 else f"{count} lines between the rows repeat"
    return (f"{which} what is above the first one: left out",)


def dialect_of_rows(
    rows: Sequence[tuple[int, tuple[str, ...]]], options: Format, name: str, written: Sequence[str]
) -> Dialect:
    """The dialect of rows of cells, as a sheet has them; its `skip` counts rows.

    Args:
        rows: of a sheet.
        options: what overrules the guesses.
        name: of the file, in messages.
        written: the cells that are text in the file: a number in one of them is in somebody's notation.

    Raises:
        UnreadableTable: there is no table.
    """
    first = options.skip_lines or 0
    lines = [Line(number, end, cells) for end, (number, cells) in enumerate(rows, start=1) if number > first]
    return _with_numbers(_place(lines[:HEAD_LINES], Dialect("utf-8"), options, name), options, written)


def unit_of_name(name: str) -> str:
    """The unit in a name such as `Temp (°C)`; empty if there is none."""
    found = _NAME_UNIT.fullmatch(name)
    return found[1].strip() if found and is_unit(found[1]) and len(found[1]) <= LONGEST_UNIT else ""


def _lines(text: str, comment: str, skip: int) -> tuple[list[str], list[tuple[int, int, str]]]:
    """The lines of the head; and number, end and text of those that are neither empty nor comments."""
    every, bare, start, number = [], [], 0, 0
    while start < len(text) and number < HEAD_LINES:
        found = _LINE.search(text, start)
        line, end = (text[start : found.start()], found.end()) if found else (text[start:], len(text))
        number, start = number + 1, end
        every.append(line)
        if number > skip and line.strip() and not (comment and line.startswith(comment)):
            bare.append((number, end, line))
    return every, bare


def _split(line: str, delimiter: str) -> tuple[str, ...]:
    if delimiter == SPACE:
        return tuple(line.split())
    return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), []))


def _guess_delimiter(lines: Sequence[str]) -> str:
    """The delimiter that cuts the lower half of the lines into the same number of cells, and the cells into values."""
    later = [line for line in lines[len(lines) // 2 :] if line.strip()][:HEAD_LINES]

    def score(delimiter: str) -> tuple[bool, float, int]:
        rows = [_split(line, delimiter) for line in later]
        width, count = Counter(map(len, rows)).most_common(1)[0]
        cells = [cell for row in rows if len(row) == width for cell in row]
        values = sum(is_missing(cell) or is_number_like(cell) or is_time_like(cell) for cell in cells)
        return width > 1, round(values / max(len(cells), 1) * count / len(rows), 2), width

    best = max(DELIMITERS, key=score)
    if score(best)[0]:
        return best
    return SPACE if score(SPACE)[0] and score(SPACE)[1] > 0.5 else ","


def _place(rows: list[Line], dialect: Dialect, options: Format, name: str) -> Dialect:
    """The dialect with the places of names, units and rows."""
    later = rows[len(rows) // 2 :]
    width = Counter(len(row.cells) for row in later).most_common(1)[0][0]
    names, units, data = _above(rows, width, options)
    kept = [row.cells for row in rows[data:]]
    if names:
        _check_width(names.cells, kept, width, name)
    # What is above the first row may not end at a line of names: comments stand between them.
    skip = rows[data - 1].end if data else 0
    return replace(
        dialect,
        skip=skip,
        names=_fit(names.cells, width, kept) if names else (),
        units=_fit(units.cells, width, kept) if units else (),
        names_line=names.number if names else 0,
        rows=tuple(cells for cells in kept if len(cells) == width),
    )


def _above(rows: list[Line], width: int, options: Format) -> tuple[Line | None, Line | None, int]:
    """The line of names, the line of units, and the index of the first row."""
    whole = [at for at, row in enumerate(rows) if len(row.cells) == width]
    if options.header is False:
        return None, None, whole[0]
    typed = _typed_columns([row.cells for row in rows[len(rows) // 2 :] if len(row.cells) == width], width)
    data = next((at for at in whole if _is_data(rows[at].cells, typed)), len(rows))
    if options.header or options.skip_lines is not None:
        below = rows[1] if len(rows) > 1 and len(rows[1].cells) == width and options.units_row is not False else None
        units = below if below and (options.units_row or (data != 1 and _are_units(below.cells))) else None
        return rows[0], units, 2 if units else 1
    if not typed:
        data = 1  # nothing but text: the first line has the names
    head = _head_block(rows[:data], width)
    names, units = _names_and_units(head, options)
    # A first row with a bad cell is a row: it is read, and the cell is named.
    above = next((at for at, row in enumerate(head) if row is (units or names)), len(head)) + 1
    rest = next((at for at in range(above, len(head)) if any(map(is_number_like, head[at].cells))), len(head))
    return names, units, data - (len(head) - rest)


def _typed_columns(rows: Sequence[tuple[str, ...]], width: int) -> dict[int, Callable[[str], bool]]:
    """The columns that hold times, or numbers, in most rows that have a value; with what tells such a cell."""
    typed: dict[int, Callable[[str], bool]] = {}
    for column in range(width):
        cells = [row[column] for row in rows if not is_missing(row[column])]
        for check in (is_time_like, is_number_like):
            if cells and 2 * sum(map(check, cells)) >= len(cells):
                typed.setdefault(column, check)
    return typed


def _is_data(cells: tuple[str, ...], typed: dict[int, Callable[[str], bool]]) -> bool:
    """Whether a line is a row of values: its first typed cell and its times are, and most of its numbers.

    A line of names may have numbers among them, and a row a cell that is none.
    """
    known = [(column, check(cells[column])) for column, check in typed.items() if not is_missing(cells[column])]
    must = [fits for column, fits in known if column == min(typed) or typed[column] is is_time_like]
    return bool(known) and all(must) and 2 * sum(fits for _, fits in known) > len(known)


def _head_block(rows: list[Line], width: int) -> list[Line]:
    """The last of these lines that may be names or units: they have as many cells as a row, or one less or more."""
    block: list[Line] = []
    for row in reversed(rows):
        if abs(len(row.cells) - width) > 1 or (width > 1 and len(row.cells) == 1):
            break
        block.insert(0, row)
    return block or rows[-1:]


def _names_and_units(head: list[Line], options: Format) -> tuple[Line | None, Line | None]:
    """The line of names and that of units among the lines above the rows."""
    if not head:
        return None, None
    if options.units_row is False:
        return head[-1], None
    if options.units_row:
        return (head[-2], head[-1]) if len(head) > 1 else (head[0], None)
    if (
        head[0].cells[0] == "TOA5" and len(head) > 1
    ):  # Campbell Scientific: environment, names, units, kinds of averages
        return head[1], head[2] if len(head) > 2 else None
    for names, units in pairwise(head):
        if _are_units(units.cells):
            return names, units
    words = [row for row in head if not any(map(is_number_like, row.cells))]
    return (words or head)[-1], None


def _are_units(cells: Sequence[str]) -> bool:
    known = [cell for cell in cells if cell and cell != "-"]
    return bool(known) and 2 * sum(is_unit(cell) for cell in known) >= len(known)


def is_unit(cell: str) -> bool:
    """Whether a cell is a unit, such as °C, [m/s] or kWh."""
    return cell.strip().lower() in _UNITS or bool(_UNIT.fullmatch(cell.strip()))


def _check_width(names: tuple[str, ...], rows: list[tuple[str, ...]], width: int, name: str) -> None:
    """One name for each cell; a delimiter at the end of the names or of the rows is no cell."""
    many, longest = len(names), [cells for cells in rows if len(cells) == width]
    if many == width or not rows:
        return
    if many == width + 1 and not names[-1]:
        return
    if many == width - 1 and all(not cells[-1] for cells in longest):
        return
    # R leaves out the name of the column of row names.
    if many == width - 1 and many > 1 and len({cells[0] for cells in longest}) == len(longest):
        return
    raise UnreadableTable(
        f"data: {name} is not a readable table: {many} names for rows of {width} cells ({', '.join(names[:4])}); name what "
        f"stands between columns with --delimiter, or the lines before the names with --skip-lines; a line break "
        f"within quotes is not read: write such cells in one line"
    )


def _fit(cells: tuple[str, ...], width: int, rows: list[tuple[str, ...]]) -> tuple[str, ...]:
    """As many cells as a row has."""
    if len(cells) == width - 1 and not all(not row[-1] for row in rows if len(row) == width):
        return ("", *cells)
    return (*cells, *[""] * (width - len(cells)))[:width] if rows else cells


def _commented_names(dialect: Dialect, lines: Sequence[str], comment: str) -> Dialect:
    """The names of a file whose line of names begins with the sign of a comment: `# time,temp`."""
    for number in range(len(lines), 0, -1):
        line = lines[number - 1]
        if not (comment and line.startswith(comment)):
            continue
        cells = _split(line[len(comment) :].strip(), dialect.delimiter)
        if len(cells) == dialect.width and not any(is_number_like(cell) for cell in cells):
            return replace(dialect, names=cells, names_line=number)
    return dialect


def _with_numbers(dialect: Dialect, options: Format, written: Sequence[str] | None = None) -> Dialect:
    """The dialect with the notation of its numbers, which is that of the written cells if they are given."""
    every = [cell for row in dialect.rows for cell in row] if written is None else written
    cells = [cell for cell in every if is_number_like(cell) and not is_time_like(cell)]
    numbers = guess_number_format(cells, strict=dialect.delimiter in (";", "\t"))
    told = options.decimal or options.thousands is not None
    doubtful = doubtful_point(cells) if numbers == POINT and not told else ""
    example = "" if numbers else next((cell for cell in cells if "," in cell or "." in cell), "")
    if options.decimal:
        other = "." if options.decimal == "," else ","
        grouped = any(other in cell for cell in cells)
        numbers = NumberFormat(options.decimal, other if grouped and not options.thousands else "")
    if options.thousands is not None:
        group = "" if options.thousands == "none" else {"space": " "}.get(options.thousands, options.thousands)
        decimal = numbers.decimal if numbers else ","
        numbers = NumberFormat("." if group == "," else "," if group == "." else decimal, group)
    return replace(dialect, numbers=numbers, example=example, doubtful=doubtful)
