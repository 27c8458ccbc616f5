"""Refused timesteps in a client's window: what moves up, what is sent again, and what is known to be applied."""

import numpy as np

from tests.client.windows import OpenWindow, add_block, add_single_row, drop, ints, refuse, respond, sent_rows
from tidegate.client.errors import AnswerLost, TakenOver
from tidegate.client.results import Group
from tidegate.client.window import first_of_each


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
