"""Faults put into copies, and what a detector makes of them: hand-made scores, whose right answer is known."""

from collections.abc import Callable

import numpy as np
import pytest

from training import detection
from training.detection import Watch, _detection, break_copies, threshold_for
from training.events import bursts
from training.faults import Event, Moments
from training.metrics import Bools
from training.series import Group, Series


def watch(*alarms: int, steps: int = 200, cold: int = 10) -> Watch:
    """A stream with alarms at these timesteps, a score that follows them, and a few cold timesteps at its beginning."""
    alarm = np.zeros(steps, np.bool_)
    alarm[list(alarms)] = True
    warm = np.arange(steps) >= cold
    return Watch(alarm, (alarm * 0.9 + 0.05).astype(np.float32), warm)


EVENTS = ((Event("drift", 0, 50, 70), Event("spike", 0, 150, 151)), (Event("spike", 1, 40, 41),))


def test_a_detector_is_summed_up() -> None:
    """Over all streams: two of three events found, one false alarm, two bursts on the clean part."""
    got = _detection([watch(60, 61, 110), watch(42)], EVENTS, [watch(20, 21, 90)], 600.0)
    assert (got.found, got.events, got.false_alarms) == (2, 3, 1)
    assert got.precision == pytest.approx(2 / 3)
    assert got.recall == pytest.approx(2 / 3)
    assert got.f1 == pytest.approx(2 / 3)
    assert got.delay == 6.0  # of 10 and 2
    assert (got.clean_alarms, got.clean_share) == (2, 3 / 190)
    assert got.clean_alarms_a_day == pytest.approx(2 * 86_400 / (190 * 600))
    assert {kind.kind: (kind.found, kind.events) for kind in got.kinds if kind.events} == {
        "spike": (1, 2),
        "drift": (1, 1),
    }


def test_silence_has_no_precision() -> None:
    """Nothing was found, and nothing was false."""
    got = _detection([watch(), watch()], EVENTS, [watch()], None)
    assert (got.found, got.precision, got.f1, got.delay, got.clean_alarms_a_day) == (0, None, 0.0, None, None)


def test_the_best_score_has_the_best_area() -> None:
    """A score that is high exactly in the faults has an average precision of 1; its aftermath and cold start do not count."""
    rows = [*range(50, 70), 150, *range(70, 76), 3]
    got = _detection([watch(*rows), watch(40)], EVENTS, [watch()], 600.0)
    assert got.auc_pr == 1.0


def test_the_threshold_gives_as_many_alarms(make_series: Callable[..., Series]) -> None:
    """No more bursts than asked for, and more would come with a lower one; none asked for, none raised."""
    rng = np.random.default_rng(0)
    scores = [rng.random(3000).astype(np.float32) for _ in range(2)]
    warm = [np.arange(3000) > 100 for _ in range(2)]

    def raised(threshold: float) -> int:
        return sum(len(bursts((score > threshold) & part)) for score, part in zip(scores, warm, strict=True))

    threshold = threshold_for(20, scores, warm)
    assert 15 <= raised(threshold) <= 20
    assert raised(threshold - 0.005) > 20
    assert raised(threshold_for(0, scores, warm)) == 0


def every_row(events: tuple[tuple[Event, ...], ...], series: Series) -> Bools:
    """(rows, features) whether an event covers a value of the copies."""
    covered = np.zeros(series.values.shape, np.bool_)
    for (first, _), faults in zip(series.spans, events, strict=True):
        for event in faults:
            covered[first + event.first : first + event.end, event.column] = True
    return covered


def test_copies_differ_only_in_their_events(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy of a stretch is that stretch, with faults of its own, in the wanted columns, behind the warm-up."""
    monkeypatch.setattr(detection, "EVENTS", 40)
    series = make_series(2600, gap_at=1000)
    stretches = series.stretches()
    got = break_copies(series, stretches, Moments.of(series, series.spans), columns=[0, 1], warm=150)
    assert got is not None
    assert 35 <= sum(map(len, got.events)) <= 45
    assert all(event.first >= 150 and event.column in (0, 1) for faults in got.events for event in faults)
    clean = np.concatenate([series.values[slice(*stretches[0])], series.values[slice(*stretches[1])]])
    copies = np.concatenate([clean] * got.copies)
    covered = every_row(got.events, got.series)
    np.testing.assert_array_equal(got.series.values[~covered], copies[~covered])
    assert len(set(got.events)) == len(got.events)


def test_a_long_part_is_not_copied(make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its faults are spread over all of it."""
    monkeypatch.setattr(detection, "EVENTS", 6)
    series = make_series(3000)
    got = break_copies(series, [(0, 3000)], Moments.of(series, series.spans), columns=[0], warm=100)
    assert got is not None
    assert (got.copies, len(got.events), len(got.series)) == (1, 1, 3000)
    assert got.series.groups == (Group("0", 0, 3000),)


def test_without_room_there_are_no_faults(make_series: Callable[..., Series]) -> None:
    """A stretch that is hardly longer than the warm-up holds none."""
    series = make_series(200)
    assert break_copies(series, [(0, 200)], Moments.of(series, series.spans), columns=[0], warm=150) is None
    assert break_copies(series, [], Moments.of(series, series.spans), columns=[0], warm=150) is None
