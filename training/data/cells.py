"""What the text of a cell is: missing, a number, a time, or something else. The grammar of numbers stands here."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

# The usual ways to write a missing value, in lower case.
MISSING = frozenset(
    {"", "-", "--", "---", "?", ".", "na", "n/a", "#n/a", "#nv", "#na", "<na>", "nan", "-nan", "null", "none", "nil"}
    | {"nodata", "no data", "missing", "unknown", "unavailable", "#value!", "#div/0!", "1.#qnan", "-1.#ind"}
)
# What is missing in a column of text too. A class or a state may be called "none" or "unknown".
MISSING_CELLS = (
    *("", "-", "--", "---", "?", "NA", "N/A", "n/a", "#N/A", "#NA", "#NV", "<NA>", "NaN", "nan", "-NaN", "-nan"),
    *("NULL", "Null", "null", "1.#QNAN", "-1.#IND"),
)
# What a sheet holds for a formula that no program has calculated.
UNCALCULATED = "a formula without a value"
SAVE_AGAIN = "open the file in a spreadsheet program and save it, which calculates its formulas"
BOOLEANS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "on": 1.0, "off": 0.0}

_NUMBER_LIKE = re.compile(r"[-+−]?(?:\d[\d.,'’\u00a0\u202f ]*|[.,]\d+)(?:[eE][-+]?\d+)?")
_INFINITE = re.compile(r"[-+]?inf(?:inity)?", re.IGNORECASE)
_DATE = r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}|\d{1,2}[-. ]{0,2}[^\W\d]{3,9}\.?[-, ]*\d{2,4}|[^\W\d]{3,9}\.? \d{1,2},? \d{4}|\d{8}T?"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_ZONE = r"(?: ?[AaPp]\.? ?[Mm]\.?)?(?: ?(?:Z|[A-Z]{3,4}|[-+]\d{2}(?::?\d{2})?))?"
_CLOCK_ALONE = re.compile(rf"{_CLOCK}(?: ?[AaPp]\.?[Mm]\.?)?")
_TIME_LIKE = re.compile(
    rf"(?:[A-Za-z]{{3,9}},? )?(?:{_DATE})(?:[T ,_]+{_CLOCK}{_ZONE}|[T ,_]+\d{{1,2}} ?[AaPp]\.?[Mm]\.?|[T _]?\d{{4,6}}Z?)?|{_CLOCK_ALONE.pattern}"
)
# A number with its unit behind it: `21.5 °C`.
_WITH_UNIT = re.compile(rf"{_NUMBER_LIKE.pattern}\s*(?P<unit>[^\d\s].*)")
# Blanks that some programs put between digits, and the minus of typesetters.
_BLANKS = dict.fromkeys(map(ord, "\u00a0\u202f\u2009"), " ") | {ord("−"): "-", ord("’"): "'"}


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in MISSING


def is_number_like(cell: str) -> bool:
    """Whether a cell is a number in some notation."""
    return bool(_NUMBER_LIKE.fullmatch(cell.strip()))


def units_of_cells(cells: Collection[str]) -> set[str]:
    """The units that stand behind the numbers in the cells; among them an empty one if a cell has none."""
    found = (_WITH_UNIT.fullmatch(cell.strip()) for cell in cells)
    return {match["unit"] if match else "" for match in found}


def is_time_like(cell: str) -> bool:
    """Whether a cell is a date, a time of day, or both; a bare number is none."""
    text = cell.strip()
    return not text.isdecimal() and bool(_TIME_LIKE.fullmatch(text))


def is_clock(cell: str) -> bool:
    """Whether a cell is a time of day without a date."""
    return bool(_CLOCK_ALONE.fullmatch(cell.strip()))


@dataclass(frozen=True)
class NumberFormat:
    """How numbers are written: the decimal separator, and what groups thousands ('' if nothing does)."""

    decimal: str = "."
    thousands: str = ""

    def reader(self) -> Callable[[str], float | None]:
        """Reads one cell: the number, NaN if it is missing, None if it is neither."""
        decimal, group = re.escape(self.decimal), re.escape(self.thousands) if self.thousands else "[ ']"
        pattern = re.compile(
            rf"[-+]?(?:(?:\d{{1,3}}(?:{group}\d{{3}})+|\d+)(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][-+]?\d+)?"
        )

        def read(cell: str) -> float | None:
            text = cell.translate(_BLANKS).strip()
            if text.lower() in MISSING:
                return float("nan")
            if pattern.fullmatch(text):
                for blank in (" ", "'", self.thousands):
                    text = text.replace(blank, "") if blank else text
                return float(text.replace(self.decimal, "."))
            if _INFINITE.fullmatch(text):
                return float(text)
            return BOOLEANS.get(text.lower())

        return read


# Numbers without a comma.
POINT = NumberFormat()


def guess_number_format(cells: list[str], *, strict: bool) -> NumberFormat | None:
    """How the numbers of these cells are written.

    Args:
        cells: some of the table that look like numbers.
        strict: whether dots before three digits, as in 1.234, may group thousands, as they do between semicolons and tabs.

    Returns:
        None if 1,234 (or, if strict, 1.234) may be either notation.
    """
    votes = Counter(_vote(cell.strip().lstrip("+-−")) for cell in cells)
    comma = votes["comma"] + votes["points, comma"]
    point = votes["point"] + votes["commas, point"]
    comma_groups = votes["commas"] + votes["commas, point"]
    point_groups = votes["points"] + votes["points, comma"]
    if comma >= point and comma and not comma_groups:
        return NumberFormat(",", "." if point_groups or (votes["1.234"] and not point) else "")
    if point or comma_groups:
        return NumberFormat(".", "," if comma_groups or votes["1,234"] else "")
    if point_groups:
        return NumberFormat(",", ".")
    return None if votes["1,234"] or (strict and votes["1.234"]) else POINT


def doubtful_point(cells: list[str]) -> str:
    """A number such as 5.163, whose point might group thousands, if no other cell tells what a point is; else empty."""
    votes = {_vote(cell.strip().lstrip("+-−")): cell.strip() for cell in reversed(cells)}
    known = votes.keys() & {"point", "commas, point", "commas", "points", "comma", "points, comma"}
    return "" if known else votes.get("1.234", "")


def _vote(text: str) -> str:
    """What the commas and points of a number are: each says it by its number, its order, or the digits behind it."""
    commas, points = text.count(","), text.count(".")
    if commas and points:
        return "points, comma" if text.rindex(",") > text.rindex(".") else "commas, point"
    if commas > 1 or points > 1:
        return "commas" if commas else "points"
    if not commas and not points:
        return ""
    sign, word, doubtful = (",", "comma", "1,234") if commas else (".", "point", "1.234")
    head, _, tail = text.partition(sign)
    three = len(tail) == 3 and tail.isdecimal() and 1 <= len(head) <= 3 and not head.startswith("0")
    return doubtful if three else word
