"""The life of a stream, as a state machine without a clock, a disk or a network.

    new ──open──► live ──park──► parked ──expire──► expired
                  │  ▲             │
                  │  └─open, step──┘
                  └─open (take-over)──► live, under a higher epoch

Rule 1: what may happen when is in `TRANSITIONS`; a pair that is not there is our own bug.
Rule 2: a live stream owns a slot, and nobody else does; a parked one owns nothing.
Rule 3: a call acts through a `Lease`. When the stream is taken over the old lease ends, and from then on nothing that
        is still under way for it may touch the stream. The epoch says the same to other processes, through the store.
Rule 4: what gives a slot back or copies it happens between batches; the owner of the engine sees to that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count

import numpy as np

from serving.core.errors import (
    CheckpointBroken,
    ModelMismatch,
    StateLost,
    StreamExists,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
)
from serving.core.slots import Slots
from serving.core.spec import Checkpoint, Checkpoints, Key, ModelId, Spec


class Phase(Enum):
    """Where a stream is in its life."""

    NEW = "new"
    LIVE = "live"
    PARKED = "parked"
    EXPIRED = "expired"


class Event(Enum):
    """What happens to a stream."""

    OPEN = "open"
    STEP = "step"
    PARK = "park"
    FORGET = "forget"  # is held no longer: it was deleted, taken over elsewhere, or lost
    EXPIRE = "expire"


TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.NEW, Event.OPEN): Phase.LIVE,  # begins at step 0
    (Phase.PARKED, Event.OPEN): Phase.LIVE,  # resumes
    (Phase.LIVE, Event.OPEN): Phase.LIVE,  # is taken over
    (Phase.LIVE, Event.STEP): Phase.LIVE,
    (Phase.PARKED, Event.STEP): Phase.LIVE,  # wakes
    (Phase.LIVE, Event.PARK): Phase.PARKED,
    (Phase.LIVE, Event.FORGET): Phase.NEW,
    (Phase.PARKED, Event.FORGET): Phase.NEW,
    (Phase.PARKED, Event.EXPIRE): Phase.EXPIRED,
    (Phase.EXPIRED, Event.FORGET): Phase.NEW,
}


# What to do about a stream that is not known and must exist.
HINT = "open it without EXISTENCE_MUST_EXIST to begin it"


class Existence(Enum):
    """What an open asks of a stream that exists already, or does not."""

    ANY = "any"
    MUST_EXIST = "must exist"
    MUST_BE_NEW = "must be new"


class OpenKind(Enum):
    """How a stream came to be open."""

    NEW = "new"
    RESUMED = "resumed"
    TAKEN_OVER = "taken_over"


@dataclass(frozen=True, slots=True)
class Ask:
    """What an open asks for.

    `owner` is the token of the client, empty when it has none. `resume_from` is 0 when the client opens the stream for the first
    time, else the number of the first timestep that it can still send.
    """

    existence: Existence = Existence.ANY
    owner: str = ""
    resume_from: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a stream when it is opened: where it is in its life, at which timestep, under which model, and whose it is.

    One that is NEW was deleted: that is all that is known of it. `owner` and `epoch` are those of its last open.
    """

    phase: Phase
    step: int
    model: ModelId
    owner: str = ""
    epoch: int = 0


def rule_on_open(key: Key, known: Known | None, spec: Spec, ask: Ask) -> OpenKind:
    """Decides how a stream may be opened under the model of `spec`.

    Raises:
        StreamExists: it exists and must be new.
        StreamNotFound: it does not exist and must, or it was deleted and the client goes on from before that.
        StreamExpired: it was forgotten; only an open that wants a new one may begin again.
        TakenOver: the client goes on, and another owner has opened the stream since.
        ModelMismatch: its state was made by other weights.
        StateLost: the client goes on, and timesteps are missing that it cannot send again.

    """
    if known is not None and known.phase is Phase.EXPIRED:
        if ask.existence is not Existence.MUST_BE_NEW:
            raise StreamExpired(key.stream_id, known.step)
        known = None
    if known is None or known.phase is Phase.NEW:
        return _rule_on_begin(key, ask, deleted=known is not None)
    mine = bool(ask.owner) and ask.owner == known.owner
    if ask.existence is Existence.MUST_BE_NEW:
        if mine and known.step == 0:  # the answer to its first open was lost on the way
            return OpenKind.NEW
        raise StreamExists(key.stream_id)
    if ask.resume_from and ask.owner and not mine:
        raise TakenOver(key.stream_id, known.epoch)
    _check_model(key, known.model, spec)
    if ask.resume_from > known.step + 1:
        raise StateLost(key.stream_id, known.step, ask.resume_from - 1)
    return OpenKind.TAKEN_OVER if known.phase is Phase.LIVE else OpenKind.RESUMED


def _rule_on_begin(key: Key, ask: Ask, *, deleted: bool) -> OpenKind:
    """Decides whether a stream may begin that is not there."""
    if ask.existence is Existence.MUST_EXIST:
        raise StreamNotFound(key.stream_id, hint=HINT)
    if deleted and ask.resume_from:
        raise StreamNotFound(key.stream_id)
    if ask.resume_from > 1:
        raise StateLost(key.stream_id, 0, ask.resume_from - 1)
    return OpenKind.NEW


def _check_model(key: Key, model: ModelId, spec: Spec) -> None:
    """Raises ModelMismatch when a state was made by other weights than those of `spec`."""
    if model.fingerprint == spec.fingerprint:
        return
    if model.title != spec.title:
        raise ModelMismatch(key.stream_id, spec.title, model.title)
    was, now = model.fingerprint[:12], spec.fingerprint[:12]
    raise ModelMismatch(key.stream_id, f"the same name with fingerprint {now}", f"{spec.title} with fingerprint {was}")


class Stream:
    """A stream that this process holds.

    `slot` is its row while it is live and -1 while it is parked. `lease` is the hold of the call that has it open, None
    when its call has gone and it is on its way to the store. `owner` is the token of the client that opened it last.
    """

    __slots__ = ("epoch", "key", "lease", "owner", "phase", "slot", "slots")

    def __init__(self, key: Key, slots: Slots, epoch: int, owner: str) -> None:
        self.key = key
        self.slots = slots
        self.slot = -1
        self.epoch = epoch
        self.owner = owner
        self.phase = Phase.NEW
        self.lease: Lease | None = None

    def __repr__(self) -> str:
        at = f"step {self.step}" if self.phase is Phase.LIVE else "at rest"
        return f"<Stream {self.key.tenant}/{self.key.stream_id} {self.phase.value} {at}, epoch {self.epoch}>"

    @property
    def step(self) -> int:
        """The last applied timestep, of a live stream."""
        assert self.phase is Phase.LIVE
        return int(self.slots.step[self.slot])

    @property
    def saved(self) -> bool:
        """Whether everything of a live stream is stored."""
        return bool(self.slots.saved[self.slot] == self.slots.step[self.slot])

    def go(self, event: Event) -> None:
        """Moves along `TRANSITIONS`."""
        self.phase = TRANSITIONS[self.phase, event]


class Lease:
    """One call's hold on a stream; over for good once `ended` says why.

    `number` is never given twice; while the stream is live its row carries it, so that many holds can be checked at once.
    `handle` is what a call that holds many streams knows it by. `on_end` is called once, when the hold has ended, so that the
    call can leave; `on_durable` whenever `durable_step` has risen.
    """

    __slots__ = ("_durable_step", "ended", "handle", "number", "on_durable", "on_end", "stream")

    def __init__(self, stream: Stream, number: int, durable_step: int) -> None:
        self.stream = stream
        self.number = number
        self.handle = 0
        self._durable_step = durable_step
        self.ended: TidegateError | None = None
        self.on_end: Callable[[Lease], None] | None = None
        self.on_durable: Callable[[], None] | None = None

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored; as it was when the hold ended, if it has.

        It never falls, not even when a store that was restarted gets the last timestep of every stream again.
        """
        stream = self.stream
        if stream.lease is self and stream.slot >= 0:
            self._durable_step = max(self._durable_step, stream.slots.saved.item(stream.slot))
        return self._durable_step

    def note(self) -> None:
        """Takes note of `durable_step`, before what tells it is there no longer."""
        self._durable_step = self.durable_step

    def end(self, reason: TidegateError) -> None:
        """Ends the hold. Only once."""
        assert self.ended is None
        self.note()
        self.ended = reason
        if self.on_end is not None:
            self.on_end(self)


class Streams:
    """The streams that this process holds, by key."""

    def __init__(self) -> None:
        self._streams: dict[Key, Stream] = {}
        self._rows: dict[Slots, list[Stream | None]] = {}
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<Streams: {len(self._streams)} held>"

    def __len__(self) -> int:
        """The streams held."""
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def find(self, key: Key) -> Stream | None:
        """The stream of that key, if this process holds it."""
        return self._streams.get(key)

    def rows(self, slots: Slots) -> Sequence[Stream | None]:
        """The live streams of a model by their slots: thousands are found at once without their keys."""
        return self._by_slot(slots)

    def note_durable(self) -> None:
        """Has every lease take note of what is stored now: the slots are about to tell less."""
        for stream in self:
            if stream.lease is not None:
                stream.lease.note()

    def begin(self, key: Key, slots: Slots, slot: int, epoch: int, owner: str = "") -> Lease:
        """Begins a stream at step 0 in a slot that was acquired for it."""
        stream = self._hold(key, slots, epoch, owner)
        self._give_slot(stream, slot)
        stream.go(Event.OPEN)
        return self._lease(stream, 0)

    def resume(self, checkpoint: Checkpoint, slots: Slots, slot: int, epoch: int, owner: str = "") -> Lease:
        """Goes on from a checkpoint, under a higher epoch, in a slot that was acquired for it.

        Raises CheckpointBroken, and holds nothing, when the checkpoint does not fit the model; the slot stays acquired.
        """
        assert checkpoint.model.fingerprint == slots.spec.fingerprint
        _unpack(checkpoint, slots, slot)
        stream = self._hold(checkpoint.key, slots, epoch, owner)
        self._give_slot(stream, slot)
        stream.phase = Phase.PARKED
        stream.go(Event.OPEN)
        return self._lease(stream, checkpoint.step)

    def take_over(self, stream: Stream, epoch: int, owner: str = "") -> Lease:
        """Gives a live stream to another call; a lease before it ends, the state stays where it is."""
        assert epoch > stream.epoch
        if stream.lease is not None:
            stream.lease.end(TakenOver(stream.key.stream_id, epoch))
        stream.epoch = epoch
        stream.owner = owner
        stream.go(Event.OPEN)
        return self._lease(stream, int(stream.slots.saved[stream.slot]))

    def go_on(self, stream: Stream) -> Lease:
        """Gives a live stream that no call has open to another call, under the epoch and the owner that it has."""
        assert stream.lease is None
        assert stream.phase is Phase.LIVE
        return self._lease(stream, int(stream.slots.saved[stream.slot]))

    def let_go(self, lease: Lease) -> None:
        """Ends the hold of a call that has gone; the stream stays live until it is parked."""
        stream = lease.stream
        assert stream.lease is lease
        lease.note()
        stream.lease = None
        if stream.phase is Phase.LIVE:
            stream.slots.holder[stream.slot] = 0

    def park(self, stream: Stream) -> None:
        """Takes a stream whose state is stored out of its slot. Unless a call has it open, it is held no longer."""
        assert stream.saved
        stream.go(Event.PARK)
        self._give_up_slot(stream)
        if stream.lease is None:
            del self._streams[stream.key]

    def wake(self, stream: Stream, checkpoint: Checkpoint | None, slot: int) -> None:
        """Puts a parked stream that a call has open back into a slot; None means that it never got beyond step 0.

        Raises CheckpointBroken, and changes nothing, when the checkpoint does not fit the model.
        """
        assert stream.phase is Phase.PARKED
        if checkpoint is not None:
            _unpack(checkpoint, stream.slots, slot)
        self._give_slot(stream, slot)
        if stream.lease is not None:
            stream.slots.holder[slot] = stream.lease.number
        stream.go(Event.STEP)

    def drop(self, stream: Stream, reason: TidegateError) -> None:
        """Holds a stream no longer, whatever of it is not stored: it was taken over elsewhere, or deleted.

        Does nothing to one that is held no longer: two may find out at the same time, and both wait for a batch.
        """
        if self._streams.get(stream.key) is not stream:
            return
        if stream.phase is Phase.LIVE:
            self._give_up_slot(stream)
        stream.go(Event.FORGET)
        del self._streams[stream.key]
        if stream.lease is not None:
            stream.lease.end(reason)

    def _hold(self, key: Key, slots: Slots, epoch: int, owner: str) -> Stream:
        assert key not in self._streams
        stream = self._streams[key] = Stream(key, slots, epoch, owner)
        return stream

    def _lease(self, stream: Stream, durable_step: int) -> Lease:
        lease = stream.lease = Lease(stream, next(self._numbers), durable_step)
        stream.slots.holder[stream.slot] = lease.number
        return lease

    def _by_slot(self, slots: Slots) -> list[Stream | None]:
        rows = self._rows.get(slots)
        if rows is None:
            rows = self._rows[slots] = [None] * slots.capacity
        return rows

    def _give_slot(self, stream: Stream, slot: int) -> None:
        self._by_slot(stream.slots)[slot] = stream
        stream.slot = slot

    def _give_up_slot(self, stream: Stream) -> None:
        if stream.lease is not None:
            stream.lease.note()
        self._by_slot(stream.slots)[stream.slot] = None
        stream.slots.release(stream.slot)
        stream.slot = -1


def checkpoint_rows(streams: Sequence[Stream]) -> Checkpoints:
    """Copies live streams of one model, at least one, as they are now, each with the number that belongs to its state."""
    slots = streams[0].slots
    rows = np.array([stream.slot for stream in streams], np.int64)
    return Checkpoints(
        [stream.key for stream in streams],
        [stream.epoch for stream in streams],
        slots.step[rows],
        slots.spec.id,
        slots.answers,
        slots.pack(rows),
    )


def check_fits(checkpoint: Checkpoint, slots: Slots) -> None:
    """Raises CheckpointBroken when a checkpoint is not of the size that this model's rows have."""
    got, expected = len(checkpoint.payload), slots.row_bytes(checkpoint.answers)
    if got != expected:
        where = f"stream '{checkpoint.key.stream_id}'"
        raise CheckpointBroken(where, f"its state has {got} bytes, expected {expected} under {slots.spec.title}")


def _unpack(checkpoint: Checkpoint, slots: Slots, slot: int) -> None:
    check_fits(checkpoint, slots)
    slots.unpack(slot, checkpoint.step, checkpoint.answers, checkpoint.payload)
