"""Decides which versions are served: it looks at the folder of models, has new versions tried, and tells every process.

The rules of this file:
1. One process decides for all: the supervisor, or the only server. It imports no library that a model needs.
2. A version that is loaded does not change. What every process loads is a private copy of its files, so a file that is
   changed later changes nothing, and a worker that is restarted loads what the others serve.
3. A new version is tried in a process of its own, then loaded by every process, and only then served by any. If one
   step fails, nothing has changed but a count and a line in the log.
4. A version that is removed begins no streams. It is unloaded when no process has a stream of it. A name keeps being
   served: nothing is unloaded when a look at the folder finds no version at all, for then the folder is what is broken.
5. At the start, one bad version refuses all: if the server left it out, its clients would fail later and farther from
   the cause. The error names every bad version.
6. Only current versions are loaded at once, see `runtime.current_versions`. The others are loaded when somebody asks for
   them, by rule 3.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.model_change import ModelAction, ModelChange
from tidegate.runtime.channel import ChannelClosed
from tidegate.runtime.current_versions import current_versions
from tidegate.runtime.exposition import Events
from tidegate.runtime.model_checker import CheckedModel, ModelChecker, TrialLimits
from tidegate.runtime.model_files import (
    SETTLE_SECONDS,
    ModelCopies,
    Settling,
    StillChanging,
    VersionFiles,
    VersionFolders,
    check,
    scan,
)
from tidegate.runtime.model_trials import FILE as TRIALS
from tidegate.runtime.model_trials import ModelTrials
from tidegate.runtime.version_set import Host, ModelRefused, Target, VersionName, VersionSet

log = logging.getLogger("tidegate.models")

# How often a folder that is looked at on demand may change before that is an error.
COPY_TRIES = 10
# How often it is asked whether the last stream of a version has ended, in seconds.
UNLOAD_SECONDS = 0.5


class ModelCatalog:
    """The served versions.

    Args:
        root: the folder of models.
        chosen: what to serve of it, as NAME or NAME/VERSION; empty for all.
        make_checker: starts a process that tries models.
        limits: what a model may take when it is tried.
        bytes_max: how large the files of a version may be, in bytes.
        poll_s: how often the folder is looked at, in seconds; 0 for never.
        data_dir: the server's folder: for what trials found, and for private copies where the system has no folder for
            temporary files. None to write nothing.

    Attributes:
        load_s: how long a process may take to load a version, in seconds.
        events: what became of versions, as counts.

    Raises:
        StartFailed: there is no folder for private copies.

    """

    def __init__(
        self,
        root: Path,
        chosen: Sequence[str],
        make_checker: Callable[[], ModelChecker],
        limits: TrialLimits,
        *,
        bytes_max: int,
        poll_s: float,
        data_dir: Path | None,
    ) -> None:
        self._root = root
        self._chosen = {*chosen}
        self._copies = VersionFolders() if data_dir is None else ModelCopies(data_dir)
        self._trials = ModelTrials(make_checker, limits, None if data_dir is None else data_dir / TRIALS)
        self._bytes_max = bytes_max
        self.load_s = 2 * limits.load_s  # a process loads what was tried, beside serving
        self._poll_s = poll_s
        self._hosts: list[Host] = []
        self._targets: dict[str, Target] = {}
        self._on_demand: dict[str, VersionFiles] = {}  # what may be loaded when somebody asks for it
        self._files: dict[str, VersionFiles] = {}  # of each target, as they were copied
        self._refused: dict[str, VersionFiles] = {}  # not tried again until they change
        self._changed: dict[str, VersionFiles] = {}  # files of loaded versions that were changed, and told
        self._unloaded: set[str] = set()  # by a call: not loaded again by a look at the folder
        self._settling = Settling()
        self._lock = asyncio.Lock()  # one change at a time
        self._changing: set[asyncio.Task[list[ModelChange]]] = set()
        self.events = Events(
            "tidegate_model_loads", "Versions that were loaded, refused or unloaded.", ("model", "version", "outcome")
        )

    def __repr__(self) -> str:
        return f"<ModelCatalog {self._root}: {', '.join(self._targets)}>"

    @property
    def versions(self) -> VersionSet:
        """What every process is to have."""
        on_demand = [VersionName(files.name, files.version) for files in self._on_demand.values()]
        return VersionSet([*self._targets.values()], on_demand)

    async def start(self, *, all_versions: bool = False) -> None:
        """Tries the current versions of those that were chosen, or all of them.

        Raises ContractBroken when there is none, or one cannot be served; then it names all that cannot.
        """
        try:
            found = self._wanted(await asyncio.to_thread(scan, self._root) if self._root.is_dir() else [])
        except OSError as error:
            raise ContractBroken(str(self._root), f"cannot be listed: {error.strerror}") from error
        if not all_versions:
            found = self._leave_on_demand(found)
        results = await self._try_all(found)
        broken = [result for result in results if isinstance(result, ContractBroken | OSError)]
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ContractBroken | OSError):
                raise result
        if len(broken) == 1 and isinstance(broken[0], ContractBroken):
            raise broken[0]
        if broken:
            raise ContractBroken(f"{len(broken)} models cannot be served", "; ".join(map(str, broken)))
        for files, model in zip(found, results, strict=True):
            assert isinstance(model, CheckedModel)
            self._add(files, model)
        if self._on_demand:
            log.info("older versions are loaded when somebody asks for them: %s", ", ".join(self._on_demand))

    async def close(self) -> None:
        """Ends what `start` would use, and removes the private copies."""
        await self._trials.end()
        self._copies.close()

    async def join(self, host: Host) -> None:
        """Adds a process, and has it catch up with what was decided while it started."""
        async with self._lock:
            self._hosts.append(host)
            await self._apply([host])
            await self._trials.save()  # its folder is there by now

    def leave(self, host: Host) -> None:
        """Removes a process that has ended."""
        self._hosts = [each for each in self._hosts if each is not host]

    async def run(self) -> None:
        """Looks at the folder at intervals, and unloads what has no streams any more, until cancelled."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(UNLOAD_SECONDS)
            async with self._lock:
                await self._unload_unused()
                pause = SETTLE_SECONDS / 2 if self._settling.is_changing(loop.time()) else self._poll_s
                if self._poll_s and loop.time() - looked >= min(self._poll_s, pause):
                    looked = loop.time()
                    await self._look(settled_only=True)

    async def change(self, action: ModelAction, name: str = "", version: str = "") -> list[ModelChange]:
        """Does what an operator asks for, or a stream. Returns what became of each version, none when there is none.

        It goes on when the caller does not wait for it: all processes must get the same.
        """
        match action:
            case "reload":
                task = asyncio.create_task(self.reload())
            case "load":
                task = asyncio.create_task(self.load(name, version))
            case "unload":
                task = asyncio.create_task(self.unload(name, version))
            case "demand":
                task = asyncio.create_task(self.demand(name, version))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def reload(self) -> list[ModelChange]:
        """Looks at the folder now. What was refused before is tried again."""
        async with self._lock:
            self._refused.clear()
            return await self._look(settled_only=False)

    async def load(self, name: str, version: str) -> list[ModelChange]:
        """Loads a version, also one that was not chosen; without a version, all of a name. None when there is none."""
        async with self._lock:
            found = [
                files
                for files in await asyncio.to_thread(scan, self._root)
                if files.name == name and version in ("", files.version)
            ]
            for files in found:
                self._unloaded.discard(files.title)
                self._refused.pop(files.title, None)
                if not self._is_chosen(files):
                    self._chosen.add(files.title)
            return await self._load_all(found)

    async def demand(self, name: str, version: str) -> list[ModelChange]:
        """Loads a version that a stream needs. None when it is loaded already, or may not be loaded this way."""
        async with self._lock:
            files = self._on_demand.get(f"{name}/{version}")
            return [] if files is None else await self._load_all([files])

    async def unload(self, name: str, version: str) -> list[ModelChange]:
        """Unloads a version, without a version all of a name, until it is loaded by a call or the server is restarted.

        None when there is none.
        """
        async with self._lock:
            titles = [
                title
                for title, target in self._targets.items()
                if target.phase == "serving" and target.model.name == name and version in ("", target.model.version)
            ]
            resting = [
                files for files in self._on_demand.values() if files.name == name and version in ("", files.version)
            ]
            for files in resting:
                del self._on_demand[files.title]
            # Another version of the model may be the newest now.
            stay = [files for title, files in self._files.items() if self._is_serving(title) and title not in titles]
            following = self._leave_on_demand([*stay, *self._on_demand.values()])
            await self._load_all([files for files in following if not self._is_serving(files.title)])
            changes = await self._retire(titles)
            changes += [ModelChange(files.name, files.version, "unloading") for files in resting]
            self._unloaded.update(f"{each.name}/{each.version}" for each in changes if each.outcome == "unloading")
            return changes

    # --- with the lock held

    async def _look(self, *, settled_only: bool) -> list[ModelChange]:
        """Loads what is new and retires what is gone."""
        try:
            found = {files.title: files for files in await asyncio.to_thread(scan, self._root)}
        except OSError as error:
            log.error("the models in %s cannot be listed, and stay as they are: %s", self._root, error.strerror)
            return []
        if not found:
            log.error("there is no model in %s any more; those that are loaded stay", self._root)
            return []
        settled = self._settling.look(found, self._targets, asyncio.get_running_loop().time())
        self._tell_changed(found)
        loadable = [
            files
            for files in self._wanted(found.values(), at_start=False)
            if files.title not in self._unloaded
            and self._refused.get(files.title) != files
            and (not settled_only or files.title in {*settled, *self._targets, *self._on_demand})
        ]
        new = [files for files in self._leave_on_demand(loadable) if not self._is_serving(files.title)]
        gone = [
            title
            for title, target in self._targets.items()
            if target.phase == "serving" and title not in found and (title in settled or not settled_only)
        ]
        self._unloaded &= found.keys()
        self._forget_events(found)
        return [*await self._load_all(new), *await self._retire(gone)]

    async def _load_all(self, found: Sequence[VersionFiles]) -> list[ModelChange]:
        """Has versions tried, loaded by every process, and served."""
        changes = []
        new = [files for files in found if files.title not in self._targets]
        results = dict(zip(new, await self._try_all(new), strict=True)) if new else {}
        for files in found:
            model = results[files] if files in results else self._reusable(files)
            if isinstance(model, CheckedModel) and files.title in self._targets:
                self._targets[files.title] = Target(model, "serving")
                changes.append(ModelChange(files.name, files.version, "loaded"))
                continue
            try:
                if isinstance(model, BaseException):
                    raise model
                await self._prepare(model)
            except (ContractBroken, ModelRefused, OSError) as error:
                changes.append(self._refuse(files, str(error)))
                if isinstance(model, CheckedModel):
                    await self._apply(self._hosts)  # those that have loaded it drop it
                    self._copies.remove(Path(model.folder))
                continue
            self._add(files, model)
            changes.append(ModelChange(files.name, files.version, "loaded"))
            log.info("model %s is served, fingerprint %s, %s", files.title, model.fingerprint[:12], model.sizes)
        await self._apply(self._hosts)
        return changes

    def _leave_on_demand(self, found: Sequence[VersionFiles]) -> list[VersionFiles]:
        """Leaves what need not be loaded at once for when somebody asks for it. Returns the rest."""
        current = current_versions(self._root, self._chosen, found)
        self._on_demand = {
            files.title: files for files in found if files.title not in current and files.title not in self._targets
        }
        return [files for files in found if files.title not in self._on_demand]

    async def _try_all(self, found: Sequence[VersionFiles]) -> list[CheckedModel | BaseException]:
        """Has versions tried side by side. Returns what is known of each, or why it cannot be served."""
        try:
            return await asyncio.gather(*(self._try(files) for files in found), return_exceptions=True)
        finally:
            await self._trials.end()

    async def _try(self, files: VersionFiles) -> CheckedModel:
        """Copies a version and has the copy tried. Raises ContractBroken, and OSError when it is gone."""
        check(files, self._bytes_max)
        for tries_left in reversed(range(COPY_TRIES)):
            try:
                folder = await asyncio.to_thread(self._copies.add, files)
                break
            except StillChanging:
                if not tries_left:
                    raise ContractBroken(
                        files.title, "its files go on changing; write them elsewhere and rename their folder"
                    ) from None
                await asyncio.sleep(SETTLE_SECONDS / 2)
                found = [each for each in await asyncio.to_thread(scan, self._root) if each.title == files.title]
                if not found:
                    raise ContractBroken(files.title, "it was removed while it was read") from None
                files = found[0]
                check(files, self._bytes_max)
        try:
            return await self._trials.check(files.name, files.version, folder, files.bytes)
        except BaseException:
            self._copies.remove(folder)
            raise

    def _reusable(self, files: VersionFiles) -> CheckedModel | ContractBroken:
        """A version that is loaded: served, or about to be unloaded."""
        if self._files[files.title] == files:
            return self._targets[files.title].model
        return ContractBroken(files.title, "it is loaded with other files; give changed files another version")

    async def _prepare(self, model: CheckedModel) -> None:
        """Has every process load a version. Raises ModelRefused."""
        results = await asyncio.gather(*(host.prepare(model) for host in self._hosts), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                raise result

    async def _apply(self, hosts: Sequence[Host]) -> None:
        """Tells processes what to serve. One that fails is behind the others until it is restarted."""
        results = await asyncio.gather(*(host.apply(self.versions) for host in hosts), return_exceptions=True)
        for host, result in zip(hosts, results, strict=True):
            if isinstance(result, ModelRefused):
                log.error("%r does not follow: %s", host, result)
            elif isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                raise result

    async def _retire(self, titles: Sequence[str]) -> list[ModelChange]:
        """Begins no more streams of these versions."""
        changes = []
        for title in titles:
            target = self._targets[title]
            name, version = target.model.name, target.model.version
            if sum(each.phase == "serving" for each in self._targets.values()) == 1:
                changes.append(
                    ModelChange(
                        name, version, "refused", f"{title} is the last that is served; stop the server instead"
                    )
                )
                continue
            self._targets[title] = Target(target.model, "retiring")
            changes.append(ModelChange(name, version, "unloading"))
            log.info("model %s begins no more streams, and is unloaded after its last one", title)
        await self._apply(self._hosts)
        return changes

    async def _unload_unused(self) -> None:
        """Unloads the retired versions of which no process has a stream."""
        retired = {title for title, target in self._targets.items() if target.phase == "retiring"}
        if not retired:
            return
        results = await asyncio.gather(*(host.unused() for host in self._hosts), return_exceptions=True)
        for result in results:
            if isinstance(result, list):
                retired &= {*result}
            elif not isinstance(result, ChannelClosed):
                raise result
        for title in retired:
            target = self._targets.pop(title)
            del self._files[title]
            self._refused.pop(title, None)  # perhaps only because this one was loaded
            self._copies.remove(Path(target.model.folder))
            self.events.add(target.model.name, target.model.version, "unloaded")
        if retired:
            # Before the hosts are told: once a version has gone, nobody still finds its counts.
            with suppress(OSError):
                self._forget_events(files.title for files in await asyncio.to_thread(scan, self._root))
            await self._apply(self._hosts)

    def _add(self, files: VersionFiles, model: CheckedModel) -> None:
        self._targets[files.title] = Target(model, "serving")
        self._files[files.title] = files
        self._on_demand.pop(files.title, None)
        self.events.add(files.name, files.version, "loaded")
        for sentence in model.warnings:
            log.warning("model %s: %s", model.title, sentence)

    def _refuse(self, files: VersionFiles, reason: str) -> ModelChange:
        self._refused[files.title] = files
        self._on_demand.pop(files.title, None)
        self.events.add(files.name, files.version, "refused")
        log.error("model %s is refused, and what is served stays: %s", files.title, reason)
        return ModelChange(files.name, files.version, "refused", reason)

    def _is_serving(self, title: str) -> bool:
        target = self._targets.get(title)
        return target is not None and target.phase == "serving"

    def _tell_changed(self, found: dict[str, VersionFiles]) -> None:
        """Logs once that the files of a loaded version were changed."""
        for title, files in self._files.items():
            now = found.get(title, files)
            if now != files and self._changed.get(title) != now:
                log.warning(
                    "model %s: its files were changed and the loaded ones stay; give changed files another version",
                    title,
                )
                self._changed[title] = now

    def _forget_events(self, found: Iterable[str]) -> None:
        """Reports the counts of a version no more that is neither on disk nor loaded."""
        known = {*found, *self._targets}
        self.events.counts = {
            labels: number for labels, number in self.events.counts.items() if f"{labels[0]}/{labels[1]}" in known
        }

    def _is_chosen(self, files: VersionFiles) -> bool:
        return not self._chosen or files.name in self._chosen or files.title in self._chosen

    def _wanted(self, found: Iterable[VersionFiles], *, at_start: bool = True) -> list[VersionFiles]:
        """The versions that were chosen. At the start, raises ContractBroken when one of them is not there."""
        wanted = [files for files in found if self._is_chosen(files)]
        if at_start:
            if not wanted and not self._chosen:
                raise ContractBroken(str(self._root), "no model found, expected <name>/<version>/model.onnx below it")
            missing = self._chosen - {files.name for files in wanted} - {files.title for files in wanted}
            if missing:
                raise ContractBroken(str(self._root), f"--load names {', '.join(sorted(missing))}, which is not there")
        return wanted
