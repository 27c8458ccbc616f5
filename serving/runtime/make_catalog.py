"""Makes the catalog of a server from its settings."""

from collections.abc import Callable
from pathlib import Path

from tidegate.runtime.config import ServerConfig
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import ModelChecker


def make_catalog(
    config: ServerConfig, data_dir: Path | None, make_checker: Callable[[], ModelChecker] = ModelChecker
) -> ModelCatalog:
    """What decides which models are served. Without a folder for data it reads them where they are."""
    return ModelCatalog(
        config.models,
        config.load,
        make_checker,
        config.trial_limits,
        bytes_max=config.model_bytes_max,
        poll_s=config.models_poll,
        data_dir=data_dir,
    )
