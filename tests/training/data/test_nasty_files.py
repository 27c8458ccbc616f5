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
        (PLAIN + ",480,48\n", "no time in row 25; expected one in every row: fill it in, or remove the row"),
        (PLAIN + "Total,480,48\n", "has 'Total' in row 25 .--comment 'Total' leaves out lines that begin so"),
        (PLAIN + PLAIN, "has 'time' in row 25 .--comment 'time' leaves out lines that begin so"),
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
