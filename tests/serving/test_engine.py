from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import key, make_engine
from tests.graphs import fragile, inverse, lstm, picky, running_sum
from tests.oracle import replay, sensor_rows
from tidegate.core.engine import BatchResult, Engine, RowStatus
from tidegate.core.spec import Timestep


def run(engine: Engine, slots: list[int], steps: list[int], x: Any) -> BatchResult:
    """Runs a batch. x is one number or one list for each row."""
    return engine.run(
        np.array(slots, np.int64), np.array(steps, np.int64), np.array(x, np.float32).reshape(len(slots), -1)
    )


def begin(engine: Engine, count: int) -> list[int]:
    """New slots."""
    return [engine.slots.acquire(key(str(number))) for number in range(count)]


def statuses(result: BatchResult, count: int) -> list[RowStatus]:
    """The status of each row."""
    return (
        [RowStatus.APPLIED] * count if result.statuses is None else [RowStatus(int(code)) for code in result.statuses]
    )


def row_bits(engine: Engine, slot: int) -> tuple[int, int, bytes]:
    """The complete content of a row, as bits."""
    slots = engine.slots
    return int(slots.step[slot]), int(slots.durable_step[slot]), slots.pack(np.array([slot])).tobytes()


def test_a_batch_advances_each_of_its_streams_by_one() -> None:
    """Every row gets its own answer and is one timestep further."""
    engine = make_engine(running_sum())
    rows = begin(engine, 3)
    run(engine, rows, [1, 1, 1], [1, 2, 3])
    result = run(engine, rows, [2, 2, 2], [10, 20, 30])
    assert result.statuses is None
    assert result.applied is None
    assert result.outputs[0].ravel().tolist() == [11, 22, 33]
    assert engine.slots.step[rows].tolist() == [2, 2, 2]


def test_a_timestep_without_a_number_is_numbered() -> None:
    """0 means the next number of the stream."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    run(engine, [rows[0]], [1], [5])
    result = run(engine, rows, [0, 0], [1, 1])
    assert result.steps.tolist() == [2, 1]
    assert statuses(result, 2) == [RowStatus.APPLIED, RowStatus.APPLIED]


def test_a_duplicate_leaves_the_state_alone() -> None:
    """A duplicate is not applied again. Other rows are applied."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    run(engine, rows, [1, 1], [1, 2])
    before = row_bits(engine, rows[0])
    result = run(engine, rows, [1, 2], [1, 20])
    assert statuses(result, 2) == [RowStatus.DUPLICATE, RowStatus.APPLIED]
    assert row_bits(engine, rows[0]) == before
    assert result.applied is not None
    assert result.applied.tolist() == [1]
    assert result.outputs[0].tolist() == [[22]]


def test_a_repeat_with_other_values_is_refused() -> None:
    """Two clients have sent a timestep with that number, and one of them would take the other's answer for its own."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    run(engine, rows, [1, 1], [1, 2])
    before = row_bits(engine, rows[0])
    result = run(engine, rows, [1, 2], [100, 20])
    assert statuses(result, 2) == [RowStatus.VALUES_DIFFER, RowStatus.APPLIED]
    assert row_bits(engine, rows[0]) == before


def test_a_repeat_is_known_however_it_came_first() -> None:
    """Alone or in a batch, with or without missing values: the hash is the same."""
    engine = make_engine(lstm())
    features = len(engine.model.spec.features)
    rows = begin(engine, 2)
    alone = np.arange(features, dtype=np.float32)
    assert engine.run_one(rows[0], Timestep(1, alone.tobytes())) is not None
    missing = np.where(np.arange(features) == 1, np.nan, alone).astype(np.float32)
    x = np.array([missing, alone])
    engine.run(np.array([rows[0], rows[1]]), np.array([2, 1]), x)
    again = np.array([missing, alone])
    result = engine.run(np.array([rows[0], rows[1]]), np.array([2, 1]), again)
    assert statuses(result, 2) == [RowStatus.DUPLICATE, RowStatus.DUPLICATE]
    result = engine.run(np.array([rows[0]]), np.array([1]), alone[np.newaxis])
    assert statuses(result, 1) == [RowStatus.DUPLICATE]
    result = engine.run(np.array([rows[0]]), np.array([2]), alone[np.newaxis])
    assert statuses(result, 1) == [RowStatus.VALUES_DIFFER]


def test_a_gap_leaves_the_state_alone() -> None:
    """A number beyond the next is not applied. Other rows are."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    before = row_bits(engine, rows[1])
    result = run(engine, rows, [1, 3], [1, 2])
    assert statuses(result, 2) == [RowStatus.APPLIED, RowStatus.GAP]
    assert row_bits(engine, rows[1]) == before


@pytest.mark.parametrize("make", [running_sum, lstm])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_never_applied(make: Any, value: float) -> None:
    """For every model, infinity is refused for that row and no other."""
    engine = make_engine(make())
    width = len(engine.model.spec.features)
    rows = begin(engine, 2)
    before = row_bits(engine, rows[0])
    x = np.ones((2, width))
    x[0, -1] = value
    result = run(engine, rows, [1, 1], x)
    assert statuses(result, 2) == [RowStatus.NON_FINITE_VALUE, RowStatus.APPLIED]
    assert row_bits(engine, rows[0]) == before


def test_nan_is_refused_by_a_model_that_does_not_handle_it() -> None:
    """It would make the state plausible but wrong for ever."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    result = run(engine, rows, [1, 1], [np.nan, 1])
    assert statuses(result, 2) == [RowStatus.NON_FINITE_VALUE, RowStatus.APPLIED]
    assert engine.slots.step[rows].tolist() == [0, 1]


def test_nan_is_a_missing_value_for_a_model_that_handles_it() -> None:
    """It is applied and counted, and the state is finite."""
    engine = make_engine(lstm())
    (row,) = begin(engine, 1)
    x = np.full((1, 8), 0.5, np.float32)
    x[0, 2:5] = np.nan
    result = run(engine, [row], [1], x)
    assert statuses(result, 1) == [RowStatus.APPLIED]
    assert result.missing == 3
    assert all(np.isfinite(part).all() for part in engine.slots.gather(np.array([row])))


def test_missing_values_of_refused_timesteps_are_not_counted() -> None:
    """Only applied timesteps count."""
    engine = make_engine(lstm())
    rows = begin(engine, 2)
    x = np.full((2, 8), np.nan, np.float32)
    result = run(engine, rows, [1, 7], x)
    assert statuses(result, 2) == [RowStatus.APPLIED, RowStatus.GAP]
    assert result.missing == 8


def test_a_huge_value_is_no_infinity() -> None:
    """A finite value whose square is not finite is applied, without a warning."""
    engine = make_engine(running_sum())
    (row,) = begin(engine, 1)
    result = run(engine, [row], [1], [3e38])
    assert statuses(result, 1) == [RowStatus.APPLIED]
    assert result.outputs[0].tolist() == [[np.float32(3e38)]]


def test_a_batch_in_which_nothing_is_applied_does_not_run() -> None:
    """The model does not run for an empty batch."""
    engine = make_engine(running_sum())
    rows = begin(engine, 2)
    result = run(engine, rows, [5, 9], [1, 1])
    assert statuses(result, 2) == [RowStatus.GAP, RowStatus.GAP]
    assert result.applied is not None
    assert not result.applied.size


def test_a_poisoned_row_is_left_as_it_was() -> None:
    """A row whose state would not be finite gets its status. The others advance."""
    engine = make_engine(inverse())
    rows = begin(engine, 3)
    run(engine, rows, [1, 1, 1], [1, 2, 4])
    before = row_bits(engine, rows[1])
    result = run(engine, rows, [2, 2, 2], [1, 0, 4])
    assert statuses(result, 3) == [RowStatus.APPLIED, RowStatus.NON_FINITE_STATE, RowStatus.APPLIED]
    assert row_bits(engine, rows[1]) == before
    assert result.outputs[0].ravel().tolist() == [2, 0.5]
    assert statuses(run(engine, [rows[1]], [2], [2]), 1) == [RowStatus.APPLIED]


def test_a_row_on_which_the_model_raises_fails_alone() -> None:
    """The whole batch fails in onnxruntime. The others get the bits that they get alone nevertheless."""
    engine = make_engine(picky())
    rows = begin(engine, 4)
    x = [[[0], [1], [2], [3]], [[1], [99], [3], [2]], [[2], [1], [1], [0]]]
    first = run(engine, rows, [0, 0, 0, 0], x[0])
    before = row_bits(engine, rows[1])
    second = run(engine, rows, [0, 0, 0, 0], x[1])
    assert statuses(second, 4) == [RowStatus.APPLIED, RowStatus.FAILED, RowStatus.APPLIED, RowStatus.APPLIED]
    assert row_bits(engine, rows[1]) == before
    third = run(engine, rows, [0, 0, 0, 0], x[2])
    assert statuses(third, 4) == [RowStatus.APPLIED] * 4
    places = {0: 0, 2: 1, 3: 2}  # among the rows applied by the second batch
    for row, place in places.items():
        alone = replay(picky(), [now[row] for now in x])
        assert first.outputs[0][row].tobytes() == alone[0]["sum"].tobytes()
        assert second.outputs[0][place].tobytes() == alone[1]["sum"].tobytes()
        assert third.outputs[0][row].tobytes() == alone[2]["sum"].tobytes()


def test_each_failed_row_has_its_own_failure() -> None:
    """The error of a row has its index in the whole batch, even if other rows were refused before the model ran."""
    engine = make_engine(picky())
    rows = begin(engine, 5)
    result = run(engine, rows, [7, 0, 0, 0, 0], [1, 77, np.inf, 2, 88])
    assert statuses(result, 5) == [
        RowStatus.GAP,
        RowStatus.FAILED,
        RowStatus.NON_FINITE_VALUE,
        RowStatus.APPLIED,
        RowStatus.FAILED,
    ]
    assert sorted(result.failures) == [1, 4]
    assert "idx=77" in str(result.failures[1])
    assert "idx=88" in str(result.failures[4])


@pytest.mark.parametrize("x", [[1, 2], [np.inf, 2]])
def test_a_batch_without_failures_reports_none(x: list[float]) -> None:
    """A row that is refused before the model runs is not a failure of the model."""
    engine = make_engine(running_sum())
    assert not run(engine, begin(engine, 2), [0, 0], x).failures


def test_a_batch_of_which_every_row_fails_leaves_every_row_as_it_was() -> None:
    """Nothing was applied, and each has its reason."""
    engine = make_engine(picky())
    rows = begin(engine, 2)
    before = [row_bits(engine, row) for row in rows]
    result = run(engine, rows, [0, 0], [77, 88])
    assert statuses(result, 2) == [RowStatus.FAILED, RowStatus.FAILED]
    assert sorted(result.failures) == [0, 1]
    assert result.applied is not None
    assert not result.applied.size
    assert [row_bits(engine, row) for row in rows] == before


def test_what_is_applied_is_unsaved() -> None:
    """The checkpointer finds the rows that advanced, and only those."""
    engine = make_engine(running_sum())
    rows = begin(engine, 3)
    run(engine, rows, [1, 2, 0], [1, 1, np.inf])
    assert engine.slots.unsaved().tolist() == [rows[0]]


def test_a_poisoned_row_beside_a_failed_one_has_its_own_reason() -> None:
    """The failure of another row does not count as this row's failure."""
    engine = make_engine(fragile())
    rows = begin(engine, 3)
    result = run(engine, rows, [1, 1, 1], [[99, 1], [1, 0], [2, 1]])
    assert statuses(result, 3) == [RowStatus.FAILED, RowStatus.NON_FINITE_STATE, RowStatus.APPLIED]
    assert result.outputs[0].ravel().tolist() == [100]
    assert list(result.failures) == [0]


def test_a_row_is_never_half_written() -> None:
    """State, number and answer change together, also where a batch is refused in part."""
    engine = make_engine(lstm(), capacity=3)
    rows = begin(engine, 3)
    alone = replay(lstm(), sensor_rows(6, seed=3))
    sent = sensor_rows(6, seed=3)
    for step in range(1, 7):
        x = np.stack([sent[step - 1], np.full(8, np.inf, np.float32), sent[step - 1]])
        result = run(engine, rows, [step, step, step + 1], x)
        assert statuses(result, 3) == [
            RowStatus.APPLIED,
            RowStatus.NON_FINITE_VALUE if step == 1 else RowStatus.GAP,
            RowStatus.GAP,
        ]
        assert result.outputs[0][0].tobytes() == alone[step - 1]["forecast"].tobytes()
    assert engine.slots.step[rows].tolist() == [6, 0, 0]


# Values of a stream: mostly good ones, and those on which the models below fail.
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5, -0.0, 99.0, 3e38, np.nan, np.inf, -np.inf])
# The difference from the next number; None sends no number.
OFF = st.sampled_from([0, 0, 0, None, None, -1, 1, -3])


@pytest.mark.parametrize(
    ("graph", "features"), [(running_sum(), 1), (picky(), 1), (inverse(), 1), (fragile(), 2), (lstm(), 8)]
)
@given(data=st.data())
@settings(max_examples=20)
def test_a_timestep_alone_does_what_a_batch_of_one_does(graph: bytes, features: int, data: st.DataObject) -> None:
    """The same bits in the row and the same answer. Where it does nothing, the row is unchanged."""
    short, long = make_engine(graph), make_engine(graph)
    neighbour, slot = begin(short, 2)
    begin(long, 2)
    untouched = row_bits(short, neighbour)
    for off, values in data.draw(st.lists(st.tuples(OFF, st.lists(VALUES, min_size=features, max_size=features)))):
        step = 0 if off is None else max(1, int(short.slots.step[slot]) + 1 + off)
        timestep = Timestep(step, np.array(values, "<f4").tobytes())
        before = row_bits(short, slot)
        prediction = short.run_one(slot, timestep)
        if prediction is None:
            assert row_bits(short, slot) == before
            run(short, [slot], [step], values)
        result = run(long, [slot], [step], values)
        assert row_bits(short, slot) == row_bits(long, slot)
        assert row_bits(short, neighbour) == untouched
        if prediction is not None:
            assert statuses(result, 1) == [RowStatus.APPLIED]
            assert prediction.step == result.steps[0]
            assert prediction.outputs == tuple(part.tobytes() for part in result.outputs)


def test_what_is_nothing_special_goes_the_short_way() -> None:
    """With or without a number. The answer is remembered."""
    engine = make_engine(running_sum())
    (slot,) = begin(engine, 1)
    for step in (1, 0, 3):
        prediction = engine.run_one(slot, Timestep(step, np.float32(2).tobytes()))
        assert prediction is not None
        assert engine.slots.find_answer(slot, prediction.step) == prediction.outputs
    assert engine.slots.step[slot] == 3
