"""Several series in one table: groups, labels, and splits that keep some of them whole."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidegate.training import errors
from tidegate.training.data.load import read
from tidegate.training.data.series import UNLABELLED, Group, Series
from tidegate.training.data.split import Split, split_by_group, split_by_time
from tidegate.training.data.write import write_csv

# Two pumps whose rows take turns; the second begins before the first ends.
PUMPS = """time,pump,who,state,flow
2024-01-01 00:00:00,b,ann,ok,1
2024-01-01 00:00:00,a,bob,,2
2024-01-01 00:10:00,b,ann,worn,3
2024-01-01 00:10:00,a,bob,ok,4
2024-01-01 00:20:00,a,bob,ok,5
"""
ROLES = {"group": "pump", "label": "state", "split_by": "who"}


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a CSV file."""

    def write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def fleet(make_series: Callable[..., Series]) -> Callable[..., Series]:
    """Builds a series of groups of the given lengths, named g0, g1, ..., each of which is its own whole."""

    def make(*rows: int) -> Series:
        ends = np.cumsum([0, *rows]).tolist()
        groups = tuple(Group(f"g{place}", first, end, f"g{place}") for place, (first, end) in enumerate(pairwise(ends)))
        return replace(make_series(sum(rows)), groups=groups)

    return make


def refused(path: Path, kind: type[errors.TableError], *words: str, **columns: Any) -> None:
    """Reading the file must fail with that error, in one line that has these words."""
    with pytest.raises(kind) as caught:
        read(path, **columns)
    message = str(caught.value)
    assert all(word in message for word in ("table.csv", *words)), message
    assert "\n" not in message


def rows_by_part(split: Split) -> list[int]:
    """How many rows each part has."""
    return [sum(end - first for first, end in spans) for _, spans in split]


def test_rows_that_take_turns_are_brought_together(table: Callable[[str], Path]) -> None:
    """Groups stand in the order of their first rows, and the rows of each keep theirs."""
    series = read(table(PUMPS), **ROLES)
    assert series.groups == (Group("b", 0, 2, "ann"), Group("a", 2, 5, "bob"))
    assert series.names == ("flow",)
    np.testing.assert_array_equal(series.values[:, 0], [1, 3, 2, 4, 5])
    np.testing.assert_array_equal(
        (series.times - series.times[0]).astype("timedelta64[m]").astype(int), [0, 10, 0, 10, 20]
    )
    assert series.period_s == 600.0


def test_labels_are_places_among_sorted_classes(table: Callable[[str], Path]) -> None:
    """An empty cell is unlabelled, and labels move with their rows."""
    series = read(table(PUMPS), **ROLES)
    assert series.classes == ("ok", "worn")
    assert series.labels is not None
    assert series.labels.tolist() == [0, 1, UNLABELLED, 0, 0]


def test_whole_numbers_are_sorted_as_numbers(table: Callable[[str], Path]) -> None:
    """The class 10 comes after the class 9."""
    text = "time,a,gear\n" + "".join(f"2024-01-01 00:00:0{row},1,{gear}\n" for row, gear in enumerate((10, 9, -1)))
    assert read(table(text), label="gear").classes == ("-1", "9", "10")


def test_parquet_and_csv_give_the_same_groups(table: Callable[[str], Path], tmp_path: Path) -> None:
    """Text that Parquet keeps as a dictionary is text, and whole numbers are names."""
    content = pa.csv.read_csv(table(PUMPS.replace("ok", "1").replace("worn", "2")))
    content = content.set_column(1, "pump", content["pump"].dictionary_encode())
    pq.write_table(content, tmp_path / "table.parquet")
    got, wanted = read(tmp_path / "table.parquet", **ROLES), read(tmp_path / "table.csv", **ROLES)
    assert (got.groups, got.classes) == (wanted.groups, wanted.classes)
    np.testing.assert_array_equal(got.labels, wanted.labels)
    np.testing.assert_array_equal(got.values, wanted.values)


@pytest.mark.parametrize(
    ("cells", "classes", "labels"),
    [
        ([2.0, 10.0, np.nan], ("2", "10"), [0, 1, UNLABELLED]),
        ([True, False, None], ("false", "true"), [1, 0, UNLABELLED]),
    ],
)
def test_labels_may_be_numbers_or_yes_and_no(
    tmp_path: Path, cells: list[Any], classes: tuple[str, ...], labels: list[int]
) -> None:
    """Whole numbers that a frame keeps as floats, because one is missing, are whole numbers."""
    times = np.arange(3).astype("datetime64[s]")
    pq.write_table(pa.table({"time": times, "a": [1.0, 2.0, 3.0], "kind": cells}), tmp_path / "table.parquet")
    series = read(tmp_path / "table.parquet", label="kind")
    assert series.classes == classes
    np.testing.assert_array_equal(series.labels, labels)


def test_groups_and_labels_are_written_and_read_again(table: Callable[[str], Path], tmp_path: Path) -> None:
    """A part that is written has its group and label columns under their own names."""
    series = read(table(PUMPS), group="pump", label="state", exclude=["who"])
    write_csv(series, tmp_path / "part.csv", series.spans)
    again = read(tmp_path / "part.csv", group="pump", label="state")
    assert (
        (tmp_path / "part.csv")
        .read_text(encoding="utf-8")
        .startswith("time,pump,state,flow\n2024-01-01T00:00:00,b,ok,1")
    )
    assert (again.groups, again.classes) == (series.groups, series.classes)
    np.testing.assert_array_equal(again.labels, series.labels)
    np.testing.assert_array_equal(again.times, series.times)


def test_times_are_compared_within_a_group(table: Callable[[str], Path]) -> None:
    """A time that a group has twice is refused with the group and with the rows of the file."""
    text = PUMPS + "2024-01-01 00:10:00,b,ann,ok,6\n"
    refused(table(text), errors.TimeOrderError, "row 6", "repeats the time of row 3", "group 'b'", **ROLES)


def test_several_series_without_a_group_are_pointed_to_it(table: Callable[[str], Path]) -> None:
    """Times that begin again look like an error of order, which --group may mend."""
    refused(table(PUMPS), errors.TimeOrderError, "--group", exclude=["pump", "who", "state"])


def test_a_row_without_a_group_is_refused(table: Callable[[str], Path]) -> None:
    """The message names the column and the row."""
    text = PUMPS + "2024-01-01 00:30:00,,ann,ok,6\n"
    refused(table(text), errors.GroupColumnError, "'pump'", "row 6", **ROLES)


def test_a_group_column_of_fractions_is_refused(tmp_path: Path) -> None:
    """Fractions are measurements: they tell no groups apart."""
    frame = pa.table({"time": pa.array([0, 1], pa.timestamp("s")), "a": [1.0, 2.0], "g": [0.5, 1.5]})
    pq.write_table(frame, tmp_path / "table.csv.parquet")
    refused(tmp_path / "table.csv.parquet", errors.TextColumn, "'g'", "fractions", group="g")


@pytest.mark.parametrize("role", ["group", "label", "split_by"])
def test_a_role_that_no_column_has_is_refused(table: Callable[[str], Path], role: str) -> None:
    """Whatever asks for it, the message names it and the columns that exist."""
    columns = {"group": "pump", role: "x"}
    refused(table(PUMPS), errors.MissingColumn, role.replace("_", "-"), "'x'", "time, pump, who", **columns)


def test_a_label_of_one_class_is_refused(table: Callable[[str], Path]) -> None:
    """There is nothing to tell apart."""
    refused(table(PUMPS.replace("worn", "ok")), errors.LabelColumnError, "'state'", "only 'ok'", "two classes", **ROLES)


def test_a_label_that_is_the_group_is_refused(table: Callable[[str], Path]) -> None:
    """The network would be asked what the table says of every row."""
    refused(table(PUMPS), errors.LabelColumnError, "'pump'", group="pump", label="pump", exclude=["who", "state"])


def test_splitting_by_a_column_needs_groups(table: Callable[[str], Path]) -> None:
    """Rows of one person may be of several series, which only a group column can tell."""
    refused(table(PUMPS), errors.GroupColumnError, "'who'", "--group", split_by="who")


def test_a_group_of_two_persons_is_refused(table: Callable[[str], Path]) -> None:
    """The message names the group, the row and both values."""
    text = PUMPS.replace("a,bob,ok,5", "a,cid,ok,5")
    refused(table(text), errors.GroupColumnError, "group 'a'", "row 5", "'cid'", "'bob'", "--split-by", **ROLES)


@pytest.mark.parametrize("column", ["pump", "state"])
def test_a_group_or_label_is_no_feature(table: Callable[[str], Path], column: str) -> None:
    """As a target it is refused with what it is."""
    series = read(table(PUMPS), **ROLES)
    with pytest.raises(errors.MissingColumn, match=rf"'{column}' is the (group|label) column.*flow"):
        series.column(column)


def test_a_segment_ends_with_its_group(fleet: Callable[..., Series]) -> None:
    """Also where the next group's times go on without a gap, and where rows of both are asked for."""
    assert fleet(30, 20).segments() == [(0, 30), (30, 50)]
    assert fleet(30, 20).segments(((10, 45),)) == [(10, 30), (30, 45)]


def test_every_group_is_cut_at_its_own_rows(fleet: Callable[..., Series]) -> None:
    """Splitting by time gives each group a part of each kind."""
    split = split_by_time(fleet(100, 60), train=0.5, validation=0.25, horizon=3)
    assert dict(split) == {
        "training": ((0, 50), (100, 130)),
        "validation": ((50, 75), (130, 145)),
        "held-out": ((75, 100), (145, 160)),
    }


def test_short_groups_teach_whole(fleet: Callable[..., Series]) -> None:
    """A group with too few rows for three parts is named and is in the training part."""
    split = split_by_time(fleet(100, 10), train=0.5, validation=0.25, horizon=3)
    assert split.short == ("g1",)
    assert split.train == ((0, 50), (100, 110))
    assert split.test == ((75, 100),)


def test_groups_that_are_all_too_short_are_refused(fleet: Callable[..., Series]) -> None:
    """Then no part is left to choose or to judge by."""
    with pytest.raises(errors.SeriesTooShort, match="validation part has 2"):
        split_by_time(fleet(10, 10), train=0.5, validation=0.25, horizon=3)


@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_are_shared_out_by_rows(fleet: Callable[..., Series], seed: int) -> None:
    """Every group is whole in one part, and no single move would bring the shares of the rows nearer."""
    series = fleet(*np.random.default_rng(seed).integers(20, 200, 30).tolist())
    split = split_by_group(series, train=0.7, validation=0.15, seed=seed, horizon=3)
    assert sorted(span for _, spans in split for span in spans) == list(series.spans)
    excess = np.array(rows_by_part(split)) - np.array([0.7, 0.15, 0.15]) * len(series)
    for (part, (_, spans)), other in product(enumerate(split), range(3)):
        for first, end in spans:
            moved = excess.copy()
            moved[part] -= end - first
            moved[other] += end - first
            assert np.abs(moved).sum() >= np.abs(excess).sum() - 1e-6


def test_the_seed_chooses_the_groups(fleet: Callable[..., Series]) -> None:
    """The same seed gives the same split, another one another."""
    series = fleet(*[50] * 20)
    first, again, other = (
        split_by_group(series, train=0.6, validation=0.2, seed=seed, horizon=3) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert rows_by_part(first) == rows_by_part(other) == [600, 200, 200]


def test_no_part_is_empty(fleet: Callable[..., Series]) -> None:
    """Three groups go to three parts, whatever their sizes and the shares."""
    split = split_by_group(fleet(1000, 50, 50), train=0.9, validation=0.09, seed=0, horizon=3)
    assert all(len(spans) == 1 for _, spans in split)


def test_groups_can_be_held_out_by_name(fleet: Callable[..., Series]) -> None:
    """Those named are held out and no others."""
    split = split_by_group(fleet(*[50] * 10), train=0.7, validation=0.15, seed=0, hold_out=("g3", "g8"), horizon=3)
    assert split.test == ((150, 200), (400, 450))
    assert [len(spans) for _, spans in split] == [7, 1, 2]


def test_wholes_of_several_groups_stay_together(fleet: Callable[..., Series]) -> None:
    """All recordings of a person are in the same part."""
    series = fleet(*[50] * 12)
    groups = tuple(replace(group, split_key=f"p{place % 4}") for place, group in enumerate(series.groups))
    split = split_by_group(replace(series, groups=groups), train=0.5, validation=0.25, seed=0, horizon=3)
    parts = [{groups[first // 50].split_key for first, _ in spans} for _, spans in split]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert len(set.union(*parts)) == 4


def test_holding_out_what_is_not_there_is_refused(fleet: Callable[..., Series]) -> None:
    """The message names it and what there is."""
    with pytest.raises(errors.SplitError, match=r"hold-out.*'zoe'.*g0, g1, g2"):
        split_by_group(fleet(50, 50, 50), train=0.7, validation=0.15, seed=0, hold_out=("zoe",), horizon=3)


def test_those_that_choose_may_be_named(fleet: Callable[..., Series]) -> None:
    """Beside those that are held out; the rest is trained on."""
    series = fleet(*[50] * 5)
    split = split_by_group(
        series, train=0.7, validation=0.15, seed=0, hold_out=("g1",), validate=("g3", "g4"), horizon=3
    )
    named = {part: [series.groups[first // 50].name for first, _ in spans] for part, spans in split}
    assert named == {"training": ["g0", "g2"], "validation": ["g3", "g4"], "held-out": ["g1"]}


@pytest.mark.parametrize(
    ("hold_out", "validate", "words"),
    [
        (("g1",), ("zoe",), "validate-on: got zoe, expected values of g0, g1, g2"),
        (("g1",), ("g1",), "validate-on: got g1, expected .* that are not held out"),
        ((), ("g1",), "beside --hold-out"),
        (("g1", "g2"), ("g0",), "leave at least one to train on"),
    ],
)
def test_wrong_names_to_choose_by_are_refused(
    fleet: Callable[..., Series], hold_out: tuple[str, ...], validate: tuple[str, ...], words: str
) -> None:
    """The message says what was got and what there is."""
    with pytest.raises(errors.SplitError, match=words):
        split_by_group(
            fleet(50, 50, 50), train=0.7, validation=0.15, seed=0, hold_out=hold_out, validate=validate, horizon=3
        )


@pytest.mark.parametrize(("groups", "hold_out"), [(2, ()), (2, ("g0",))])
def test_too_few_groups_are_refused(fleet: Callable[..., Series], groups: int, hold_out: tuple[str, ...]) -> None:
    """Each part needs one."""
    with pytest.raises(errors.SplitError, match=r"2 values to split by.*expected at least 3"):
        split_by_group(fleet(*[50] * groups), train=0.7, validation=0.15, seed=0, hold_out=hold_out, horizon=3)


def test_a_part_of_short_groups_is_refused(fleet: Callable[..., Series]) -> None:
    """The message says what the longest of its groups has."""
    with pytest.raises(errors.SeriesTooShort, match=r"held-out part has 4 .*expected at least 5"):
        split_by_group(fleet(50, 50, 50, 4), train=0.5, validation=0.3, seed=0, hold_out=("g3",), horizon=3)
