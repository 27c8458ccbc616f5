"""The linear link and the running level, inside the network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.ridge import fit_ridge
from tidegate.training.learning.links import prepare_links, set_links
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.level import BLOCK, Level
from tidegate.training.network.network import Network, add_monitors, build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.settings import Architecture, Forecast

TASK = Forecast(targets=(0, 2), horizons=(1, 6), quantiles=(0.1, 0.5, 0.9), links=("linear",), season=24)


@pytest.fixture
def untrained(make_series: Callable[..., Series]) -> tuple[Network, Series, Split]:
    """A network as it is before its first epoch, and what it is for."""
    series = make_series(600)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=6)
    scaler = fit_scaler(series, split.train)
    given = prepare_links(series, split, scaler, Architecture(features=3, hidden=4, level="on", task=TASK))
    network = build_network(given.architecture, scaler, seed=0).eval()
    set_links(network, given.ridge, series, split, scaler)
    return network, series, split


def forecasts(network: Network, values: Any) -> dict[str, Any]:
    """The served outputs of one new stream."""
    with torch.no_grad():
        outputs, _ = network.sequence(torch.from_numpy(values[:, None]), network.initial_state(1))
    return {name: part[:, 0].numpy() for name, part in outputs.items()}


def test_an_untrained_network_is_the_ridge(untrained: tuple[Network, Series, Split]) -> None:
    """From the first row of a stream on it forecasts what the solver's own formula does, be the past short or long."""
    network, series, split = untrained
    ridge = fit_ridge(series, split, TASK.targets, TASK.horizons, season=24)
    assert ridge is not None
    assert len(ridge.lags) > 2
    outputs = forecasts(network, series.values)["forecast"]
    np.testing.assert_allclose(outputs, ridge.forecast(series, series.spans), rtol=0, atol=1e-3)


def test_its_first_quantiles_are_those_of_the_ridge_s_errors(untrained: tuple[Network, Series, Split]) -> None:
    """Of the training rows, a tenth lies below the first, and a tenth above the last."""
    network, series, split = untrained
    quantiles = forecasts(network, series.values)["quantiles"]
    first, end = split.train[0]
    truth = series.values[first + 1 : end, [0, 2], None]
    below = (truth < quantiles[first : end - 1, 0]).mean(axis=0)  # (targets, quantiles)
    np.testing.assert_allclose(below, [[0.1, 0.5, 0.9]] * 2, atol=0.02)


def test_the_first_value_of_a_stream_fills_the_window(untrained: tuple[Network, Series, Split]) -> None:
    """A sensor that is silent at first is forecast, once it speaks, like one that begins then."""
    network, series, _ = untrained
    late = series.values[:40].copy()
    late[:10] = np.nan
    silent, begun = (forecasts(network, values)["forecast"] for values in (late, late[10:]))
    np.testing.assert_allclose(silent[10:], begun, rtol=0, atol=1e-4)


def test_a_history_warms_up_like_a_replay(untrained: tuple[Network, Series, Split]) -> None:
    """Last values, window and level after a history, without the cells, are those of a whole run over it."""
    network, series, _ = untrained
    history = torch.from_numpy(series.values[:300])
    history[:7, 0] = torch.nan
    history[150:160, 2] = torch.nan
    with torch.no_grad():
        _, state = network.sequence(history[:, None], network.initial_state(1))
        warmed = network.warm(history)
    named = dict(zip(network.state_names, state, strict=True))
    assert set(warmed) == {"last", "level", "window"}
    for name, part in warmed.items():
        torch.testing.assert_close(part, named[name], atol=1e-5, rtol=0)


def test_values_are_relative_to_their_mean_so_far() -> None:
    """In a new stream that is the mean of what it has seen; later ones forget."""
    level = Level(1, steps=4)
    values = torch.tensor([5.0, 7.0, 7.0]).view(3, 1, 1)
    relative, state = level.sequence(values, torch.zeros(3, 1, 1, dtype=torch.bool), level.initial_state(1))
    assert relative[0].item() == 0
    weights = 0.75 ** np.arange(3)
    assert relative[1].item() == pytest.approx(7 - np.average([7, 5], weights=weights[:2]))
    assert relative[2].item() == pytest.approx(7 - np.average([7, 7, 5], weights=weights))
    assert state[0][0, 1].item() == pytest.approx(1 - 0.75**3)


def test_a_moved_sensor_looks_the_same_to_the_layers() -> None:
    """The same values on another level are relative to it the same, from the first row and over blocks."""
    level = Level(1, steps=50)
    values = torch.randn(2 * BLOCK + 9, 1, 1, generator=torch.Generator().manual_seed(0))
    missing = torch.zeros_like(values, dtype=torch.bool)
    one, other = (level.sequence(values + shift, missing, level.initial_state(1))[0] for shift in (0.0, 10.0))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_derived_feature_has_no_level(make_series: Callable[..., Series]) -> None:
    """The phase of a day is seen as it is: a mean would take it away."""
    series = make_series(600)
    object.__setattr__(series, "names", ("s0", "day_sin", "s2"))
    split = split_by_time(series, train=0.7, validation=0.15, horizon=6)
    scaler = fit_scaler(series, split.train)
    given = prepare_links(series, split, scaler, Architecture(features=3, hidden=4, level="on", task=TASK))
    network = build_network(given.architecture, scaler, seed=0)
    set_links(network, given.ridge, series, split, scaler)
    assert network.level is not None
    assert (network.level.spread > 0).tolist() == [True, False, True]


def test_the_graph_gives_the_same_bits_in_any_batch(
    untrained: tuple[Network, Series, Split], make_facts: Callable[[int], DataFacts], sensor_rows: Callable[..., Any]
) -> None:
    """Window, level and quantiles that follow: each stream says alone what it says beside others."""
    network, *_ = untrained
    task = network.architecture.task.model_copy(update={"follow": True})
    full = add_monitors(network, network.architecture.model_copy(update={"task": task}))
    graph = Graph(build_graph(full, describe(full, make_facts(3), scores={})).SerializeToString(), "toy")
    assert list(graph.state)[-2:] == ["window", "spread"]
    rows = sensor_rows(60, 16)
    together, _ = graph.replay(rows)
    for count in (1, 5):
        alone, _ = graph.replay(np.ascontiguousarray(rows[:, -count:]))
        for name, part in alone.items():
            np.testing.assert_array_equal(part, together[name][:, -count:])
