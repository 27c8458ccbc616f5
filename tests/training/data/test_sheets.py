"""Workbooks as people have them: merged cells, formulas, several sheets, days since 1904. Each is read rightly or told how."""

import zipfile
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from tidegate.training.data.load import read
from tidegate.training.errors import TableError
from tidegate.training.settings import Format

START = datetime(2024, 3, 1)  # noqa: DTZ001  a sheet has no zone
STARTS = [START + timedelta(minutes=10 * row) for row in range(24)]
ROWS: list[list[Any]] = [[start, 20 + row / 4, row % 5] for row, start in enumerate(STARTS)]
NAMES = ["time", "temp", "flow"]
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
STYLES = {datetime: 1, date: 2, time: 3, timedelta: 4}


class Formula(str):
    """A formula that no program has calculated."""

    __slots__ = ()


class Fault(str):
    """A cell with an error such as #N/A."""

    __slots__ = ()


class Plain(float):
    """A day as a number, without the format of a date."""

    __slots__ = ()


def days(value: Any, epoch: datetime) -> float:
    """What a sheet holds for a time."""
    if isinstance(value, datetime):
        return (value - epoch) / timedelta(days=1)
    if isinstance(value, date):
        return float((value - epoch.date()).days)
    if isinstance(value, time):
        return (value.hour * 60 + value.minute) / 1440
    return float(value / timedelta(days=1))


def cell(place: str, value: Any, epoch: datetime) -> str:
    """One cell as XML; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, Formula):
        return f'<c r="{place}"><f>{value}</f><v></v></c>'
    if isinstance(value, Fault):
        return f'<c r="{place}" t="e"><v>{value}</v></c>'
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    style = STYLES.get(type(value))
    return (
        f'<c r="{place}" s="{style}"><v>{days(value, epoch)!r}</v></c>'
        if style
        else f'<c r="{place}"><v>{value!r}</v></c>'
    )


def book(path: Path, *sheets: list[list[Any]], merged: str = "", hidden: int = -1, since_1904: bool = False) -> Path:
    """A workbook with these sheets, called S1, S2, ...; `merged` are ranges of the first, such as A1:C1 B2:B5."""
    epoch = datetime(1904, 1, 1) if since_1904 else datetime(1899, 12, 30)  # noqa: DTZ001
    formats = {1: "yyyy-mm-dd hh:mm", 2: "yyyy-mm-dd", 3: "hh:mm", 4: "[h]:mm:ss"}
    cells = "".join(f'<xf numFmtId="{163 + number if number else 0}"/>' for number in range(5))
    masks = "".join(f'<numFmt numFmtId="{163 + number}" formatCode="{mask}"/>' for number, mask in formats.items())
    states = ("visible", "hidden")
    listed = "".join(
        f'<sheet name="S{number}" sheetId="{number}" r:id="r{number}" state="{states[number == hidden]}"/>'
        for number in range(1, len(sheets) + 1)
    )
    links = "".join(
        f'<Relationship Id="r{number}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{number}.xml"/>'
        for number in range(1, len(sheets) + 1)
    )
    told = f'<workbookPr date1904="{int(since_1904)}"/>'
    parts = {
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}">{told}<sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}">{links}<Relationship Id="s" Type="{OFFICE}/styles" '
        f'Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{MAIN}"><numFmts>{masks}</numFmts><cellXfs>{cells}</cellXfs></styleSheet>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}"><Relationship Id="w" Type="{OFFICE}/officeDocument" '
        f'Target="xl/workbook.xml"/></Relationships>',
    }
    for number, rows in enumerate(sheets, start=1):
        body = "".join(
            f'<row r="{at}">{"".join(cell(f"{chr(65 + place)}{at}", value, epoch) for place, value in enumerate(row))}</row>'
            for at, row in enumerate(rows, start=1)
        )
        joined = "".join(f'<mergeCell ref="{part}"/>' for part in merged.split()) if number == 1 else ""
        joined = f"<mergeCells>{joined}</mergeCells>" if joined else ""
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{MAIN}"><sheetData>{body}</sheetData>{joined}</worksheet>'
        )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def test_a_sheet_is_read_as_it_is(tmp_path: Path) -> None:
    """Dates, numbers and names."""
    series = read(book(tmp_path / "a.xlsx", [NAMES, *ROWS]))
    assert series.names == ("temp", "flow")
    assert series.times[1] == np.datetime64("2024-03-01T00:10")
    np.testing.assert_array_equal(series.values[:, 0], [row[1] for row in ROWS])


def test_a_merged_cell_counts_for_each_of_its_rows(tmp_path: Path) -> None:
    """A day beside its hours was refused as rows without a time, and a merged number was missing in all rows but one."""
    rows = [
        [
            date(2024, 3, 1 + row // 12) if row % 12 == 0 else None,
            time(row % 12),
            7.5 if row == 2 else None if 2 < row < 6 else row,
        ]
        for row in range(24)
    ]
    path = book(tmp_path / "a.xlsx", [["day", "clock", "temp"], *rows], merged="A2:A13 A14:A25 C4:C7")
    series = read(path)
    assert series.times[13] == np.datetime64("2024-03-02T01:00")
    assert series.values[:7, 0].tolist() == [0, 1, 7.5, 7.5, 7.5, 7.5, 6]


def test_a_name_above_several_columns_is_that_of_none(tmp_path: Path) -> None:
    """The names stand below; that of the time, merged over both rows, is kept."""
    head = [["time", "boiler", None], [None, "temp", "flow"]]
    series = read(book(tmp_path / "a.xlsx", [*head, *ROWS], merged="A1:A2 B1:C1"))
    assert series.names == ("temp", "flow")
    assert any("time = 'time'" in note for note in series.notes)


def test_a_formula_that_was_never_calculated_is_told(tmp_path: Path) -> None:
    """Programs that write sheets calculate nothing. Such a cell was taken for a missing value without a word."""
    rows = [[*row[:2], Formula("B2*2") if number == 7 else row[2]] for number, row in enumerate(ROWS)]
    path = book(tmp_path / "a.xlsx", [NAMES, *rows])
    with pytest.raises(
        TableError, match=r"column 'flow' holds 'a formula without a value' in row 8, .*save it, which calc"
    ):
        read(path)
    series = read(path, options=Format(missing_values=("a formula without a value",)))
    assert np.flatnonzero(np.isnan(series.values[:, 1])).tolist() == [7]


def test_a_column_of_formulas_is_left_out_with_its_reason(tmp_path: Path) -> None:
    """It was said to be empty."""
    series = read(book(tmp_path / "a.xlsx", [NAMES, *([*row[:2], Formula("B2*2")] for row in ROWS)]))
    assert series.names == ("temp",)
    assert any(
        "flow (formulas without a value: open the file in a spreadsheet program" in note for note in series.notes
    )


def test_times_that_were_never_calculated_are_told(tmp_path: Path) -> None:
    """The first is typed, the others are formulas."""
    rows = [[row[0] if number == 0 else Formula("A2+1/144"), *row[1:]] for number, row in enumerate(ROWS)]
    with pytest.raises(
        TableError, match="the sheet has formulas without a value: open the file in a spreadsheet program"
    ):
        read(book(tmp_path / "a.xlsx", [NAMES, *rows]))


def test_a_hidden_sheet_is_not_taken_for_the_table(tmp_path: Path) -> None:
    """Old numbers in a hidden sheet before the table were read instead of it."""
    old = [[row[0], 99 + number, row[2]] for number, row in enumerate(ROWS)]
    path = book(tmp_path / "a.xlsx", [NAMES, *old], [NAMES, *ROWS], hidden=1)
    assert read(path).values[0, 0] == 20
    assert read(path, options=Format(sheet="S1")).values[0, 0] == 99


def test_a_sheet_of_notes_is_passed_over(tmp_path: Path) -> None:
    """It was refused for having no column of times."""
    notes = [["Readings of boiler 3"], ["Bob has the key"]]
    assert read(book(tmp_path / "a.xlsx", notes, [NAMES, *ROWS])).names == ("temp", "flow")


def test_a_sheet_without_times_names_the_others(tmp_path: Path) -> None:
    """A summary comes first: the way out is --sheet."""
    summary = [["name", "value"], ["mean", 20.5], ["highest", 26]]
    with pytest.raises(TableError, match="or choose another sheet with --sheet: S2"):
        read(book(tmp_path / "a.xlsx", summary, [NAMES, *ROWS]))


@pytest.mark.parametrize("kind", [datetime, Plain])
def test_days_since_1904(tmp_path: Path, kind: type) -> None:
    """A day without the format of a date was read as one four years before."""
    epoch = datetime(1904, 1, 1)  # noqa: DTZ001
    rows = ROWS if kind is datetime else [[Plain(days(row[0], epoch)), *row[1:]] for row in ROWS]
    series = read(book(tmp_path / "a.xlsx", [NAMES, *rows], since_1904=True))
    assert series.times[0] == np.datetime64("2024-03-01T00:00")
    assert series.period_s == 600.0


def test_the_line_of_names_is_counted_as_the_program_shows_it(tmp_path: Path) -> None:
    """Empty rows above the names were not counted."""
    series = read(book(tmp_path / "a.xlsx", [["Boiler 3"], [], [], NAMES, *ROWS]))
    assert any("names in line 4" in note for note in series.notes)
    assert len(series) == 24


def test_an_empty_row_between_the_rows_is_none(tmp_path: Path) -> None:
    """Nor are errors values."""
    rows = [[*row[:2], Fault("#DIV/0!") if number == 5 else row[2]] for number, row in enumerate(ROWS)]
    series = read(book(tmp_path / "a.xlsx", [NAMES, *rows[:12], [], *rows[12:]]))
    assert len(series) == 24
    assert np.flatnonzero(np.isnan(series.values[:, 1])).tolist() == [5]


def test_a_span_of_time_is_no_time_of_day(tmp_path: Path) -> None:
    """Hours of running beside full times were joined to them."""
    rows = [[row[0], timedelta(minutes=7 * number), row[1]] for number, row in enumerate(ROWS)]
    series = read(book(tmp_path / "a.xlsx", [["time", "run", "temp"], *rows]))
    assert series.names == ("temp",)
    assert series.times[5] == np.datetime64("2024-03-01T00:50")


def test_a_note_below_the_rows_is_left_out_as_the_message_says(tmp_path: Path) -> None:
    """The message named --comment, which sheets did not know."""
    path = book(tmp_path / "a.xlsx", [NAMES, *ROWS, ["Total", 480, 48]])
    with pytest.raises(TableError, match="--comment 'Total' leaves out lines that begin so"):
        read(path)
    assert len(read(path, options=Format(comment="Total"))) == 24


def test_names_that_come_again_are_left_out(tmp_path: Path) -> None:
    """Exports that were pasted below each other."""
    series = read(book(tmp_path / "a.xlsx", [NAMES, *ROWS[:12], NAMES, *ROWS[12:]]))
    assert len(series) == 24
    assert "1 line between the rows repeats what is above the first one: left out" in series.notes


def opened_elsewhere(days: list[datetime], written: str) -> list[Any]:
    """What a spreadsheet program holds that has taken day for month where it can; other days stay text."""
    return [day.replace(month=day.day, day=day.month) if day.day <= 12 else day.strftime(written) for day in days]


JANUARY = [datetime(2024, 1, 1, 6) + timedelta(days=day) for day in range(31)]  # noqa: DTZ001  a sheet has no zone


@pytest.mark.parametrize("written", ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"])
def test_days_that_were_taken_for_months_are_exchanged_again(tmp_path: Path, written: str) -> None:
    """Before, 1 to 12 January became the first of twelve months, without a word."""
    rows = [[cell, row] for row, cell in enumerate(opened_elsewhere(JANUARY, written))]
    series = read(book(tmp_path / "a.xlsx", [["time", "temp"], *rows]))
    np.testing.assert_array_equal(series.times, np.array(JANUARY, "datetime64[ns]"))
    assert series.values[:, 0].tolist() == list(range(31))
    assert any("exchanged" in part for part in series.notes)


@pytest.mark.parametrize(("written", "order"), [("%d/%m/%Y %H:%M", "day-first"), ("%m/%d/%Y %H:%M", "month-first")])
def test_days_out_of_order_that_may_be_months_are_refused(tmp_path: Path, written: str, order: str) -> None:
    """Each of the two options that the message names reads the file, in its way."""
    mixed = [JANUARY[place] for place in (20, 1, 14, 3, 30)]
    rows = [[cell, row] for row, cell in enumerate(opened_elsewhere(mixed, written))]
    path = book(tmp_path / "a.xlsx", [["time", "temp"], *rows])
    with pytest.raises(TableError, match=rf"--time-format exchanged .* --time-format {order}"):
        read(path)
    for option, second in (("exchanged", "2024-01-02T06:00"), (order, "2024-02-01T06:00")):
        series = read(path, options=Format(time_format=option))
        assert series.values[series.times == np.datetime64(second), 0].tolist() == [1]


@pytest.mark.parametrize("day", [datetime(2024, 1, 13), "01/13/2024", 7])  # noqa: DTZ001
def test_what_cannot_have_been_exchanged_is_refused_when_asked(tmp_path: Path, day: Any) -> None:
    """A date above the 12th, text without a date beside it, a number: nothing is read as it is in silence."""
    rows = [[day, row] for row in range(3)]
    path = book(tmp_path / "a.xlsx", [["time", "temp"], *rows])
    with pytest.raises(TableError, match="exchanged"):
        read(path, options=Format(time_format="exchanged"))


def test_a_sheet_that_has_only_days_up_to_the_twelfth_is_exchanged_when_asked(tmp_path: Path) -> None:
    """No cell of it shows what happened."""
    rows = [[cell, row] for row, cell in enumerate(opened_elsewhere(JANUARY[:12], ""))]
    series = read(book(tmp_path / "a.xlsx", [["time", "temp"], *rows]), options=Format(time_format="exchanged"))
    np.testing.assert_array_equal(series.times, np.array(JANUARY[:12], "datetime64[ns]"))


def test_dates_in_order_beside_text_stay_as_they_are(tmp_path: Path) -> None:
    """Someone has typed the later ones by hand."""
    days = [datetime(2024, month, 13 - month) for month in range(1, 13)]  # noqa: DTZ001
    rows = [[day, row] for row, day in enumerate(days)] + [["13/12/2024", 12], ["14/12/2024", 13]]
    series = read(book(tmp_path / "a.xlsx", [["time", "temp"], *rows]))
    assert series.times[1] == np.datetime64("2024-02-11")
