"""A client's window: numbers, what to send next, which answer belongs to what. No network, so every interleaving is one line."""

import dataclasses

import numpy as np
import pytest

from tests.client.windows import (
    MODEL,
    OTHER,
    ROWS_MAX,
    Block,
    Caller,
    OpenWindow,
    add_block,
    add_single_row,
    answers_to,
    contents,
    drop,
    ints,
    packed,
    refuse,
    respond,
    sent_rows,
)
from tidegate.client import resend_buffer
from tidegate.client.errors import AnswerLost, ClientError, Diverged, StreamLost, StreamNotFound, TakenOver
from tidegate.client.message import Repeat, SingleRowMessage
from tidegate.client.results import Group
from tidegate.client.window import Window, first_of_each


def ask_again(window: OpenWindow, stream: int, step: int, value: float = 1.0) -> Caller:
    """Requests an old answer."""
    caller = Caller()
    window.add_repeat(Repeat(window.buffer, stream, step, packed(value), caller))
    return caller


def number(step: int) -> bytes:
    """A number as on the wire."""
    return ints(step).tobytes()


def settle_single_row(window: OpenWindow, message: SingleRowMessage, durable: int = 0) -> bool:
    """Answers a message of a single timestep."""
    answers = answers_to(message)
    outputs = [column.tobytes() for column in answers.outputs]
    return window.settle_single_row(message, answers.steps.tobytes(), outputs, durable)


def test_timesteps_are_numbered_in_the_order_they_came() -> None:
    """Each stream from where its server is; a stream that stands several times catches up."""
    window = OpenWindow(7, 1, 3)
    add_block(window, [2, 0, 2, 2, 0])
    assert window.next_steps[:3].tolist() == [9, 1, 6]
    assert sent_rows(window) == [(2, 3, 1.0), (0, 7, 1.0), (2, 4, 1.0), (0, 8, 1.0)]


def test_an_answer_goes_to_the_row_it_is_for() -> None:
    """With every column of it."""
    window = OpenWindow(1, 5)
    results = add_block(window, [1, 0, 1])
    sent_rows(window)
    outcome = respond(window, 1, durable=3)
    assert (outcome.delivered, outcome.diverged, len(outcome.refused)) == (True, {}, 0)
    predictions = results.caller.result
    assert predictions.steps.tolist() == [5, 1, 6]
    assert predictions["sum"].tolist() == [[105.5], [1.5], [106.5]]
    assert predictions["seen"].tolist() == [[1, 5], [0, 1], [1, 6]]
    assert predictions.durable_steps.tolist() == [3, 3, 3]
    assert predictions.duplicates.tolist() == [False] * 3
    assert window.drained


def test_small_results_are_sent_together_and_large_ones_in_parts() -> None:
    """Results are complete when their last row is settled."""
    window = OpenWindow(1, 1, 1)
    small, large = add_block(window, [0]), add_block(window, [1, 2])
    assert sent_rows(window, 2) == [(0, 1, 1.0), (1, 1, 1.0)]
    assert sent_rows(window, 2) == [(2, 1, 1.0)]
    respond(window, 1)
    assert (small.caller.done(), large.caller.done()) == (True, False)
    respond(window, 2)
    assert large.caller.done()


def test_single_timesteps_are_collected_into_a_message() -> None:
    """Each gets its own answer, also when another caller was cancelled meanwhile."""
    window = OpenWindow(4, 1)
    first, gone, third = (add_single_row(window, stream, value) for stream, value in ((1, 1.0), (0, 2.0), (1, 3.0)))
    assert window.next_steps[:2].tolist() == [5, 3]
    assert sent_rows(window) == [(1, 1, 1.0), (0, 4, 2.0), (1, 2, 3.0)]
    gone.cancelled = True
    respond(window, 1, durable=1)
    assert [(caller.result.step, caller.result["sum"].item()) for caller in (first, third)] == [(1, 101.5), (2, 102.5)]
    assert (first.result.durable_step, first.result.duplicate) == (1, False)
    assert window.settled


def test_single_timesteps_of_a_stream_between_two_messages_follow_each_other() -> None:
    """They stay in order before, between and after the rows of blocks."""
    window = OpenWindow(1, window=16)
    add_block(window, [0], [1.0])
    add_single_row(window, 0, 2.0)
    add_single_row(window, 0, 3.0)
    add_block(window, [0], [4.0])
    add_single_row(window, 0, 5.0)
    assert window.next_steps[0] == 6
    assert sent_rows(window) == [(0, step, float(step)) for step in range(1, 6)]
    add_single_row(window, 0, 6.0)
    assert sent_rows(window) == [(0, 6, 6.0)]


def test_a_cancelled_caller_keeps_its_timestep() -> None:
    """It is applied all the same, also when its answer is forgotten or it is refused."""
    window = OpenWindow(1)
    callers = [add_single_row(window, 0) for _ in range(3)]
    sent_rows(window)
    sent_rows(window)
    for caller in callers:
        caller.cancelled = True
    respond(window, 1, forgotten=(0,))
    drop(window, *refuse(window, 2, 0))
    assert window.settled
    assert window.next_steps[0] == 3


def test_no_more_of_a_stream_are_in_flight_than_the_server_remembers_answers_for() -> None:
    """Half of them in one message; other streams do not wait."""
    window = OpenWindow(1, 1, window=4)
    add_block(window, [0] * 6 + [1])
    assert [step for stream, step, _ in sent_rows(window) if stream == 0] == [1, 2]
    assert [step for stream, step, _ in sent_rows(window) if stream == 0] == [3, 4]
    assert sent_rows(window) == []
    respond(window, 1)
    assert sent_rows(window) == [(0, 5, 1.0), (0, 6, 1.0)]


def test_a_server_that_remembers_nothing_has_one_of_a_stream_in_flight() -> None:
    """A window of 0 would send nothing at all."""
    window = OpenWindow(1, window=0)
    add_block(window, [0, 0])
    assert sent_rows(window) == [(0, 1, 1.0)]
    assert sent_rows(window) == []


def test_there_is_room_until_so_many_are_not_durable() -> None:
    """Of each stream; what is durable makes room once it is answered."""
    window = OpenWindow(1, 1, buffer_max=2)
    assert window.room(ints(0, 1, 0, 0)) == 3
    add_block(window, [0, 1, 0])
    assert window.room(ints(1, 0)) == 1
    assert (window.has_room(0), window.has_room(1)) == (False, True)
    window.mark_durable(ints(0), ints(1))
    assert window.room(ints(0)) == 0
    assert not window.has_room(0)
    sent_rows(window)
    sent_rows(window)
    respond(window, 1)
    assert window.room(ints(0, 0)) == 1
    assert window.has_room(0)


def test_a_lost_answer_is_requested_again() -> None:
    """The server has applied it. It is sent again as a repeat, and delivered once."""
    window = OpenWindow(1, 1)
    results = add_block(window, [0, 1])
    sent_rows(window)
    window.open_again(2, 1)
    assert sent_rows(window) == [(0, 1, 1.0), (1, 1, 1.0)]
    respond(window, 2)
    assert results.caller.result.steps.tolist() == [1, 1]


def test_what_a_crash_lost_is_sent_again_and_not_delivered_again() -> None:
    """Each stream continues where the server is; rows of several results share a message."""
    window = OpenWindow(1, 1)
    for value in (1.0, 2.0):
        add_block(window, [0, 1], [value, value])
    sent_rows(window)
    respond(window, 1)
    window.open_again(2, 1)
    add_block(window, [1], [3.0])
    assert sent_rows(window) == [(1, 1, 1.0), (0, 2, 2.0), (1, 2, 2.0)]
    assert sent_rows(window) == [(1, 3, 3.0)]
    assert not respond(window, 2).delivered
    assert respond(window, 3).delivered
    assert window.settled


def test_a_stream_is_sent_nothing_of_before_it_is_open_again() -> None:
    """The others continue meanwhile."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1])
    window.end_call()
    assert sent_rows(window) == []
    window.mark_opened(ints(1), ints(1), ints(0), 4)
    assert sent_rows(window) == [(1, 1, 1.0)]
    assert window.idle(ints(0, 1)).tolist() == [False, False]
    window.mark_opened(ints(0), ints(1), ints(0), 4)
    assert sent_rows(window) == [(0, 1, 1.0)]


def test_earlier_timesteps_of_a_resumed_stream_are_not_kept() -> None:
    """It cannot be sent again, though it was never durable. Unanswered timesteps can."""
    window = OpenWindow(7, 1, 1)
    assert window.first_kept(ints(0, 1, 2)).tolist() == [7, 1, 1]
    add_block(window, [0, 1, 1])
    sent_rows(window)
    respond(window, 1, durable=1)
    window.mark_durable(ints(1, 2), ints(2, 5))
    window.mark_durable(ints(1, 2), ints(1, 1))  # which it cannot take back
    assert window.first_kept(ints(0, 1, 2)).tolist() == [7, 3, 1]
    window.open_again(8, durable=7)
    assert window.durable_steps[:3].tolist() == [7, 2, 5]


def test_a_different_answer_to_a_replay_is_reported() -> None:
    """Nothing of that stream is delivered any more; the rows of the other are."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1])
    sent_rows(window)
    respond(window, 1)
    window.open_again(1, 2)
    results = add_block(window, [0, 1])
    sent_rows(window)
    outcome = respond(window, 2, bits=0.25)
    assert list(outcome.diverged) == [0]
    assert isinstance(outcome.diverged[0], Diverged)
    assert results.steps.tolist() == [0, 2]
    window.mark_lost(outcome.diverged)
    assert results.errors == outcome.diverged


def test_answers_are_not_compared_without_batch_invariance() -> None:
    """Its model depends on the batch, as the next open reports."""
    window = OpenWindow(1)
    add_block(window, [0])
    sent_rows(window)
    respond(window, 1)
    window.open_again(1)
    assert window.buffer_of(dataclasses.replace(MODEL, batch_invariant=False), ROWS_MAX) is window.buffer
    sent_rows(window)
    assert not respond(window, 2, bits=0.25).diverged


def test_a_forgotten_answer_is_reported_and_the_timestep_counts() -> None:
    """It keeps its number; the next one follows."""
    window = OpenWindow(1, 1)
    single = add_single_row(window, 1)
    results = add_block(window, [0, 0])
    sent_rows(window)
    respond(window, 1, forgotten=(0, 1))
    assert isinstance(single.error, AnswerLost)
    assert isinstance(results.errors[0], AnswerLost)
    assert (results.steps.tolist(), results.duplicates.tolist()) == ([1, 2], [True, False])
    assert results.columns[0].tolist() == [[0.0], [2.5]]
    assert window.next_steps[:2].tolist() == [3, 2]


def test_a_replay_whose_answer_is_forgotten_is_not_compared() -> None:
    """There is nothing to compare."""
    window = OpenWindow(1)
    add_block(window, [0])
    sent_rows(window)
    respond(window, 1)
    window.open_again(1)
    sent_rows(window)
    assert not respond(window, 2, forgotten=(0,)).diverged


def test_a_refused_timestep_leaves_no_gap() -> None:
    """Later ones of its stream move up, answers to those in flight are ignored, and other streams are not affected."""
    window = OpenWindow(1, 1, window=8)
    results = add_block(window, [0, 1, 0, 0], [1.0, 2.0, -3.0, 4.0])
    behind = add_block(window, [0, 1], [5.0, 6.0])
    sent_rows(window, 4)
    sent_rows(window, 4)
    message, refused = refuse(window, 1, 2, 3)
    assert refused.tolist() == [2]
    gathered = add_single_row(window, 0, 7.0)
    error = drop(window, message, refused)
    assert (results.errors, results.steps.tolist()) == ({2: error}, [1, 1, 0, 0])
    assert sent_rows(window) == [(0, 2, 4.0), (0, 3, 5.0), (0, 4, 7.0)]
    _, ignored = refuse(window, 2, 0)
    assert not len(ignored)
    assert behind.steps.tolist() == [0, 2]
    respond(window, 3)
    assert (results.steps.tolist(), behind.steps.tolist()) == ([1, 1, 0, 2], [3, 2])
    assert gathered.result.step == 4
    assert window.next_steps[:2].tolist() == [5, 3]


def test_refused_timesteps_of_many_streams_are_dropped_at_once() -> None:
    """Each of its own stream."""
    window = OpenWindow(1, 1, 1)
    results = add_block(window, [0, 1, 2, 0, 1, 2], [-1.0, 2.0, -3.0, 4.0, 5.0, 6.0])
    sent_rows(window)
    message, refused = refuse(window, 1, 0, 2, 3, 5)
    assert refused.tolist() == [0, 2]
    drop(window, message, refused)
    assert sent_rows(window) == [(0, 1, 4.0), (2, 1, 6.0)]
    respond(window, 2)
    assert results.steps.tolist() == [0, 1, 0, 1, 2, 1]
    assert window.next_steps[:3].tolist() == [2, 3, 2]


def test_a_timestep_that_is_sent_again_keeps_its_number() -> None:
    """Later ones keep theirs too; meanwhile the stream may be held."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 0])
    sent_rows(window)
    message, refused = refuse(window, 1, 0, 1)
    window.resend(message, refused)
    window.hold(ints(0))
    assert sent_rows(window) == []
    window.release(ints(0))
    assert sent_rows(window) == [(0, 1, 1.0), (0, 2, 1.0)]
    window.hold(ints(0))
    window.open_again(1)
    assert sent_rows(window) == [(0, 1, 1.0), (0, 2, 1.0)]


def test_a_refused_message_is_resent_as_a_whole() -> None:
    """No row of it was applied; later rows of its streams in flight are ignored."""
    window = OpenWindow(1, 1, 1, window=4)
    add_block(window, [0, 1, 1])
    sent_rows(window)
    results = add_block(window, [1, 2])
    sent_rows(window)
    message = window.match_answer(1)
    rows = first_of_each(message, np.flatnonzero(message.at >= 0))
    assert rows.tolist() == [0, 1]
    window.mark_refused(message, rows, np.zeros(len(rows), np.int64))
    window.resend(message, rows)
    refuse(window, 2, 0)
    assert results.steps.tolist() == [0, 1]
    assert sent_rows(window) == [(0, 1, 1.0), (1, 1, 1.0), (1, 2, 1.0)]
    assert sent_rows(window) == [(1, 3, 1.0)]


def test_a_refused_timestep_that_had_been_applied_keeps_its_number() -> None:
    """The next one must not be sent with a used number: it would be answered as a repeat."""
    window = OpenWindow(1)
    results = add_block(window, [0])
    add_block(window, [0], [2.0])
    sent_rows(window, 1)
    message, refused = refuse(window, 1, 0, next_step=2)
    assert window.is_applied(message, refused).tolist() == [True]
    window.skip_applied(message, refused, [AnswerLost("gone", "ANSWER_LOST")])
    assert (results.steps.tolist(), list(results.errors)) == ([1], [0])
    assert sent_rows(window) == [(0, 2, 2.0)]
    window.open_again(1)
    assert sent_rows(window) == [(0, 1, 1.0), (0, 2, 2.0)]
    window.mark_lost({0: TakenOver("by somebody")})
    assert isinstance(results.errors[0], AnswerLost)


def test_after_a_refusal_of_an_applied_timestep_later_ones_may_be_applied_too() -> None:
    """After a disconnect the server is ahead of the refused one, which is no take-over."""
    window = OpenWindow(1, window=8)
    add_block(window, [0, 0, 0])
    sent_rows(window)
    message, refused = refuse(window, 1, 0, next_step=2)
    window.resend(message, refused)
    window.open_again(4)
    assert sent_rows(window) == [(0, 1, 1.0), (0, 2, 1.0), (0, 3, 1.0)]


def test_an_answer_that_was_lost_before_its_repeat_was_refused() -> None:
    """The open has shown that it was applied; after a crash it may be lost."""
    window = OpenWindow(1)
    add_block(window, [0])
    sent_rows(window)
    for number, next_step in ((2, 2), (3, 1)):
        window.open_again(next_step)
        sent_rows(window)
        message, refused = refuse(window, number, 0)
        assert window.is_applied(message, refused).tolist() == [next_step == 2]
        window.resend(message, refused)


def test_an_ignored_answer_shows_what_was_applied() -> None:
    """It keeps its number, whatever becomes of it.

    The first was applied and its answer lost; its repeat is refused for want of room, and the second, behind it, is applied;
    its own repeat is refused too, while the third is on its way.
    """
    window = OpenWindow(1, window=3)
    add_block(window, [0, 0, 0])
    sent_rows(window, 1)
    window.open_again(2)
    sent_rows(window, 1)
    sent_rows(window, 1)
    message, refused = refuse(window, 2, 0)
    window.resend(message, refused)
    sent_rows(window, 1)
    respond(window, 3)
    sent_rows(window, 1)
    respond(window, 4)
    sent_rows(window, 1)
    message, refused = refuse(window, 5, 0)
    assert message.steps.tolist() == [2]
    assert window.is_applied(message, refused).tolist() == [True]


def test_a_replay_is_known_to_have_been_delivered() -> None:
    """It can be neither dropped nor failed."""
    window = OpenWindow(1)
    add_block(window, [0, 0])
    sent_rows(window, 1)
    respond(window, 1)
    window.open_again(1)
    sent_rows(window)
    message, refused = refuse(window, 2, 0, 1)
    assert (message.steps[refused] <= window.answered[message.streams[refused]]).tolist() == [True]


def test_a_group_fails_with_its_first_refused_timestep() -> None:
    """Other groups stay, and queued timesteps of the group fail too."""
    window = OpenWindow(1, 1, window=16)
    group, others = Group(), Group()
    first = add_single_row(window, 0, 1.0, group)
    bad = add_single_row(window, 0, -2.0, group)
    stays = [add_single_row(window, 0, 3.0), add_single_row(window, 0, 4.0, others), add_single_row(window, 1, 5.0)]
    falls = add_single_row(window, 0, 6.0, group)
    sent_rows(window)
    late = add_single_row(window, 0, 7.0, group)
    message, refused = refuse(window, 1, 1, 2, 3, 5)
    error = drop(window, message, refused)
    assert first.result.step == 1
    assert [caller.error for caller in (bad, falls, late)] == [error] * 3
    assert (group.failed, others.failed) == (True, False)
    assert sent_rows(window) == [(0, 2, 3.0), (0, 3, 4.0)]
    assert window.next_steps[0] == 4
    respond(window, 2)
    assert [caller.result.step for caller in stays] == [2, 3, 1]


def test_a_lost_stream_does_not_affect_the_others() -> None:
    """Its callers get the error, later ones too, and answers in flight are ignored."""
    window = OpenWindow(1, 1, window=8)
    waiting = add_block(window, [0, 1, 0])
    sent_rows(window)
    error = TakenOver("by somebody")
    assert window.mark_lost({0: error}) == {0}
    assert window.room(ints(*[0] * 200)) == 200
    coming = add_block(window, [0, 1])
    assert (waiting.errors, coming.errors) == ({0: error, 2: error}, {0: error})
    respond(window, 1)
    assert waiting.steps.tolist() == [0, 1, 0]
    assert sent_rows(window) == [(1, 2, 1.0)]
    respond(window, 2)
    assert window.settled
    assert window.drained
    assert window.usable_count == 1


def test_streams_that_end_together_end_with_the_error_itself() -> None:
    """The caller of many rows gets the error itself, not one for each row."""
    window = OpenWindow(1, 1)
    results = add_block(window, [0, 1])
    window.mark_lost(dict.fromkeys((0, 1), error := StreamLost("the client was closed")), shared=True)
    assert results.caller.error is error


def test_a_closed_stream_takes_no_more() -> None:
    """Its rows have the error."""
    window = OpenWindow(1, 1)
    window.mark_closed([1])
    results = add_block(window, [1])
    assert isinstance(results.errors[0], StreamLost)
    assert (window.open[:2].tolist(), window.usable_count) == ([True, False], 1)


def test_a_caller_cancelled_before_all_its_rows_had_room() -> None:
    """Rows that were added are applied; the others are not."""
    window = OpenWindow(1)
    results = Block(2)
    window.add(window.buffer, results, 0, ints(0), np.ones((1, 1), np.float32))
    window.abandon(results, 1)
    sent_rows(window)
    respond(window, 1)
    assert window.settled
    assert window.next_steps[0] == 2


def test_results_without_rows_are_complete() -> None:
    """At once."""
    window = OpenWindow(1)
    assert len(add_block(window, []).caller.result.steps) == 0
    assert window.settled


def test_an_answer_out_of_turn_is_reported() -> None:
    """The server violates the protocol, so the call ends."""
    window = OpenWindow(1)
    with pytest.raises(StreamLost, match="nothing was in flight"):
        window.match_answer(1)
    add_block(window, [0])
    sent_rows(window)
    with pytest.raises(StreamLost, match="answered block 2, expected 1"):
        window.match_answer(2)


def test_an_answer_with_another_number_is_reported() -> None:
    """The same for a timestep."""
    window = OpenWindow(1)
    add_block(window, [0])
    message = window.next_message()
    assert message is not None
    answers = answers_to(message)._replace(steps=message.steps + 1)
    with pytest.raises(StreamLost, match="answered timestep 2, expected 1"):
        window.settle(window.match_answer(1), answers)


def test_durable_rows_are_removed_by_compaction() -> None:
    """A million timesteps leave the buffer no longer than the kept rows, also with one stuck stream."""
    window = OpenWindow(*[1] * 100)
    stuck = 0
    for step in range(1, 501):
        add_block(window, list(range(100)) if step == 1 else list(range(1, 100)))
        sent_rows(window)
        respond(window, step, durable=step - 2 if step > 2 else 0)
        if step == 2:
            window.durable_steps[stuck] = 0
    assert len(window.buffer) <= 2 * resend_buffer.COMPACT_ROWS_MIN
    assert window.first_kept(ints(stuck)) == 1
    window.end_call()
    window.mark_opened(np.arange(100), np.r_[1, np.full(99, 499)], np.r_[0, np.full(99, 498)], 4)
    assert len(sent_rows(window)) == 1 + 99 * 2
    assert not respond(window, 501).diverged


def test_compaction_moves_rows_in_flight() -> None:
    """Answers find their rows, and unsent rows are still found."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1], [1.0, 2.0])
    sent_rows(window)
    respond(window, 1, durable=1)
    results = add_block(window, [1, 0], [3.0, 4.0])
    sent_rows(window, 1)
    window._compact(window.buffer)
    assert sent_rows(window) == [(0, 2, 4.0)]
    respond(window, 2)
    respond(window, 3)
    assert (results.steps.tolist(), results.columns[0].tolist()) == ([2, 2], [[102.5], [2.5]])


def test_a_stream_that_is_forgotten_begins_again() -> None:
    """At the server's step, whatever was before."""
    window = OpenWindow(1)
    add_block(window, [0])
    sent_rows(window)
    respond(window, 1, durable=1)
    window.reset(ints(0))
    window.open_again(1)
    assert window.next_steps[0] == 1
    assert window.idle(ints(0)).all()


def test_pending_timesteps_fail_at_the_end() -> None:
    """All callers get the error: of sent, unsent and queued timesteps, and of repeats, in flight or not."""
    window = OpenWindow(1, 1)
    done, waiting = add_block(window, [0]), add_block(window, [0, 1])
    sent_rows(window, 1)
    respond(window, 1)
    in_flight = ask_again(window, 0, 1)
    sent_rows(window)
    callers = [in_flight, ask_again(window, 0, 1), add_single_row(window, 1)]
    error = StreamLost("the client was closed")
    assert window.mark_lost(dict.fromkeys((0, 1), error)) == {0, 1}
    assert (done.errors, waiting.errors) == ({}, {0: error, 1: error})
    assert [caller.error for caller in callers] == [error] * 3
    assert window.usable_count == 0


def test_a_stream_that_was_never_opened_raises_the_reason() -> None:
    """Its rows have the error of its open."""
    window = Window(10)
    buffer = window.buffer_of(MODEL, ROWS_MAX)
    window.add_streams(2)
    error: ClientError = StreamNotFound("unknown")
    window.mark_lost({1: error})
    window.mark_opened(ints(0), ints(1), ints(0), 4)
    assert add_block(window, [1, 0], buffer=buffer).errors == {0: error}


def test_a_repeat_is_sent_only_when_its_timestep_is_applied() -> None:
    """After a crash the timestep must be applied first, or it would be applied with the values of the repeat."""
    window = OpenWindow(1)
    add_block(window, [0, 0])
    sent_rows(window)
    respond(window, 1)
    window.open_again(1)
    ask_again(window, 0, 2, 9.0)
    assert sent_rows(window, 1) == [(0, 1, 1.0)]
    respond(window, 2)
    assert sent_rows(window, 1) == [(0, 2, 1.0)]
    assert sent_rows(window) == []
    respond(window, 3)
    assert sent_rows(window) == [(0, 2, 9.0)]


def test_a_repeat_is_resent_after_a_disconnect() -> None:
    """It was in flight when the call ended; unsent ones follow it in their order."""
    window = OpenWindow(5)
    window.answered[0] = 4
    for value in (1.0, 2.0, 3.0):
        ask_again(window, 0, 4, value)
    ask_again(window, 0, 4, 4.0)
    assert sent_rows(window, 2) == [(0, 4, 1.0), (0, 4, 2.0)]
    assert sent_rows(window, 1) == [(0, 4, 3.0)]
    window.open_again(5)
    assert sent_rows(window) == [(0, 4, value) for value in (1.0, 2.0, 3.0, 4.0)]


def test_a_stream_is_idle_without_pending_repeats() -> None:
    """It must not be closed before."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1])
    sent_rows(window)
    assert window.idle(ints(0, 1)).tolist() == [False, False]
    respond(window, 1)
    assert window.idle(ints(0, 1)).tolist() == [True, True]
    ask_again(window, 1, 1)
    assert window.idle(ints(0, 1)).tolist() == [True, False]
    assert window.has_waiters(ints(0, 1)).tolist() == [False, True]
    sent_rows(window)
    assert window.idle(ints(0, 1)).tolist() == [True, False]
    assert window.has_waiters(ints(0, 1)).tolist() == [False, True]


def test_buffers_take_turns() -> None:
    """Each buffer waits for at most one message of the other, and no message has rows of two models."""
    window = OpenWindow(1, 1, window=16)
    other = window.buffer_of(OTHER, ROWS_MAX)
    add_block(window, [0] * 3)
    add_block(window, [1] * 3, buffer=other)
    add_single_row(window, 0)
    add_single_row(window, 1, buffer=other)
    taken = [sent_rows(window, 2) for _ in range(4)]
    assert [{stream for stream, _, _ in rows} for rows in taken] == [{0}, {1}, {0}, {1}]
    assert sent_rows(window) == []


def test_an_index_is_used_again() -> None:
    """The next stream starts without any state; at once when nothing is in flight."""
    window = OpenWindow(5, 1, durable=4)
    add_block(window, [0])
    sent_rows(window)
    respond(window, 1)
    window.hold(ints(0))
    window.mark_lost({0: StreamLost("left")})
    window.release_indices(ints(0))
    assert window.add_streams(1).tolist() == [0]
    assert not window.ever_opened[0]
    window.mark_opened(ints(0), ints(1), ints(0), 4)
    results = add_block(window, [0, 1])
    assert sent_rows(window) == [(0, 1, 1.0), (1, 1, 1.0)]
    respond(window, 2)
    assert results.steps.tolist() == [1, 1]
    assert window.first_kept(ints(0)) == 1


def test_an_answer_to_a_stream_that_has_left_reaches_no_other() -> None:
    """Its index is not reused before everything that was in flight is answered."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1])
    sent_rows(window)
    add_block(window, [1])
    sent_rows(window)
    window.mark_lost({0: StreamLost("left")})
    window.release_indices(ints(0))
    assert window.add_streams(1).tolist() == [2]
    respond(window, 1)
    assert window.add_streams(1).tolist() == [3]
    respond(window, 2)
    assert window.add_streams(1).tolist() == [0]
    window.mark_opened(ints(0), ints(1), ints(0), 4)
    assert window.answered[0] == 0


def test_a_disconnect_frees_indices() -> None:
    """Nothing is in flight any more."""
    window = OpenWindow(1)
    add_block(window, [0])
    sent_rows(window)
    window.mark_lost({0: StreamLost("left")})
    window.release_indices(ints(0))
    window.end_call()
    assert window.add_streams(1).tolist() == [0]


def test_a_repeat_of_a_lost_stream_is_never_sent() -> None:
    """It was in flight when its stream was lost and the call broke, and the index may be reused."""
    window = OpenWindow(2)
    window.answered[0] = 1
    ask_again(window, 0, 1)
    sent_rows(window)
    window.mark_lost({0: StreamLost("left")})
    window.release_indices(ints(0))
    window.end_call()
    assert window.add_streams(1).tolist() == [0]
    window.mark_opened(ints(0), ints(2), ints(1), 4)
    assert sent_rows(window) == []
    assert window.idle(ints(0)).all()


def test_a_refused_repeat_of_a_lost_stream_is_not_resent() -> None:
    """The server had no room for it, and reports that after the stream was lost."""
    window = OpenWindow(2)
    window.answered[0] = 1
    ask_again(window, 0, 1)
    sent_rows(window)
    window.mark_lost({0: StreamLost("lost")})
    (repeat,) = window.match_answer(1).repeats
    window.add_repeat(repeat)
    assert window.drained


def test_a_malformed_repeat_fails_with_all_others() -> None:
    """Its message is no longer in flight when the streams are lost because of it."""
    window = OpenWindow(2)
    window.answered[0] = 1
    caller = ask_again(window, 0, 1)
    sent_rows(window)
    window.match_answer(1)
    window.mark_lost({0: StreamLost("does not fit")})
    assert isinstance(caller.error, StreamLost)


def test_compaction_moves_the_rows_of_the_current_message() -> None:
    """Queued rows are added before a timestep is dropped, and a long buffer is compacted then."""
    window = OpenWindow(1, window=8)
    add_block(window, [0])
    sent_rows(window)
    respond(window, 1, durable=1)
    results = add_block(window, [0, 0, 0], [2.0, -3.0, 4.0])
    sent_rows(window)
    message, refused = refuse(window, 2, 1, 2)
    add_single_row(window, 0, 5.0)
    window.buffer._sweep_at = 0
    error = drop(window, message, refused)
    assert results.errors == {1: error}
    assert sent_rows(window) == [(0, 3, 4.0), (0, 4, 5.0)]


def test_a_single_row_is_settled_on_the_fast_path() -> None:
    """The result is the same as on the slow path."""
    window = OpenWindow(3)
    caller = add_single_row(window, 0)
    message = window.next_message()
    assert isinstance(message, SingleRowMessage)
    assert contents(message) == [(0, 3, 1.0)]
    assert window.match_answer(1) is message
    assert settle_single_row(window, message, durable=2)
    assert (caller.result.step, caller.result["sum"].item(), caller.result.durable_step) == (3, 3.5, 2)
    assert not settle_single_row(window, message)
    assert window.settled
    assert window.idle(ints(0)).all()
    window.open_again(3)
    sent_rows(window)
    assert list(respond(window, 2, bits=0.25).diverged) == [0]


def test_a_malformed_answer_leaves_the_fast_path() -> None:
    """It changes nothing: the caller gets the error of the lost stream."""
    window = OpenWindow(1)
    caller = add_single_row(window, 0)
    message = window.next_message()
    assert isinstance(message, SingleRowMessage)
    window.match_answer(1)
    good = packed(1.0), np.zeros(2).tobytes()
    assert not window.settle_single_row(message, number(2), good, 0)
    for outputs in ([], [good[0]], [good[0], b"1"], [*good, b""]):
        assert not window.settle_single_row(message, number(1), outputs, 0)
    assert not window.settle_single_row(message, number(1), good, 2**64)
    assert (window.answered[0], window.durable_steps[0]) == (0, 0)
    window.mark_lost({0: StreamLost("does not fit")})
    assert isinstance(caller.error, StreamLost)


def test_compaction_moves_a_single_row_in_flight() -> None:
    """The checksum of its answer is stored in its own row."""
    window = OpenWindow(1, 1)
    add_block(window, [0, 1])
    sent_rows(window)
    respond(window, 1, durable=1)
    add_block(window, [1])
    sent_rows(window)
    respond(window, 2)
    add_single_row(window, 0)
    message = window.next_message()
    assert isinstance(message, SingleRowMessage)
    window._compact(window.buffer)
    window.match_answer(3)
    assert settle_single_row(window, message)
    for message_number, bits in ((4, 0.5), (5, 0.25)):
        window.open_again(2, 2)
        sent_rows(window)
        assert sorted(respond(window, message_number, bits=bits).diverged) == ([] if bits == 0.5 else [0, 1])


def test_the_answer_to_a_lost_single_row_is_ignored() -> None:
    """As any other."""
    window = OpenWindow(1)
    add_single_row(window, 0)
    message = window.next_message()
    assert isinstance(message, SingleRowMessage)
    window.mark_lost({0: StreamLost("left")})
    window.match_answer(1)
    assert not settle_single_row(window, message)
    assert not window.settle(message, answers_to(message)).delivered


def test_one_timestep_at_a_time_is_in_flight_while_isolating() -> None:
    """Of all streams together."""
    window = OpenWindow(1, 1)
    window.one_in_flight = True
    add_block(window, [0, 1])
    add_single_row(window, 0)
    assert sent_rows(window) == [(0, 1, 1.0)]
    assert window.unanswered() == {0: 1}
    assert sent_rows(window) == []
    respond(window, 1)
    assert sent_rows(window) == [(1, 1, 1.0)]
    respond(window, 2)
    window.one_in_flight = False
    assert sent_rows(window) == [(0, 2, 1.0)]
