from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.engines import key, load, make_engine
from tests.graphs import lstm, running_sum
from tests.oracle import replay, same_bits, sensor_rows
from tidegate.core.engine import Engine
from tidegate.core.errors import (
    CheckpointBroken,
    ModelMismatch,
    StateLost,
    StreamExists,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
)
from tidegate.core.payload import check_payload_size
from tidegate.core.spec import Checkpoint, ModelId, Spec
from tidegate.core.streams import (
    TRANSITIONS,
    Event,
    Existence,
    Lease,
    OpenKind,
    OpenOptions,
    Phase,
    Stream,
    StreamStatus,
    StreamTable,
    checkpoint_rows,
    decide_open,
)

ANY, MUST_EXIST, MUST_BE_NEW = Existence.ANY, Existence.MUST_EXIST, Existence.MUST_BE_NEW

# The step of the known streams that these tests open.
KEPT = 7


# The decision about an open.


@pytest.fixture(scope="module")
def spec() -> Spec:
    """The model under which streams are opened."""
    return load(running_sum()).spec


def known(spec: Spec, phase: Phase, *, fingerprint: str = "", version: str = "", owner: str = "") -> StreamStatus:
    """A stream of that model, or of another fingerprint or version."""
    model = ModelId(spec.name, version or spec.version, fingerprint or spec.fingerprint)
    return StreamStatus(phase, KEPT, model, owner, epoch=3)


@pytest.mark.parametrize(
    ("phase", "existence", "resume_from", "outcome"),
    [
        (None, ANY, 0, OpenKind.NEW),
        (None, ANY, 1, OpenKind.NEW),
        (None, ANY, 2, StateLost),
        (None, MUST_BE_NEW, 0, OpenKind.NEW),
        (None, MUST_EXIST, 0, StreamNotFound),
        (None, MUST_EXIST, 1, StreamNotFound),
        (None, MUST_EXIST, 2, StreamNotFound),
        (Phase.NEW, ANY, 0, OpenKind.NEW),
        (Phase.NEW, ANY, 1, StreamNotFound),
        (Phase.NEW, ANY, KEPT, StreamNotFound),
        (Phase.NEW, MUST_BE_NEW, 0, OpenKind.NEW),
        (Phase.NEW, MUST_EXIST, 0, StreamNotFound),
        (Phase.PARKED, ANY, 0, OpenKind.RESUMED),
        (Phase.PARKED, ANY, 1, OpenKind.RESUMED),
        (Phase.PARKED, ANY, KEPT + 1, OpenKind.RESUMED),
        (Phase.PARKED, ANY, KEPT + 2, StateLost),
        (Phase.PARKED, MUST_BE_NEW, 0, StreamExists),
        (Phase.PARKED, MUST_EXIST, 0, OpenKind.RESUMED),
        (Phase.PARKED, MUST_EXIST, KEPT + 1, OpenKind.RESUMED),
        (Phase.PARKED, MUST_EXIST, KEPT + 2, StateLost),
        (Phase.LIVE, ANY, 0, OpenKind.TAKEN_OVER),
        (Phase.LIVE, ANY, 1, OpenKind.TAKEN_OVER),
        (Phase.LIVE, ANY, KEPT + 1, OpenKind.TAKEN_OVER),
        (Phase.LIVE, ANY, KEPT + 2, StateLost),
        (Phase.LIVE, MUST_BE_NEW, 0, StreamExists),
        (Phase.LIVE, MUST_EXIST, 0, OpenKind.TAKEN_OVER),
        (Phase.LIVE, MUST_EXIST, KEPT + 1, OpenKind.TAKEN_OVER),
        (Phase.LIVE, MUST_EXIST, KEPT + 2, StateLost),
        (Phase.EXPIRED, ANY, 0, StreamExpired),
        (Phase.EXPIRED, ANY, KEPT + 1, StreamExpired),
        (Phase.EXPIRED, MUST_BE_NEW, 0, OpenKind.NEW),
        (Phase.EXPIRED, MUST_EXIST, 0, StreamExpired),
        (Phase.EXPIRED, MUST_EXIST, KEPT + 1, StreamExpired),
    ],
)
@pytest.mark.parametrize("owner", ["", "a"], ids=["nobody's", "its owner's"])
def test_what_an_open_becomes(
    spec: Spec,
    phase: Phase | None,
    existence: Existence,
    resume_from: int,
    outcome: OpenKind | type[TidegateError],
    owner: str,
) -> None:
    """The whole table of opens under the stream's own model, by its last owner."""
    what = None if phase is None else known(spec, phase, owner=owner)
    ask = OpenOptions(existence, owner, resume_from)
    if isinstance(outcome, OpenKind):
        assert decide_open(key("a"), what, spec, ask) is outcome
    else:
        with pytest.raises(outcome, match="'a'"):
            decide_open(key("a"), what, spec, ask)


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
@pytest.mark.parametrize("last", ["", "b"], ids=["nobody", "another"])
@pytest.mark.parametrize("resume_from", [1, KEPT + 1, KEPT + 2])
def test_a_client_that_continues_is_refused_when_another_owner_came_between(
    spec: Spec, phase: Phase, last: str, resume_from: int
) -> None:
    """The state of the stream is the other owner's work, which keeps it; also when there would be a loss."""
    with pytest.raises(TakenOver, match=r"another client.*epoch 3"):
        decide_open(key("a"), known(spec, phase, owner=last), spec, OpenOptions(ANY, "a", resume_from))


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_a_first_open_asks_no_other_server(spec: Spec, phase: Phase) -> None:
    """A new client may take over any stream, with a first open."""
    assert decide_open(key("a"), known(spec, phase, owner="b"), spec, OpenOptions(ANY, "a")) is not OpenKind.NEW


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_must_be_new_may_be_asked_again(spec: Spec, phase: Phase) -> None:
    """The answer to the first open was lost: the same owner has begun it, and nothing was applied."""
    begun = replace(known(spec, phase, owner="a"), step=0)
    assert decide_open(key("a"), begun, spec, OpenOptions(MUST_BE_NEW, "a")) is OpenKind.NEW
    for other in (OpenOptions(MUST_BE_NEW, "b"), OpenOptions(MUST_BE_NEW)):
        with pytest.raises(StreamExists):
            decide_open(key("a"), begun, spec, other)
    with pytest.raises(StreamExists):
        decide_open(key("a"), known(spec, phase, owner="a"), spec, OpenOptions(MUST_BE_NEW, "a"))


@pytest.mark.parametrize(
    ("phase", "existence", "resume_from"),
    list(product([Phase.PARKED, Phase.LIVE], [ANY, MUST_EXIST], [0, KEPT + 1, KEPT + 2])),
)
def test_a_stream_of_other_weights_is_not_opened(
    spec: Spec, phase: Phase, existence: Existence, resume_from: int
) -> None:
    """A state is never used with other weights. The message has both models."""
    what = known(spec, phase, fingerprint="f" * 64, version="9")
    with pytest.raises(ModelMismatch, match=r"runs under toy/9, not toy/1"):
        decide_open(key("a"), what, spec, OpenOptions(existence, resume_from=resume_from))


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_the_same_version_with_other_bytes_is_another_model(spec: Spec, phase: Phase) -> None:
    """A file that was replaced under its name has another fingerprint, and the message has both."""
    with pytest.raises(ModelMismatch, match=f"fingerprint {'f' * 12}.*fingerprint {spec.fingerprint[:12]}"):
        decide_open(key("a"), known(spec, phase, fingerprint="f" * 64), spec, OpenOptions(ANY))


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_the_same_weights_under_another_name_are_the_same_model(spec: Spec, phase: Phase) -> None:
    """A state belongs to a fingerprint. The name of the folder is for people."""
    decide_open(key("a"), known(spec, phase, version="9"), spec, OpenOptions(MUST_EXIST))


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LIVE])
def test_must_be_new_wins_over_other_weights(spec: Spec, phase: Phase) -> None:
    """An open with MUST_BE_NEW reports that the name is taken, whatever the model."""
    with pytest.raises(StreamExists):
        decide_open(key("a"), known(spec, phase, fingerprint="f" * 64), spec, OpenOptions(MUST_BE_NEW))


def test_the_weights_of_an_expired_stream_do_not_matter(spec: Spec) -> None:
    """Without state there is nothing to use with the wrong weights."""
    what = known(spec, Phase.EXPIRED, fingerprint="f" * 64)
    assert decide_open(key("a"), what, spec, OpenOptions(MUST_BE_NEW)) is OpenKind.NEW


def test_an_expired_stream_has_its_last_step(spec: Spec) -> None:
    """Only its last timestep is known."""
    with pytest.raises(StreamExpired, match=rf"last timestep was {KEPT}.*MUST_BE_NEW") as caught:
        decide_open(key("a"), known(spec, Phase.EXPIRED), spec, OpenOptions(ANY))
    assert caught.value.step == KEPT


@pytest.mark.parametrize(("phase", "kept"), [(None, 0), (Phase.PARKED, KEPT), (Phase.LIVE, KEPT)])
def test_lost_state_is_reported_with_both_steps(spec: Spec, phase: Phase | None, kept: int) -> None:
    """The stored and the acknowledged step: the client can tell what is lost, and how to continue nevertheless."""
    what = None if phase is None else known(spec, phase)
    with pytest.raises(StateLost) as caught:
        decide_open(key("a"), what, spec, OpenOptions(resume_from=13))
    assert (caught.value.kept_step, caught.value.stored_step) == (kept, 12)


@pytest.mark.parametrize(
    ("phase", "existence"), list(product([Phase.PARKED, Phase.LIVE, Phase.EXPIRED, None], Existence))
)
def test_every_open_that_is_allowed_has_a_transition(spec: Spec, phase: Phase | None, existence: Existence) -> None:
    """The decision never needs a transition that the table does not have."""
    try:
        kind = decide_open(key("a"), known(spec, phase) if phase else None, spec, OpenOptions(existence))
    except TidegateError:
        return
    if kind is OpenKind.NEW:  # its former state is forgotten
        phase = Phase.NEW if phase is None else TRANSITIONS[phase, Event.FORGET]
    assert phase is not None
    assert TRANSITIONS[phase, Event.OPEN] is Phase.LIVE


# The life cycle of a stream.


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_a_stream_moves_along_its_transitions_and_no_other(phase: Phase, event: Event) -> None:
    """A pair that is not in the table raises and changes nothing."""
    engine = make_engine(running_sum())
    stream = Stream(key("a"), engine.slots, 1, "")
    stream.phase = phase
    if (phase, event) in TRANSITIONS:
        stream.transition(event)
        assert stream.phase is TRANSITIONS[phase, event]
    else:
        with pytest.raises(KeyError):
            stream.transition(event)
        assert stream.phase is phase


def begin(streams: StreamTable, engine: Engine, name: str = "a") -> Lease:
    """A live stream."""
    return streams.begin(key(name), engine.slots, engine.slots.acquire(key(name)), 1)


def resume(streams: StreamTable, engine: Engine, checkpoint: Checkpoint, epoch: int = 2) -> Lease:
    """A stream that is live again."""
    return streams.resume(checkpoint, engine.slots, engine.slots.acquire(checkpoint.key), epoch)


def step(engine: Engine, lease: Lease, *values: float) -> np.ndarray:
    """Applies a timestep. Returns the first output."""
    slots = np.array([lease.stream.slot])
    result = engine.run(slots, np.array([0]), np.array([values], np.float32))
    assert result.statuses is None or not result.statuses.any()
    return result.outputs[0][0]


def store(lease: Lease) -> Checkpoint:
    """Does what the checkpointer does after a commit."""
    stream = lease.stream
    (checkpoint,) = checkpoint_rows([stream])
    stream.slots.durable_step[stream.slot] = checkpoint.step
    return checkpoint


def leave(streams: StreamTable, lease: Lease) -> Checkpoint:
    """A stream that is stored and has left the process."""
    checkpoint = store(lease)
    streams.release(lease)
    streams.park(lease.stream)
    return checkpoint


def total(engine: Engine, lease: Lease) -> float:
    """The sum of a live stream."""
    return float(engine.slots.gather(np.array([lease.stream.slot]))[0][0, 0])


def test_a_stream_begins_live_at_step_0() -> None:
    """It owns a slot and is found by its key."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    assert lease.stream.phase is Phase.LIVE
    assert lease.stream.step == 0
    assert lease.durable_step == 0
    assert lease.stream.lease is lease
    assert streams.find(key("a")) is lease.stream
    assert list(streams) == [lease.stream]
    assert len(streams) == 1
    assert len(engine.slots) == 1


def test_a_stream_is_held_once() -> None:
    """Beginning an existing stream is a bug of the server: it must be taken over."""
    engine, streams = make_engine(running_sum()), StreamTable()
    begin(streams, engine)
    with pytest.raises(AssertionError):
        begin(streams, engine)


def test_streams_of_one_id_and_two_tenants_are_two() -> None:
    """A key is the tenant and the id."""
    engine, streams = make_engine(running_sum()), StreamTable()
    mine = begin(streams, engine)
    theirs = key("a")._replace(tenant="other")
    other = streams.begin(theirs, engine.slots, engine.slots.acquire(theirs), 1)
    step(engine, mine, 5)
    assert mine.stream.slot != other.stream.slot
    assert (mine.stream.step, other.stream.step) == (1, 0)


def test_a_stream_is_saved_until_its_next_timestep() -> None:
    """At step 0 there is nothing to store. From then on the last timestep counts."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    assert lease.stream.is_saved
    step(engine, lease, 5)
    assert not lease.stream.is_saved
    store(lease)
    assert lease.stream.is_saved


# Checkpoints.


def test_a_checkpoint_has_everything_about_its_stream() -> None:
    """The key, the model, the epoch, the step, and the number of answers."""
    engine, streams = make_engine(running_sum(), answers=6), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    step(engine, lease, 6)
    (checkpoint,) = checkpoint_rows([lease.stream])
    assert (checkpoint.key, checkpoint.epoch, checkpoint.step) == (key("a"), 1, 2)
    assert checkpoint.model == engine.model.spec.id
    assert checkpoint.answers == 6
    check_payload_size(checkpoint, engine.slots)


def test_streams_at_different_steps_are_copied_each_with_its_own() -> None:
    """Several are copied as each would be alone, in order: none gets the state or number of another."""
    engine, streams = make_engine(running_sum()), StreamTable()
    leases = [begin(streams, engine, name) for name in "abcd"]
    for lease, count in zip(leases, (3, 0, 7, 1), strict=True):
        for number in range(count):
            step(engine, lease, 10 * lease.stream.slot + number)
    some = [leases[place].stream for place in (2, 3, 0, 1)]
    run_concurrently = checkpoint_rows(some)
    assert [(checkpoint.key, checkpoint.step) for checkpoint in run_concurrently] == [
        (key("c"), 7),
        (key("d"), 1),
        (key("a"), 3),
        (key("b"), 0),
    ]
    assert list(run_concurrently) == [checkpoint_rows([stream])[0] for stream in some]


def test_a_checkpoint_does_not_stop_the_stream() -> None:
    """The stream advances, and the copy does not change."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    (checkpoint,) = checkpoint_rows([lease.stream])
    step(engine, lease, 6)
    assert lease.stream.phase is Phase.LIVE
    assert lease.stream.step == 2
    streams.drop(lease.stream, StreamNotFound("a"))
    assert total(engine, resume(streams, engine, checkpoint)) == 5


def test_a_checkpoint_alone_makes_nothing_durable() -> None:
    """A copy counts as stored only after the commit."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    checkpoint_rows([lease.stream])
    assert not lease.stream.is_saved
    assert lease.durable_step == 0


@pytest.mark.parametrize("more", [-1, 1])
def test_a_checkpoint_of_another_size_does_not_fit(more: int) -> None:
    """It is refused with both sizes, before anything of it is used."""
    engine, streams = make_engine(running_sum()), StreamTable()
    (checkpoint,) = checkpoint_rows([begin(streams, engine).stream])
    size = len(checkpoint.payload)
    payload = (checkpoint.payload + b"x")[: size + more]
    with pytest.raises(CheckpointBroken, match=f"'a': its state has {size + more} bytes, expected {size} under toy/1"):
        check_payload_size(replace(checkpoint, payload=payload), engine.slots)


def test_a_checkpoint_with_room_for_other_answers_fits() -> None:
    """The number of answers is a setting of the server and may change for a stored stream."""
    small, large, streams = make_engine(running_sum(), answers=2), make_engine(running_sum(), answers=9), StreamTable()
    (checkpoint,) = checkpoint_rows([begin(streams, small).stream])
    check_payload_size(checkpoint, large.slots)


# Parking and resuming.


def test_a_stream_without_a_call_is_parked_and_held_no_longer() -> None:
    """Its slot is free, and the store has all of it."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    store(lease)
    streams.release(lease)
    streams.park(lease.stream)
    assert len(engine.slots) == 0
    assert streams.find(key("a")) is None
    assert lease.stream.phase is Phase.PARKED
    assert lease.stream.slot == -1


def test_a_stream_that_a_call_has_open_is_parked_and_still_held() -> None:
    """Its slot is free. Its call is not affected and keeps its lease."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    store(lease)
    streams.park(lease.stream)
    assert len(engine.slots) == 0
    assert streams.find(key("a")) is lease.stream
    assert lease.stream.phase is Phase.PARKED
    assert lease.stream.slot == -1
    assert lease.ended is None
    assert lease.durable_step == 1


def test_a_stream_that_is_not_stored_is_not_parked() -> None:
    """Its slot has the only copy of its state. Nothing has changed."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    with pytest.raises(AssertionError):
        streams.park(lease.stream)
    assert lease.stream.phase is Phase.LIVE
    assert total(engine, lease) == 5


@pytest.mark.parametrize("parked_after", [0, 1, 3, 5, 9])
def test_a_resumed_stream_gives_the_bits_of_one_that_never_parked(parked_after: int) -> None:
    """Parking changes nothing, not even when another stream used the slot meanwhile."""
    rows = sensor_rows(10, seed=parked_after, missing=0.2)
    engine, streams = make_engine(lstm(), capacity=1), StreamTable()
    lease = begin(streams, engine)
    got = [step(engine, lease, *row) for row in rows[:parked_after]]
    checkpoint = leave(streams, lease)
    stranger = begin(streams, engine, "stranger")
    step(engine, stranger, *np.ones(8))
    leave(streams, stranger)
    lease = resume(streams, engine, checkpoint)
    assert lease.stream.step == parked_after
    got += [step(engine, lease, *row) for row in rows[parked_after:]]
    expected = replay(lstm(), rows)
    assert all(same_bits({"forecast": mine}, theirs) for mine, theirs in zip(got, expected, strict=True))


def test_a_resumed_stream_remembers_its_answers() -> None:
    """A timestep that was answered before parking is answered again after it."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    sums = [step(engine, lease, value) for value in (1, 2, 3)]
    lease = resume(streams, engine, leave(streams, lease))
    assert [engine.slots.find_answer(lease.stream.slot, number)[0] for number in (1, 2, 3)] == [
        value.tobytes() for value in sums
    ]


def test_a_stream_resumes_under_a_higher_epoch_and_durable_up_to_its_checkpoint() -> None:
    """The content of a checkpoint is durable by definition."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 1)
    lease = resume(streams, engine, leave(streams, lease), 2)
    assert (lease.stream.epoch, lease.durable_step) == (2, 1)
    assert lease.stream.is_saved


def test_a_stream_that_does_not_fit_is_not_held() -> None:
    """A checkpoint of another size begins nothing, and the caller still has the slot to release."""
    engine, streams = make_engine(running_sum()), StreamTable()
    checkpoint = leave(streams, begin(streams, engine))
    slot = engine.slots.acquire(key("a"))
    with pytest.raises(CheckpointBroken):
        streams.resume(replace(checkpoint, payload=b""), engine.slots, slot, 2)
    assert streams.find(key("a")) is None
    engine.slots.release(slot)


def test_a_checkpoint_of_other_weights_is_never_resumed() -> None:
    """`decide_open` has refused it; if it comes here nevertheless, that is a bug of the server."""
    engine, streams = make_engine(running_sum()), StreamTable()
    checkpoint = leave(streams, begin(streams, engine))
    foreign = replace(checkpoint, model=checkpoint.model._replace(fingerprint="f" * 64))
    with pytest.raises(AssertionError):
        resume(streams, engine, foreign)


def test_a_woken_stream_continues_where_it_was() -> None:
    """Its call continues under the same lease and epoch, in any free slot."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    checkpoint = store(lease)
    streams.park(lease.stream)
    begin(streams, engine, "stranger")
    streams.wake(lease.stream, checkpoint, engine.slots.acquire(key("a")))
    assert lease.stream.phase is Phase.LIVE
    assert lease.stream.lease is lease
    assert (lease.stream.epoch, lease.stream.step) == (1, 1)
    assert lease.stream.is_saved
    assert step(engine, lease, 6).tolist() == [11]


def test_a_stream_that_never_got_beyond_step_0_wakes_without_a_checkpoint() -> None:
    """There is none: it starts with the model's initial state."""
    engine, streams = make_engine(running_sum(), capacity=1), StreamTable()
    lease = begin(streams, engine)
    streams.park(lease.stream)
    stranger = begin(streams, engine, "stranger")
    step(engine, stranger, 1000)
    leave(streams, stranger)
    streams.wake(lease.stream, None, engine.slots.acquire(key("a")))
    assert lease.stream.step == 0
    assert step(engine, lease, 5).tolist() == [5]


def test_a_stream_that_does_not_fit_stays_parked() -> None:
    """A checkpoint of another size wakes nothing. Its call keeps its lease, and the caller releases the slot."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    checkpoint = store(lease)
    streams.park(lease.stream)
    slot = engine.slots.acquire(key("a"))
    with pytest.raises(CheckpointBroken):
        streams.wake(lease.stream, replace(checkpoint, payload=b""), slot)
    assert lease.stream.phase is Phase.PARKED
    assert lease.stream.slot == -1
    assert lease.ended is None
    engine.slots.release(slot)


def test_a_live_stream_is_not_woken() -> None:
    """It would leave its slot in use for ever."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    with pytest.raises(AssertionError):
        streams.wake(lease.stream, None, engine.slots.acquire(key("a")))


# Leases.


def test_a_take_over_ends_the_old_lease_and_keeps_the_state() -> None:
    """The old call is reported once, and the new one continues in the same slot."""
    engine, streams = make_engine(running_sum()), StreamTable()
    old = begin(streams, engine)
    step(engine, old, 5)
    reported: list[TidegateError | None] = []
    old.on_end = lambda lease: reported.append(lease.ended)
    new = streams.take_over(old.stream, 2)
    assert isinstance(old.ended, TakenOver)
    assert reported == [old.ended]
    assert old.ended.epoch == 2
    assert new.ended is None
    assert new.stream is old.stream
    assert new.stream.lease is new
    assert (new.stream.epoch, new.stream.step) == (2, 1)
    assert step(engine, new, 6).tolist() == [11]


def test_a_stream_without_a_call_is_taken_over_too() -> None:
    """Its call has ended and it was not parked yet: nobody is reported, and it continues."""
    engine, streams = make_engine(running_sum()), StreamTable()
    old = begin(streams, engine)
    step(engine, old, 5)
    old.on_end = lambda _: pytest.fail("nobody is there")
    streams.release(old)
    new = streams.take_over(old.stream, 2)
    assert old.ended is None
    assert new.stream.lease is new
    assert step(engine, new, 6).tolist() == [11]


def test_a_take_over_knows_what_is_stored() -> None:
    """The new call gets the durable step of the store, not the last applied one."""
    engine, streams = make_engine(running_sum()), StreamTable()
    old = begin(streams, engine)
    step(engine, old, 5)
    store(old)
    step(engine, old, 6)
    assert streams.take_over(old.stream, 2).durable_step == 1


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_take_over_raises_the_epoch(epoch: int) -> None:
    """It cannot keep the epoch under which the old call writes."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    with pytest.raises(AssertionError):
        streams.take_over(lease.stream, epoch)
    assert lease.ended is None


def test_a_lease_ends_once() -> None:
    """A call gets one reason, the first."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    lease.end(TakenOver("a", 2))
    with pytest.raises(AssertionError):
        lease.end(StreamNotFound("a"))
    assert isinstance(lease.ended, TakenOver)


def test_letting_go_ends_nothing_and_stops_nothing() -> None:
    """The stream stays live, in its slot, until it is parked. No call is left to be reported."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 5)
    lease.on_end = lambda _: pytest.fail("nobody is there")
    streams.release(lease)
    assert lease.stream.lease is None
    assert lease.stream.phase is Phase.LIVE
    assert streams.find(key("a")) is lease.stream
    assert total(engine, lease) == 5


def test_a_call_releases_only_its_own_lease() -> None:
    """After a take-over the stream belongs to the other call."""
    engine, streams = make_engine(running_sum()), StreamTable()
    old = begin(streams, engine)
    new = streams.take_over(old.stream, 2)
    with pytest.raises(AssertionError):
        streams.release(old)
    assert new.stream.lease is new


def test_a_call_sees_what_is_stored_of_its_stream() -> None:
    """The lease reads it from the slot, without a notification."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    engine.slots.durable_step[lease.stream.slot] = 3
    assert lease.durable_step == 3


@pytest.mark.parametrize("how", ["take over", "drop", "park", "let go"])
def test_what_a_call_knew_to_be_stored_stays(how: str) -> None:
    """A lease whose slot is free, or another stream's, still knows its durable step."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    stream, slots = lease.stream, engine.slots
    slots.step[stream.slot] = slots.durable_step[stream.slot] = 3
    row = stream.slot
    match how:
        case "take over":
            streams.take_over(stream, 2)
        case "drop":
            streams.drop(stream, StreamNotFound("a"))
        case "park":
            streams.park(stream)
        case "let go":
            streams.release(lease)
    slots.durable_step[row] = 5
    assert lease.durable_step == 3


def test_what_a_call_knew_to_be_stored_never_falls() -> None:
    """A restarted store gets the last timestep again: then the slots show less than clients were reported."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    engine.slots.step[lease.stream.slot] = engine.slots.durable_step[lease.stream.slot] = 3
    streams.record_durable_steps()
    engine.slots.mark_unsaved()
    assert engine.slots.durable_step[lease.stream.slot] == 2
    assert lease.durable_step == 3


def test_live_streams_are_found_by_their_rows() -> None:
    """For as long as they are in them: through parking, waking, take-over and dropping."""
    engine, streams = make_engine(running_sum()), StreamTable()
    rows = streams.by_slot(engine.slots)
    one, two = begin(streams, engine, "a"), begin(streams, engine, "b")
    assert [rows[one.stream.slot], rows[two.stream.slot]] == [one.stream, two.stream]
    streams.take_over(one.stream, 2)
    assert rows[one.stream.slot] is one.stream
    left = two.stream.slot
    streams.park(two.stream)
    assert rows[left] is None
    streams.wake(two.stream, None, engine.slots.acquire(key("b")))
    assert rows[two.stream.slot] is two.stream
    left = one.stream.slot
    streams.drop(one.stream, StreamNotFound("a"))
    assert rows[left] is None


@pytest.mark.parametrize("parked", [False, True])
def test_a_dropped_stream_leaves_nothing(parked: bool) -> None:
    """Its slot is free and its name unknown, whatever was not stored. Its call gets the reason."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    if parked:
        streams.park(lease.stream)
    else:
        step(engine, lease, 5)
    reported: list[TidegateError | None] = []
    lease.on_end = lambda lease: reported.append(lease.ended)
    reason = TakenOver("a", 9)
    streams.drop(lease.stream, reason)
    assert len(engine.slots) == len(streams) == 0
    assert streams.find(key("a")) is None
    assert lease.stream.phase is Phase.NEW
    assert reported == [lease.ended] == [reason]


def test_a_call_reports_a_stream_that_is_already_gone() -> None:
    """The receiver of `on_end` may open the stream again at once."""
    engine, streams = make_engine(running_sum(), capacity=1), StreamTable()
    lease = begin(streams, engine)
    again: list[Lease] = []
    lease.on_end = lambda _: again.append(begin(streams, engine))
    streams.drop(lease.stream, StreamNotFound("a"))
    assert streams.find(key("a")) is again[0].stream


def test_a_stream_without_a_call_is_dropped_in_silence() -> None:
    """No call is left to be reported."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    lease.on_end = lambda _: pytest.fail("nobody is there")
    streams.release(lease)
    streams.drop(lease.stream, StreamNotFound("a"))
    assert len(streams) == 0
    assert lease.ended is None


def test_the_repr_has_the_step_of_a_stream() -> None:
    """Operators read it in logs."""
    engine, streams = make_engine(running_sum()), StreamTable()
    lease = begin(streams, engine)
    step(engine, lease, 1)
    assert repr(lease.stream) == "<Stream default/a live step 1, epoch 1>"
    assert repr(streams) == "<StreamTable: 1 streams>"
    leave(streams, lease)
    assert repr(lease.stream) == "<Stream default/a parked without a slot, epoch 1>"
