"""Reads a version from its folder."""

from dataclasses import dataclass
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and its card."""

    model: Model
    card_json: str


def load_model(name: str, version: str, folder: Path) -> LoadedModel:
    """Loads a version. Uses no shared state. Raises ContractBroken."""
    path = folder / "model.onnx"
    sidecar, card = path.with_name("model.toml"), path.with_name("card.json")
    try:
        graph = path.read_bytes()
        sidecar_text = sidecar.read_text("utf-8") if sidecar.exists() else None
        card_json = card.read_text("utf-8") if card.exists() else ""
    except OSError as error:
        raise ContractBroken(f"{name}/{version}", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractBroken(
            f"{name}/{version}", f"model.toml or card.json beside it is not UTF-8: {error.reason}"
        ) from error
    return LoadedModel(Model(name, version, graph, sidecar_text), card_json)
