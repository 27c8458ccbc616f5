"""Scores in words: whether a model is worth serving, and how far ahead it forecasts. This module knows no table and no page."""

from collections.abc import Sequence

from tidegate.training.data.series import duration_text
from tidegate.training.judging.scores import AnomalyScores, ClassScores, Score, Scores

BASELINE_NAMES = {"persistence": "persistence", "seasonal_naive": "seasonal-naive", "ridge": "ridge"}
CLASS_BASELINE_NAMES = {"frequencies": "the class frequencies", "linear": "a linear classifier"}
# The verdict names the first few forecasts that do not beat the baselines.
MAX_NAMES = 4
# A model whose error is within this share of the ridge's is the ridge, for all that can be told.
AS_GOOD = 0.01
# A smaller share of scored timesteps is mentioned: the scores may be of a special part of them.
FEW_SCORED = 0.8


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
    sentences += _what_was_scored(scores)
    return " ".join(sentences)


def _what_was_scored(scores: Scores) -> list[str]:
    """What the scores do not tell: rows that were left out or are absent, and horizons with few of them."""
    sentences = []
    if scores.left_out:
        sentences.append(
            f"{scores.left_out:,} rows lie in the time that the model has learned from, and were left out: {scores.rows:,} "
            f"were replayed."
        )
    absent = scores.absent
    if absent and absent.gaps:
        sentences.append(f"In what was scored {absent.text}.")
    shares = scores.shares
    if shares and (min(shares.values()) < FEW_SCORED or (absent and absent.gaps)):
        spans = {score.horizon: horizon_text(score) for score in scores.table}
        shown = shares if len(shares) <= MAX_NAMES else {place: shares[place] for place in (min(shares), max(shares))}
        listed = ", ".join(f"{percent(share)} {spans[horizon]} ahead" for horizon, share in shown.items())
        sentences.append(f"Scored are {listed} of the timesteps.")
    return sentences


def _forecast_verdict(scores: Scores) -> str:
    as_good = [score for score in scores.table if as_good_as_ridge(score)]
    lost = [
        f"{score.target} {horizon_text(score)} ahead"
        for score in scores.table
        if not score.wins and score not in as_good
    ]
    if lost:
        more = f" and {len(lost) - MAX_NAMES} more of {len(scores.table)}" if len(lost) > MAX_NAMES else ""
        return (
            f"The model does NOT beat the baselines for: {', '.join(lost[:MAX_NAMES])}{more}. Do not serve it for that."
            f"{_not_compared(scores)}"
        )
    named = [
        name
        for baseline, name in BASELINE_NAMES.items()
        if any(baseline in score.baselines for score in scores.table) and not (as_good and baseline == "ridge")
    ]
    beats = f"The model beats {joined(named)} at every horizon."
    if as_good:
        every = len(as_good) == len(scores.table)
        where = "everywhere" if every else f"for {len(as_good)} of {len(scores.table)} forecasts"
        beats += (
            f" It is as good as ridge, within {100 * AS_GOOD:g} %, {where}: "
            f"there the network adds nothing to a straight line."
        )
    return beats + _not_compared(scores)


def as_good_as_ridge(score: Score) -> bool:
    """Whether the model beats all other baselines, and is neither better nor worse than ridge."""
    if score.ridge is None or score.ridge.mae == 0:
        return False
    others = [baseline.mae for name, baseline in score.baselines.items() if name != "ridge"]
    return abs(score.model.mae / score.ridge.mae - 1.0) <= AS_GOOD and all(score.model.mae < mae for mae in others)


def _not_compared(scores: Scores) -> str:
    """The baselines that are missing, and why; empty if none is."""
    named = [f"{BASELINE_NAMES[name]} ({reason})" for name, reason in scores.missing_baselines.items()]
    return f" NOT compared with {joined(named)}." if named else ""


def _class_verdict(scores: ClassScores) -> str:
    return " ".join([_class_comparison(scores), *_class_limits(scores)])


def _class_comparison(scores: ClassScores) -> str:
    right = f"is right {percent(scores.model.accuracy)} of the time"
    if not scores.baselines:
        return f"The model {right}; without its training part there are no baselines."
    if scores.lost:
        return (
            f"The model does NOT beat {joined([CLASS_BASELINE_NAMES[name] for name in scores.lost])}. Do not serve it."
        )
    named = joined([CLASS_BASELINE_NAMES[name] for name in scores.baselines])
    # The baselines have not learned a class either that the training part lacks: to beat them says little.
    return f"The model {right}." if scores.unlearned else f"The model beats {named}."


def _class_limits(scores: ClassScores) -> list[str]:
    """What the scores do not tell, class by class."""
    sentences = []
    if scores.unlearned:
        share = sum(scores.counts[scores.classes.index(name)] for name in scores.unlearned) / scores.count
        sentences.append(
            f"It can NOT know {_names(scores.unlearned)}, {percent(share)} of the scored timesteps: the training part has none "
            f"of it. Do not serve it for that; train on rows of every class."
        )
    if scores.absent:
        sentences.append(
            f"No scored timestep is of {_names(scores.absent)}: the scores, macro F1 too, say nothing about it."
        )
    return sentences


def _names(classes: Sequence[str]) -> str:
    more = [f"{len(classes) - MAX_NAMES} more"] if len(classes) > MAX_NAMES else []
    return f"class{'es' * (len(classes) > 1)} {joined([*classes[:MAX_NAMES], *more])}"


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
    return f"{steps} steps" if seconds is None else duration_text(seconds)


def joined(names: Sequence[str]) -> str:
    """The names as a list: one, two and three."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(value: float | None) -> str:
    """A share in per cent; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %"
