"""Reads a version from its folder."""

from dataclasses import dataclass
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model
from tidegate.runtime.model_digest import digest_model
from tidegate.runtime.model_files import GRAPH


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and its card."""

    model: Model
    card_json: str


def load_model(name: str, version: str, folder: Path, device: str = "cpu") -> LoadedModel:
    """Loads a version. Uses no shared state. Raises ContractBroken."""
    where = f"{name}/{version}"
    path, sidecar, card = folder / GRAPH, folder / "model.toml", folder / "card.json"
    try:
        digest = digest_model(where, path)
        sidecar_text = sidecar.read_text("utf-8") if sidecar.exists() else None
        card_json = card.read_text("utf-8") if card.exists() else ""
    except OSError as error:
        raise ContractBroken(where, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractBroken(where, f"model.toml or card.json beside it is not UTF-8: {error.reason}") from error
    return LoadedModel(Model(name, version, str(path), sidecar_text, digest, device), card_json)
