"""Backtest with a rolling origin: learn from the past, judge the block that follows, move on, learn anew.

One split tells how good a model was in one month. Several tell how much that depends on the month. (Tashman, Out-of-sample
tests of forecasting accuracy, International Journal of Forecasting 16, 2000.) Nothing later than an origin is seen by what
is judged after it: neither by the network nor by its scaler, its validation or the baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.series import Series, Spans, iso, rows_of
from training.data.source import made_features, read_source
from training.data.split import Split, check_parts
from training.errors import SettingsError
from training.judging.scores import Scores
from training.learning.fit import Epoch
from training.pipeline import learn_and_score
from training.settings import Request, Rolling


@dataclass(frozen=True)
class Fold:
    """One origin: the model learned from `taught` rows, and chose among its epochs by `chosen` rows, that end before it."""

    number: int
    origin: str
    taught: int
    chosen: int
    scores: Scores


@dataclass(frozen=True)
class Line:
    """One number over the folds, the skill beside the best baseline where there is one, and how often the model won."""

    target: str
    horizon: int
    horizon_s: float | None
    measure: str
    values: tuple[float, ...]
    skills: tuple[float, ...]
    wins: int


@dataclass(frozen=True)
class Backtest:
    """All folds, in the order of time."""

    data: str
    window: int | None
    folds: tuple[Fold, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """For forecasts the MAE of each target and horizon; for classes accuracy and cross-entropy."""
        first = self.folds[0].scores
        return _class_lines(self.folds) if first.classification else _forecast_lines(self.folds)

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline in every fold."""
        return all(fold.scores.wins for fold in self.folds)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON: each fold with all its scores, and over the folds mean and standard deviation."""
        folds = [
            {"fold": fold.number, "origin": fold.origin, "training_rows": fold.taught, "validation_rows": fold.chosen}
            | {"scores": fold.scores.as_json()}
            for fold in self.folds
        ]
        summary = [
            {"target": line.target, "horizon": line.horizon, "measure": line.measure, "wins": line.wins}
            | {"mean": mean_and_spread(line.values)[0], "std": mean_and_spread(line.values)[1]}
            | ({"skill_mean": mean_and_spread(line.skills)[0], "skill_std": mean_and_spread(line.skills)[1]})
            for line in self.lines
        ]
        return {
            "data": self.data,
            "window": self.window,
            "folds": folds,
            "summary": summary,
            "beats_baselines": self.wins,
        }


def backtest(
    request: Request,
    rolling: Rolling,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
) -> Backtest:
    """Learn and judge once for each fold; every fold leaves a run in a folder of its own under `request.out`.

    Args:
        request: as for a training; its shares say how the past is parted into what teaches and what chooses.
        rolling: the folds.
        on_epoch: see `fit`.
        on_note: called with a sentence that the person should read.

    Raises:
        SeriesTooShort: a part of a fold is too short for the horizons.
        TrainingError: something else that the person can mend.
    """
    series = read_source(request.source, made_features(request.source, request.task, request.horizons))
    horizon = max(request.horizons) if request.task == "forecast" else 0
    share = request.validation_share / (request.train_share + request.validation_share)
    splits = rolling_splits(series, rolling, validation=share)
    for split in splits:  # before the minutes of work, not after them
        check_parts(series, split, horizon)
    folds = []
    for number, split in enumerate(splits, 1):
        origin = iso(min(series.times[first] for first, _ in split.test))
        on_note(f"fold {number} of {len(splits)}: learning from {rows_of(split.train)} rows before {origin}")
        own = request.model_copy(update={"out": request.out / f"fold-{number}"})
        _, scores = learn_and_score(own, series, split, on_epoch, on_note)
        folds.append(Fold(number, origin, rows_of(split.train), rows_of(split.validation), scores))
    return Backtest(series.name, rolling.window, tuple(folds))


def rolling_splits(series: Series, rolling: Rolling, *, validation: float) -> tuple[Split, ...]:
    """The splits of the folds: every group is cut at its own moments.

    Args:
        series: what to cut.
        rolling: how.
        validation: share of the past, at its end, that chooses.

    Raises:
        SettingsError: whole values of a column are to be kept together, which leaves no past and no future.
    """
    if any(group.whole for group in series.groups):
        raise SettingsError(
            "split-by: a backtest cuts every group in time, expected no column that keeps groups whole; "
            "pass --split-by '' to cut them"
        )
    return tuple(_split(series, rolling, number, validation) for number in range(rolling.folds))


def mean_and_spread(values: tuple[float, ...]) -> tuple[float, float]:
    """The mean and the standard deviation of a sample."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _split(series: Series, rolling: Rolling, number: int, validation: float) -> Split:
    """The split of one fold; a group that is too short for a part has none of it there."""
    train: list[tuple[int, int]] = []
    choose: list[tuple[int, int]] = []
    judge: list[tuple[int, int]] = []
    for first, end in series.spans:
        low, high = (
            first + int((end - first) * (rolling.start + (1.0 - rolling.start) * place / rolling.folds))
            for place in (number, number + 1)
        )
        begin = max(first, low - rolling.window) if rolling.window else first
        middle = low - int((low - begin) * validation)
        train.append((begin, middle))
        choose.append((middle, low))
        judge.append((low, high))
    return Split(_some(train), _some(choose), _some(judge))


def _some(spans: list[tuple[int, int]]) -> Spans:
    return tuple((first, end) for first, end in spans if first < end)


def _forecast_lines(folds: tuple[Fold, ...]) -> tuple[Line, ...]:
    rows = zip(*(fold.scores.table for fold in folds), strict=True)
    return tuple(
        Line(
            target=row[0].target,
            horizon=row[0].horizon,
            horizon_s=row[0].horizon_s,
            measure="mae",
            values=tuple(score.model.mae for score in row),
            skills=tuple(score.skill for score in row),
            wins=sum(score.wins for score in row),
        )
        for row in rows
    )


def _class_lines(folds: tuple[Fold, ...]) -> tuple[Line, ...]:
    """Skill is the part of the best baseline's cross-entropy, or of its wrong guesses, that the model takes away."""
    parts = [fold.scores.classification for fold in folds]
    judged = [part for part in parts if part is not None]
    wins = sum(part.wins for part in judged)
    wrong = (
        [1.0 - part.model.accuracy for part in judged],
        [min((1.0 - rival.accuracy for rival in part.rivals.values()), default=1.0) for part in judged],
    )
    loss = (
        [part.model.cross_entropy for part in judged],
        [min((rival.cross_entropy for rival in part.rivals.values()), default=1.0) for part in judged],
    )
    return tuple(
        Line(
            "class",
            0,
            None,
            measure,
            tuple(mine),
            tuple(1.0 - own / best for own, best in zip(mine, rival, strict=True)),
            wins,
        )
        for measure, (mine, rival) in (("wrong", wrong), ("cross_entropy", loss))
    )
