"""What a report is made of, and what of it is drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.judging.verdict import duration
from training.publishing.curves import Faulted, Replayed

# More charts of one kind than this say no more, and a hundred targets would be a book.
SHOWN = 4
COLOURS = "abcd"
Json = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What a report is made of."""

    card: Json
    replayed: Replayed
    faulted: Faulted | None = None

    @property
    def table(self) -> list[Json]:
        """The scores, a row for each target and horizon; empty where nothing is forecast."""
        return list(self.card["scores"].get("table", []))

    @property
    def forecasts(self) -> Json | None:
        """The description of the output `forecast`."""
        outputs = self.card["description"]["outputs"]
        return next((output for output in outputs if output["name"] == "forecast"), None)

    def ahead(self, horizon: int) -> str:
        """How far ahead, in words."""
        period_s = self.card["description"]["period_s"]
        return duration(horizon, None if period_s is None else horizon * period_s).replace(" ", "\u00a0")

    def shown(self) -> Iterator[tuple[int, str, str, list[tuple[int, str, str]]]]:
        """The first targets (place, name, unit), each with up to `SHOWN` horizons (place, name, colour) across the range."""
        described = self.forecasts
        if described is None:
            return
        horizons = described["horizons"]
        chosen = sorted({round(place) for place in np.linspace(0, len(horizons) - 1, SHOWN)})
        drawn = [(place, self.ahead(horizons[place]), COLOURS[index]) for index, place in enumerate(chosen)]
        names = zip(described["targets"], described["units"], strict=True)
        for place, (name, unit) in list(enumerate(names))[:SHOWN]:
            yield place, name, unit, drawn


def quantile_levels(material: Material) -> list[float]:
    """The levels of the output `quantiles`; none where there is no such output."""
    outputs = material.card["description"]["outputs"]
    return next((list(output["quantiles"]) for output in outputs if output["name"] == "quantiles"), [])
