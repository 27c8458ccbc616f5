"""What a client's window keeps and sends again: lost answers, replays after a crash, repeats; and how its buffer shrinks."""

import dataclasses

import numpy as np

from tests.client.windows import (
    MODEL,
    ROWS_MAX,
    OpenWindow,
    add_block,
    add_single_row,
    ask_again,
    drop,
    ints,
    refuse,
    respond,
    sent_rows,
    settle_single_row,
)
from tidegate.client import resend_buffer
from tidegate.client.errors import AnswerLost, Diverged, StreamLost
from tidegate.client.message import SingleRowMessage


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


# Repeats ---------------------------------------------------------------------------------------------------------------


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


# Compaction ------------------------------------------------------------------------------------------------------------


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
