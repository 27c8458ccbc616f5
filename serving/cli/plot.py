"""Plots forecasts beside actual values. Needs matplotlib, an optional dependency."""

from pathlib import Path

import matplotlib as mpl

from serving.cli.forecast_scores import ForecastScorer

mpl.use("Agg")  # draws to a file, without a display
from matplotlib import pyplot as plt

# The number of plotted rows: some days of ten-minute data.
ROWS_SHOWN = 500


def plot_forecasts(scorer: ForecastScorer, title: str, path: Path) -> None:
    """Plots the last rows, one panel for each horizon and target: the actual value, and its forecast."""
    scores = scorer.scores()
    first = max(0, len(scorer.truth) - ROWS_SHOWN)
    rows = range(first, len(scorer.truth))
    figure, axes = plt.subplots(
        len(scores), 1, figsize=(11, 2.4 * len(scores) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for score, axis in zip(scores, axes[:, 0], strict=True):
        target, index = scorer.targets.index(score.target), list(scorer.horizons).index(score.horizon)
        forecast = [
            scorer.forecasts[row - score.horizon, index, target] if row >= score.horizon else float("nan")
            for row in rows
        ]
        axis.plot(rows, scorer.truth[first:, target], color="0.65", linewidth=1.0, label="came true")
        axis.plot(rows, forecast, color="tab:blue", linewidth=1.3, label="forecast")
        seasonal = "" if score.seasonal_mae is None else f", seasonal-naive {score.seasonal_mae:.3g}"
        axis.set_title(
            f"{score.target}, {score.horizon} timesteps ahead: "
            f"mean absolute error {score.mae:.3g} (persistence {score.persistence_mae:.3g}{seasonal})",
            loc="left",
            fontsize=10,
        )
        axis.set_ylabel(score.unit or score.target)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(loc="upper right", frameon=False, ncols=2)
    axes[-1, 0].set_xlabel("timestep")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
