"""Lanes: which rows are learned from when."""

from collections.abc import Sequence

import numpy as np
import pytest

from training.lanes import PADDING, Plan, plan_epoch

STRETCHES = [(0, 100), (100, 130), (135, 400)]


def plan(
    stretches: Sequence[tuple[int, int]] = STRETCHES,
    *,
    lanes: int = 4,
    chunk: int = 16,
    burn_in: int = 5,
    cold_share: float = 0.0,
    seed: int = 0,
) -> Plan:
    """One epoch of the stretches above."""
    return plan_epoch(
        stretches, lanes=lanes, chunk=chunk, burn_in=burn_in, cold_share=cold_share, rng=np.random.default_rng(seed)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lanes", [1, 3, 7, 500])
def test_every_row_is_in_one_place(lanes: int, seed: int) -> None:
    """Each row of each stretch appears exactly once in an epoch, and no other row does."""
    rows = plan(lanes=lanes, seed=seed).rows
    wanted = [row for first, end in STRETCHES for row in range(first, end)]
    assert sorted(rows[rows != PADDING].tolist()) == wanted


def test_rows_of_a_lane_follow_each_other_unless_the_state_is_fresh() -> None:
    """Where a row does not follow the one before it, a chunk begins there and its state is zero."""
    made = plan()
    for lane in range(4):
        before = None
        for at, row in enumerate(made.rows[:, lane].tolist()):
            if row == PADDING:
                continue
            if before is None or row != before + 1 or row in {0, 100, 135}:
                assert at % made.chunk == 0
                assert made.fresh[at // made.chunk, lane]
            before = row


def test_no_run_crosses_a_gap() -> None:
    """Rows on both sides of a time gap are never in one run: the state is zeroed between them."""
    made = plan([(0, 50), (50, 100)], lanes=1, chunk=10)
    places = {row: at for at, row in enumerate(made.rows[:, 0].tolist())}
    assert made.fresh[places[50] // 10, 0]
    assert places[50] % 10 == 0


def test_the_state_is_carried_within_a_run() -> None:
    """Only the first chunk of a run begins with a zero state."""
    made = plan([(0, 100)], lanes=1, chunk=10, seed=2)
    offset = made.rows[0, 0]
    assert made.fresh.sum() == 2  # where the lane begins, and where the ring of rows closes
    assert offset > 0


def test_burn_in_does_not_count() -> None:
    """The first rows of a run do not count for the loss; all others do; padding never does."""
    made = plan(burn_in=5, cold_share=0.0)
    assert not made.scored[made.rows == PADDING].any()
    for chunk, lane in np.argwhere(made.fresh):
        at = chunk * made.chunk
        size = _run_length(made, at, lane)
        skipped = min(5, size // 2)
        assert not made.scored[at : at + skipped, lane].any()
        assert made.scored[at + skipped : at + size, lane].all()


def test_cold_runs_count_from_their_first_row() -> None:
    """A share of the runs counts from the first row, so that the first forecasts of a new stream are learned too."""
    made = plan(cold_share=1.0)
    assert (made.scored == (made.rows != PADDING)).all()


def test_some_runs_are_cold() -> None:
    """With a share of a half, some runs are cold and some are not."""
    made = plan([(0, 4000)], lanes=40, cold_share=0.5)
    first = np.array([made.scored[chunk * made.chunk, lane] for chunk, lane in np.argwhere(made.fresh)])
    assert 0.25 < first.mean() < 0.75


def test_lanes_begin_elsewhere_in_each_epoch() -> None:
    """The same generator gives another offset for the next epoch."""
    rng = np.random.default_rng(0)
    plans = [plan_epoch(STRETCHES, lanes=4, chunk=16, burn_in=5, cold_share=0.0, rng=rng) for _ in range(3)]
    assert len({int(made.rows[0, 0]) for made in plans}) == 3


def test_the_same_seed_gives_the_same_plan() -> None:
    """Plans depend on nothing but their arguments."""
    assert np.array_equal(plan(seed=7).rows, plan(seed=7).rows)
    assert not np.array_equal(plan(seed=7).rows, plan(seed=8).rows)


def _run_length(made: Plan, at: int, lane: int) -> int:
    """Rows from `at` to the next run of the lane, without padding."""
    later = [
        chunk * made.chunk for chunk, other in np.argwhere(made.fresh) if other == lane and chunk * made.chunk > at
    ]
    column = made.rows[at : min(later, default=len(made.rows)), lane]
    return int((column != PADDING).sum())
