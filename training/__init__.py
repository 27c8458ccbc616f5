"""Trains recurrent networks on sensor series and exports each as a one-step ONNX graph. Never imports `serving`.

`train` takes a data frame or a file; `export` takes a network of your own, described by `Feature`, `Output` and `State`. They
load torch when they are first asked for, which takes seconds. `docs/python.md` shows both.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.training.notebook import Training, train
    from tidegate.training.publishing.module import Feature, Output, State
    from tidegate.training.publishing.module_export import Exported, export

__all__ = ["Exported", "Feature", "Output", "State", "Training", "export", "train"]

_HOMES = {
    "Exported": "tidegate.training.publishing.module_export",
    "Feature": "tidegate.training.publishing.module",
    "Output": "tidegate.training.publishing.module",
    "State": "tidegate.training.publishing.module",
    "Training": "tidegate.training.notebook",
    "export": "tidegate.training.publishing.module_export",
    "train": "tidegate.training.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
