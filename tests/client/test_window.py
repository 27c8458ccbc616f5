"""A client's window: numbers, what to send next, which answer belongs to what. No network, so every interleaving is one line."""

import numpy as np
import pytest

from tests.client.windows import (
    MODEL,
    OTHER,
    ROWS_MAX,
    Block,
    OpenWindow,
    add_block,
    add_single_row,
    answers_to,
    ask_again,
    contents,
    drop,
    ints,
    packed,
    refuse,
    respond,
    sent_rows,
    settle_single_row,
)
from tidegate.client.errors import ClientError, StreamLost, StreamNotFound, TakenOver
from tidegate.client.message import SingleRowMessage
from tidegate.client.window import Window


def number(step: int) -> bytes:
    """A number as on the wire."""
    return ints(step).tobytes()


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
