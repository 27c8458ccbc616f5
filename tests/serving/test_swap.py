"""A stream moves between two versions of its model, without a server."""

from dataclasses import replace

import numpy as np
import pytest

from tests.engines import key, load
from tests.graphs import LSTM_FEATURES, inverse, lstm
from tests.oracle import replay as oracle_replay
from tests.oracle import sensor_rows
from tidegate.core.engine import Engine
from tidegate.core.model import Model
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint, Spec, Timestep
from tidegate.core.streams import Lease, StreamTable, checkpoint_rows
from tidegate.core.swap import raw_rows, replay, with_state
from tidegate.core.swap_policy import MoveRequest, SwapPolicy, difference, may_move

K = 6
ALLOWED = MoveRequest(SwapPolicy.REWARM, allowed=True, step=9)


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """Two versions: other weights, and a state of another size."""
    return load(lstm(hidden=16), version="1"), load(lstm(hidden=24, seed=7), version="2")


@pytest.fixture
def specs(models: tuple[Model, Model]) -> tuple[Spec, Spec]:
    """Their descriptions."""
    return models[0].spec, models[1].spec


class Side:
    """One stream of a version, at work on an engine."""

    def __init__(self, model: Model, raw_steps: int = K) -> None:
        self.slots = Slots(model.spec, 4, 3, raw_steps)
        self.engine = Engine(model, self.slots)
        self.table = StreamTable()

    def begin(self) -> Lease:
        """A new stream."""
        return self.table.begin(key("a"), self.slots, self.slots.acquire(key("a")), 1)

    def step(self, lease: Lease, row: np.ndarray, *, alone: bool = False) -> list[bytes]:
        """Applies one timestep, on the path of a batch or on that of a single timestep."""
        if alone and not np.isnan(row).any():
            prediction = self.engine.run_one(lease.stream.slot, Timestep(0, row.tobytes()))
            assert prediction is not None
            return list(prediction.outputs)
        result = self.engine.run(np.array([lease.stream.slot]), np.zeros(1, np.int64), row[np.newaxis])
        return [part.tobytes() for part in result.outputs]

    def checkpoint(self, lease: Lease) -> Checkpoint:
        """The stream as it is stored."""
        return checkpoint_rows([lease.stream])[0]


def run(side: Side, rows: np.ndarray) -> Lease:
    """A stream that has got these rows, by turns on both paths."""
    lease = side.begin()
    for place, row in enumerate(rows):
        side.step(lease, row, alone=place % 2 == 1)
    return lease


@pytest.mark.parametrize("steps", [0, 1, K - 1, K, K + 1, 3 * K + 2])
def test_a_checkpoint_has_the_last_timesteps(models: tuple[Model, Model], steps: int) -> None:
    """As many as the ring holds, in order, bit for bit, with missing values among them."""
    side, rows = Side(models[0]), sensor_rows(steps, missing=0.2)
    got = raw_rows(side.checkpoint(run(side, rows)), side.slots)
    assert got.tobytes() == rows[-K:].tobytes()


@pytest.mark.parametrize(("before", "after"), [(K, 3), (3, K), (0, K), (K, 0)])
def test_a_ring_of_another_size_keeps_what_both_hold(models: tuple[Model, Model], before: int, after: int) -> None:
    """A server may be restarted with another number of timesteps, or without a ring."""
    side, rows = Side(models[0], before), sensor_rows(9)
    checkpoint = side.checkpoint(run(side, rows))
    other = Side(models[0], after)
    lease = other.table.resume(checkpoint, other.slots, other.slots.acquire(key("a")), 2)
    kept = min(before, after)
    assert raw_rows(other.checkpoint(lease), other.slots).tobytes() == rows[9 - kept :].tobytes()
    more = sensor_rows(2, seed=1)
    for row in more:
        other.step(lease, row)
    expected = np.concatenate([rows[9 - kept :], more])[-after:] if after else rows[:0]
    assert raw_rows(other.checkpoint(lease), other.slots).tobytes() == expected.tobytes()


def test_without_a_ring_a_checkpoint_is_as_small_as_before(models: tuple[Model, Model]) -> None:
    """The ring costs nothing where it is not asked for."""
    plain, ringed = Slots(models[0].spec, 1, 3), Slots(models[0].spec, 1, 3, K)
    assert plain.raw is None
    assert ringed.row_bytes(3) - plain.row_bytes(3) == 16 + 4 * K * len(LSTM_FEATURES)


def test_a_slot_that_is_used_again_has_no_values_of_the_stream_before(models: tuple[Model, Model]) -> None:
    """They belong to another client."""
    side = Side(models[0])
    lease = run(side, sensor_rows(9))
    side.table.drop(lease.stream, RuntimeError())  # type: ignore[arg-type]
    assert raw_rows(side.checkpoint(side.begin()), side.slots).size == 0
    assert not side.slots.raw._values.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", [SwapPolicy.REWARM, SwapPolicy.RESET])
def test_a_moved_stream_continues_under_the_new_version(models: tuple[Model, Model], policy: SwapPolicy) -> None:
    """Its answers are those of the new version after the last timesteps, or from its initial state. Its number goes on."""
    old, new = Side(models[0]), Side(models[1])
    rows = sensor_rows(20, missing=0.1)
    before = run(old, rows[:15])
    checkpoint = old.checkpoint(before)
    warm = raw_rows(checkpoint, old.slots) if policy is SwapPolicy.REWARM else rows[:0]
    state = tuple(part[0] for part in replay(models[1], warm[np.newaxis]))
    moved = with_state(checkpoint, old.slots, models[1].spec, state)
    lease = new.table.resume(moved, new.slots, new.slots.acquire(key("a")), 2)
    assert lease.stream.step == 15
    got = [new.step(lease, row) for row in rows[15:]]
    first = 15 - K if policy is SwapPolicy.REWARM else 15
    expected = oracle_replay(lstm(hidden=24, seed=7), rows[first:])[15 - first :]
    assert got == [[answer["forecast"].tobytes()] for answer in expected]


def test_a_repeat_after_the_move_gets_the_old_answer(models: tuple[Model, Model]) -> None:
    """Answers and hashes of values are carried over, and a repeat with other values is still found out."""
    old, new = Side(models[0]), Side(models[1])
    rows = sensor_rows(9)
    lease = old.begin()
    answers = [old.step(lease, row) for row in rows]
    checkpoint = old.checkpoint(lease)
    state = tuple(part[0] for part in models[1].initial_state(1))
    moved = with_state(checkpoint, old.slots, models[1].spec, state)
    slot = new.slots.acquire(key("a"))
    new.table.resume(moved, new.slots, slot, 2)
    assert list(new.slots.find_answer(slot, 8)) == answers[7]
    hashes = new.engine.hash_rows(rows[7:8])
    assert hashes is not None
    assert not new.slots.values_differ(np.array([slot]), np.array([8]), hashes).any()
    assert new.slots.values_differ(np.array([slot]), np.array([8]), hashes + np.uint64(1)).all()


def test_a_live_stream_changes_its_slot(models: tuple[Model, Model]) -> None:
    """Its lease stays, its old slot is free, and its epoch is that of the stored move."""
    old, new = Side(models[0]), Side(models[1])
    lease = run(old, sensor_rows(5))
    stream = lease.stream
    state = tuple(part[0] for part in models[1].initial_state(1))
    moved = replace(with_state(old.checkpoint(lease), old.slots, models[1].spec, state), epoch=7)
    old.table.change_version(stream, moved, new.slots, new.slots.acquire(key("a")))
    assert (stream.lease, stream.epoch, stream.step, lease.durable_step) == (lease, 7, 5, 5)
    assert (len(old.slots), len(new.slots)) == (0, 1)
    assert new.slots.lease_number[stream.slot] == lease.number


def test_a_row_that_the_new_version_refuses_is_left_out() -> None:
    """As it would be refused in serving: 1/0 leaves a state that is not finite."""
    model = load(inverse())
    rows = np.array([[2.0], [0.0], [4.0]], np.float32)
    (total,) = replay(model, rows[np.newaxis])
    assert total.tolist() == [[0.75]]


def test_streams_that_are_replayed_together_have_the_bits_of_each_alone(models: tuple[Model, Model]) -> None:
    """Batches do not change bits, here either."""
    rows = np.stack([sensor_rows(K, seed=seed, missing=0.1) for seed in range(5)])
    together = replay(models[1], rows)
    for place in range(5):
        alone = replay(models[1], rows[place : place + 1])
        assert [part.tobytes() for part in alone] == [part[place : place + 1].tobytes() for part in together]


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({}, True),
        ({"policy": SwapPolicy.RESET}, True),
        ({"policy": SwapPolicy.PIN}, False),
        ({"allowed": False}, False),
        ({"answered": 9}, True),
        ({"answered": 10}, False),  # the client has an answer of the old version that must come again
    ],
)
def test_when_a_stream_moves(specs: tuple[Spec, Spec], change: dict[str, object], moves: bool) -> None:
    """The policy allows it, the client accepts it, and no answer of the old version is needed any more."""
    assert may_move(*specs, ALLOWED._replace(**change)) is moves  # type: ignore[arg-type]
    assert not may_move(specs[0], specs[0], ALLOWED)


def test_versions_that_differ_to_clients_share_no_streams(specs: tuple[Spec, Spec]) -> None:
    """What differs is told: names, units, words, outputs, missing values."""
    old, new = specs
    assert difference(old, new) == ""
    assert "different models" in difference(old, replace(new, name="other"))
    metres = replace(new.features[0], unit="m")
    assert "s0 [m]" in difference(old, replace(new, features=(metres, *new.features[1:])))
    assert "features" in difference(old, replace(new, features=new.features[1:]))
    words = replace(new.features[0], categories=("off", "on"))
    assert "categories of s0" in difference(old, replace(new, features=(words, *new.features[1:])))
    assert "outputs" in difference(old, replace(new, outputs=()))
    assert "missing values" in difference(old, replace(new, handles_missing=False))
    assert difference(replace(old, handles_missing=False), new) == ""
    assert not may_move(old, replace(new, outputs=()), ALLOWED)


@pytest.mark.parametrize("cut", [1, 15, 16, 20])
def test_a_damaged_ring_is_no_ring(models: tuple[Model, Model], cut: int) -> None:
    """A checkpoint whose end is neither a whole ring nor nothing is refused."""
    side = Side(models[0])
    payload = side.checkpoint(run(side, sensor_rows(9))).payload
    assert side.slots.fits(payload, 3)
    assert not side.slots.fits(payload[:-cut], 3)
    assert not side.slots.fits(payload[: side.slots.core_bytes(3) + cut], 3)
