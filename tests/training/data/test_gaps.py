"""Absent rows: which of them become missing values, and how they are counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tidegate.training.data.gaps import Absence, absence, fill_gaps
from tidegate.training.data.load import read
from tidegate.training.data.overview import overview
from tidegate.training.data.series import Group, Series
from tidegate.training.data.write import write_csv


def without(series: Series, *spans: tuple[int, int]) -> Series:
    """The series without these rows."""
    kept = np.ones(len(series), np.bool_)
    for first, end in spans:
        kept[first:end] = False
    return replace(series, values=series.values[kept], times=series.times[kept])


def test_a_short_gap_becomes_missing_values(make_series: Callable[..., Series]) -> None:
    """The rows are those of the table that has them as empty cells, at the same times."""
    whole = make_series(100)
    filled = fill_gaps(without(whole, (20, 21), (50, 53)), 3)
    wanted = whole.values.copy()
    wanted[[20, 50, 51, 52]] = np.nan
    np.testing.assert_array_equal(filled.values, wanted)
    np.testing.assert_array_equal(filled.times, whole.times)
    assert filled.filled.tolist() == [20, 50, 51, 52]
    assert filled.segments() == [(0, 100)]


def test_a_long_gap_cuts(make_series: Callable[..., Series]) -> None:
    """A gap of one row more than may be filled stays what it is."""
    series = without(make_series(100), (20, 21), (50, 54))
    filled = fill_gaps(series, 3)
    assert filled.segments() == [(0, 50), (50, 96)]
    assert fill_gaps(series, 0) is series


def test_groups_are_filled_each_for_itself(make_series: Callable[..., Series]) -> None:
    """The end of a group is no gap, whatever the time of the next one, and its rows move with those filled before it."""
    series = without(make_series(100), (10, 12), (40, 41), (70, 73))
    series = replace(series, groups=(Group("a", 0, 38, "x"), Group("b", 38, 94, "y")))
    filled = fill_gaps(series, 5)
    assert filled.groups == (Group("a", 0, 40, "x"), Group("b", 40, 99, "y"))
    assert filled.segments() == [(0, 40), (40, 99)]


def test_filled_rows_have_no_label(make_series: Callable[..., Series]) -> None:
    """Nobody has said what they are."""
    series = replace(make_series(10), labels=np.arange(10) % 2, classes=("a", "b"))
    lacking = replace(without(series, (4, 6)), labels=series.labels[[0, 1, 2, 3, 6, 7, 8, 9]])
    assert fill_gaps(lacking, 2).labels.tolist() == [0, 1, 0, 1, -1, -1, 0, 1, 0, 1]


def test_times_with_a_jitter_still_increase(make_series: Callable[..., Series]) -> None:
    """The filled rows lie evenly between their neighbours, which are not exactly whole periods apart."""
    series = without(make_series(50), (20, 23))
    times = series.times.copy()
    times[20:] += np.timedelta64(1500, "s")
    filled = fill_gaps(replace(series, times=times), 5)
    steps = np.diff(filled.times) / np.timedelta64(1, "s")
    assert len(filled) == 50
    assert steps[19:23].tolist() == [3975.0] * 4


def test_an_irregular_series_is_never_filled(make_series: Callable[..., Series]) -> None:
    """Without a period no row is absent; its gaps are only counted."""
    series = replace(make_series(50, gap_at=20), period_s=None)
    assert fill_gaps(series, 1000) is series
    assert absence(series) == Absence(rows=None, gaps=1, cuts=1, filled=0, stretches=2, longest=30)


def test_absent_rows_are_counted(make_series: Callable[..., Series]) -> None:
    """In rows and pieces: those that are filled now, and those of the gaps that cut."""
    series = fill_gaps(without(make_series(200), (20, 21), (21, 22), (50, 60), (90, 93)), 3)
    assert absence(series) == Absence(rows=15, gaps=3, cuts=1, filled=5, stretches=2, longest=140)
    assert absence(series, ((30, 195),)).gaps == 2
    assert absence(series, ((60, 75),)) == Absence(rows=0, gaps=0, cuts=0, filled=0, stretches=1, longest=15)


def test_times_that_are_utc_say_so(tmp_path: Path, make_series: Callable[..., Series]) -> None:
    """In the overview and in the rows that are written; times of an unknown clock do not."""
    series = replace(make_series(3), timezone="UTC")
    assert "2024-01-01T00:00:00Z to 2024-01-01T02:00:00Z" in overview(series)[0]
    write_csv(series, tmp_path / "utc.csv", series.spans)
    again = read(tmp_path / "utc.csv")
    assert again.timezone == "UTC"
    np.testing.assert_array_equal(again.times, series.times)
    assert "Z" not in overview(make_series(3))[0]
