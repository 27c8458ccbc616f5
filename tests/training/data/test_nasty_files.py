"""Files as people have them: with two faults at once, or with a name that does not fit. Each is read rightly or told how."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tidegate.training.data.load import read
from tidegate.training.errors import TableError
from tidegate.training.settings import Format

ROWS = [f"2024-03-01 {hour:02}:00:00,{20 + hour / 4},{hour % 5}\n" for hour in range(24)]
PLAIN = "time,a,b\n" + "".join(ROWS)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", gzip.compress(PLAIN.encode(), mtime=0)),
        ("rows.csv.gz", PLAIN),
        ("rows.csv.xz", gzip.compress(PLAIN.encode(), mtime=0)),
    ],
)
def test_the_bytes_tell_how_a_file_is_packed(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Browsers unpack a file and keep its name. It was taken for text of an unknown encoding, or for damaged."""
    np.testing.assert_array_equal(read(written(tmp_path, name, content)).values[:, 0], 20 + np.arange(24) / 4)


def test_a_spreadsheet_that_is_called_csv_is_told_so(tmp_path: Path) -> None:
    """It was told to name its encoding."""
    with pytest.raises(TableError, match=r"is a spreadsheet or a zip archive, whatever its name says; call it \.xlsx"):
        read(written(tmp_path, "rows.csv", b"PK\x03\x04" + bytes(range(200))))


def test_hours_of_twelve_without_minutes(tmp_path: Path) -> None:
    """`03/13/2024 12 AM` was no time at all."""
    hours = [f"03/13/2024 {hour % 12 or 12} {'AM' if hour < 12 else 'PM'},{hour}\n" for hour in range(24)]
    series = read(written(tmp_path, "rows.csv", "time,a\n" + "".join(hours)))
    assert series.times[0] == np.datetime64("2024-03-13T00:00")
    assert series.times[13] == np.datetime64("2024-03-13T13:00")
    assert series.period_s == 3600.0


def test_a_point_and_a_blank_before_the_name_of_a_month(tmp_path: Path) -> None:
    """`1. März 2024` was no time; the table of notations has it."""
    series = read(
        written(tmp_path, "rows.csv", "time,a\n" + "".join(f"1. März 2024 {hour:02}:00,{hour}\n" for hour in range(24)))
    )
    assert series.times[5] == np.datetime64("2024-03-01T05:00")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "".join([PLAIN[:300], "\n2024-03-0"]),
            "a row has .* cells, expected 3 as in the line of names: .*mend this row or remove it",
        ),
        (
            PLAIN + ",480,48\n",
            "no time in row 25; expected one in every row: fill it in, or leave out the rows without one",
        ),
        (PLAIN + "Total,480,48\n", "has 'Total' in row 25 .--comment 'Total' leaves out lines that begin so"),
        (PLAIN + PLAIN.replace("a,b", "b,a"), "has 'time' in row 25 .--comment 'time' leaves out lines that begin so"),
        ('time,"a\n(V)"\n' + "".join(ROWS), "a line break within quotes is not read"),
    ],
)
def test_a_row_that_is_none_is_told_with_a_way_out(tmp_path: Path, content: str, told: str) -> None:
    """A logger without power, a sum below the rows, joined files, a name over two lines."""
    with pytest.raises(TableError, match=told):
        read(written(tmp_path, "rows.csv", content))


@pytest.mark.parametrize("word", ["Total", "time"])
def test_the_way_out_is_one(tmp_path: Path, word: str) -> None:
    """What the message advises reads the rows."""
    content = PLAIN + "Total,480,48\n" if word == "Total" else PLAIN + PLAIN.replace("2024-03-01", "2024-03-02")
    series = read(written(tmp_path, "rows.csv", content), options=Format(comment=word))
    assert len(series) == (24 if word == "Total" else 48)
    assert series.values[:24, 1].tolist() == [hour % 5 for hour in range(24)]


NEXT_DAY = PLAIN.replace("2024-03-01", "2024-03-02")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (PLAIN + NEXT_DAY, 1),
        ("\ufeff" + PLAIN + "\ufeff" + NEXT_DAY, 1),
        ((PLAIN + NEXT_DAY).replace("\n", "\r\n"), 1),
        ((PLAIN + NEXT_DAY).replace("time,a,b", '"time","a","b"'), 1),
        ("".join(f"Logger 5\n{day}".replace("a,b\n", "a,b\n,°C,m\n") for day in (PLAIN, NEXT_DAY)), 3),
        ((PLAIN + NEXT_DAY).replace("-01 ", "-01T").replace("-02 ", "-02T").replace(",", "  "), 1),
    ],
    ids=["names", "byte order mark", "windows", "quotes", "preamble and units", "blanks"],
)
def test_exports_that_were_joined_are_read(tmp_path: Path, content: str, lines: int) -> None:
    """Each export has its names, and what else stands above the rows. They were refused as text among numbers."""
    series = read(written(tmp_path, "rows.csv", content))
    assert series.values[:, 1].tolist() == [hour % 5 for hour in range(24)] * 2
    assert series.times[24] == np.datetime64("2024-03-02T00:00")
    which = "1 line between the rows repeats" if lines == 1 else f"{lines} lines between the rows repeat"
    assert f"{which} what is above the first one: left out" in series.notes


def test_joined_exports_are_read_across_the_blocks_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of names may lie in two blocks."""
    monkeypatch.setattr("tidegate.training.data.table.BLOCK_BYTES", 37)
    days = [PLAIN.replace("03-01", f"03-{day:02}") for day in range(1, 29)]
    series = read(written(tmp_path, "rows.csv", "".join(days)))
    assert len(series) == 24 * 28
    assert "27 lines between the rows repeat what is above the first one: left out" in series.notes


def test_a_row_of_values_is_never_taken_for_what_is_above(tmp_path: Path) -> None:
    """Limits of a sensor above the names are numbers; a row like them is one of values."""
    rows = "".join(f"{row % 3},{row}\n" for row in range(24))
    path = written(tmp_path, "rows.csv", f"5,6\na,b\n{rows}5,6\n")
    series = read(path, period_s=1.0, options=Format(skip_lines=1))
    assert series.values[-1].tolist() == [5, 6]


@pytest.mark.parametrize("rows", ["N/A,1\n" * 30, ",\n" * 30])
@pytest.mark.parametrize("untimed", ["error", "drop"])
def test_a_column_without_any_time_is_told(tmp_path: Path, untimed: str, rows: str) -> None:
    """Leaving out all rows would leave none to read, as empty rows alone did, and ended with a traceback."""
    path = tmp_path / "rows.csv"
    path.write_text(f"time,a\n{rows}", encoding="utf-8")
    with pytest.raises(TableError, match="column 'time' has no time in any row; name another column with --time"):
        read(path, time="time", options=Format.model_validate({"untimed": untimed}))
