"""Streams in any order of events, against a plain Python account of what each should hold."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.engine import Engine, Verdict
from serving.core.slots import Slots
from serving.core.spec import Checkpoint
from serving.core.streams import Lease, Phase, Streams
from tests.support import key, load, running_sum

MODEL = load(running_sum())
STREAMS = 4
ANSWERS = 3


@dataclass
class Account:
    """What a stream should hold, without slots, rings or arrays."""

    sums: list[float] = field(default_factory=list)  # the answer to each timestep
    epoch: int = 0
    lease: Lease | None = None
    checkpoint: Checkpoint | None = None

    def judge(self, number: int, value: float) -> Verdict:
        """What becomes of a timestep."""
        expected = len(self.sums) + 1
        if number > expected:
            return Verdict.GAP
        if 0 < number < expected:
            return Verdict.DUPLICATE
        return Verdict.APPLIED if np.isfinite(value) else Verdict.NOT_FINITE


which = st.integers(0, STREAMS - 1)
# How far a timestep's number is from the next one; None: it has no number.
offsets = st.one_of(st.just(0), st.none(), st.integers(-4, 3))
values = st.one_of(st.integers(-9, 9).map(float), st.sampled_from([np.nan, np.inf, -np.inf]))
events = st.one_of(
    st.tuples(st.just("batch"), st.dictionaries(which, st.tuples(offsets, values), min_size=1)),
    st.tuples(st.just("batch"), st.dictionaries(which, st.tuples(st.just(0), values), min_size=1)),
    st.tuples(st.sampled_from(["open", "open", "park", "forget"]), which),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(events, max_size=40))
def test_any_interleaving_leaves_every_stream_as_it_should_be(story: list) -> None:
    """Steps, repeats, gaps, NaN, parking, resuming and taking over of several streams never touch another stream."""
    slots = Slots(MODEL.spec, STREAMS, ANSWERS)
    engine, streams = Engine(MODEL, slots), Streams()
    accounts = [Account() for _ in range(STREAMS)]
    for what, detail in story:
        if what == "batch":
            run_batch(engine, accounts, detail)
        elif what == "open":
            open_stream(streams, slots, accounts[detail], detail)
        elif (lease := accounts[detail].lease) is not None:
            if what == "park":
                accounts[detail].checkpoint = streams.park(lease.stream)
                accounts[detail].lease = None
            else:
                streams.forget(lease.stream)
                accounts[detail] = Account()
        check(slots, streams, accounts)


def open_stream(streams: Streams, slots: Slots, account: Account, name: int) -> None:
    """Begins, resumes or takes over."""
    account.epoch += 1
    if account.lease is not None:
        old = account.lease
        account.lease = streams.take_over(old.stream, account.epoch)
        assert old.ended is not None
    elif account.checkpoint is not None:
        account.lease = streams.resume(account.checkpoint, slots, slots.acquire(), account.epoch)
    else:
        account.lease = streams.begin(key(str(name)), slots, slots.acquire(), account.epoch)


def run_batch(engine: Engine, accounts: list[Account], sent: dict[int, tuple[int | None, float]]) -> None:
    """Runs one batch over the live streams among `sent`, and checks the report row by row."""
    rows = [
        (accounts[name], 0 if offset is None else max(1, len(accounts[name].sums) + 1 + offset), value)
        for name, (offset, value) in sent.items()
        if accounts[name].lease is not None
    ]
    if not rows:
        return
    expected = [account.judge(number, value) for account, number, value in rows]
    report = engine.run(
        np.array([account.lease.stream.slot for account, _, _ in rows if account.lease is not None], np.int64),
        np.array([number for _, number, _ in rows], np.int64),
        np.array([[value] for _, _, value in rows], np.float32),
    )
    got = [Verdict.APPLIED] * len(rows) if report.verdicts is None else [Verdict(int(code)) for code in report.verdicts]
    assert got == expected
    place = 0
    for row, (account, number, value) in enumerate(rows):
        assert report.steps[row] == (number or len(account.sums) + 1)
        if got[row] is Verdict.APPLIED:
            account.sums.append((account.sums[-1] if account.sums else 0.0) + value)
            assert report.outputs[0][place].tolist() == [account.sums[-1]]
            assert report.outputs[1][place] == len(account.sums)
            place += 1
    assert report.missing == 0  # this model refuses NaN


def check(slots: Slots, streams: Streams, accounts: list[Account]) -> None:
    """Compares everything that is held with the accounts."""
    held = [account for account in accounts if account.lease is not None]
    assert len(slots) == len(streams) == len(held)
    for account in held:
        assert account.lease is not None
        stream, sums = account.lease.stream, account.sums
        assert stream.phase is Phase.LIVE
        assert stream.epoch == account.epoch
        assert stream.step == len(sums)
        total, trail, count = slots.gather(np.array([stream.slot]))
        assert trail[0].tolist() == [0.0, 0.0, *sums][-2:]
        assert total[0, 0] == trail[0, 1]
        assert count[0] == len(sums)
        for number in range(1, len(sums) + 1):
            packed = slots.answer(stream.slot, number)
            if number > len(sums) - ANSWERS:
                assert np.frombuffer(packed[0], np.float32).tolist() == [sums[number - 1]]
            else:
                assert packed == ()
