"""What a store promises; the one interface behind which the stores differ.

A store keeps, for each stream, the epoch of its last claim, the writer and the owner of that claim, and its last checkpoint.
The writer is the store object that claimed it; the owner is the client for whom it did, as a text that says nothing to the store.
Epoch and writer are the fence: whoever opens a stream raises the epoch and becomes its writer, and what comes later from another writer or under another epoch is
refused by the store itself, in the same atomic operation that would have written it. So a process that was frozen, cut off or
declared dead can wake up and do no harm. What was read before a claim is not what is owned after it, for the last writer may
have stored in between: so the claim itself gives the record.

An epoch never comes back. A stream that is deleted or expires leaves a tombstone, which keeps it; when tombstones vanish, the
highest of their epochs stays, and new streams begin above it. The writer tells apart what a store that has lost its
memory lets begin again.

A store object is a writer: it has a number that no other has, and says every so often that it is alive (`beat`). Two that share
a store tell each other to look at a stream through `notices`.

A store knows nothing of slots, models or calls. Times are nanoseconds since the UNIX epoch; they decide only what is
forgotten after long silence, and who is taken for dead; never who may write.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from serving.core.spec import Checkpoint, Key, ModelId

# A writer says so often that it is alive, in seconds, and is taken for dead when it has not for so long. A dead one's streams are
# shown as parked and may expire; nobody needs to wait for that to open them.
BEAT_SECONDS = 1.5
DEAD_SECONDS = 6.0


class Tombstone(IntEnum):
    """What is left of a stream, if only that is left of it."""

    NONE = 0
    EXPIRED = 1  # it was silent for too long; listed until the tombstone vanishes
    DELETED = 2  # somebody deleted it; not listed


class Holder(Enum):
    """Which process has a stream in memory, seen from a store object."""

    NOBODY = "nobody"
    SELF = "self"
    OTHER = "other"  # another writer, which is alive


class Mark(IntEnum):
    """What a writer says of a stream that it has claimed."""

    RELEASED = 0  # it is in memory no longer
    ASLEEP = 1  # a call has it open, but it owns no slot
    LIVE = 2


class Marking(NamedTuple):
    """A mark on a stream; `answered` is the number of the last `ask` that this settles, 0 for none."""

    key: Key
    epoch: int
    mark: Mark
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Head:
    """What a store knows of a stream without reading its state.

    `step` is the last stored timestep, 0 before the first. `holder` is who has it in memory, and `live` whether it owns a slot
    there; `mine` tells whether this store object claimed it last, and may store it. `asked` counts how often the holder was asked to
    store it, `answered` is the last of these that was settled. `owner` is the one that the last claim named; "" when it named none,
    and of a tombstone.
    """

    key: Key
    epoch: int
    step: int
    model: ModelId
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int
    tombstone: Tombstone = Tombstone.NONE
    holder: Holder = Holder.NOBODY
    live: bool = False
    mine: bool = False
    asked: int = 0
    answered: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What a store holds of a stream; `checkpoint` is None before the first, and of a tombstone."""

    head: Head
    checkpoint: Checkpoint | None


class Wanted(Enum):
    """Which streams a scan is to give; deleted ones are never given."""

    ALL = "all"
    HELD = "held"  # somebody who is alive has it in memory
    REST = "rest"  # nobody has
    EXPIRED = "expired"


class Store(Protocol):
    """Keeps checkpoints by key.

    Every method but `close` raises StoreUnavailable when the store cannot be read or written, whatever the reason, and then
    nothing has been changed that the caller would have to know of: it may try again.
    """

    survives: str
    """What a stored checkpoint survives, in words for the log: "a killed process", "a power loss", ..."""

    async def start(self) -> None:
        """Opens the store; StoreUnavailable, with what to do, when it cannot be used."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream, None when it is not known. CheckpointBroken when its record is damaged."""

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Makes the caller the stream's only writer, under `model` and for `owner`, and gives what is held of it from then on.

        Raises the epoch by one if it still is `seen_epoch` (0: the stream is not known; it begins above every epoch of a
        stream that is gone); gives None, and changes nothing, when somebody else was faster. Of a tombstone nothing is
        left but the epoch, which goes on from there. Another writer that had the stream in memory gets a notice.
        CheckpointBroken when the record is damaged: then the claim stands.

        `owner` takes the place of the one that was kept, also when it is "". The record is as of after the claim, so its head
        names the new one. Who was the owner before stands in the head that the caller loaded with `seen_epoch`. That is safe to
        decide by: the owner changes with the epoch alone, so a claim that is granted has found that owner still there.
        """

    async def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Claims a stream for no owner and stores its first state, in one write; nobody has it in memory then.

        The stream must not be known (`seen_epoch` 0) or be a tombstone of that epoch; gives None, and changes nothing, when it
        is neither. The epoch in `checkpoint` does not count.
        """

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps checkpoints of different streams, all in one commit.

        False for a stream that is not known, is a tombstone, or has another epoch or writer: its checkpoint was not written.
        When the call returns, those that are True survive what `survives` says.
        """

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Stores a state under the epoch and for the owner that it has, for its writer, after the store has lost the stream.

        False, and nothing is changed, when something is known of the stream, or may have been known since.
        """

    async def mark(self, markings: Sequence[Marking]) -> None:
        """Says of streams who has them in memory; of those whose writer the caller is not, under that epoch, nothing."""

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream, which gets a notice, to store it and say so with a mark.

        Gives the number by which `answered` of its head will tell that it has; None when the epoch is another.
        """

    async def forget(self, key: Key, epoch: int) -> bool:
        """Deletes a stream; False, and nothing is changed, when its epoch is not `epoch`, or it was deleted before.

        A tombstone keeps the epoch, raised by one, and no owner. Another writer that had the stream in memory gets a notice.
        """

    async def scan(
        self, tenant: str, prefix: str, after: str, limit: int, wanted: Wanted = Wanted.ALL
    ) -> tuple[list[Head], str | None]:
        """Heads of a tenant's streams, expired ones too, in the order of their ids (as UTF-8 bytes).

        Only ids that begin with `prefix` and come after `after`; at most `limit`. With them comes the id to go on after, None
        when there are no more: a call may stop early, so that it takes milliseconds however few of the streams are wanted.
        """

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns streams last updated before a time into tombstones, raising their epoch, without an owner; returns how many.

        Not those that are live in a writer that is alive. Tombstones of expired streams last updated before the second time
        vanish, those of deleted ones before the third. One call may stop after some thousand; call again until it gives 0.
        """

    async def count(self) -> int:
        """The streams that are known and not tombstones."""

    async def beat(self) -> str:
        """Says that this writer is alive; to be called every `BEAT_SECONDS` while it has streams in memory.

        Gives what the store's process goes by: when that is another, the store was restarted, or another one took its place,
        and may have less than was stored.
        """

    async def notices(self) -> list[Key]:
        """The streams that this writer is to look at, since it was last asked: each may have another writer, or be asked for."""

    async def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated; 0 when there is none."""

    def cpu_seconds(self) -> float:
        """The processor time that threads of the store have used; what it does in the event loop is not in it."""

    async def close(self) -> None:
        """Closes the store; what was saved is kept."""


def new_writer() -> int:
    """A number that no other writer has."""
    return secrets.randbits(62) + 1
