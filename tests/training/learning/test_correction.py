"""What is left of a correction, and whether a level is worth having."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series, Spans, future_values
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.learning import choice, correction
from tidegate.training.learning.choice import after_trials, choose_level
from tidegate.training.learning.correction import settle
from tidegate.training.learning.fit import fit
from tidegate.training.learning.links import Given, prepare_links, set_links
from tidegate.training.network.network import Network, build_network
from tidegate.training.settings import Architecture, Fit, Forecast

TASK = Forecast(targets=(0, 1), horizons=(1, 4), links=("linear",), season=24)
QUICK = Fit(epochs=2, lanes=4, chunk=16, burn_in=4)


@pytest.fixture
def given(make_series: Callable[..., Series]) -> tuple[Series, Split, Given]:
    """A series, its split, and the network for it."""
    series = make_series(800)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=4)
    architecture = Architecture(features=3, hidden=4, task=TASK, level="off")
    return series, split, prepare_links(series, split, fit_scaler(series, split.train), architecture)


@pytest.fixture
def network(given: tuple[Series, Split, Given]) -> Network:
    """That network, before it learns."""
    series, split, own = given
    scaler = fit_scaler(series, split.train)
    network = build_network(own.architecture, scaler, seed=0).eval()
    set_links(network, own.ridge, series, split, scaler)
    return network


def test_a_harmful_correction_is_taken_back(network: Network, given: tuple[Series, Split, Given]) -> None:
    """A correction that adds a constant error leaves nothing of itself, at any horizon."""
    with torch.no_grad():
        network.head.line.bias.fill_(3.0)
    correction = settle(network, given[0], given[1])
    assert correction is not None
    assert not network.head.kept.any()
    assert correction.gain == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(correction.linear, correction.corrected, rtol=1e-6)


def test_a_useful_correction_is_kept(network: Network, given: tuple[Series, Split, Given]) -> None:
    """Where the regression is wrong by a constant at one horizon of one target, the correction of that one is left."""
    series, split, _ = given
    with torch.no_grad():
        network.head.linear.lines[1].bias.add_(2.0)
        line = network.head.line.bias.view(2, 2)  # (horizons, targets)
        line[:, 1] = -2.0 / network.head.naive[:, 1]
        line[1, 1] *= -1  # and doubles the error at the other horizon
    correction = settle(network, series, split)
    assert correction is not None
    assert network.head.kept.tolist() == [[0, 1], [0, 0]]
    assert correction.corrected[0, 1] < 0.7 * correction.linear[0, 1]
    assert 0 < correction.gain < 1


def test_the_errors_are_those_of_the_validation_part(network: Network, given: tuple[Series, Split, Given]) -> None:
    """As the solver's own formula makes them; the held-out part may hold anything."""
    series, split, own = given
    assert own.ridge is not None
    truth = future_values(series, TASK.targets, TASK.horizons, split.validation)
    missed = np.nanmean(np.abs(own.ridge.forecast(series, split.validation) - truth), axis=0) / own.ridge.std[[0, 1]]
    changed = replace(series, values=series.values.copy())
    changed.values[split.test[0][0] :] = 1e6
    correction = settle(network, changed, split)
    assert correction is not None
    np.testing.assert_allclose(correction.linear, missed, rtol=1e-3)


def test_without_a_linear_link_there_is_nothing_to_settle(given: tuple[Series, Split, Given]) -> None:
    """A network that corrects the last value keeps all that it has learned."""
    series, split, own = given
    task = TASK.model_copy(update={"links": ("last",)})
    architecture = own.architecture.model_copy(update={"task": task})
    fitted = fit(series, split, fit_scaler(series, split.train), architecture, QUICK)
    assert settle(fitted.network, series, split) is None


@pytest.mark.parametrize(("off", "level"), [(0.99, "off"), (0.998, "on"), (1.2, "on")])
def test_a_level_is_left_out_only_if_that_is_clearly_better(
    given: tuple[Series, Split, Given], monkeypatch: pytest.MonkeyPatch, off: float, level: str
) -> None:
    """By half a per cent of the validation score."""
    series, split, own = given

    def scored(*positions: object, **names: object) -> object:
        fitted = fit(*positions, **names)  # type: ignore[arg-type]  # as it was called
        score = 1.0 if fitted.network.level else off
        return replace(fitted, best=replace(fitted.best, score=score))

    monkeypatch.setattr(choice, "fit", scored)
    monkeypatch.setattr(choice, "TRIAL_EPOCHS", 1)
    monkeypatch.setattr(choice, "LEVEL_SHARE", 0.0)
    chosen = choose_level(series, split, fit_scaler(series, split.train), own, QUICK)
    assert chosen.architecture.level == level
    assert (chosen.architecture.level_steps is None) == (level == "off")


def test_where_the_regression_has_no_level_the_network_has_none(
    given: tuple[Series, Split, Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is tried."""
    series, split, own = given
    assert own.ridge is not None
    lines = tuple(
        tuple(tuple(replace(line, features=0 * line.features) for line in target) for target in lag)
        for lag in own.ridge.lines
    )
    level_free = replace(own, ridge=replace(own.ridge, lines=lines))
    monkeypatch.setattr(choice, "fit", None)
    chosen = choose_level(series, split, fit_scaler(series, split.train), level_free, QUICK)
    assert chosen.architecture.level_steps is not None


def with_holes(series: Series, rows: float = 0.1) -> Series:
    """The series with some missing values, in other rows of each column."""
    values = series.values.copy()
    values[np.random.default_rng(3).random(values.shape) < rows] = np.nan
    return replace(series, values=values)


@pytest.mark.parametrize("chunk", [7, 64])
def test_sums_of_chunks_are_those_of_all_forecasts_at_once(
    network: Network, given: tuple[Series, Split, Given], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Errors by block, horizon, target and share, to the last digits."""
    series, split = with_holes(given[0]), given[1]
    with torch.no_grad():
        network.head.line.weight.normal_(generator=torch.Generator().manual_seed(1))
    spans = split.validation
    with torch.no_grad():
        monkeypatch.setattr(correction, "CHUNK", chunk)
        _, linear, full = (np.concatenate(part) for part in zip(*replay(network, series, spans), strict=True))
        sums = correction._Sums.over(network, network.head, series, spans)
    mean, std = (part.numpy()[[0, 1]].astype(np.float64) for part in (network.mean, network.std))
    truth = (future_values(series, TASK.targets, TASK.horizons, spans) - mean) / std
    for place in np.ndindex(network.head.shape):
        column = (slice(None), *place)
        known = ~np.isnan(truth[column])
        error, change = (truth - linear)[column][known], (full - linear)[column][known]
        for number, block in enumerate(np.array_split(np.arange(len(error)), correction.BLOCKS)):
            assert sums.count[number, *place] == len(block)
            for at, share in enumerate(correction.SHARES):
                wanted = np.abs(error[block] - share * change[block]).sum()
                assert sums.absolute[number, at, *place] == pytest.approx(wanted, rel=1e-12)


def replay(network: Network, series: Series, spans: Spans) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All chunks."""
    return list(correction._replay(network, network.head, series, spans))


def test_the_memory_of_sums_does_not_grow_with_the_rows(
    network: Network, given: tuple[Series, Split, Given], make_series: Callable[..., Series]
) -> None:
    """Eight times as many rows: all forecasts would be eight times as many."""
    peaks = []
    for rows in (4_000, 32_000):
        series = make_series(rows)
        with torch.no_grad():
            tracemalloc.start()
            correction._Sums.over(network, network.head, series, ((0, rows),))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # What stays is the place of each row, and the end of its segment.
    assert peaks[1] - peaks[0] < 28_000 * 6 * 8


def test_trials_and_training_share_a_time_limit() -> None:
    """Ten minutes are one for each trial and eight for the rest; without a limit nothing changes."""
    assert after_trials(QUICK.model_copy(update={"minutes": 10.0})).minutes == pytest.approx(8.0)
    assert after_trials(QUICK) == QUICK


def test_without_truth_the_last_value_is_corrected(given: tuple[Series, Split, Given]) -> None:
    """A horizon that the validation part has no true value for leaves no regression."""
    series, split, own = given
    task = TASK.model_copy(update={"horizons": (1, 200)})
    architecture = own.architecture.model_copy(update={"task": task})
    without = prepare_links(series, split, fit_scaler(series, split.train), architecture)
    assert without.ridge is None
    assert without.architecture.task.links == ("last",)
