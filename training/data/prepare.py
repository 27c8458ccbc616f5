"""From a request and its series to the input of a fit: the split, the scaler and the architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate.training.data import datasets, features
from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.data.overview import overview
from tidegate.training.data.scaler import Scaler, check_targets, fit_scaler
from tidegate.training.data.series import Series, count_rows, season_steps
from tidegate.training.data.split import Split, check_labels, check_truth, split_by_group, split_by_time
from tidegate.training.errors import SettingsError
from tidegate.training.settings import AlarmTimes, Architecture, Classify, Elapsed, Forecast, Request, Source

# A note is one line: it names the first few of many groups.
MAX_NAMES = 5


@dataclass(frozen=True)
class Prepared:
    """The input of a fit, beside its settings."""

    series: Series
    split: Split
    scaler: Scaler
    architecture: Architecture


def prepare(request: Request, series: Series, on_note: Callable[[str], None], split: Split | None = None) -> Prepared:
    """Split the series unless a split is given, fit the scaler, and choose the architecture.

    Features that are constant in the training part are left out.

    Raises:
        TrainingError: the series does not fit the request.
    """
    if split is None:
        for line in (*series.notes, *overview(series)):
            on_note(line)
        split = _split(request, series, on_note)
        check_scorable(request, series, split)
    scaler = fit_scaler(series, split.train)
    # Weights of an input that never moves are not trained: if it moves later, they would do anything.
    idle = [name for name in scaler.constant if not _is_needed(name, request, scaler.constant)]
    if idle and len(idle) < len(series.names):
        on_note(f"left out, because they are constant in the training part: {', '.join(idle)}")
        series = series.select([name for name in series.names if name not in idle])
        scaler = fit_scaler(series, split.train)
    return Prepared(series, split, scaler, _architecture(request, series, scaler, split))


def check_scorable(request: Request, series: Series, split: Split) -> None:
    """Check that each part has something to learn or to score, before a training spends time on it.

    Raises:
        TrainingError: a part has no true value of a target at a horizon, or no labelled row.
    """
    if request.task == "forecast":
        check_truth(series, split, [series.column(name) for name in _targets(request)], request.horizons)
    elif series.labels is not None:
        check_labels(series, split)


def _targets(request: Request) -> tuple[str, ...]:
    return request.target or _default_targets(request.source)


def _is_needed(name: str, request: Request, constant: Sequence[str]) -> bool:
    """Whether a constant feature stays: a target, the time since the last timestep, or what a feature is derived from."""
    futures = [f"{name}@+{horizon}" for horizon in request.horizons] if name in request.source.known else []
    return name in request.target or name == features.ELAPSED or any(future not in constant for future in futures)


def _split(request: Request, series: Series, on_note: Callable[[str], None]) -> Split:
    """Split by group if there is a column to split by, else by time."""
    horizon = max(request.horizons) if request.task == "forecast" else 0
    train, validation = request.train_share, request.validation_share
    if train + validation >= 1:
        raise SettingsError(
            f"train-share, validation-share: got {train:g} and {validation:g}, expected less than 1 together: what they "
            f"leave is held out"
        )
    if any(group.split_key for group in series.groups):
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
        listed = ", ".join(split.short[:MAX_NAMES]) + (", ..." if len(split.short) > MAX_NAMES else "")
        on_note(
            f"too short to be cut, so they are only trained on: {len(split.short)} of {len(series.groups)} groups ({listed})"
        )
    return split


def _architecture(request: Request, series: Series, scaler: Scaler, split: Split) -> Architecture:
    """The architecture for this series."""
    task: Forecast | Classify
    if request.task == "classify":
        task = Classify(classes=series.classes)
    else:
        targets = _targets(request)
        check_targets(series, scaler, targets)
        _check_future(request.source, targets)
        task = Forecast(
            targets=tuple(series.column(target) for target in targets),
            horizons=request.horizons,
            quantiles=request.quantiles,
            follow=request.follow and any(quantile != 0.5 for quantile in request.quantiles),
            links=request.links,
            season=request.season or season_steps(series.period_s) or 0,
            coverage=request.coverage,
            alarm_rate=request.alarm_rate,
            alarm_times=_alarm_times(request, series, split),
        )
        check_alarm(task)
    return Architecture(features=len(series.names), task=task, elapsed=_elapsed(series), **request.shape.model_dump())


def _alarm_times(request: Request, series: Series, split: Split) -> AlarmTimes | None:
    """The times of the alarm, if there is one."""
    asked = {"memory": request.alarm_memory, "slow": request.alarm_slow, "warm_up": request.alarm_warm_up}
    if request.alarm_rate is None:
        for name, value in asked.items():
            if value is not None:
                option = f"alarm-{name.replace('_', '-')}"
                raise SettingsError(f"{option}: got {value!r} without an alarm; ask for one with --alarm-rate")
        return None
    return alarm_times(count_rows(split.train + split.validation), series.period_s, **asked)


def _elapsed(series: Series) -> Elapsed | None:
    """The meaning of the seconds since the last timestep, if they are a feature."""
    if features.ELAPSED not in series.names:
        return None
    return Elapsed(
        feature=series.column(features.ELAPSED), usual_s=series.median_step_s, reset_s=series.gap_threshold_s
    )


def _check_future(source: Source, targets: Sequence[str]) -> None:
    """Check that no target is derived, or has a known future."""
    for target in targets:
        if target in source.known:
            raise SettingsError(
                f"known: {target!r} is a target as well, expected other columns: its future is what is to be forecast"
            )
        if features.is_derived(target):
            raise SettingsError(
                f"target: {target!r} is derived from the time or from another column; expected a measured one"
            )


def check_alarm(task: Forecast) -> None:
    """Check that an alarm has the one-step forecast that it needs.

    Raises:
        SettingsError: there is an alarm, and 1 is not among the horizons.
    """
    if task.alarm_rate is not None and 1 not in task.horizons:
        asked = ",".join(str(horizon) for horizon in task.horizons)
        raise SettingsError(
            f"horizons: got {asked}, expected 1 among them, because an alarm compares each timestep with its forecast; "
            f"add 1 to --horizons or leave out --alarm-rate"
        )


def _default_targets(source: Source) -> tuple[str, ...]:
    if source.data not in datasets.DATASETS:
        raise SettingsError("target: a file has no usual target; name the column to forecast with --target")
    usual = datasets.DATASETS[source.data].target
    if not usual:
        raise SettingsError(
            f"target: {source.data} is there to be classified; ask for --task classify, or name a --target"
        )
    return (usual,)
