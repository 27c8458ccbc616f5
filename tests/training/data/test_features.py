"""Features made from others: the known future, the calendar, and the time since the last timestep."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tidegate.training import errors
from tidegate.training.data import features
from tidegate.training.data.load import read
from tidegate.training.data.series import Group, Series
from tidegate.training.data.write import write_csv


def test_a_known_future_is_the_value_so_many_rows_later(make_series: Callable[..., Series]) -> None:
    """`s1@+3` holds s1 three timesteps ahead, in its unit, and is missing where a gap or the end comes first."""
    series = make_series(50, gap_at=30)
    made = features.add_derived(series, ["s1@+3"])
    assert (made.names[3], made.units[3]) == ("s1@+3", "°C")
    np.testing.assert_array_equal(made.values[:27, 3], series.values[3:30, 1])
    np.testing.assert_array_equal(made.values[30:47, 3], series.values[33:, 1])
    assert np.isnan(made.values[[27, 28, 29, 47, 48, 49], 3]).all()


def test_a_known_future_stays_in_its_group(make_series: Callable[..., Series]) -> None:
    """The last rows of a group do not see the first of the next."""
    series = replace(make_series(50), groups=(Group("a", 0, 20), Group("b", 20, 50)))
    made = features.add_derived(series, ["s0@+2"])
    assert np.flatnonzero(np.isnan(made.values[:, 3])).tolist() == [18, 19, 48, 49]


def test_the_future_of_a_column_that_is_not_there_is_refused(make_series: Callable[..., Series]) -> None:
    """The message names both and the columns that exist."""
    with pytest.raises(errors.MissingColumn, match=r"'plan', whose future 'plan@\+1'.*s0, s1, s2"):
        features.add_derived(make_series(50), ["plan@+1"])


@pytest.mark.parametrize(
    ("time", "day", "week"),
    [
        ("2024-01-01T00:00:00", 0.0, 0.0),  # a Monday
        ("2024-01-03T06:00:00", 0.25, 2.25 / 7),
        ("1969-12-31T18:00:00", 0.75, 2.75 / 7),  # before 1970, a Wednesday
    ],
)
def test_day_and_week_are_phases_of_utc(make_series: Callable[..., Series], time: str, day: float, week: float) -> None:
    """A day begins at midnight, a week on Monday."""
    series = replace(make_series(2), times=np.array([time, "2030-01-01"], "datetime64[ns]"))
    made = features.add_derived(series, features.derived_names((), (), ("day", "week"), elapsed=False))
    assert made.names[3:] == ("day_sin", "day_cos", "week_sin", "week_cos")
    wanted = [wave(2 * math.pi * phase) for phase in (day, week) for wave in (math.sin, math.cos)]
    np.testing.assert_allclose(made.values[0, 3:], wanted, atol=1e-6)


def test_a_client_computes_the_calendar_from_unix_time(make_series: Callable[..., Series]) -> None:
    """The formula of docs/data.md, on Unix seconds in plain Python, gives the same float32."""
    made = features.add_derived(make_series(1000), ["year_sin", "week_cos"])
    for row in (0, 17, 999):
        unix_s = datetime.fromisoformat(str(made.times[row].astype("datetime64[s]"))).replace(tzinfo=UTC).timestamp()
        year = math.sin(2 * math.pi * (unix_s % 31_556_952) / 31_556_952)
        week = math.cos(2 * math.pi * ((unix_s + 259_200) % 604_800) / 604_800)
        np.testing.assert_allclose(made.values[row, 3:], [year, week], atol=1e-7)


def test_the_elapsed_time_is_that_since_the_row_before(make_series: Callable[..., Series]) -> None:
    """In seconds; a group's first row has none."""
    series = make_series(50, gap_at=30)
    series = replace(series, groups=(Group("a", 0, 20), Group("b", 20, 50)))
    made = features.add_derived(series, ["elapsed_s"])
    assert np.flatnonzero(np.isnan(made.values[:, 3])).tolist() == [0, 20]
    assert made.values[[1, 30, 31], 3].tolist() == [3600.0, 101 * 3600.0, 3600.0]


def test_a_table_may_bring_made_features_with_it(make_series: Callable[..., Series], tmp_path: Path) -> None:
    """A part that is written knows the future beyond its end; read again, its columns are taken as they are."""
    names = ["s0@+5", "day_sin", "elapsed_s"]
    series = features.add_derived(make_series(100), names)
    write_csv(series, tmp_path / "part.csv", ((40, 60),))
    again = read(tmp_path / "part.csv", derived=names)
    assert again.names == series.names
    np.testing.assert_array_equal(again.values, series.values[40:60])


def test_columns_that_are_asked_for_are_made(make_series: Callable[..., Series], tmp_path: Path) -> None:
    """Features of a model that a table lacks are made from those that it has."""
    series = make_series(100)
    write_csv(series, tmp_path / "all.csv", series.spans)
    made = read(tmp_path / "all.csv", columns=("week_cos", "s2", "s2@+1"))
    assert made.names == ("s2", "week_cos", "s2@+1")
    np.testing.assert_array_equal(made.values, features.add_derived(series, ["week_cos", "s2@+1"]).values[:, [2, 3, 4]])
