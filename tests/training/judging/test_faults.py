"""Faults put into clean values: where, how large, and that the events say so."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from tidegate.training.data.series import Floats, Series
from tidegate.training.judging.faults import FAULT_SPECS, KINDS, REST_STEPS, Event, FeatureMoments, Kind, inject

Inject = Callable[..., tuple[Floats, tuple[Event, ...]]]


@pytest.fixture
def clean(make_series: Callable[..., Series]) -> Series:
    """Three sensors that move all the time."""
    return make_series(6000)


@pytest.fixture
def moments(clean: Series) -> FeatureMoments:
    """Of all rows."""
    return FeatureMoments.of(clean, clean.spans)


def test_moments_are_those_of_the_training_part(clean: Series) -> None:
    """Mean and standard deviation of the rows, and of the differences between neighbours, without the missing ones."""
    clean.values[100, 1] = np.nan
    got = FeatureMoments.of(clean, ((0, 400),))
    part = clean.values[:400].astype(np.float64)
    np.testing.assert_allclose(got.mean, np.nanmean(part, axis=0), rtol=1e-6)
    np.testing.assert_allclose(got.std, np.nanstd(part, axis=0), rtol=1e-6)
    np.testing.assert_allclose(got.step_std, np.nanstd(np.diff(part, axis=0), axis=0), rtol=1e-6)


def test_a_step_over_a_gap_is_no_step(make_series: Callable[..., Series]) -> None:
    """A sensor that is elsewhere after a gap has not jumped."""
    series = make_series(200, gap_at=100)
    series.values[100:] += 1000
    assert FeatureMoments.of(series, series.spans).step_std.max() < 10


def test_only_the_events_are_changed(clean: Series, moments: FeatureMoments) -> None:
    """Outside the events all values are the same bits, and the clean values themselves are left alone."""
    before = clean.values.copy()
    faulty, events = inject(clean.values, moments, columns=[0, 2], count=30, seed=1)
    np.testing.assert_array_equal(clean.values, before)
    changed = np.zeros(before.shape, np.bool_)
    for event in events:
        assert event.column in (0, 2)
        changed[event.first : event.end, event.column] = True
    np.testing.assert_array_equal(faulty[~changed], before[~changed])


def test_the_same_seed_gives_the_same_faults(clean: Series, moments: FeatureMoments) -> None:
    """And another seed gives others."""
    first, again, other = (inject(clean.values, moments, columns=[0, 1, 2], count=12, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1] != other[1]


def test_kinds_take_turns_and_rest_lies_between(clean: Series, moments: FeatureMoments) -> None:
    """Every kind comes as often as the others, the beginning is clean, and a detector may come to rest after each."""
    _, events = inject(clean.values, moments, columns=[0, 1, 2], count=27, seed=3, warm=200)
    assert len(events) == 27
    assert {kind: sum(event.kind == kind for event in events) for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert events[0].first >= 200
    assert all(later.first - event.end >= REST_STEPS for event, later in pairwise(events))
    assert events[-1].end <= len(clean) - REST_STEPS


def test_there_are_no_more_faults_than_there_is_room_for(clean: Series, moments: FeatureMoments) -> None:
    """A short series gets fewer, and one that is too short gets none."""
    _, events = inject(clean.values[:600], moments, columns=[0], count=100, seed=0)
    assert 1 < len(events) < 6
    assert inject(clean.values[:100], moments, columns=[0], count=100, seed=0)[1] == ()


def test_a_kind_without_room_leaves_it_to_shorter_ones(clean: Series, moments: FeatureMoments) -> None:
    """At a period of a second a leak lasts half an hour; where that is too long, spikes come all the same."""
    _, events = inject(clean.values[:900], moments, columns=[0, 1, 2], count=100, seed=0, period_s=1.0)
    assert {event.kind for event in events} >= {"spike", "noise", "drift"}
    assert not {event.kind for event in events} & {"leak", "decoupled"}


@pytest.mark.parametrize(("period_s", "steps"), [(None, 192), (600.0, 192), (1.0, 1800)])
def test_a_slow_fault_lasts_half_an_hour(
    clean: Series, moments: FeatureMoments, period_s: float | None, steps: int
) -> None:
    """Or as many timesteps as at a long period, whichever is longer."""
    _, events = inject(clean.values, moments, columns=[0], count=1, seed=0, kinds=["leak"], period_s=period_s)
    assert events[0].end - events[0].first == steps


def one(clean: Series, moments: FeatureMoments, kind: Kind) -> tuple[Floats, Floats, int]:
    """A fault of that kind: the values before and after it, and its column."""
    faulty, events = inject(clean.values, moments, columns=[0, 1, 2], count=1, seed=5, kinds=[kind])
    (event,) = events
    assert event.end - event.first == FAULT_SPECS[kind].steps
    rows = slice(event.first - 1, event.end)
    return clean.values[rows, event.column], faulty[rows, event.column], event.column


def test_a_spike_is_one_value_ten_steps_away(clean: Series, moments: FeatureMoments) -> None:
    """In standard deviations of the sensor's steps."""
    before, after, column = one(clean, moments, "spike")
    assert abs(after[1] - before[1]) == pytest.approx(10 * moments.step_std[column], rel=1e-4)


def test_a_stuck_sensor_repeats_its_last_value(clean: Series, moments: FeatureMoments) -> None:
    """That of the timestep before."""
    before, after, _ = one(clean, moments, "stuck")
    assert (after == before[0]).all()


def test_a_drift_is_a_straight_line(clean: Series, moments: FeatureMoments) -> None:
    """It ends three standard deviations away."""
    before, after, column = one(clean, moments, "drift")
    away = np.abs(after - before)
    assert away[-1] == pytest.approx(3 * moments.std[column], rel=1e-4)
    np.testing.assert_allclose(np.diff(away), away[-1] / FAULT_SPECS["drift"].steps, rtol=1e-3)


def test_a_fixed_sensor_says_the_mean(clean: Series, moments: FeatureMoments) -> None:
    """A plausible value: that of the training part."""
    _, after, column = one(clean, moments, "fixed")
    np.testing.assert_array_equal(after[1:], moments.mean[column])


def test_a_leak_takes_away_more_and_more(clean: Series, moments: FeatureMoments) -> None:
    """Always downwards, up to two standard deviations."""
    before, after, column = one(clean, moments, "leak")
    lost = (before - after)[1:].astype(np.float64)
    assert lost[-1] == pytest.approx(2 * moments.std[column], rel=1e-4)
    np.testing.assert_allclose(np.diff(lost), lost[-1] / FAULT_SPECS["leak"].steps, rtol=1e-2)


def test_a_decoupled_sensor_moves_as_at_another_time(clean: Series, moments: FeatureMoments) -> None:
    """Its steps are those of other rows, from its last value on."""
    before, after, column = one(clean, moments, "decoupled")
    moved, steps = (after - after[0])[1:], FAULT_SPECS["decoupled"].steps
    values = clean.values[:, column].astype(np.float64)
    starts = range(1, len(values) - steps)
    nearest = min(np.abs(values[start : start + steps] - values[start - 1] - moved).max() for start in starts)
    assert nearest < 1e-4
    assert np.abs(after - before)[1:].mean() > 0.25 * moments.std[column]


def test_without_another_time_no_sensor_is_decoupled(clean: Series, moments: FeatureMoments) -> None:
    """A stretch that is hardly longer than the fault has no rows to move as."""
    assert inject(clean.values[:400], moments, columns=[0], count=1, seed=0, kinds=["decoupled"])[1] == ()


def test_a_dropout_is_missing(clean: Series, moments: FeatureMoments) -> None:
    """From its first to its last timestep."""
    assert np.isnan(one(clean, moments, "dropout")[1][1:]).all()


def test_noise_has_the_stated_size(clean: Series, moments: FeatureMoments) -> None:
    """Six standard deviations of the sensor's steps, and none on average, over many faults."""
    faulty, events = inject(clean.values, moments, columns=[1], count=40, seed=5, kinds=["noise"])
    added = np.concatenate([(faulty - clean.values)[event.first : event.end, 1] for event in events])
    assert added.std() == pytest.approx(6 * moments.step_std[1], rel=0.1)
    assert abs(added.mean()) < 0.5 * moments.step_std[1]


def test_a_wrong_scale_triples_the_distance_from_the_mean(clean: Series, moments: FeatureMoments) -> None:
    """The distance from the training mean, and twice as much on top."""
    before, after, column = one(clean, moments, "scale")
    mean = moments.mean[column]
    np.testing.assert_allclose((after - mean)[1:], 3 * (before - mean)[1:], rtol=1e-4, atol=1e-3)


def test_a_sensor_that_stands_still_is_not_stuck(clean: Series, moments: FeatureMoments) -> None:
    """Where a fault would show in no column there is none; a column that moves is taken instead of one that does not."""
    clean.values[:, 0] = 7
    assert inject(clean.values, moments, columns=[0], count=5, seed=0, kinds=["stuck"])[1] == ()
    _, events = inject(clean.values, moments, columns=[0, 1], count=5, seed=0, kinds=["stuck"])
    assert [event.column for event in events] == [1] * 5


def test_a_sensor_that_is_missing_does_not_fail(clean: Series, moments: FeatureMoments) -> None:
    """Nothing is put where most values are missing already."""
    clean.values[:, 0] = np.nan
    assert inject(clean.values, moments, columns=[0], count=6, seed=0)[1] == ()
