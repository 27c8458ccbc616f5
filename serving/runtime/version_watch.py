"""Follows what is written about the versions of a model into the models folder: the promoted version, and the settings.

Every worker has a watch of its own. A file is read again when it was replaced, which a worker that wrote it itself need
not wait for. A file with mistakes changes nothing but a line in the log: what was read before holds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.runtime import model_settings, promotion
from tidegate.runtime.repository import Repository

log = logging.getLogger("tidegate.versions")

# To look at two files of each model takes some microseconds.
POLL_SECONDS = 0.5

Stamp = tuple[int, int, int] | None


class VersionWatch:
    """Follows the files of every model. `run` is its task.

    Args:
        root: the models folder.
        repository: the models.
        mark: called with the name of a model when its default version or its settings may have changed.

    """

    def __init__(self, root: Path, repository: Repository, mark: Callable[[str], Awaitable[int]]) -> None:
        self._root = root
        self._repository = repository
        self._mark = mark
        self._stamps: dict[Path, Stamp] = {}

    def __repr__(self) -> str:
        return f"<VersionWatch of {self._root}>"

    async def start(self) -> None:
        """Takes the files as they were when the models were loaded."""
        for name in self._repository.names:
            self._has_changed(name)
            await self._mark(name)

    async def run(self) -> None:
        """Looks at the files at intervals, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Takes over what has changed since the last look."""
        for name in self._repository.names:
            if self._has_changed(name):
                await self._read(name)

    def _has_changed(self, name: str) -> bool:
        """Whether a file of a model was replaced since it was looked at."""
        changed = False
        for file in (promotion.FILE, model_settings.FILE):
            path = self._root / name / file
            stamp = _stamp(path)
            changed |= self._stamps.get(path) != stamp
            self._stamps[path] = stamp
        return changed

    async def _read(self, name: str) -> None:
        folder = self._root / name
        before = self._repository.default(name)
        try:
            self._repository.set_promoted(name, promotion.read_promotion(folder).version)
            settings = model_settings.read_settings(folder, self._repository.default_settings)
        except ContractBroken as error:
            log.error("%s; what held before holds", error)
            return
        kept = self._repository.settings(name).raw_steps
        self._repository.set_settings(name, settings)
        if settings.raw_steps not in (0, kept):
            log.warning("model %s keeps %d timesteps a stream until the server is restarted", name, kept)
        marked = await self._mark(name)
        default = self._repository.default(name)
        if default is not before and default is not None:
            log.info("model %s: version %s is the default; %d live streams move", name, default.spec.version, marked)


def _stamp(path: Path) -> Stamp:
    """Changes whenever a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
