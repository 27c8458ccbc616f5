"""Samples what models get, and reports how far it has moved from their training."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import Protocol

import numpy as np

from tidegate.core.drift import Drift, Floats64
from tidegate.core.engine import Engine
from tidegate.core.spec import Array, Arrays
from tidegate.runtime.metrics import Metric, Metrics

# Ten samples a second are plenty for averages over a day, and cost nothing.
SAMPLE_SECONDS = 0.1


class DriftSampler:
    """The drift of one model, and when it was sampled last."""

    def __init__(self, engine: Engine) -> None:
        self.drift = Drift(engine.model.spec)
        self._engine = engine
        self._sampled_at = monotonic()

    def sample(self) -> None:
        """Adds the last batch, and the last timestep that ran alone, unless they were added before."""
        engine = self._engine
        if not self.drift.measurable or not engine.layout.plain:
            return
        batch, engine.latest = engine.latest, None
        one, engine.latest_one = engine.latest_one, None
        if batch is not None:
            self._add(*batch)
        if one is not None:
            values, outputs = one
            declared = engine.model.spec.outputs
            rows = tuple(
                np.frombuffer(part, output.dtype).reshape(1, *output.shape)
                for part, output in zip(outputs, declared, strict=True)
            )
            self._add(np.frombuffer(values, np.float32)[np.newaxis], rows)

    def _add(self, x: Array, outputs: Arrays) -> None:
        now = monotonic()
        self.drift.add(x, outputs, now - self._sampled_at)
        self._sampled_at = now

    def gauges(self, labels: tuple[str, str], metrics: Metrics) -> Iterator[Metric]:
        """The metrics of a model with these values of `model` and `version`."""
        drift = self.drift
        names = ("model", "version", "feature")
        if drift.features:
            shift, spread = self._readers(labels, drift.features, drift.input_shift, drift.input_spread)
            text = "How far the mean of a feature has moved from the training part, in its standard deviations there."
            yield metrics.gauge("input_shift", text, names, shift)
            text = "The standard deviation of a feature, as a multiple of that in the training part."
            yield metrics.gauge("input_spread", text, names, spread)
        if drift.targets:
            (error,) = self._readers(labels, drift.targets, drift.error_spread)
            text = "The size of the errors of the last forecast, as a multiple of that in training."
            yield metrics.gauge("error_spread", text, ("model", "version", "target"), error)

    @staticmethod
    def _readers(
        labels: tuple[str, str], names: Iterable[str], *read: Callable[[], Floats64]
    ) -> list[Mapping[tuple[str, ...], Callable[[], float]]]:
        return [{(*labels, name): partial(_item, values, place) for place, name in enumerate(names)} for values in read]


class HasDrift(Protocol):
    """A served model."""

    @property
    def drift(self) -> DriftSampler | None:
        """How far its inputs have moved."""


async def watch_drift(models: Iterable[HasDrift]) -> None:
    """Samples models at intervals, until cancelled."""
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        for served in models:
            if served.drift is not None:
                served.drift.sample()


def _item(values: Callable[[], Floats64], place: int) -> float:
    return float(values()[place])
