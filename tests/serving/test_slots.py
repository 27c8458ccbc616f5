import dataclasses
from typing import Any

import numpy as np
import pytest

from serving.core.slots import Slots
from tests.support import load, running_sum


def make(capacity: int = 4, answers: int = 3, **more: Any) -> Slots:
    """Slots of the running sum."""
    return Slots(load(running_sum(**more)).spec, capacity, answers)


def advance(slots: Slots, rows: list[int], sums: list[float]) -> list[int]:
    """Writes one timestep of some rows: total and answer are `sums`, the count is one more."""
    where = np.array(rows, np.int64)
    value = np.array(sums, np.float32)[:, np.newaxis]
    count = slots.gather(where)[2] + 1
    trail = np.repeat(value, 2, axis=1)
    return slots.scatter(where, (value, trail, count), (value, count)).tolist()


def answers_of(slots: Slots, slot: int, step: int) -> list[float]:
    """The remembered sum of a timestep; empty when it is forgotten."""
    packed = slots.answer(slot, step)
    return np.frombuffer(packed[0], np.float32).tolist() if packed else []


def test_a_fresh_slot_has_the_initial_state() -> None:
    """A stream begins with what the model says, at step 0."""
    state = [
        {"name": "total", "next": "total_next", "shape": ["batch", 1], "initial": 5},
        {"name": "trail", "next": "trail_next", "shape": [2, "batch"], "initial": [1, 2]},
        {"name": "count", "next": "count_next", "shape": ["batch"], "initial": 7},
    ]
    slots = make(state=state)
    total, trail, count = slots.gather(np.array([slots.acquire()]))
    assert total.tolist() == [[5]]
    assert trail.tolist() == [[1, 2]]
    assert count.tolist() == [7]
    assert slots.step[0] == 0


def test_slots_are_taken_once() -> None:
    """Two streams never share a row."""
    slots = make(capacity=4)
    taken = [slots.acquire() for _ in range(4)]
    assert sorted(taken) == [0, 1, 2, 3]
    assert slots.full
    assert len(slots) == 4


def test_a_released_slot_is_taken_again() -> None:
    """A slot that was given back makes room for another stream."""
    slots = make(capacity=2)
    first = slots.acquire()
    slots.acquire()
    slots.release(first)
    assert not slots.full
    assert slots.acquire() == first


def test_a_slot_taken_again_starts_anew() -> None:
    """Nothing of the stream before is left: neither its state nor its number."""
    slots = make(capacity=1)
    slot = slots.acquire()
    advance(slots, [slot], [42])
    slots.release(slot)
    slot = slots.acquire()
    assert slots.step[slot] == 0
    assert [part.tolist() for part in slots.gather(np.array([slot]))] == [[[0]], [[0, 0]], [0]]


def test_gather_and_scatter_keep_rows_apart() -> None:
    """What is scattered to a row is what is gathered from it, in whatever order."""
    slots = make()
    for _ in range(4):
        slots.acquire()
    advance(slots, [2, 0], [20, 10])
    total, _, count = slots.gather(np.array([0, 1, 2, 3]))
    assert total.ravel().tolist() == [10, 0, 20, 0]
    assert count.tolist() == [1, 0, 1, 0]
    assert slots.step.tolist() == [1, 0, 1, 0]


def test_what_is_gathered_is_a_copy() -> None:
    """A model may write into what it is given without touching the state."""
    slots = make()
    slot = slots.acquire()
    slots.gather(np.array([slot]))[0][:] = 99
    assert slots.gather(np.array([slot]))[0].tolist() == [[0]]


def test_the_last_answers_are_remembered() -> None:
    """As many as were asked for, and no more; the ring wraps around."""
    slots = make(answers=3)
    slot = slots.acquire()
    for step in range(1, 8):
        advance(slots, [slot], [step * 10])
    assert [answers_of(slots, slot, step) for step in range(1, 8)] == [[], [], [], [], [50], [60], [70]]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
def test_a_row_read_and_written_elsewhere_is_the_same_row(steps: int) -> None:
    """Step, state and remembered answers survive, before and after the ring has wrapped around."""
    here, there = make(answers=3), make(answers=3)
    slot = here.acquire()
    for step in range(1, steps + 1):
        advance(here, [slot], [step * 10])
    there.acquire()
    other = there.acquire()
    there.write(other, *here.read(slot))
    assert there.step[other] == steps
    for mine, theirs in zip(here.gather(np.array([slot])), there.gather(np.array([other])), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    for step in range(1, steps + 1):
        assert answers_of(there, other, step) == answers_of(here, slot, step)


def test_what_is_read_is_a_copy() -> None:
    """A checkpoint does not change when the slot goes on."""
    slots = make()
    slot = slots.acquire()
    advance(slots, [slot], [10])
    step, state, answers = slots.read(slot)
    advance(slots, [slot], [20])
    assert step == 1
    assert state[0].tolist() == [10]
    assert answers[0].tolist() == [[10]]


def test_a_smaller_ring_keeps_the_newest_answers() -> None:
    """A row that comes from a server with a larger memory loses only its oldest answers."""
    here, there = make(answers=5), make(answers=2)
    slot, other = here.acquire(), there.acquire()
    for step in range(1, 6):
        advance(here, [slot], [step * 10])
    there.write(other, *here.read(slot))
    assert [answers_of(there, other, step) for step in range(1, 6)] == [[], [], [], [40], [50]]


def test_a_larger_ring_does_not_invent_answers() -> None:
    """A row that comes from a server with a smaller memory does not answer with what another stream left behind."""
    here, there = make(answers=2), make(answers=5)
    slot, other = here.acquire(), there.acquire()
    for step in range(1, 6):
        advance(here, [slot], [step * 10])
        advance(there, [other], [step * 1000])  # a stranger, in the row that is taken next
    there.release(other)
    other = there.acquire()
    there.write(other, *here.read(slot))
    assert [answers_of(there, other, step) for step in range(1, 6)] == [[], [], [], [40], [50]]


def test_a_larger_ring_fills_up_as_the_stream_goes_on() -> None:
    """After a move to a larger memory nothing that was answered since is forgotten too early."""
    here, there = make(answers=2), make(answers=5)
    slot, other = here.acquire(), there.acquire()
    for step in range(1, 4):
        advance(here, [slot], [step * 10])
    there.write(other, *here.read(slot))
    for step in range(4, 7):
        advance(there, [other], [step * 10])
    assert [answers_of(there, other, step) for step in range(2, 7)] == [[20], [30], [40], [50], [60]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_whose_next_state_is_not_finite_is_left_as_it_was(bad: float) -> None:
    """Its neighbours advance; its state, number and answers stay."""
    slots = make()
    for _ in range(3):
        slots.acquire()
    advance(slots, [0, 1, 2], [1, 2, 3])
    before = slots.read(1)
    assert advance(slots, [0, 1, 2], [10, bad, 30]) == [1]
    after = slots.read(1)
    assert before[0] == after[0]
    for old, new in zip((*before[1], *before[2]), (*after[1], *after[2]), strict=True):
        assert old.tobytes() == new.tobytes()
    assert slots.gather(np.array([0, 1, 2]))[0].ravel().tolist() == [10, 2, 30]
    assert slots.step.tolist()[:3] == [2, 1, 2]


def test_a_huge_state_is_no_poison() -> None:
    """A finite value whose square is not finite is finite."""
    slots = make()
    slot = slots.acquire()
    assert advance(slots, [slot], [3e38]) == []
    assert slots.step[slot] == 1


def test_a_model_without_state_needs_no_slab() -> None:
    """Numbers and answers are kept even where there is no state."""
    slots = Slots(dataclasses.replace(load(running_sum()).spec, state=()), 2, 2)
    slot = slots.acquire()
    value = np.array([[5]], np.float32)
    slots.scatter(np.array([slot]), (), (value, np.array([1])))
    assert slots.step[slot] == 1
    assert answers_of(slots, slot, 1) == [5]


def test_one_line_says_how_full_they_are() -> None:
    """Operators read it in logs."""
    slots = make(capacity=4)
    slots.acquire()
    assert repr(slots) == "<Slots toy/1: 1 of 4 taken>"
