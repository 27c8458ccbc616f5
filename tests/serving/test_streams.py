from itertools import product

import numpy as np
import pytest

from serving.core.engine import Engine
from serving.core.errors import ModelMismatch, StreamExists, StreamNotFound, TakenOver, TidegateError
from serving.core.spec import Spec
from serving.core.streams import (
    TRANSITIONS,
    Event,
    Existence,
    Known,
    Lease,
    OpenKind,
    Phase,
    Stream,
    Streams,
    rule_on_open,
)
from tests.support import key, load, lstm, make_engine, replay, running_sum, same_bits, sensor_rows

ANY, MUST_EXIST, MUST_BE_NEW = Existence.ANY, Existence.MUST_EXIST, Existence.MUST_BE_NEW


@pytest.fixture(scope="module")
def spec() -> Spec:
    """The model that streams are opened under."""
    return load(running_sum()).spec


def known(spec: Spec, phase: Phase, *, fingerprint: str = "", version: str = "") -> Known:
    """A stream of that model, or of another fingerprint or version."""
    return Known(phase, spec.name, version or spec.version, fingerprint or spec.fingerprint)


@pytest.mark.parametrize(
    ("phase", "existence", "outcome"),
    [
        (None, ANY, OpenKind.NEW),
        (None, MUST_EXIST, StreamNotFound),
        (None, MUST_BE_NEW, OpenKind.NEW),
        (Phase.NEW, ANY, OpenKind.NEW),
        (Phase.NEW, MUST_EXIST, StreamNotFound),
        (Phase.NEW, MUST_BE_NEW, OpenKind.NEW),
        (Phase.PARKED, ANY, OpenKind.RESUMED),
        (Phase.PARKED, MUST_EXIST, OpenKind.RESUMED),
        (Phase.PARKED, MUST_BE_NEW, StreamExists),
        (Phase.LIVE, ANY, OpenKind.TAKEN_OVER),
        (Phase.LIVE, MUST_EXIST, OpenKind.TAKEN_OVER),
        (Phase.LIVE, MUST_BE_NEW, StreamExists),
    ],
)
def test_what_an_open_becomes(
    spec: Spec, phase: Phase | None, existence: Existence, outcome: OpenKind | type[TidegateError]
) -> None:
    """The whole table of opens under the stream's own model."""
    what = None if phase is None else known(spec, phase)
    if isinstance(outcome, OpenKind):
        assert rule_on_open(key("a"), what, spec, existence) is outcome
    else:
        with pytest.raises(outcome, match="'a'"):
            rule_on_open(key("a"), what, spec, existence)


@pytest.mark.parametrize(("phase", "existence"), list(product([Phase.PARKED, Phase.LIVE], [ANY, MUST_EXIST])))
def test_a_stream_of_other_weights_is_not_opened(spec: Spec, phase: Phase, existence: Existence) -> None:
    """Old state is never fed to new weights; the message has both models."""
    with pytest.raises(ModelMismatch, match=r"runs under toy/9, not toy/1"):
        rule_on_open(key("a"), known(spec, phase, fingerprint="f" * 64, version="9"), spec, existence)


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_the_same_version_with_other_bytes_is_another_model(spec: Spec, phase: Phase) -> None:
    """A file that was replaced under its name has another fingerprint, and the message says both."""
    with pytest.raises(ModelMismatch, match=f"fingerprint {'f' * 12}.*fingerprint {spec.fingerprint[:12]}"):
        rule_on_open(key("a"), known(spec, phase, fingerprint="f" * 64), spec, ANY)


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_must_be_new_wins_over_other_weights(spec: Spec, phase: Phase) -> None:
    """Who asks for a new stream is told that the name is taken, whatever it runs under."""
    with pytest.raises(StreamExists):
        rule_on_open(key("a"), known(spec, phase, fingerprint="f" * 64), spec, MUST_BE_NEW)


def test_the_weights_of_a_stream_without_state_do_not_matter(spec: Spec) -> None:
    """Where no state is left there is nothing to feed to the wrong weights."""
    what = known(spec, Phase.NEW, fingerprint="f" * 64)
    assert rule_on_open(key("a"), what, spec, ANY) is OpenKind.NEW


@pytest.mark.parametrize(("phase", "existence"), list(product(Phase, Existence)))
def test_every_open_that_is_allowed_has_a_transition(spec: Spec, phase: Phase, existence: Existence) -> None:
    """The rule never lets a stream go where the table of its life has no way."""
    try:
        rule_on_open(key("a"), known(spec, phase), spec, existence)
    except TidegateError:
        return
    assert (phase, Event.OPEN) in TRANSITIONS


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_a_stream_moves_along_its_transitions_and_no_other(phase: Phase, event: Event) -> None:
    """A pair that is not in the table raises and moves nothing."""
    engine = make_engine(running_sum())
    stream = Stream(key("a"), engine.slots, 0, 1)
    stream.phase = phase
    if (phase, event) in TRANSITIONS:
        stream.go(event)
        assert stream.phase is TRANSITIONS[phase, event]
    else:
        with pytest.raises(KeyError):
            stream.go(event)
        assert stream.phase is phase


def begin(streams: Streams, engine: Engine, name: str = "a") -> Lease:
    """A live stream."""
    return streams.begin(key(name), engine.slots, engine.slots.acquire(), 1)


def step(engine: Engine, lease: Lease, *values: float) -> np.ndarray:
    """Applies a timestep; gives the first output."""
    slots = np.array([lease.stream.slot])
    report = engine.run(slots, np.array([0]), np.array([values], np.float32))
    assert report.verdicts is None or not report.verdicts.any()
    return report.outputs[0][0]


def test_a_stream_begins_live_at_step_0() -> None:
    """It owns a slot and is found by its key."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    assert lease.stream.phase is Phase.LIVE
    assert lease.stream.step == 0
    assert streams.find(key("a")) is lease.stream
    assert len(streams) == 1
    assert len(engine.slots) == 1


def test_streams_of_one_id_and_two_tenants_are_two() -> None:
    """A key is the tenant and the id."""
    engine, streams = make_engine(running_sum()), Streams()
    mine = begin(streams, engine)
    other = streams.begin(key("a")._replace(tenant="other"), engine.slots, engine.slots.acquire(), 1)
    step(engine, mine, 5)
    assert mine.stream.slot != other.stream.slot
    assert (mine.stream.step, other.stream.step) == (1, 0)


def test_parking_frees_the_slot_and_keeps_everything_else() -> None:
    """The checkpoint is whose it is, under which model, how far, and with which state."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    step(engine, lease, 6)
    checkpoint = streams.park(lease.stream)
    assert len(engine.slots) == 0
    assert streams.find(key("a")) is None
    assert lease.stream.phase is Phase.PARKED
    spec = engine.model.spec
    assert (checkpoint.key, checkpoint.epoch, checkpoint.step) == (key("a"), 1, 2)
    assert (checkpoint.model, checkpoint.version, checkpoint.fingerprint) == ("toy", "1", spec.fingerprint)
    assert checkpoint.state[0].tolist() == [11]


@pytest.mark.parametrize("parked_after", [0, 1, 3, 5, 9])
def test_a_resumed_stream_gives_the_bits_of_one_that_never_parked(parked_after: int) -> None:
    """Parking changes nothing, not even when another stream used the slot meanwhile."""
    rows = sensor_rows(10, seed=parked_after, missing=0.2)
    engine, streams = make_engine(lstm(), capacity=1), Streams()
    lease = begin(streams, engine)
    got = [step(engine, lease, *row) for row in rows[:parked_after]]
    checkpoint = streams.park(lease.stream)
    stranger = begin(streams, engine, "stranger")
    step(engine, stranger, *np.ones(8))
    streams.park(stranger.stream)
    lease = streams.resume(checkpoint, engine.slots, engine.slots.acquire(), 2)
    assert lease.stream.step == parked_after
    got += [step(engine, lease, *row) for row in rows[parked_after:]]
    expected = replay(lstm(), rows)
    assert all(same_bits({"forecast": mine}, theirs) for mine, theirs in zip(got, expected, strict=True))


def test_a_resumed_stream_remembers_its_answers() -> None:
    """A timestep that was answered before parking is answered again after it."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    sums = [step(engine, lease, value) for value in (1, 2, 3)]
    lease = streams.resume(streams.park(lease.stream), engine.slots, engine.slots.acquire(), 2)
    assert [engine.slots.answer(lease.stream.slot, number)[0] for number in (1, 2, 3)] == [
        value.tobytes() for value in sums
    ]


def test_a_stream_resumes_under_a_higher_epoch_and_durable_up_to_its_checkpoint() -> None:
    """What the checkpoint holds is stored by definition."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    step(engine, lease, 1)
    lease = streams.resume(streams.park(lease.stream), engine.slots, engine.slots.acquire(), 2)
    assert (lease.stream.epoch, lease.stream.durable_step) == (2, 1)


def test_a_stream_does_not_resume_under_its_old_epoch() -> None:
    """An epoch that does not rise would let an old writer through."""
    engine, streams = make_engine(running_sum()), Streams()
    checkpoint = streams.park(begin(streams, engine).stream)
    with pytest.raises(AssertionError):
        streams.resume(checkpoint, engine.slots, engine.slots.acquire(), 1)


def test_a_take_over_ends_the_old_lease_and_keeps_the_state() -> None:
    """The old call is told once, and the new one goes on where it was, in the same slot."""
    engine, streams = make_engine(running_sum()), Streams()
    old = begin(streams, engine)
    step(engine, old, 5)
    told: list[TidegateError] = []
    old.on_end = told.append
    new = streams.take_over(old.stream, 2)
    assert isinstance(old.ended, TakenOver)
    assert told == [old.ended]
    assert old.ended.epoch == 2
    assert new.ended is None
    assert new.stream is old.stream
    assert (new.stream.epoch, new.stream.step) == (2, 1)
    assert step(engine, new, 6).tolist() == [11]


def test_a_take_over_raises_the_epoch() -> None:
    """It cannot keep the epoch that the old call writes under."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    with pytest.raises(AssertionError):
        streams.take_over(lease.stream, 1)


def test_a_forgotten_stream_leaves_nothing() -> None:
    """Its slot is free and its name unknown."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    streams.forget(lease.stream)
    assert len(engine.slots) == 0
    assert streams.find(key("a")) is None
    assert lease.stream.phase is Phase.NEW


def test_a_checkpoint_does_not_stop_the_stream() -> None:
    """The stream goes on, and the copy stays what it was."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    checkpoint = streams.checkpoint(lease.stream)
    step(engine, lease, 6)
    assert lease.stream.phase is Phase.LIVE
    assert (checkpoint.step, checkpoint.state[0].tolist()) == (1, [5])


def test_one_line_says_where_a_stream_is() -> None:
    """Operators read it in logs."""
    engine, streams = make_engine(running_sum()), Streams()
    lease = begin(streams, engine)
    step(engine, lease, 1)
    assert repr(lease.stream) == "<Stream default/a live step 1, epoch 1>"
    streams.park(lease.stream)
    assert repr(lease.stream) == "<Stream default/a parked at rest, epoch 1>"
