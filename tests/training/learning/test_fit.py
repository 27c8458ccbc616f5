"""Learning: what it minimises, what it keeps, and when it ends."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.errors import Diverged, SettingsError
from tidegate.training.learning import batches, loader
from tidegate.training.learning import fit as fitting
from tidegate.training.learning.batches import Plan, Sequences
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.fit import FitResult, fit
from tidegate.training.learning.links import Given
from tidegate.training.learning.schedule import FINAL_RATE
from tidegate.training.settings import Architecture, Fit, Forecast

TASK = Forecast(targets=(0,), horizons=(1, 3), quantiles=(0.1, 0.9))
QUICK = Fit(epochs=3, lanes=4, chunk=16, burn_in=4, seed=5)


@pytest.fixture
def learn(make_series: Callable[..., Series]) -> Callable[..., FitResult]:
    """Fits a small network to a toy series."""

    def run(
        settings: Fit = QUICK,
        series: Series | None = None,
        on_epoch: Callable[[Epoch, Epoch], None] = lambda _epoch, _best: None,
        **shape: Any,
    ) -> FitResult:
        series = series if series is not None else make_series(400)
        split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
        architecture = Architecture(features=len(series.names), **{"task": TASK, "hidden": 8} | shape)
        return fit(series, split, fit_scaler(series, split.train), architecture, settings, on_epoch)

    return run


def weights(fitted: FitResult) -> dict[str, Any]:
    """The trained weights by name."""
    return {name: value.numpy() for name, value in fitted.network.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all weights are the same bits."""
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_weights(learn: Callable[..., FitResult]) -> None:
    """Bit for bit, whatever the global generators have done before, with dropout and hidden values at work."""
    first = weights(learn(layers=2, dropout=0.3))
    torch.manual_seed(99)
    np.random.default_rng(99)
    assert same(first, weights(learn(layers=2, dropout=0.3)))


def test_another_seed_gives_other_weights(learn: Callable[..., FitResult]) -> None:
    """The seed is really used."""
    assert not same(weights(learn()), weights(learn(QUICK.model_copy(update={"seed": 6}))))


def test_fitting_leaves_the_global_generator_alone(learn: Callable[..., FitResult]) -> None:
    """A program that trains draws the same numbers afterwards as one that does not."""
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    learn()
    assert torch.equal(torch.rand(1), wanted)


def test_the_held_out_part_is_not_used(learn: Callable[..., FitResult], make_series: Callable[..., Series]) -> None:
    """Rows after the validation part may be anything: the weights and the scores that chose them are the same."""
    first = learn()
    series = make_series(400)
    series.values[340:] = 1e6
    second = learn(series=series)
    assert same(weights(first), weights(second))
    assert [epoch.score for epoch in first.epochs] == [epoch.score for epoch in second.epochs]


def test_it_learns(learn: Callable[..., FitResult]) -> None:
    """On two waves, thirty epochs take half of persistence's error away."""
    fitted = learn(Fit(epochs=30, lanes=8, chunk=16, burn_in=8, learning_rate=0.02))
    assert fitted.best.score < 0.5


def test_a_regression_is_better_than_bad_training(
    learn: Callable[..., FitResult], make_series: Callable[..., Series]
) -> None:
    """With the link `linear`, epoch 0 is a candidate: after a training that only harms, the regression comes back."""
    task = TASK.model_copy(update={"links": ("linear",)})
    fitted = learn(QUICK.model_copy(update={"learning_rate": 3.0, "average": 0.0}), task=task)
    assert (fitted.best.number, len(fitted.epochs)) == (0, 3)
    assert fitted.best.score < min(epoch.score for epoch in fitted.epochs)
    head = fitted.network.head
    assert not head.line.weight.any()
    assert not head.line.bias.any()


def test_the_regression_is_not_trained(learn: Callable[..., FitResult]) -> None:
    """Whatever the network learns, the weights of the linear link stay what the solver gave."""
    task = TASK.model_copy(update={"links": ("linear",)})
    one, other = (weights(learn(QUICK.model_copy(update={"seed": seed}), task=task)) for seed in (1, 2))
    names = [name for name in one if "linear" in name]
    assert names
    assert all(np.array_equal(one[name], other[name]) for name in names)
    assert not same(one, other)


def test_the_best_weights_are_kept(learn: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that comes back has the weights of the epoch with the best score, not of the last."""
    scores = {1: 0.9, 2: 0.5, 3: 0.7}

    def stop(epoch: Epoch, _best: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    def fit_with_scores(**options: Any) -> FitResult:
        left = iter(scores.values())
        monkeypatch.setattr(fitting.Trainer, "score", lambda _self: next(left))
        return learn(**options)

    whole = fit_with_scores()
    assert (whole.best.number, len(whole.epochs)) == (2, 3)
    assert same(weights(whole), weights(fit_with_scores(on_epoch=stop)))


def test_the_last_weights_are_kept_when_that_is_asked_for(
    learn: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that only get worse neither choose an epoch nor end the training."""

    def learn_with_scores(*scores: float) -> FitResult:
        left = iter(scores)
        monkeypatch.setattr(fitting.Trainer, "score", lambda _self: next(left))
        return learn(Fit(epochs=len(scores), lanes=4, chunk=16, patience=1, keep="last"))

    worse, better = learn_with_scores(0.5, 0.7, 0.9), learn_with_scores(0.9, 0.7, 0.5)
    assert (worse.best.number, worse.best.score, worse.stopped) == (3, 0.9, "epochs")
    assert same(weights(worse), weights(better))


def test_early_stopping_waits_for_its_patience(learn: Callable[..., FitResult]) -> None:
    """So many epochs without a better score end the training."""
    fitted = learn(Fit(epochs=200, lanes=4, chunk=16, learning_rate=0.05, average=0.0, patience=4))
    assert fitted.stopped == "patience"
    assert fitted.epochs[-1].number == fitted.best.number + 4


def test_a_time_limit_ends_the_training(learn: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the minutes are over the epoch is the last one, and the schedule has come to its end."""
    clock = iter(range(0, 100_000, 1))
    monkeypatch.setattr(fitting.time, "monotonic", lambda: float(next(clock)))
    fitted = learn(Fit(epochs=100_000, minutes=2.0, lanes=4, chunk=16))
    assert fitted.stopped == "minutes"
    assert fitted.epochs[-1].progress == 1.0
    assert fitted.epochs[-1].learning_rate == pytest.approx(Fit().learning_rate * FINAL_RATE)


def test_a_time_limit_ends_a_long_epoch(learn: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of some seventy steps ends after a few, when the time is up, and is scored."""
    clock = iter(range(0, 100_000, 1))
    monkeypatch.setattr(fitting.time, "monotonic", lambda: float(next(clock)))
    fitted = learn(Fit(epochs=10, minutes=0.2, lanes=1, chunk=4))
    assert (fitted.stopped, len(fitted.epochs)) == ("minutes", 1)
    assert fitted.epochs[0].score > 0
    assert next(clock) < 20


def test_ctrl_c_keeps_the_best_so_far(learn: Callable[..., FitResult]) -> None:
    """An interrupted training gives what it has."""

    def interrupt(epoch: Epoch, _best: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    fitted = learn(on_epoch=interrupt)
    assert fitted.stopped == "interrupted"
    assert len(fitted.epochs) == 2


def test_the_learning_rate_rises_and_falls(learn: Callable[..., FitResult]) -> None:
    """It warms up in a straight line and ends near zero along half a cosine."""
    rates = [epoch.learning_rate for epoch in learn(Fit(epochs=20, lanes=4, chunk=16, warm_up=0.2)).epochs]
    top = rates.index(max(rates))
    assert top == 3  # the end of the fourth of twenty epochs
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(Fit().learning_rate * FINAL_RATE)


def test_missing_targets_do_not_count(learn: Callable[..., FitResult], make_series: Callable[..., Series]) -> None:
    """With a third of the target missing the loss is a number and the network learns."""
    series = make_series(400)
    series.values[np.random.default_rng(0).random(400) < 0.3, 0] = np.nan
    fitted = learn(Fit(epochs=30, lanes=8, chunk=16, burn_in=8, learning_rate=0.02), series=series)
    assert fitted.best.score < 0.7


def test_a_constant_column_gives_finite_weights(
    learn: Callable[..., FitResult], make_series: Callable[..., Series]
) -> None:
    """A sensor that never moves does not turn the weights into NaN."""
    series = make_series(400)
    series.values[:, 2] = 7.3
    assert all(np.isfinite(value).all() for value in weights(learn(series=series)).values())


def test_gaps_do_not_stop_learning(learn: Callable[..., FitResult], make_series: Callable[..., Series]) -> None:
    """A series with a gap in the training part and one in the validation part is learned."""
    series = make_series(400, gap_at=100)
    times = series.times.copy()
    times[310:] += np.timedelta64(10, "D")
    fitted = learn(series=dataclasses.replace(series, times=times))
    assert math.isfinite(fitted.best.score)


def test_a_loss_that_is_nan_is_reported(learn: Callable[..., FitResult]) -> None:
    """A learning rate far too high is an error with what to do, not a model of NaN."""
    with pytest.raises(Diverged, match="smaller --learning-rate"):
        learn(Fit(epochs=3, lanes=4, chunk=16, learning_rate=1e20, average=0.0))


def test_persistence_scores_one(learn: Callable[..., FitResult], make_series: Callable[..., Series]) -> None:
    """The unit of the loss: a network that repeats the last value has a loss of 1 on the training part."""
    series = make_series(400)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
    task = TASK.model_copy(update={"quantiles": ()})
    architecture = Architecture(features=3, task=task, hidden=8)
    settings = Fit(epochs=1, lanes=1, chunk=280, burn_in=0, learning_rate=1e-12, hide=0.0)
    training = fitting.Trainer(series, split, fit_scaler(series, split.train), Given(architecture, None), settings)
    with torch.no_grad():
        training.network.head.line.weight.zero_()
        training.network.head.line.bias.zero_()
    assert training.epoch(1).loss == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("lanes", [1, 64])
def test_the_score_is_that_of_a_server(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """Walked in chunks, side by side or one after the other, each segment scores what it scores in one go from the initial state."""
    monkeypatch.setattr(batches, "MAX_PIECES", lanes)
    series = make_series(1000, gap_at=720, missing=0.1)
    split = split_by_time(series, train=0.6, validation=0.3, horizon=3)
    architecture = Architecture(features=3, task=TASK, hidden=8)
    training = fitting.Trainer(series, split, fit_scaler(series, split.train), Given(architecture, None), QUICK)
    training.epoch(1)
    total, count = 0.0, 0
    for first, end in series.segments(split.validation):
        x = torch.from_numpy(series.values[first:end]).unsqueeze(1)
        rows = torch.arange(first, end).unsqueeze(1)
        with torch.no_grad():
            outputs, _ = training.average.scaled_sequence(x, training.average.initial_state(1))
        truth = training.objective.targets_of(rows, torch.ones_like(rows, dtype=torch.bool))
        total += float(training.objective.loss(outputs, truth))
        count += int((~torch.isnan(truth)).sum())
    assert training.score() == pytest.approx(total / count, rel=1e-5)


def test_pieces_of_a_long_segment_score_what_the_whole_scores(make_series: Callable[..., Series]) -> None:
    """The run-up before each piece brings the state to where it would be after all the rows before it."""
    series = make_series(30_000)
    split = split_by_time(series, train=0.05, validation=0.9, horizon=3)
    architecture = Architecture(features=3, task=TASK, hidden=8)
    training = fitting.Trainer(series, split, fit_scaler(series, split.train), Given(architecture, None), QUICK)
    training.epoch(1)
    assert training.validation_plan.batch_size > 1
    pieces = training.score()
    whole = Sequences(*(np.array([number]) for number in (0, 1500, 27_000, 0)))
    training.validation_plan, training.validation = Plan.of(whole, 1, 1000), None
    assert training.score() == pytest.approx(pieces, rel=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_the_share_that_is_hidden_is_the_one_that_was_asked_for(share: float) -> None:
    """Of values one by one and of sensors for a whole chunk: together 1 - (1 - share)^2, each chunk by itself."""
    x = torch.zeros(800, 10, 16, 8)
    torch.manual_seed(0)
    loader._drop_values(x, share)
    hidden = torch.isnan(x)
    assert float(hidden.float().mean()) == pytest.approx(1 - (1 - share) ** 2, rel=0.05)
    assert float(hidden.all(dim=1).float().mean()) == pytest.approx(share, rel=0.15)


def test_a_missing_gpu_is_reported(learn: Callable[..., FitResult]) -> None:
    """The message says what to ask for instead."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SettingsError, match="device: got 'cuda', but torch finds no GPU here"):
        learn(QUICK.model_copy(update={"device": "cuda"}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_what_a_cpu_learns(learn: Callable[..., FitResult]) -> None:
    """Without chance, nearly the same losses and weights; what comes back is on the CPU."""
    settings = QUICK.model_copy(update={"hide": 0.0})
    there = learn(settings.model_copy(update={"device": "cuda"}))
    here = learn(settings.model_copy(update={"device": "cpu"}))
    assert there.device == "cuda"
    assert [epoch.loss for epoch in there.epochs] == pytest.approx([epoch.loss for epoch in here.epochs], rel=1e-3)
    for name, value in weights(there).items():
        np.testing.assert_allclose(value, weights(here)[name], rtol=1e-2, atol=1e-3)
