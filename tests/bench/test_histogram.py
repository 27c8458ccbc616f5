"""The latency histogram, compared with numpy, which keeps all latencies."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.bench.histogram import Histogram

LATENCIES = st.lists(st.floats(min_value=2e-6, max_value=1000.0), min_size=1, max_size=300)
SHARES = st.sampled_from([0.01, 0.5, 0.9, 0.99, 0.999, 1.0])

# On a busy machine an example may take long.


def histogram(latencies: list[float]) -> Histogram:
    """Makes a histogram of these latencies."""
    made = Histogram()
    for seconds in latencies:
        made.add(seconds)
    return made


def rank(share: float, count: int) -> int:
    """Returns the rank of a quantile, from 1."""
    return max(1, math.ceil(share * count))


@given(LATENCIES, SHARES)
def test_a_quantile_equals_that_of_numpy_to_one_percent(latencies: list[float], share: float) -> None:
    """For latencies of any size."""
    expected = float(np.sort(latencies)[rank(share, len(latencies)) - 1])
    assert histogram(latencies).quantile(share) == pytest.approx(expected, rel=0.01)


@given(LATENCIES, LATENCIES, SHARES)
def test_merged_histograms_equal_one_of_all_latencies(first: list[float], second: list[float], share: float) -> None:
    """Also after one of them was pickled."""
    merged = histogram(first)
    merged.merge(pickle.loads(pickle.dumps(histogram(second))))
    whole = histogram(first + second)
    assert merged.quantile(share) == whole.quantile(share)
    assert merged.max_s == whole.max_s
    assert list(merged.buckets()) == list(whole.buckets())


@given(LATENCIES, st.integers(0, 300), SHARES)
def test_unanswered_timesteps_are_slower_than_answered_ones(
    latencies: list[float], unanswered: int, share: float
) -> None:
    """A quantile that falls among unanswered timesteps is unknown. Others count all timesteps."""
    made = histogram(latencies)
    made.unanswered = unanswered
    index = rank(share, len(latencies) + unanswered)
    if index > len(latencies):
        assert made.quantile(share) is None
    else:
        assert made.quantile(share) == pytest.approx(float(np.sort(latencies)[index - 1]), rel=0.01)


@given(LATENCIES)
@settings(max_examples=30)
def test_a_bucket_is_one_percent_wide(latencies: list[float]) -> None:
    """Its upper bound is above all values in it, by at most 1 %."""
    reached = 0
    ordered = np.sort(latencies)
    for bound, count in histogram(latencies).buckets():
        inside = ordered[reached : reached + count]
        assert (inside <= bound * 1.000001).all()
        assert (inside >= bound / 1.010001).all()
        reached += count
    assert reached == len(latencies)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 5000.0])
def test_a_latency_outside_all_buckets_is_counted(seconds: float) -> None:
    """Nothing is lost, and the maximum is exact."""
    made = histogram([seconds])
    assert len(made) == 1
    assert made.max_s == seconds


def test_an_empty_histogram_has_no_quantile() -> None:
    """None, not 0."""
    assert Histogram().quantile(0.5) is None
