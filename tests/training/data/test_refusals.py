"""What can be read in two ways, or not at all, is refused with the option that decides; the rest is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data.kinds import PLAIN, stamped, text
from tidegate.training import errors
from tidegate.training.data.load import read, series_of
from tidegate.training.data.prepare import prepare
from tidegate.training.data.series import Group, Series
from tidegate.training.settings import Format, Request, Source, name_of


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Series]:
    """Reads a file of this content."""

    def read_content(content: str | bytes, name: str = "table.csv", columns: Any = None, **options: Any) -> Series:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(path, options=Format.model_validate(options), **(columns or {}))

    return read_content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # 1 February or 2 January: all rows are of one day.
        (
            text([f"01/02/2024 00:{row}0" for row in range(5)]),
            ("2024-02-01T00:00:00 or 2024-01-02T00:00:00", "--time-format day-first or --time-format month-first"),
        ),
        (text([f"0{row}/03/2024" for row in range(1, 6)]), ("two ways", "--time-format day-first")),
        (text([f"24-03-0{row}" for row in range(1, 6)]), ("2001-03-24", "--time-format year-first")),
        (text([str(45352 + row) for row in range(5)]), ("2024-03-01", "--time-format excel or --time-format s")),
        (text(["5"] * 5, temp=['"1,234"', *['"2,345"'] * 4]), ("1.234 or 1234", "--decimal , or --decimal .")),
        (text(between=";", temp=["1.234"] * 5), ("1.234 or 1234", "--decimal , or --decimal .")),
    ],
)
def test_two_readings_are_refused(load: Callable[..., Series], content: str, words: tuple[str, ...]) -> None:
    """The message has both readings of a cell, and the options that decide."""
    with pytest.raises(errors.TableError) as caught:
        load(content)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("decimal", "wanted"), [(",", 1.234), (".", 1234.0)])
def test_an_option_decides_between_two_readings(load: Callable[..., Series], decimal: str, wanted: float) -> None:
    """The same cell is one number or the other."""
    series = load(text(temp=['"1,234"', *['"2,345"'] * 4]), decimal=decimal)
    assert series.values[0, 0] == np.float32(wanted)


@pytest.mark.parametrize(
    ("cells", "options", "doubtful"),
    [
        (["5.163", "4.980", "12.044", "5.001", "6.250"], {}, True),
        (["5.163", "4.980", "0.044", "5.001", "6.250"], {}, False),
        (["5.163", "4.98", "12.044", "5.001", "6.250"], {}, False),
        (["5.163", "4.980", "12.044", "5.001", "6.250"], {"decimal": "."}, False),
        (["5.163", "4.980", "1.012.044", "5.001", "6.250"], {}, False),
    ],
)
def test_a_point_that_may_group_thousands_is_told(
    load: Callable[..., Series], cells: list[str], options: dict[str, Any], doubtful: bool
) -> None:
    """Between commas it is nearly always the decimal one, so it is read; but if no cell shows it, a line says so."""
    series = load(text(temp=cells), **options)
    notes = [note for note in series.notes if "5.163 is read with a decimal point; if it means 5163" in note]
    assert len(notes) == doubtful
    assert series.values[0, 0] == np.float32(5163 if "1.012.044" in cells else 5.163)
    if doubtful:
        assert load(text(temp=cells), thousands=".").values[0, 0] == 5163


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        (
            {"timezone": "Europe/Berlin"},
            text([f"2024-03-31 02:{row}0" for row in range(5)]),
            "Europe/Berlin leaves out.*--timezone",
        ),
        (
            {"timezone": "Europe/Atlantis"},
            text(),
            "'Europe/Atlantis' is unknown, expected a name such as Europe/Berlin",
        ),
        ({"time_format": "dmy"}, text(), "'dmy', expected one of iso, year-first, day-first"),
        ({"time_format": "%d.%m.%Y"}, text(), "'2024-03-01 00:00:00' in row 1, expected a time as '%d.%m.%Y'"),
        ({"time_format": "ms"}, text(), "which is no number"),
        ({"resample": "10 apples"}, text(), "resample: got '10 apples', expected a period such as"),
        (
            {"resample": "1h", "resample_by": "temp=max"},
            text(),
            "'temp=max', expected a column and one of mean, last, sum",
        ),
        ({"resample_by": "temp=sum"}, text(), "expected it with --resample"),
        ({"offset": "temp"}, text(), "offset: got 'temp', expected a column and a number"),
        ({"categories": "state"}, text(), "no column 'state' of categories; there are: time, temp, pump"),
        ({"encoding": "utf-8"}, text(head="time,Außen,pump").encode("latin-1"), "not a readable table.*--encoding"),
        ({"encoding": "martian"}, text(), "not a readable table.*--encoding"),
        ({}, text(head="time,温度,pump").encode("gbk"), "neither UTF-8 nor Latin-1.*--encoding"),
        ({}, text(head="time"), "1 names for rows of 3 cells"),
        ({}, text([stamped()[0]] * 5), "repeats the time of row 1.*--duplicates"),
        (
            {},
            text(["2024-10-27 02:00", "2024-10-27 02:30"] * 2 + ["2024-10-27 03:00"]),
            "clock was set back.*--timezone",
        ),
        ({}, text([*stamped()[:4], "2024-03-01T00:50:00Z"]), "an offset to UTC in some rows only"),
        ({}, text([*stamped()[:4], "tomorrow"]), "'tomorrow' in row 5.*--time-format"),
        (
            {"decimal": "."},
            text(between=";", temp=["1,5"] * 5),
            "'1,5' in row 1, expected numbers with a decimal point.*--decimal",
        ),
        ({}, text(between=";", temp=["1,5"] * 4 + ["2.75"]), "'2.75' in row 5, expected numbers with a decimal comma"),
        ({}, text(["soon", *stamped()[1:]]), "'soon' in row 1.*--time-format"),
        ({}, text(stamped("%H:%M")), "'time' holds times of day without a date.*--time.*--period"),
        ({}, text([str(5 * 10**9)] * 5, head="time,temp,pump"), "neither Unix times.*--time-format"),
    ],
)
def test_what_cannot_be_read_is_refused(
    load: Callable[..., Series], options: dict[str, Any], content: str | bytes, words: str
) -> None:
    """One line with what was found, what was expected, and the option to use."""
    with pytest.raises(errors.TrainingError, match=words) as caught:
        load(content, **options)
    assert "\n" not in str(caught.value)


def test_all_errors_of_a_table_come_at_once(load: Callable[..., Series]) -> None:
    """Each column tells its first bad cell; nobody repairs a file one error after the other."""
    rows = "".join(
        f"{time},{a},{b},{123456789 + row}\n"
        for row, (time, a, b) in enumerate(zip(stamped(), "12x45", "1234i", strict=True))
    )
    with pytest.raises(errors.TableErrors) as caught:
        load("time,a,b,meter\n" + rows.replace(",i,", ",inf,"))
    lines = str(caught.value).splitlines()
    assert ["'a'" in lines[0], "'b'" in lines[1], "'meter'" in lines[2]] == [True] * 3
    assert [type(error) for error in caught.value.errors] == [
        errors.TextColumn,
        errors.InfiniteValue,
        errors.UnheldNumber,
    ]
    assert "--offset meter=123456789" in lines[2]


def test_large_numbers_that_float32_holds_well_enough_stay(load: Callable[..., Series]) -> None:
    """Rounding that is small beside the changes from row to row loses nothing."""
    series = load(text(temp=["123456789", "523456789", "923456789", "223456789", "323456789"]))
    assert series.values[1, 0] == np.float32(523456789)


@pytest.mark.parametrize("code", ["-9999", "9999"])
def test_a_likely_sentinel_is_reported_and_stays(load: Callable[..., Series], code: str) -> None:
    """A value that repeats at an impossible distance is named with the option that makes it missing."""
    cells = [code if row % 7 == 3 else str(20 + row / 10) for row in range(40)]
    times = [f"2024-03-01 {row:02}:00" for row in range(24)] + [f"2024-03-02 {row:02}:00" for row in range(16)]
    content = "time,a\n" + "".join(f"{time},{cell}\n" for time, cell in zip(times, cells, strict=True))
    series = load(content)
    assert (series.values == float(code)).sum() == cells.count(code)
    assert any(f"add --missing-values a={code}" in note for note in series.notes)
    assert not any("--missing-values" in note for note in load(content, missing_values=f"a={code}").notes)


def test_numbers_with_several_units_are_left_out_and_told(load: Callable[..., Series]) -> None:
    """A watt is no kilowatt."""
    series = load(text(temp=["900 W", "1.2 kW", "", "800 W", "1 kW"]))
    assert "left out: temp (numbers with several units: W, kW)" in series.notes


def test_names_may_be_numbers(load: Callable[..., Series]) -> None:
    """A line of names is told from a row by its first cell."""
    assert load(text(head="time,1,2")).names == ("1", "2")


def test_a_single_outlier_is_no_sentinel(load: Callable[..., Series]) -> None:
    """Nor is a reading that is merely zero often, as rain is."""
    cells = [str(max(0, row % 9 - 6)) for row in range(23)] + ["500"]
    content = "time,rain\n" + "".join(f"2024-03-01 {row:02}:00,{cell}\n" for row, cell in enumerate(cells))
    assert not any("--missing-values" in note for note in load(content).notes)


def test_the_repeated_hour_is_told_apart_in_each_group(load: Callable[..., Series]) -> None:
    """Each machine has its own rows in that hour."""
    times = ["2024-10-27 02:00", "2024-10-27 02:30", "2024-10-27 02:00", "2024-10-27 02:30"]
    content = "time,m,a\n" + "".join(f"{time},{machine},{row}\n" for row, time in enumerate(times) for machine in "xy")
    series = load(content, columns={"group": "m"}, timezone="Europe/Berlin")
    assert series.groups == (Group("x", 0, 4), Group("y", 4, 8))
    half_hours = np.datetime64("2024-10-27T00:00", "ns") + np.arange(4) * np.timedelta64(30, "m")
    np.testing.assert_array_equal(series.times, np.tile(half_hours, 2))
    assert series.timezone == "UTC"


def test_a_repeated_hour_that_occurs_once_is_told(load: Callable[..., Series]) -> None:
    """Nobody can know which of the two it was."""
    times = ["2024-10-27 01:30", "2024-10-27 02:00", "2024-10-27 02:30", "2024-10-27 03:00", "2024-10-27 03:30"]
    series = load(text(times), timezone="Europe/Berlin")
    assert any("occurs twice in Europe/Berlin and once in the table" in note for note in series.notes)


def test_resampling_keeps_groups_apart(load: Callable[..., Series]) -> None:
    """A period of one machine has no row of another."""
    content = "time,m,a\n" + "".join(
        f"{time},{machine},{row}\n" for machine in "xy" for row, time in enumerate(stamped())
    )
    series = load(content, columns={"group": "m"}, resample="30min")
    assert series.groups == (Group("x", 0, 2), Group("y", 2, 4))
    np.testing.assert_array_equal(series.values[:, 0], [1, 3.5, 1, 3.5])


def test_a_period_keeps_the_last_word(load: Callable[..., Series]) -> None:
    """Between two words there is no mean."""
    series = load(text(temp=["run", "run", "fault", "idle", "run"]), categories="temp", resample="30min")
    assert series.categories == {"temp": ("fault", "idle", "run")}
    assert series.values[:, 0].tolist() == [0, 2]


def test_rows_that_are_changed_are_other_data(load: Callable[..., Series]) -> None:
    """A model knows its rows by the checksum; how a file is packed does not matter."""
    plain, again = load(PLAIN), load(PLAIN, delimiter=",")
    assert plain.sha256 == again.sha256 != load(PLAIN, resample="30min").sha256


def test_words_of_a_model_keep_their_numbers(tmp_path: Path) -> None:
    """Other data has the numbers of the training, and a word that the model never met is a missing value."""
    path = tmp_path / "other.csv"
    path.write_text(text(temp=["run", "idle", "lost", "run", "idle"]), encoding="utf-8")
    series = read(path, options=Format(categories=("temp",)), words={"temp": ("fault", "idle", "run")})
    np.testing.assert_array_equal(series.values[:, 0], [2, 1, np.nan, 2, 1])
    assert any("unknown words are missing values: lost" in note for note in series.notes)


def test_numbers_of_words_are_taken_as_they_are(tmp_path: Path) -> None:
    """A file of held-out rows has the numbers already."""
    path = tmp_path / "held_out.csv"
    path.write_text(text(temp=["2", "1", "", "0", "2"]), encoding="utf-8")
    series = read(path, options=Format(categories=("temp",)), words={"temp": ("fault", "idle", "run")})
    np.testing.assert_array_equal(series.values[:, 0], [2, 1, np.nan, 0, 2])


def test_an_input_that_is_constant_in_training_is_left_out() -> None:
    """If it moves later, weights that were never trained would act on it."""
    values = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    values[:300, 1] = 0.0
    values[300:, 1] = 101325.0
    series = series_of(values, names=["a", "late", "b"])
    notes: list[str] = []
    request = Request(source=Source(data="x.csv"), target=("a",), horizons=(1,), name="x", out=Path("runs/x"))
    prepared = prepare(request, series, notes.append)
    assert prepared.series.names == ("a", "b")
    assert prepared.architecture.features == 2
    assert notes[-1] == "left out, because they are constant in the training part: late"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("plant.csv", "plant"),
        ("a/plant.csv.gz", "plant"),
        ("logs/*.csv", "logs"),
        ("-", "stdin"),
        ("mein werk.csv", "mein-werk"),
    ],
)
def test_a_model_is_called_like_its_data(data: str, name: str) -> None:
    """The name of a model is a folder, whatever the data is."""
    assert name_of(data) == name


def test_a_name_with_a_comma_stands_in_quotes() -> None:
    """Options with several names are split at commas."""
    assert Source(exclude='"temp, °C",pump').exclude == ("temp, °C", "pump")  # type: ignore[arg-type]


def test_a_constant_plan_whose_future_moves_stays() -> None:
    """The feature of its future is derived from it, also in other data."""
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    values[:281, 1], values[281:, 1] = 5.0, 6.0  # the training part ends at row 280
    source = Source(data="x.csv", known=("plan",))
    series = series_of(values, names=["a", "plan"], derived=["plan@+3"])
    request = Request(source=source, target=("a",), horizons=(3,), name="x", out=Path("runs/x"))
    assert prepare(request, series, lambda _: None).series.names == ("a", "plan", "plan@+3")


def test_each_file_of_a_folder_may_be_a_series(tmp_path: Path) -> None:
    """Machines with a file each repeat their times, and `--group file` tells them apart."""
    for name in ("north", "south"):
        (tmp_path / f"{name}.csv").write_text(text(), encoding="utf-8")
    with pytest.raises(errors.TimeOrderError, match="--group file"):
        read(tmp_path)
    series = read(tmp_path, group="file")
    assert series.groups == (Group("north", 0, 5), Group("south", 5, 10))
    assert series.names == ("temp", "pump")


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    """The message names the file and the columns that differ."""
    (tmp_path / "a.csv").write_text(text(), encoding="utf-8")
    (tmp_path / "b.csv").write_text(text(head="time,temp,fan"), encoding="utf-8")
    with pytest.raises(errors.UnreadableTable, match=r"b\.csv has other columns than .*a\.csv: fan, pump"):
        read(tmp_path)
