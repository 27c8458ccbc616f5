"""The statistics of the training part, feature by feature, that scale a series."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.training.data.series import Floats, Series, Spans
from tidegate.training.errors import ConstantTarget, EmptyColumn
from tidegate.training.settings import as_typed

# float32 keeps seven digits: a standard deviation below this fraction of the mean is rounding, not signal.
CONSTANT_SPREAD = 1e-6


@dataclass(frozen=True)
class Scaler:
    """The statistics of the training part, all (features,) float32.

    Mean, standard deviation and range; `step` is the standard deviation of the change from one timestep to the next.

    `constant` names the features that do not change. Their `std` and `step` are 1, so that they scale to zero, not to NaN.
    """

    mean: Floats
    std: Floats
    low: Floats
    high: Floats
    step: Floats
    constant: tuple[str, ...]


def fit_scaler(series: Series, spans: Spans) -> Scaler:
    """The statistics of the rows in the spans, without missing values.

    Raises:
        EmptyColumn: a feature has no value in these rows.
    """
    moments = np.array([_moments(series, index, spans) for index in range(len(series.names))])  # (features, 5)
    mean, std, low, high, step = moments.T
    constant = std <= CONSTANT_SPREAD * np.abs(mean)
    return Scaler(
        mean=mean.astype(np.float32),
        std=np.where(constant, 1.0, std).astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        step=np.where(constant | (step == 0), np.where(constant, 1.0, std), step).astype(np.float32),
        constant=tuple(name for name, flat in zip(series.names, constant, strict=True) if flat),
    )


def _moments(series: Series, index: int, spans: Spans) -> tuple[float, ...]:
    """Mean, standard deviation, range and step of one column; columns one by one keep millions of rows cheap."""
    # Sums of 1e7 rows lose digits in float32.
    values = np.concatenate([series.values[first:end, index] for first, end in spans]).astype(np.float64)
    if np.isnan(values).all():
        column = series.names[index]
        raise EmptyColumn(
            f"{series.name}: column {column!r} has no value in the training part ({len(values)} rows); "
            f"leave it out with --exclude {as_typed(column)}"
        )
    steps = np.diff(values)
    # A step does not cross a gap or the end of a group.
    ends = np.cumsum([end - first for first, end in series.segments(spans)])
    steps[ends[:-1] - 1] = np.nan
    step = 0.0 if np.isnan(steps).all() else float(np.nanstd(steps))
    return float(np.nanmean(values)), float(np.nanstd(values)), float(np.nanmin(values)), float(np.nanmax(values)), step


def check_targets(series: Series, scaler: Scaler, targets: Sequence[str]) -> None:
    """Check that each target exists and changes in the training part.

    Raises:
        MissingColumn: the series has no such feature.
        ConstantTarget: the target never changes.
    """
    for target in targets:
        index = series.column(target)
        if target in scaler.constant:
            raise ConstantTarget(
                f"{series.name}: target {target!r} is always {scaler.mean[index]:g} in the training part; "
                f"expected a column that changes"
            )
