"""Which version of a model is the default, `<models>/<name>/promoted.json`, when it is not simply the newest.

The file is in the models folder, beside the versions from which it chooses. Whoever deploys versions can write it too,
and every worker and every server that shares the folder follows it. It is replaced by one atomic rename, after its
content is on disk. So a process that is killed at any point leaves either the old choice or the new one.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from tidegate.core.errors import ContractBroken
from tidegate.runtime.crash_points import crash_point

FILE = "promoted.json"
# How far back `rollback` can go.
BEFORE_MAX = 16


@dataclass(frozen=True, slots=True)
class Promotion:
    """The choice of the default version.

    `version` is empty when the newest version is the default. `before` are the versions that were the default before
    each promotion, the last one at the end.
    """

    version: str = ""
    before: tuple[str, ...] = ()


NEWEST = Promotion()


def read_promotion(folder: Path) -> Promotion:
    """The choice in the folder of a model. Raises ContractBroken when the file is not one of ours."""
    path = folder / FILE
    try:
        given = json.loads(path.read_text("utf-8"))
        promotion = Promotion(given["version"], tuple(given["before"]))
        if not all(isinstance(version, str) for version in (promotion.version, *promotion.before)):
            raise TypeError("a version is not text")  # noqa: TRY301 - told below like the others
    except FileNotFoundError:
        return NEWEST
    except OSError as error:
        raise ContractBroken(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ContractBroken(
            str(path), f'expected {{"version": "2", "before": ["1"]}}: {type(error).__name__} {error}; promote again'
        ) from error
    return promotion


def write_promotion(folder: Path, promotion: Promotion) -> None:
    """Replaces the choice. Raises OSError; then the old choice stands."""
    text = json.dumps({"version": promotion.version, "before": list(promotion.before[-BEFORE_MAX:])}) + "\n"
    crash_point("before-promote")
    with NamedTemporaryFile("w", dir=folder, prefix=f".{FILE}.", delete=False, encoding="utf-8") as file:
        written = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # other servers may run as other users
            crash_point("during-promote")
            written.replace(folder / FILE)
        except BaseException:
            written.unlink()
            raise
    crash_point("after-promote")
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # else a power loss might bring the old choice back
    finally:
        os.close(directory)
