"""From a request and its series to all that a fit needs: the split, the scaler, and what to build."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.data import datasets, features
from training.data.scaler import Scaler, check_targets, fit_scaler
from training.data.series import Series, season_steps
from training.data.split import Split, split_by_group, split_by_time
from training.errors import SettingsError
from training.settings import Architecture, Classify, Elapsed, Forecast, Request, Source

# A note is a line: of many groups the first few are named.
NAMED = 5


@dataclass(frozen=True)
class Prepared:
    """All that a fit needs beside its settings."""

    series: Series
    split: Split
    scaler: Scaler
    architecture: Architecture


def prepare(request: Request, series: Series, on_note: Callable[[str], None], split: Split | None = None) -> Prepared:
    """Split unless that is done, and scale a series, and say what to build for it.

    Raises:
        TrainingError: the series does not have what was asked for.
    """
    split = split or _split(request, series, on_note)
    scaler = fit_scaler(series, split.train)
    for name in scaler.constant:
        on_note(f"column {name!r} is constant in the training part: it teaches nothing and is left unscaled")
    return Prepared(series, split, scaler, _architecture(request, series, scaler))


def _split(request: Request, series: Series, on_note: Callable[[str], None]) -> Split:
    """Whole values of the column to split by where there is one, else by time."""
    horizon = max(request.horizons) if request.task == "forecast" else 0
    train, validation = request.train_share, request.validation_share
    if train + validation >= 1:
        raise SettingsError(
            f"train-share, validation-share: got {train:g} and {validation:g}, expected less than 1 together: what they "
            f"leave is held out"
        )
    if any(group.whole for group in series.groups):
        return split_by_group(
            series,
            train=train,
            validation=validation,
            seed=request.split_seed,
            hold_out=request.hold_out,
            validate=request.validate_on,
            horizon=horizon,
        )
    for option, names in (("hold-out", request.hold_out), ("validate-on", request.validate_on)):
        if names:
            raise SettingsError(
                f"{option}: got {', '.join(names)} but the data is split by time; name the column that has these "
                f"values with --split-by"
            )
    split = split_by_time(series, train=train, validation=validation, horizon=horizon)
    if split.short:
        named = ", ".join(split.short[:NAMED]) + (", ..." if len(split.short) > NAMED else "")
        on_note(f"too short to be cut, so they only teach: {len(split.short)} of {len(series.groups)} groups ({named})")
    return split


def _architecture(request: Request, series: Series, scaler: Scaler) -> Architecture:
    """What to build for this series."""
    task: Forecast | Classify
    if request.task == "classify":
        task = Classify(classes=series.classes)
    else:
        targets = request.target or _usual_targets(request.source)
        check_targets(series, scaler, targets)
        _check_future(request.source, targets)
        task = Forecast(
            targets=tuple(series.column(target) for target in targets),
            horizons=request.horizons,
            quantiles=request.quantiles,
            links=request.links,
            season=request.season or season_steps(series.period_s) or 0,
            coverage=request.coverage,
            alarm_rate=request.alarm_rate,
        )
        check_alarm(task)
    return Architecture(features=len(series.names), task=task, elapsed=_elapsed(series), **request.shape.model_dump())


def _elapsed(series: Series) -> Elapsed | None:
    """What the seconds since the last timestep mean, if they are a feature."""
    if features.ELAPSED not in series.names:
        return None
    return Elapsed(feature=series.column(features.ELAPSED), usual_s=series.usual_s, reset_s=series.gap_s)


def _check_future(source: Source, targets: Sequence[str]) -> None:
    """What is made from others, or whose future is given, is not there to be forecast."""
    for target in targets:
        if target in source.known:
            raise SettingsError(
                f"known: {target!r} is a target as well, expected other columns: its future is what is to be forecast"
            )
        if features.can_make(target):
            raise SettingsError(
                f"target: {target!r} is made from the time or from another column; expected a measured one"
            )


def check_alarm(task: Forecast) -> None:
    """See that an alarm, if one is asked for, has the forecasts that it needs.

    Raises:
        SettingsError: the next timestep is not among the horizons.
    """
    if task.alarm_rate is not None and 1 not in task.horizons:
        asked = ",".join(str(horizon) for horizon in task.horizons)
        raise SettingsError(
            f"horizons: got {asked}, expected 1 among them, because an alarm compares each timestep with its forecast; "
            f"add 1 to --horizons or leave out --alarm-rate"
        )


def _usual_targets(source: Source) -> tuple[str, ...]:
    if source.data not in datasets.DATASETS:
        raise SettingsError("target: a file has no usual target; name the column to forecast with --target")
    usual = datasets.DATASETS[source.data].target
    if not usual:
        raise SettingsError(
            f"target: {source.data} is there to be classified; ask for --task classify, or name a --target"
        )
    return (usual,)
