"""Adds models to a serving process and removes them, as the catalog decides: see `runtime.model_catalog`."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.core.self_check import SelfCheck
from tidegate.rpc.time_slice import TimeSlice
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.model_checker import CheckedModel
from tidegate.runtime.model_load import load_model
from tidegate.runtime.repository import Limits, ModelPhase, Repository, ServedModel, make_served
from tidegate.runtime.senders import Senders
from tidegate.runtime.stream_registry import StreamRegistry
from tidegate.runtime.version_set import ModelRefused, VersionSet

log = logging.getLogger("tidegate.models")

# How often it is checked whether the last stream of a model that goes has ended, in seconds.
WATCH_SECONDS = 0.25


class ModelHost:
    """The models of one process.

    Args:
        repository: where they are looked up.
        metrics: the metrics of the process.
        limits: the limits of each model.
        start_task: runs the batcher of a model until the returned function is called; if it ends before, so does the
            server.
        on_change: called when the models or their metrics have changed.

    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        limits: Limits,
        start_task: Callable[[ServedModel], Callable[[], None]],
        on_change: Callable[[], None],
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._limits = limits
        self._senders = Senders()
        self._start_task = start_task
        self._on_change = on_change
        self._stop_task: dict[ServedModel, Callable[[], None]] = {}
        self._lock = asyncio.Lock()
        self._loading = asyncio.Semaphore(usable_cores())
        self.registry: StreamRegistry | None = None  # None until streams can be opened

    def __repr__(self) -> str:
        return f"<ModelHost {self._repository!r}>"

    async def prepare(self, model: CheckedModel) -> None:
        """Loads a version and warms it up. It is not served yet.

        Does nothing when it is loaded. Raises ModelRefused.
        """
        await self._prepare([model])

    async def _prepare(self, models: Sequence[CheckedModel]) -> None:
        """Does what `prepare` does for several versions, which are loaded side by side and added in their order."""
        async with self._lock:
            missing = [model for model in models if not self._is_loaded(model)]
            loaded = await asyncio.gather(*map(self._load, missing), return_exceptions=True)
            try:
                for model, served in zip(missing, loaded, strict=True):
                    if isinstance(served, BaseException):
                        raise served
                    self._add(model, served)
            except (ContractBroken, MemoryError) as error:
                raise ModelRefused(str(error)) from error
            finally:
                if missing:
                    self._on_change()

    def _add(self, model: CheckedModel, served: ServedModel) -> None:
        """Adds a version that was just loaded."""
        self._metrics.add_model(served.metrics)
        self._repository.add(served)
        self._stop_task[served] = self._start_task(served)
        log.info("model %s loaded, fingerprint %s, %s", model.title, model.fingerprint[:12], model.sizes)

    def _is_loaded(self, model: CheckedModel) -> bool:
        """Whether a version is loaded. Raises ModelRefused when it is loaded with other weights."""
        loaded = self._repository.loaded(model.title)
        if loaded is None:
            return False
        if loaded.spec.fingerprint != model.fingerprint:
            raise ModelRefused(f"{model.title} is loaded with other weights")
        if loaded.phase is ModelPhase.DROPPED:
            loaded.phase = ModelPhase.LOADED
        return True

    async def apply(self, versions: VersionSet) -> None:
        """Serves and retires what the catalog says, and drops all else."""
        models = [target.model for target in versions.targets]
        await self._prepare([model for model in models if self._repository.loaded(model.title) is None])
        self._repository.on_demand = versions.on_demand
        phases = {target.model.title: ModelPhase(target.phase) for target in versions.targets}
        for served in self._repository:
            served.phase = phases.get(served.spec.title, ModelPhase.DROPPED)
            if served.phase is not ModelPhase.SERVING and self.registry is not None:
                self.registry.park_unopened(served.slots)
        self._on_change()

    async def unused(self) -> list[str]:
        """Which versions have no stream here that a call has open or that is not stored."""
        return [served.spec.title for served in self._repository if await self._is_unused(served)]

    async def run(self) -> None:
        """Frees what was dropped, after its last stream has ended, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for served in self._repository:
                if served.phase is ModelPhase.DROPPED and await self._is_unused(served):
                    self._free(served)

    async def _load(self, model: CheckedModel) -> ServedModel:
        """Loads a version, in a thread: onnxruntime releases the GIL while it loads and runs, and takes nearly all of the time."""
        async with self._loading:
            return await asyncio.to_thread(self._load_now, model)

    def _load_now(self, model: CheckedModel) -> ServedModel:
        loaded = load_model(model.name, model.version, Path(model.folder), model.device)
        if (got := loaded.model.spec.fingerprint) != model.fingerprint:
            raise ContractBroken(model.title, f"its copy has fingerprint {got}, expected {model.fingerprint}")
        return make_served(loaded, SelfCheck(**model.check), self._limits, self._senders)

    async def _is_unused(self, served: ServedModel) -> bool:
        """Whether no stream needs a model."""
        if len(served.slots) or served.opening:
            return False
        time_slice = TimeSlice()
        # Parked streams that a call has open are in no slot.
        for stream in [*self.registry.streams] if self.registry is not None else []:
            if stream.slots is served.slots:
                return False
            await time_slice.maybe_yield()
        return not len(served.slots) and not served.opening

    def _free(self, served: ServedModel) -> None:
        """Frees the memory of a model."""
        self._stop_task.pop(served)()
        self._repository.remove(served)
        self._metrics.remove_model(served.metrics)
        if self.registry is not None:
            self.registry.forget_model(served.slots)
        log.info("model %s is unloaded", served.spec.title)
        self._on_change()
