"""The times of a file that `tidegate stream` sends."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tidegate.cli.sensor_table import read_table
from tidegate.cli.stretches import Clock, cut
from tidegate.cli.times import TIME_NAMES, read_times
from tidegate.training.data import columns, unix
from tidegate.training.data.load import read

START = np.datetime64("2024-03-01T23:10:00")
MINUTES = [0, 10, 20, 50, 60, 720]


def written(pattern: str) -> list[str]:
    """The times of some rows, in a notation."""
    moments = [(START + np.timedelta64(minute, "m")).astype(datetime) for minute in MINUTES]
    units = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    if pattern in units:
        return [str(round(moment.replace(tzinfo=UTC).timestamp()) * units[pattern]) for moment in moments]
    return [moment.strftime(pattern) for moment in moments]


@pytest.mark.parametrize(
    "pattern",
    [
        *("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S+01:00", "%Y/%m/%d %H:%M:%S"),
        *("s", "ms", "us", "ns", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%S"),
        *("%d.%m.%Y %H:%M", "%d/%m/%y %H:%M:%S", "%m/%d/%Y %I:%M %p", "%d-%b-%Y %H:%M", "%b %d, %Y %H:%M"),
    ],
)
def test_usual_times_are_read_as_training_reads_them(pattern: str, tmp_path: Path) -> None:
    """The same file, the same times; and a time between two rows is written as the file would."""
    path = tmp_path / "a.csv"
    rows = "".join(f'"{label}",{row}\n' for row, label in enumerate(written(pattern)))
    path.write_text(f"time,a\n{rows}", encoding="utf-8")
    found = read_table(path, ["a"]).when
    assert found is not None
    told = [
        np.datetime64(moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment)
        for moment in found.moments
    ]
    np.testing.assert_array_equal(np.array(told, "datetime64[ns]"), read(path).times)
    assert found.text(found.moments[1]) in (written(pattern)[1], found.moments[1].isoformat())


def test_gaps_of_unix_times_are_cut(tmp_path: Path) -> None:
    """A short one becomes missing values, and rows behind a long one are a stretch of their own."""
    path = tmp_path / "a.csv"
    path.write_text("time,a\n" + "".join(f"{label},1\n" for label in written("ms")), encoding="utf-8")
    parts = cut(read_table(path, ["a"]), Clock(600.0, True), 2)
    assert [len(part) for part in parts] == [7, 1]
    assert np.flatnonzero(np.isnan(parts[0].values[:, 0])).tolist() == [3, 4]
    assert parts[0].labels[3] == str(int(written("ms")[2]) + 600_000)


def test_the_period_of_the_model_decides_between_two_readings() -> None:
    """01/02/2024 may be a day or a month later; without a period, or with neither, nothing is read."""
    days = [f"{day:02}/02/2024" for day in range(1, 10)]
    found = read_times(days, period_s=86_400.0)
    assert found is not None
    assert (found.notation, found.moments[1].day) == ("%d/%m/%Y", 2)
    assert read_times(days) is None
    assert read_times(days, period_s=600.0) is None


def test_the_time_format_of_the_training_decides_too() -> None:
    """A model that was trained with --time-format reads such files without a question."""
    days = [f"{day:02}/02/2024" for day in range(1, 10)]
    first = read_times(days, trained="month-first")
    assert first is not None
    assert first.moments[1].month == 2
    assert first.moments[1].day == 2
    own = read_times(["10:05 am 01.02.24"], trained="%H:%M am %d.%m.%y")
    assert own is not None
    assert own.moments[0].isoformat() == "2024-02-01T10:05:00"


def test_numbers_are_times_only_by_their_name(tmp_path: Path) -> None:
    """A meter that no model reads, 40000000 and rising, is no clock."""
    path = tmp_path / "a.csv"
    path.write_text("meter,a\n40000000,1\n40000600,2\n", encoding="utf-8")
    assert read_table(path, ["a"]).when is None
    assert read_table(path, ["a"], time="meter").when is not None
    assert TIME_NAMES == columns.TIME_NAMES
    assert (unix.FIRST_UNIX_S, unix.LAST_UNIX_S) == (31_536_000, 4_102_444_800)


@pytest.mark.parametrize("cells", [["soon", "later"], ["2024-03-01", "2024-03-01T00:10+01:00"], ["45352.5", "45352.6"]])
def test_what_is_no_usual_time_is_not_guessed(cells: list[str]) -> None:
    """The command says that gaps were not seen."""
    assert read_times(cells) is None
