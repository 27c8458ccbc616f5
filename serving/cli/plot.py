"""Plots forecasts beside actual values. Needs matplotlib, an optional dependency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tidegate.cli.forecast_scores import ForecastScorer, percent

mpl.use("Agg")  # draws to a file, without a display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# The number of plotted rows: some days of ten-minute data.
ROWS_SHOWN = 500
mpl.rcParams["date.converter"] = "concise"  # the year and the month once, not at every tick


def plot_forecasts(scorer: ForecastScorer, title: str, path: Path) -> None:
    """Writes the picture of `draw_forecasts` as PNG."""
    figure = draw_forecasts(scorer, title)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def draw_forecasts(scorer: ForecastScorer, title: str) -> Figure:
    """Draws the last rows, one panel for each horizon and target: the actual value, its forecast and the interval."""
    scores = scorer.scores()
    first = max(0, len(scorer.truth) - ROWS_SHOWN)
    rows = range(first, len(scorer.truth))
    x: Sequence[Any] = rows if scorer.times is None else scorer.times[first:]
    figure, axes = plt.subplots(
        len(scores), 1, figsize=(11, 2.4 * len(scores) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, horizontalalignment="left")
    for score, axis in zip(scores, axes[:, 0], strict=True):
        target, index = scorer.targets.index(score.target), list(scorer.horizons).index(score.horizon)
        forecast, low, high = (
            [values[row - score.horizon] if row >= score.horizon else float("nan") for row in rows]
            for values in (scorer.forecasts[:, index, target], *np.moveaxis(scorer.bounds[:, index, target], -1, 0))
        )
        if scorer.coverage is not None:
            label = f"{percent(scorer.coverage)} interval"
            axis.fill_between(x, low, high, color="tab:blue", alpha=0.2, linewidth=0, label=label)
        axis.plot(x, scorer.truth[first:, target], color="0.45", linewidth=1.0, label="actual")
        axis.plot(x, forecast, color="tab:blue", linewidth=1.3, label="forecast")
        seasonal = "" if score.seasonal_mae is None else f", seasonal-naive {score.seasonal_mae:.3g}"
        axis.set_title(
            f"{score.target}, {score.horizon} timestep{'s' * (score.horizon != 1)} ahead: "
            f"mean absolute error {score.mae:.3g} (persistence {score.persistence_mae:.3g}{seasonal})",
            loc="left",
            fontsize=10,
        )
        axis.set_ylabel(score.unit or score.target)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=3)
    if scorer.times is None:
        axes[-1, 0].set_xlabel("timestep")
    return figure
