import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tidegate.cli import sensor_table
from tidegate.cli.sensor_table import InvalidTable, read_table
from tidegate.training.data import cells

NAN = float("nan")


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """A CSV file."""
    path = folder / "rows.csv"
    path.write_text(text, encoding)
    return path


def test_columns_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    """Whatever their order in the file."""
    table = read_table(write(tmp_path, "b,a\n1,2\n3,4\n"), ["a", "b"])
    assert table.values.dtype == np.float32
    assert table.values.tolist() == [[2, 1], [4, 3]]
    assert table.column("b").tolist() == [1, 3]
    assert len(table) == 2


def test_the_first_column_that_is_no_feature_labels_the_rows(tmp_path: Path) -> None:
    """Others are ignored, whatever is in them."""
    table = read_table(write(tmp_path, "a,when,note\n1,noon,good\n2,one,\n"), ["a"])
    assert (table.label, table.labels) == ("when", ("noon", "one"))


@pytest.mark.parametrize(
    ("labels", "times"),
    [
        (
            ["2026-03-01 12:00", "2026-03-01T13:00:00"],
            [datetime.fromisoformat("2026-03-01T12"), datetime.fromisoformat("2026-03-01T13")],
        ),
        (["2026-03-01T12:00Z"], [datetime(2026, 3, 1, 12, tzinfo=UTC)]),
        (["2026-03-01T12:00", "noon"], None),
        (["2026-03-02", "2026-03-01"], None),
        (["2026-03-01T12:00", "2026-03-01T12:00Z"], None),
    ],
)
def test_labels_that_are_times_are_read_as_such(
    tmp_path: Path, labels: list[str], times: list[datetime] | None
) -> None:
    """All of them or none: an axis has one kind of time."""
    table = read_table(write(tmp_path, "when,a\n" + "".join(f"{label},1\n" for label in labels)), ["a"])
    assert table.times() == times


def test_exports_that_were_joined_are_read(tmp_path: Path) -> None:
    """Each has its header, perhaps with a byte order mark before it. A line says how many were left out."""
    table = read_table(write(tmp_path, "when,a\nnoon,1\nwhen,a\none,2\n\ufeffwhen, a\ntwo,3\n"), ["a"])
    assert table.labels == ("noon", "one", "two")
    assert table.values[:, 0].tolist() == [1, 2, 3]
    assert table.notes == ("2 lines between the rows repeat the header: left out",)


def test_a_row_of_values_is_never_taken_for_the_header(tmp_path: Path) -> None:
    """Columns may be called 1 and 2."""
    table = read_table(write(tmp_path, "1,2\n5,6\n1,2\n"), ["1", "2"])
    assert table.values.tolist() == [[5, 6], [1, 2]]
    assert table.notes == ()


def test_rows_without_a_label_are_numbered(tmp_path: Path) -> None:
    """From 1."""
    table = read_table(write(tmp_path, "a\n5\n6\n"), ["a"])
    assert (table.label, table.labels) == ("row", ("1", "2"))


def test_a_group_column_makes_several_series(tmp_path: Path) -> None:
    """Each keeps the order of its rows. The column does not become the label."""
    table = read_table(write(tmp_path, "site,a,when\nB,1,x\nA,2,x\nB,3,y\n"), ["a"], "site")
    assert [(name, part.values.tolist(), part.labels) for name, part in table.series()] == [
        ("B", [[1], [3]], ("x", "y")),
        ("A", [[2]], ("x",)),
    ]


def test_without_a_group_column_there_is_one_series(tmp_path: Path) -> None:
    """It has no name."""
    table = read_table(write(tmp_path, "site,a\nB,1\nA,2\n"), ["a"])
    assert table.series() == [("", table)]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("place", ["column place is missing", "the file has site, a"]),
        ("a", ["column a is a feature of the model"]),
        ("site", ["line 3, column site", "got an empty cell, expected the name of a series"]),
    ],
)
def test_a_bad_group_column_is_refused(tmp_path: Path, group: str, words: list[str]) -> None:
    """The message has the file, the column and what was expected."""
    with pytest.raises(InvalidTable) as caught:
        read_table(write(tmp_path, "site,a\nB,1\n ,2\n"), ["a"], group)
    for word in ("rows.csv", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "n/a", "null", "None", "-"])
def test_a_missing_value_is_nan(tmp_path: Path, cell: str) -> None:
    """In all its usual forms."""
    table = read_table(write(tmp_path, f"a,b\n{cell},1\n"), ["a", "b"])
    assert np.isnan(table.values[0, 0])
    assert table.values[0, 1] == 1


@pytest.mark.parametrize("cell", ["1", " 1 ", "+1", "1.0", "1e0", '"1"'])
def test_a_number_is_parsed(tmp_path: Path, cell: str) -> None:
    """In all its usual forms."""
    assert read_table(write(tmp_path, f"a,b\n{cell},1\n"), ["a", "b"]).values.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "a, b"]),
        ("a,b\n", ["no row"]),
        ("a,c\n1,2\n", ["column b is missing", "the file has a, c"]),
        ("a,b,a\n1,2,3\n", ["column a exists more than once"]),
        ("a,b\n1,2\n1\n", ["line 3", "got 1 cells, expected 2"]),
        ("a,b\n1,2,3\n", ["line 2", "got 3 cells, expected 2"]),
        ("a,b\n1,2\n1,hot\n", ["line 3", "column b", "'hot'", "expected a number"]),
        ("a,b\n1,1 000\n", ["line 2", "column b", "'1 000'"]),
        ("a,b\n1,-inf\n", ["line 2", "column b", "-inf", "expected a finite number"]),
        ("a,b\n1,Infinity\n", ["column b", "Infinity", "expected a finite number"]),
        ("a,b\n1,1e999\n", ["column b", "1e999", "expected a finite number"]),
        ("a,b\n1,1e39\n", ["column b", "1e39", "expected a finite number"]),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message has the file, the line, the column, what was got and what was expected."""
    with pytest.raises(InvalidTable) as caught:
        read_table(write(tmp_path, text), ["a", "b"])
    for word in ("rows.csv", *words):
        assert word in str(caught.value)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    """With its path and the error of the operating system."""
    with pytest.raises(InvalidTable, match=r"absent\.csv: cannot be read: No such file"):
        read_table(tmp_path / "absent.csv", ["a"])


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """It is not a file."""
    with pytest.raises(InvalidTable, match="cannot be read"):
        read_table(tmp_path, ["a"])


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """It would be read wrongly."""
    with pytest.raises(InvalidTable, match="not a CSV file in UTF-8"):
        read_table(write(tmp_path, "a,°C\n1,2\n", "latin-1"), ["a"])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04rest", "a spreadsheet or a zip file"),
        (b"PAR1rest", "Parquet"),
        (gzip.compress(b"a\n1\n", mtime=0), "packed with gzip"),
        ("a\n1\n".encode("utf-16"), "text in UTF-16"),
        (b'  [{"a": 1}]', "JSON"),
        (b"\x93NUMPY", "NumPy"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    """With the command that makes a CSV file of it."""
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(
        InvalidTable, match=rf"rows.csv: this file is {kind}; .*tidegate evaluate MODEL --data FILE --csv"
    ):
        read_table(path, ["a"])


def test_values_that_the_training_took_for_missing_are_missing(tmp_path: Path) -> None:
    """However a number is written; one for a single column means nothing in others."""
    path = write(tmp_path, "a,b\n-999,1\n-999.0,-1\nBad,Bad\n-1,?\n")
    table = read_table(path, ["a", "b"], missing_values=["-999", "Bad", "b=-1"])
    np.testing.assert_array_equal(table.values, np.array([[NAN, 1], [NAN, NAN], [NAN, NAN], [-1, NAN]], np.float32))


def test_missing_and_yes_are_written_as_in_a_training() -> None:
    """A word that the training reads is no error here."""
    assert sensor_table.MISSING == cells.MISSING
    assert sensor_table.BOOLEANS == cells.BOOLEANS


@pytest.mark.parametrize(("text", "encoding"), [("a,°C\n1,2\n", "latin-1"), ("t;a;b\n0;1,5;2\n", "utf-8")])
def test_a_file_that_only_training_reads_is_told_what_is_expected(tmp_path: Path, text: str, encoding: str) -> None:
    """Another encoding, or another sign between the columns."""
    with pytest.raises(InvalidTable, match="expected UTF-8 with ',' between columns and a decimal point"):
        read_table(write(tmp_path, text, encoding), ["a", "b"])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    """Spreadsheet programs write one before the first column."""
    assert read_table(write(tmp_path, "a\n1\n", "utf-8-sig"), ["a"]).values.tolist() == [[1]]


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    """Editors add them at the end. The line numbers of errors count them."""
    assert len(read_table(write(tmp_path, "a\n1\n\n2\n\n"), ["a"])) == 2
    with pytest.raises(InvalidTable, match="line 4"):
        read_table(write(tmp_path, "a\n1\n\nx\n"), ["a"])


def test_a_line_break_in_quotes_is_part_of_its_cell(tmp_path: Path) -> None:
    """A note may have two lines."""
    assert read_table(write(tmp_path, 'a,note\n1,"two\nlines"\n2,one\n'), ["a"]).values.tolist() == [[1], [2]]


def test_spaces_around_names_do_not_count(tmp_path: Path) -> None:
    """As in `a, b`."""
    assert read_table(write(tmp_path, "a, b\n1, 2\n"), ["a", "b"]).values.tolist() == [[1, 2]]


def test_words_become_the_numbers_of_the_training(tmp_path: Path) -> None:
    """By their order in the card; an unknown word is missing and is told, as `tidegate evaluate` does."""
    text = "when,a,state\n2026-03-01,1,on\n2026-03-02,2,off\n2026-03-03,3,broken\n2026-03-04,4,\n"
    table = read_table(write(tmp_path, text), ["state", "a"], categories={"state": ["idle", "off", "on"]})
    np.testing.assert_array_equal(table.values, np.array([[2, 1], [1, 2], [np.nan, 3], [np.nan, 4]], np.float32))
    assert table.notes == ("column state: unknown words are missing values: broken",)


def test_numbers_of_words_stay(tmp_path: Path) -> None:
    """A file that `tidegate train --held-out` wrote has them."""
    table = read_table(
        write(tmp_path, "state,a\n2.0,1\n,2\n0.0,3\n"), ["state", "a"], categories={"state": ["off", "on"]}
    )
    np.testing.assert_array_equal(table.values[:, 0], np.array([2, np.nan, 0], np.float32))
    assert table.notes == ()


def test_words_of_a_model_without_categories_are_refused(tmp_path: Path) -> None:
    """Nobody knows their numbers."""
    with pytest.raises(InvalidTable, match="column state: got 'idle', expected a number"):
        read_table(write(tmp_path, "state,a\nidle,1\n"), ["state", "a"])
