"""A client's books on many streams: which number, what next, whose answer. No network, so every interleaving is one line."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from serving.client.ledger import Ledger
from serving.client.parcel import Answers, Order, Parcel

from serving.client import roll
from serving.client.errors import (
    AnswerLost,
    ClientError,
    Diverged,
    InvalidTimestep,
    StreamLost,
    StreamNotFound,
    TakenOver,
)
from serving.core.spec import Output

OUTPUTS = (Output("sum", np.dtype(np.float32), (1,)), Output("seen", np.dtype(np.float64), (2,)))
ROWS_MAX = 1000


def ints(*numbers: int) -> Any:
    """A column."""
    return np.array(numbers, np.int64)


def ledger_at(*next_steps: int, durable: int = 0, window: int = 4, buffer_max: int = 100) -> Ledger:
    """Books on streams that were just opened."""
    ledger = Ledger(len(next_steps), buffer_max)
    streams = np.arange(len(next_steps))
    ledger.opened(streams, ints(*next_steps), np.full(len(next_steps), durable), window)
    return ledger


def add(ledger: Ledger, rows: list[int], values: list[float] | None = None) -> Order:
    """An order; without values they are 1."""
    order = ledger.order(len(rows), OUTPUTS, None)
    column = np.array(values or [1.0] * len(rows), np.float32).reshape(-1, 1)
    ledger.add(order, 0, ints(*rows), column)
    return order


def take(ledger: Ledger, rows_max: int = ROWS_MAX) -> list[tuple[int, int, float]]:
    """What is sent now: stream, number and value."""
    parcel = ledger.take(rows_max)
    return [] if parcel is None else contents(parcel)


def contents(parcel: Parcel) -> list[tuple[int, int, float]]:
    """Stream, number and value of each row."""
    return list(zip(parcel.streams.tolist(), parcel.steps.tolist(), parcel.values[:, 0].tolist(), strict=True))


def answers_to(parcel: Parcel, *, durable: int = 0, forgotten: tuple[int, ...] = (), bits: float = 0.5) -> Answers:
    """An answer to every row: its stream and number, so that a crossed one shows."""
    rows = len(parcel.steps)
    gone = np.zeros(rows, np.bool_)
    gone[list(forgotten)] = True
    sums = (parcel.streams * 100 + parcel.steps + bits).astype(np.float32).reshape(rows, 1)
    seen = np.stack([parcel.streams, parcel.steps], axis=1).astype(np.float64)
    sums[gone], seen[gone] = 0, 0
    nothing = np.zeros(rows, np.bool_)
    return Answers(parcel.steps, [sums, seen], np.full(rows, durable), nothing, gone, nothing.copy())


def hear(ledger: Ledger, number: int, **more: Any) -> Any:
    """The parcel of that number is answered."""
    parcel = ledger.due(number)
    return ledger.predicted(parcel, answers_to(parcel, **more), comparable=True)


def refuse(ledger: Ledger, number: int, *rows: int, next_step: int = 0) -> tuple[Parcel, Any]:
    """These rows of a parcel are refused, the others answered; gives the parcel and the rows to decide on."""
    parcel = ledger.due(number)
    answers = answers_to(parcel)
    answers.refused[list(rows)] = True
    refused = ledger.predicted(parcel, answers, comparable=True).refused
    ledger.refused(parcel, refused, np.full(len(refused), next_step))
    return parcel, refused


def drop(ledger: Ledger, parcel: Parcel, rows: Any) -> InvalidTimestep:
    """Gives up on refused rows."""
    error = InvalidTimestep("bad", "NOT_FINITE")
    ledger.drop(parcel, rows, [error] * len(rows))
    return error


def test_timesteps_are_numbered_in_the_order_they_came() -> None:
    """Each stream from where its server is; a stream that stands several times catches up."""
    ledger = ledger_at(7, 1, 3)
    add(ledger, [2, 0, 2, 2, 0])
    assert ledger.next_steps.tolist() == [9, 1, 6]
    assert take(ledger) == [(2, 3, 1.0), (0, 7, 1.0), (2, 4, 1.0), (0, 8, 1.0)]


def test_an_answer_goes_to_the_row_it_is_for() -> None:
    """With every column of it."""
    ledger = ledger_at(1, 5)
    order = add(ledger, [1, 0, 1])
    ledger.take(ROWS_MAX)
    heard = hear(ledger, 1, durable=3)
    assert (heard.fresh, heard.diverged, len(heard.refused)) == (True, {}, 0)
    assert ledger.done == [order]
    assert order.steps.tolist() == [5, 1, 6]
    assert order.outputs[0].tolist() == [[105.5], [1.5], [106.5]]
    assert order.outputs[1].tolist() == [[1, 5], [0, 1], [1, 6]]
    assert order.durable_steps.tolist() == [3, 3, 3]
    assert order.duplicates.tolist() == [False] * 3
    assert ledger.idle


def test_small_orders_are_sent_together_and_large_ones_in_parts() -> None:
    """An order is done when its last row is."""
    ledger = ledger_at(1, 1, 1)
    small, large = add(ledger, [0]), add(ledger, [1, 2])
    assert take(ledger, 2) == [(0, 1, 1.0), (1, 1, 1.0)]
    assert take(ledger, 2) == [(2, 1, 1.0)]
    hear(ledger, 1)
    assert ledger.done == [small]
    hear(ledger, 2)
    assert ledger.done == [small, large]


def test_no_more_of_a_stream_are_under_way_than_the_server_remembers_answers_for() -> None:
    """Half of them in one parcel; the other streams are not held up."""
    ledger = ledger_at(1, 1, window=4)
    add(ledger, [0] * 6 + [1])
    assert [step for stream, step, _ in take(ledger) if stream == 0] == [1, 2]
    assert [step for stream, step, _ in take(ledger) if stream == 0] == [3, 4]
    assert take(ledger) == []
    hear(ledger, 1)
    assert take(ledger) == [(0, 5, 1.0), (0, 6, 1.0)]


def test_a_server_that_remembers_nothing_has_one_of_a_stream_under_way() -> None:
    """A window of 0 would send nothing at all."""
    ledger = ledger_at(1, window=0)
    add(ledger, [0, 0])
    assert take(ledger) == [(0, 1, 1.0)]
    assert take(ledger) == []


def test_there_is_room_until_so_many_are_not_durable() -> None:
    """Of each stream; what is durable makes room once it is answered."""
    ledger = ledger_at(1, 1, buffer_max=2)
    assert ledger.room(ints(0, 1, 0, 0)) == 3
    add(ledger, [0, 1, 0])
    assert ledger.room(ints(1, 0)) == 1
    ledger.durable(ints(0), ints(1))
    assert ledger.room(ints(0)) == 0
    ledger.take(ROWS_MAX)
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    assert ledger.room(ints(0, 0)) == 1


def test_a_lost_answer_is_had_again() -> None:
    """The server applied it: it is sent again as a repeat, and handed over once."""
    ledger = ledger_at(1, 1)
    order = add(ledger, [0, 1])
    ledger.take(ROWS_MAX)
    ledger.cut()
    ledger.opened(ints(0, 1), ints(2, 1), ints(0, 0), 4)
    assert take(ledger) == [(0, 1, 1.0), (1, 1, 1.0)]
    hear(ledger, 2)
    assert (ledger.done, order.steps.tolist()) == ([order], [1, 1])


def test_what_a_crash_took_is_sent_again_and_not_handed_over_again() -> None:
    """Each stream from where the server goes on; rows of several orders are packed into one parcel."""
    ledger = ledger_at(1, 1)
    orders = [add(ledger, [0, 1], [value, value]) for value in (1.0, 2.0)]
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    ledger.cut()
    ledger.opened(ints(0, 1), ints(2, 1), ints(1, 0), 4)
    third = add(ledger, [1], [3.0])
    assert take(ledger) == [(1, 1, 1.0), (0, 2, 2.0), (1, 2, 2.0)]
    assert take(ledger) == [(1, 3, 3.0)]
    assert not hear(ledger, 2).fresh
    assert hear(ledger, 3).fresh
    assert ledger.done == [*orders, third]


def test_a_stream_is_sent_nothing_of_before_it_is_open_again() -> None:
    """The others go on meanwhile."""
    ledger = ledger_at(1, 1)
    add(ledger, [0, 1])
    ledger.cut()
    assert take(ledger) == []
    ledger.opened(ints(1), ints(1), ints(0), 4)
    assert take(ledger) == [(1, 1, 1.0)]
    assert not ledger.idle
    ledger.opened(ints(0), ints(1), ints(0), 4)
    assert take(ledger) == [(0, 1, 1.0)]


def test_what_was_before_the_first_open_is_not_here() -> None:
    """Though it was never durable: it cannot be sent again. What is durable can no more; what was not answered still can."""
    ledger = ledger_at(7, 1, 1)
    assert ledger.first_steps.tolist() == [7, 1, 1]
    add(ledger, [0, 1, 1])
    ledger.take(ROWS_MAX)
    hear(ledger, 1, durable=1)
    ledger.durable(ints(1, 2), ints(2, 5))
    assert ledger.first_steps.tolist() == [7, 3, 1]


def test_a_different_answer_to_a_replay_is_told() -> None:
    """Of that stream; nothing of it is handed over any more, and the other's rows are."""
    ledger = ledger_at(1, 1)
    add(ledger, [0, 1])
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    ledger.cut()
    ledger.opened(ints(0, 1), ints(1, 2), ints(0, 0), 4)
    order = add(ledger, [0, 1])
    ledger.take(ROWS_MAX)
    heard = hear(ledger, 2, bits=0.25)
    assert list(heard.diverged) == [0]
    assert isinstance(heard.diverged[0], Diverged)
    assert order.steps.tolist() == [0, 2]
    ledger.lose(heard.diverged)
    assert order.errors == heard.diverged


def test_a_server_that_promises_no_bits_is_not_held_to_them() -> None:
    """Its model depends on the batch, and it says so."""
    ledger = ledger_at(1)
    add(ledger, [0])
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    ledger.cut()
    ledger.opened(ints(0), ints(1), ints(0), 4)
    parcel = ledger.take(ROWS_MAX)
    assert parcel is not None
    heard = ledger.predicted(ledger.due(2), answers_to(parcel, bits=0.25), comparable=False)
    assert not heard.diverged


def test_a_forgotten_answer_is_told_and_the_timestep_counts() -> None:
    """It keeps its number; the next one follows."""
    ledger = ledger_at(1)
    order = add(ledger, [0, 0])
    ledger.take(ROWS_MAX)
    hear(ledger, 1, forgotten=(0,))
    assert isinstance(order.errors[0], AnswerLost)
    assert (order.steps.tolist(), order.duplicates.tolist()) == ([1, 2], [True, False])
    assert order.outputs[0].tolist() == [[0.0], [2.5]]
    assert ledger.next_steps.tolist() == [3]


def test_a_replay_whose_answer_is_forgotten_is_not_compared() -> None:
    """There is nothing to compare."""
    ledger = ledger_at(1)
    add(ledger, [0])
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    ledger.cut()
    ledger.opened(ints(0), ints(1), ints(0), 4)
    ledger.take(ROWS_MAX)
    assert not hear(ledger, 2, forgotten=(0,)).diverged


def test_a_refused_timestep_leaves_no_hole() -> None:
    """Those of its stream move up, what the server says to those under way is ignored, and the others notice nothing."""
    ledger = ledger_at(1, 1, window=8)
    order = add(ledger, [0, 1, 0, 0], [1.0, 2.0, -3.0, 4.0])
    behind = add(ledger, [0, 1], [5.0, 6.0])
    ledger.take(4)
    ledger.take(4)
    parcel, refused = refuse(ledger, 1, 2, 3)
    assert refused.tolist() == [2]
    error = drop(ledger, parcel, refused)
    assert (order.errors, order.steps.tolist()) == ({2: error}, [1, 1, 0, 0])
    assert take(ledger) == [(0, 2, 4.0), (0, 3, 5.0)]
    refuse(ledger, 2, 0)
    assert behind.steps.tolist() == [0, 2]
    hear(ledger, 3)
    assert (order.steps.tolist(), behind.steps.tolist()) == ([1, 1, 0, 2], [3, 2])
    assert ledger.next_steps.tolist() == [4, 3]


def test_refused_timesteps_of_many_streams_are_let_go_at_once() -> None:
    """Each of its own stream."""
    ledger = ledger_at(1, 1, 1)
    order = add(ledger, [0, 1, 2, 0, 1, 2], [-1.0, 2.0, -3.0, 4.0, 5.0, 6.0])
    ledger.take(ROWS_MAX)
    parcel, refused = refuse(ledger, 1, 0, 2, 3, 5)
    assert refused.tolist() == [0, 2]
    drop(ledger, parcel, refused)
    assert take(ledger) == [(0, 1, 4.0), (2, 1, 6.0)]
    hear(ledger, 2)
    assert order.steps.tolist() == [0, 1, 0, 1, 2, 1]
    assert ledger.next_steps.tolist() == [2, 3, 2]


def test_a_timestep_that_is_sent_again_keeps_its_number() -> None:
    """And those behind it theirs; meanwhile its stream may be held."""
    ledger = ledger_at(1, 1)
    add(ledger, [0, 0])
    ledger.take(ROWS_MAX)
    parcel, refused = refuse(ledger, 1, 0, 1)
    ledger.send_again(parcel, refused)
    ledger.hold(ints(0))
    assert take(ledger) == []
    ledger.release(ints(0))
    assert take(ledger) == [(0, 1, 1.0), (0, 2, 1.0)]
    ledger.hold(ints(0))
    ledger.cut()
    ledger.opened(ints(0), ints(1), ints(0), 4)
    assert take(ledger) == [(0, 1, 1.0), (0, 2, 1.0)]


def test_a_refused_parcel_is_sent_again_whole() -> None:
    """No row of it was applied; rows of its streams that are under way behind it are ignored."""
    ledger = ledger_at(1, 1, 1, window=4)
    add(ledger, [0, 1])
    ledger.take(ROWS_MAX)
    order = add(ledger, [1, 2])
    ledger.take(ROWS_MAX)
    parcel = ledger.due(1)
    rows = ledger.first_rows(parcel)
    ledger.refused(parcel, rows, np.zeros(len(rows), np.int64))
    ledger.send_again(parcel, rows)
    refuse(ledger, 2, 0)
    assert order.steps.tolist() == [0, 1]
    assert take(ledger) == [(0, 1, 1.0), (1, 1, 1.0), (1, 2, 1.0)]


def test_a_refused_timestep_that_had_been_applied_keeps_its_number() -> None:
    """The next one must not be sent under a number that is taken: it would be answered as a repeat."""
    ledger = ledger_at(1)
    order = add(ledger, [0])
    add(ledger, [0], [2.0])
    ledger.take(1)
    parcel, refused = refuse(ledger, 1, 0, next_step=2)
    assert ledger.applied(parcel, refused).tolist() == [True]
    ledger.pass_over(parcel, refused, [AnswerLost("gone", "ANSWER_LOST")])
    assert (order.steps.tolist(), list(order.errors)) == ([1], [0])
    assert take(ledger) == [(0, 2, 2.0)]
    ledger.cut()
    ledger.opened(ints(0), ints(1), ints(0), 4)
    assert take(ledger) == [(0, 1, 1.0), (0, 2, 2.0)]


def test_an_answer_that_was_lost_before_its_repeat_was_refused() -> None:
    """The open has told that it was applied; after a crash it may no longer be."""
    ledger = ledger_at(1)
    add(ledger, [0])
    ledger.take(ROWS_MAX)
    for number, next_step in ((2, 2), (3, 1)):
        ledger.cut()
        ledger.opened(ints(0), ints(next_step), ints(0), 4)
        ledger.take(ROWS_MAX)
        parcel, refused = refuse(ledger, number, 0)
        assert ledger.applied(parcel, refused).tolist() == [next_step == 2]
        ledger.send_again(parcel, refused)


def test_an_answer_that_is_ignored_tells_what_was_applied() -> None:
    """It keeps its number, whatever becomes of it.

    The first was applied and its answer lost; its repeat is refused for want of room, and the second, behind it, is applied;
    its own repeat is refused too, while the third is on its way.
    """
    ledger = ledger_at(1, window=3)
    add(ledger, [0, 0, 0])
    ledger.take(1)
    ledger.cut()
    ledger.opened(ints(0), ints(2), ints(0), 3)
    ledger.take(1)
    ledger.take(1)
    parcel, refused = refuse(ledger, 2, 0)
    ledger.send_again(parcel, refused)
    ledger.take(1)
    hear(ledger, 3)
    ledger.take(1)
    hear(ledger, 4)
    ledger.take(1)
    parcel, refused = refuse(ledger, 5, 0)
    assert parcel.steps.tolist() == [2]
    assert ledger.applied(parcel, refused).tolist() == [True]


def test_a_replay_is_known_to_have_been_delivered() -> None:
    """It can be neither dropped nor told to anybody."""
    ledger = ledger_at(1)
    add(ledger, [0, 0])
    ledger.take(1)
    hear(ledger, 1)
    ledger.cut()
    ledger.opened(ints(0), ints(1), ints(0), 4)
    ledger.take(ROWS_MAX)
    parcel, refused = refuse(ledger, 2, 0, 1)
    assert ledger.delivered(parcel, refused).tolist() == [True]


def test_a_lost_stream_leaves_the_others_going() -> None:
    """Those who wait are told, those who come are told, and answers that are under way are ignored."""
    ledger = ledger_at(1, 1, window=8)
    waiting = add(ledger, [0, 1, 0])
    ledger.take(ROWS_MAX)
    error = TakenOver("by somebody")
    ledger.lose({0: error})
    assert ledger.room(ints(*[0] * 200)) == 200
    coming = add(ledger, [0, 1])
    assert (waiting.errors, coming.errors) == ({0: error, 2: error}, {0: error})
    hear(ledger, 1)
    assert waiting.steps.tolist() == [0, 1, 0]
    assert take(ledger) == [(1, 2, 1.0)]
    hear(ledger, 2)
    assert ledger.done == [waiting, coming]
    assert ledger.idle


def test_a_closed_stream_takes_no_more() -> None:
    """Its rows say so."""
    ledger = ledger_at(1, 1)
    ledger.closed(ints(1))
    order = add(ledger, [1])
    assert isinstance(order.errors[0], StreamLost)
    assert ledger.open.tolist() == [0]


def test_a_caller_that_goes_before_all_its_rows_had_room() -> None:
    """Those that were added are applied; the others never come."""
    ledger = ledger_at(1)
    order = ledger.order(2, OUTPUTS, None)
    ledger.add(order, 0, ints(0), np.ones((1, 1), np.float32))
    ledger.leave(order, 1)
    ledger.take(ROWS_MAX)
    hear(ledger, 1)
    assert ledger.done == [order]
    assert ledger.next_steps.tolist() == [2]


def test_an_order_without_rows_is_done() -> None:
    """At once."""
    ledger = ledger_at(1)
    order = add(ledger, [])
    assert ledger.done == [order]
    assert not ledger.waiting


def test_an_answer_out_of_turn_is_told() -> None:
    """A server that answers what was not asked is none to go on with."""
    ledger = ledger_at(1)
    with pytest.raises(StreamLost, match="nothing was under way"):
        ledger.due(1)
    add(ledger, [0])
    ledger.take(ROWS_MAX)
    with pytest.raises(StreamLost, match="answered block 2, and 1 was due"):
        ledger.due(2)


def test_an_answer_with_another_number_is_told() -> None:
    """The same for a timestep."""
    ledger = ledger_at(1)
    add(ledger, [0])
    parcel = ledger.take(ROWS_MAX)
    assert parcel is not None
    answers = answers_to(parcel)._replace(steps=parcel.steps + 1)
    with pytest.raises(StreamLost, match="answered timestep 2, and 1 was due"):
        ledger.predicted(ledger.due(1), answers, comparable=True)


def test_what_is_durable_is_swept_out() -> None:
    """A million timesteps leave the roll no longer than what is kept, whatever one stuck stream holds."""
    ledger = ledger_at(*[1] * 100)
    stuck = 0
    for step in range(1, 501):
        add(ledger, list(range(100)) if step == 1 else list(range(1, 100)))
        ledger.take(ROWS_MAX)
        hear(ledger, step, durable=step - 2 if step > 2 else 0)
        if step == 2:
            ledger.durable_steps[stuck] = 0
    assert len(ledger._roll) <= 2 * roll.SWEEP_ROWS_MIN
    assert ledger.first_steps[stuck] == 1
    ledger.cut()
    ledger.opened(np.arange(100), np.r_[1, np.full(99, 499)], np.r_[0, np.full(99, 498)], 4)
    assert len(take(ledger)) == 1 + 99 * 2
    assert not hear(ledger, 501).diverged


def test_a_sweep_moves_what_is_under_way() -> None:
    """Its answers find their rows, and what is left to be sent is still found."""
    ledger = ledger_at(1, 1)
    add(ledger, [0, 1], [1.0, 2.0])
    ledger.take(ROWS_MAX)
    hear(ledger, 1, durable=1)
    order = add(ledger, [1, 0], [3.0, 4.0])
    ledger.take(1)
    ledger._sweep()
    assert take(ledger) == [(0, 2, 4.0)]
    hear(ledger, 2)
    hear(ledger, 3)
    assert (order.steps.tolist(), order.outputs[0].tolist()) == ([2, 2], [[102.5], [2.5]])


class Server:
    """A server as the protocol describes it, for many streams: takes parcels whole and in order, stores now and then, crashes."""

    def __init__(self, streams: int, remembered: int) -> None:
        self.remembered = remembered
        self.applied: list[list[float]] = [[] for _ in range(streams)]
        self.durable = [0] * streams
        self.to_read: deque[Parcel] = deque()
        self.to_tell: deque[tuple[int, Answers | None, dict[int, tuple[str, int]]]] = deque()

    def run(self, *, full: bool, busy: Callable[[], bool]) -> None:
        """Answers one parcel, or has no room for it, or for a row of it."""
        parcel = self.to_read.popleft()
        if full:
            self.to_tell.append((parcel.number, None, {}))
            return
        rows = len(parcel.steps)
        sums, seen = np.zeros((rows, 1), np.float32), np.zeros((rows, 2))
        forgotten, durable, refused = np.zeros(rows, np.bool_), np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        reasons: dict[int, tuple[str, int]] = {}
        for row, (stream, step, value) in enumerate(contents(parcel)):
            applied = self.applied[stream]
            durable[row] = self.durable[stream]
            if step > len(applied) + 1:
                reasons[row] = "gap", len(applied) + 1
            elif busy():
                reasons[row] = "busy", len(applied) + 1
            elif step == len(applied) + 1 and value < 0:
                reasons[row] = "bad", len(applied) + 1
            else:
                if step == len(applied) + 1:
                    applied.append(value)
                forgotten[row] = step <= len(applied) - self.remembered
                if not forgotten[row]:
                    sums[row], seen[row] = self.answer(stream, step)
        refused[list(reasons)] = True
        columns = Answers(parcel.steps, [sums, seen], durable, np.zeros(rows, np.bool_), forgotten, refused)
        self.to_tell.append((parcel.number, columns, reasons))

    def answer(self, stream: int, step: int) -> tuple[float, list[float]]:
        """Depends on everything up to that timestep."""
        history = self.applied[stream][:step]
        return sum(history), [step, sum(place * value for place, value in enumerate(history, 1))]


STREAMS = 3


class World(RuleBasedStateMachine):
    """A client's books and a server, with breaks, crashes, refusals, losses and stores at any moment between."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[tuple[Order, list[int], list[float]]] = []
        self.lost: set[int] = set()

    @initialize(remembered=st.integers(1, 5))
    def begin(self, remembered: int) -> None:
        """New streams."""
        self.server = Server(STREAMS, remembered)
        self.ledger = ledger_at(*[1] * STREAMS, window=remembered)
        self.closed: set[int] = set()

    @rule(rows=st.lists(st.integers(0, STREAMS - 1), max_size=5), bad=st.integers(0, 9))
    def add(self, rows: list[int], bad: int) -> None:
        """The user has timesteps; a bad one is refused when its turn comes."""
        begin = sum(len(rows) for _, rows, _ in self.orders) + 1
        values = [float(begin + place) * (-1 if place == bad else 1) for place in range(len(rows))]
        self.orders.append((add(self.ledger, rows, values), rows, values))

    @rule(rows_max=st.integers(1, 6))
    def send(self, rows_max: int) -> None:
        """The client sends a parcel."""
        parcel = self.ledger.take(rows_max)
        if parcel is not None:
            self.server.to_read.append(parcel)
            for stream in set(parcel.streams.tolist()):
                theirs = parcel.steps[parcel.streams == stream]
                assert theirs.tolist() == list(range(theirs[0], theirs[0] + len(theirs)))

    @precondition(lambda self: self.server.to_read)
    @rule(full=st.sampled_from([False] * 4 + [True]), busy=st.lists(st.booleans(), max_size=4))
    def run(self, full: bool, busy: list[bool]) -> None:
        """The server answers one."""
        self.server.run(full=full, busy=lambda: bool(busy) and busy.pop())

    @precondition(lambda self: self.server.to_tell)
    @rule(hold=st.booleans())
    def hear(self, hold: bool = False) -> None:
        """The client takes in one answer."""
        number, answers, reasons = self.server.to_tell.popleft()
        parcel = self.ledger.due(number)
        if answers is None:
            refused = self.ledger.first_rows(parcel)
        else:
            heard = self.ledger.predicted(parcel, answers, comparable=True)
            assert not heard.diverged
            refused = heard.refused
        said = {row: reasons.get(row, ("busy", 0)) for row in refused.tolist()}
        self.ledger.refused(parcel, refused, ints(*(next_step for _, next_step in said.values())))
        bad = [row for row, (reason, _) in said.items() if reason == "bad"]
        again = [row for row, (reason, _) in said.items() if reason == "busy"]
        assert len(bad) + len(again) == len(refused), "the first that is refused cannot be a gap"
        assert not self.ledger.delivered(parcel, ints(*bad)).any()
        drop(self.ledger, parcel, ints(*bad))
        self.ledger.send_again(parcel, ints(*again))
        if hold:
            self.ledger.hold(parcel.streams[again])

    @rule()
    def release(self) -> None:
        """The wait is over."""
        self.ledger.release(np.arange(STREAMS))

    @rule(stream=st.integers(0, STREAMS - 1))
    def store(self, stream: int) -> None:
        """The server stores what it has of a stream."""
        self.server.durable[stream] = len(self.server.applied[stream])

    @precondition(lambda self: not self.server.to_tell)
    @rule(stream=st.integers(0, STREAMS - 1))
    def tell(self, stream: int) -> None:
        """And says so."""
        self.ledger.durable(ints(stream), ints(self.server.durable[stream]))

    @rule(crashed=st.sets(st.integers(0, STREAMS - 1)))
    def stop(self, crashed: set[int]) -> None:
        """The call breaks; a stream of a server that crashed is where it was last stored."""
        self.server.to_read.clear()
        self.server.to_tell.clear()
        for stream in crashed:
            del self.server.applied[stream][self.server.durable[stream] :]
        self.ledger.cut()
        self.closed = set(range(STREAMS)) - self.lost

    @precondition(lambda self: self.closed)
    @rule(count=st.integers(1, STREAMS))
    def open(self, count: int) -> None:
        """Some of the streams are opened again."""
        streams = sorted(self.closed)[:count]
        self.closed -= set(streams)
        next_steps = ints(*(len(self.server.applied[stream]) + 1 for stream in streams))
        durable = ints(*(self.server.durable[stream] for stream in streams))
        self.ledger.opened(ints(*streams), next_steps, durable, self.server.remembered)

    @rule(stream=st.integers(0, STREAMS - 1))
    def lose(self, stream: int) -> None:
        """A stream goes its own way, now and then."""
        if stream == 0 and len(self.orders) > 3 and 0 not in self.lost:
            self.lost.add(stream)
            self.closed.discard(stream)
            self.ledger.lose({stream: TakenOver("gone")})

    @rule()
    def sweep(self) -> None:
        """At any moment."""
        self.ledger._sweep()

    @invariant()
    def in_order(self) -> None:
        """Of a stream, a timestep is settled when all before it are."""
        for stream in range(STREAMS):
            settled = [
                place in order.errors or order.steps[place] > 0
                for order, rows, _ in self.orders
                for place, row in enumerate(rows)
                if row == stream
            ]
            assert settled == sorted(settled, reverse=True)

    def teardown(self) -> None:
        """Left in peace, every good timestep is applied and answered once, with the answer that its history gives."""
        while self.closed:
            self.open(STREAMS)
        self.release()
        for _ in range(4 * sum(len(rows) for _, rows, _ in self.orders) + 4):
            self.send(ROWS_MAX)
            while self.server.to_read:
                self.server.run(full=False, busy=lambda: False)
            while self.server.to_tell:
                self.hear()
        assert self.ledger.idle
        assert sorted(order.number for order in self.ledger.done) == [order.number for order, _, _ in self.orders]
        for stream in range(STREAMS):
            self.check(stream)

    def check(self, stream: int) -> None:
        """One stream's history, and every answer of it."""
        step = 0
        for order, rows, values in self.orders:
            for place in [place for place, row in enumerate(rows) if row == stream]:
                error = order.errors.get(place)
                if isinstance(error, TakenOver):
                    assert stream in self.lost
                    return
                if values[place] < 0:
                    assert isinstance(error, InvalidTimestep)
                    continue
                step += 1
                assert error is None
                assert order.steps[place] == step
                assert stream in self.lost or self.server.applied[stream][step - 1] == values[place]
                if stream not in self.lost:
                    total, seen = self.server.answer(stream, step)
                    assert (order.outputs[0][place].item(), order.outputs[1][place].tolist()) == (total, seen)
        assert stream in self.lost or len(self.server.applied[stream]) == step


World.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)
TestWorld = World.TestCase


def test_a_stream_that_is_forgotten_begins_again() -> None:
    """Where the server says, whatever was before."""
    ledger = ledger_at(1)
    add(ledger, [0])
    ledger.take(ROWS_MAX)
    hear(ledger, 1, durable=1)
    ledger.cut()
    ledger.begin_again(ints(0))
    ledger.opened(ints(0), ints(1), ints(0), 4)
    assert ledger.next_steps.tolist() == [1]
    assert ledger.idle


def test_what_is_left_at_the_end_is_given_back() -> None:
    """Everybody who waits is told."""
    ledger = ledger_at(1, 1)
    done, waiting = add(ledger, [0]), add(ledger, [0, 1])
    ledger.take(1)
    hear(ledger, 1)
    assert (ledger.done, ledger.clear()) == ([done], [waiting])
    assert not ledger.waiting


def test_a_stream_that_was_never_opened_says_why() -> None:
    """Its rows have the error of its open."""
    ledger = Ledger(2, 10)
    error: ClientError = StreamNotFound("unknown")
    ledger.lose({1: error})
    ledger.opened(ints(0), ints(1), ints(0), 4)
    assert add(ledger, [1, 0]).errors == {0: error}
