"""The models on disk, `<name>/<version>/model.onnx`: loads, checks, warms up and looks up."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tidegate.core.engine import Engine
from tidegate.core.errors import ContractBroken, ModelNotFound, ModelNotNamed
from tidegate.core.model import Model
from tidegate.core.self_check import batch_variant_sizes
from tidegate.core.slots import Slots
from tidegate.core.spec import Ints, Spec
from tidegate.rpc.backend import ModelInfo
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.metrics import Metrics, ModelMetrics
from tidegate.runtime.model_settings import ModelSettings, read_settings
from tidegate.runtime.promotion import read_promotion

log = logging.getLogger("tidegate.repository")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for each model: live streams, remembered answers of a stream, timesteps in a batch and in the queue."""

    live_max: int
    answers: int
    batch_max: int
    queue_max: int
    settings: ModelSettings = field(default_factory=ModelSettings)
    """Of models without a file of their own."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A served model: its description, its slots, its batcher, its metrics and its card."""

    spec: Spec
    slots: Slots
    batcher: Batcher
    metrics: ModelMetrics
    card_json: str

    @property
    def info(self) -> ModelInfo:
        """The model as callers see it."""
        return ModelInfo(self.spec, self.metrics.batch_invariant, self.card_json)


class Repository:
    """The served models, in the order of their names, newest version first."""

    def __init__(self, models: Sequence[ServedModel], defaults: ModelSettings | None = None) -> None:
        self._settings: dict[str, ModelSettings] = {}
        self._promoted: dict[str, str] = {}  # the promoted version of each name that has one
        self.default_settings = defaults or ModelSettings()
        self._models = sorted(models, key=lambda served: (served.spec.name, -int(served.spec.version)))
        self._by_slots = {id(served.slots): served for served in models}

    def __repr__(self) -> str:
        return f"<Repository: {', '.join(served.spec.title for served in self._models)}>"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def of(self, slots: Slots) -> ServedModel:
        """The model with these slots."""
        return self._by_slots[id(slots)]

    def find(self, name: str, version: str) -> ServedModel:
        """One model. An empty name means the only model, an empty version the newest one.

        Raises:
            ModelNotFound: it is not served.
            ModelNotNamed: no name was given and several models are served.

        """
        titles = [served.spec.title for served in self._models]
        if not name and len({served.spec.name for served in self._models}) != 1:
            raise ModelNotNamed(titles)
        if not version and (default := self.default(name or self._models[0].spec.name)) is not None:
            return default
        for served in self._models:
            if name in ("", served.spec.name) and version in ("", served.spec.version):
                return served
        raise ModelNotFound(name or self._models[0].spec.name, version, titles)

    @property
    def names(self) -> list[str]:
        """The names of the models, each once."""
        return list(dict.fromkeys(served.spec.name for served in self._models))

    def versions(self, name: str) -> list[ServedModel]:
        """The versions of a model, newest first; none when it is not served."""
        return [served for served in self._models if served.spec.name == name]

    def default(self, name: str) -> ServedModel | None:
        """The version of a model that a stream gets when it names none: the promoted one, else the newest.

        Also the newest when the promoted one is not served any more.
        """
        versions = self.versions(name)
        promoted = self._promoted.get(name)
        return next(
            (served for served in versions if served.spec.version == promoted), versions[0] if versions else None
        )

    def promoted(self, name: str) -> str:
        """The promoted version of a model; empty when the newest is the default."""
        return self._promoted.get(name, "")

    def set_promoted(self, name: str, version: str) -> None:
        """Sets the default version of a model; empty for the newest."""
        self._promoted[name] = version

    def settings(self, name: str) -> ModelSettings:
        """The settings of a model."""
        return self._settings.get(name, self.default_settings)

    def set_settings(self, name: str, settings: ModelSettings) -> None:
        """Sets the settings of a model. Whether its slots keep timesteps was decided when they were made."""
        self._settings[name] = settings


def load_repository(root: Path, limits: Limits, metrics: Metrics) -> Repository:
    """Loads, checks and warms up every model under `root`, as many at a time as there are cores.

    Raises:
        ContractBroken: there is no model, or one cannot be served; the first in the order of paths. One bad model stops
            the start: if the server left it out, its clients would fail later and farther from the cause.

    """
    paths = sorted(root.glob("*/*/model.onnx"))
    if not paths:
        raise ContractBroken(str(root), "no model found, expected <name>/<version>/model.onnx below it")
    # onnxruntime releases the GIL while it runs, and takes nearly all of the time.
    with ThreadPoolExecutor(min(len(paths), usable_cores()), thread_name_prefix="load") as threads:
        settings = {name: read_settings(root / name, limits.settings) for name in {path.parts[-3] for path in paths}}
        loaded = threads.map(partial(_load, limits.batch_max), paths)
        served = [_serve(one, limits, metrics, settings[one.model.spec.name].raw_steps) for one in loaded]
    repository = Repository(served, limits.settings)
    for name, read in settings.items():
        repository.set_settings(name, read)
        repository.set_promoted(name, read_promotion(root / name).version)
    return repository


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checked model. `varying` are the batch sizes that change its bits."""

    model: Model
    varying: Ints
    card_json: str


def _load(batch_max: int, path: Path) -> _Loaded:
    """Loads a model and checks it. Uses no shared state."""
    name, version = path.parent.parent.name, path.parent.name
    if not version.isdecimal():
        raise ContractBroken(str(path), f"version '{version}' is not a decimal number, expected for example {name}/1")
    sidecar, card = path.with_name("model.toml"), path.with_name("card.json")
    try:
        graph = path.read_bytes()
        sidecar_text = sidecar.read_text("utf-8") if sidecar.exists() else None
        card_json = card.read_text("utf-8") if card.exists() else ""
    except OSError as error:
        raise ContractBroken(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractBroken(str(path), f"model.toml or card.json beside it is not UTF-8: {error.reason}") from error
    model = Model(name, version, graph, sidecar_text)
    return _Loaded(model, batch_variant_sizes(model, batch_max), card_json)


def _serve(loaded: _Loaded, limits: Limits, metrics: Metrics, raw_steps: int) -> ServedModel:
    """Creates the slots and the batcher of a model, and logs the result of the check."""
    model, varying = loaded.model, loaded.varying
    measured = metrics.add_model(model.spec.name, model.spec.version, model.spec.fingerprint)
    measured.batch_invariant = not varying.size
    if varying.size:
        log.warning(
            "model %s: on this CPU a prediction may change its last bits with the batch it is in (batches of %s); "
            "serve with --batch-max 1 if that matters",
            model.spec.title,
            ", ".join(str(size) for size in varying[:8]),
        )
    slots = Slots(model.spec, limits.live_max, limits.answers, raw_steps)
    batcher = Batcher(Engine(model, slots), measured, batch_max=limits.batch_max, queue_max=limits.queue_max)
    log.info("model %s loaded, fingerprint %s", model.spec.title, model.spec.fingerprint[:12])
    return ServedModel(model.spec, slots, batcher, measured, loaded.card_json)
