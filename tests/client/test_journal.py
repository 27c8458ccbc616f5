"""A client's books: which number, what next, whose answer. No network, so every interleaving is one line."""

import zlib
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from serving.client.journal import Entry, Group, Journal

from serving.client.errors import Diverged, StreamLost


def journal_at(next_step: int = 1, *, durable: int = 0, window: int = 4) -> Journal:
    """Books on a stream that was just opened."""
    journal = Journal()
    journal.begin(next_step, durable, window)
    return journal


def add(journal: Journal, *names: str, group: Group | None = None) -> None:
    """Puts timesteps in line; a name is both values and ticket."""
    for name in names:
        journal.add(Entry(name.encode(), name, group))


def take_all(journal: Journal) -> list[tuple[int, str]]:
    """What may be sent now."""
    taken = []
    while (one := journal.take()) is not None:
        taken.append((one[0], one[1].decode()))
    return taken


def answer(journal: Journal, step: int, output: bytes = b"out") -> str | None:
    """Whose answer that is."""
    entry = journal.predicted(step, [output], comparable=True)
    return None if entry is None else entry.ticket


def test_timesteps_are_numbered_in_the_order_they_came() -> None:
    """The first gets the number that the server expects."""
    journal = journal_at(7)
    add(journal, "a", "b")
    assert journal.next_step == 9
    assert take_all(journal) == [(7, "a"), (8, "b")]


def test_no_more_are_under_way_than_the_server_remembers_answers_for() -> None:
    """An answer makes room for one more."""
    journal = journal_at(window=2)
    add(journal, "a", "b", "c")
    assert take_all(journal) == [(1, "a"), (2, "b")]
    assert answer(journal, 1) == "a"
    assert take_all(journal) == [(3, "c")]


def test_a_server_that_remembers_nothing_has_one_under_way() -> None:
    """A window of 0 would send nothing at all."""
    journal = journal_at(window=0)
    add(journal, "a", "b")
    assert take_all(journal) == [(1, "a")]


def test_what_is_durable_and_answered_leaves_the_line() -> None:
    """And how many did, so that there is room for as many."""
    journal = journal_at()
    add(journal, "a", "b", "c")
    take_all(journal)
    answer(journal, 1)
    answer(journal, 2)
    assert journal.durable(3) == 2  # the answer of 3 is not here yet
    assert journal.durable(2) == 0  # it never goes back
    assert journal.durable_step == 3
    answer(journal, 3)
    assert journal.durable(3) == 1


def test_a_line_that_begins_again_is_empty() -> None:
    """As when a stream is opened only to be forgotten."""
    journal = journal_at()
    add(journal, "a", "b")
    take_all(journal)
    answer(journal, 1)
    journal.begin(1, 0, 4)
    assert (journal.first_step, journal.next_step, journal.idle) == (1, 1, True)


def test_a_lost_answer_is_had_again() -> None:
    """The server applied it: it is sent again as a repeat, and handed over once."""
    journal = journal_at()
    add(journal, "a", "b")
    take_all(journal)
    answer(journal, 1)
    journal.resume(3, 4)
    assert take_all(journal) == [(2, "b")]
    assert answer(journal, 2) == "b"
    assert journal.idle


def test_what_a_crash_took_is_sent_again_and_not_handed_over_again() -> None:
    """From where the server goes on; the new ones come after it."""
    journal = journal_at()
    add(journal, "a", "b", "c")
    take_all(journal)
    for step in (1, 2):
        answer(journal, step)
    journal.resume(2, 4)
    assert take_all(journal) == [(2, "b"), (3, "c")]
    assert answer(journal, 2) is None
    assert answer(journal, 3) == "c"


def test_a_different_answer_to_a_replay_is_told() -> None:
    """What was delivered is not what the server goes on from."""
    journal = journal_at()
    add(journal, "a")
    take_all(journal)
    answer(journal, 1, b"one")
    journal.resume(1, 4)
    take_all(journal)
    with pytest.raises(Diverged, match="timestep 1, sent again"):
        answer(journal, 1, b"other")


def test_a_server_that_promises_no_bits_is_not_held_to_them() -> None:
    """Its model depends on the batch, and it says so."""
    journal = journal_at()
    add(journal, "a")
    take_all(journal)
    answer(journal, 1, b"one")
    journal.resume(1, 4)
    take_all(journal)
    assert journal.predicted(1, [b"other"], comparable=False) is None


def test_a_refused_timestep_leaves_no_hole() -> None:
    """Those behind it move up; what the server says to those under way is ignored."""
    journal = journal_at()
    add(journal, "a", "bad", "c")
    take_all(journal)
    assert answer(journal, 1) == "a"
    entry = journal.refused(2, 2)
    assert entry is not None
    assert journal.give_up(2, entry) == [entry]
    assert take_all(journal) == [(2, "c")]
    assert journal.refused(3, 2) is None
    assert answer(journal, 2) == "c"
    assert journal.next_step == 3


def test_a_timestep_that_is_sent_again_keeps_its_number() -> None:
    """And those behind it theirs."""
    journal = journal_at()
    add(journal, "a", "b")
    take_all(journal)
    assert journal.refused(1, 1) is not None
    journal.send_again(1)
    assert take_all(journal) == [(1, "a"), (2, "b")]
    assert journal.refused(2, 1) is None
    assert [answer(journal, 1), answer(journal, 2)] == ["a", "b"]


def test_a_refused_timestep_that_had_been_applied_keeps_its_number() -> None:
    """The next one must not be sent under a number that is taken: it would be answered as a repeat."""
    journal = journal_at()
    add(journal, "a", "b")
    assert journal.take() == (1, b"a")
    entry = journal.refused(1, 2)
    assert entry is not None
    assert journal.give_up(1, entry) == [entry]
    assert take_all(journal) == [(2, "b")]
    journal.resume(1, 4)
    assert take_all(journal) == [(1, "a"), (2, "b")]


def test_after_a_refusal_of_an_applied_timestep_those_behind_may_be_applied_too() -> None:
    """A break then finds the server ahead of the refused one, and that is no other client's doing."""
    journal = journal_at()
    add(journal, "a", "b", "c")
    take_all(journal)
    assert journal.refused(1, 2) is not None
    journal.send_again(1)
    journal.resume(4, 4)
    assert take_all(journal) == [(1, "a"), (2, "b"), (3, "c")]


def test_a_replay_that_is_refused_for_good_is_told() -> None:
    """Its answer was delivered, so it cannot be given up."""
    journal = journal_at()
    add(journal, "a")
    take_all(journal)
    answer(journal, 1)
    journal.resume(1, 4)
    take_all(journal)
    entry = journal.refused(1, 1)
    assert entry is not None
    with pytest.raises(Diverged, match="refused now"):
        journal.give_up(1, entry)


def test_a_group_falls_with_its_first_refused() -> None:
    """Those of others stay in line."""
    journal = journal_at()
    group = Group()
    add(journal, "a", "bad", group=group)
    add(journal, "other")
    add(journal, "d", group=group)
    take_all(journal)
    answer(journal, 1)
    entry = journal.refused(2, 2)
    assert entry is not None
    assert [fallen.ticket for fallen in journal.give_up(2, entry)] == ["bad", "d"]
    assert group.fallen
    assert take_all(journal) == [(2, "other")]


def test_an_old_answer_is_asked_for_only_when_the_server_has_it() -> None:
    """After a crash the timestep is applied first: asked for too early, it would be applied with other values."""
    journal = journal_at()
    add(journal, "a", "b")
    take_all(journal)
    answer(journal, 1)
    answer(journal, 2)
    journal.resume(1, 4)
    journal.ask_again(Entry(b"?", "again", repeat=2))
    assert take_all(journal) == [(1, "a"), (2, "b")]
    assert answer(journal, 1) is None
    assert take_all(journal) == []
    assert answer(journal, 2) is None
    assert take_all(journal) == [(2, "?")]
    assert answer(journal, 2) == "again"


def test_a_question_that_a_break_took_is_asked_again() -> None:
    """It was under way when the call ended."""
    journal = journal_at(5)
    journal.ask_again(Entry(b"?", "again", repeat=4))
    assert take_all(journal) == [(4, "?")]
    journal.resume(5, 4)
    assert take_all(journal) == [(4, "?")]


def test_an_answer_out_of_turn_is_told() -> None:
    """A server that answers what was not asked is none to go on with."""
    journal = journal_at()
    with pytest.raises(StreamLost, match="nothing was under way"):
        answer(journal, 1)
    add(journal, "a")
    take_all(journal)
    with pytest.raises(StreamLost, match="answered timestep 2, and 1 was due"):
        answer(journal, 2)


class Server:
    """A server as the protocol describes it: applies in order, remembers answers, stores now and then, crashes."""

    def __init__(self, remembered: int) -> None:
        self.remembered = remembered
        self.applied: list[bytes] = []
        self.durable = 0
        self.to_read: deque[tuple[int, bytes]] = deque()
        self.to_tell: deque[tuple[str, int, bytes, int]] = deque()

    def answer_of(self, step: int) -> bytes:
        """Depends on everything up to that timestep."""
        return zlib.crc32(b",".join(self.applied[:step])).to_bytes(4, "little")

    def run(self, *, busy: bool) -> None:
        """Answers one timestep, or refuses it for want of room."""
        step, values = self.to_read.popleft()
        next_step = len(self.applied) + 1
        if busy:
            self.to_tell.append(("busy", step, b"", next_step))
        elif step > next_step:
            self.to_tell.append(("gap", step, b"", next_step))
        elif step == next_step and values.startswith(b"bad"):
            self.to_tell.append(("bad", step, b"", next_step))
        else:
            if step == next_step:
                self.applied.append(values)
            forgotten = step <= len(self.applied) - self.remembered
            self.to_tell.append(("answer", step, b"" if forgotten else self.answer_of(step), 0))


class World(RuleBasedStateMachine):
    """A client's books and a server, with breaks, crashes, refusals and stores at any moment between."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[str] = []
        self.delivered: list[tuple[str, bytes]] = []

    @initialize(remembered=st.integers(1, 4))
    def begin(self, remembered: int) -> None:
        """A new stream."""
        self.server = Server(remembered)
        self.journal = journal_at(window=remembered)

    @rule(kind=st.sampled_from(["good", "good", "good", "bad"]))
    def add(self, kind: str) -> None:
        """The user has a timestep; a bad one is refused when its turn comes."""
        self.added.append(f"{kind}{len(self.added)}")
        add(self.journal, self.added[-1])

    @rule()
    def send(self) -> None:
        """The client sends what it may."""
        while (one := self.journal.take()) is not None:
            self.server.to_read.append(one)

    @precondition(lambda self: self.server.to_read)
    @rule(busy=st.sampled_from([False, False, False, True]))
    def run(self, busy: bool) -> None:
        """The server answers one."""
        self.server.run(busy=busy)

    @precondition(lambda self: self.server.to_tell)
    @rule()
    def hear(self) -> None:
        """The client takes in one answer."""
        kind, step, output, next_step = self.server.to_tell.popleft()
        if kind == "answer":
            entry = self.journal.predicted(step, [output] if output else [], comparable=True)
            if entry is not None:
                assert output, "an answer that nobody had was forgotten"
                self.delivered.append((entry.ticket, output))
        elif (refused := self.journal.refused(step, next_step)) is not None:
            assert kind != "gap"
            if kind == "busy":
                self.journal.send_again(step)
            else:
                self.journal.give_up(step, refused)

    @rule()
    def store(self) -> None:
        """The server stores what it has."""
        self.server.durable = len(self.server.applied)

    @precondition(lambda self: not self.server.to_tell)
    @rule()
    def tell(self) -> None:
        """And says so."""
        self.journal.durable(self.server.durable)

    @rule(crash=st.booleans())
    def stop(self, crash: bool) -> None:
        """The call breaks; after a crash the server is where it last stored."""
        self.server.to_read.clear()
        self.server.to_tell.clear()
        if crash:
            del self.server.applied[self.server.durable :]
        self.journal.resume(len(self.server.applied) + 1, self.server.remembered)

    @invariant()
    def in_order(self) -> None:
        """No answer came twice, and none before an earlier one."""
        places = [self.added.index(name) for name, _ in self.delivered]
        assert places == sorted(set(places))

    def teardown(self) -> None:
        """Left in peace, every good timestep is applied and delivered once, with the answer that its history gives."""
        for _ in range(2 * len(self.added) + 2):
            self.send()
            while self.server.to_read:
                self.server.run(busy=False)
            while self.server.to_tell:
                self.hear()
        accepted = [name for name in self.added if name.startswith("good")]
        assert [name.decode() for name in self.server.applied] == accepted
        assert self.delivered == [(name, self.server.answer_of(step)) for step, name in enumerate(accepted, 1)]
        assert self.journal.idle


World.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)
TestWorld = World.TestCase


def test_what_is_left_at_the_end_is_given_back() -> None:
    """Everybody who waits is told."""
    journal = journal_at(3)
    add(journal, "a", "b")
    journal.take()
    journal.ask_again(Entry(b"?", "asked", repeat=2))
    assert sorted(entry.ticket for entry in journal.clear()) == ["a", "asked", "b"]
    assert journal.idle
