"""Answers operators about the versions of models: which there are, who uses them, and which one is the default."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from tidegate.core.errors import DefaultNotChanged, ModelNotFound
from tidegate.core.spec import ModelId
from tidegate.rpc.backend import DefaultChange, VersionInfo
from tidegate.runtime.promotion import Promotion, read_promotion, write_promotion
from tidegate.runtime.repository import ModelPhase, Repository, ServedModel
from tidegate.runtime.version_loader import VersionLoader
from tidegate.runtime.version_set import VersionName
from tidegate.runtime.version_watch import VersionWatch
from tidegate.store import ScanFilter, Store

# As many streams as a store reads in some milliseconds.
PAGE_ROWS = 10_000


class VersionService:
    """Lists versions, promotes one, and goes back.

    Args:
        root: the models folder.
        repository: the models.
        loader: loads versions on demand.
        store: where checkpoints are kept.
        watch: takes over what is written.

    """

    def __init__(
        self, root: Path, repository: Repository, loader: VersionLoader, store: Store, watch: VersionWatch
    ) -> None:
        self._root = root
        self._repository = repository
        self._loader = loader
        self._store = store
        self._watch = watch
        self._lock = asyncio.Lock()  # one change at a time in this process

    def __repr__(self) -> str:
        return f"<VersionService of {self._root}>"

    async def versions(self, name: str, tenant: str) -> list[VersionInfo]:
        """The versions of a model, or of all, with a tenant's streams on each; ModelNotFound when it is not served."""
        shown = [served for served in self._repository.shown if name in ("", served.spec.name)]
        if name and not shown:
            raise ModelNotFound(name, "", [served.spec.title for served in self._repository.shown])
        on_demand = [each for each in self._repository.on_demand if name in ("", each.name)]
        live, parked = await self._count_streams(tenant)
        found = [self._info(served, live[served.spec.title], parked[served.spec.title]) for served in shown]
        found += [self._unloaded(each, live[each.title], parked[each.title]) for each in on_demand]
        return sorted(found, key=lambda info: (info.model.name, -int(info.model.version)))

    async def promote(self, name: str, version: str) -> DefaultChange:
        """Makes a version the default; an empty one means the newest, also in future. It is loaded before.

        Raises ModelNotFound, ModelNotNamed, DefaultNotChanged.
        """

        async def choose(default: ServedModel, before: Promotion) -> Promotion:
            if version:
                await self._loader.find(default.spec.name, version)
            if version == before.version:
                return before
            return Promotion(version, (*before.before, default.spec.version))

        return await self._change(name, choose)

    async def rollback(self, name: str) -> DefaultChange:
        """Makes the version the default that was it before the last promotion; else the one before the default.

        It is loaded before. Raises ModelNotFound when there is none, ModelNotNamed, DefaultNotChanged.
        """

        async def choose(default: ServedModel, before: Promotion) -> Promotion:
            chosen = self._previous(default, before)
            await self._loader.find(default.spec.name, chosen.version)
            return chosen

        return await self._change(name, choose)

    def _previous(self, default: ServedModel, before: Promotion) -> Promotion:
        """The choice that a rollback comes to. Raises ModelNotFound when there is no version to go back to."""
        name, current = default.spec.name, default.spec.version
        serving = [each.spec.version for each in self._repository.versions(name) if each.phase is ModelPhase.SERVING]
        versions = [*serving, *(each.version for each in self._repository.on_demand if each.name == name)]
        for place in range(len(before.before) - 1, -1, -1):
            if (version := before.before[place]) in versions and version != current:
                return Promotion(version, before.before[:place])
        older = [version for version in versions if int(version) < int(current)]
        if not older:
            raise ModelNotFound(name, f"before {current}", versions)
        return Promotion(max(older, key=int))

    async def _change(
        self, name: str, choose: Callable[[ServedModel, Promotion], Awaitable[Promotion]]
    ) -> DefaultChange:
        """Writes another choice of the default version, and takes it over."""
        async with self._lock:
            before = self._repository.find(name, "")
            folder = self._root / before.spec.name
            choice = await choose(before, read_promotion(folder))
            try:
                write_promotion(folder, choice)
            except OSError as error:
                raise DefaultNotChanged(before.spec.name, f"{folder} cannot be written: {error.strerror}") from error
            await self._watch.look()
            after = self._repository.find(before.spec.name, "")
            return DefaultChange(before.spec.name, after.spec.version, before.spec.version)

    async def _count_streams(self, tenant: str) -> tuple[Counter[str], Counter[str]]:
        """How many streams of a tenant are live and parked, by the title of their version, whichever server has them."""
        live: Counter[str] = Counter()
        parked: Counter[str] = Counter()
        after: str | None = ""
        while after is not None:
            page, after = await self._store.scan(ScanFilter(tenant), after, PAGE_ROWS)
            for head in page:
                if not head.tombstone:
                    (live if head.live else parked)[head.model.title] += 1
            await asyncio.sleep(0)
        return live, parked

    def _unloaded(self, version: VersionName, live: int, parked: int) -> VersionInfo:
        """A version that is not loaded: its fingerprint is not known, and it is neither the default nor a shadow."""
        settings = self._repository.settings(version.name)
        return VersionInfo(
            ModelId(*version, ""),
            is_default=False,
            is_promoted=False,
            policy=settings.policy,
            rewarm_steps=settings.raw_steps,
            shadow_share=0.0,
            live_streams=live,
            parked_streams=parked,
            on_demand=True,
        )

    def _info(self, served: ServedModel, live: int, parked: int) -> VersionInfo:
        name = served.spec.name
        settings = self._repository.settings(name)
        return VersionInfo(
            served.spec.id,
            is_default=served is self._repository.default(name),
            is_promoted=served.spec.version == self._repository.promoted(name),
            policy=settings.policy,
            rewarm_steps=settings.raw_steps,
            shadow_share=settings.shadow.share if served is self._repository.shadow(name) else 0.0,
            live_streams=live,
            parked_streams=parked,
        )
