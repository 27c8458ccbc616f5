"""The content of a report, and the part of it that is drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tidegate.training.judging.detection import FaultyReplay
from tidegate.training.judging.replay import DRAWN, Replay, drawn_horizons
from tidegate.training.judging.verdict import duration

COLOURS = "abcd"
Json = dict[str, Any]


@dataclass(frozen=True)
class ReportContent:
    """The content of a report."""

    card: Json
    replay: Replay
    faulty: FaultyReplay | None = None

    @property
    def table(self) -> list[Json]:
        """The scores, a row for each target and horizon; empty without forecasts."""
        return list(self.card["scores"].get("table", []))

    @property
    def by_target(self) -> dict[str, list[Json]]:
        """The rows of the table by target."""
        rows: dict[str, list[Json]] = {}
        for row in self.table:
            rows.setdefault(row["target"], []).append(row)
        return rows

    @property
    def forecasts(self) -> Json | None:
        """The description of the output `forecast`."""
        outputs = self.card["description"]["outputs"]
        return next((output for output in outputs if output["name"] == "forecast"), None)

    def horizon_text(self, horizon: int) -> str:
        """The horizon in words."""
        period_s = self.card["description"]["period_s"]
        return duration(horizon, None if period_s is None else horizon * period_s).replace(" ", "\u00a0")

    def shown(self) -> Iterator[tuple[int, str, str, list[tuple[int, str, str]]]]:
        """The first targets (index, name, unit), each with up to `DRAWN` horizons (index, name, colour) across the range."""
        described = self.forecasts
        if described is None:
            return
        horizons = described["horizons"]
        drawn = [
            (place, self.horizon_text(horizons[place]), COLOURS[index])
            for index, place in enumerate(drawn_horizons(len(horizons)))
        ]
        names = zip(described["targets"], described["units"], strict=True)
        for place, (name, unit) in list(enumerate(names))[:DRAWN]:
            yield place, name, unit, drawn


def quantile_levels(content: ReportContent) -> list[float]:
    """The levels of the output `quantiles`; empty without that output."""
    outputs = content.card["description"]["outputs"]
    return next((list(output["quantiles"]) for output in outputs if output["name"] == "quantiles"), [])
