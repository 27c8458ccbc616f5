"""A version on disk: a folder with graph, card and report. It is written atomically and never overwritten."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tidegate.training.errors import ModelUnreadable, VersionExists
from tidegate.training.outputs import naming
from tidegate.training.publishing.long_scores import FILE as SCORES
from tidegate.training.publishing.long_scores import join_scores, split_scores

_TAKEN = "version: {folder} exists already and is never overwritten; choose another with --version"


def free_version(models: Path, name: str, version: int | None) -> int:
    """The version to write: the given one, or one more than the largest on disk.

    Raises:
        VersionExists: the given one is on disk already.
    """
    folder = models / name
    if version is None:
        taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
        return max(taken, default=0) + 1
    if (folder / str(version)).exists():
        raise VersionExists(_TAKEN.format(folder=folder / str(version)))
    return version


def write_version(
    models: Path, name: str, version: int, graph: bytes, card: dict[str, Any], report: str | None
) -> Path:
    """Write `<models>/<name>/<version>/` with `model.onnx`, `card.json` and, if there is one, `report.html`, atomically.

    The scores of many targets and horizons are in `scores.json`, see `long_scores`.

    Returns the folder. A server that watches the folder never sees an unfinished version.

    Raises:
        VersionExists: the version is on disk already; it stays as it is.
    """
    folder = models / name / str(version)
    if folder.exists():
        raise VersionExists(_TAKEN.format(folder=folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays within one file system. The dot marks it as no version.
    scratch = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder.parent))
    try:
        card, scores = split_scores(card)
        with naming(folder):
            (scratch / "model.onnx").write_bytes(graph)
            (scratch / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if scores is not None:
                (scratch / SCORES).write_text(json.dumps(scores, ensure_ascii=False) + "\n", encoding="utf-8")
            if report is not None:
                (scratch / "report.html").write_text(report, encoding="utf-8")
        scratch.chmod(0o755)  # a temporary folder is private, but a server of another user must read the model
        _rename_new(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def read_card(model: Path) -> dict[str, Any] | None:
    """The card beside a model, with all rows of its scores; None if there is none.

    Raises:
        ModelUnreadable: the card or the file of its scores is not JSON.
    """
    folder = model if model.is_dir() else model.parent
    card = _read_json(folder / "card.json")
    scores = _read_json(folder / SCORES)
    return join_scores(card, scores) if card is not None and scores is not None else card


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnreadable(f"model: {path} is not JSON: {error}") from error
    return content


def _rename_new(scratch: Path, folder: Path) -> None:
    """Rename the folder, unless another process was faster: a rename onto a folder that is not empty fails."""
    try:
        scratch.rename(folder)
    except OSError as error:
        if folder.exists():
            raise VersionExists(_TAKEN.format(folder=folder)) from error
        raise
