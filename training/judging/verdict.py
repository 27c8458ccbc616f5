"""What scores say in words: whether a model is worth serving, and how far ahead it looks. Knows no table and no page."""

from collections.abc import Sequence

from training.judging.scores import AnomalyScores, ClassScores, Score, Scores

NAMES = {"persistence": "persistence", "seasonal_naive": "seasonal-naive", "ridge": "ridge"}
CLASS_NAMES = {"frequencies": "the class frequencies", "linear": "a linear classifier"}
# Of many that are not beaten the first few are named.
NAMED = 4


def verdict(scores: Scores) -> str:
    """Whether the model beats the baselines, said plainly."""
    said = []
    if scores.table:
        said.append(_forecast_verdict(scores))
    if scores.classification:
        said.append(_class_verdict(scores.classification))
    if scores.anomaly:
        said.append(_anomaly_verdict(scores.anomaly))
    return " ".join(said)


def _forecast_verdict(scores: Scores) -> str:
    lost = [f"{score.target} {ahead(score)} ahead" for score in scores.table if not score.wins]
    if lost:
        more = f" and {len(lost) - NAMED} more of {len(scores.table)}" if len(lost) > NAMED else ""
        return f"The model does NOT beat the baselines for: {', '.join(lost[:NAMED])}{more}. Do not serve it for that."
    named = [name for rival, name in NAMES.items() if any(rival in score.rivals for score in scores.table)]
    return f"The model beats {joined(named)} at every horizon."


def _class_verdict(scores: ClassScores) -> str:
    if not scores.rivals:
        return f"The model is right {percent(scores.model.accuracy)} of the time; without its training part there are no baselines."
    named = joined([CLASS_NAMES[name] for name in scores.lost or scores.rivals])
    return f"The model beats {named}." if scores.wins else f"The model does NOT beat {named}. Do not serve it."


def _anomaly_verdict(scores: AnomalyScores) -> str:
    model = scores.model
    text = f"It finds {model.found} of {model.events} injected faults, {model.during} of them before they are over"
    if model.clean_alarms_a_day is not None:
        text += f", with {model.clean_alarms_a_day:.2g} false alarms a day on clean data"
    if scores.pca is not None:
        text += f"; PCA finds {scores.pca.found} at that rate"
    return text + "."


def ahead(score: Score) -> str:
    """How far ahead: `6 h`, or `36 steps` when the period is unknown."""
    return duration(score.horizon, score.horizon_s)


def duration(steps: int, seconds: float | None) -> str:
    """A number of timesteps as people say it."""
    if seconds is None:
        return f"{steps} steps"
    for size_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:g} {unit}"
    return f"{seconds:g} s"


def joined(names: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(value: float | None) -> str:
    """A share in percent, a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"
