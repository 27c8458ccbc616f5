"""Whether the layers see values relative to a running level: the choice by the validation part, from two short trainings.

Where the regression of the linear link does best without a level there is nothing to try: a level that misleads it on one of
its folds misleads the network too, and a validation part alone is often too short to show it.
"""

from dataclasses import replace

from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split
from tidegate.training.learning.fit import fit
from tidegate.training.learning.links import Given, prepare_links
from tidegate.training.settings import Fit

# Enough to tell the two apart where it matters, and a fifteenth of the usual epochs each.
TRIAL_EPOCHS = 4
# Each trial gets this share of a time limit.
TRIAL_SHARE = 0.1
# Without a level the score must be better by so much: a level costs little on a series that keeps its own, and saves much on
# one that does not, which a validation part is often too short to show.
BETTER = 0.995


# The share of the lines of the regression that must know a level.
LEVEL_SHARE = 0.5


def needs_trials(given: Given) -> bool:
    """Whether the choice is open."""
    return given.ridge is None or given.ridge.level_share >= LEVEL_SHARE


def choose_level(series: Series, split: Split, scaler: Scaler, given: Given, settings: Fit) -> Given:
    """The architecture with a level or without, whichever scores better; with one where they are nearly equal.

    Args:
        series: to learn from.
        split: of the series; the held-out part is not read.
        scaler: of the training part.
        given: the architecture, which leaves the choice open.
        settings: of the training.

    Raises:
        Diverged: see `fit`.
        KeyboardInterrupt: the user stopped it.
    """
    minutes = None if settings.minutes is None else TRIAL_SHARE * settings.minutes
    trial = settings.model_copy(update={"epochs": TRIAL_EPOCHS, "minutes": minutes, "keep": "best"})
    scores: dict[str, tuple[float, Given]] = {}
    for level in ("on", "off"):
        own = replace(given, architecture=given.architecture.model_copy(update={"level": level}))
        own = prepare_links(series, split, scaler, own.architecture, ridge=own.ridge)
        if not needs_trials(given):
            return own
        result = fit(series, split, scaler, own.architecture, trial, given=own)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        scores[level] = result.best.score, own
    best = "off" if scores["off"][0] < BETTER * scores["on"][0] else "on"
    return scores[best][1]


def after_trials(settings: Fit) -> Fit:
    """The settings of the training that follows the trials: what they may take of a time limit is gone."""
    if settings.minutes is None:
        return settings
    return settings.model_copy(update={"minutes": (1.0 - 2.0 * TRIAL_SHARE) * settings.minutes})
