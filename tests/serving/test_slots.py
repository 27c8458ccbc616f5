import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import key, load
from tests.graphs import running_sum
from tidegate.core.slots import FREE_SLOT_STEP, Slots
from tidegate.core.spec import Spec

SPEC = load(running_sum()).spec


def make(capacity: int = 4, answers: int = 3, spec: Spec = SPEC) -> Slots:
    """Slots of the running sum."""
    return Slots(spec, capacity, answers)


def take(slots: Slots) -> int:
    """A slot for some stream."""
    return slots.acquire(key("a"))


def advance(slots: Slots, rows: list[int], sums: list[float]) -> list[int]:
    """Writes one timestep of some rows: total and answer are `sums`, the count is one more."""
    where = np.array(rows, np.int64)
    value = np.array(sums, np.float32)[:, np.newaxis]
    count = slots.gather(where)[2] + 1
    trail = np.concatenate([slots.gather(where)[1][:, 1:], value], axis=1)
    hashes = np.arange(1, len(rows) + 1, dtype=np.uint64)
    return slots.scatter(where, (value, trail, count), (value, count), hashes).tolist()


def answers_of(slots: Slots, slot: int, step: int) -> list[float]:
    """The remembered sum of a timestep; empty when it is forgotten."""
    packed = slots.find_answer(slot, step)
    return np.frombuffer(packed[0], np.float32).tolist() if packed else []


def run(slots: Slots, steps: int, times: float = 10) -> int:
    """A slot after so many timesteps, answered with multiples of `times`."""
    slot = take(slots)
    for step in range(1, steps + 1):
        advance(slots, [slot], [step * times])
    return slot


def packed(slots: Slots, slot: int) -> bytes:
    """The content of a row."""
    return slots.pack(np.array([slot])).tobytes()


def move(here: Slots, slot: int, there: Slots) -> int:
    """Moves a row to other slots. Returns its slot there."""
    other = take(there)
    there.unpack(other, int(here.step[slot]), here.answers, packed(here, slot))
    return other


def test_a_fresh_slot_has_the_initial_state() -> None:
    """A stream begins with the model's initial state, at step 0."""
    state = [
        {"name": "total", "next": "total_next", "shape": ["batch", 1], "initial": 5},
        {"name": "trail", "next": "trail_next", "shape": [2, "batch"], "initial": [1, 2]},
        {"name": "count", "next": "count_next", "shape": ["batch"], "initial": 7},
    ]
    slots = make(spec=load(running_sum(state=state)).spec)
    total, trail, count = slots.gather(np.array([take(slots)]))
    assert total.tolist() == [[5]]
    assert trail.tolist() == [[1, 2]]
    assert count.tolist() == [7]
    assert slots.step[0] == 0


def test_slots_are_taken_once() -> None:
    """Two streams never share a row."""
    slots = make(capacity=4)
    taken = [take(slots) for _ in range(4)]
    assert sorted(taken) == [0, 1, 2, 3]
    assert slots.full
    assert len(slots) == 4


def test_a_released_slot_is_taken_again() -> None:
    """A released slot makes room for another stream."""
    slots = make(capacity=2)
    first = take(slots)
    take(slots)
    slots.release(first)
    assert not slots.full
    assert take(slots) == first


def test_a_slot_knows_whose_it_is() -> None:
    """A slot leads to its stream; a free slot has none."""
    slots = make(capacity=3)
    first, second = slots.acquire(key("a")), slots.acquire(key("b"))
    slots.release(first)
    assert slots.keys[second] == key("b")
    assert slots.keys.count(None) == 2


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_an_unused_row_has_no_timestep(taken: int) -> None:
    """Neither before the first use nor after the release. So a row that is acquired again is seen to have changed."""
    slots = make(capacity=2)
    rows = [take(slots) for _ in range(taken)]
    advance(slots, rows, [1.0] * taken)
    for row in rows:
        slots.release(row)
    assert slots.step.tolist() == [FREE_SLOT_STEP, FREE_SLOT_STEP]


def test_a_slot_is_given_back_once() -> None:
    """Releasing it twice would give it to two streams."""
    slots = make()
    slot = take(slots)
    slots.release(slot)
    with pytest.raises(AssertionError):
        slots.release(slot)


def test_a_slot_taken_again_starts_anew() -> None:
    """Nothing of the former stream remains: neither its state nor its number."""
    slots = make(capacity=1)
    slot = take(slots)
    advance(slots, [slot], [42])
    slots.release(slot)
    slot = take(slots)
    assert slots.step[slot] == 0
    assert [part.tolist() for part in slots.gather(np.array([slot]))] == [[[0]], [[0, 0]], [0]]


def test_a_slot_taken_again_remembers_from_its_first_answer() -> None:
    """That the former stream had forgotten its first answers does not affect the next one."""
    here, there = make(answers=2), make(answers=5)
    there.release(move(here, run(here, 9), there))
    slot = run(there, 3)
    assert [answers_of(there, slot, step) for step in (1, 2, 3)] == [[10], [20], [30]]


def test_a_slot_taken_again_has_nothing_of_the_stream_before_it() -> None:
    """Answers of another stream are not in the checkpoint of the next one, which its client may export."""
    slots = make(capacity=1)
    slots.release(run(slots, 3))
    fresh = make(capacity=1)
    assert packed(slots, take(slots)) == packed(fresh, take(fresh))


def test_a_slot_taken_again_is_saved_up_to_step_0() -> None:
    """What was stored of the former stream does not count for the next one."""
    slots = make()
    slot = run(slots, 3)
    slots.durable_step[slot] = 3
    slots.release(slot)
    slot = run(slots, 1)
    assert slots.durable_step[slot] == 0
    assert slots.unsaved().tolist() == [slot]


def test_gather_and_scatter_keep_rows_apart() -> None:
    """What is scattered to a row is gathered from it, in any order."""
    slots = make()
    for _ in range(4):
        take(slots)
    advance(slots, [2, 0], [20, 10])
    total, _, count = slots.gather(np.array([0, 1, 2, 3]))
    assert total.ravel().tolist() == [10, 0, 20, 0]
    assert count.tolist() == [1, 0, 1, 0]
    assert slots.step.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("ahead", [0, 1])
def test_rows_are_written_alike_in_whatever_order_they_come(ahead: int) -> None:
    """Contiguous or not, at the same step or not: each row gets its own values."""
    orders = ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 2, 3, 0])
    contents = []
    for order in orders:
        slots = make()
        for _ in range(4):
            take(slots)
        for turn in range(ahead):
            advance(slots, [2], [turn])
        for turn in range(1, 6):
            where = np.array(order)
            total, trail, count = slots.gather(where)
            value = (where + 10.0 * turn).astype(np.float32)[:, np.newaxis]
            state = (total + value, np.concatenate([trail[:, 1:], value], axis=1), count + 1)
            slots.scatter(where, state, (value, count + 1), (where + 100 * turn).astype(np.uint64))
        contents.append(slots.pack(np.arange(4)).tobytes() + slots.step.tobytes())
    assert contents == contents[:1] * len(orders)


def test_state_is_gathered_where_there_is_room() -> None:
    """The same as without the buffer, also into memory in another layout."""
    slots = make()
    rows = [run(slots, steps) for steps in (1, 2, 3)]
    where = np.array([rows[2], rows[0]])
    room = tuple(np.empty((*part.shape[1:], 2), part.dtype) for part in slots.state)
    turned = tuple(np.moveaxis(part, -1, 0) for part in room)
    assert slots.gather(where, turned) is turned
    for got, expected in zip(turned, slots.gather(where), strict=True):
        assert np.array_equal(got, expected)


def test_what_is_gathered_is_a_copy() -> None:
    """A model may write into its input without changing the state."""
    slots = make()
    slot = take(slots)
    slots.gather(np.array([slot]))[0][:] = 99
    assert slots.gather(np.array([slot]))[0].tolist() == [[0]]


def test_the_last_answers_are_remembered() -> None:
    """As many as configured, and no more. The ring wraps around."""
    slots = make(answers=3)
    slot = take(slots)
    for step in range(1, 8):
        advance(slots, [slot], [step * 10])
    assert [answers_of(slots, slot, step) for step in range(1, 8)] == [[], [], [], [], [50], [60], [70]]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
def test_a_row_packed_here_and_unpacked_elsewhere_is_the_same_row(steps: int) -> None:
    """Step, state and remembered answers survive, before and after the ring has wrapped around."""
    here, there = make(answers=3), make(answers=3)
    slot = run(here, steps)
    take(there)
    other = move(here, slot, there)
    assert there.step[other] == steps
    for mine, theirs in zip(here.gather(np.array([slot])), there.gather(np.array([other])), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    for step in range(1, steps + 1):
        assert there.find_answer(other, step) == here.find_answer(slot, step)


def test_many_rows_are_packed_as_each_alone() -> None:
    """In the requested order, whatever their steps."""
    slots = make()
    rows = [run(slots, steps) for steps in (0, 2, 7)]
    run_concurrently = slots.pack(np.array([rows[2], rows[0], rows[1]]))
    assert run_concurrently.dtype == np.uint8
    assert [row.tobytes() for row in run_concurrently] == [packed(slots, rows[place]) for place in (2, 0, 1)]


@pytest.mark.parametrize("answers", [1, 3, 8])
def test_the_size_of_a_row_is_known_before_it_is_packed(answers: int) -> None:
    """The length of a payload shows whether it fits, for any ring."""
    there = make(answers=answers)
    assert len(packed(there, run(there, 2))) == make(answers=5).row_bytes(answers)


def test_a_payload_of_another_size_is_never_unpacked() -> None:
    """A payload that does not fit is a bug of the server, and nothing is written."""
    slots = make()
    slot = take(slots)
    with pytest.raises(AssertionError):
        slots.unpack(slot, 1, 3, bytes(slots.row_bytes(3) - 1))
    assert slots.step[slot] == 0


def test_what_is_packed_is_a_copy() -> None:
    """A checkpoint does not change when the slot advances."""
    slots = make()
    slot = run(slots, 1)
    rows = slots.pack(np.array([slot]))
    before = rows.tobytes()
    advance(slots, [slot], [20])
    assert rows.tobytes() == before


def test_a_slot_that_is_unpacked_into_has_nothing_of_its_own_left() -> None:
    """The row has what was packed, whatever it had before."""
    here, there = make(), make()
    slot = run(here, 2)
    other = run(there, 9, times=1000)
    there.unpack(other, 2, 3, packed(here, slot))
    assert there.step[other] == 2
    assert [part.tolist() for part in there.gather(np.array([other]))] == [[[20]], [[10, 20]], [2]]
    assert [answers_of(there, other, step) for step in (1, 2)] == [[10], [20]]


def test_a_smaller_ring_keeps_the_newest_answers() -> None:
    """A row from a server with a larger ring loses only its oldest answers."""
    here, there = make(answers=5), make(answers=2)
    other = move(here, run(here, 5), there)
    assert [answers_of(there, other, step) for step in range(1, 6)] == [[], [], [], [40], [50]]


def test_a_larger_ring_does_not_invent_answers() -> None:
    """A row from a server with a smaller ring does not answer with those of another stream."""
    here, there = make(answers=2), make(answers=5)
    stranger = run(there, 5, times=1000)
    there.release(stranger)
    other = move(here, run(here, 5), there)
    assert other == stranger
    assert [answers_of(there, other, step) for step in range(1, 6)] == [[], [], [], [40], [50]]


def test_answers_that_are_forgotten_stay_forgotten() -> None:
    """A row that was in a smaller ring has lost what did not fit there, wherever it goes."""
    slots = make(answers=5)
    slot = run(slots, 5)
    for answers in (2, 5, 5):
        there = make(answers=answers)
        slot, slots = move(slots, slot, there), there
    assert [answers_of(slots, slot, step) for step in range(1, 6)] == [[], [], [], [40], [50]]


def test_a_larger_ring_fills_up_as_the_stream_advances() -> None:
    """After a move to a larger ring nothing that was answered since is forgotten too early."""
    here, there = make(answers=2), make(answers=5)
    other = move(here, run(here, 3), there)
    for step in range(4, 7):
        advance(there, [other], [step * 10])
    assert [answers_of(there, other, step) for step in range(1, 7)] == [[], [20], [30], [40], [50], [60]]


legs = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=8)


@settings(max_examples=300, derandomize=True)
@given(legs)
def test_a_stream_that_moves_is_the_stream_that_stayed(journey: list[tuple[int, int]]) -> None:
    """Through rings of any sizes it keeps its state, and those answers that fitted everywhere since."""
    stayed = make(capacity=1, answers=50)
    row = take(stayed)
    slots = make(capacity=1, answers=journey[0][0])
    slot = take(slots)
    forgotten = last = 0
    for answers, steps in journey:
        there = make(capacity=1, answers=answers)
        there.release(run(there, 9, times=1000))  # another stream leaves its answers behind
        slot = move(slots, slot, there)
        slots = there
        for step in range(last + 1, last + steps + 1):
            advance(slots, [slot], [step * 10])
            advance(stayed, [row], [step * 10])
        last += steps
        forgotten = max(forgotten, last - answers)
        assert slots.step[slot] == last
        for mine, theirs in zip(slots.gather(np.array([slot])), stayed.gather(np.array([row])), strict=True):
            assert mine.tobytes() == theirs.tobytes()
        for number in range(1, last + 1):
            assert slots.find_answer(slot, number) == (stayed.find_answer(row, number) if number > forgotten else ())


def test_nothing_of_a_fresh_slot_is_unsaved() -> None:
    """A stream at step 0 can be created again from nothing."""
    slots = make()
    take(slots)
    assert slots.unsaved().tolist() == []


def test_a_row_is_unsaved_from_a_timestep_until_that_one_is_stored() -> None:
    """That an earlier timestep was stored does not cover a later one."""
    slots = make()
    rows = [take(slots) for _ in range(3)]
    advance(slots, [rows[2], rows[0]], [1, 1])
    assert slots.unsaved().tolist() == [rows[0], rows[2]]
    slots.durable_step[rows] = 1
    assert slots.unsaved().tolist() == []
    advance(slots, [rows[2]], [2])
    assert slots.unsaved().tolist() == [rows[2]]


def test_a_row_that_came_from_the_store_is_saved() -> None:
    """It has nothing that the store does not have, until its next timestep."""
    here, there = make(), make()
    other = move(here, run(here, 4), there)
    assert there.durable_step[other] == 4
    assert there.unsaved().tolist() == []
    advance(there, [other], [50])
    assert there.unsaved().tolist() == [other]


def test_a_released_row_is_not_unsaved() -> None:
    """What its stream leaves behind is not unsaved state, neither before nor after the row is acquired again."""
    slots = make()
    slot = run(slots, 3)
    slots.release(slot)
    assert slots.unsaved().tolist() == []
    take(slots)
    assert slots.unsaved().tolist() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_whose_next_state_is_not_finite_is_left_as_it_was(bad: float) -> None:
    """The other rows advance. Its state, number and answers stay."""
    slots = make()
    for _ in range(3):
        take(slots)
    advance(slots, [0, 1, 2], [1, 2, 3])
    before = packed(slots, 1)
    assert advance(slots, [0, 1, 2], [10, bad, 30]) == [1]
    assert packed(slots, 1) == before
    assert slots.gather(np.array([0, 1, 2]))[0].ravel().tolist() == [10, 2, 30]
    assert slots.step.tolist()[:3] == [2, 1, 2]


def test_a_huge_state_is_no_poison() -> None:
    """A finite value whose square is not finite is finite."""
    slots = make()
    slot = take(slots)
    assert advance(slots, [slot], [3e38]) == []
    assert slots.step[slot] == 1


def test_a_model_without_state_needs_no_slab() -> None:
    """Numbers and answers are kept even without state."""
    slots = Slots(dataclasses.replace(load(running_sum()).spec, state=()), 2, 2)
    slot = take(slots)
    value = np.array([[5]], np.float32)
    slots.scatter(np.array([slot]), (), (value, np.array([1])), np.array([7], np.uint64))
    assert slots.step[slot] == 1
    assert answers_of(slots, slot, 1) == [5]


def test_the_repr_has_the_fill_levels() -> None:
    """Operators read it in logs."""
    slots = make(capacity=4)
    take(slots)
    assert repr(slots) == "<Slots toy/1: 1 of 4 used>"


def test_all_that_was_saved_can_be_saved_again() -> None:
    """Every row with a timestep is unsaved again; a new one and a free one are not."""
    slots = make()
    one, other, fresh, free = run(slots, 3), run(slots, 1), take(slots), take(slots)
    slots.release(free)
    slots.durable_step[[one, other]] = slots.step[[one, other]]
    assert not slots.unsaved().size
    slots.mark_unsaved()
    assert slots.unsaved().tolist() == sorted([one, other])
    assert fresh not in slots.unsaved()


def differ(slots: Slots, slot: int, step: int, hash_: int) -> bool:
    """Whether a timestep is remembered with other values."""
    [found] = slots.values_differ(np.array([slot]), np.array([step]), np.array([hash_], np.uint64)).tolist()
    return bool(found)


def test_a_timestep_is_known_by_the_hash_of_its_values() -> None:
    """As long as its answer is remembered. Beyond that nothing is known."""
    slots = make(answers=3)
    slot = take(slots)
    for step in range(1, 6):
        slots.scatter(
            np.array([slot]), slots.gather(np.array([slot])), row_of_outputs(), np.array([100 + step], np.uint64)
        )
    assert [differ(slots, slot, step, 100 + step) for step in range(1, 6)] == [False] * 5
    assert [differ(slots, slot, step, 7) for step in range(1, 6)] == [False, False, True, True, True]


def test_hashes_move_with_their_stream() -> None:
    """Into a ring of another size, and from a checkpoint without hashes, where none is known."""
    here, there = make(answers=3), make(answers=2)
    slot = run(here, 3)
    other = move(here, slot, there)
    assert [differ(there, other, step, 1) for step in (2, 3)] == [False, False]
    assert [differ(there, other, step, 9) for step in (2, 3)] == [True, True]
    without = packed(here, slot)[: -8 * here.answers] + bytes(8 * here.answers)
    there.unpack(other, 3, here.answers, without)
    assert [differ(there, other, step, 9) for step in (2, 3)] == [False, False]


def test_hashes_leave_with_their_stream() -> None:
    """The next stream in the slot is not compared with the former one."""
    slots = make(capacity=1)
    slots.release(run(slots, 3))
    slot = take(slots)
    slots.step[slot] = 3
    assert [differ(slots, slot, step, 9) for step in (1, 2, 3)] == [False] * 3


def row_of_outputs() -> tuple[np.ndarray, ...]:
    """Outputs of one row, all zero."""
    return tuple(np.zeros((1, *output.shape), output.dtype) for output in SPEC.outputs)
