"""Monitors: intervals that keep their coverage, and an alarm that keeps its rate; in torch, in the graph and when served."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from tests.once import make_once
from tests.servers import address_of, run_server
from tests.training.network import network_oracle
from tests.training.network.network_oracle import Recipe
from tidegate.client import Client
from tidegate.training import errors
from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.data.prepare import check_alarm
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.judging.graph import Graph
from tidegate.training.learning.calibration import calibrate
from tidegate.training.learning.run import DataFacts
from tidegate.training.network import alarm, monitors
from tidegate.training.network.alarm import Alarm
from tidegate.training.network.heads import ForecastHead
from tidegate.training.network.monitors import Intervals, Observation
from tidegate.training.network.network import Network, add_monitors, build_network, without_monitors
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.publishing.parity import check_parity
from tidegate.training.publishing.version import write_version
from tidegate.training.settings import AlarmTimes, Architecture, Forecast

COVERAGE, ALARM_RATE = 0.8, 0.01


def observe(value: Any, last: Any) -> Observation:
    """One timestep of which some values (batch, features) may be NaN."""
    value, last = torch.as_tensor(value, dtype=torch.float32), torch.as_tensor(last, dtype=torch.float32)
    missing = torch.isnan(value)
    return Observation(torch.where(missing, last, value), last, missing)


def forecast_task(**more: Any) -> Forecast:
    """Two targets, two horizons."""
    return Forecast(**({"targets": (0, 2), "horizons": (1, 3)} | more))


def run_monitor(monitor: Intervals | Alarm, values: Any, head_outputs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Outputs (time, batch, ...) for values (time, batch, features) and what the head said of them, and the last state."""
    state = monitor.initial_state(values.shape[1])
    last = torch.zeros(values.shape[1:])
    steps = []
    for row, value in enumerate(values):
        now = observe(value, last)
        head_row = {name: torch.as_tensor(part[row], dtype=torch.float32) for name, part in head_outputs.items()}
        outputs, state = monitor.step(now, head_row, state)
        last = now.values
        steps.append(outputs)
    return {name: np.stack([outputs[name].numpy() for outputs in steps]) for name in steps[0]}, state


# Intervals.


def test_the_ring_holds_the_forecasts_that_have_not_come_true() -> None:
    """After any timestep the state begins with the last `horizon` centres of each horizon, the oldest first."""
    monitor = Intervals(forecast_task(targets=(0,), horizons=(1, 3, 4)), COVERAGE)
    forecasts = np.arange(30.0).reshape(10, 1, 3, 1)
    for steps in range(4, 10):
        _, (state,) = run_monitor(monitor, np.zeros((steps, 1, 1)), {"forecast": forecasts[:steps]})
        made = forecasts[:steps, 0, :, 0]
        wanted = [*made[-1:, 0], *made[-3:, 1], *made[-4:, 2]]
        assert state[0, :8].tolist() == wanted


def interval_oracle(y: Any, low: Any, high: Any, horizons: tuple[int, ...]) -> Any:
    """The formulas of one target in float64: y (time,), quantiles (time, horizons) -> intervals (time, horizons, 2)."""
    q = np.zeros(len(horizons))
    served = np.zeros((len(y), len(horizons), 2))
    for now in range(len(y)):
        for index, horizon in enumerate(horizons):
            if now >= horizon and not math.isnan(y[now]):
                below, above = served[now - horizon, index]
                missed = not below <= y[now] <= above
                q[index] += monitors.INTERVAL_RATE / math.sqrt(horizon) * (missed - (1 - COVERAGE))
            centre, half = (low[now, index] + high[now, index]) / 2, (high[now, index] - low[now, index]) / 2
            half = max(half + q[index], monitors.MIN_HALF_WIDTH)
            served[now, index] = centre - half, centre + half
    return served


def test_intervals_are_those_of_the_formulas() -> None:
    """A thousand timesteps with missing values give the intervals that the formulas give in float64."""
    rng = np.random.default_rng(0)
    y = rng.normal(0, 2, 1000)
    y[rng.random(1000) < 0.2] = np.nan
    middle, width = rng.normal(0, 1, (1000, 2)), rng.uniform(0, 2, (1000, 2))
    quantiles = np.stack([middle - width, middle, middle + width], axis=-1)
    monitor = Intervals(forecast_task(targets=(0,), quantiles=(0.1, 0.5, 0.9)), COVERAGE)
    got, _ = run_monitor(monitor, y[:, None, None], {"quantiles": quantiles[:, None, :, None]})
    wanted = interval_oracle(y, quantiles[..., 0], quantiles[..., 2], (1, 3))
    np.testing.assert_allclose(got["interval"][:, 0, :, 0], wanted, atol=2e-4)


def test_the_coverage_holds_for_any_series() -> None:
    """20,000 timesteps: calm noise that grows tenfold, waves, and an opponent who stays just outside where it can."""
    rng = np.random.default_rng(1)
    count = 20_000
    y = rng.normal(0, np.where(np.arange(count) < count // 2, 0.2, 2.0))
    waves = np.sin(np.arange(count) / 300)
    monitor = Intervals(Forecast(targets=(0,), horizons=(3,)), COVERAGE)
    state = monitor.initial_state(3)
    served = np.zeros((count, 3, 2))
    truth = np.zeros((count, 3))
    last = torch.zeros(3, 1)
    head_outputs = {"forecast": torch.zeros(3, 1, 1)}
    with torch.no_grad():
        for now in range(count):
            outside = min(served[now - 3, 2, 1] + 0.01, 1.0) if now >= 3 else 0.0
            truth[now] = y[now], waves[now], outside
            read = observe(truth[now, :, None], last)
            outputs, state = monitor.step(read, head_outputs, state)
            served[now] = outputs["interval"][:, 0, 0]
            last = read.values
    covered = (truth[3:] >= served[:-3, :, 0]) & (truth[3:] <= served[:-3, :, 1])
    assert np.abs(covered.mean(axis=0) - COVERAGE).max() < 0.01


def test_a_missing_value_moves_no_interval() -> None:
    """Whatever was forecast, a stream without values keeps the intervals as wide as they were."""
    monitor = Intervals(forecast_task(), COVERAGE)
    got, (state,) = run_monitor(monitor, np.full((20, 2, 3), np.nan), {"forecast": np.ones((20, 2, 2, 2))})
    assert torch.equal(state[:, -4:], torch.zeros(2, 4))
    assert np.ptp(got["interval"], axis=0).max() == 0


def test_a_forecast_that_was_not_made_moves_no_interval() -> None:
    """In a new stream the first timesteps have no forecast to be compared with; the next one has."""
    monitor = Intervals(Forecast(targets=(0,), horizons=(3,)), COVERAGE)
    for steps, shift in ((3, 0.0), (4, monitors.INTERVAL_RATE / math.sqrt(3) * COVERAGE)):
        _, (state,) = run_monitor(monitor, np.full((steps, 1, 1), 9.0), {"forecast": np.zeros((steps, 1, 1, 1))})
        assert state[0, -1].item() == pytest.approx(shift)


def test_the_ends_of_an_interval_never_cross() -> None:
    """Not even where the half-width would be negative."""
    monitor = Intervals(forecast_task(quantiles=(0.1, 0.9)), COVERAGE)
    monitor.start.fill_(-100.0)
    got, _ = run_monitor(monitor, np.zeros((5, 1, 3)), {"quantiles": np.tile([-1.0, 1.0], (5, 1, 2, 2, 1))})
    assert (got["interval"][..., 0] <= got["interval"][..., 1]).all()


def test_the_pair_of_quantiles_nearest_to_the_coverage_is_taken() -> None:
    """Of 0.05, 0.1, 0.5, 0.9 and 0.95 it is 0.1 and 0.9 for 0.8; without two that mirror each other it is the forecast."""
    assert Intervals(forecast_task(quantiles=(0.05, 0.1, 0.5, 0.9, 0.95)), 0.8).pair == (1, 3)
    assert Intervals(forecast_task(quantiles=(0.05, 0.1, 0.5, 0.9, 0.95)), 0.99).pair == (0, 4)
    assert Intervals(forecast_task(quantiles=(0.1, 0.5)), 0.8).pair is None


# The alarm.


TIMES = AlarmTimes(memory=40.0, slow=5.0, warm_up=96)


def toy_alarm(rate: float = ALARM_RATE) -> Alarm:
    """Two targets of three features, with buffers that are not those of an uncalibrated one."""
    rng = np.random.default_rng(3)
    monitor = Alarm(forecast_task(alarm_times=TIMES), 3, rate)
    monitor.mix += torch.from_numpy(rng.normal(0, 0.1, (4, 5))).float()
    monitor.own += torch.from_numpy(rng.normal(0, 0.1, (2, 2))).float()
    monitor.white += torch.from_numpy(rng.normal(0, 0.1, (2, 2))).float()
    monitor.fitted += 300.0
    monitor.offset += 0.1
    monitor.tail[0, 2:4] = 1.0  # what comes back counts for more than what jumps
    return monitor


def next_forecasts(values: Any) -> Any:
    """(time, batch, horizons, targets): the value is repeated, and is the mean where it is missing."""
    return np.repeat(np.nan_to_num(values)[:, :, None, [0, 2]], 2, axis=2)


def test_the_alarm_is_that_of_the_formulas() -> None:
    """A walk with missing values, spikes, a stuck sensor and a silent one gives what the formulas give in float64."""
    rng = np.random.default_rng(4)
    values = np.cumsum(rng.normal(0, 0.5, (800, 1, 3)), axis=0) * 0.3
    values[rng.random(values.shape) < 0.05] = np.nan
    values[200] += 9.0
    values[300:340, 0, 0] = 0.25
    values[500:540, 0, 2] = np.nan
    values = values.astype(np.float32)
    monitor = toy_alarm()
    forecasts = next_forecasts(values)
    got, (last,) = run_monitor(monitor, values, {"forecast": forecasts})
    recipe = Recipe("lstm", targets=(0, 2), horizons=(1, 3), alarm_rate=ALARM_RATE, alarm_times=(40.0, 5.0, 96))
    weights = {name: part.double().numpy() for name, part in monitor.state_dict().items()}
    exact = values[:, 0].astype(np.float64)
    steps, state = network_oracle.alarms(
        recipe, weights, network_oracle.held(exact), np.isnan(exact), forecasts[:, 0].astype(np.float64)
    )
    names = ("score", "alarm", "warm", "surprise")
    wanted = np.concatenate([steps[name] for name in names], axis=-1)
    joined = np.concatenate([got[name][:, 0] for name in names], axis=-1)
    np.testing.assert_allclose(joined, wanted, atol=2e-4)
    np.testing.assert_allclose(last[0], state, atol=2e-3, rtol=1e-4)
    assert 0 < wanted[:, 1].mean() < 0.5  # both decisions were made


def test_the_score_locates_the_alarm() -> None:
    """The score lies in 0..1, and is above a half exactly where there is an alarm."""
    values = np.random.default_rng(5).standard_t(2, (600, 8, 3)) * 3
    got, _ = run_monitor(toy_alarm(), values, {"forecast": np.zeros((600, 8, 2, 2))})
    assert 0.0 <= got["score"].min() <= got["score"].max() < 1.0
    assert np.array_equal(got["score"] > 0.5, got["alarm"] == 1.0)
    assert 0 < got["alarm"].mean() < 1


def test_a_young_stream_raises_no_alarm() -> None:
    """Until it is warm the score is nil, whatever comes; from then on the same is an alarm."""
    values = np.zeros((120, 1, 3))
    values[50], values[110] = 1000.0, -1000.0
    got, _ = run_monitor(toy_alarm(), values, {"forecast": np.zeros((120, 1, 2, 2))})
    warm = TIMES.warm_up
    assert not got["score"][:warm].any()
    assert not got["warm"][:warm].any()
    assert got["warm"][warm:].all()
    assert got["alarm"][110] == 1


@pytest.mark.parametrize("wrong", [-1.5, 1.5])
def test_the_alarm_rate_holds_on_clean_data(wrong: float) -> None:
    """Noise raises alarms at the stated rate, although the threshold began at a rate five times as large or small."""
    monitor = Alarm(forecast_task(targets=(0,), horizons=(1,)), 1, 0.02)
    # Errors of an exponential distribution: the tail's own shape, so that its quantiles are known.
    monitor.tail.copy_(torch.tensor([1e-3, 1.0, 1e3])[:, None].repeat(1, 9))
    monitor.start.fill_(-math.log(0.02) + wrong)
    monitor.mix.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    rng = np.random.default_rng(6)
    values = rng.exponential(1.0, (3000, 64, 1)) * rng.choice([-1.0, 1.0], (3000, 64, 1)) / math.sqrt(2.0) + 10
    got, _ = run_monitor(monitor, values, {"forecast": np.full((3000, 64, 1, 1), 10.0)})
    assert 0.02 / 1.5 < got["alarm"][1500:].mean() < 0.02 * 1.5


def alarmed_and_calm(size: float) -> tuple[Any, Any]:
    """The states after the same large error in two streams, of which the threshold of only the first gives an alarm."""
    monitor = toy_alarm()
    state = monitor.initial_state(2)[0]
    state[:, -3] = float(TIMES.warm_up)
    state[1, -1] = 1000.0
    head_outputs = {"forecast": torch.zeros(2, 2, 2)}
    outputs, (after,) = monitor.step(observe(np.full((2, 3), size), np.zeros((2, 3))), head_outputs, (state,))
    assert outputs["alarm"].flatten().tolist() == [1.0, 0.0]
    return state.numpy(), after.numpy()


def test_the_variance_moves_slowly_during_an_alarm() -> None:
    """It follows at a quarter of its pace, so that a fault stays unusual; the mean goes on."""
    _, after = alarmed_and_calm(9.0)
    mean, variance = slice(4, 8), slice(8, 12)
    assert (np.abs(after[1, 4:12]) > 0).all()
    np.testing.assert_allclose(after[0, variance], after[1, variance] / 4, rtol=1e-4)
    np.testing.assert_array_equal(after[0, mean], after[1, mean])


@pytest.mark.parametrize(
    ("burst", "counts"),
    [(3.0, 3.0), (40.0, alarm.FALSE_ALARM_STEPS), (alarm.FAR + 1, 0.0)],
    ids=["short", "long", "far"],
)
def test_an_alarm_lifts_the_threshold_by_its_length(burst: float, counts: float) -> None:
    """A long one counts as a few timesteps only, and one that was far above the threshold not at all."""
    monitor = toy_alarm()
    state = monitor.initial_state(1)[0]
    state[0, -3:] = torch.tensor([float(TIMES.warm_up), burst, 0.0])
    _, (after,) = monitor.step(
        observe(np.full((1, 3), 0.01), np.zeros((1, 3))), {"forecast": torch.zeros(1, 2, 2)}, (state,)
    )
    size = 1 / (ALARM_RATE * (monitor.fitted.item() + TIMES.warm_up))
    assert after[0, -1].item() == pytest.approx(size * (counts - ALARM_RATE), rel=1e-4)


def test_a_great_error_marks_its_alarm() -> None:
    """The count of its timesteps says so until it ends."""
    assert alarmed_and_calm(1e6)[1][0, -2] == alarm.FAR + 1


@pytest.mark.parametrize(
    ("burst", "restarts"),
    [(3.0, False), (alarm.RESTART_STEPS, True), (alarm.FAR + 3.0, False), (alarm.FAR + alarm.RESTART_STEPS, True)],
    ids=["short", "long", "far and short", "far and long"],
)
def test_the_averages_begin_again_in_an_alarm_that_lasts(burst: float, restarts: bool) -> None:
    """Those of a stream without an alarm go on."""
    monitor = toy_alarm()
    state = monitor.initial_state(2)[0]
    slow = slice(12, 16)
    state[:, slow] = 1.0
    state[:, -3] = 200.0
    state[:, -2] = torch.tensor([burst, 0.0])
    state[1, -1] = 1000.0
    _, (after,) = monitor.step(
        observe(np.full((2, 3), 9.0), np.zeros((2, 3))), {"forecast": torch.zeros(2, 2, 2)}, (state,)
    )
    assert (after[0, slow] == 0.0).all() == restarts
    assert (after[1, slow] != 0.0).all()


@pytest.mark.parametrize(("fitted", "size"), [(0.0, alarm.MAX_STEP_SIZE), (400.0, 0.2), (1e5, alarm.MIN_STEP_SIZE)])
def test_a_threshold_from_few_rows_moves_faster(fitted: float, size: float) -> None:
    """After 100 timesteps of a stream each without an alarm lowers it by the alarm rate times the step size."""
    monitor = toy_alarm()
    monitor.fitted.fill_(fitted)
    state = monitor.initial_state(1)[0]
    state[0, -3] = 100.0
    _, (after,) = monitor.step(
        observe(np.full((1, 3), 0.01), np.zeros((1, 3))), {"forecast": torch.zeros(1, 2, 2)}, (state,)
    )
    assert after[0, -1].item() == pytest.approx(-size * ALARM_RATE, rel=1e-3)


def test_a_small_lasting_error_adds_up() -> None:
    """Noise with a shift of one standard deviation: the slow statistics see it ten times further in their tail than single ones."""
    monitor = Alarm(forecast_task(targets=(0,), horizons=(1,), alarm_times=AlarmTimes(memory=1e6, slow=25.0)), 1, 0.01)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (2000, 16, 1)).astype(np.float32)
    noise[1000:] += 1.0
    state, last, rows = monitor.initial_state(16), torch.zeros(16, 1), []
    for value in noise:
        now = observe(value, last)
        statistics = monitor.measure(now, state)
        _, state = monitor.decide(statistics, {"forecast": torch.zeros(16, 1, 1)})
        last = now.values
        rows.append(statistics.parts)
    parts = torch.stack(rows)
    single, slow, joint, slow_joint = (parts[..., place].flatten(1) for place in (0, 3, 7, 8))
    for one, gathered in ((single, slow), (joint, slow_joint)):
        often = [(part[1100:1200] > part[500:1000].quantile(0.99)).float().mean() for part in (one, gathered)]
        assert often[0] < 0.15
        assert often[1] > 0.9


def test_joint_errors_are_found_where_no_single_one_is() -> None:
    """Two errors that always agree disagree once, each of a usual size: their Mahalanobis distance is unusual."""
    monitor = Alarm(forecast_task(targets=(0, 1), horizons=(1,)), 2, 0.01)
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    monitor.white.copy_(torch.linalg.cholesky(precision))
    state = monitor.initial_state(2)
    value = np.array([[1.0, 1.0], [1.0, -1.0]])
    parts = monitor.measure(observe(value, np.zeros((2, 2))), state).parts
    assert parts[0, 14].item() == pytest.approx(math.sqrt(2 / 1.95), rel=1e-4)
    assert parts[1, 14].item() == pytest.approx(math.sqrt(2 / 0.05), rel=1e-4)


def test_a_young_stream_is_compared_with_itself() -> None:
    """A level that is three standard deviations off from the start is usual once the stream is warm."""
    monitor = Alarm(forecast_task(targets=(0,), horizons=(1,), alarm_times=AlarmTimes(memory=5000.0)), 1, 0.01)
    state, last = monitor.initial_state(1), torch.zeros(1, 1)
    for _ in range(TIMES.warm_up):
        now = observe(np.full((1, 1), 3.0), last)
        _, state = monitor.step(now, {"forecast": torch.full((1, 1, 1), 3.0)}, state)
        last = now.values
    assert state[0][0, 3].item() == pytest.approx(3.0, rel=0.02)  # the running mean of the level


def test_missing_values_move_nothing_usual() -> None:
    """In a stream without values mean, variance, moving average and the time that values stand still stay as they are."""
    monitor = toy_alarm()
    state = torch.rand(1, monitor.widths[0])
    _, (after,) = monitor.step(
        observe(np.full((1, 3), np.nan), np.ones((1, 3))), {"forecast": torch.zeros(1, 2, 2)}, (state,)
    )
    assert torch.equal(after[:, 4:12], state[:, 4:12].clamp(min=alarm.MIN_LOG_VARIANCE))
    assert torch.equal(after[:, 12:18], state[:, 12:18])
    assert torch.equal(after[:, 18:20], state[:, 18:20] + 1)


def test_an_alarm_needs_the_next_timestep() -> None:
    """Without a forecast one timestep ahead it is refused, with the horizons and what to do."""
    task = forecast_task(horizons=(6, 36), alarm_rate=0.01)
    with pytest.raises(errors.SettingsError, match=r"horizons: got 6,36, expected 1 among them.*--alarm-rate"):
        check_alarm(task)


def test_the_evidence_is_nearly_a_logarithm() -> None:
    """Over a thousand times the tail's scale it is within a fortieth of the formula, and it never falls."""
    monitor = toy_alarm()
    parts = torch.zeros(400, 16)
    parts[:, 0] = torch.logspace(0.1, 4, 400)
    evidence = monitor.evidence(parts)[:, 0]
    np.testing.assert_allclose(evidence, 10 * torch.log(parts[:, 0] * 0.1 + 0.9), rtol=0.025)
    assert (evidence.diff() > 0).all()


# In a network, fitted to a series.


def fit_scaler_of_ones(features: int) -> Any:
    """The scaler of a series that has mean 0 and standard deviation 1."""
    values = np.repeat([[-1.0], [1.0]], features, axis=1).astype(np.float32)
    times = np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]")
    names = tuple(f"s{index}" for index in range(features))
    return fit_scaler(Series("ones", "", names, ("",) * features, values, times, None), ((0, 2),))


def rooms(rows: int = 3000, seed: int = 8) -> Series:
    """Four temperatures that go together, each with noise of its own, to a hundredth of a degree, ten minutes apart."""
    rng = np.random.default_rng(seed)
    common = np.cumsum(rng.normal(0, 0.08, rows))
    common -= np.linspace(0, common[-1], rows)
    values = 20 + common[:, None] * [1.0, 0.8, 1.2, 0.9] + rng.normal(0, 0.05, (rows, 4))
    times = np.datetime64("2024-01-01", "ns") + np.arange(rows) * np.timedelta64(600, "s")
    names = ("a", "b", "c", "d")
    return Series("rooms", "0" * 64, names, ("°C",) * 4, values.round(2).astype(np.float32), times, 600.0)


@pytest.fixture(scope="module")
def series() -> Series:
    """What the network is calibrated on."""
    return rooms()


@pytest.fixture(scope="module")
def split(series: Series) -> Split:
    """Seven tenths teach, and half of the rest chooses."""
    return split_by_time(series, train=0.7, validation=0.15, horizon=6)


@pytest.fixture(scope="module")
def watched(series: Series, split: Split) -> Network:
    """An untrained network, which repeats the last value, with both monitors calibrated."""
    task = Forecast(
        targets=(0, 1, 2, 3), horizons=(1, 6), quantiles=(0.1, 0.5, 0.9), coverage=COVERAGE, alarm_rate=ALARM_RATE
    )
    return repeating(Architecture(features=4, hidden=8, task=task), series, split)


def repeating(architecture: Architecture, series: Series, split: Split) -> Network:
    """An untrained network, which repeats the last value, with calibrated monitors."""
    bare = build_network(without_monitors(architecture), fit_scaler(series, split.train), seed=0)
    with torch.no_grad():
        for weight in cast(ForecastHead, bare.head).line.parameters():
            weight.zero_()
    network = add_monitors(bare, architecture)
    calibrate(network, series, split)
    return network


@pytest.fixture(scope="module")
def model(watched: Network, series: Series, split: Split, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Its graph; leave it as it is."""
    facts = DataFacts.of(series, split, fit_scaler(series, split.train))
    watched.prepare_export()
    content = make_once(
        tmp_path_factory,
        "rooms",
        lambda: build_graph(watched, describe(watched, facts, scores={})).SerializeToString(),
    )
    return onnx.load_from_string(content)


@pytest.fixture
def graph(model: onnx.ModelProto) -> Graph:
    """The graph, ready to step."""
    return Graph(model.SerializeToString(), "rooms")


def test_monitors_leave_what_was_learned_alone(watched: Network, series: Series) -> None:
    """With and without monitors the forecasts are the same bits."""
    bare = build_network(without_monitors(watched.architecture), fit_scaler(series, ((0, 900),)), seed=1).eval()
    watched = add_monitors(bare, watched.architecture)
    x = torch.from_numpy(series.values[:200, None])
    with torch.no_grad():
        wanted, _ = bare.sequence(x, bare.initial_state(1))
        got, _ = watched.sequence(x, watched.initial_state(1))
    assert all(torch.equal(got[name], part) for name, part in wanted.items())


def test_a_new_stream_is_all_zero(watched: Network) -> None:
    """Every state tensor is zero, and the batch is its last axis but one."""
    state = watched.initial_state(5)
    assert watched.state_names[-2:] == ("intervals", "watch")
    assert all(not part.any() and part.shape[-2] == 5 for part in state)


def test_steps_equal_the_sequence(watched: Network, series: Series) -> None:
    """Step by step, all outputs and states are those of the sequence."""
    x = torch.from_numpy(series.values[:150, None].copy())
    x[70:80, :, 1] = math.nan
    with torch.no_grad():
        wanted, wanted_state = watched.sequence(x, watched.initial_state(1))
        state, steps = watched.initial_state(1), []
        for now in x:
            outputs, state = watched.step(now, state)
            steps.append(outputs)
    for name, part in wanted.items():
        torch.testing.assert_close(torch.stack([outputs[name] for outputs in steps]), part, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(state, wanted_state, atol=1e-4, rtol=1e-5)


def test_calibrated_intervals_cover_what_they_have_not_seen(graph: Graph, series: Series, split: Split) -> None:
    """On the held-out part they hold the stated share of the truth, at each horizon."""
    first, end = split.test[0]
    outputs, _ = graph.replay(series.values[first:end, None])
    for index, horizon in enumerate((1, 6)):
        low, high = np.moveaxis(outputs["interval"][:-horizon, 0, index], -1, 0)
        truth = series.values[first + horizon : end]
        # 450 timesteps, and of neighbouring ones the truth is much the same.
        assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(COVERAGE, abs=0.05)


def test_a_rarer_alarm_begins_at_a_higher_threshold(watched: Network, series: Series, split: Split) -> None:
    """A tenth of the alarms needs a threshold that is about log 10 nats higher."""
    task = watched.architecture.task.model_copy(update={"alarm_rate": 10 * ALARM_RATE, "coverage": None})
    other = add_monitors(watched_bare(watched), watched.architecture.model_copy(update={"task": task}))
    calibrate(other, series, split)
    higher = watched.monitors[1].start.item() - other.monitors[0].start.item()
    assert math.log(10) / 2 < higher < math.log(10) * 2


def watched_bare(watched: Network) -> Network:
    """The network without its monitors."""
    scaler = fit_scaler_of_ones(watched.architecture.features)
    bare = build_network(without_monitors(watched.architecture), scaler, seed=0)
    learned = {name: part for name, part in watched.state_dict().items() if not name.startswith("monitors.")}
    bare.load_state_dict(learned)
    return bare


@pytest.mark.slow
def test_an_alarm_from_400_rows_keeps_its_rate() -> None:
    """Over four series, on the 2,000 rows after the fit and from the first warm one on: within a factor of 1.5 of 1 %."""
    alarms, steps = 0, 0
    for seed in range(4):
        series = rooms(2400, seed=seed)
        times = alarm_times(400, series.period_s)
        task = Forecast(targets=(0, 1, 2, 3), horizons=(1,), alarm_rate=ALARM_RATE, alarm_times=times)
        split = Split(((0, 340),), ((340, 400),), ((400, 2400),))
        network = repeating(Architecture(features=4, hidden=8, task=task), series, split)
        with torch.no_grad():
            outputs, _ = network.sequence(torch.from_numpy(series.values[400:, None]), network.initial_state(1))
        warm = outputs["warm"][:, 0, 0] > 0.5
        assert int(warm.sum()) == 2000 - times.warm_up
        alarms, steps = alarms + int(outputs["alarm"][warm].sum()), steps + int(warm.sum())
    assert ALARM_RATE / 1.5 < alarms / steps < ALARM_RATE * 1.5


def test_a_calibrated_alarm_keeps_its_rate_on_clean_data(graph: Graph, series: Series, split: Split) -> None:
    """On the held-out part there are some alarms and not many: 350 timesteps should have three or four."""
    first, end = split.test[0]
    outputs, _ = graph.replay(series.values[first:end, None])
    assert outputs["alarm"].mean() < 5 * ALARM_RATE
    assert outputs["score"][TIMES.warm_up :].max() > 0.3


FAULTS: dict[str, Callable[[Any], Any]] = {
    "spike": lambda clean: clean + 2.0 * (np.arange(len(clean)) == 5),
    "stuck": lambda clean: np.full_like(clean, clean[0]),
    "drift": lambda clean: clean + np.linspace(0, 3, len(clean)),
    "dropout": lambda clean: np.full_like(clean, np.nan),
    "noise": lambda clean: clean + np.random.default_rng(0).normal(0, 0.8, len(clean)),
    "scale": lambda clean: clean + 0.05 * clean,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(graph: Graph, series: Series, split: Split, fault: str) -> None:
    """Each kind raises an alarm in some of its 40 timesteps, whichever sensor it is."""
    first, end = split.test[0]
    values = np.repeat(series.values[first:end, None], 4, axis=1)
    rows = slice(200, 240)
    for sensor in range(4):
        values[rows, sensor, sensor] = FAULTS[fault](values[rows, sensor, sensor])
    outputs, _ = graph.replay(values)
    assert outputs["alarm"][rows].any(axis=(0, 2)).all()


def test_the_surprise_names_the_sensor(graph: Graph, series: Series) -> None:
    """After a jump it is largest for the sensor that jumped, and has the jump's sign."""
    values = np.repeat(series.values[:200, None], 4, axis=1)
    values[150, range(4), range(4)] -= 2.0
    outputs, _ = graph.replay(values)
    surprise = outputs["surprise"][150]
    assert np.abs(surprise).argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert (np.diag(surprise) < -5).all()


def test_the_graph_computes_what_the_network_does(graph: Graph, watched: Network, series: Series) -> None:
    """On the series itself, where decisions go both ways, all outputs of the graph are those of the network."""
    x = series.values[1000:1600, None].copy()
    x[400] += 2.0
    with torch.no_grad():
        wanted, _ = watched.sequence(torch.from_numpy(x), watched.initial_state(1))
    got, _ = graph.replay(x)
    assert list(got) == ["forecast", "quantiles", "interval", "score", "alarm", "warm", "surprise"]
    for name, part in wanted.items():
        np.testing.assert_allclose(got[name], part.numpy(), atol=1e-4, rtol=1e-4)
    assert 0 < got["alarm"].mean() < 0.5


def test_the_gate_passes_the_monitors(watched: Network, model: onnx.ModelProto) -> None:
    """An untouched graph passes at the same limit as without monitors."""
    parity = check_parity(watched, model)
    assert 0 < parity.outputs <= parity.limit


@pytest.mark.parametrize("constant", ["monitors.0.start", "monitors.1.mix", "monitors.1.own", "monitors.1.white"])
def test_a_graph_whose_monitors_differ_is_refused(watched: Network, model: onnx.ModelProto, constant: str) -> None:
    """One number of a monitor that is a hundredth off does not pass the gate."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    tensor = next(tensor for tensor in other.graph.initializer if tensor.name == constant)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] *= 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, constant))
    with pytest.raises(errors.ParityError):
        check_parity(watched, other)


@pytest.mark.parametrize("batch", [2, 7, 20])
def test_rows_do_not_depend_on_the_batch(graph: Graph, series: Series, batch: int) -> None:
    """A row's outputs and state are the same bits alone and among others."""
    x = np.stack([series.values[20 * row : 20 * row + 130] for row in range(batch)], axis=1)
    together, state = graph.replay(x)
    for row in range(0, batch, 3):
        alone, own = graph.replay(np.ascontiguousarray(x[:, row : row + 1]))
        assert all(np.array_equal(together[name][:, row], alone[name][:, 0]) for name in together)
        assert all(np.array_equal(state[name][..., row, :], own[name][..., 0, :]) for name in state)


def test_the_description_has_the_promised_fields(model: onnx.ModelProto) -> None:
    """Coverage stands beside the interval, which ends at two quantiles, and the alarm rate beside the score."""
    outputs = {output["name"]: output for output in json.loads(model.metadata_props[0].value)["outputs"]}
    assert outputs["interval"]["shape"] == ["batch", 2, 4, 2]
    assert (outputs["interval"]["coverage"], outputs["interval"]["quantiles"]) == (COVERAGE, [0.1, 0.9])
    assert (outputs["score"]["shape"], outputs["score"]["alarm_rate"]) == (["batch", 1], ALARM_RATE)
    assert outputs["surprise"]["targets"] == ["a", "b", "c", "d"]


async def test_the_server_carries_the_monitors(
    model: onnx.ModelProto, graph: Graph, series: Series, tmp_path: Path
) -> None:
    """A stream that is left and taken up again is answered with the bits of one replay: score, alarm and interval."""
    write_version(tmp_path / "models", "rooms", 1, model.SerializeToString(), {"name": "rooms"}, "<p/>")
    x = series.values[:130].copy()
    x[120] += 2.0
    wanted, _ = graph.replay(x[:, None])
    got = []
    async with run_server(tmp_path / "models") as server, Client(address_of(server)) as client:
        for part in (x[:100], x[100:]):
            async with client.open("room") as stream:
                got += [await stream.step(row) for row in part]
    for name, rows in wanted.items():
        assert np.array_equal(np.stack([np.asarray(answer[name]) for answer in got]), rows[:, 0])
    assert wanted["alarm"][120] == 1
