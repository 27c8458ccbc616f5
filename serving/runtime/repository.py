"""The loaded models of a process: looks them up. `runtime.model_host` adds and removes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from tidegate.core.engine import Engine
from tidegate.core.errors import ModelNotFound, ModelNotNamed
from tidegate.core.self_check import SelfCheck
from tidegate.core.slots import Slots
from tidegate.core.spec import Spec
from tidegate.rpc.backend import ModelInfo
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.metrics import ModelMetrics
from tidegate.runtime.model_load import LoadedModel


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for each model: live streams, remembered answers of a stream, timesteps in a batch and in the queue."""

    live_max: int
    answers: int
    batch_max: int
    queue_max: int


class ModelPhase(Enum):
    """Where a version is in its life in this process."""

    LOADED = "loaded"  # not served yet: other workers may still be loading it
    SERVING = "serving"
    RETIRING = "retiring"  # begins no streams; those that there are go on, and may be opened again
    DROPPED = "dropped"  # is looked up no more; its memory goes with its last stream here


@dataclass(slots=True, eq=False)
class ServedModel:
    """A loaded model: its description, its slots, its batcher, its metrics, its card and its phase.

    `opening` is how many calls are about to open a stream of it.
    """

    spec: Spec
    slots: Slots
    batcher: Batcher
    metrics: ModelMetrics
    card_json: str
    phase: ModelPhase = ModelPhase.LOADED
    opening: int = 0

    @property
    def info(self) -> ModelInfo:
        """The model as callers see it."""
        return ModelInfo(self.spec, self.metrics.batch_invariant, self.card_json)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the model in memory while a stream of it is opened."""
        self.opening += 1
        try:
            yield
        finally:
            self.opening -= 1


class Repository:
    """The loaded models, in the order of their names, newest version first.

    An iteration sees the models of its start: `add` and `remove` replace the list.
    """

    def __init__(self, models: Sequence[ServedModel] = ()) -> None:
        self._models: list[ServedModel] = []
        self._by_slots: dict[int, ServedModel] = {}
        for served in models:
            self.add(served)

    def __repr__(self) -> str:
        return f"<Repository: {', '.join(served.spec.title for served in self._models)}>"

    def __iter__(self) -> Iterator[ServedModel]:
        """All that have streams here, or may get some."""
        return iter(self._models)

    def __contains__(self, slots: Slots) -> bool:
        """Whether the model with these slots is loaded."""
        return id(slots) in self._by_slots

    @property
    def shown(self) -> list[ServedModel]:
        """Those that callers may name."""
        return [served for served in self._models if served.phase in (ModelPhase.SERVING, ModelPhase.RETIRING)]

    def add(self, served: ServedModel) -> None:
        """Adds a model."""
        self._models = sorted([*self._models, served], key=lambda each: (each.spec.name, -int(each.spec.version)))
        self._by_slots[id(served.slots)] = served

    def remove(self, served: ServedModel) -> None:
        """Removes a model that has no streams here."""
        self._models = [each for each in self._models if each is not served]
        del self._by_slots[id(served.slots)]

    def of(self, slots: Slots) -> ServedModel:
        """The model with these slots."""
        return self._by_slots[id(slots)]

    def loaded(self, title: str) -> ServedModel | None:
        """A version, whatever its phase."""
        return next((each for each in self._models if each.spec.title == title), None)

    def find(self, name: str, version: str, *, begun: bool = False) -> ServedModel:
        """One model. An empty name means the only model, an empty version the one that `default` says.

        `begun` tells that a stream has begun under it, or that none will: then it need not be the newest, nor serving.

        Raises:
            ModelNotFound: it is not served.
            ModelNotNamed: no name was given and several models are served.

        """
        serving = [served for served in self._models if served.phase is ModelPhase.SERVING]
        if not name:
            names = {served.spec.name for served in serving}
            if len(names) != 1:
                raise ModelNotNamed([served.spec.title for served in serving])
            (name,) = names
        if not version and (newest := self.default(name)) is not None:
            return newest
        for served in self._models if begun else serving:
            if served.spec.name == name and served.spec.version == version:
                return served
        raise ModelNotFound(name, version, [served.spec.title for served in serving])

    def default(self, name: str) -> ServedModel | None:
        """The version of a model that a new stream gets when it names none: the newest that is served."""
        versions = [each for each in self._models if each.spec.name == name and each.phase is ModelPhase.SERVING]
        return versions[0] if versions else None


def make_served(loaded: LoadedModel, check: SelfCheck, limits: Limits) -> ServedModel:
    """Creates the slots and the batcher of a model, which also warms it up. `check` is what was found when it was tried."""
    model = loaded.model
    model.limit_batches(check.sizes, limits.batch_max)
    measured = ModelMetrics(model.spec.name, model.spec.version, model.spec.fingerprint)
    measured.batch_invariant = check.batch_invariant
    slots = Slots(model.spec, limits.live_max, limits.answers)
    batcher = Batcher(Engine(model, slots), measured, batch_max=limits.batch_max, queue_max=limits.queue_max)
    return ServedModel(model.spec, slots, batcher, measured, loaded.card_json)
