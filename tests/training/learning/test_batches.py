"""Batches: which rows are learned from when."""

from collections.abc import Sequence

import numpy as np
import pytest

from tidegate.training.learning.batches import (
    PADDING,
    PIECE_ROWS,
    WARM_UP_ROWS,
    Bools,
    Plan,
    Rows,
    plan_epoch,
    plan_validation,
)

SEGMENTS = [(0, 100), (100, 130), (135, 400)]


def plan(
    segments: Sequence[tuple[int, int]] = SEGMENTS,
    *,
    lanes: int = 4,
    chunk: int = 16,
    burn_in: int = 5,
    cold_share: float = 0.0,
    seed: int = 0,
) -> Plan:
    """One epoch of the segments above."""
    return plan_epoch(
        segments, batch_size=lanes, chunk=chunk, burn_in=burn_in, cold_share=cold_share, rng=np.random.default_rng(seed)
    )


def plan_rows(made: Plan) -> Rows:
    """(time, batch elements) the rows of the whole plan."""
    return made.rows().reshape(-1, made.batch_size)


def plan_mask(made: Plan) -> Bools:
    """(time, batch elements) which of them count."""
    return made.loss_mask().reshape(-1, made.batch_size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lanes", [1, 3, 7, 500])
def test_every_row_is_in_one_place(lanes: int, seed: int) -> None:
    """Each row of each segment appears exactly once in an epoch, and no other row does."""
    rows = plan_rows(plan(lanes=lanes, seed=seed))
    wanted = [row for first, end in SEGMENTS for row in range(first, end)]
    assert sorted(rows[rows != PADDING].tolist()) == wanted


def test_rows_of_a_batch_element_follow_each_other_unless_the_state_is_fresh() -> None:
    """Where a row does not follow the one before it, a chunk begins there and its state is zero."""
    made = plan()
    for lane in range(4):
        before = None
        for at, row in enumerate(plan_rows(made)[:, lane].tolist()):
            if row == PADDING:
                continue
            if before is None or row != before + 1 or row in {0, 100, 135}:
                assert at % made.chunk == 0
                assert made.reset[at // made.chunk, lane]
            before = row


def test_no_run_crosses_a_gap() -> None:
    """Rows on both sides of a time gap are never in one run: the state is zeroed between them."""
    made = plan([(0, 50), (50, 100)], lanes=1, chunk=10)
    places = {row: at for at, row in enumerate(plan_rows(made)[:, 0].tolist())}
    assert made.reset[places[50] // 10, 0]
    assert places[50] % 10 == 0


def test_the_state_is_carried_within_a_run() -> None:
    """Only the first chunk of a run begins with a zero state."""
    made = plan([(0, 100)], lanes=1, chunk=10, seed=2)
    offset = plan_rows(made)[0, 0]
    assert made.reset.sum() == 2  # where the batch element begins, and where the ring of rows closes
    assert offset > 0


def test_burn_in_does_not_count() -> None:
    """The first rows of a run do not count for the loss; all others do; padding never does."""
    made = plan(burn_in=5, cold_share=0.0)
    assert not plan_mask(made)[plan_rows(made) == PADDING].any()
    for chunk, lane in np.argwhere(made.reset):
        at = chunk * made.chunk
        size = _run_length(made, at, lane)
        skipped = min(5, size // 2)
        assert not plan_mask(made)[at : at + skipped, lane].any()
        assert plan_mask(made)[at + skipped : at + size, lane].all()


def test_cold_runs_count_from_their_first_row() -> None:
    """A share of the runs counts from the first row, so that the first forecasts of a new stream are learned too."""
    made = plan(cold_share=1.0)
    assert (plan_mask(made) == (plan_rows(made) != PADDING)).all()


def test_some_runs_are_cold() -> None:
    """With a share of a half, some runs are cold and some are not."""
    made = plan([(0, 4000)], lanes=40, cold_share=0.5)
    first = np.array([plan_mask(made)[chunk * made.chunk, lane] for chunk, lane in np.argwhere(made.reset)])
    assert 0.25 < first.mean() < 0.75


def test_batch_elements_begin_elsewhere_in_each_epoch() -> None:
    """The same generator gives another offset for the next epoch."""
    rng = np.random.default_rng(0)
    plans = [plan_epoch(SEGMENTS, batch_size=4, chunk=16, burn_in=5, cold_share=0.0, rng=rng) for _ in range(3)]
    assert len({int(plan_rows(made)[0, 0]) for made in plans}) == 3


def test_the_same_seed_gives_the_same_plan() -> None:
    """Plans depend on nothing but their arguments."""
    assert np.array_equal(plan_rows(plan(seed=7)), plan_rows(plan(seed=7)))
    assert not np.array_equal(plan_rows(plan(seed=7)), plan_rows(plan(seed=8)))


def test_a_part_of_a_plan_is_that_part_of_the_whole() -> None:
    """Rows and what counts are the same, looked up for some chunks or for all."""
    made = plan()
    assert np.array_equal(made.rows(slice(2, 5)), made.rows()[2:5])
    assert np.array_equal(made.loss_mask(slice(2, 5)), made.loss_mask()[2:5])


def test_a_walk_counts_every_row_once_from_a_fresh_state() -> None:
    """Segments lie side by side, each from the head of a chunk, and all rows count from the first."""
    made = plan_validation(SEGMENTS)
    rows = plan_rows(made)
    wanted = [row for first, end in SEGMENTS for row in range(first, end)]
    assert sorted(rows[rows != PADDING].tolist()) == wanted
    assert (plan_mask(made) == (rows != PADDING)).all()
    heads = {int(rows[chunk * made.chunk, lane]) for chunk, lane in np.argwhere(made.reset)}
    assert heads == {first for first, _ in SEGMENTS}


def test_a_long_segment_is_walked_in_pieces_that_warm_up() -> None:
    """Every row counts once; those before a piece are walked again, without counting; one below the limit stays whole."""
    made = plan_validation([(10, 10 + 3 * PIECE_ROWS)])
    rows, scored = plan_rows(made), plan_mask(made)
    assert made.batch_size == 3
    assert sorted(rows[scored].tolist()) == list(range(10, 10 + 3 * PIECE_ROWS))
    assert (rows != PADDING).sum() == 3 * PIECE_ROWS + 2 * WARM_UP_ROWS
    cut = rows[0] != 10  # the batch elements that do not begin where the segment does
    assert cut.sum() == 2
    assert not scored[:WARM_UP_ROWS, cut].any()
    assert plan_validation([(0, 2 * PIECE_ROWS - 1)]).batch_size == 1


def test_many_recordings_share_the_batch_elements_evenly() -> None:
    """140 short segments take no more than a few of the longest one's lengths."""
    made = plan_validation([(index * 200, index * 200 + 150) for index in range(140)])
    assert made.batch_size * made.chunks * made.chunk <= 1.2 * 3 * 64 * 150 + 64 * 2 * made.chunk


def test_a_plan_is_small_beside_the_series() -> None:
    """Two million rows are planned in less than a tenth of the bytes of one column."""
    made = plan([(0, 2_000_000)], lanes=16, chunk=24)
    assert sum(part.nbytes for part in (made.first, made.length, made.burn_in, made.reset)) < 0.3 * 4 * 2_000_000


def _run_length(made: Plan, at: int, lane: int) -> int:
    """Rows from `at` to the next run of the batch element, without padding."""
    later = [
        chunk * made.chunk for chunk, other in np.argwhere(made.reset) if other == lane and chunk * made.chunk > at
    ]
    column = plan_rows(made)[at : min(later, default=len(plan_rows(made))), lane]
    return int((column != PADDING).sum())
