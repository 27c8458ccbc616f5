"""The learning rate over a training."""

import pytest

from tidegate.training.learning.schedule import FINAL_RATE, plateaus, rate
from tidegate.training.settings import Fit

RATE = 0.01
SCHEDULES = ["cosine", "constant", "step", "plateau"]


def settings(schedule: str, **more: float) -> Fit:
    """A schedule that warms up during the first fifth."""
    return Fit.model_validate({"schedule": schedule, "learning_rate": RATE, "warm_up": 0.2, "drop_after": 3} | more)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_in_a_straight_line(schedule: str) -> None:
    """Half-way through the warm-up half the rate is reached, at its end all of it; the first step is not wasted."""
    assert rate(settings(schedule), 0.0, []) == pytest.approx(RATE * FINAL_RATE)
    assert rate(settings(schedule), 0.1, []) == pytest.approx(RATE / 2)
    assert rate(settings(schedule), 0.2, []) == pytest.approx(RATE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_rate_is_the_highest(schedule: str) -> None:
    """A warm-up of nothing leaves the schedule alone."""
    assert rate(settings(schedule, warm_up=0.0), 0.0, []) == RATE


def test_a_cosine_falls_to_its_end() -> None:
    """Half-way down it is in the middle of its ends."""
    assert rate(settings("cosine"), 0.6, []) == pytest.approx(RATE * (1 + FINAL_RATE) / 2)
    assert rate(settings("cosine"), 1.0, []) == pytest.approx(RATE * FINAL_RATE)


def test_a_constant_rate_stays() -> None:
    """Neither progress nor scores move it."""
    assert rate(settings("constant"), 1.0, [0.5] * 50) == RATE


def test_steps_go_down_by_epochs() -> None:
    """Every third epoch the rate is multiplied by the drop, whatever the scores are."""
    made = settings("step", drop=0.5)
    rates = [rate(made, 0.5, [1.0 / (epoch + 1) for epoch in range(epochs)]) / RATE for epochs in range(7)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])


def test_a_plateau_drops_when_nothing_gets_better() -> None:
    """Three epochs without a better score drop the rate; a better one begins the count anew."""
    made = settings("plateau", drop=0.5)
    scores = [0.9, 0.9, 0.9, 0.8, 0.9, 0.85, 0.8, 0.7]
    rates = [rate(made, 0.5, scores[:epochs]) / RATE for epochs in range(len(scores) + 1)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.5, 0.5])


def test_every_plateau_counts() -> None:
    """After a drop the next one needs as many epochs again."""
    assert [plateaus([1.0] * epochs, 3) for epochs in range(9)] == [0, 0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_no_schedule_goes_to_zero(schedule: str) -> None:
    """After hundreds of drops something is left."""
    assert rate(settings(schedule, drop=0.1), 1.0, [1.0] * 1000) == pytest.approx(RATE * FINAL_RATE)
