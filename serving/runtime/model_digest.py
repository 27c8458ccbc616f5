"""The files of a model: the graph, and the weights that it may keep in files beside itself.

Model files are not trusted. The path of a file with weights is written in the graph, and one that leads out of the
model's folder, also by way of a link, is refused before onnxruntime sees it.
"""

import hashlib
import json
import mmap
import os
import stat
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.external_data import external_files


def digest_model(where: str, graph: Path) -> str:
    """The SHA-256 of a graph and of the weights beside it, in hex. That of a graph alone is that of its file.

    The files are read in parts, and never as a whole.

    Raises:
        ContractBroken: a file with weights is missing or is not in the folder, or the graph is no ONNX file.
        OSError: a file cannot be read.

    """
    with graph.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    weights = {name: _digest(_find(where, graph.parent, name)) for name in sorted(weight_files(where, graph))}
    if not weights:
        return digest
    return hashlib.sha256(json.dumps([digest, weights]).encode()).hexdigest()


def weight_files(where: str, graph: Path) -> list[str]:
    """The files with weights that a graph names, as they are written there. Raises ContractBroken and OSError."""
    if not graph.stat().st_size:
        raise ContractBroken(where, "onnxruntime cannot load the graph: the file is empty")
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = memoryview(mapped)
        try:
            return external_files(content)
        except ValueError as error:
            raise ContractBroken(where, f"onnxruntime cannot load the graph: it is no ONNX file: {error}") from error
        finally:
            content.release()


def _find(where: str, folder: Path, name: str) -> Path:
    """The path of a file with weights. Raises ContractBroken when it is not a file in the folder."""
    expected = "expected the name of a file in the folder of the model; save the graph and its weights again"
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise ContractBroken(where, f"the graph has weights in {name!r}, {expected}")
    path = folder / name
    real, inside = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, inside]) != inside:
        raise ContractBroken(where, f"the graph has weights in {name!r}, which is a link out of its folder; {expected}")
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ContractBroken(
            where,
            f"the graph has weights in {name!r}, which cannot be read: {error.strerror}; copy it beside the graph",
        ) from error
    if not is_file:
        raise ContractBroken(where, f"the graph has weights in {name!r}, which is not a file; {expected}")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
