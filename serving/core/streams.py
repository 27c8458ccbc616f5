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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from serving.core.errors import (
    ModelMismatch,
    StreamExists,
    StreamNotFound,
    TakenOver,
    TidegateError,
)
from serving.core.slots import Slots
from serving.core.spec import Checkpoint, Key, Spec


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
    FORGET = "forget"
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
class Known:
    """What is known of a stream when it is opened: where it is in its life and which model it runs under."""

    phase: Phase
    model: str
    version: str
    fingerprint: str


def rule_on_open(key: Key, known: Known | None, spec: Spec, existence: Existence) -> OpenKind:
    """Decides how a stream may be opened under the model of `spec`.

    Raises:
        StreamExists: it exists and must be new.
        StreamNotFound: it does not exist and must.
        ModelMismatch: its state was made by other weights.

    """
    if known is None or known.phase is Phase.NEW:
        if existence is Existence.MUST_EXIST:
            raise StreamNotFound(key.stream_id)
        return OpenKind.NEW
    if existence is Existence.MUST_BE_NEW:
        raise StreamExists(key.stream_id)
    if known.fingerprint != spec.fingerprint:
        runs_under = f"{known.model}/{known.version}"
        if runs_under == spec.title:
            runs_under += f" with fingerprint {known.fingerprint[:12]}"
            raise ModelMismatch(key.stream_id, f"that of fingerprint {spec.fingerprint[:12]}", runs_under)
        raise ModelMismatch(key.stream_id, spec.title, runs_under)
    return OpenKind.TAKEN_OVER if known.phase is Phase.LIVE else OpenKind.RESUMED


class Stream:
    """A stream that this process holds.

    `slot` is its row while it is live and -1 while it is parked; `durable_step` the last timestep whose state is stored.
    """

    __slots__ = ("durable_step", "epoch", "key", "lease", "phase", "slot", "slots")

    def __init__(self, key: Key, slots: Slots, slot: int, epoch: int) -> None:
        self.key = key
        self.slots = slots
        self.slot = slot
        self.epoch = epoch
        self.phase = Phase.NEW
        self.durable_step = 0
        self.lease = Lease(self)

    def __repr__(self) -> str:
        at = f"step {self.step}" if self.phase is Phase.LIVE else "at rest"
        return f"<Stream {self.key.tenant}/{self.key.stream_id} {self.phase.value} {at}, epoch {self.epoch}>"

    @property
    def step(self) -> int:
        """The last applied timestep, of a live stream."""
        assert self.phase is Phase.LIVE
        return int(self.slots.step[self.slot])

    def go(self, event: Event) -> None:
        """Moves along `TRANSITIONS`."""
        self.phase = TRANSITIONS[self.phase, event]


class Lease:
    """One call's hold on a stream; over for good once `ended` says why.

    `on_end` is called once, when that happens, so that the call can leave.
    """

    __slots__ = ("ended", "on_end", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.ended: TidegateError | None = None
        self.on_end: Callable[[TidegateError], None] | None = None

    def end(self, reason: TidegateError) -> None:
        """Ends the hold. Only once."""
        assert self.ended is None
        self.ended = reason
        if self.on_end is not None:
            self.on_end(reason)


class Streams:
    """The streams that this process holds, by key."""

    def __init__(self) -> None:
        self._streams: dict[Key, Stream] = {}

    def __repr__(self) -> str:
        return f"<Streams: {len(self._streams)} held>"

    def __len__(self) -> int:
        """The streams held."""
        return len(self._streams)

    def find(self, key: Key) -> Stream | None:
        """The stream of that key, if this process holds it."""
        return self._streams.get(key)

    def begin(self, key: Key, slots: Slots, slot: int, epoch: int) -> Lease:
        """Begins a stream at step 0 in a slot that was acquired for it."""
        stream = self._hold(key, slots, slot, epoch)
        stream.go(Event.OPEN)
        return stream.lease

    def resume(self, checkpoint: Checkpoint, slots: Slots, slot: int, epoch: int) -> Lease:
        """Goes on from a checkpoint, under a higher epoch, in a slot that was acquired for it."""
        assert checkpoint.fingerprint == slots.spec.fingerprint
        assert epoch > checkpoint.epoch
        stream = self._hold(checkpoint.key, slots, slot, epoch)
        slots.write(slot, checkpoint.step, checkpoint.state, checkpoint.answers)
        stream.phase = Phase.PARKED
        stream.durable_step = checkpoint.step
        stream.go(Event.OPEN)
        return stream.lease

    def take_over(self, stream: Stream, epoch: int) -> Lease:
        """Gives a live stream to another call; the lease before it ends, its state stays where it is."""
        assert epoch > stream.epoch
        stream.lease.end(TakenOver(stream.key.stream_id, epoch))
        stream.epoch = epoch
        stream.lease = Lease(stream)
        stream.go(Event.OPEN)
        return stream.lease

    def park(self, stream: Stream) -> Checkpoint:
        """Takes a stream out of its slot; gives what the slot held. The process no longer holds it."""
        checkpoint = self.checkpoint(stream)
        stream.go(Event.PARK)
        self._let_go(stream)
        return checkpoint

    def forget(self, stream: Stream) -> None:
        """Drops a stream and its state."""
        stream.go(Event.FORGET)
        self._let_go(stream)

    def checkpoint(self, stream: Stream) -> Checkpoint:
        """Copies a live stream as it is now."""
        spec = stream.slots.spec
        step, state, answers = stream.slots.read(stream.slot)
        return Checkpoint(stream.key, stream.epoch, step, spec.name, spec.version, spec.fingerprint, state, answers)

    def _hold(self, key: Key, slots: Slots, slot: int, epoch: int) -> Stream:
        assert key not in self._streams
        stream = Stream(key, slots, slot, epoch)
        self._streams[key] = stream
        return stream

    def _let_go(self, stream: Stream) -> None:
        stream.slots.release(stream.slot)
        stream.slot = -1
        del self._streams[stream.key]
