"""What a server finds out about a model when it loads it."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.engines import load
from tests.foreign_graphs import by_size, noisy, quantized
from tests.graphs import FLOAT, build, crosstalk, describe, inverse, lstm, picky, running_sum
from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model
from tidegate.core.self_check import STEPS, SelfCheck, check_model, describe_check, describe_sizes


class Clock:
    """A clock that a model moves on: so many seconds a row."""

    def __init__(self, model: Model, row_seconds: float) -> None:
        self.now = 0.0
        self.sizes = Counter[int]()
        inner = model.step

        def noted(x: Any, state: Any) -> Any:
            self.sizes[len(x)] += 1
            self.now += row_seconds * len(x)
            return inner(x, state)

        model.step = noted  # type: ignore[method-assign]

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def check(graph: bytes, batch_max: int) -> SelfCheck:
    """The check of a graph that costs no time."""
    return check_model(load(graph), batch_max, lambda: 0.0)


@pytest.mark.parametrize("make", [running_sum, lstm, picky, inverse])
def test_no_batch_changes_bits_on_this_cpu(make: Callable[..., bytes]) -> None:
    """The promise about predictions holds for these graphs on this machine, in every batch size."""
    found = check(make(), 20)
    assert found.batch_invariant
    assert found.sizes == tuple(range(1, 21))
    assert describe_check(found) == []


def test_a_model_that_fails_its_warm_up_is_refused() -> None:
    """A graph that raises on its own training range is refused when it is loaded, not later."""
    with pytest.raises(ContractBroken, match="toy/1"):
        check(picky(low=50.0, high=60.0), 4)


def test_tensors_that_come_out_in_another_shape_are_refused() -> None:
    """A graph that declares [batch, 1] but returns one row for the whole batch would mix streams."""
    graph = build(
        [
            helper.make_node("ReduceSum", ["x"], ["all"], keepdims=0),
            helper.make_node("IsNaN", ["all"], ["missing"]),
            helper.make_node("Not", ["missing"], ["first"]),
            helper.make_node("Reshape", ["first", "one"], ["rows"]),
            helper.make_node("Compress", ["x", "rows"], ["y"], axis=0),  # the first row, whatever the batch
            helper.make_node("Identity", ["h"], ["h_next"]),
        ],
        [("x", FLOAT, ["batch", 2]), ("h", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["rows", 2]), ("h_next", FLOAT, ["batch", 3])],
        {"one": np.array([1], np.int64)},
        describe(
            ["a", "b"],
            [{"name": "y", "shape": ["batch", 2]}],
            [{"name": "h", "next": "h_next", "shape": ["batch", 3]}],
        ),
    )
    with pytest.raises(ContractBroken, match="'y'"):
        check(graph, 4)


def test_rows_that_depend_on_others_of_their_batch_run_one_by_one() -> None:
    """One stream would change another. Run alone, a row has one answer, and that is promised."""
    found = check(crosstalk(), 5)
    assert found.mixes
    assert found.sizes == (1,)
    assert found.batch_invariant
    assert "depends on the other rows of its batch" in describe_check(found)[0]


def test_dynamically_quantised_weights_are_found_and_measured() -> None:
    """They are scaled by the largest value of the batch: a loud neighbour makes a quiet stream coarse."""
    found = check(quantized(), 8)
    assert found.mixes
    assert found.difference > 0.001
    assert f"{100 * found.difference:.2g} % of its standard deviation" in describe_check(found)[0]


def test_a_model_that_runs_its_rows_one_by_one_gives_each_what_it_gets_alone() -> None:
    """After `limit_batches`, neither neighbours nor memory that is used again change a row."""
    model = load(crosstalk())
    found = check_model(model, 5, lambda: 0.0)
    model.limit_batches(found.sizes, 5)
    x = np.array([[1], [20], [300]], np.float32)
    state = model.initial_state(3)
    for _ in range(3):
        assert model.state_buffers(3) is None
        outputs, state = model.step(x, state)
    alone, kept = load(crosstalk()), load(crosstalk()).initial_state(1)
    for _ in range(3):
        expected, kept = alone.step(x[1:2], kept)
    assert outputs[0][1].tobytes() == expected[0][0].tobytes()
    assert state[0][1].tobytes() == kept[0][0].tobytes()


def test_a_batch_size_that_changes_bits_is_told_with_how_much() -> None:
    """The rows of such a model do not change each other, so batches run, and the log says what to do."""
    found = check(by_size(), 6)
    assert not found.mixes
    assert not found.batch_invariant
    assert found.varying == (2, 3, 4, 5, 6)
    (told,) = describe_check(found)
    assert "batches of 2 to 6" in told
    assert "'sum' by up to" in told
    assert "--batch-max 1" in told


def test_a_difference_is_measured_beside_values_that_are_infinite() -> None:
    """State that may be infinite has no standard deviation as a whole; its finite values have one."""
    found = check(by_size(2, initial=[float("-inf"), 0.0], finite=False), 4)
    assert found.varying == (2, 3, 4)
    assert 0 < found.difference < 0.1


def test_a_random_operator_is_told_apart() -> None:
    """Two equal runs differ, and that is no matter of the batch."""
    found = check(noisy(), 4)
    assert found.random
    assert not found.mixes
    assert not found.batch_invariant
    assert "random operator" in describe_check(found)[0]


@pytest.mark.parametrize(("make", "runs"), [(running_sum, STEPS), (partial(lstm, hidden=512), 1)])
def test_every_size_is_compared_as_often_as_its_values_are_few(make: Callable[[], bytes], runs: int) -> None:
    """Each size runs at least once. A size with hundreds of values in a row does not run again and again at a start."""
    model = load(make())
    clock = Clock(model, 0.0)
    check_model(model, 8, clock)
    assert {size: clock.sizes[size] for size in (3, 5, 6, 7, 8)} == dict.fromkeys((3, 5, 6, 7, 8), runs)


def test_large_sizes_are_checked_in_steps() -> None:
    """Only chunks of blocks are so large, and their sizes are rounded to such steps."""
    found = check_model(load(running_sum()), 1024, lambda: 0.0)
    assert found.sizes == (*range(1, 257), *range(320, 1025, 64))
    assert describe_sizes(found, 1024) == (
        "batches of 1 to 256 and, in steps of 64, up to 1024 checked; others run in parts of these sizes"
    )


def test_a_slow_model_is_checked_with_the_sizes_that_others_are_made_of() -> None:
    """The time has a bound. The powers of two come first, and then as many others as there is time for."""
    model = load(running_sum())
    clock = Clock(model, 0.001)
    found = check_model(model, 256, clock, seconds_max=3.0)
    assert clock.now < 4.0
    assert {1, 2, 4, 8, 16, 32, 64, 128} <= set(found.sizes)
    assert len(found.sizes) < 256
    assert "others run in parts of these sizes" in describe_sizes(found, 256)


def test_a_batch_of_a_size_that_was_not_checked_runs_in_parts() -> None:
    """What was promised was checked, so only checked sizes run; the results are those of one batch."""
    model, whole = load(lstm()), load(lstm())
    model.limit_batches((1, 2, 4), 16)
    sizes = []
    inner = model._step

    def noted(x: Any, state: Any) -> Any:
        sizes.append(len(x))
        return inner(x, state)

    model._step = noted  # type: ignore[method-assign]
    x = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
    got, expected = (each.step(x, each.initial_state(11)) for each in (model, whole))
    assert sizes == [4, 4, 2]
    for one, other in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert one.tobytes() == other.tobytes()


def test_large_state_bounds_the_batches_by_memory() -> None:
    """State of megabytes times a batch of hundreds, several times over, would not fit."""
    found = check_model(load(lstm(hidden=512)), 256, lambda: 0.0, bytes_max=1 << 18)
    assert found.sizes[-1] == (1 << 18) // (4 * (2 * 512 * 4 + 8 * 4 + 2 * 4 + 8 * 4))
