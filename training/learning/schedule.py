"""The learning rate schedule: pure functions of the progress and of the scores of the epochs.

They keep no state between calls, so a resumed training gets the same rates as an uninterrupted one.
"""

import math
from collections.abc import Sequence

from tidegate.training.settings import Fit

# No schedule goes below this fraction of the learning rate, so that the last epochs still learn something. Warm-up starts
# here, because a rate of zero would waste the first step.
FINAL_RATE = 0.02


def rate(settings: Fit, progress: float, scores: Sequence[float]) -> float:
    """The learning rate: a linear warm-up, then the schedule.

    Args:
        settings: the schedule and its parameters.
        progress: of the training, 0..1.
        scores: the validation score of every finished epoch.
    """
    assert settings.learning_rate is not None  # the settings fill it in
    return settings.learning_rate * min(_warm_up(settings, progress), _fall(settings, progress, scores))


def _warm_up(settings: Fit, progress: float) -> float:
    return max(progress / settings.warm_up, FINAL_RATE) if progress < settings.warm_up else 1.0


def _fall(settings: Fit, progress: float, scores: Sequence[float]) -> float:
    """The fraction of the learning rate after the warm-up."""
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        turn = math.pi * max(progress - settings.warm_up, 0.0) / (1.0 - settings.warm_up)
        return FINAL_RATE + (1.0 - FINAL_RATE) * (1.0 + math.cos(turn)) / 2.0
    drops = len(scores) // settings.drop_after if settings.schedule == "step" else plateaus(scores, settings.drop_after)
    return max(settings.drop**drops, FINAL_RATE)


def plateaus(scores: Sequence[float], length: int) -> int:
    """How often `length` epochs in a row had no score better than the best before them."""
    best, since, found = math.inf, 0, 0
    for score in scores:
        best, since = (score, 0) if score < best else (best, since + 1)
        if since == length:
            since, found = 0, found + 1
    return found
