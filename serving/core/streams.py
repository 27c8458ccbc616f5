"""The life cycle of a stream, as a state machine without a clock, a disk or a network.

    new ──open──► live ──park──► parked ──expire──► expired
                  │  ▲             │
                  │  └─open, step──┘
                  └─open (take-over)──► live, under a higher epoch

Rule 1: `TRANSITIONS` lists what may happen when. A pair that is not in it is a bug of the server.
Rule 2: a live stream owns a slot. Nobody else owns that slot. A parked stream owns nothing.
Rule 3: a call acts through a `Lease`. When another call takes the stream over, the old lease ends, and work that is
still under way for it must not touch the stream. The epoch enforces the same between processes, through the store.
Rule 4: what releases or copies a slot happens between batches. The owner of the engine ensures this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count

import numpy as np

from tidegate.core.errors import (
    ModelMismatch,
    StateLost,
    StreamExists,
    StreamExpired,
    StreamNotFound,
    TakenOver,
    TidegateError,
)
from tidegate.core.input_layout import StreamInputs
from tidegate.core.named_inputs import Named
from tidegate.core.payload import unpack_checkpoint
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint, Checkpoints, Key, ModelId, Spec


class Phase(Enum):
    """Where a stream is in its life cycle."""

    NEW = "new"
    LIVE = "live"
    PARKED = "parked"
    EXPIRED = "expired"


class Event(Enum):
    """What happens to a stream."""

    OPEN = "open"
    STEP = "step"
    PARK = "park"
    FORGET = "forget"  # it leaves this process: it was deleted, taken over by another server, or lost
    EXPIRE = "expire"


TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.NEW, Event.OPEN): Phase.LIVE,  # starts at step 0
    (Phase.PARKED, Event.OPEN): Phase.LIVE,  # resumes
    (Phase.LIVE, Event.OPEN): Phase.LIVE,  # take-over
    (Phase.LIVE, Event.STEP): Phase.LIVE,
    (Phase.PARKED, Event.STEP): Phase.LIVE,  # wakes
    (Phase.LIVE, Event.PARK): Phase.PARKED,
    (Phase.LIVE, Event.FORGET): Phase.NEW,
    (Phase.PARKED, Event.FORGET): Phase.NEW,
    (Phase.PARKED, Event.EXPIRE): Phase.EXPIRED,
    (Phase.EXPIRED, Event.FORGET): Phase.NEW,
}


# The advice for a stream that does not exist and must exist.
MUST_EXIST_HINT = "open it without EXISTENCE_MUST_EXIST to begin it"


class Existence(Enum):
    """What an open requires of an existing or a missing stream."""

    ANY = "any"
    MUST_EXIST = "must exist"
    MUST_BE_NEW = "must be new"


class OpenKind(Enum):
    """How a stream was opened."""

    NEW = "new"
    RESUMED = "resumed"
    TAKEN_OVER = "taken_over"


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What an open asks for.

    `owner` is the token of the client; empty when it has none. `resume_from` is 0 when the client opens the stream for
    the first time, else the number of the first timestep that it can still send. `inputs` are those that the model takes
    once for each stream, not checked yet. `accept_move` tells that the stream may move to another version also later,
    while the client has it open. `answered` is the last timestep whose answer the client has. `move_now` tells that the
    stream may move at this open.
    """

    existence: Existence = Existence.ANY
    owner: str = ""
    resume_from: int = 0
    inputs: Named = ()
    move_now: bool = False
    accept_move: bool = False
    answered: int = 0


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What is known about a stream when it is opened: its phase, its last timestep, its model and its owner.

    Of a NEW stream only one thing is known: it was deleted. `owner` and `epoch` are those of its last open.
    """

    phase: Phase
    step: int
    model: ModelId
    owner: str = ""
    epoch: int = 0


def decide_open(key: Key, status: StreamStatus | None, spec: Spec, options: OpenOptions) -> OpenKind:
    """Decides how a stream may be opened under the model of `spec`.

    Raises:
        StreamExists: it exists and must be new.
        StreamNotFound: it does not exist and must, or it was deleted and the client continues from before that.
        StreamExpired: it has expired; only an open that requires a new stream may begin it again.
        TakenOver: the client continues, and another owner has opened the stream since.
        ModelMismatch: other weights made its state.
        StateLost: the client continues, and timesteps are missing that it cannot send again.

    """
    if status is not None and status.phase is Phase.EXPIRED:
        if options.existence is not Existence.MUST_BE_NEW:
            raise StreamExpired(key.stream_id, status.step)
        status = None
    if status is None or status.phase is Phase.NEW:
        return _decide_new(key, options, deleted=status is not None)
    same_owner = bool(options.owner) and options.owner == status.owner
    if options.existence is Existence.MUST_BE_NEW:
        if same_owner and status.step == 0:  # the answer to its first open was lost in transit
            return OpenKind.NEW
        raise StreamExists(key.stream_id)
    if options.resume_from and options.owner and not same_owner:
        raise TakenOver(key.stream_id, status.epoch)
    _check_model(key, status.model, spec)
    if options.resume_from > status.step + 1:
        raise StateLost(key.stream_id, status.step, options.resume_from - 1)
    return OpenKind.TAKEN_OVER if status.phase is Phase.LIVE else OpenKind.RESUMED


def _decide_new(key: Key, options: OpenOptions, *, deleted: bool) -> OpenKind:
    """Decides whether an unknown stream may begin."""
    if options.existence is Existence.MUST_EXIST:
        raise StreamNotFound(key.stream_id, hint=MUST_EXIST_HINT)
    if deleted and options.resume_from:
        raise StreamNotFound(key.stream_id)
    if options.resume_from > 1:
        raise StateLost(key.stream_id, 0, options.resume_from - 1)
    return OpenKind.NEW


def _check_model(key: Key, model: ModelId, spec: Spec) -> None:
    """Raises ModelMismatch when other weights than those of `spec` made a state."""
    if model.fingerprint == spec.fingerprint:
        return
    if model.title != spec.title:
        raise ModelMismatch(key.stream_id, spec.title, model.title)
    was, now = model.fingerprint[:12], spec.fingerprint[:12]
    raise ModelMismatch(key.stream_id, f"the same name with fingerprint {now}", f"{spec.title} with fingerprint {was}")


class Stream:
    """A stream in this process.

    `slot` is its row while it is live, -1 while it is parked. `lease` belongs to the call that has the stream open;
    None when that call has ended and the stream waits to be stored. `owner` is the token of the client that opened it
    last. `inputs` are those that it began with, while it is parked before its first timestep: nothing of it is stored.
    `needs_wake` tells that its call must wake it before its next timestep: it is parked, or it is to move to another
    version.
    """

    __slots__ = ("epoch", "inputs", "key", "lease", "needs_wake", "owner", "phase", "slot", "slots")

    def __init__(self, key: Key, slots: Slots, epoch: int, owner: str) -> None:
        self.key = key
        self.slots = slots
        self.slot = -1
        self.needs_wake = True
        self.epoch = epoch
        self.owner = owner
        self.phase = Phase.NEW
        self.lease: Lease | None = None
        self.inputs: StreamInputs = ()

    def __repr__(self) -> str:
        at = f"step {self.step}" if self.phase is Phase.LIVE else "without a slot"
        return f"<Stream {self.key.tenant}/{self.key.stream_id} {self.phase.value} {at}, epoch {self.epoch}>"

    @property
    def step(self) -> int:
        """The last applied timestep of a live stream."""
        assert self.phase is Phase.LIVE
        return self.slots.steps[self.slot]

    @property
    def is_saved(self) -> bool:
        """Whether the last timestep of a live stream is stored."""
        return bool(self.slots.durable_step[self.slot] == self.slots.step[self.slot])

    def transition(self, event: Event) -> None:
        """Changes the phase as `TRANSITIONS` says."""
        self.phase = TRANSITIONS[self.phase, event]


class Lease:
    """The exclusive right of one call to a stream. It is over for good once `ended` says why.

    `number` is unique in the process. While the stream is live its slot carries the number, so that many leases are
    checked at once. `handle` is the stream's handle on a call with many streams. `on_end` is called once, when the
    lease has ended, so that the call can leave. `on_durable` is called whenever `durable_step` has risen. `accept_move`
    and `answered` are those of `OpenOptions`.
    """

    __slots__ = (
        "_durable_step", "accept_move", "answered", "ended", "handle", "number", "on_durable", "on_end", "stream",
    )  # fmt: skip

    def __init__(self, stream: Stream, number: int, durable_step: int) -> None:
        self.stream = stream
        self.number = number
        self.handle = 0
        self.accept_move = False
        self.answered = 0
        self._durable_step = durable_step
        self.ended: TidegateError | None = None
        self.on_end: Callable[[Lease], None] | None = None
        self.on_durable: Callable[[], None] | None = None

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored; when the lease has ended, as of its end.

        It never falls, not even when a restarted store gets the last timestep of every stream again.
        """
        stream = self.stream
        if stream.lease is self and stream.slot >= 0:
            self._durable_step = max(self._durable_step, stream.slots.durable_steps[stream.slot])
        return self._durable_step

    def record_durable_step(self) -> None:
        """Keeps `durable_step`, before the slot that holds it is released."""
        self._durable_step = self.durable_step

    def end(self, reason: TidegateError) -> None:
        """Ends the lease. Call it only once."""
        assert self.ended is None
        self.record_durable_step()
        self.ended = reason
        if self.on_end is not None:
            self.on_end(self)


class StreamTable:
    """The streams of this process, by key."""

    def __init__(self) -> None:
        self._streams: dict[Key, Stream] = {}
        self._rows: dict[Slots, list[Stream | None]] = {}
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<StreamTable: {len(self._streams)} streams>"

    def __len__(self) -> int:
        """The number of streams."""
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def find(self, key: Key) -> Stream | None:
        """The stream with that key, if it is in this process."""
        return self._streams.get(key)

    def by_slot(self, slots: Slots) -> Sequence[Stream | None]:
        """The live streams of a model, indexed by slot: thousands are found at once without their keys."""
        return self._slot_table(slots)

    def record_durable_steps(self) -> None:
        """Makes every lease keep its durable step: the slots are about to show less."""
        for stream in self:
            if stream.lease is not None:
                stream.lease.record_durable_step()

    def begin(self, key: Key, slots: Slots, slot: int, epoch: int, owner: str = "") -> Lease:
        """Begins a stream at step 0 in a slot that was acquired for it."""
        stream = self._add(key, slots, epoch, owner)
        self._assign_slot(stream, slot)
        stream.transition(Event.OPEN)
        return self._lease(stream, 0)

    def resume(self, checkpoint: Checkpoint, slots: Slots, slot: int, epoch: int, owner: str = "") -> Lease:
        """Continues a stream from a checkpoint, under a higher epoch, in a slot that was acquired for it.

        Raises CheckpointBroken when the checkpoint does not fit the model. Then the stream is not added, and the slot
        stays acquired.
        """
        assert checkpoint.model.fingerprint == slots.spec.fingerprint
        unpack_checkpoint(checkpoint, slots, slot)
        stream = self._add(checkpoint.key, slots, epoch, owner)
        self._assign_slot(stream, slot)
        stream.phase = Phase.PARKED
        stream.transition(Event.OPEN)
        return self._lease(stream, checkpoint.step)

    def take_over(self, stream: Stream, epoch: int, owner: str = "") -> Lease:
        """Gives a live stream to another call. The old lease ends; the state stays in its slot."""
        assert epoch > stream.epoch
        if stream.lease is not None:
            stream.lease.end(TakenOver(stream.key.stream_id, epoch))
        stream.epoch = epoch
        stream.owner = owner
        stream.transition(Event.OPEN)
        return self._lease(stream, int(stream.slots.durable_step[stream.slot]))

    def reacquire(self, stream: Stream) -> Lease:
        """Gives a live stream that no call has open to a call, under its current epoch and owner."""
        assert stream.lease is None
        assert stream.phase is Phase.LIVE
        return self._lease(stream, int(stream.slots.durable_step[stream.slot]))

    def release(self, lease: Lease) -> None:
        """Ends the lease of a call that has ended. The stream stays live until it is parked."""
        stream = lease.stream
        assert stream.lease is lease
        lease.record_durable_step()
        stream.lease = None
        if stream.phase is Phase.LIVE:
            stream.slots.lease_number[stream.slot] = 0

    def park(self, stream: Stream) -> None:
        """Releases the slot of a stream whose state is stored.

        Unless a call has the stream open, it leaves this process.
        """
        assert stream.is_saved
        if stream.slots.stream_inputs and not stream.step:
            stream.inputs = stream.slots.get_stream_inputs(stream.slot)
        stream.transition(Event.PARK)
        self._free_slot(stream)
        if stream.lease is None:
            del self._streams[stream.key]

    def wake(self, stream: Stream, checkpoint: Checkpoint | None, slot: int) -> None:
        """Puts a parked stream that a call has open back into a slot.

        `checkpoint` is None when it never got beyond step 0.

        Raises CheckpointBroken, and changes nothing, when the checkpoint does not fit the model.
        """
        assert stream.phase is Phase.PARKED
        if checkpoint is not None:
            unpack_checkpoint(checkpoint, stream.slots, slot)
        else:
            stream.slots.set_stream_inputs(slot, stream.inputs)
        self._assign_slot(stream, slot)
        if stream.lease is not None:
            stream.slots.lease_number[slot] = stream.lease.number
        stream.transition(Event.STEP)

    def change_version(self, stream: Stream, checkpoint: Checkpoint, slots: Slots, slot: int) -> None:
        """Moves a live stream into a slot of another version, which continues from its stored checkpoint.

        Raises CheckpointBroken, and changes nothing, when the checkpoint does not fit that version.
        """
        assert stream.phase is Phase.LIVE
        assert checkpoint.model.fingerprint == slots.spec.fingerprint
        unpack_checkpoint(checkpoint, slots, slot)
        self._free_slot(stream)
        stream.slots, stream.epoch = slots, checkpoint.epoch
        self._assign_slot(stream, slot)
        if stream.lease is not None:
            slots.lease_number[slot] = stream.lease.number

    def drop(self, stream: Stream, reason: TidegateError) -> None:
        """Removes a stream from this process, even if it is not stored. `reason` ends its lease.

        Does nothing when the stream was removed before: two tasks may find out at the same time, and both wait for a
        batch to end.
        """
        if self._streams.get(stream.key) is not stream:
            return
        if stream.phase is Phase.LIVE:
            self._free_slot(stream)
        stream.transition(Event.FORGET)
        del self._streams[stream.key]
        if stream.lease is not None:
            stream.lease.end(reason)

    def forget(self, slots: Slots) -> None:
        """Frees what is kept for a model that has no streams here."""
        self._rows.pop(slots, None)

    def _add(self, key: Key, slots: Slots, epoch: int, owner: str) -> Stream:
        assert key not in self._streams
        stream = self._streams[key] = Stream(key, slots, epoch, owner)
        return stream

    def _lease(self, stream: Stream, durable_step: int) -> Lease:
        lease = stream.lease = Lease(stream, next(self._numbers), durable_step)
        stream.slots.lease_number[stream.slot] = lease.number
        return lease

    def _slot_table(self, slots: Slots) -> list[Stream | None]:
        rows = self._rows.get(slots)
        if rows is None:
            rows = self._rows[slots] = [None] * slots.capacity
        return rows

    def _assign_slot(self, stream: Stream, slot: int) -> None:
        self._slot_table(stream.slots)[slot] = stream
        stream.slot = slot
        stream.needs_wake = False

    def _free_slot(self, stream: Stream) -> None:
        if stream.lease is not None:
            stream.lease.record_durable_step()
        self._slot_table(stream.slots)[stream.slot] = None
        stream.slots.release(stream.slot)
        stream.slot = -1
        stream.needs_wake = True


def checkpoint_rows(streams: Sequence[Stream]) -> Checkpoints:
    """Copies live streams of one model, at least one, as they are now. Each state comes with its own step number."""
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
