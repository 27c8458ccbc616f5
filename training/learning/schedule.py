"""The learning rate over a training: pure functions of how far it is and of what the epochs scored.

Nothing is remembered between two calls, so a training that was resumed goes on with the rates of one that was not.
"""

import math
from collections.abc import Sequence

from training.settings import Fit

# No schedule goes below this part of the learning rate: the last epochs should still learn something. Warm-up begins
# there too, because a rate of zero would waste the first step.
FINAL_RATE = 0.02


def rate(settings: Fit, progress: float, scores: Sequence[float]) -> float:
    """The learning rate: a straight line up, then what the schedule says.

    Args:
        settings: which schedule, and its numbers.
        progress: how far the training is, 0..1.
        scores: the validation score of every finished epoch.
    """
    assert settings.learning_rate is not None  # the settings fill it in
    return settings.learning_rate * min(_warm_up(settings, progress), _fall(settings, progress, scores))


def _warm_up(settings: Fit, progress: float) -> float:
    return max(progress / settings.warm_up, FINAL_RATE) if progress < settings.warm_up else 1.0


def _fall(settings: Fit, progress: float, scores: Sequence[float]) -> float:
    """What part of the learning rate the schedule leaves."""
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        turn = math.pi * max(progress - settings.warm_up, 0.0) / (1.0 - settings.warm_up)
        return FINAL_RATE + (1.0 - FINAL_RATE) * (1.0 + math.cos(turn)) / 2.0
    drops = len(scores) // settings.drop_after if settings.schedule == "step" else plateaus(scores, settings.drop_after)
    return max(settings.drop**drops, FINAL_RATE)


def plateaus(scores: Sequence[float], length: int) -> int:
    """How often `length` epochs in a row brought no score better than the best before them."""
    best, since, found = math.inf, 0, 0
    for score in scores:
        best, since = (score, 0) if score < best else (best, since + 1)
        if since == length:
            since, found = 0, found + 1
    return found
