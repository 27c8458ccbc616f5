"""`tidegate serve --check`, and what a start that fails leaves on disk."""

import socket
from pathlib import Path

import pytest

from tests.graphs import lstm, running_sum, write_model
from tests.servers import run_command


def files_below(folder: Path) -> list[Path]:
    """All files and folders."""
    return sorted(folder.rglob("*"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to start in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_each_model_is_named(tmp_path: Path, work: Path) -> None:
    """In one line, with exit code 0."""
    write_model(tmp_path / "m", lstm(), "lake", "3")
    write_model(tmp_path / "m", running_sum(), "toy", "1")
    ended = run_command("serve", "--check", "--models", str(tmp_path / "m"), cwd=work)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(",")[0] for line in ended.stdout.splitlines()] == ["ok: lake/3", "ok: toy/1"]


def test_nothing_is_opened_or_written(sum_root: Path, tmp_path: Path, work: Path) -> None:
    """Not the port, which another server has; not the store; and no copies of the models."""
    spare = tmp_path / "tmp"
    spare.mkdir()
    before, changed = files_below(sum_root), [folder.stat().st_mtime_ns for folder in (spare, work)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--models", str(sum_root), "--host", "127.0.0.1", "--port", port, "--metrics-port", port]
        ended = run_command("serve", "--check", *options, cwd=work, TIDEGATE_STATE="", TMPDIR=str(spare))
    assert ended.returncode == 0, ended.stderr
    assert (files_below(work), files_below(spare), files_below(sum_root)) == ([], [], before)
    assert [folder.stat().st_mtime_ns for folder in (spare, work)] == changed, "something was written and removed"


def test_everything_that_is_wrong_is_named(tmp_path: Path, work: Path) -> None:
    """The certificate, the tokens, the store, and each model and how it is served, in one line, with exit code 3."""
    for version in "12":
        write_model(tmp_path / "m", b"rubbish", "toy", version)
    write_model(tmp_path / "m", running_sum(), "toy", "3")
    (tmp_path / "m" / "toy" / "serving.toml").write_text("policy = 'swim'")
    (tmp_path / "tokens.toml").write_text("[[token]]\nsha256 = 'x'\ntenant = 'a'")
    ended = run_command(
        *("serve", "--check", "--models", str(tmp_path / "m"), "--tokens", str(tmp_path / "tokens.toml")),
        *("--tls-cert", "absent.pem", "--tls-key", "absent.key", "--state", "tape:"),
        cwd=work,
    )
    assert (ended.returncode, ended.stdout) == (3, "")
    (line,) = [each for each in ended.stderr.splitlines() if each.startswith("error: ")]
    for words in ("absent.pem", "token[0].sha256", "tape:", "2 models cannot be served: toy/1", "; toy/2", "'swim'"):
        assert words in line


def test_only_what_is_loaded_is_checked(tmp_path: Path, work: Path) -> None:
    """As at a start."""
    write_model(tmp_path / "m", running_sum(), "toy", "1")
    write_model(tmp_path / "m", b"rubbish", "lake", "1")
    (tmp_path / "m" / "lake" / "serving.toml").write_text("policy = 'swim'")
    ended = run_command("serve", "--check", "--models", str(tmp_path / "m"), "--load", "toy/1", cwd=work)
    assert (ended.returncode, ended.stdout.split(",")[0]) == (0, "ok: toy/1"), ended.stderr


def test_a_bad_setting_is_refused(sum_root: Path) -> None:
    """With exit code 2, as at a start."""
    ended = run_command("serve", "--check", "--models", str(sum_root), "--batch-max", "0")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "--batch-max: got 0" in ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("models", ["absent", "broken"])
def test_a_start_without_models_leaves_nothing(tmp_path: Path, work: Path, models: str, workers: str) -> None:
    """A server that is started in the wrong folder makes no data folder there."""
    write_model(tmp_path / "broken", b"rubbish")
    options = ["--models", str(tmp_path / models), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    ended = run_command("serve", *options, "--workers", workers, cwd=work, TIDEGATE_STATE="")
    assert ended.returncode == 3
    assert files_below(work) == []


@pytest.mark.parametrize("options", [["--workers", "1"], ["--workers", "2"], ["--check"]])
def test_a_folder_that_cannot_be_listed_is_refused(work: Path, options: list[str]) -> None:
    """In one line, without a traceback."""
    ports = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    ended = run_command("serve", "--models", "a" * 300, *ports, *options, cwd=work, TIDEGATE_STATE="")
    assert ended.returncode == 3
    (line,) = [each for each in ended.stderr.splitlines() if " INFO " not in each]
    assert line.startswith(f"error: {'a' * 300}: cannot be listed: File name too long")
