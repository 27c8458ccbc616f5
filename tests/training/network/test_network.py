"""The network: guard, scaler, cells and head, the same in a sequence and step by step."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tidegate.training.network.cells import State
from tidegate.training.network.network import Network


def run_steps(network: Network, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """All forecasts and the last state, one timestep at a time."""
    forecasts = []
    with torch.no_grad():
        for now in x:
            outputs, state = network.step(now, state)
            forecasts.append(outputs["forecast"])
    return torch.stack(forecasts), state


def run_sequence(network: Network, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """All forecasts and the last state, in one go."""
    with torch.no_grad():
        outputs, state = network.sequence(x, state)
    return outputs["forecast"], state


@pytest.mark.parametrize("layers", [1, 2])
def test_steps_equal_the_sequence(
    make_network: Callable[..., Network], sensor_rows: Callable[..., Any], layers: int
) -> None:
    """Step by step, with values missing, gives the forecasts and the state of the whole sequence."""
    network = make_network(layers=layers, targets=(0, 2))
    x = torch.from_numpy(sensor_rows(200, 4))
    wanted, wanted_state = run_sequence(network, x, network.initial_state(4))
    got, state = run_steps(network, x, network.initial_state(4))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)  # raw units around 20: 1e-4 is float32's rounding
    torch.testing.assert_close(state, wanted_state, atol=1e-5, rtol=0)


def test_a_sequence_may_be_cut_anywhere(make_network: Callable[..., Network], sensor_rows: Callable[..., Any]) -> None:
    """Two halves with the state carried give what the whole gives, also when a sensor is silent across the cut."""
    network = make_network()
    x = torch.from_numpy(sensor_rows(60, 2))
    x[25:35, :, 1] = math.nan
    wanted, wanted_state = run_sequence(network, x, network.initial_state(2))
    first, state = run_sequence(network, x[:30], network.initial_state(2))
    second, state = run_sequence(network, x[30:], state)
    torch.testing.assert_close(torch.cat([first, second]), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, wanted_state, atol=1e-5, rtol=0)


def test_a_missing_value_is_the_last_seen_one(make_network: Callable[..., Network]) -> None:
    """The state `last` keeps the scaled value of the last timestep that had one."""
    network = make_network()
    seen = network.mean + 2 * network.std
    _, state = run_steps(network, torch.stack([seen, torch.full((3,), math.nan)])[:, None], network.initial_state(1))
    torch.testing.assert_close(state[0], torch.full((1, 3), 2.0))


def test_before_the_first_value_a_sensor_is_at_its_mean(make_network: Callable[..., Network]) -> None:
    """A new stream that sends only missing values is held at the training mean: zero in scaled units."""
    network = make_network()
    _, state = run_steps(network, torch.full((5, 1, 3), math.nan), network.initial_state(1))
    assert torch.equal(state[0], torch.zeros(1, 3))


def test_missing_values_leave_the_state_healthy(
    make_network: Callable[..., Network], sensor_rows: Callable[..., Any]
) -> None:
    """After a thousand silent timesteps nothing in state or forecast is NaN, infinite or out of range."""
    network = make_network(layers=2)
    silent = np.full((1000, 2, 3), np.nan, np.float32)
    forecast, state = run_steps(
        network, torch.from_numpy(np.concatenate([sensor_rows(50, 2), silent])), network.initial_state(2)
    )
    assert torch.isfinite(forecast).all()
    assert all(torch.isfinite(part).all() for part in state)
    assert all(part.abs().max() <= 1 for part in state[1::2])  # h of an LSTM


def test_the_cell_gets_the_mask_of_missing_values(make_network: Callable[..., Network]) -> None:
    """A value that is missing and one that is repeated differ in the forecast."""
    network = make_network()
    value = torch.full((1, 1, 3), 20.0)
    present, _ = run_sequence(network, torch.cat([value, value]), network.initial_state(1))
    missing, _ = run_sequence(network, torch.cat([value, value * math.nan]), network.initial_state(1))
    assert not torch.allclose(present[1], missing[1])


def test_raw_units_in_raw_units_out(make_network: Callable[..., Network]) -> None:
    """The same network behind other units gives the same forecast in those units: scaling is inside."""
    network, other = make_network(), make_network()
    with torch.no_grad():
        other.mean.copy_(network.mean * 1000 + 5)
        other.std.copy_(network.std * 1000)
    x = 20 + torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(0))
    raw, _ = run_sequence(network, x, network.initial_state(2))
    scaled, _ = run_sequence(other, x * 1000 + 5, other.initial_state(2))
    torch.testing.assert_close(scaled, raw * 1000 + 5, rtol=1e-4, atol=0)


def test_the_head_starts_at_the_last_value(make_network: Callable[..., Network]) -> None:
    """With nothing learned by the line, the forecast of every horizon is the last seen value of the target."""
    network = make_network(targets=(2,))
    with torch.no_grad():
        network.head.share["last"].zero_()
        network.head.line.weight.zero_()
        network.head.line.bias.zero_()
    forecast, _ = run_sequence(network, torch.tensor([[[1.0, 2.0, 30.0]]]), network.initial_state(1))
    torch.testing.assert_close(forecast, torch.full((1, 1, 2, 1), 30.0))


def test_state_names_follow_the_layers(make_network: Callable[..., Network]) -> None:
    """`last` comes first, then h and c of each layer; shapes go with the names."""
    network = make_network(layers=2)
    assert network.state_names == ("last", "h0", "c0", "h1", "c1")
    assert [tuple(part.shape) for part in network.initial_state(5)] == [(5, 3), *[(1, 5, 8)] * 4]
