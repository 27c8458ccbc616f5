"""The interface of the stores.

For each stream a store keeps the epoch of its last claim, the writer and the owner of that claim, and its last
checkpoint. The writer is the store object that claimed the stream. The owner is the client for whom it did; its token
means nothing to the store. Epoch and writer are the fence. Whoever opens a stream raises the epoch and becomes its
writer. The store refuses later writes from another writer or under another epoch, in the same atomic operation that
would have written them. So a process that was suspended, cut off or declared dead can do no harm when it wakes up. A
record that was read before a claim may be out of date, because the last writer may have saved in between. So the claim
itself returns the record.

An epoch is never reused. A stream that is deleted or expires leaves a tombstone with its epoch. When tombstones are
deleted, the highest of their epochs is kept, and new streams begin above it. When a store has lost its data, epochs may
start again; the writer tells such streams apart.

A store object is a writer. It has a unique number, and shows by heartbeats that it is alive. Two writers that share a
store send each other notices: the receiver looks at the stream.

A store knows nothing of slots, models or calls. Times are nanoseconds since the UNIX epoch. They decide only which
streams expire and which writers count as dead, never who may write.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from tidegate.core.spec import Checkpoint, Key, ModelId

# The interval of heartbeats, and the time without one after which a writer counts as dead, in seconds. The streams of a
# dead writer are shown as parked and may expire. Nobody needs to wait for that to open them.
HEARTBEAT_SECONDS = 1.5
DEAD_SECONDS = 6.0


class Tombstone(IntEnum):
    """What remains of a stream that is gone."""

    NONE = 0
    EXPIRED = 1  # it was idle for too long; listed until the tombstone is deleted
    DELETED = 2  # a client deleted it; not listed


class Holder(Enum):
    """Which server has a stream in memory, seen from a store object."""

    NONE = "none"
    SELF = "self"
    OTHER = "other"  # another writer, which is alive


class Residency(IntEnum):
    """Where a writer has a stream that it has claimed."""

    RELEASED = 0  # no longer in memory
    OPEN_PARKED = 1  # open on a call, without a slot
    LIVE = 2


class ResidencyUpdate(NamedTuple):
    """A change of residency. `save_answers` is the number of the last save request that it answers, 0 for none."""

    key: Key
    epoch: int
    residency: Residency
    save_answers: int = 0


@dataclass(frozen=True, slots=True)
class StreamMetadata:
    """What a store has of a stream, without its state.

    `step` is the last stored timestep, 0 before the first. `holder` is the server that has the stream in memory, and
    `live` whether it owns a slot there. `is_ours` tells whether this store object is its writer. `save_requests` counts
    the requests to its writer to save it; `save_answers` is the last of these that was answered. `owner` is that of the
    last claim; empty when the claim named none, and for a tombstone.
    """

    key: Key
    epoch: int
    step: int
    model: ModelId
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int
    tombstone: Tombstone = Tombstone.NONE
    holder: Holder = Holder.NONE
    live: bool = False
    is_ours: bool = False
    save_requests: int = 0
    save_answers: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What a store has of a stream. `checkpoint` is None before the first save, and for a tombstone."""

    metadata: StreamMetadata
    checkpoint: Checkpoint | None

    @property
    def model(self) -> ModelId:
        """The model that made the state. The metadata names that of the last claim, which may not have stored its own yet."""
        return self.metadata.model if self.checkpoint is None else self.checkpoint.model


class ScanScope(Enum):
    """Which streams of a tenant a scan returns; deleted ones never."""

    ALL = "all"
    IN_MEMORY = "held"  # a writer that is alive has it in memory
    EXPIRED = "expired"


class ScanFilter(NamedTuple):
    """Which streams a scan returns: those of a tenant whose ids begin with `prefix`, and that are in the scope.

    With `model` or `version`, only streams that were claimed under it last.
    """

    tenant: str
    prefix: str = ""
    scope: ScanScope = ScanScope.ALL
    model: str = ""
    version: str = ""


class Store(Protocol):
    """Stores checkpoints by key.

    Every method but `close` raises StoreUnavailable when the store cannot be read or written, for any reason. Then the
    caller may simply try again.
    """

    survives: str
    """What a stored checkpoint survives, in words for the log: "a killed process", "a power loss", ..."""

    async def start(self) -> None:
        """Opens the store. Raises StoreUnavailable, with what to do, when it cannot be used."""

    async def load(self, key: Key) -> Record | None:
        """The record of a stream, None when it is unknown. Raises CheckpointBroken when the record is damaged."""

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Makes the caller the only writer of a stream, under `model` and for `owner`.

        Returns the record as of the claim.

        Raises the epoch by one if it is still `seen_epoch`. With 0 the stream must be unknown, and it begins above
        every epoch of streams that are gone. Returns None, and changes nothing, when another writer was faster. Of a
        tombstone only the epoch remains, and the new stream continues from it. Another writer that has the stream in
        memory gets a notice. Raises CheckpointBroken when the record is damaged; the claim stands nevertheless.

        `owner` replaces the owner in the store, even if it is empty. The caller knows the former owner from the record
        that it loaded with `seen_epoch`. It may rely on that: the owner changes only together with the epoch.
        """

    async def create(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Creates a stream with its first state and without an owner, in one write. No server has it in memory then.

        The stream must be unknown (`seen_epoch` 0) or a tombstone of that epoch. Else returns None, and changes
        nothing. The epoch in `checkpoint` is ignored.
        """

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Saves checkpoints of different streams, all in one commit.

        Returns False for a stream that is unknown, is a tombstone, or has another epoch or writer: its checkpoint was
        not written. When the call returns, those with True survive what `survives` says.
        """

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Stores a state under its own epoch and owner, after the store has lost the stream.

        Returns False, and changes nothing, when the store knows the stream, or may have known it since.
        """

    async def set_residency(self, updates: Sequence[ResidencyUpdate]) -> None:
        """Records which streams are in memory.

        Ignores a stream that has another writer or another epoch.
        """

    async def request_save(self, key: Key, epoch: int) -> int | None:
        """Asks the writer of a stream to save it. The writer gets a notice, and answers with a residency update.

        Returns the number that `save_answers` will reach then; None when the epoch is another.
        """

    async def delete(self, key: Key, epoch: int) -> bool:
        """Deletes a stream. Returns False, and changes nothing, when its epoch is not `epoch` or it was deleted before.

        A tombstone keeps the epoch, raised by one, and no owner. Another writer that has the stream in memory gets a
        notice.
        """

    async def scan(self, wanted: ScanFilter, after: str, limit: int) -> tuple[list[StreamMetadata], str | None]:
        """The metadata of streams, also of expired ones, in the order of their ids (as UTF-8 bytes).

        Returns at most `limit` streams whose ids come after `after`; and the id to continue after, None when there are
        no more. A call may stop early, so that it takes milliseconds even if few streams match.
        """

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns streams that were last updated before a time into tombstones, with a higher epoch and no owner.

        Returns how many.

        It leaves out streams that are live in a writer that is alive. Tombstones of expired streams that were last
        updated before the second time are deleted, those of deleted streams before the third. One call may stop after
        some thousand; call again until it returns 0.
        """

    async def count(self) -> int:
        """The number of streams without tombstones."""

    async def heartbeat(self) -> str:
        """Announces that this writer is alive.

        Call it every `HEARTBEAT_SECONDS` while the writer has streams in memory.

        Returns an id of the store's process. When it changes, the store was restarted or replaced, and may have lost
        data.
        """

    async def take_notices(self) -> list[Key]:
        """The streams for which this writer got notices since the last call.

        Each may have another writer now, or another server waits for a save.
        """

    async def newest_unix_nano(self) -> int:
        """When a stream without a tombstone was last updated; 0 when there is none."""

    def cpu_seconds(self) -> float:
        """The processor time of the store's threads, without its work in the event loop."""

    async def close(self) -> None:
        """Closes the store. What was saved is kept."""


def new_writer_id() -> int:
    """A unique number for a writer."""
    return secrets.randbits(62) + 1
