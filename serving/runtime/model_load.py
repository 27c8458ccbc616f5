"""Reads a version from its folder."""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tidegate.core.errors import ContractBroken
from tidegate.core.external_data import external_files
from tidegate.core.model import Model
from tidegate.runtime.model_files import GRAPH

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and its card."""

    model: Model
    card_json: str


def load_model(name: str, version: str, folder: Path) -> LoadedModel:
    """Loads a version. Uses no shared state.

    Raises ContractBroken: it cannot be served, or its graph names a file outside its folder.
    """
    where = f"{name}/{version}"
    path, sidecar, card = folder / GRAPH, folder / "model.toml", folder / "card.json"
    try:
        sidecar_text = sidecar.read_text("utf-8") if sidecar.exists() else None
        card_json = card.read_text("utf-8") if card.exists() else ""
        graph, digest = _read_graph(where, path)
    except OSError as error:
        raise ContractBroken(where, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractBroken(where, f"model.toml or card.json beside it is not UTF-8: {error.reason}") from error
    return LoadedModel(Model(name, version, graph, sidecar_text, digest), card_json)


def _read_graph(where: str, path: Path) -> tuple[bytes | str, str]:
    """The graph as `Model` takes it, and the SHA-256 of it and of its weights."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ContractBroken(where, f"{GRAPH} is empty")
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content, memoryview(content) as graph:
            files = external_files(graph)
            digest.update(graph)
            if not files:
                return bytes(graph), digest.hexdigest()
    for name in sorted(files):
        weights = path.parent / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ContractBroken(where, f"the graph names the file '{name}', expected one in its own folder")
        if not weights.is_file():
            raise ContractBroken(where, f"the graph names the file '{name}', which is not beside it")
        with weights.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return str(path), digest.hexdigest()
