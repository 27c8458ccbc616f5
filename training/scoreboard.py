"""Scores as a table for people, with the sentence that says whether the model is worth serving."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from training.evaluate import Error, Score, Scores


def table(scores: Scores) -> Table:
    """One row for each target and horizon: MAE and RMSE of the model, persistence and seasonal-naive."""
    # Eighty columns wide at most, for a log.
    board = Table(
        title=f"{scores.data}: {scores.rows} timesteps, {scores.start} to {scores.end}; MAE (RMSE)",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for heading in ("target", "ahead"):
        board.add_column(heading, no_wrap=True)
    for heading in ("model", "persistence", "seasonal-naive", "skill"):
        board.add_column(heading, justify="right", no_wrap=True)
    for score in scores.table:
        board.add_row(
            Text(f"{score.target}, {score.unit}".removesuffix(", ")),  # Text: a name is no markup
            ahead(score),
            _cell(score.model),
            _cell(score.persistence),
            _cell(score.seasonal_naive),
            f"{100 * score.skill:.1f} %",
        )
    return board


def verdict(scores: Scores) -> str:
    """Whether the model beats the baselines, said plainly."""
    if scores.wins:
        rivals = "persistence and seasonal-naive" if scores.season else "persistence"
        return f"The model beats {rivals} at every horizon."
    lost = ", ".join(f"{score.target} {ahead(score)} ahead" for score in scores.table if not score.wins)
    return f"The model does NOT beat the baselines for: {lost}. Do not serve it for that."


def ahead(score: Score) -> str:
    """How far ahead a score looks, in words."""
    return lead(score.horizon, score.horizon_s)


def lead(horizon: int, horizon_s: float | None) -> str:
    """How long it is: `6 h`, or `36 steps` when the period is unknown."""
    if horizon_s is None:
        return f"{horizon} steps"
    for size_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if horizon_s >= size_s:
            return f"{horizon_s / size_s:g} {unit}"
    return f"{horizon_s:g} s"


def _cell(error: Error | None) -> str:
    return "-" if error is None else f"{error.mae:.4g} ({error.rmse:.4g})"
