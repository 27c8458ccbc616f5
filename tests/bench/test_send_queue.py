"""The send queue of a call, against a model of a server that refuses at random."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.send_queue import GAP, GAP_AFTER_REFUSAL, WITHOUT_RETRY_TIME, Answer, Refusal, SendQueue

FULL = Refusal("OVERLOADED", 0.5)
BROKEN = Refusal("MODEL_FAILED")
APPLIED = Answer()


def send_queue(rows: int = 1, window: int = 4, *, closed_loop: bool = False) -> SendQueue:
    """Makes a send queue."""
    return SendQueue(rows, window, closed_loop=closed_loop)


def test_messages_are_numbered_as_they_go() -> None:
    """Consecutively, and at most `window` are in flight."""
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


def test_messages_beyond_the_window_are_dropped() -> None:
    """So a server that stalls costs its clients no memory."""
    queue = send_queue(window=2)
    assert [queue.add(due) for due in (1.0, 2.0, 3.0)] == [True, True, False]


def test_a_refused_timestep_keeps_its_due_time() -> None:
    """In a closed loop the timestep is sent again after the requested pause, with its first due time."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    assert queue.send(0.0) == 1
    outcome = queue.take_answer(Answer(refused=FULL), 2.0)
    assert (outcome.done, outcome.retried, outcome.refused) == (False, {"OVERLOADED": 1}, None)
    assert not queue.ready(2.4)
    assert queue.ready(2.5)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 3.0).due == 1.0


def test_the_time_of_the_last_attempt_is_known() -> None:
    """It is neither the due time nor the time of the refused attempt."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(1.25)
    assert queue.take_answer(Answer(refused=FULL), 2.0).sent == 1.25
    queue.send(2.5)
    outcome = queue.take_answer(APPLIED, 3.0)
    assert (outcome.due, outcome.sent) == (1.0, 2.5)


def test_a_refusal_without_a_retry_time_has_its_own_reason() -> None:
    """So the counts tell the two kinds apart."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(1.0)
    assert queue.take_answer(Answer(refused=Refusal("OVERLOADED")), 2.0).retried == {
        "OVERLOADED" + WITHOUT_RETRY_TIME: 1
    }


def test_an_open_loop_drops_a_refused_timestep() -> None:
    """It is counted by its reason. The next one takes its number, without a pause."""
    queue = send_queue()
    queue.add(1.0)
    queue.add(2.0)
    queue.send(0.0)
    outcome = queue.take_answer(Answer(refused=FULL), 1.5)
    assert (outcome.done, outcome.refused) == (True, {"OVERLOADED": 1})
    assert queue.ready(1.5)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 3.0).due == 2.0


def test_timesteps_after_a_refused_one_are_sent_again_in_order() -> None:
    """With the numbers that the stream now expects. No new timestep overtakes them."""
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


def test_a_gap_without_a_refusal_before_it_is_a_failure() -> None:
    """It is not sent again for ever."""
    queue = send_queue(closed_loop=True)
    queue.add(1.0)
    queue.send(0.0)
    assert queue.take_answer(Answer(refused=Refusal(GAP)), 2.0).refused == {GAP: 1}


def test_a_refused_row_waits_for_the_next_message_and_keeps_its_due_time() -> None:
    """From then on its number is one behind the others."""
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


def test_a_block_after_a_refused_block_is_sent_again() -> None:
    """All its rows are gaps. Even an open loop drops none of them."""
    queue = send_queue(rows=2)
    queue.add(1.0)
    queue.add(2.0)
    assert [queue.send(0.0), queue.send(0.0)] == [1, 2]
    assert queue.take_answer(Answer(refused=FULL), 3.0).refused == {"OVERLOADED": 2}
    outcome = queue.take_answer(Answer(rows={0: Refusal(GAP), 1: Refusal(GAP)}), 3.0)
    assert (outcome.done, outcome.retried, outcome.refused) == (False, {GAP: 2}, None)
    assert queue.send(0.0) == 1
    assert queue.take_answer(APPLIED, 4.0).due == 2.0


def test_in_an_open_loop_a_row_after_a_refused_one_has_its_own_reason() -> None:
    """It is not a failure itself, and the refusal before it is counted already."""
    queue = send_queue(rows=2)
    queue.add(1.0)
    queue.add(2.0)
    queue.send(0.0)
    queue.send(0.0)
    assert queue.take_answer(Answer(rows={0: FULL}), 3.0).refused == {"OVERLOADED": 1}
    assert queue.take_answer(Answer(rows={0: Refusal(GAP)}), 3.0).refused == {GAP_AFTER_REFUSAL: 1}
    assert queue.lags == {0: 2}


def test_abandon_returns_everything_unanswered() -> None:
    """In flight, waiting, and rows that were to be sent again. Then nothing waits."""
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
    """Applies timesteps that have the right number, or refuses them as `whims` say; answers in order.

    Fails the test on a duplicate, and on a gap without a refusal while the message was in flight.
    """

    def __init__(self, rows: int, whims: list[list[str]]) -> None:
        self.applied = [0] * rows
        self._rows = rows
        self._whims = [iter(whims[row % len(whims)]) for row in range(rows)]
        self._whole = iter(whims[-1])
        self.in_flight: deque[tuple[list[int], set[int]]] = (
            deque()
        )  # numbers, and rows that were refused in the meantime

    def take(self, steps: list[int]) -> None:
        """Takes a message."""
        self.in_flight.append((steps, set()))

    def answer(self) -> Answer:
        """Answers the oldest message in flight."""
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
            assert row in shaken, "a gap without a refusal before it"
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
def test_numbers_are_consecutive_whatever_is_refused(
    closed_loop: bool, rows: int, window: int, whims: list[list[str]], actions: list[str]
) -> None:
    """Every timestep is applied once, or dropped and counted. The counts equal what was applied."""
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
    if rows == 1 or not closed_loop:  # in a closed loop a retried row takes the place of its next timestep
        assert answered + dropped + given_up == rows * taken_in
