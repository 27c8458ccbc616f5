"""Follows what is written about the versions of a model into the models folder: the promoted version, and the settings.

Every worker has a watch of its own. A file is read again when it was replaced, which a worker that wrote it itself need
not wait for. A file with mistakes changes nothing but a line in the log: what was read before holds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.runtime import model_settings, promotion
from tidegate.runtime.model_settings import ModelSettings
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
        default: the settings of models without a file.

    Attributes:
        mark: called with the name of a model when its default version or its settings may have changed; it returns how
            many streams move.

    """

    def __init__(self, root: Path, repository: Repository, default: ModelSettings) -> None:
        self._root = root
        self._repository = repository
        self._default = default
        self._stamps: dict[Path, Stamp] = {}
        self._changed = asyncio.Event()
        self.mark: Callable[[str], Awaitable[int]] = _nothing

    def __repr__(self) -> str:
        return f"<VersionWatch of {self._root}>"

    def settings_of(self, name: str) -> ModelSettings:
        """The settings of a model that is being loaded. Raises ContractBroken when its file has mistakes."""
        return model_settings.read_settings(self._root / name, self._default)

    def models_changed(self) -> None:
        """Looks at all models soon, because versions have come or gone."""
        for name in self._repository.names:
            if (
                self._root / name / promotion.FILE not in self._stamps
            ):  # at once: no stream may begin under another version
                self._has_changed(name)
                self._read(name)
        self._changed.set()

    async def run(self) -> None:
        """Looks at the files at intervals, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                for name in self._repository.names:
                    await self.mark(name)
            await self.look()

    async def look(self) -> None:
        """Takes over what has changed since the last look."""
        for name in self._repository.names:
            if self._has_changed(name):
                before = self._repository.default(name)
                self._read(name)
                marked, default = await self.mark(name), self._repository.default(name)
                if default is not before and default is not None:
                    log.info(
                        "model %s: version %s is the default; %d live streams move", name, default.spec.version, marked
                    )

    def _has_changed(self, name: str) -> bool:
        """Whether a file of a model was replaced since it was looked at."""
        changed = False
        for file in (promotion.FILE, model_settings.FILE):
            path = self._root / name / file
            stamp = _stamp(path)
            changed |= self._stamps.get(path) != stamp
            self._stamps[path] = stamp
        return changed

    def _read(self, name: str) -> None:
        """Takes over what the files of a model say."""
        try:
            promoted = promotion.read_promotion(self._root / name).version
            settings = self.settings_of(name)
        except ContractBroken as error:
            log.error("%s; what held before holds", error)
            return
        self._repository.set_promoted(name, promoted)
        self._repository.set_settings(name, settings)
        kept = {served.slots.raw.steps if served.slots.raw else 0 for served in self._repository.versions(name)}
        if settings.raw_steps and kept != {settings.raw_steps}:
            log.warning(
                "model %s keeps %s timesteps a stream until the server is restarted", name, max(kept, default=0)
            )


async def _nothing(_: str) -> int:
    return 0


def _stamp(path: Path) -> Stamp:
    """Changes whenever a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
