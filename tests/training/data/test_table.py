"""Tables: files read block by block, NumPy's files, arrays and frames of a program; the same series from each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidegate.training import errors
from tidegate.training.data import table
from tidegate.training.data.load import column_names, read, series_of
from tidegate.training.data.series import UNLABELLED, Group, Series
from tidegate.training.data.write import write_csv

TIMES = np.datetime64("2024-01-01T00:00:00", "ns") + np.arange(4) * np.timedelta64(600, "s")
VALUES = np.array([[20.5, 1], [np.nan, 2], [21.5, 3], [22.0, 4]], np.float32)


def same(got: Series, wanted: Series) -> None:
    """Both must have the same rows under the same names."""
    assert got.names == wanted.names
    assert got.period_s == wanted.period_s
    np.testing.assert_array_equal(got.values, wanted.values)
    np.testing.assert_array_equal(got.times, wanted.times)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that a small file has many."""
    monkeypatch.setattr(table, "BLOCK_BYTES", 128)
    monkeypatch.setattr(table, "BLOCK_ROWS", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "npz"])
def test_many_blocks_are_one_table(make_series: Callable[..., Series], tmp_path: Path, kind: str) -> None:
    """However the file is cut, and whatever kind it is, the series is the same."""
    wanted = make_series(300, missing=0.1)
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        write_csv(wanted, path, wanted.spans)
    elif kind == "parquet":
        columns = {name: wanted.values[:, place] for place, name in enumerate(wanted.names)}
        pq.write_table(pa.table({"time": wanted.times, **columns}), path, row_group_size=70)
    elif kind == "npy":
        fields = [("time", "datetime64[s]"), *((name, "f4") for name in wanted.names)]
        rows = np.empty(300, fields)
        rows["time"] = wanted.times
        for place, name in enumerate(wanted.names):
            rows[name] = wanted.values[:, place]
        np.save(path, rows)
    else:
        np.savez(path, values=wanted.values, times=wanted.times, names=np.array(wanted.names))
    same(read(path), wanted)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("first", "later"), [("1", "1.5"), ("", "2.5"), ("1", ""), ("true", "0")])
def test_a_column_may_change_after_the_first_block(tmp_path: Path, first: str, later: str) -> None:
    """Whole numbers, then fractions; nothing, then numbers: what a later block holds is read as it stands there."""
    cells = [first] * 30 + [later] * 30
    lines = [f"2024-01-01 00:{row:02}:00,{row},{cell}" for row, cell in enumerate(cells)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,b,a", *lines]), encoding="utf-8")
    values = {"": np.nan, "true": 1.0}
    wanted = [values[cell] if cell in values else float(cell) for cell in cells]
    np.testing.assert_array_equal(read(path).values[:, 1], np.array(wanted, np.float32))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("2024-01-02,oops", errors.TextColumn, "'oops'"),
        ("2024-01-02,inf", errors.InfiniteValue, "row 51"),
        ("2024-01-02", errors.UnreadableTable, "a row has 1 cells, expected 2"),
        (",1", errors.TimeOrderError, "no time in row 51"),
        ("monday,1", errors.TimeColumnError, "monday"),
        ("2024-01-01 00:49:00,1", errors.TimeOrderError, "row 51"),
    ],
)
def test_a_bad_row_is_found_in_a_later_block(tmp_path: Path, line: str, kind: type[Exception], words: str) -> None:
    """The message is what it would be in the first block, and rows are counted from the file's first."""
    lines = [f"2024-01-01 00:{row:02}:00,{row}" for row in range(50)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,a", *lines, line]), encoding="utf-8")
    with pytest.raises(kind, match=words):
        read(path, time="time")


def test_a_line_may_be_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the file is read as one block."""
    monkeypatch.setattr(table, "BLOCK_BYTES", 8)
    (tmp_path / "table.csv").write_text("time,a,b\n2024-01-01,1,2\n2024-01-02,3,4\n", encoding="utf-8")
    np.testing.assert_array_equal(read(tmp_path / "table.csv").values, [[1, 2], [3, 4]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_will_do(tmp_path: Path, end: str) -> None:
    """Also without one after the last row, and with a line break inside a quoted name."""
    text = end.join(["time,a", "2024-01-01,1", "2024-01-02,2"])
    for tail in ("", end):
        (tmp_path / "table.csv").write_bytes((text + tail).encode())
        assert read(tmp_path / "table.csv").values.tolist() == [[1], [2]]


def test_numbers_alone_have_no_period(tmp_path: Path) -> None:
    """Rows of a bare array are numbered, and how far apart they are is not known."""
    np.save(tmp_path / "table.npy", VALUES.astype(np.float64))
    series = read(tmp_path / "table.npy")
    assert series.names == ("c0", "c1")
    assert series.period_s is None
    assert series.segments() == [(0, 4)]
    np.testing.assert_array_equal(series.values, VALUES)


@pytest.mark.parametrize("kind", ["npy", "csv"])
def test_a_period_stands_in_for_times(tmp_path: Path, kind: str) -> None:
    """Rows of a table without times are so many seconds apart, from 1970 on."""
    path = tmp_path / f"table.{kind}"
    if kind == "npy":
        np.save(path, VALUES)
    else:
        path.write_text("c0,c1\n20.5,1\n,2\n21.5,3\n22,4\n", encoding="utf-8")
    series = read(path, period_s=0.02)
    assert series.period_s == 0.02
    assert series.times[3] == np.datetime64("1970-01-01T00:00:00.060")
    np.testing.assert_array_equal(series.values, VALUES)


def test_a_period_beside_times_is_refused(tmp_path: Path) -> None:
    """They might disagree."""
    np.savez(tmp_path / "table.npz", values=VALUES, times=TIMES)
    with pytest.raises(
        errors.TimeColumnError, match=r"period 60 s beside the times of column 'times'.*--exclude times"
    ):
        read(tmp_path / "table.npz", period_s=60)


def test_groups_without_times_are_numbered_each(tmp_path: Path) -> None:
    """Every group begins at 1970, and other arrays of an archive are columns."""
    np.savez(tmp_path / "table.npz", values=VALUES, who=np.array(["x", "y", "x", "y"]), kind=np.array([3, 3, 5, 5]))
    series = read(tmp_path / "table.npz", period_s=1.0, group="who", label="kind")
    assert series.groups == (Group("x", 0, 2), Group("y", 2, 4))
    assert series.classes == ("3", "5")
    assert (series.times - np.datetime64(0, "ns")).astype(int).tolist() == [0, 10**9, 0, 10**9]
    np.testing.assert_array_equal(series.values, VALUES[[0, 2, 1, 3]])


def test_an_empty_text_is_an_empty_cell() -> None:
    """An array of text cannot hold a missing value otherwise."""
    columns = {"a": [1.0, 2.0, 3.0], "kind": ["", "on", "off"]}
    assert series_of(pa.table(columns), period_s=1, label="kind").labels.tolist() == [UNLABELLED, 1, 0]  # type: ignore[union-attr]
    with pytest.raises(errors.GroupColumnError, match="'kind' has no value in row 1"):
        series_of(pa.table(columns), period_s=1, group="kind")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_any_kind_of_text_is_text(kind: Any) -> None:
    """Frames keep text and time stamps in text in several ways, also as a dictionary that holds more than is used."""
    dictionary = pa.array(["unused", "y", "x"], pa.string()).cast(kind)
    who = pa.DictionaryArray.from_arrays(pa.array([2, 1, 2, 1], pa.uint32()), dictionary)
    times = pa.array([str(time) for time in TIMES], pa.string()).cast(kind)
    frame = pa.table({"at": times, "who": who, "kind": who.indices.cast(pa.int8()), "a": VALUES[:, 0]})
    series = series_of(frame, time="at", group="who", label="kind")
    assert series.groups == (Group("x", 0, 2), Group("y", 2, 4))
    assert series.classes == ("1", "2")
    np.testing.assert_array_equal(series.times, TIMES[[0, 2, 1, 3]])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"values": VALUES, "times": TIMES[:3]}, "differ in length: 'times' has 3, 'c0' has 4"),
        ({"values": VALUES, "names": np.array(["a"])}, "1 different names for 2 columns"),
        ({"values": VALUES, "names": np.array(["a", "a"])}, "1 different names for 2 columns"),
        ({"values": VALUES[:, 0]}, r"shape \(4,\)"),
        ({"values": VALUES.astype(complex)}, "complex128"),
        ({"values": VALUES, "c1": TIMES}, "'c1' is an array and a name"),
        ({"values": VALUES, "more": VALUES}, r"'more' has shape \(4, 2\)"),
        ({"data": VALUES}, "no array 'values'; there are: data"),
        ({"values": np.array([{}, {}], object)}, "not a readable table"),
    ],
)
def test_arrays_that_are_no_table_are_refused(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    """The message names the array and its shape; pickled objects are never loaded."""
    np.savez(tmp_path / "table.npz", **parts)
    with pytest.raises(errors.UnreadableTable, match=words) as caught:
        read(tmp_path / "table.npz")
    assert "table.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["table.npy", "table.npz"])
def test_a_broken_numpy_file_is_refused(tmp_path: Path, name: str) -> None:
    """Bytes that are no array are refused in one line."""
    (tmp_path / name).write_bytes(b"\x93NUMPY and then nothing")
    with pytest.raises(errors.UnreadableTable, match="not a readable table"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["table.npy", "table.parquet"])
def test_a_file_without_rows_is_too_short(tmp_path: Path, name: str) -> None:
    """Columns alone are refused."""
    if name.endswith("npy"):
        np.save(tmp_path / name, VALUES[:0])
    else:
        pq.write_table(pa.table({"time": TIMES[:0], "a": [1.0][:0]}), tmp_path / name)
    with pytest.raises(errors.SeriesTooShort, match="no rows"):
        read(tmp_path / name)


def test_the_columns_of_a_file_are_listed_without_reading_it(tmp_path: Path) -> None:
    """In their order."""
    (tmp_path / "table.csv").write_text("time,b,a\n2024-01-01,1,x\n", encoding="utf-8")
    assert column_names(tmp_path / "table.csv") == ["time", "b", "a"]


def test_arrays_become_a_series() -> None:
    """Names, units, times as time stamps or Unix seconds."""
    series = series_of(VALUES, times=TIMES, names=("t", "p"), name="mine", units={"t": "°C"})
    assert (series.name, series.names, series.units, series.period_s) == ("mine", ("t", "p"), ("°C", ""), 600.0)
    np.testing.assert_array_equal(series.times, TIMES)
    same(series_of(VALUES, times=TIMES.astype(np.int64) // 10**9, names=("t", "p")), series)


def test_equal_arrays_have_equal_checksums() -> None:
    """And others have others: that is how a model knows its data again."""
    one, same_one = series_of(VALUES, times=TIMES), series_of(VALUES.copy(), times=TIMES.copy())
    other = series_of(VALUES + 1, times=TIMES)
    assert one.sha256 == same_one.sha256 != other.sha256


class ColumnsOnly:
    """A frame that can only hand its columns over one by one, as old ones do."""

    def __init__(self, frame: pa.Table) -> None:
        self.frame = frame
        self.columns = frame.column_names

    def __getitem__(self, name: str) -> Any:
        return np.array(self.frame[name].to_pylist(), object if name == "who" else None)

    def to_numpy(self) -> Any:
        """Its presence is what tells a frame."""
        raise NotImplementedError


class ArrowOnly:
    """A frame that hands over an Arrow table."""

    def __init__(self, frame: pa.Table) -> None:
        self.frame = frame

    def to_arrow(self) -> pa.Table:
        """The table."""
        return self.frame


@pytest.mark.parametrize("dress", [ArrowOnly, ColumnsOnly, lambda frame: frame], ids=["to_arrow", "columns", "stream"])
def test_frames_become_a_series(dress: Callable[[Any], Any]) -> None:
    """However a frame hands over its columns, groups and times are told by their names."""
    frame = pa.table({"at": TIMES, "who": ["x", "y", "x", "y"], "a": VALUES[:, 0], "b": VALUES[:, 1]})
    series = series_of(dress(frame), group="who")
    assert series.groups == (Group("x", 0, 2), Group("y", 2, 4))
    assert series.names == ("a", "b")
    np.testing.assert_array_equal(series.values, VALUES[[0, 2, 1, 3]])
    np.testing.assert_array_equal(series.times, TIMES[[0, 2, 1, 3]])


def test_a_frame_with_times_beside_it_is_refused() -> None:
    """Its times are one of its columns."""
    with pytest.raises(errors.UnreadableTable, match="a frame and times"):
        series_of(pa.table({"a": [1.0]}), times=TIMES[:1])


@pytest.mark.parametrize("data", [3.0, [1.0, 2.0], "table.csv", {"a": [1]}])
def test_what_is_no_table_is_refused(data: Any) -> None:
    """The message says what was got and what is expected."""
    with pytest.raises(errors.UnreadableTable, match=r"got an array of .* expected numbers of shape"):
        series_of(data)
