"""The models on disk, `<name>/<version>/model.onnx`: loads, checks, warms up and looks up."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tidegate.core.engine import Engine
from tidegate.core.errors import ContractBroken, ModelNotFound, ModelNotNamed
from tidegate.core.model import Model
from tidegate.core.self_check import SelfCheck, check_model, describe_check, describe_sizes
from tidegate.core.slots import Slots
from tidegate.core.spec import Spec
from tidegate.rpc.backend import ModelInfo
from tidegate.runtime.batcher import Batcher
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.metrics import Metrics, ModelMetrics
from tidegate.runtime.model_digest import digest_model

log = logging.getLogger("tidegate.repository")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for each model: live streams, remembered answers of a stream, timesteps in a batch and in the queue."""

    live_max: int
    answers: int
    batch_max: int
    queue_max: int


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

    def __init__(self, models: Sequence[ServedModel]) -> None:
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
        for served in self._models:
            if name in ("", served.spec.name) and version in ("", served.spec.version):
                return served
        raise ModelNotFound(name or self._models[0].spec.name, version, titles)


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
        loaded = threads.map(partial(_load, limits.batch_max), paths)
        return Repository([_serve(one, limits, metrics) for one in loaded])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checked model."""

    model: Model
    check: SelfCheck
    card_json: str


def _load(batch_max: int, path: Path) -> _Loaded:
    """Loads a model and checks it. Uses no shared state."""
    name, version = path.parent.parent.name, path.parent.name
    if not version.isdecimal():
        raise ContractBroken(str(path), f"version '{version}' is not a decimal number, expected for example {name}/1")
    if version != str(int(version)):
        raise ContractBroken(str(path), f"version '{version}' begins with a zero, expected {name}/{int(version)}")
    sidecar, card = path.with_name("model.toml"), path.with_name("card.json")
    try:
        digest = digest_model(f"{name}/{version}", path)
        sidecar_text = sidecar.read_text("utf-8") if sidecar.exists() else None
        card_json = card.read_text("utf-8") if card.exists() else ""
    except OSError as error:
        raise ContractBroken(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractBroken(str(path), f"model.toml or card.json beside it is not UTF-8: {error.reason}") from error
    model = Model(name, version, str(path), sidecar_text, digest)
    return _Loaded(model, check_model(model, batch_max, time.perf_counter), card_json)


def _serve(loaded: _Loaded, limits: Limits, metrics: Metrics) -> ServedModel:
    """Creates the slots and the batcher of a model, and logs the result of the check."""
    model, check = loaded.model, loaded.check
    model.limit_batches(check.sizes, limits.batch_max)
    measured = metrics.add_model(model.spec.name, model.spec.version, model.spec.fingerprint)
    measured.batch_invariant = check.batch_invariant
    for sentence in describe_check(check):
        log.warning("model %s: %s", model.spec.title, sentence)
    slots = Slots(model.spec, limits.live_max, limits.answers)
    batcher = Batcher(Engine(model, slots), measured, batch_max=limits.batch_max, queue_max=limits.queue_max)
    log.info(
        "model %s loaded, fingerprint %s, %s",
        model.spec.title,
        model.spec.fingerprint[:12],
        describe_sizes(check, limits.batch_max),
    )
    return ServedModel(model.spec, slots, batcher, measured, loaded.card_json)
