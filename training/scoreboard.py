"""Scores as tables for people, with the sentence that says whether the model is worth serving."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from training.scores import Error, Score, Scores

NAMES = {"persistence": "persistence", "seasonal_naive": "seasonal-naive", "ridge": "ridge"}


def table(scores: Scores) -> RenderableType:
    """All tables that there is something for, one below the other."""
    return Group(*_forecast_tables(scores))


def verdict(scores: Scores) -> str:
    """Whether the model beats the baselines, said plainly."""
    if scores.wins:
        named = [name for rival, name in NAMES.items() if any(rival in score.rivals for score in scores.table)]
        return f"The model beats {_joined(named)} at every horizon."
    lost = ", ".join(f"{score.target} {ahead(score)} ahead" for score in scores.table if not score.wins)
    return f"The model does NOT beat the baselines for: {lost}. Do not serve it for that."


def ahead(score: Score) -> str:
    """How far ahead: `6 h`, or `36 steps` when the period is unknown."""
    if score.horizon_s is None:
        return f"{score.horizon} steps"
    for size_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if score.horizon_s >= size_s:
            return f"{score.horizon_s / size_s:g} {unit}"
    return f"{score.horizon_s:g} s"


def _forecast_tables(scores: Scores) -> list[Table]:
    """MAE of the model and its baselines; then what else is known of the model's errors."""
    if not scores.table:
        return []
    errors = _board(
        f"{scores.data}: {scores.rows} timesteps, {scores.start} to {scores.end}; mean absolute error",
        ("target", "ahead"),
        ("model", *NAMES.values(), "skill"),
    )
    for score in scores.table:
        rivals = (score.persistence, score.seasonal_naive, score.ridge)
        errors.add_row(
            *_place(score), *(_cell(error) for error in (score.model, *rivals)), f"{100 * score.skill:.1f} %"
        )
    more = _board(
        "the model: RMSE, scaled error, pinball loss, and how much the widest interval holds",
        ("target", "ahead"),
        ("RMSE", "MASE", "pinball", "coverage", "width", "calibrated", "width"),
    )
    for score in scores.table:
        model, interval = score.model, score.interval
        more.add_row(
            *_place(score),
            _number(model.rmse),
            _number(model.mase),
            _number(model.pinball),
            _percent(model.coverage),
            _number(model.width),
            _percent(interval.coverage if interval else None),
            _number(interval.width if interval else None),
        )
    return [errors, more]


def _place(score: Score) -> tuple[Text, str]:
    return Text(f"{score.target}, {score.unit}".removesuffix(", ")), ahead(score)  # Text: a name is no markup


def _board(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    # Eighty columns wide at most where names are short, for a log.
    board = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in left:
        board.add_column(heading, no_wrap=True)
    for heading in right:
        board.add_column(heading, justify="right", no_wrap=True)
    return board


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cell(error: Error | None) -> str:
    return _number(error.mae if error else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
