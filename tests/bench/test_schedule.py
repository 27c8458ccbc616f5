"""When timesteps are due."""

from collections import Counter

import numpy as np
import pytest

from tidegate.bench.plan import Arrivals
from tidegate.bench.schedule import Schedule

ARRIVALS = pytest.mark.parametrize("arrivals", ["constant", "poisson"])


def drawn(schedule: Schedule, until: float, pieces: int = 1) -> list[tuple[float, int]]:
    """Returns what is due until then, taken in pieces."""
    return [due for piece in range(1, pieces + 1) for due in schedule.pop_due(until * piece / pieces)]


@ARRIVALS
@pytest.mark.parametrize("calls", [1, 7, 9000])
def test_times_rise_and_every_call_has_its_share(arrivals: Arrivals, calls: int) -> None:
    """In order, and as many as the interval requires, for any number of calls."""
    times = drawn(Schedule(calls, 0.1, arrivals, (1,)), 2.0)
    assert [at for at, _ in times] == sorted(at for at, _ in times)
    assert len(times) == pytest.approx(calls * 20, rel=0.01, abs=4 * np.sqrt(calls * 20))
    assert set(Counter(call for _, call in times)) == set(range(calls))


def test_a_constant_call_has_a_fixed_interval() -> None:
    """The interval is fixed, and the phase is random within the first interval."""
    times = drawn(Schedule(50, 0.25, "constant", (1,)), 100.0)
    phases = set()
    for call in range(50):
        own = [at for at, who in times if who == call]
        assert 0 <= own[0] < 0.25
        assert np.diff(own) == pytest.approx(0.25)
        phases.add(own[0])
    assert len(phases) == 50


def test_poisson_pauses_are_exponential() -> None:
    """Their standard deviation equals their mean, for one call as for all together."""
    times = drawn(Schedule(4, 0.01, "poisson", (1,)), 100.0)
    for pauses in (np.diff([at for at, _ in times]), np.diff([at for at, who in times if who == 2])):
        assert pauses.std() == pytest.approx(pauses.mean(), rel=0.05)


@ARRIVALS
def test_the_same_seed_draws_the_same_times_however_they_are_taken(arrivals: Arrivals) -> None:
    """Another seed gives other times."""
    whole = drawn(Schedule(3, 0.01, arrivals, (5, 0)), 60.0)
    assert drawn(Schedule(3, 0.01, arrivals, (5, 0)), 60.0, pieces=997) == whole
    assert drawn(Schedule(3, 0.01, arrivals, (5, 1)), 60.0) != whole


def test_a_time_is_not_returned_twice_after_an_early_stop() -> None:
    """Each time is returned once."""
    schedule = Schedule(2, 1.0, "constant", (1,))
    first = next(iter(schedule.pop_due(5.0)))
    assert first not in drawn(schedule, 5.0)
