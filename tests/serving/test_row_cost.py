"""What a row costs, and how many go together."""

import pytest

from serving.runtime.row_cost import COUNTED_MAX, HOLD_SECONDS, HOLD_SECONDS_MAX, ROWS_MIN, WEIGHT, RowCost


@pytest.mark.parametrize("microseconds", [0.5, 1, 2, 5, 10, 20, 30])
def test_rows_that_go_together_keep_the_loop_for_half_a_millisecond(microseconds: float) -> None:
    """As many as come to that, and not one less."""
    cost = RowCost(microseconds * 1e-6)
    assert cost.rows_max * cost.row_seconds <= HOLD_SECONDS < (cost.rows_max + 1) * cost.row_seconds


@pytest.mark.parametrize("microseconds", [32, 50, 100, 125])
def test_no_batch_is_so_small_that_it_costs_more_than_its_rows(microseconds: float) -> None:
    """The rows of a slow model go by sixteen, though that keeps the loop for longer."""
    assert RowCost(microseconds * 1e-6).rows_max == ROWS_MIN


@pytest.mark.parametrize("microseconds", [126, 200, 400, 499])
def test_the_loop_is_never_kept_for_more_than_two_milliseconds(microseconds: float) -> None:
    """Those of a still slower one by fewer."""
    cost = RowCost(microseconds * 1e-6)
    assert 1 <= cost.rows_max < ROWS_MIN
    assert cost.rows_max * cost.row_seconds <= HOLD_SECONDS_MAX


def test_only_a_model_whose_row_alone_is_slow_is_for_the_thread() -> None:
    """However long a batch of many takes."""
    cost = RowCost(HOLD_SECONDS / 2)
    for _ in range(100):
        cost.took(8, 8 * HOLD_SECONDS)
    assert not cost.in_thread
    for _ in range(100):
        cost.took(1, HOLD_SECONDS * 1.01)
    assert cost.in_thread
    for _ in range(100):
        cost.took(1, HOLD_SECONDS / 2)
    assert not cost.in_thread


def test_a_small_batch_does_not_tell_what_a_row_costs() -> None:
    """A message of eight rows between those of a thousand leaves the size of their pieces alone."""
    cost = RowCost(1e-6)
    before = cost.rows_max
    for _ in range(100):
        cost.took(8, 40e-6)
    assert cost.rows_max == before


def test_a_small_batch_that_is_slow_tells_all_the_same() -> None:
    """Else a model that became slow would keep the loop until somebody sends it many rows."""
    cost = RowCost(1e-6)
    for _ in range(100):
        cost.took(8, 8 * HOLD_SECONDS)
    assert cost.rows_max == RowCost(HOLD_SECONDS).rows_max


def test_one_batch_that_met_a_pause_counts_a_little() -> None:
    """A collection of garbage in its midst makes the next pieces a third smaller, not a hundredth."""
    cost = RowCost(1e-6)
    cost.took(500, 1.0)
    assert cost.row_seconds == pytest.approx(1e-6 * (1 + WEIGHT * (COUNTED_MAX - 1)))


def test_where_nothing_is_known_the_first_batch_is_small() -> None:
    """And not of one row."""
    cost = RowCost()
    assert cost.rows_max == ROWS_MIN
    assert not cost.in_thread
    cost.took(1, 10e-6)
    assert cost.alone_seconds == 10e-6


def test_one_line_says_what_a_row_costs() -> None:
    """Of both kinds."""
    assert repr(RowCost(12e-6)) == "<RowCost 12.0 us alone, 12.0 us in a batch>"
