"""Checks what a start needs, without starting: the certificates, the tokens, the address of the store, and each model.

It opens no port and no store, and writes nothing to disk.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from tidegate.core.errors import ContractBroken, StoreUnavailable
from tidegate.runtime.access import Access, Refusal
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import CheckedModel, ModelChecker
from tidegate.runtime.tls import TlsCredentials
from tidegate.store import make_store


async def check_start(
    config: ServerConfig, make_checker: Callable[[], ModelChecker] = ModelChecker
) -> Sequence[CheckedModel]:
    """Returns the models that would be served. Raises StartFailed with everything that would make a start fail."""
    problems = [*_problems(config)]
    models: Sequence[CheckedModel] = []
    async with AsyncExitStack() as resources:
        catalog = ModelCatalog(
            config.models,
            config.load,
            make_checker,
            config.trial_limits,
            bytes_max=config.model_bytes_max,
            poll_s=0,
            spare=None,
        )
        resources.push_async_callback(catalog.close)
        try:
            await catalog.start()
            models = [target.model for target in catalog.targets]
        except ContractBroken as error:
            problems.append(str(error))
    if problems:
        raise StartFailed("; ".join(problems))
    return models


def _problems(config: ServerConfig) -> list[str]:
    """What is wrong apart from the models."""
    problems = []
    try:
        if config.tls_files is not None:
            TlsCredentials(config.tls_files)
    except StartFailed as error:
        problems.append(str(error))
    try:
        Access(config.tokens_path, _count)
    except StartFailed as error:
        problems.append(str(error))
    try:
        make_store(config.state_address)
    except (StoreUnavailable, ValueError) as error:
        problems.append(str(error))
    return problems


def _count(_: Refusal) -> None:
    """Nobody calls while only the files are checked."""
