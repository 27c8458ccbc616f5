"""What to try next, from the scores of a training: one line for its end. This module knows no table and no page."""

from collections.abc import Sequence

import numpy as np

from tidegate.training.judging.scores import Score, Scores
from tidegate.training.judging.verdict import BASELINE_NAMES, as_good_as_ridge, horizon_text, percent

# A held-out part of some hundred timesteps misses its nominal coverage by as much through chance alone.
COVERAGE_MARGIN = 0.05
# What helps against each baseline.
REMEDIES = {
    "persistence": "near steps of a slow sensor hold little to learn, so ask for longer --horizons, or for fewer",
    "seasonal_naive": "add --links last,season --calendar day, so that the season need not be learned",
    "ridge": "let `tidegate tune` search with the same options, or give more rows to learn from",
}


def next_step(scores: Scores) -> str | None:
    """One line; None if the forecasts beat all baselines and their quantiles hold what they should."""
    parts = [part for part in (_lost(scores.table), _narrow(scores.table)) if part]
    return f"To try next: {'; '.join(parts)}." if parts else None


def _lost(table: Sequence[Score]) -> str | None:
    """The baseline that wins most often, where it wins, and what helps."""
    lost = {
        name: [
            score
            for score in table
            if name in score.baselines and score.model.mae >= score.baselines[name].mae and not as_good_as_ridge(score)
        ]
        for name in BASELINE_NAMES
    }
    name, rows = max(lost.items(), key=lambda pair: len(pair[1]))
    if not rows:
        return None
    first, last = (pick(rows, key=lambda score: score.horizon) for pick in (min, max))
    ahead = " to ".join(dict.fromkeys(horizon_text(score) for score in (first, last)))
    return (
        f"it loses to {BASELINE_NAMES[name]} in {len(rows)} of {len(table)} forecasts ({ahead} ahead): {REMEDIES[name]}"
    )


def _narrow(table: Sequence[Score]) -> str | None:
    """Quantiles that hold too little, unless there is an interval that is kept calibrated."""
    held = [score for score in table if score.model.coverage is not None and score.interval is None]
    if not held:
        return None
    levels = [quantile.level for quantile in held[0].model.quantiles]
    nominal = levels[-1] - levels[0]
    observed = float(np.mean([score.model.coverage for score in held]))
    if observed >= nominal - COVERAGE_MARGIN:
        return None
    return (
        f"its quantiles are too narrow, they hold {percent(observed)} instead of {percent(nominal)}: add --coverage "
        f"{nominal:.3g}, an interval that follows the errors"
    )
