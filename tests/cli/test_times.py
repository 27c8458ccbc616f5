"""The times of a file that `tidegate stream` sends."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tidegate.cli.local_times import UnknownTime, find_zone
from tidegate.cli.sensor_table import InvalidTable, read_table
from tidegate.cli.stretches import Clock, cut
from tidegate.cli.times import TIME_NAMES, read_times
from tidegate.training.data import columns, unix
from tidegate.training.data.load import read
from tidegate.training.settings import Format

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


@pytest.mark.parametrize("digits", [4, 10])
def test_days_of_a_spreadsheet_are_read_as_training_reads_them(tmp_path: Path, digits: int) -> None:
    """Whole minutes although few digits hide some seconds; the period of the model tells them from seconds."""
    days = [f"{45352 + minute / 1440:.{digits}f}" for minute in range(0, 200, 10)]
    path = tmp_path / "a.csv"
    path.write_text("time,a\n" + "".join(f"{day},{row}\n" for row, day in enumerate(days)), encoding="utf-8")
    found = read_table(path, ["a"], period_s=600.0).when
    assert found is not None
    assert found.notation == "excel"
    np.testing.assert_array_equal(np.array(found.moments, "datetime64[ns]"), read(path).times)
    assert float(found.text(found.moments[3])) == pytest.approx(45352 + 30 / 1440, abs=1e-8)
    assert read_table(path, ["a"], period_s=0.0069).when is None
    assert read_times(days, trained="excel") == found


@pytest.mark.parametrize("changes", ["autumn", "spring"])
def test_local_times_are_read_as_training_reads_them(tmp_path: Path, changes: str) -> None:
    """The hour that the clock shows twice is an hour each time, and the one that it leaves out is no gap."""
    start = np.datetime64("2024-10-26T22:00" if changes == "autumn" else "2024-03-30T22:00")
    utc = [start + np.timedelta64(20 * row, "m") for row in range(20)]
    zone = find_zone("Europe/Berlin")
    local = [moment.astype(datetime).replace(tzinfo=UTC).astimezone(zone).strftime("%d.%m.%Y %H:%M") for moment in utc]
    path = tmp_path / "a.csv"
    path.write_text("time,a\n" + "".join(f"{label},{row}\n" for row, label in enumerate(local)), encoding="utf-8")
    found = read_table(path, ["a"], zone=zone).when
    assert found is not None
    assert [np.datetime64(moment.replace(tzinfo=None), "m") for moment in found.moments] == utc
    read_by_training = read(path, options=Format(timezone="Europe/Berlin")).times
    np.testing.assert_array_equal(np.array(utc, "datetime64[ns]"), read_by_training)
    assert found.text(found.moments[7]) == local[7]


def test_a_time_that_a_clock_leaves_out_is_refused(tmp_path: Path) -> None:
    """With the option for a clock that is never changed."""
    path = tmp_path / "a.csv"
    path.write_text("time,a\n2024-03-31 01:50,1\n2024-03-31 02:10,2\n", encoding="utf-8")
    with pytest.raises(
        InvalidTable, match=r"row 2 has 2024-03-31 02:10:00, which Europe/Berlin leaves out.*--timezone \+01:00"
    ):
        read_table(path, ["a"], zone=find_zone("Europe/Berlin"))
    assert read_table(path, ["a"], zone=find_zone("+01:00")).when is not None


def test_times_with_an_offset_need_no_zone() -> None:
    """What they say is taken."""
    found = read_times(["2024-03-01T00:00+01:00"], zone=find_zone("America/New_York"))
    assert found is not None
    assert found.moments[0].astimezone(UTC).hour == 23


def test_an_unknown_zone_is_refused() -> None:
    """With what a zone looks like."""
    with pytest.raises(UnknownTime, match="'Berlin' is unknown, expected a name such as Europe/Berlin"):
        find_zone("Berlin")


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
