"""The fit of monitors to the validation part."""

from collections.abc import Callable

import pytest
import torch

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.learning import calibration
from tidegate.training.network.network import build_network
from tidegate.training.settings import Architecture, Forecast


def test_intervals_are_the_same_fitted_at_once_or_by_horizon(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores of many horizons do not fit into the memory; the bits of the fit are those of one in a single pass."""
    series = make_series(800)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=9)
    task = Forecast(targets=(0, 2), horizons=(1, 4, 9), quantiles=(0.1, 0.5, 0.9), coverage=0.8)
    fits = []
    for most in (calibration.SCORES_AT_ONCE, 480, 1):  # three horizons, two, and one at a time
        monkeypatch.setattr(calibration, "SCORES_AT_ONCE", most)
        network = build_network(Architecture(features=3, hidden=4, task=task), fit_scaler(series, split.train), seed=0)
        calibration.calibrate(network, series, split)
        monitor = next(part for part in network.monitors if hasattr(part, "step_size"))
        fits.append(torch.stack([monitor.start, monitor.scale]))
    assert fits[0].unique().numel() == 12
    assert torch.equal(fits[0], fits[1])
    assert torch.equal(fits[0], fits[2])
