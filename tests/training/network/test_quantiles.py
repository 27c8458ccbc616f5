"""Quantiles that follow the errors."""

import pytest
import torch

from tidegate.training.network.monitors import Observation
from tidegate.training.network.quantiles import HIGHEST, Quantiles
from tidegate.training.settings import Forecast


def shares_beyond(horizon: int, size: float, steps: int = 6000) -> tuple[float, float]:
    """The shares of the later true values below the 10 % and above the 90 % quantile, of normal errors of this size."""
    task = Forecast(targets=(0,), horizons=(horizon,), quantiles=(0.1, 0.5, 0.9))
    monitor = Quantiles(task)
    median = torch.zeros(1, 1, 1)
    # Those of a normal distribution with standard deviation 1.
    head_outputs = {"forecast": median, "quantiles": torch.tensor([-1.2816, 0.0, 1.2816]).view(1, 1, 1, 3)}
    values = size * torch.randn(steps, 1, 1, generator=torch.Generator().manual_seed(horizon))
    state, served = monitor.initial_state(1), []
    for value in values:
        observation = Observation(value, value, torch.zeros(1, 1, dtype=torch.bool))
        outputs, state = monitor.step(observation, head_outputs, state)
        served.append(outputs["quantiles"][0, 0, 0])
    edges = torch.stack(served)[steps // 3 : -horizon]
    truth = values[steps // 3 + horizon :, 0, 0]
    return (truth < edges[:, 0]).float().mean().item(), (truth > edges[:, 2]).float().mean().item()


@pytest.mark.parametrize("horizon", [1, 12])
@pytest.mark.parametrize("size", [0.6, 2.5])
def test_they_hold_their_share_whatever_the_errors(horizon: int, size: float) -> None:
    """A tenth of the values lies beyond each, where the network's own would hold nearly all or far too few."""
    below, above = shares_beyond(horizon, size)
    assert below == pytest.approx(0.1, abs=0.02)
    assert above == pytest.approx(0.1, abs=0.02)


def test_they_never_cross() -> None:
    """A factor stretches a step between two quantiles, so the order stays, and within its range."""
    task = Forecast(targets=(0,), horizons=(1,), quantiles=(0.05, 0.1, 0.5, 0.9))
    monitor = Quantiles(task)
    head_outputs = {
        "forecast": torch.zeros(1, 1, 1),
        "quantiles": torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 1, 4),
    }
    state = monitor.initial_state(1)
    for step in range(500):
        value = torch.full((1, 1), 50.0 if step % 5 else -50.0)
        outputs, state = monitor.step(
            Observation(value, value, torch.zeros(1, 1, dtype=torch.bool)), head_outputs, state
        )
        assert (outputs["quantiles"].diff() > 0).all()
    assert outputs["quantiles"].max() == pytest.approx(HIGHEST)


def test_a_missing_value_moves_nothing() -> None:
    """Neither does one that no forecast was made for: the first factors move at the fifth timestep."""
    monitor = Quantiles(Forecast(targets=(0,), horizons=(2,), quantiles=(0.1, 0.5, 0.9)))
    head_outputs = {"forecast": torch.zeros(1, 1, 1), "quantiles": torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)}
    state, moved = monitor.initial_state(1), []
    for missing in (False, False, True, True, False):
        value = torch.full((1, 1), 9.0)
        _, state = monitor.step(Observation(value, value, torch.tensor([[missing]])), head_outputs, state)
        moved.append(bool(state[0][0, -2:].any()))
    assert moved == [False, False, False, False, True]


def test_far_horizons_that_are_close_share_their_factors() -> None:
    """The state of 96 horizons holds the forecasts of a few: it grows with the furthest, not with the sum of all."""
    monitor = Quantiles(Forecast(targets=(0,), horizons=tuple(range(1, 97)), quantiles=(0.1, 0.5, 0.9)))
    assert monitor.horizons == [1, 2, 4, 8, 16, 32, 64]
    assert monitor.widths == (3 * 127 + 7 * 2,)


@pytest.mark.parametrize("horizon", [1, 6, 24, 96])
def test_a_factor_moves_little_before_its_forecasts_come_true(horizon: int) -> None:
    """Errors far ahead last as long as the way to them. Factors that followed each of them swung from one side to the other."""
    monitor = Quantiles(Forecast(targets=(0,), horizons=(horizon,), quantiles=(0.1, 0.5, 0.9)))
    head_outputs = {"forecast": torch.zeros(1, 1, 1), "quantiles": torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)}
    state, value = monitor.initial_state(1), torch.full((1, 1), 9.0)
    for _ in range(2 * horizon):
        outputs, state = monitor.step(
            Observation(value, value, torch.zeros(1, 1, dtype=torch.bool)), head_outputs, state
        )
    assert 1.0 < outputs["quantiles"].max() <= 1.5
