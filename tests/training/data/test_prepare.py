"""What a training checks before its first epoch, and what it says of the data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tidegate.training import errors
from tidegate.training.data.prepare import Prepared, prepare
from tidegate.training.data.series import Series
from tidegate.training.settings import Request, Source


def bursts(series: Series, length: int) -> Series:
    """The series with a gap of a hundred hours after every so many rows: measured in the daytime only."""
    hours = np.arange(len(series)) + 100 * (np.arange(len(series)) // length)
    return replace(series, times=series.times[0] + hours * np.timedelta64(3600, "s"))


def prepared(series: Series, notes: list[str] | None = None, **settings: object) -> Prepared:
    """What a training of the series begins with."""
    request = Request.model_validate(
        {"source": Source(data="toy.csv"), "target": "s0", "name": "toy", "out": Path("run")} | settings
    )
    return prepare(request, series, (notes if notes is not None else []).append)


def test_bursts_shorter_than_the_horizon_are_refused(make_series: Callable[..., Series]) -> None:
    """No row has a true value that far ahead: that is said before the first epoch, with a way out."""
    series = bursts(make_series(600), 12)
    with pytest.raises(errors.SeriesTooShort, match=r"stretches of at most 12 rows, expected .* 14 .*--fill-gaps"):
        prepared(series, horizons="1,12")
    assert prepared(series, horizons="1,10").architecture.features == 3


def test_a_part_without_a_true_value_of_the_target_is_refused(make_series: Callable[..., Series]) -> None:
    """There would be nothing to score after the training."""
    series = make_series(600)
    series.values[520:, 0] = np.nan
    with pytest.raises(errors.SeriesTooShort, match=r"'s0' has no value 12 steps after .* held-out part"):
        prepared(series, horizons="1,12")


def test_a_part_without_a_label_is_refused(make_series: Callable[..., Series]) -> None:
    """There would be nothing to choose the weights by, or nothing to score."""
    labels = np.arange(600) % 2
    labels[420:510] = -1
    series = replace(make_series(600), labels=labels, classes=("a", "b"), label_column="state")
    with pytest.raises(errors.SeriesTooShort, match="no row of the validation part has a class in column 'state'"):
        prepared(series, task="classify", target="")


def test_range_period_and_gaps_are_told_first(make_series: Callable[..., Series]) -> None:
    """A wrong time column is seen before anybody waits."""
    notes: list[str] = []
    prepared(make_series(600, gap_at=200), notes, horizons="1")
    assert notes[0] == "toy: 600 rows of 3 features, 2024-01-01T00:00:00 to 2024-01-30T03:00:00, a row every 1 h"
    assert notes[1] == (
        "100 rows are absent, in 1 gap; 1 gap cuts the series: nothing crosses them; "
        "the longest stretch has 400 rows, 16.67 d"
    )
