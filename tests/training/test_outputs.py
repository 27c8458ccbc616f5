"""Files that are written as a whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_files import small_files
from tidegate.training.data.series import Series
from tidegate.training.data.write import write_csv
from tidegate.training.outputs import replace_file, replacing


def write_text(path: Path, text: str) -> None:
    """Write a text file line by line."""
    with replacing(path) as file:
        for line in text.splitlines(keepends=True):
            file.write(line)


@pytest.mark.parametrize("write", [write_text, lambda path, text: replace_file(path, text.encode())])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """When the disk is full the old file stays, nothing else is left behind, and the error names the file."""
    path = tmp_path / "page.html"
    write(path, "old")
    with small_files(1000), pytest.raises(OSError, match="File too large") as caught:
        write(path, "new line\n" * 1000)
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_held_out_rows_are_written_as_a_whole(tmp_path: Path, make_series: Callable[..., Series]) -> None:
    """Half a table would be read as one."""
    series = make_series(400)
    with small_files(2000), pytest.raises(OSError, match="File too large") as caught:
        write_csv(series, tmp_path / "rows.csv", series.spans)
    assert caught.value.filename == str(tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())


def test_a_device_and_a_link_stay_what_they_are(tmp_path: Path) -> None:
    """`--json /dev/stdout` prints, and a link leads where it led."""
    (tmp_path / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8") == "new"
    write_text(Path("/dev/null"), "nothing")
    assert not Path("/dev/null").is_file()
