"""Follows what is written about the versions of a model into the models folder: the promoted version, and the settings.

Every worker has a watch of its own. A file is read again when it was replaced, which a worker that wrote it itself need
not wait for. A file with mistakes changes nothing but a line in the log: what was read before holds.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from tidegate.core.errors import ContractBroken, Stopping
from tidegate.runtime import model_settings, promotion
from tidegate.runtime.model_files import SETTINGS
from tidegate.runtime.model_settings import ModelSettings
from tidegate.runtime.repository import ModelPhase, Repository, ServedModel
from tidegate.runtime.shadow import Shadows
from tidegate.runtime.stream_mover import StreamMover
from tidegate.runtime.version_loader import VersionLoader

log = logging.getLogger("tidegate.versions")

# To look at two files of each model takes some microseconds.
POLL_SECONDS = 0.5

Stamp = tuple[int, int, int] | None


class VersionWatch:
    """Follows the files of every model. `run` is its task.

    Args:
        root: the models folder.
        repository: the models.
        loader: loads a version that was promoted, or made the shadow, and that waits for somebody to ask for it.
        policy, rewarm_steps: the settings of models without a file.

    """

    def __init__(
        self, root: Path, repository: Repository, loader: VersionLoader, policy: str, rewarm_steps: int
    ) -> None:
        self._root = root
        self._repository = repository
        self._loader = loader
        self._default = ModelSettings.model_validate({"policy": policy, "rewarm_steps": rewarm_steps})
        self._shadows = Shadows(repository)
        self._mover: StreamMover
        self._stamps: dict[Path, Stamp] = {}
        self._served: dict[
            str, list[tuple[ServedModel, ModelPhase]]
        ] = {}  # the versions of each model at the last look

    def __repr__(self) -> str:
        return f"<VersionWatch of {self._root}>"

    def settings_of(self, name: str) -> ModelSettings:
        """The settings of a model that is being loaded. Raises ContractBroken when one of its files has mistakes."""
        settings = model_settings.read_settings(self._root / name, self._default)
        self._repository.set_settings(name, settings)
        self._repository.set_promoted(name, promotion.read_promotion(self._root / name).version)
        return settings

    async def start(self, mover: StreamMover) -> None:
        """Begins: no stream may be opened before."""
        self._mover = mover
        mover.look = self._loader.look = self.look
        await self.look()

    async def run(self) -> None:
        """Looks at the files at intervals, until cancelled."""
        try:
            while True:
                await asyncio.sleep(POLL_SECONDS)
                await self.look()
                await self._load_chosen()
        finally:
            self._shadows.close()

    async def look(self) -> None:
        """Takes over what has changed since the last look: files, and versions that have come or gone."""
        for name in self._repository.names:
            before = self._repository.default(name)
            served = [(each, each.phase) for each in self._repository.versions(name)]
            if changed := self._has_changed(name):
                self._read(name)
            if changed or served != self._served.get(name):
                self._served[name] = served
                self._shadows.refresh(name)
                marked, default = await self._mover.mark(name), self._repository.default(name)
                if marked or default is not before:
                    title = "nothing" if default is None else default.spec.title
                    log.info("%s is the default; %d live streams move there", title, marked)

    async def _load_chosen(self) -> None:
        """Loads what the files of a model choose: not in `look`, for which streams wait."""
        for name in self._repository.names:
            shadow = self._repository.settings(name).shadow
            for version in (self._repository.promoted(name), shadow.version if shadow.share else ""):
                with suppress(Stopping):
                    await self._loader.load(name, version)

    def _has_changed(self, name: str) -> bool:
        """Whether a file of a model was replaced since it was looked at."""
        changed = False
        for file in (promotion.FILE, SETTINGS):
            path = self._root / name / file
            stamp = _stamp(path)
            changed |= self._stamps.get(path) != stamp
            self._stamps[path] = stamp
        return changed

    def _read(self, name: str) -> None:
        """Takes over what the files of a model say."""
        try:
            settings = self.settings_of(name)
        except ContractBroken as error:
            log.error("%s; what held before holds", error)
            return
        kept = {served.slots.raw.steps if served.slots.raw else 0 for served in self._repository.versions(name)}
        if settings.raw_steps and kept != {settings.raw_steps}:
            log.warning(
                "model %s keeps %s timesteps a stream until the server is restarted", name, max(kept, default=0)
            )


def _stamp(path: Path) -> Stamp:
    """Changes whenever a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
