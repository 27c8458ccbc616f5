"""The cost of a row, and how many rows run together."""

import pytest

from tidegate.core.self_check import DENSE_MAX, SPARSE_STEP
from tidegate.runtime.row_cost import (
    COUNTED_MAX,
    LOOP_SECONDS_MAX,
    LOOP_SECONDS_MAX_ALONE,
    ROWS_FIRST,
    SINGLE_ROW_FACTOR,
    WEIGHT,
    RowCost,
    size_step,
)


def cost_of(alone_us: float, row_us: float) -> RowCost:
    """The estimate after batches of a known cost."""
    cost = RowCost(alone_us * 1e-6)
    cost.row_seconds = row_us * 1e-6
    return cost


@pytest.mark.parametrize("row_us", [0.7, 1.3, 5.1, 19.9, 31])
def test_rows_that_go_together_keep_the_loop_for_half_a_millisecond(row_us: float) -> None:
    """As many rows as fit into the time, rounded to full steps, so that sizes come again."""
    cost = cost_of(31, row_us)
    assert (
        cost.rows_max * cost.row_seconds
        <= LOOP_SECONDS_MAX
        < (cost.rows_max + size_step(cost.rows_max)) * cost.row_seconds
    )


@pytest.mark.parametrize("row_us", [0.7, 1.3, 5.1, 19.9, 31])
def test_rows_of_a_call_that_is_alone_keep_the_loop_for_four_times_as_long(row_us: float) -> None:
    """Rounded to full steps too."""
    cost = cost_of(31, row_us)
    rows = cost.rows_max_alone
    assert rows * cost.row_seconds <= LOOP_SECONDS_MAX_ALONE < (rows + size_step(rows)) * cost.row_seconds


def test_sizes_of_large_chunks_are_among_those_that_are_checked() -> None:
    """Any other would run in parts."""
    sizes = {rows - rows % size_step(rows) for rows in range(1, 5000)}
    assert not [size for size in sizes if size > DENSE_MAX and size % SPARSE_STEP]


@pytest.mark.parametrize(("alone_us", "row_us"), [(130, 10), (240, 17), (490, 30), (490, 490)])
def test_a_batch_takes_four_times_as_long_as_a_row_alone(alone_us: float, row_us: float) -> None:
    """Then the fixed cost of a batch is at most a quarter of it, however large the model."""
    cost = cost_of(alone_us, row_us)
    held = cost.rows_max * cost.row_seconds
    assert (
        held
        <= SINGLE_ROW_FACTOR * cost.single_row_seconds * 1.000001
        < held + size_step(cost.rows_max) * cost.row_seconds
    )
    assert held < SINGLE_ROW_FACTOR * LOOP_SECONDS_MAX


def test_only_a_model_whose_row_alone_is_slow_is_for_the_thread() -> None:
    """However long a batch of many rows takes."""
    cost = RowCost(LOOP_SECONDS_MAX / 2)
    for _ in range(100):
        cost.record(8, 8 * LOOP_SECONDS_MAX)
    assert not cost.needs_thread
    for _ in range(100):
        cost.record(1, LOOP_SECONDS_MAX * 1.01)
    assert cost.needs_thread
    for _ in range(100):
        cost.record(1, LOOP_SECONDS_MAX / 2)
    assert not cost.needs_thread


def test_a_model_whose_rows_have_become_slow_is_for_the_thread_soon() -> None:
    """After three; a single slow row is not enough."""
    cost = cost_of(10, 1)
    cost.record(1, 1.0)
    assert not cost.needs_thread
    cost.record(1, 1.0)
    cost.record(1, 1.0)
    assert cost.needs_thread


def test_a_small_batch_does_not_measure_the_cost_of_a_row() -> None:
    """A block of eight rows between blocks of a thousand does not change the size of their chunks."""
    cost = cost_of(30, 1)
    before = cost.rows_max
    for _ in range(100):
        cost.record(8, 40e-6)
    assert cost.rows_max == before


def test_a_slow_small_batch_measures_the_cost_of_a_row() -> None:
    """Else a model that became slow would block the loop until a client sends many rows."""
    cost = cost_of(30, 1)
    for _ in range(100):
        cost.record(8, 8 * 100e-6)
    assert cost.rows_max == cost_of(30, 100).rows_max


def test_one_batch_that_met_a_pause_counts_a_little() -> None:
    """A garbage collection during a chunk makes the next ones a quarter smaller, not a hundredth."""
    cost = cost_of(30, 1)
    cost.record(500, 1.0)
    assert cost.row_seconds == pytest.approx(1e-6 * (1 + WEIGHT * (COUNTED_MAX - 1)))


def test_where_nothing_is_known_the_first_batch_is_small() -> None:
    """And not that of one row."""
    cost = RowCost()
    assert cost.rows_max == ROWS_FIRST
    assert not cost.needs_thread
    cost.record(1, 10e-6)
    assert cost.single_row_seconds == 10e-6


def test_the_repr_has_the_cost_of_a_row() -> None:
    """Of both kinds."""
    assert repr(cost_of(12, 3)) == "<RowCost 12.0 us for a single row, 3.0 us in a batch>"
