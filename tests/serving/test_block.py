"""A block in the engine, without a server: the results are those of its timesteps one at a time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import make_engine
from tests.graphs import lstm, picky, running_sum
from tidegate.core.block import Block, run_blocks
from tidegate.core.engine import Engine, RowStatus
from tidegate.core.errors import InvalidField
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import Key
from tidegate.core.streams import Lease, StreamTable

STREAMS = 5


class Side:
    """An engine with some streams, all held by one call."""

    def __init__(self, graph: bytes, count: int = STREAMS) -> None:
        self.engine: Engine = make_engine(graph, capacity=count + 1, answers=3)
        self.streams = StreamTable()
        self.held = HandleTable()
        self.leases: list[Lease] = []
        for number in range(count):
            name = Key("default", f"s{number}")
            slot = self.engine.slots.acquire(name)
            self.leases.append(self.streams.begin(name, self.engine.slots, slot, 1))
            self.held.add(self.leases[-1])

    def block(self, handles: Any, steps: Any, x: Any, piece_max: int = 16) -> Block:
        """Runs a block to its end."""
        block = Block(self.held.select(np.asarray(handles)), np.asarray(steps), np.asarray(x, np.float32))
        while block.rows_left:
            run_blocks(self.engine, [block], piece_max)
        return block


def content(side: Side) -> bytes:
    """The complete content of the streams."""
    slots = side.engine.slots
    rows = np.arange(STREAMS)
    return slots.pack(rows).tobytes() + slots.step[rows].tobytes()


BAD = {"infinite": np.inf, "missing": np.nan, "good": 0.5}
rows = st.lists(
    st.tuples(
        st.integers(1, STREAMS),  # the stream
        st.integers(-3, 2),  # the distance from the right number; -3 means no number
        st.sampled_from(["good"] * 6 + ["infinite", "missing"]),
        st.floats(-2, 2, width=32),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150)
@given(rows=rows, piece_max=st.sampled_from([1, 2, 3, 16]), handles_missing=st.booleans())
def test_a_block_is_the_same_as_its_timesteps_one_at_a_time(
    rows: list[tuple[int, int, str, float]], piece_max: int, *, handles_missing: bool
) -> None:
    """Duplicates, gaps, bad rows, catching up: equal bits, equal statuses, equal histories."""
    graph = lstm() if handles_missing else picky()
    singly, run_concurrently = Side(graph), Side(graph)
    features = len(singly.engine.model.spec.features)
    handles, steps, x = [], [], []
    expected: list[tuple[int, int, list[bytes]]] = []
    for handle, off, kind, value in rows:
        stream = singly.leases[handle - 1].stream
        step = 0 if off == -3 else max(1, stream.step + 1 + off)
        values = np.full(features, value, np.float32)
        values[0] = value if kind == "good" else BAD[kind]
        one = singly.block([handle], [step], values[np.newaxis])
        expected.append((int(one.statuses[0]), int(one.steps[0]), [part.tobytes() for part in one.outputs]))
        handles.append(handle)
        steps.append(step)
        x.append(values)
    block = run_concurrently.block(handles, steps, x, piece_max)
    got = [
        (int(block.statuses[row]), int(block.steps[row]), [part[row : row + 1].tobytes() for part in block.outputs])
        for row in range(len(rows))
    ]
    assert [(status, step) for status, step, _ in got] == [(status, step) for status, step, _ in expected]
    # An answer may have left the ring in one of the two orders only. There are no other differences.
    assert got == expected
    assert content(run_concurrently) == content(singly)
    assert all(str(block.refusal_error(row)) for row in np.flatnonzero(block.statuses > RowStatus.DUPLICATE).tolist())


def reported(block: Block) -> tuple[object, ...]:
    """Everything that a call learns about a block."""
    refused = [row for row, status in enumerate(block.statuses.tolist()) if status > RowStatus.DUPLICATE]
    why = [str(block.refusal_error(row)) for row in refused if block.statuses[row] != RowStatus.NOT_HELD]
    outputs = [part.tobytes() for part in block.outputs]
    return block.statuses.tolist(), block.steps.tolist(), outputs, block.forgotten.tolist(), block.missing, why


def call_of(side: Side, number: int) -> HandleTable:
    """One of two calls: it holds the streams with even or with odd handles, and has held the others before."""
    held = HandleTable()
    for lease in side.leases:
        handle = held.add(lease)
        if handle % 2 == number:
            held.remove(handle)
    return held


def blocks_of(side: Side, stories: tuple[list[tuple[int, int, str, float]], ...]) -> list[Block]:
    """A block of each call."""
    blocks = []
    for number, story in enumerate(stories):
        x = np.full((len(story), len(side.engine.model.spec.features)), 0.5, np.float32)
        x[:, 0] = [value if kind == "good" else BAD[kind] for _, _, kind, value in story]
        steps = np.array([max(0, 1 + off) for _, off, _, _ in story])
        blocks.append(Block(call_of(side, number).select(np.array([handle for handle, *_ in story])), steps, x))
    return blocks


@settings(max_examples=150)
@given(stories=st.tuples(rows, rows), rows_max=st.sampled_from([2, 3, 16, 100]), handles_missing=st.booleans())
def test_blocks_of_several_calls_together_are_the_same_as_one_after_the_other(
    stories: tuple[list[tuple[int, int, str, float]], ...], rows_max: int, *, handles_missing: bool
) -> None:
    """With any errors in any rows: equal bits, equal statuses, equal counts of missing values."""
    graph = lstm() if handles_missing else picky()
    apart, run_concurrently = Side(graph), Side(graph)
    alone, both = blocks_of(apart, stories), blocks_of(run_concurrently, stories)
    for block in alone:
        while block.rows_left:
            run_blocks(apart.engine, [block], rows_max)
    while waiting := [block for block in both if block.rows_left]:
        fit = sum(block.rows_left for block in waiting) <= rows_max
        run_blocks(run_concurrently.engine, waiting if fit else waiting[:1], rows_max)
    assert [reported(block) for block in both] == [reported(block) for block in alone]
    assert content(run_concurrently) == content(apart)


def test_failed_rows_in_a_batch_of_several_blocks_have_their_own_reason() -> None:
    """No call learns about the rows of another."""
    side = Side(picky())
    odd, even = (
        Block(call_of(side, number).select(np.array(handles)), np.zeros(2, np.int64), np.array(x, np.float32))
        for number, handles, x in [(0, [1, 3], [[1], [77]]), (1, [2, 4], [[88], [2]])]
    )
    statuses = run_blocks(side.engine, [odd, even], 16)
    assert [found.tolist() for found in statuses] == [
        [RowStatus.APPLIED, RowStatus.FAILED],
        [RowStatus.FAILED, RowStatus.APPLIED],
    ]
    assert "idx=77" in str(odd.refusal_error(1))
    assert "idx=88" in str(even.refusal_error(0))
    assert [block.outputs[0].ravel().tolist() for block in (odd, even)] == [[10, 0], [0, 100]]


def test_rows_of_one_stream_are_applied_in_the_order_they_stand() -> None:
    """Catching up: the sums grow row by row, whatever rows are in between."""
    side = Side(running_sum())
    block = side.block([1, 2, 1, 1, 2], [0, 0, 0, 0, 0], [[1], [10], [2], [3], [20]])
    assert block.steps.tolist() == [1, 1, 2, 3, 2]
    assert block.outputs[0].ravel().tolist() == [1, 10, 3, 6, 30]


def test_a_chunk_has_a_stream_once_and_no_more_rows_than_it_may() -> None:
    """So each chunk is a batch like any other."""
    side = Side(running_sum())
    block = Block(side.held.select(np.array([1, 2, 3, 4, 1, 1])), np.zeros(6, np.int64), np.ones((6, 1), np.float32))
    sizes = []
    while block.rows_left:
        before = block.rows_left
        assert not run_blocks(side.engine, [block], 3)[0].any()
        sizes.append(before - block.rows_left)
    assert sizes == [3, 1, 1, 1]


def test_a_row_whose_stream_is_no_longer_held_leaves_the_others_alone() -> None:
    """When a stream is taken over between two blocks, its row does not run for the new owner."""
    side = Side(running_sum())
    side.streams.take_over(side.leases[1].stream, 2)
    block = side.block([1, 2, 3], [1, 1, 1], [[1], [1], [1]])
    assert block.statuses.tolist() == [RowStatus.APPLIED, RowStatus.NOT_HELD, RowStatus.APPLIED]
    assert [lease.stream.step for lease in side.leases[:3]] == [1, 0, 1]


def test_a_row_of_a_slot_that_another_stream_has_taken_is_not_run() -> None:
    """The slot alone proves nothing: the slot of a parked stream may belong to another stream."""
    side = Side(running_sum())
    stream = side.leases[0].stream
    row = stream.slot
    side.streams.park(stream)
    other = Key("default", "other")
    assert side.engine.slots.acquire(other) == row
    side.streams.begin(other, side.engine.slots, row, 1)
    assert side.block([1], [1], [[1]]).statuses.tolist() == [RowStatus.NOT_HELD]
    assert side.engine.slots.step[row] == 0


def test_a_stream_that_woke_in_another_row_is_found_there() -> None:
    """Its handle stays the same."""
    side = Side(running_sum())
    stream = side.leases[0].stream
    side.streams.park(stream)
    side.engine.slots.acquire(Key("default", "other"))
    side.streams.wake(stream, None, side.engine.slots.acquire(stream.key))
    assert side.held.refresh(1) is side.leases[0]
    assert side.block([1], [1], [[7]]).outputs[0].item() == 7


def test_an_unknown_handle_refuses_the_block() -> None:
    """The stream of the row is unknown."""
    side = Side(running_sum())
    for wrong in (0, STREAMS + 1):
        with pytest.raises(InvalidField, match=f"handles: got {wrong}, expected 1 to {STREAMS}"):
            side.block([1, wrong], [0, 0], [[1], [1]])
    assert side.leases[0].stream.step == 0


def test_streams_of_different_models_refuse_the_block() -> None:
    """Their rows may have different widths."""
    side, other = Side(running_sum()), Side(running_sum())
    handle = side.held.add(other.leases[0])
    with pytest.raises(InvalidField, match="expected one model in a block"):
        side.block([1, handle], [0, 0], [[1], [1]])


def test_notifications_come_once() -> None:
    """Only what was stored since."""
    side = Side(running_sum())
    side.block([1, 2], [0, 0], [[1], [1]])
    side.engine.slots.durable_step[side.leases[1].stream.slot] = 1
    handles, steps = side.held.durable_updates()
    assert (handles.tolist(), steps.tolist()) == ([2], [1])
    assert not side.held.durable_updates()[0].size


def test_many_handles_find_room() -> None:
    """The columns grow."""
    side = Side(running_sum(), 300)
    block = side.block(np.arange(1, 301), np.zeros(300, np.int64), np.arange(300)[:, np.newaxis])
    assert block.outputs[0].ravel().tolist() == list(range(300))
