"""The loaded models of a process: looks them up. `runtime.model_host` adds and removes them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

from tidegate.core.engine import Engine
from tidegate.core.errors import ModelNotFound, ModelNotNamed
from tidegate.core.self_check import SelfCheck
from tidegate.core.slots import Slots
from tidegate.core.spec import Spec
from tidegate.core.version_choice import default_version, shadow_version
from tidegate.rpc.backend import ModelInfo
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.drift_watch import DriftSampler
from tidegate.runtime.metrics import ModelMetrics
from tidegate.runtime.model_load import LoadedModel
from tidegate.runtime.model_settings import ModelSettings
from tidegate.runtime.senders import Senders
from tidegate.runtime.version_set import VersionName

DEFAULT_SETTINGS = ModelSettings()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for each model: live streams, remembered answers of a stream, timesteps in a batch and in the queue."""

    live_max: int
    answers: int
    batch_max: int
    queue_max: int
    settings_of: Callable[[str], ModelSettings] = lambda _: DEFAULT_SETTINGS
    """The settings of a model, by its name."""


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
    drift: DriftSampler | None = None

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

    Attributes:
        on_demand: the versions that are not loaded before somebody asks for them; see `runtime.version_loader`.

    """

    def __init__(self, models: Sequence[ServedModel] = ()) -> None:
        self._settings: dict[str, ModelSettings] = {}
        self._promoted: dict[str, str] = {}  # the promoted version of each name that has one
        self._models: list[ServedModel] = []
        self._by_slots: dict[int, ServedModel] = {}
        self.on_demand: Sequence[VersionName] = ()
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
        name = name or self.only_name
        if not name:
            raise ModelNotNamed([served.spec.title for served in serving])
        if not version and (newest := self.default(name)) is not None:
            return newest
        for served in self._models if begun else serving:
            if served.spec.name == name and served.spec.version == version:
                return served
        raise ModelNotFound(name, version, [served.spec.title for served in serving])

    def default(self, name: str) -> ServedModel | None:
        """The version of a model that a stream gets when it names none: the promoted one, else the newest that is served.

        Also the newest when the promoted one is not served any more.
        """
        serving = self._serving(name)
        version = default_version([*serving], self._promoted.get(name, ""))
        return serving[version] if version is not None else None

    @property
    def only_name(self) -> str:
        """The name of the only model that is served; empty when there are several."""
        names = {served.spec.name for served in self._models if served.phase is ModelPhase.SERVING}
        return names.pop() if len(names) == 1 else ""

    @property
    def names(self) -> list[str]:
        """The names of the models, each once."""
        return list(dict.fromkeys(served.spec.name for served in self._models))

    def versions(self, name: str) -> list[ServedModel]:
        """The loaded versions of a model, newest first, in whatever phase."""
        return [served for served in self._models if served.spec.name == name]

    def _serving(self, name: str) -> dict[str, ServedModel]:
        """The versions of a model that are served, newest first."""
        return {each.spec.version: each for each in self.versions(name) if each.phase is ModelPhase.SERVING}

    def shadow(self, name: str) -> ServedModel | None:
        """The version of a model that is its shadow: the one of the settings, else the newest that is not the default."""
        settings, serving = self.settings(name).shadow, self._serving(name)
        if not settings.share:
            return None
        default = default_version([*serving], self._promoted.get(name, ""))
        version = shadow_version([*serving], default, settings.version)
        return serving[version] if version is not None else None

    def promoted(self, name: str) -> str:
        """The promoted version of a model; empty when the newest is the default."""
        return self._promoted.get(name, "")

    def set_promoted(self, name: str, version: str) -> None:
        """Sets the default version of a model; empty for the newest."""
        self._promoted[name] = version

    def settings(self, name: str) -> ModelSettings:
        """The settings of a model."""
        return self._settings.get(name, DEFAULT_SETTINGS)

    def set_settings(self, name: str, settings: ModelSettings) -> None:
        """Sets the settings of a model. Whether its slots keep timesteps was decided when they were made."""
        self._settings[name] = settings


def make_served(loaded: LoadedModel, check: SelfCheck, limits: Limits, senders: Senders | None = None) -> ServedModel:
    """Creates the slots and the batcher of a model, which also warms it up. `check` is what was found when it was tried."""
    model = loaded.model
    model.limit_batches(check.sizes, limits.batch_max)
    measured = ModelMetrics(model.spec.name, model.spec.version, model.spec.fingerprint)
    measured.batch_invariant = check.batch_invariant
    slots = Slots(model.spec, limits.live_max, limits.answers, limits.settings_of(model.spec.name).raw_steps)
    engine = Engine(model, slots)
    batcher = Batcher(engine, measured, batch_max=limits.batch_max, queue_max=limits.queue_max, senders=senders)
    drift = DriftSampler(engine)
    measured.more = partial(drift.gauges, measured.labels)
    return ServedModel(model.spec, slots, batcher, measured, loaded.card_json, drift=drift)
