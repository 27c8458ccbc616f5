"""Irregular time and missing values: what the network is told, and when a stream begins anew."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tidegate.training.data import features
from tidegate.training.data.scaler import Scaler, fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.judging.evaluate import Graph
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network, build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.publishing.parity import check_parity
from tidegate.training.settings import Architecture, Elapsed, Forecast

USUAL_S, RESET_S = 600.0, 900.0
TIME = 2  # the feature that holds the seconds since the last timestep


@pytest.fixture(scope="module")
def network() -> Network:
    """Two layers that are told the time since the last timestep in the last of three features."""
    mean, std = np.array([20.0, 5.0, 700.0], np.float32), np.array([3.0, 1.0, 50.0], np.float32)
    architecture = Architecture(
        features=3,
        task=Forecast(targets=(0,), horizons=(1, 3), quantiles=(0.1, 0.5, 0.9)),
        elapsed=Elapsed(feature=TIME, usual_s=USUAL_S, reset_s=RESET_S),
        hidden=8,
        layers=2,
    )
    return build_network(architecture, Scaler(mean, std, mean - std, mean + std, std / 4, ()), seed=1).eval()


@pytest.fixture(scope="module")
def graph(network: Network, make_series: Callable[..., Series]) -> tuple[Any, Graph]:
    """The network's ONNX graph, as a model and ready to step."""
    series = make_series(200)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
    facts = DataFacts.of(series, split, fit_scaler(series, split.train))
    model = build_graph(network, describe(network, facts, scores={}))
    return model, Graph(model.SerializeToString(), "test")


def rows(network: Network, steps: int, batch: int) -> torch.Tensor:
    """(time, batch, features) with holes, and silences that differ from stream to stream."""
    rng = np.random.default_rng(0)
    x = network.mean.numpy() + network.std.numpy() * rng.standard_normal((steps, batch, 3), np.float32)
    x[..., TIME] = np.where(rng.random((steps, batch)) < 0.1, 10 * RESET_S, USUAL_S)
    x[rng.random(x.shape) < 0.1] = np.nan
    return torch.from_numpy(x)


def stepped(network: Network, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """All outputs and the last state, one timestep at a time from the initial state."""
    state, each = network.initial_state(x.shape[1]), []
    with torch.no_grad():
        for now in x:
            outputs, state = network.step(now, state)
            each.append(outputs)
    return {name: torch.stack([outputs[name] for outputs in each]) for name in each[0]}, state


def test_steps_equal_the_sequence_where_streams_begin_anew(network: Network) -> None:
    """Also when some streams of a batch begin anew and others go on."""
    x = rows(network, 100, 4)
    wanted, wanted_state = stepped(network, x)
    with torch.no_grad():
        got, state = network.sequence(x, network.initial_state(4))
    assert (x[..., TIME] > RESET_S).any(dim=1).sum() > 20
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(state, wanted_state, atol=1e-5, rtol=0)


def test_a_long_silence_makes_the_state_fresh(network: Network) -> None:
    """What came before it changes nothing after it, last seen values included; a shorter one keeps the state."""
    x = rows(network, 30, 1)
    x[..., TIME] = USUAL_S
    x[20] = math.nan
    other = x.clone()
    other[:20, :, :TIME] += 5.0
    for seconds, forgets in ((RESET_S * 1.01, True), (RESET_S * 0.99, False)):
        x[20, :, TIME] = other[20, :, TIME] = seconds
        one, two = stepped(network, x)[0]["forecast"], stepped(network, other)[0]["forecast"]
        assert torch.equal(one[20:], two[20:]) is forgets


def test_a_missing_elapsed_time_keeps_the_state(network: Network) -> None:
    """A client that does not know it is taken to be in time."""
    x = rows(network, 2, 1)
    x[1, 0, TIME] = math.nan
    _, before = stepped(network, x[:1])
    with torch.no_grad():
        _, after = network.step(x[1], before)
        _, fresh = network.step(x[1], network.initial_state(1))
    assert not torch.allclose(after[1], fresh[1])


def test_the_network_gets_the_logarithm_of_the_steps(network: Network) -> None:
    """The usual step is 0, as in a new stream; a step of a week is no larger than a handful."""
    x = torch.full((1, 3), 20.0)
    seen = []
    for seconds in (USUAL_S, 0.0, 7 * 86_400.0):
        x[0, TIME] = seconds
        seen.append(float(network.step(x, network.initial_state(1))[1][0][0, TIME]))
    np.testing.assert_allclose(seen, [0.0, -math.log(2), math.log1p(7 * 86_400 / USUAL_S) - math.log(2)], rtol=0.025)


def test_the_graph_passes_the_gate_with_silences(network: Network, graph: tuple[Any, Graph]) -> None:
    """Graph and sequence agree over a thousand timesteps, some of which begin streams anew."""
    assert check_parity(network, graph[0]).outputs <= 1e-5


def test_one_stream_over_a_gap_is_as_two_streams(graph: tuple[Any, Graph], make_series: Callable[..., Series]) -> None:
    """The served graph begins anew at a gap by itself: the bits are those of a stream opened after it."""
    series = features.add_derived(make_series(60, features=2, gap_at=35), ["elapsed_s"])
    values = series.values[:, None]
    values[..., TIME] *= USUAL_S / 3600.0  # the series has a row an hour
    whole, state = graph[1].replay(values)
    fresh, initial_state = graph[1].replay(values[35:])
    for name in whole:
        np.testing.assert_array_equal(whole[name][35:], fresh[name])
    for name in state:
        np.testing.assert_array_equal(state[name], initial_state[name])


def test_a_row_has_the_same_bits_in_any_batch(network: Network, graph: tuple[Any, Graph]) -> None:
    """What the network is told of the time does not depend on where in a batch a row stands."""
    x = rows(network, 1, 64)[0].numpy()
    x[:, TIME] = np.exp(np.random.default_rng(1).normal(6.0, 3.0, 64))
    _, whole = graph[1].step(x, graph[1].initial_state(64))
    for row in range(64):
        _, alone = graph[1].step(x[row : row + 1], graph[1].initial_state(1))
        np.testing.assert_array_equal(alone["last"], whole["last"][row : row + 1])


@pytest.mark.parametrize("missing", ["mask", "last"])
def test_missing_values_are_held(missing: str) -> None:
    """Either way the sequence equals the steps; the cells are told which values are only held with `mask` alone."""
    mean = np.array([20.0, 5.0], np.float32)
    architecture = Architecture(
        features=2,
        task=Forecast(targets=(0,), horizons=(1,)),
        hidden=8,
        missing="mask" if missing == "mask" else "last",
    )
    network = build_network(architecture, Scaler(mean, mean / 5, mean, mean, mean / 20, ()), seed=1).eval()
    x = torch.from_numpy(mean * (1 + 0.2 * np.random.default_rng(0).standard_normal((50, 2, 2), np.float32)))
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = math.nan
    with torch.no_grad():
        got, _ = network.sequence(x, network.initial_state(2))
    torch.testing.assert_close(got["forecast"], stepped(network, x)[0]["forecast"], atol=1e-4, rtol=0)
    repeated = torch.tensor([[[21.0, 6.0]], [[21.0, 6.0]]])
    held = repeated.clone()
    held[1] = math.nan
    same = torch.equal(stepped(network, repeated)[0]["forecast"], stepped(network, held)[0]["forecast"])
    assert same is (missing == "last")
