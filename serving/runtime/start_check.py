"""Checks what a start needs, without starting: the certificates, the tokens, the address of the store, and each model.

It opens no port and no store, and writes nothing to disk.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate.core.errors import ContractBroken, StoreUnavailable
from tidegate.runtime.access import Access, Refusal
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import CheckedModel
from tidegate.runtime.model_files import scan
from tidegate.runtime.model_settings import ModelSettings, read_settings
from tidegate.runtime.promotion import read_promotion
from tidegate.runtime.tls import TlsCredentials
from tidegate.runtime.tls_files import TlsFiles
from tidegate.store import make_store


async def check_start(
    make_catalog: Callable[[], ModelCatalog],
    default: ModelSettings,
    *,
    models: Path,
    load: Sequence[str],
    tls: TlsFiles | None,
    tokens: Path | None,
    state: str,
) -> Sequence[CheckedModel]:
    """Returns the models that would be served.

    Args:
        make_catalog: makes the catalog that tries the models. It should make no copies.
        default: how models are served that have no settings of their own.
        models: the folder of models.
        load: what to serve of it, as NAME or NAME/VERSION; empty for all.
        tls: the files for TLS; None without TLS.
        tokens: the token file; None without one.
        state: the address of the store.

    Raises StartFailed with everything that would make a start fail.
    """
    problems = [*_problems(tls, tokens, state), *_folder_problems(models, load, default)]
    checked: Sequence[CheckedModel] = []
    catalog = make_catalog()
    try:
        await catalog.start(all_versions=True)
        checked = [target.model for target in catalog.versions.targets]
    except ContractBroken as error:
        problems.append(str(error))
    finally:
        await catalog.close()
    if problems:
        raise StartFailed("; ".join(problems))
    return checked


def _problems(tls: TlsFiles | None, tokens: Path | None, state: str) -> list[str]:
    """What is wrong apart from the models."""
    problems = []
    try:
        if tls is not None:
            TlsCredentials(tls)
    except StartFailed as error:
        problems.append(str(error))
    try:
        Access(tokens, _count)
    except StartFailed as error:
        problems.append(str(error))
    try:
        make_store(state)
    except (StoreUnavailable, ValueError) as error:
        problems.append(str(error))
    return problems


def _folder_problems(models: Path, load: Sequence[str], default: ModelSettings) -> list[str]:
    """What is wrong with the files beside the versions of each model."""
    problems = []
    names = {each.partition("/")[0] for each in load}
    try:
        found = {files.name for files in scan(models)}
    except OSError:  # the catalog reports it
        return []
    for name in sorted(found):
        try:
            if not names or name in names:
                read_settings(models / name, default)
                read_promotion(models / name)
        except ContractBroken as error:
            problems.append(str(error))
    return problems


def _count(_: Refusal) -> None:
    """Nobody calls while only the files are checked."""
