"""How a file is cut at its time gaps before it is sent."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tidegate.cli import stretches
from tidegate.cli.sensor_table import InvalidTable, SensorTable, read_table
from tidegate.cli.stretches import Clock, check_order, cut
from tidegate.cli.times import Times

START = datetime.fromisoformat("2026-03-01T00:00:00+01:00")


def table_at(*minutes: float) -> tuple[SensorTable, list[datetime]]:
    """A series with a row at each of these minutes, whose value is the minute."""
    times = [START + timedelta(minutes=minute) for minute in minutes]
    labels = tuple(time.isoformat() for time in times)
    values = np.array([[minute] for minute in minutes], np.float32)
    return SensorTable("when", labels, ("a",), values, when=Times("iso", tuple(times))), times


def test_a_short_gap_becomes_rows_of_missing_values() -> None:
    """With times between, in the zone of the file."""
    table, _ = table_at(0, 10, 20, 50, 60, 70)
    (stretch,) = cut(table, Clock(600.0, True), 2)
    np.testing.assert_array_equal(stretch.values[:, 0], [0, 10, 20, np.nan, np.nan, 50, 60, 70])
    assert stretch.labels[3:5] == ("2026-03-01T00:30:00+01:00", "2026-03-01T00:40:00+01:00")


def test_a_long_gap_ends_a_stretch() -> None:
    """The rows after it are a series of their own."""
    table, _ = table_at(0, 10, 20, 50, 60)
    parts = cut(table, Clock(600.0, True), 1)
    assert [part.values[:, 0].tolist() for part in parts] == [[0, 10, 20], [50, 60]]
    assert [part.labels for part in parts] == [table.labels[:3], table.labels[3:]]


def test_irregular_rows_are_cut_only_at_much_longer_steps() -> None:
    """And never filled: no row is absent."""
    table, times = table_at(0, 1, 4, 5, 8, 9, 30, 31)
    clock = Clock.of([times])
    assert clock == Clock(60.0, False)
    assert [len(part) for part in cut(table, clock, 100)] == [6, 2]


def test_rows_of_another_period_are_refused() -> None:
    """A horizon of one row is ten minutes for the model, and would be one minute here."""
    _, times = table_at(0, 1, 2, 3)
    with pytest.raises(InvalidTable, match=r"a row comes every 60 s, expected 600 s"):
        Clock.of([times]).check("a.csv", 600.0)
    Clock.of([times]).check("a.csv", 63.0)
    Clock.of([times]).check("a.csv", None)


def test_times_that_go_back_are_refused() -> None:
    """They are those of several series, or of rows that are not sorted."""
    table, times = table_at(0, 10, 0, 10)
    with pytest.raises(InvalidTable, match=r"row 3 .* is earlier than row 2 .*--group"):
        check_order("a.csv", table, times, "")


def test_a_grouped_file_needs_the_group(tmp_path: Path) -> None:
    """If it has the column that told the series of the training apart, with more than one name in it."""
    path = tmp_path / "a.csv"
    path.write_text("pump,when,a\np1,2026-03-01,1\np2,2026-03-01,2\n", encoding="utf-8")
    with pytest.raises(InvalidTable, match=r"column pump tells 2 series apart.*--group pump"):
        read_table(path, ["a"], groups_of_model="pump")
    path.write_text("pump,when,a\np1,2026-03-01,1\np1,2026-03-02,2\n", encoding="utf-8")
    table = read_table(path, ["a"], groups_of_model="pump")
    assert (table.label, table.groups) == ("when", ())


def test_the_time_column_of_the_training_labels_the_rows(tmp_path: Path) -> None:
    """Even if another column stands before it."""
    path = tmp_path / "a.csv"
    path.write_text("note,when,a\nx,2026-03-01,1\n", encoding="utf-8")
    assert read_table(path, ["a"], time="when").labels == ("2026-03-01",)
    assert read_table(path, ["a"], time="other").labels == ("x",)


def test_the_rules_are_those_of_the_training() -> None:
    """What is scored and what is sent must be the same rows."""
    series = pytest.importorskip("tidegate.training.data.series", reason="it is in the extra training")
    load = pytest.importorskip("tidegate.training.data.load", reason="it is in the extra training")
    for name in ("GAP_PERIODS", "GAP_STEPS_IRREGULAR", "PERIOD_TOLERANCE"):
        assert getattr(stretches, name) == getattr(series, name)
    assert load.REGULAR_SHARE == stretches.REGULAR_SHARE
