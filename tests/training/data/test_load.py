"""Reading a table: what a series is, and what each kind of bad table gets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidegate.training import errors
from tidegate.training.data.load import read
from tidegate.training.data.scaler import check_targets, fit_scaler
from tidegate.training.data.series import Group, Series, future_values
from tidegate.training.data.split import split_by_time
from tidegate.training.data.write import write_csv

GOOD = """time,temperature,pressure
2024-01-01 00:00:00,20.5,1001
2024-01-01 00:10:00,,1002
2024-01-01 00:20:00,21.5,1003
2024-01-01 00:30:00,22.0,1004
"""


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a CSV file."""

    def write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(
    table: Callable[[str], Path], text: str, kind: type[errors.TableError], *words: str, **options: Any
) -> None:
    """Reading the text must fail with that error, in one line that has these words."""
    with pytest.raises(kind) as caught:
        read(table(text), **options)
    message = str(caught.value)
    assert all(word in message for word in ("table.csv", *words)), message
    assert "\n" not in message


def test_a_csv_becomes_a_series(table: Callable[[str], Path]) -> None:
    """The time column is found, empty cells are NaN, and the period is the usual step."""
    series = read(table(GOOD), units={"pressure": "hPa"})
    assert series.names == ("temperature", "pressure")
    assert series.units == ("", "hPa")
    assert series.period_s == 600.0
    assert series.times[1] == np.datetime64("2024-01-01T00:10:00")
    np.testing.assert_array_equal(
        series.values, np.array([[20.5, 1001], [np.nan, 1002], [21.5, 1003], [22, 1004]], np.float32)
    )


def test_a_parquet_file_becomes_the_same_series(table: Callable[[str], Path], tmp_path: Path) -> None:
    """Parquet and CSV of the same table give the same series."""
    wanted = read(table(GOOD))
    pq.write_table(pa.csv.read_csv(table(GOOD)), tmp_path / "table.parquet")
    got = read(tmp_path / "table.parquet")
    assert (got.names, got.period_s) == (wanted.names, wanted.period_s)
    np.testing.assert_array_equal(got.values, wanted.values)
    np.testing.assert_array_equal(got.times, wanted.times)


@pytest.mark.parametrize("stamp", ["2024-01-01T00:{:02}:00", "2024-01-01T00:{:02}:00Z", "2024-01-01 00:{:02}:00.000"])
def test_iso_time_stamps_are_read(table: Callable[[str], Path], stamp: str) -> None:
    """With a T, with a zone, with fractions: the same times."""
    text = "when,a\n" + "".join(f"{stamp.format(minute)},{minute}\n" for minute in range(3))
    assert read(table(text)).times[2] == np.datetime64("2024-01-01T00:02:00")


def test_unix_seconds_are_times_when_named(table: Callable[[str], Path]) -> None:
    """A numeric column that is named as the time counts seconds since 1970."""
    series = read(table("t,a\n0,1\n60,2\n120,3\n"), time="t")
    assert series.times[1] == np.datetime64("1970-01-01T00:01:00")
    assert series.period_s == 60.0


def test_columns_are_taken_in_the_order_asked_for(table: Callable[[str], Path]) -> None:
    """`columns` selects and orders, `exclude` leaves out."""
    assert read(table(GOOD), columns=["pressure", "temperature"]).names == ("pressure", "temperature")
    assert read(table(GOOD), exclude=["pressure"]).names == ("temperature",)


def test_yes_and_no_become_one_and_zero(table: Callable[[str], Path]) -> None:
    """A column of true and false is a sensor of two values."""
    series = read(table("time,door\n2024-01-01,true\n2024-01-02,false\n2024-01-03,\n"))
    np.testing.assert_array_equal(series.values[:, 0], [1, 0, np.nan])


def test_an_irregular_series_has_no_period(table: Callable[[str], Path]) -> None:
    """Steps that differ widely give no period."""
    text = "time,a\n" + "".join(f"2024-01-01 00:00:{second:02},1\n" for second in (0, 1, 5, 6, 13, 30))
    assert read(table(text)).period_s is None


def test_a_text_column_is_refused_with_its_first_bad_value(table: Callable[[str], Path]) -> None:
    """The message names the column, the row and the value, and how to leave the column out."""
    text = GOOD + "2024-01-01 00:40:00,oops,1005\n"
    refused(table, text, errors.TextColumn, "'temperature'", "row 5", "'oops'", "--exclude temperature")


def test_a_text_column_may_be_left_out(table: Callable[[str], Path]) -> None:
    """A column that is excluded is not looked at."""
    assert read(table("time,a,note\n2024-01-01,1,x\n2024-01-02,2,y\n"), exclude=["note"]).names == ("a",)


def test_unsorted_rows_are_sorted_and_told(table: Callable[[str], Path]) -> None:
    """The rows are in the order of their times, and a note says that they were not."""
    series = read(table("time,a\n2024-01-01,1\n2024-01-03,2\n2024-01-02,3\n"))
    assert series.values[:, 0].tolist() == [1, 3, 2]
    assert any("not in the order of time (1 went back): sorted" in note and "--group" in note for note in series.notes)


def test_repeated_times_are_refused(table: Callable[[str], Path]) -> None:
    """A time that stands twice is an error of its own words."""
    refused(table, "time,a\n2024-01-01,1\n2024-01-01,2\n", errors.TimeOrderError, "row 2", "repeats the time of row 1")


def test_a_missing_time_is_refused(table: Callable[[str], Path]) -> None:
    """An empty time cell is named by its row."""
    refused(table, "time,a\n2024-01-01,1\n,2\n2024-01-03,3\n", errors.TimeOrderError, "no time in row 2")


def test_a_missing_unix_time_is_refused(table: Callable[[str], Path]) -> None:
    """An empty cell among Unix seconds is named by its row too."""
    refused(table, "t,a\n0,1\n,2\n120,3\n", errors.TimeOrderError, "no time in row 2", time="t")


def test_milliseconds_are_not_taken_for_seconds(table: Callable[[str], Path]) -> None:
    """The size of Unix times tells their unit, and a note says which."""
    series = read(table("t,a\n1700000000000,1\n1700000060000,2\n"), time="t")
    assert series.times[1] == np.datetime64("2023-11-14T22:14:20")
    assert "Unix milliseconds" in series.notes[0]


def test_no_time_column_is_refused(table: Callable[[str], Path]) -> None:
    """Without time stamps the message asks for --time."""
    refused(table, "a,b\n1,2\n3,4\n", errors.TimeColumnError, "got none", "--time")


def test_two_time_columns_are_refused(table: Callable[[str], Path]) -> None:
    """With two columns of time stamps the message names both."""
    refused(table, "t,u,a\n2024-01-01,2024-01-02,1\n", errors.TimeColumnError, "several: t, u", "--time")


def test_a_time_column_of_words_is_refused(table: Callable[[str], Path]) -> None:
    """A column named as the time that holds no times is refused."""
    refused(table, "t,a\nmonday,1\ntuesday,2\n", errors.TimeColumnError, "'t'", "day'", time="t")


@pytest.mark.parametrize("options", [{"time": "x"}, {"columns": ["x"]}, {"exclude": ["x"]}])
def test_a_column_that_is_not_there_is_refused(table: Callable[[str], Path], options: dict[str, Any]) -> None:
    """Whatever asks for it, the message names it and the columns that exist."""
    refused(table, GOOD, errors.MissingColumn, "'x'", "temperature, pressure", **options)


def test_nothing_but_time_is_refused(table: Callable[[str], Path]) -> None:
    """A table without a feature cannot be learned from."""
    refused(table, "time\n2024-01-01\n2024-01-02\n", errors.MissingColumn, "no feature column")


@pytest.mark.parametrize("cell", ["", "nan", "7"])
def test_a_column_that_tells_nothing_is_left_out(table: Callable[[str], Path], cell: str) -> None:
    """A column without a value, or with always the same, is left out and named."""
    series = read(table(f"time,a,b\n2024-01-01,1,{cell}\n2024-01-02,2,{cell}\n"))
    assert series.names == ("a",)
    assert f"left out: b ({'always 7' if cell == '7' else 'empty'})" in series.notes


def test_a_column_that_is_asked_for_stays(table: Callable[[str], Path]) -> None:
    """The features of a model are read from other data even if they are empty or constant there."""
    series = read(table("time,a,b,c\n2024-01-01,1,,7\n2024-01-02,2,,7\n"), columns=["c", "b", "a"])
    assert series.names == ("c", "b", "a")
    np.testing.assert_array_equal(series.values, [[7, np.nan, 1], [7, np.nan, 2]])


@pytest.mark.parametrize("value", ["inf", "-inf", "1e39"])
def test_infinity_is_refused(table: Callable[[str], Path], value: str) -> None:
    """Infinity, and what float32 would turn into it, is named by column and row."""
    refused(table, f"time,a\n2024-01-01,1\n2024-01-02,{value}\n", errors.InfiniteValue, "'a'", "row 2")


@pytest.mark.parametrize("text", ["", "a,b\n1\n", "time,a\n2024-01-01,1\n2024-01-02,1,2\n"])
def test_what_is_no_table_is_refused(table: Callable[[str], Path], text: str) -> None:
    """Nothing and ragged rows are not tables."""
    refused(table, text, errors.UnreadableTable)


def test_a_table_without_rows_is_too_short(table: Callable[[str], Path]) -> None:
    """A header alone is refused."""
    refused(table, "time,a\n", errors.SeriesTooShort, "no rows")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Only tables are read, and the message says which."""
    with pytest.raises(errors.UnreadableTable, match=r"\.csv, .*\.parquet, .*\.npy or \.npz"):
        read(tmp_path / "table.docx")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The message says so, in one line."""
    with pytest.raises(errors.UnreadableTable, match="No such file"):
        read(tmp_path / "table.csv")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    """Bytes that are no Parquet are refused in one line."""
    (tmp_path / "table.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(errors.UnreadableTable, match="not a readable table"):
        read(tmp_path / "table.parquet")


def test_the_scaler_sees_the_training_part_only(make_series: Callable[..., Series]) -> None:
    """What comes after the training part changes nothing, whatever it is."""
    series = make_series(100)
    before = fit_scaler(series, ((0, 70),))
    series.values[70:] = 1e6
    after = fit_scaler(series, ((0, 70),))
    for name in ("mean", "std", "low", "high", "step"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_the_scaler_ignores_missing_values(make_series: Callable[..., Series]) -> None:
    """Mean, spread and range are those of the values that are there."""
    series = make_series(100)
    series.values[:50, 1] = np.nan
    scaler = fit_scaler(series, ((0, 100),))
    there = series.values[50:, 1].astype(np.float64)
    np.testing.assert_allclose(
        [scaler.mean[1], scaler.std[1], scaler.low[1], scaler.high[1]],
        [there.mean(), there.std(), there.min(), there.max()],
        rtol=1e-6,
    )


@pytest.mark.parametrize("where", ["gap", "groups"])
def test_a_jump_over_a_border_is_no_step(make_series: Callable[..., Series], where: str) -> None:
    """How far a sensor moves in a timestep is told by neighbours in time of the same series."""
    series = make_series(100, gap_at=60 if where == "gap" else None)
    if where == "groups":
        series = replace(series, groups=(Group("a", 0, 60), Group("b", 60, 100)))
    series.values[60:] += 1000
    scaler = fit_scaler(series, series.spans)
    own = np.concatenate([np.diff(series.values[rows], axis=0) for rows in (slice(0, 60), slice(60, 100))])
    np.testing.assert_allclose(scaler.step, own.std(axis=0), rtol=1e-4)


def test_a_constant_column_has_scale_one(make_series: Callable[..., Series]) -> None:
    """It is named, and scaled it is zero and not NaN."""
    series = make_series(100)
    series.values[:, 2] = 7.3
    scaler = fit_scaler(series, ((0, 70),))
    assert scaler.constant == ("s2",)
    assert scaler.std[2] == 1.0


def test_a_column_that_is_empty_in_the_training_part_is_refused(make_series: Callable[..., Series]) -> None:
    """A sensor that was fitted later has nothing to teach."""
    series = make_series(100)
    series.values[:70, 1] = np.nan
    with pytest.raises(errors.EmptyColumn, match=r"'s1'.*--exclude s1"):
        fit_scaler(series, ((0, 70),))


def test_a_constant_target_is_refused(make_series: Callable[..., Series]) -> None:
    """There is nothing to forecast in a target that never moves."""
    series = make_series(100)
    series.values[:, 0] = 5
    with pytest.raises(errors.ConstantTarget, match="'s0' is always 5"):
        check_targets(series, fit_scaler(series, ((0, 70),)), ["s0"])


def test_a_missing_target_is_refused(make_series: Callable[..., Series]) -> None:
    """The message names it and the columns that exist."""
    series = make_series(100)
    with pytest.raises(errors.MissingColumn, match=r"'humidity'.*s0, s1, s2"):
        check_targets(series, fit_scaler(series, ((0, 70),)), ["humidity"])


def test_a_series_too_short_for_its_horizon_is_refused(make_series: Callable[..., Series]) -> None:
    """The message says which part is too short, what it has and what it needs."""
    with pytest.raises(errors.SeriesTooShort, match=r"validation part has 15 of 100 rows, expected at least 26"):
        split_by_time(make_series(100), train=0.7, validation=0.15, horizon=24)


def test_parts_follow_each_other(make_series: Callable[..., Series]) -> None:
    """Training, validation and held-out part share no row and leave none out."""
    split = split_by_time(make_series(100), train=0.7, validation=0.15, horizon=3)
    assert dict(split) == {"training": ((0, 70),), "validation": ((70, 85),), "held-out": ((85, 100),)}


def test_a_gap_cuts_a_series(make_series: Callable[..., Series]) -> None:
    """A step of more than one and a half periods ends a segment."""
    assert make_series(100, gap_at=40).segments() == [(0, 40), (40, 100)]
    assert make_series(100, gap_at=40).segments(((40, 60),)) == [(40, 60)]


def test_truth_stops_at_gaps_and_ends(make_series: Callable[..., Series]) -> None:
    """What comes true is the value so many rows later, and nothing beyond a gap or the end of the part."""
    series = make_series(30, gap_at=20)
    truth = future_values(series, [1], [2], ((5, 25),))  # rows 5..24
    np.testing.assert_array_equal(truth[:13, 0, 0], series.values[7:20, 1])
    np.testing.assert_array_equal(truth[15:18, 0, 0], series.values[22:25, 1])
    assert np.isnan(truth[[13, 14, 18, 19]]).all()


def test_written_rows_come_back_the_same(make_series: Callable[..., Series], tmp_path: Path) -> None:
    """A held-out part that is written and read again has the same bits, missing values and times."""
    series = make_series(100, missing=0.1)
    write_csv(series, tmp_path / "part.csv", ((80, 100),))
    again = read(tmp_path / "part.csv")
    assert again.names == series.names
    np.testing.assert_array_equal(again.values, series.values[80:])
    np.testing.assert_array_equal(again.times, series.times[80:])
    assert (tmp_path / "part.csv").read_text(encoding="utf-8").startswith("time,s0,s1,s2\n2024-01-04T08:00:00,")


def test_appliances_are_what_they_say(appliances: Series) -> None:
    """The named data set has its rows, its channels, its period and not one missing value."""
    assert appliances.values.shape == (19_735, 28)
    assert appliances.period_s == 600.0
    assert not np.isnan(appliances.values).any()
    assert appliances.segments() == [(0, 19_735)]
