"""Versions on disk, and their private copies."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.graphs import running_sum, write_model
from tidegate.core.errors import ContractBroken
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.model_files import ModelCopies, StillChanging, VersionFiles, check, scan


def only(root: Path) -> VersionFiles:
    """The only version."""
    (files,) = scan(root)
    return files


@pytest.mark.parametrize("name", [".toy", "toy.tmp"])
def test_a_folder_that_is_being_written_is_no_version(sum_root: Path, name: str) -> None:
    """Whether it is that of a model or that of a version."""
    os.renames(sum_root / "toy", sum_root / name)
    assert scan(sum_root) == []
    os.renames(sum_root / name / "1", sum_root / "toy" / name.replace("toy", "1"))
    assert scan(sum_root) == []
    (sum_root / "toy" / name.replace("toy", "1")).rename(sum_root / "toy" / "1")
    assert only(sum_root).title == "toy/1"


def test_a_copy_does_not_change_with_the_files(sum_root: Path) -> None:
    """A worker that is restarted loads what the others serve."""
    copies = ModelCopies(sum_root)
    copy = copies.add(only(sum_root))
    (sum_root / "toy" / "1" / "model.onnx").write_bytes(b"other")
    assert (copy / "model.onnx").read_bytes() == running_sum()
    copies.close()
    assert not copies.folder.exists()


def test_what_changes_while_it_is_copied_is_not_taken(sum_root: Path) -> None:
    """The copy would be half of the old file and half of the new one."""
    files = only(sum_root)
    with (sum_root / "toy" / "1" / "model.onnx").open("ab") as graph:
        graph.write(b"more")
    copies = ModelCopies(sum_root)
    with pytest.raises(StillChanging, match="toy/1"):
        copies.add(files)
    assert not list(copies.folder.rglob("*.onnx"))
    copies.close()


def test_what_a_killed_server_has_left_is_removed(sum_root: Path) -> None:
    """Nobody holds its lock any more. A folder whose lock is held stays."""
    killed, living = ModelCopies(sum_root), ModelCopies(sum_root)
    os.close(killed._lock)
    later = ModelCopies(sum_root)
    assert not killed.folder.exists()
    assert living.folder.exists()
    living.close()
    later.close()


def test_a_read_only_system_has_copies_beside_the_store(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder for temporary files."""

    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    copies = ModelCopies(sum_root / "data")
    assert copies.folder.parent == sum_root / "data"
    copies.close()
    with pytest.raises(StartFailed, match="models cannot be copied to /proc/1/x"):
        ModelCopies(Path("/proc/1/x"))


def test_weights_that_are_a_link_out_of_the_folder_are_not_copied(sum_root: Path, tmp_path: Path) -> None:
    """Whoever needs them sees the link, and refuses it."""
    (tmp_path / "secret").write_text("secret")
    (sum_root / "toy" / "1" / "weights.bin").symlink_to(tmp_path / "secret")
    copies = ModelCopies(sum_root)
    assert (copies.add(only(sum_root)) / "weights.bin").is_symlink()
    copies.close()


@pytest.mark.parametrize(
    ("version", "words"), [("beta", "'beta' is not a decimal number"), ("01", "begins with a zero, expected toy/1")]
)
def test_a_version_has_one_way_to_be_written(tmp_path: Path, version: str, words: str) -> None:
    """Else two folders could be one version."""
    write_model(tmp_path, running_sum(), version=version)
    with pytest.raises(ContractBroken, match=words):
        check(only(tmp_path), 1000)


def test_files_that_are_too_large_are_not_read(sum_root: Path) -> None:
    """The sum counts, also of what is beside the graph."""
    size = only(sum_root).bytes
    check(only(sum_root), size)
    with pytest.raises(ContractBroken, match="--model-bytes-max allows more"):
        check(only(sum_root), size - 1)


def test_a_graph_that_is_no_file_is_refused(sum_root: Path) -> None:
    """To read from a pipe would never end."""
    graph = sum_root / "toy" / "1" / "model.onnx"
    graph.unlink()
    os.mkfifo(graph)
    with pytest.raises(ContractBroken, match="not a regular file"):
        check(only(sum_root), 1000)


def test_a_link_to_a_file_is_followed(sum_root: Path, tmp_path: Path) -> None:
    """As container platforms mount files. A folder that is a link inside a version is not."""
    version = sum_root / "toy" / "1"
    (version / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (version / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    (version / "weights").symlink_to(tmp_path)
    assert [path for path, *_ in only(sum_root).files] == ["model.onnx"]
