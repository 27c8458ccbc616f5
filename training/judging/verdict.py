"""Scores in words: whether a model is worth serving, and how far ahead it forecasts. This module knows no table and no page."""

from collections.abc import Sequence

from tidegate.training.judging.scores import AnomalyScores, ClassScores, Score, Scores

BASELINE_NAMES = {"persistence": "persistence", "seasonal_naive": "seasonal-naive", "ridge": "ridge"}
CLASS_BASELINE_NAMES = {"frequencies": "the class frequencies", "linear": "a linear classifier"}
# The verdict names the first few forecasts that do not beat the baselines.
MAX_NAMES = 4


def verdict(scores: Scores) -> str:
    """Whether the model beats the baselines, in plain words."""
    sentences = []
    if scores.table:
        sentences.append(_forecast_verdict(scores))
    if scores.classification:
        sentences.append(_class_verdict(scores.classification))
    if scores.anomaly:
        sentences.append(_anomaly_verdict(scores.anomaly))
    if scores.anomaly_left_out:
        sentences.append(scores.anomaly_left_out)
    return " ".join(sentences)


def _forecast_verdict(scores: Scores) -> str:
    lost = [f"{score.target} {horizon_text(score)} ahead" for score in scores.table if not score.wins]
    if lost:
        more = f" and {len(lost) - MAX_NAMES} more of {len(scores.table)}" if len(lost) > MAX_NAMES else ""
        return (
            f"The model does NOT beat the baselines for: {', '.join(lost[:MAX_NAMES])}{more}. Do not serve it for that."
        )
    named = [
        name for baseline, name in BASELINE_NAMES.items() if any(baseline in score.baselines for score in scores.table)
    ]
    return f"The model beats {joined(named)} at every horizon."


def _class_verdict(scores: ClassScores) -> str:
    if not scores.baselines:
        return f"The model is right {percent(scores.model.accuracy)} of the time; without its training part there are no baselines."
    named = joined([CLASS_BASELINE_NAMES[name] for name in scores.lost or scores.baselines])
    return f"The model beats {named}." if scores.wins else f"The model does NOT beat {named}. Do not serve it."


def _anomaly_verdict(scores: AnomalyScores) -> str:
    model = scores.model
    text = f"It finds {model.found} of {model.events} injected faults, {model.during} of them before they are over"
    if model.clean_alarms_a_day is not None:
        text += f", with {model.clean_alarms_a_day:.2g} false alarms a day on clean data"
    if scores.alarm_rate is not None:
        text += f"; {percent(model.clean_share)} of clean timesteps have an alarm, {percent(scores.alarm_rate)} was asked for"
    if scores.pca is not None:
        text += f"; PCA finds {scores.pca.found} at that rate"
    return text + "."


def horizon_text(score: Score) -> str:
    """The horizon in words: `6 h`, or `36 steps` if the period is unknown."""
    return duration(score.horizon, score.horizon_s)


def duration(steps: int, seconds: float | None) -> str:
    """A number of timesteps in words."""
    if seconds is None:
        return f"{steps} steps"
    for size_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:g} {unit}"
    return f"{seconds:g} s"


def joined(names: Sequence[str]) -> str:
    """The names as a list: one, two and three."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(value: float | None) -> str:
    """A share in per cent; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %"
