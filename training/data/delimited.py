"""Delimited text -> `Table`: CSV and its relatives, read block by block. All cells stay text; `load` decides what they are.

pyarrow splits and quotes; `dialect` says how. This module decodes, and leaves out what is above the rows and between them.
"""

import codecs
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv

from tidegate.training.data import table
from tidegate.training.data.cells import MISSING_CELLS
from tidegate.training.data.dialect import (
    HEAD_BYTES,
    SPACE,
    Dialect,
    guess_dialect,
    guess_encoding,
    repeated_note,
    repeated_texts,
    unit_of_name,
)
from tidegate.training.data.files import File
from tidegate.training.data.table import Table, unique_names
from tidegate.training.errors import UnreadableTable
from tidegate.training.settings import Format

_LINES = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|$)")
_BLANKS = re.compile(r"[ \t]+")
# What may stand around a line; the byte order mark of a file that was joined to others among it.
_AROUND = " \t\r\n\ufeff"


@dataclass(frozen=True)
class Content:
    """What one pass over the bytes of a file tells: checksum, an upper bound of its lines, its head, whether it is UTF-8."""

    sha256: str
    lines: int
    head: bytes
    whole: bool
    is_utf8: bool


def open_delimited(file: File, name: str, options: Format) -> Table:
    """The table of a text file.

    Raises:
        UnreadableTable: it is no table.
        UnicodeDecodeError, LookupError: the encoding that the options name does not fit.
    """
    content = _scan(file)
    encoding = options.encoding or guess_encoding(content.head, name, is_utf8=content.is_utf8)
    head = _head_text(content, encoding)
    dialect = guess_dialect(head, encoding, options, name, file.kind)
    repeated, left_out = repeated_texts(head, dialect), [0]
    names, notes = unique_names(dialect.names, dialect.width)
    units = dialect.units or tuple(unit_of_name(column) for column in dialect.names)
    # The longest line of the head has its place in a block many times.
    block_bytes = max(table.BLOCK_BYTES, 4 * max(map(len, content.head.splitlines()), default=0))

    def blocks(columns: Sequence[str]) -> Iterator[Any]:
        nulls = [cell for cell in MISSING_CELLS if cell != dialect.delimiter]
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
            null_values=nulls,
        )
        read = pa.csv.ReadOptions(block_size=block_bytes, column_names=names)
        parse = pa.csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=False)
        try:
            with file.open() as raw:
                rows = Rows(raw, dialect, repeated)
                with pa.csv.open_csv(
                    pa.PythonFile(rows), read_options=read, parse_options=parse, convert_options=convert
                ) as reader:
                    yield from reader
                left_out[0] = rows.left_out
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise unreadable(name, error) from error

    known_rows = len(dialect.rows) if content.whole and not dialect.rows else content.lines
    return Table(
        name=name,
        sha256=content.sha256,
        types=dict.fromkeys(names, pa.string()),
        rows=known_rows,
        blocks=blocks,
        units={column: unit for column, unit in zip(names, units, strict=False) if unit},
        understood=dialect.describe(),
        notes=(*notes, *dialect.notes),
        numbers=dialect.numbers,
        ambiguous=dialect.example,
        later_notes=lambda: repeated_note(left_out[0]),
    )


# What pyarrow says of a row with another number of cells.
_RAGGED = re.compile(r"CSV parse error: (?:Row #\d+: )?Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)
# So many characters of a row tell which one it is.
SHOWN_OF_ROW = 60


def unreadable(name: str, error: Exception) -> UnreadableTable:
    """The error of a file whose bytes are no table."""
    if ragged := _RAGGED.fullmatch(str(error).strip()):
        expected, got, row = ragged.groups()
        broken = "; a line break within quotes is not read: write such cells in one line" if row.count('"') % 2 else ""
        return UnreadableTable(
            f"data: {name}: a row has {got} cells, expected {expected} as in the line of names: {row[:SHOWN_OF_ROW]!r}; mend this "
            f"row or remove it, or name the sign that such lines begin with by --comment{broken}"
        )
    advice = "; name its encoding with --encoding" if isinstance(error, UnicodeError | LookupError) else ""
    return UnreadableTable(
        f"data: {name} is not a readable table: {(str(error).splitlines() or ['damaged'])[0]}{advice}"
    )


class Rows(io.RawIOBase):
    """The rows of a text file as UTF-8: without what is above them, without comments, with one space for many blanks.

    Without what repeats a line above the rows either: people join exports that each have their names.
    """

    def __init__(self, raw: Any, dialect: Dialect, repeated: Sequence[str] = ()) -> None:
        self._raw, self._left = raw, dialect.skip
        self._decoder = codecs.getincrementaldecoder(dialect.encoding)()
        self._comment, self._spaced = dialect.comment, dialect.delimiter == SPACE
        self._repeated, self.left_out = frozenset(repeated), 0
        self._rest = ""

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Some of the rows; nothing at their end."""
        while True:
            block = self._raw.read(size if size > 0 else table.BLOCK_BYTES)
            text = self._decoder.decode(block, final=not block)
            if self._left:
                cut = min(self._left, len(text))
                text, self._left = text[cut:], self._left - cut
            text = self._filtered(text, final=not block)
            if text or not block:
                return text.encode()

    def _filtered(self, text: str, *, final: bool) -> str:
        text = self._rest + text
        # A line that is not complete waits for the next block.
        end = len(text) if final else max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1)) + 1
        text, self._rest = text[:end], text[end:]
        # Both are seldom: a block without any is not cut into lines.
        signs = (*self._repeated, self._comment) if self._comment else self._repeated
        if not self._spaced and not any(sign in text for sign in signs):
            return text
        lines = _LINES.findall(text)[:-1]  # the last match is empty
        lines = [line for line in lines if not (self._comment and line.startswith(self._comment))]
        kept = [line for line in lines if line.strip(_AROUND) not in self._repeated]
        self.left_out, lines = self.left_out + len(lines) - len(kept), kept
        if self._spaced:
            lines = [_BLANKS.sub(SPACE, line.strip()) + "\n" for line in lines]
        return "".join(lines)


def _scan(file: File) -> Content:
    """Read the bytes of a file once."""
    digest, feeds, returns, size = hashlib.sha256(), 0, 0, 0
    decoder, is_utf8, last, head = codecs.getincrementaldecoder("utf-8")(), True, b"", b""
    with file.open() as raw:
        while block := raw.read(table.BLOCK_BYTES):
            if len(head) < HEAD_BYTES:
                head += block[: HEAD_BYTES - len(head)]
            digest.update(block)
            feeds, returns, size, last = (
                feeds + block.count(b"\n"),
                returns + block.count(b"\r"),
                size + len(block),
                block,
            )
            if is_utf8:
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    is_utf8 = False
    lines = max(feeds, returns) + (last[-1:] not in (b"\n", b"\r"))
    return Content(digest.hexdigest(), lines, head, size == len(head), is_utf8)


def _head_text(content: Content, encoding: str) -> str:
    """The whole lines of the head."""
    text = codecs.getincrementaldecoder(encoding)().decode(content.head, final=content.whole)
    if content.whole:
        return text
    end = max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1))
    return text[: end + 1] if end >= 0 else text
