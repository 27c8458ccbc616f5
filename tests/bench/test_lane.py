"""The books of a call, against a model of a server that refuses as it likes."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bench.lane import FOLLOWING_GAP, GAP, NO_TIME, Lane, Refusal, Verdict

FULL = Refusal("OVERLOADED", 0.5)
BROKEN = Refusal("MODEL_FAILED")
APPLIED = Verdict()


def lane(rows: int = 1, window: int = 4, *, closed: bool = False) -> Lane:
    """A lane."""
    return Lane(rows, window, closed=closed)


def test_messages_are_numbered_as_they_go() -> None:
    """One after the other, as many under way as the window has."""
    books = lane(window=3)
    for due in (1.0, 2.0, 3.0):
        assert books.add(due)
    assert [books.send(0.0), books.send(0.0), books.send(0.0)] == [1, 2, 3]
    assert books.add(4.0)
    assert not books.ready(9.0)
    outcome = books.settle(APPLIED, 9.0)
    assert (outcome.due, outcome.applied) == (1.0, 1)
    assert books.ready(9.0)
    assert books.send(0.0) == 4


def test_what_is_due_beyond_the_window_is_not_taken_in() -> None:
    """So a server that stands still costs its clients no memory."""
    books = lane(window=2)
    assert [books.add(due) for due in (1.0, 2.0, 3.0)] == [True, True, False]


def test_latency_counts_from_when_it_was_due_though_it_was_refused() -> None:
    """In a closed loop the same timestep goes again, after the pause that was asked for, with its old due time."""
    books = lane(closed=True)
    books.add(1.0)
    assert books.send(0.0) == 1
    outcome = books.settle(Verdict(refused=FULL), 2.0)
    assert (outcome.over, outcome.again, outcome.refused) == (False, {"OVERLOADED": 1}, None)
    assert not books.ready(2.4)
    assert books.ready(2.5)
    assert books.send(0.0) == 1
    assert books.settle(APPLIED, 3.0).due == 1.0


def test_when_a_timestep_was_sent_last_is_known() -> None:
    """Not when it was due, and not when it was sent before it was refused."""
    books = lane(closed=True)
    books.add(1.0)
    books.send(1.25)
    assert books.settle(Verdict(refused=FULL), 2.0).sent == 1.25
    books.send(2.5)
    outcome = books.settle(APPLIED, 3.0)
    assert (outcome.due, outcome.sent) == (1.0, 2.5)


def test_a_refusal_that_does_not_say_when_there_is_room_goes_by_another_name() -> None:
    """Whoever counts refusals can tell them apart."""
    books = lane(closed=True)
    books.add(1.0)
    books.send(1.0)
    assert books.settle(Verdict(refused=Refusal("OVERLOADED")), 2.0).again == {"OVERLOADED" + NO_TIME: 1}


def test_in_an_open_loop_a_refused_timestep_is_let_go() -> None:
    """It is counted by its reason, and the next goes with its number and without a pause."""
    books = lane()
    books.add(1.0)
    books.add(2.0)
    books.send(0.0)
    outcome = books.settle(Verdict(refused=FULL), 1.5)
    assert (outcome.over, outcome.refused) == (True, {"OVERLOADED": 1})
    assert books.ready(1.5)
    assert books.send(0.0) == 1
    assert books.settle(APPLIED, 3.0).due == 2.0


def test_what_was_behind_a_refused_timestep_goes_again_in_order_once_all_have_come_back() -> None:
    """With the numbers that the stream now expects; nothing new overtakes them."""
    books = lane()
    for due in (1.0, 2.0, 3.0):
        books.add(due)
    assert [books.send(0.0), books.send(0.0), books.send(0.0)] == [1, 2, 3]
    books.settle(Verdict(refused=BROKEN), 3.0)
    assert books.expected() == 2
    books.add(4.0)
    assert not books.ready(3.0)
    assert books.settle(Verdict(refused=Refusal(GAP)), 3.0).over is False
    assert not books.ready(3.0)
    assert books.settle(Verdict(refused=Refusal(GAP)), 3.0).again == {GAP: 1}
    assert [books.send(0.0), books.send(0.0), books.send(0.0)] == [1, 2, 3]
    assert [books.settle(APPLIED, 5.0).due for _ in range(3)] == [2.0, 3.0, 4.0]


def test_a_gap_that_follows_from_nothing_is_a_failure() -> None:
    """It does not go again for ever."""
    books = lane(closed=True)
    books.add(1.0)
    books.send(0.0)
    assert books.settle(Verdict(refused=Refusal(GAP)), 2.0).refused == {GAP: 1}


def test_a_refused_row_waits_for_the_next_message_and_keeps_when_it_was_due() -> None:
    """Its number is one behind the others from then on."""
    books = lane(rows=3, closed=True)
    books.add(1.0)
    books.send(0.0)
    outcome = books.settle(Verdict(rows={1: FULL}), 2.0)
    assert (outcome.applied, outcome.again, outcome.late, outcome.over) == (2, {"OVERLOADED": 1}, (), True)
    assert books.behind == {1: 1}
    books.add(2.0)
    assert not books.ready(2.0)
    assert books.send(0.0) == 2
    outcome = books.settle(APPLIED, 4.0)
    assert (outcome.due, outcome.applied, outcome.late) == (2.0, 3, (1.0,))


def test_a_block_behind_one_that_was_refused_as_a_whole_goes_again_as_a_whole() -> None:
    """Its rows come back as gaps, every one; also in an open loop nothing of it is let go."""
    books = lane(rows=2)
    books.add(1.0)
    books.add(2.0)
    assert [books.send(0.0), books.send(0.0)] == [1, 2]
    assert books.settle(Verdict(refused=FULL), 3.0).refused == {"OVERLOADED": 2}
    outcome = books.settle(Verdict(rows={0: Refusal(GAP), 1: Refusal(GAP)}), 3.0)
    assert (outcome.over, outcome.again, outcome.refused) == (False, {GAP: 2}, None)
    assert books.send(0.0) == 1
    assert books.settle(APPLIED, 4.0).due == 2.0


def test_in_an_open_loop_a_row_behind_a_refused_one_is_let_go_by_a_name_of_its_own() -> None:
    """It is no failure of its own, and the refusal before it is counted already."""
    books = lane(rows=2)
    books.add(1.0)
    books.add(2.0)
    books.send(0.0)
    books.send(0.0)
    assert books.settle(Verdict(rows={0: FULL}), 3.0).refused == {"OVERLOADED": 1}
    assert books.settle(Verdict(rows={0: Refusal(GAP)}), 3.0).refused == {FOLLOWING_GAP: 1}
    assert books.behind == {0: 2}


def test_what_is_given_up_is_told_with_its_rows() -> None:
    """Under way, waiting and rows that were to go again; then nothing waits."""
    books = lane(rows=3, window=2, closed=True)
    books.add(1.0)
    books.send(0.0)
    books.settle(Verdict(rows={0: FULL}), 2.0)
    books.add(2.0)
    books.send(0.0)
    books.add(3.0)
    assert sorted(books.abandon()) == [(1.0, 1), (2.0, 3), (3.0, 3)]
    assert not books.ready(99.0)


class ModelServer:
    """Applies timesteps that have their right number, or refuses them as `whims` say; answers in order.

    Fails the test on a duplicate, and on a gap that does not follow from a refusal while the message was under way.
    """

    def __init__(self, rows: int, whims: list[list[str]]) -> None:
        self.applied = [0] * rows
        self._rows = rows
        self._whims = [iter(whims[row % len(whims)]) for row in range(rows)]
        self._whole = iter(whims[-1])
        self.under_way: deque[tuple[list[int], set[int]]] = deque()  # numbers, and rows refused since they were sent

    def take(self, steps: list[int]) -> None:
        """A message is sent."""
        self.under_way.append((steps, set()))

    def answer(self) -> Verdict:
        """The verdict on the first message under way."""
        steps, shaken = self.under_way.popleft()
        if self._rows > 1 and not shaken and next(self._whole, "apply") == "full":
            self._shake(set(range(self._rows)))
            return Verdict(refused=FULL)
        refused = {row: refusal for row, step in enumerate(steps) if (refusal := self._step(row, step, shaken))}
        self._shake({row for row, refusal in refused.items() if refusal.reason != GAP})
        # A stream on a call of its own is refused as a whole.
        return Verdict(refused=refused[0]) if self._rows == 1 and refused else Verdict(rows=refused)

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
        for _, shaken in self.under_way:
            shaken.update(rows)


WHIMS = st.lists(st.sampled_from(["apply", "apply", "full", "broken"]), min_size=5, max_size=30)
ACTIONS = st.lists(st.sampled_from(["due", "due", "send", "send", "answer"]), min_size=40, max_size=150)


@given(st.booleans(), st.integers(1, 5), st.integers(1, 4), st.lists(WHIMS, min_size=1, max_size=3), ACTIONS)
@settings(deadline=None)  # on a busy machine any example may stand still for a while
def test_numbers_have_no_holes_whatever_is_refused_and_whenever_it_is_answered(
    closed: bool, rows: int, window: int, whims: list[list[str]], actions: list[str]
) -> None:
    """Every timestep is applied once, or let go and counted; what is applied is what is counted."""
    books, server = lane(rows, window, closed=closed), ModelServer(rows, whims)
    taken_in = answered = let_go = 0
    for now, action in enumerate(actions):
        if action == "due":
            taken_in += books.add(float(now))
        elif action == "send" and books.ready(now):
            number = books.send(0.0)
            server.take([number - books.behind.get(row, 0) for row in range(rows)])
        elif action == "answer" and server.under_way:
            outcome = books.settle(server.answer(), now)
            answered += outcome.applied
            let_go += sum((outcome.refused or {}).values())
            assert answered == sum(server.applied)
    given_up = sum(count for _, count in books.abandon())
    if rows == 1 or not closed:  # in a closed loop a row that goes again does so in the place of its next
        assert answered + let_go + given_up == rows * taken_in
