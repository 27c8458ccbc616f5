"""Which versions are loaded before anybody asks for them.

A folder keeps an old version for as long as there are streams on it, and most old versions are not used on most days. So
the server loads at once only what new streams get, what runs as a shadow, and what an operator has named.
"""

from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.version_choice import default_version, shadow_version
from tidegate.runtime.model_files import SETTINGS, VersionFiles
from tidegate.runtime.promotion import NEWEST, read_promotion


def current_versions(root: Path, named: Collection[str], found: Iterable[VersionFiles]) -> set[str]:
    """The titles of the versions to load at once.

    Of each model these are the newest, the promoted one and the shadow, and all versions that are `named` by their
    titles. A folder whose name is no version number is among them: it is refused when it is tried, and not later.
    """
    current = set()
    by_name = sorted(found, key=lambda files: files.name)
    for name, group in groupby(by_name, key=lambda files: files.name):
        versions = [files.version for files in group]
        numbers = sorted((version for version in versions if version.isdecimal()), key=int, reverse=True)
        promoted, shadow = _read(root / name)
        default = default_version(numbers, promoted)
        wanted = {*numbers[:1], default}
        if shadow is not None:
            wanted.add(shadow_version(numbers, default, shadow))
        current |= {
            f"{name}/{version}"
            for version in versions
            if version in wanted or not version.isdecimal() or f"{name}/{version}" in named
        }
    return current


def _read(folder: Path) -> tuple[str, str | None]:
    """The promoted version of a model and its shadow: None without one, empty for the newest that is not the default.

    A file with mistakes counts as absent here: the process that serves the model reports them.
    """
    try:
        promoted = read_promotion(folder).version
    except ContractBroken:
        promoted = NEWEST.version
    if not (folder / SETTINGS).exists():
        return promoted, None
    from tidegate.runtime.model_settings import ModelSettings, read_settings  # noqa: PLC0415 - it loads pydantic

    try:
        shadow = read_settings(folder, ModelSettings()).shadow
    except ContractBroken:
        return promoted, None
    return promoted, shadow.version if shadow.share else None
