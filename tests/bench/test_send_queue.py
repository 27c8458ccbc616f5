"""The books of a call, against a model of a server that refuses as it likes."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bench.send_queue import GAP, GAP_AFTER_REFUSAL, WITHOUT_RETRY_TIME, Answer, Refusal, SendQueue

FULL = Refusal("OVERLOADED", 0.5)
BROKEN = Refusal("MODEL_FAILED")
APPLIED = Answer()


def send_queue(rows: int = 1, window: int = 4, *, closed_loop: bool = False) -> SendQueue:
    """A lane."""
    return SendQueue(rows, window, closed_loop=closed_loop)


def test_messages_are_numbered_as_they_go() -> None:
    """One after the other, as many under way as the window has."""
    queue = send_queue(window=3)
    for due in (1.0, 2.0, 3.0):
        assert queue.add(due)
    assert [queue.send(0.0), queue.send(0.0), queue.send(0.0)] == [1, 2, 3]
    assert queue.add(4.0)
    assert not queue.ready(9.0)
    outcome = queue.take_answer(APPLIED, 9.0)
    assert (outcome.due, outcome.applied) == (1.0, 1)
    assert queue.ready(9.0)
    assert queue.send(0.0) == 4


def test_what_is_due_beyond_the_window_is_not_taken_in() -> None:
    """So a server that stands still costs its clients no memory."""
    queue = send_queue(window=2)
    assert [queue.add(due) for due in (1.0, 2.0, 3.0)] == [True, True, False]


def test_latency_counts_from_when_it_was_due_though_it_was_refused() -> None:
    """In a closed loop the same timestep goes again, after the pause that was asked for, with its old due time."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    assert queue.send(0.0) == 1
    outcome = queue.take_answer(Answer(refused=FULL), 2.0)
    assert (outcome.done, outcome.retried, outcome.refused) == (False, {"OVERLOADED": 1}, None)
    assert not queue.ready(2.4)
    assert queue.ready(2.5)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 3.0).due == 1.0


def test_when_a_timestep_was_sent_last_is_known() -> None:
    """Not when it was due, and not when it was sent before it was refused."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(1.25)
    assert queue.take_answer(Answer(refused=FULL), 2.0).sent == 1.25
    queue.send(2.5)
    outcome = queue.take_answer(APPLIED, 3.0)
    assert (outcome.due, outcome.sent) == (1.0, 2.5)


def test_a_refusal_that_does_not_say_when_there_is_room_goes_by_another_name() -> None:
    """Whoever counts refusals can tell them apart."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(1.0)
    assert queue.take_answer(Answer(refused=Refusal("OVERLOADED")), 2.0).retried == {
        "OVERLOADED" + WITHOUT_RETRY_TIME: 1
    }


def test_in_an_open_loop_a_refused_timestep_is_let_go() -> None:
    """It is counted by its reason, and the next goes with its number and without a pause."""
    queue = send_queue()
    queue.add(1.0)
    queue.add(2.0)
    queue.send(0.0)
    outcome = queue.take_answer(Answer(refused=FULL), 1.5)
    assert (outcome.done, outcome.refused) == (True, {"OVERLOADED": 1})
    assert queue.ready(1.5)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 3.0).due == 2.0


def test_what_was_behind_a_refused_timestep_goes_again_in_order_once_all_have_come_back() -> None:
    """With the numbers that the stream now expects; nothing new overtakes them."""
    queue = send_queue()
    for due in (1.0, 2.0, 3.0):
        queue.add(due)
    assert [queue.send(0.0), queue.send(0.0), queue.send(0.0)] == [1, 2, 3]
    queue.take_answer(Answer(refused=BROKEN), 3.0)
    assert queue.expected_number() == 2
    queue.add(4.0)
    assert not queue.ready(3.0)
    assert queue.take_answer(Answer(refused=Refusal(GAP)), 3.0).done is False
    assert not queue.ready(3.0)
    assert queue.take_answer(Answer(refused=Refusal(GAP)), 3.0).retried == {GAP: 1}
    assert [queue.send(0.0), queue.send(0.0), queue.send(0.0)] == [1, 2, 3]
    assert [queue.take_answer(APPLIED, 5.0).due for _ in range(3)] == [2.0, 3.0, 4.0]


def test_a_gap_that_follows_from_nothing_is_a_failure() -> None:
    """It does not go again for ever."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(0.0)
    assert queue.take_answer(Answer(refused=Refusal(GAP)), 2.0).refused == {GAP: 1}


def test_a_refused_row_waits_for_the_next_message_and_keeps_when_it_was_due() -> None:
    """Its number is one behind the others from then on."""
    queue = send_queue(rows=3, closed_loop=True)
    queue.add(1.0)
    queue.send(0.0)
    outcome = queue.take_answer(Answer(rows={1: FULL}), 2.0)
    assert (outcome.applied, outcome.retried, outcome.late_due, outcome.done) == (2, {"OVERLOADED": 1}, (), True)
    assert queue.lags == {1: 1}
    queue.add(2.0)
    assert not queue.ready(2.0)
    assert queue.send(0.0) == 2
    outcome = queue.take_answer(APPLIED, 4.0)
    assert (outcome.due, outcome.applied, outcome.late_due) == (2.0, 3, (1.0,))


def test_a_block_behind_one_that_was_refused_as_a_whole_goes_again_as_a_whole() -> None:
    """Its rows come back as gaps, every one; also in an open loop nothing of it is let go."""
    queue = send_queue(rows=2)
    queue.add(1.0)
    queue.add(2.0)
    assert [queue.send(0.0), queue.send(0.0)] == [1, 2]
    assert queue.take_answer(Answer(refused=FULL), 3.0).refused == {"OVERLOADED": 2}
    outcome = queue.take_answer(Answer(rows={0: Refusal(GAP), 1: Refusal(GAP)}), 3.0)
    assert (outcome.done, outcome.retried, outcome.refused) == (False, {GAP: 2}, None)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 4.0).due == 2.0


def test_in_an_open_loop_a_row_behind_a_refused_one_is_let_go_by_a_name_of_its_own() -> None:
    """It is no failure of its own, and the refusal before it is counted already."""
    queue = send_queue(rows=2)
    queue.add(1.0)
    queue.add(2.0)
    queue.send(0.0)
    queue.send(0.0)
    assert queue.take_answer(Answer(rows={0: FULL}), 3.0).refused == {"OVERLOADED": 1}
    assert queue.take_answer(Answer(rows={0: Refusal(GAP)}), 3.0).refused == {GAP_AFTER_REFUSAL: 1}
    assert queue.lags == {0: 2}


def test_what_is_given_up_is_told_with_its_rows() -> None:
    """Under way, waiting and rows that were to go again; then nothing waits."""
    queue = send_queue(rows=3, window=2, closed_loop=True)
    queue.add(1.0)
    queue.send(0.0)
    queue.take_answer(Answer(rows={0: FULL}), 2.0)
    queue.add(2.0)
    queue.send(0.0)
    queue.add(3.0)
    assert sorted(queue.abandon()) == [(1.0, 1), (2.0, 3), (3.0, 3)]
    assert not queue.ready(99.0)


class ModelServer:
    """Applies timesteps that have their right number, or refuses them as `whims` say; answers in order.

    Fails the test on a duplicate, and on a gap that does not follow from a refusal while the message was under way.
    """

    def __init__(self, rows: int, whims: list[list[str]]) -> None:
        self.applied = [0] * rows
        self._rows = rows
        self._whims = [iter(whims[row % len(whims)]) for row in range(rows)]
        self._whole = iter(whims[-1])
        self.in_flight: deque[tuple[list[int], set[int]]] = deque()  # numbers, and rows refused since they were sent

    def take(self, steps: list[int]) -> None:
        """A message is sent."""
        self.in_flight.append((steps, set()))

    def answer(self) -> Answer:
        """The verdict on the first message under way."""
        steps, shaken = self.in_flight.popleft()
        if self._rows > 1 and not shaken and next(self._whole, "apply") == "full":
            self._shake(set(range(self._rows)))
            return Answer(refused=FULL)
        refused = {row: refusal for row, step in enumerate(steps) if (refusal := self._step(row, step, shaken))}
        self._shake({row for row, refusal in refused.items() if refusal.reason != GAP})
        # A stream on a call of its own is refused as a whole.
        return Answer(refused=refused[0]) if self._rows == 1 and refused else Answer(rows=refused)

    def _step(self, row: int, step: int, shaken: set[int]) -> Refusal | None:
        assert step > self.applied[row], "a duplicate"
        if step > self.applied[row] + 1:
            assert row in shaken, "a gap that follows from nothing"
            return Refusal(GAP)
        whim = next(self._whims[row], "apply")
        if whim == "apply":
            self.applied[row] = step
        return {"apply": None, "full": FULL, "broken": BROKEN}[whim]

    def _shake(self, rows: set[int]) -> None:
        for _, shaken in self.in_flight:
            shaken.update(rows)


WHIMS = st.lists(st.sampled_from(["apply", "apply", "full", "broken"]), min_size=5, max_size=30)
ACTIONS = st.lists(st.sampled_from(["due", "due", "send", "send", "answer"]), min_size=40, max_size=150)


@given(st.booleans(), st.integers(1, 5), st.integers(1, 4), st.lists(WHIMS, min_size=1, max_size=3), ACTIONS)
@settings(deadline=None)  # on a busy machine any example may stand still for a while
def test_numbers_have_no_holes_whatever_is_refused_and_whenever_it_is_answered(
    closed_loop: bool, rows: int, window: int, whims: list[list[str]], actions: list[str]
) -> None:
    """Every timestep is applied once, or let go and counted; what is applied is what is counted."""
    queue, server = send_queue(rows, window, closed_loop=closed_loop), ModelServer(rows, whims)
    taken_in = answered = dropped = 0
    for now, action in enumerate(actions):
        if action == "due":
            taken_in += queue.add(float(now))
        elif action == "send" and queue.ready(now):
            number = queue.send(0.0)
            server.take([number - queue.lags.get(row, 0) for row in range(rows)])
        elif action == "answer" and server.in_flight:
            outcome = queue.take_answer(server.answer(), now)
            answered += outcome.applied
            dropped += sum((outcome.refused or {}).values())
            assert answered == sum(server.applied)
    given_up = sum(count for _, count in queue.abandon())
    if rows == 1 or not closed_loop:  # in a closed loop a row that goes again does so in the place of its next
        assert answered + dropped + given_up == rows * taken_in
