"""Scores as tables on a terminal."""

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.training.backtest import Backtest, mean_and_std
from tidegate.training.cli.tables import empty_table
from tidegate.training.judging.scores import Error, Score, Scores
from tidegate.training.judging.verdict import (
    BASELINE_NAMES,
    CLASS_BASELINE_NAMES,
    MAX_NAMES,
    duration,
    horizon_text,
    joined,
    percent,
)

MEASURES = {"mae": "mean absolute error", "wrong": "share of wrong classes", "cross_entropy": "cross-entropy"}
# The largest confusion matrix that fits into a hundred columns.
CONFUSION_CLASSES = 10
CLASS_LETTERS = 7
# The cold-start table shows the first few targets.
COLD_ROWS = 12
# More targets and horizons than this have a line for each target.
FORECAST_ROWS = 24
# The table shows the first few folds; the mean is over all.
SHOWN_FOLDS = 5


def table(scores: Scores) -> RenderableType:
    """All tables with content, one below the other."""
    boards = [*_forecast_tables(scores), *_class_tables(scores), *_anomaly_tables(scores), *_cold_tables(scores)]
    return _stacked(boards)


def backtest_table(result: Backtest) -> RenderableType:
    """The folds; then, by target and horizon, the error of the model in each, its mean and deviation, and its skill."""
    folds = empty_table(
        f"{result.data}: {len(result.folds)} folds", ("fold", "from", "to"), ("training", "validation", "held out")
    )
    for fold in result.folds:
        counts = (str(count) for count in (fold.train_rows, fold.validation_rows, fold.scores.rows))
        folds.add_row(str(fold.number), fold.scores.start, fold.scores.end, *counts)
    named = ", ".join(sorted({MEASURES[line.measure] for line in result.lines}))
    board = empty_table(
        f"{named} by fold, mean and standard deviation; skill against the best baseline",
        ("target", "ahead" if result.folds[0].scores.table else "measure"),
        (*(str(fold.number) for fold in result.folds[:SHOWN_FOLDS]), "mean", "skill", "won"),
    )
    for line in result.lines:
        mean, spread = mean_and_std(line.values)
        skill, skill_spread = mean_and_std(line.skills)
        board.add_row(
            Text(line.target),
            duration(line.horizon, line.horizon_s) if line.horizon else MEASURES[line.measure],
            *(_number(value) for value in line.values[:SHOWN_FOLDS]),
            f"{mean:.4g} ± {spread:.2g}",
            f"{100 * skill:.1f} ± {100 * skill_spread:.1f} %",
            f"{line.wins}/{len(line.values)}",
        )
    return _stacked([folds, board])


def backtest_verdict(result: Backtest) -> str:
    """Whether the model beats the baselines in every fold."""
    lost = [str(fold.number) for fold in result.folds if not fold.scores.wins]
    if not lost:
        return "The model beats every baseline in every fold."
    return f"The model does NOT beat every baseline in fold {joined(lost)} of {len(result.folds)}."


def _forecast_tables(scores: Scores) -> list[Table]:
    """The MAE of the model and its baselines; then the other errors of the model."""
    if not scores.table:
        return []
    if len(scores.table) > FORECAST_ROWS:
        return [_target_table(scores)]
    errors = empty_table(
        f"{scores.data}: {scores.rows} timesteps, {scores.start} to {scores.end}; mean absolute error",
        ("target", "ahead"),
        ("model", *BASELINE_NAMES.values(), "skill"),
    )
    for score in scores.table:
        baselines = (score.persistence, score.seasonal_naive, score.ridge)
        errors.add_row(
            *_place(score), *(_cell(error) for error in (score.model, *baselines)), f"{100 * score.skill:.1f} %"
        )
    columns = {
        "scored": [percent(score.count / max(scores.rows, 1)) for score in scores.table],
        "RMSE": [_number(score.model.rmse) for score in scores.table],
        "MASE": [_number(score.model.mase) for score in scores.table],
        "pinball": [_number(score.model.pinball) for score in scores.table],
        "ridge's": [_number(score.ridge.pinball if score.ridge else None) for score in scores.table],
        "holds": [percent(score.model.coverage) for score in scores.table],
        "width": [_number(score.model.width) for score in scores.table],
        "kept": [percent(score.interval.coverage if score.interval else None) for score in scores.table],
        "its width": [_number(score.interval.width if score.interval else None) for score in scores.table],
    }
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {"-"}}
    more = empty_table(
        "share of the timesteps that is scored; other errors of the model; coverage of its quantiles and of its interval",
        ("target", "ahead"),
        (*shown,),
    )
    for place, score in enumerate(scores.table):
        more.add_row(*_place(score), *(cells[place] for cells in shown.values()))
    return [errors, more]


def _target_table(scores: Scores) -> Table:
    """A line for each target: the mean over its horizons. The report has every horizon."""
    board = empty_table(
        f"{scores.data}: {scores.rows} timesteps, {scores.start} to {scores.end}; mean absolute error, mean over the horizons",
        ("target", "ahead"),
        ("model", *BASELINE_NAMES.values(), "skill", "won", "holds"),
    )
    for target in dict.fromkeys(score.target for score in scores.table):
        rows = [score for score in scores.table if score.target == target]
        models = [score.model.mae for score in rows]
        baselines = {
            name: [score.baselines[name].mae for score in rows if name in score.baselines] for name in BASELINE_NAMES
        }
        # A baseline that lacks a horizon has no mean beside the others.
        means = {name: float(np.mean(errors)) for name, errors in baselines.items() if len(errors) == len(rows)}
        held = [score.model.coverage for score in rows if score.model.coverage is not None]
        skill = 1.0 - float(np.mean(models)) / min(means.values()) if min(means.values(), default=0.0) > 0 else None
        board.add_row(
            _place(rows[0])[0],
            f"{horizon_text(rows[0])} to {horizon_text(rows[-1])}",
            _number(float(np.mean(models))),
            *(_number(means.get(name)) for name in BASELINE_NAMES),
            percent(skill),
            f"{sum(score.wins for score in rows)}/{len(rows)}",
            percent(float(np.mean(held)) if held else None),
        )
    return board


def _class_tables(scores: Scores) -> list[Table]:
    """The model and its baselines; then the confusion matrix."""
    part = scores.classification
    if part is None:
        return []
    errors = empty_table(
        f"{scores.data}: {part.count} labelled timesteps of {part.recordings} recordings, {scores.start} to {scores.end}",
        ("",),
        ("accuracy", "recordings", "macro F1", "cross-entropy", "perplexity"),
    )
    for name, error in {"model": part.model, **part.baselines}.items():
        errors.add_row(
            CLASS_BASELINE_NAMES.get(name, name),
            percent(error.accuracy),
            percent(error.recording_accuracy),
            f"{error.macro_f1:.3f}",
            _number(error.cross_entropy),
            _number(error.perplexity),
        )
    if len(part.classes) > CONFUSION_CLASSES:
        return [errors]
    matrix = empty_table(
        "share of each class (row) that is predicted as (column)", ("",), tuple(map(_short, part.classes))
    )
    for name, row in zip(part.classes, part.confusion, strict=True):
        total = max(sum(row), 1)
        matrix.add_row(Text(name), *(f"{100 * count / total:.0f} %" if count else "" for count in row))
    return [errors, matrix]


def _anomaly_tables(scores: Scores) -> list[Table]:
    """The model and PCA at the same false alarm rate, by event; then by kind of fault."""
    part = scores.anomaly
    if part is None:
        return []
    board = empty_table(
        f"{part.model.events} faults injected into {', '.join(part.columns[:MAX_NAMES])}{', ...' if len(part.columns) > MAX_NAMES else ''}",
        ("",),
        ("found", "in time", "false", "precision", "recall", "F1", "AUC-PR", "delay", "clean alarms/d"),
    )
    kinds = empty_table("found, by kind of fault", ("",), tuple(kind.kind for kind in part.model.kinds))
    for name, detector in (("model", part.model), ("PCA (T2, Q)", part.pca)):
        if detector is not None:
            board.add_row(
                name,
                f"{detector.found}/{detector.events}",
                str(detector.during),
                str(detector.false_alarms),
                percent(detector.precision),
                percent(detector.recall),
                f"{detector.f1:.3f}",
                f"{detector.auc_pr:.3f}",
                _number(detector.delay),
                _number(detector.clean_alarms_a_day),
            )
            kinds.add_row(name, *(f"{kind.found}/{kind.events}" for kind in detector.kinds))
    return [board, kinds]


def _cold_tables(scores: Scores) -> list[Table]:
    """How much worse a new stream is than a long one, by timestep; for the first few targets."""
    part = scores.cold_start
    if part is None:
        return []
    title = f"error of a new stream in % above that of a long one, up to timestep ...; {part.streams} streams"
    board = empty_table(title, ("target", "ahead"), (*(str(step) for step in part.steps), "settled after"))
    spans = {(score.target, score.horizon): horizon_text(score) for score in scores.table}
    for start in part.table[:COLD_ROWS]:
        board.add_row(
            Text(start.target),
            spans.get((start.target, start.horizon), ""),
            *(_more(cold, warm) for cold, warm in zip(start.cold, start.warm, strict=True)),
            "never" if start.settled is None else str(start.settled),
        )
    return [board]


def _more(cold: float, warm: float) -> str:
    """By how many per cent the error of a new stream is larger: `+12`."""
    return "-" if warm == 0 else f"{round(100 * (cold / warm - 1)):+d}"


def _short(name: str) -> Text:
    """The name of a class as a heading."""
    return Text(name[:CLASS_LETTERS])


def _stacked(boards: list[Table]) -> Group:
    """The tables below one another, each under its title; the title of a table itself would wrap at its width."""
    parts: list[RenderableType] = []
    for board in boards:
        parts += [Text(f"{board.title}\n"), board, Text()]
        board.title = None
    return Group(*parts)


def _place(score: Score) -> tuple[Text, str]:
    return Text(f"{score.target}, {score.unit}".removesuffix(", ")), horizon_text(score)  # Text: a name is no markup


def _cell(error: Error | None) -> str:
    return _number(error.mae if error else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
