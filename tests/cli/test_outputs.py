"""Results are written as a whole or not at all."""

from pathlib import Path

import pytest

from tests.small_files import small_files
from tidegate.cli.errors import CommandError
from tidegate.cli.outputs import replacing


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    """One line, and no half of a file."""
    path = tmp_path / "out.csv"
    path.write_text("old", encoding="utf-8")
    with (
        small_files(1000),
        pytest.raises(CommandError, match=r"out\.csv: cannot be written: File too large"),
        replacing(path) as new,
    ):
        new.write_text("x" * 5000, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_leads_where_it_led(tmp_path: Path) -> None:
    """As a device does, it stays what it is."""
    (tmp_path / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as new:
        new.write_text("new", encoding="utf-8")
    assert (tmp_path / "real").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "link").is_symlink()
