"""Backtest with a rolling origin: train on the past, score the block that follows, move the origin, train again.

One split shows how good a model was in one month. Several show how much that depends on the month. (Tashman, Out-of-sample
tests of forecasting accuracy, International Journal of Forecasting 16, 2000.) Network, scaler, validation and baselines of
a fold see nothing later than its origin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.training.data.overview import overview
from tidegate.training.data.prepare import check_scorable
from tidegate.training.data.series import Series, Spans, count_rows
from tidegate.training.data.source import read_request
from tidegate.training.data.split import Split, check_parts
from tidegate.training.errors import SettingsError
from tidegate.training.judging.scores import ClassError, Scores
from tidegate.training.learning.epoch import Epoch
from tidegate.training.pipeline import train_and_score
from tidegate.training.settings import Request, Rolling


@dataclass(frozen=True)
class Fold:
    """One origin: the numbers of training and validation rows before it, and the scores after it."""

    number: int
    origin: str
    train_rows: int
    validation_rows: int
    scores: Scores


@dataclass(frozen=True)
class MetricSummary:
    """One metric over the folds, the skill against the best baseline, if any, and how often the model wins."""

    target: str
    horizon: int
    horizon_s: float | None
    measure: str
    values: tuple[float, ...]
    skills: tuple[float, ...]
    wins: int


@dataclass(frozen=True)
class Backtest:
    """All folds, in time order."""

    data: str
    window: int | None
    folds: tuple[Fold, ...]

    @property
    def lines(self) -> tuple[MetricSummary, ...]:
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
            {
                "fold": fold.number,
                "origin": fold.origin,
                "training_rows": fold.train_rows,
                "validation_rows": fold.validation_rows,
            }
            | {"scores": fold.scores.as_json()}
            for fold in self.folds
        ]
        summary = [
            {"target": line.target, "horizon": line.horizon, "measure": line.measure, "wins": line.wins}
            | {"mean": mean_and_std(line.values)[0], "std": mean_and_std(line.values)[1]}
            | ({"skill_mean": mean_and_std(line.skills)[0], "skill_std": mean_and_std(line.skills)[1]})
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
    series: Series | None = None,
) -> Backtest:
    """Train and score once for each fold; each fold leaves a run in its own folder under `request.out`.

    Args:
        request: as for a training. Its shares divide the past into a training and a validation part.
        rolling: the folds.
        on_epoch: see `fit`.
        on_note: called with a sentence for the user.
        series: of the request, if it is read already.

    Raises:
        SeriesTooShort: a part of a fold is too short for the horizons.
        TrainingError: another problem that the user can solve.
    """
    series = series or read_request(request)
    horizon = max(request.horizons) if request.task == "forecast" else 0
    share = request.validation_share / (request.train_share + request.validation_share)
    splits = rolling_splits(series, rolling, validation=share)
    for line in (*series.notes, *overview(series)):
        on_note(line)
    for split in splits:  # checked before the training, not after it
        check_parts(series, split, horizon)
        check_scorable(request, series, split)
    folds = []
    for number, split in enumerate(splits, 1):
        origin = series.stamp(min(series.times[first] for first, _ in split.test))
        on_note(f"fold {number} of {len(splits)}: training on {count_rows(split.train)} rows before {origin}")
        own = request.model_copy(update={"out": request.out / f"fold-{number}"})
        _, scores = train_and_score(own, series, split, on_epoch, on_note)
        folds.append(Fold(number, origin, count_rows(split.train), count_rows(split.validation), scores))
    return Backtest(series.name, rolling.window, tuple(folds))


def rolling_splits(series: Series, rolling: Rolling, *, validation: float) -> tuple[Split, ...]:
    """The splits of the folds; every group is cut at its own times.

    Args:
        series: to split.
        rolling: the folds.
        validation: share of the past, at its end, in the validation part.

    Raises:
        SettingsError: the series has a column to split by, which leaves no past and no future.
    """
    if any(group.split_key for group in series.groups):
        raise SettingsError(
            "split-by: a backtest cuts every group in time, expected no column that keeps groups together; "
            "pass --split-by '' to cut them"
        )
    return tuple(_split(series, rolling, number, validation) for number in range(rolling.folds))


def mean_and_std(values: tuple[float, ...]) -> tuple[float, float]:
    """The mean and the standard deviation of a sample."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _split(series: Series, rolling: Rolling, number: int, validation: float) -> Split:
    """The split of one fold; a group that is too short for a part has no rows in it."""
    train: list[tuple[int, int]] = []
    validate: list[tuple[int, int]] = []
    test: list[tuple[int, int]] = []
    for first, end in series.spans:
        low, high = (
            first + int((end - first) * (rolling.start + (1.0 - rolling.start) * place / rolling.folds))
            for place in (number, number + 1)
        )
        begin = max(first, low - rolling.window) if rolling.window else first
        middle = low - int((low - begin) * validation)
        train.append((begin, middle))
        validate.append((middle, low))
        test.append((low, high))
    return Split(_non_empty(train), _non_empty(validate), _non_empty(test))


def _non_empty(spans: list[tuple[int, int]]) -> Spans:
    return tuple((first, end) for first, end in spans if first < end)


def _forecast_lines(folds: tuple[Fold, ...]) -> tuple[MetricSummary, ...]:
    rows = zip(*(fold.scores.table for fold in folds), strict=True)
    return tuple(
        MetricSummary(
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


def _class_lines(folds: tuple[Fold, ...]) -> tuple[MetricSummary, ...]:
    """The skill is 1 - model / best baseline, of the cross-entropy and of the share of wrong classes."""
    scored = [fold.scores.classification for fold in folds if fold.scores.classification]
    losses: dict[str, Callable[[ClassError], float]] = {
        "wrong": lambda error: 1.0 - error.accuracy,
        "cross_entropy": lambda error: error.cross_entropy,
    }
    wins = sum(part.wins for part in scored)
    summaries = []
    for measure, loss in losses.items():
        values = tuple(loss(part.model) for part in scored)
        best = [min(map(loss, part.baselines.values()), default=1.0) for part in scored]
        skills = tuple(1.0 - value / least for value, least in zip(values, best, strict=True))
        summaries.append(MetricSummary("class", 0, None, measure, values, skills, wins))
    return tuple(summaries)
