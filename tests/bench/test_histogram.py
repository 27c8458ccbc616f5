"""The record of latencies against numpy, which keeps them all."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bench.histogram import Histogram

LATENCIES = st.lists(st.floats(min_value=2e-6, max_value=1000.0), min_size=1, max_size=300)
SHARES = st.sampled_from([0.01, 0.5, 0.9, 0.99, 0.999, 1.0])

# On a busy machine any example may stand still for a while.
UNHURRIED = settings(deadline=None)


def histogram(latencies: list[float]) -> Histogram:
    """One that holds these."""
    made = Histogram()
    for seconds in latencies:
        made.add(seconds)
    return made


def rank(share: float, count: int) -> int:
    """Which of so many, from the quickest, a share of all did not exceed."""
    return max(1, math.ceil(share * count))


@given(LATENCIES, SHARES)
@UNHURRIED
def test_a_quantile_is_what_numpy_says_to_one_percent(latencies: list[float], share: float) -> None:
    """Of whatever size the latencies are."""
    expected = float(np.sort(latencies)[rank(share, len(latencies)) - 1])
    assert histogram(latencies).quantile(share) == pytest.approx(expected, rel=0.01)


@given(LATENCIES, LATENCIES, SHARES)
@UNHURRIED
def test_two_that_are_merged_are_one_of_all(first: list[float], second: list[float], share: float) -> None:
    """Also after one of them has travelled between processes."""
    merged = histogram(first)
    merged.merge(pickle.loads(pickle.dumps(histogram(second))))
    whole = histogram(first + second)
    assert merged.quantile(share) == whole.quantile(share)
    assert merged.max_s == whole.max_s
    assert list(merged.buckets()) == list(whole.buckets())


@given(LATENCIES, st.integers(0, 300), SHARES)
@UNHURRIED
def test_what_was_never_answered_is_slower_than_what_was(latencies: list[float], unanswered: int, share: float) -> None:
    """A quantile that falls among it is not known; one that does not is that of all."""
    made = histogram(latencies)
    made.unanswered = unanswered
    index = rank(share, len(latencies) + unanswered)
    if index > len(latencies):
        assert made.quantile(share) is None
    else:
        assert made.quantile(share) == pytest.approx(float(np.sort(latencies)[index - 1]), rel=0.01)


@given(LATENCIES)
@settings(max_examples=30, deadline=None)
def test_a_bucket_is_one_percent_wide_and_holds_what_is_in_it(latencies: list[float]) -> None:
    """Its bound is above all that it counts, by at most 1 %."""
    reached = 0
    ordered = np.sort(latencies)
    for bound, count in histogram(latencies).buckets():
        inside = ordered[reached : reached + count]
        assert (inside <= bound * 1.000001).all()
        assert (inside >= bound / 1.010001).all()
        reached += count
    assert reached == len(latencies)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 5000.0])
def test_what_no_bucket_reaches_is_counted_in_the_last(seconds: float) -> None:
    """Nothing is dropped, and the longest is kept as it is."""
    made = histogram([seconds])
    assert len(made) == 1
    assert made.max_s == seconds


def test_of_nothing_no_quantile_is_known() -> None:
    """None, not 0."""
    assert Histogram().quantile(0.5) is None
