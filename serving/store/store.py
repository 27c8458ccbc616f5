"""What a store promises; the one interface behind which the stores differ.

A store keeps, for each stream, the epoch of its last opener and its last checkpoint. The epoch is the fence: whoever
opens a stream raises it, and what comes later under an older epoch is refused by the store itself, in the same atomic
operation that would have written it. So a process that was frozen, cut off or declared dead can wake up and do no harm.

A store knows nothing of slots, models or calls. Times are nanoseconds since the UNIX epoch; they decide only what is
forgotten after long silence, never who may write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.core.spec import Checkpoint, Key, ModelId


@dataclass(frozen=True, slots=True)
class Head:
    """What a store knows of a stream without reading its state.

    `step` is the last stored timestep, 0 before the first; `expired` says that the stream was forgotten and only this
    tombstone is left.
    """

    key: Key
    epoch: int
    step: int
    model: ModelId
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int
    expired: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What a store holds of a stream; `checkpoint` is None before the first, and of an expired one."""

    head: Head
    checkpoint: Checkpoint | None


class Store(Protocol):
    """Keeps checkpoints by key.

    Every method but `close` raises StoreUnavailable when the store cannot be read or written, and then nothing has been
    changed that the caller would have to know of: it may try again.
    """

    survives: str
    """What a stored checkpoint survives, in words for the log: "a killed process", "a power loss", ..."""

    async def start(self) -> None:
        """Opens the store; StoreUnavailable, with what to do, when it cannot be used."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream, None when it is not known. CheckpointBroken when its record is damaged."""

    async def claim(self, key: Key, seen_epoch: int, model: ModelId) -> int | None:
        """Makes the caller the stream's only writer, under `model`.

        Raises the epoch by one if it still is `seen_epoch` (0: the stream is not known) and returns it; returns None,
        and changes nothing, when somebody else was faster. Of an expired stream nothing is left but the epoch, which
        goes on from there.
        """

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps checkpoints of different streams, all in one commit.

        False for a stream that is not known, has expired, or is at another epoch: its checkpoint was not written. When
        the call returns, those that are True survive what `survives` says.
        """

    async def forget(self, key: Key, epoch: int) -> bool:
        """Drops a stream; False, and nothing is changed, when its epoch is not `epoch`."""

    async def scan(self, tenant: str, prefix: str, after: str, limit: int) -> list[Head]:
        """Heads of a tenant's streams, expired ones too, in the order of their ids (as UTF-8 bytes).

        Only ids that begin with `prefix` and come after `after`; at most `limit`.
        """

    async def expire(self, before_unix_nano: int, purge_before_unix_nano: int) -> int:
        """Turns streams last updated before a time into tombstones, raising their epoch; returns how many.

        Tombstones last updated before the second time vanish. One call may stop after some thousand; call again.
        """

    async def count(self) -> int:
        """The streams that are known and not expired."""

    async def newest_unix_nano(self) -> int:
        """When a stream that is not expired was last updated; 0 when there is none."""

    def cpu_seconds(self) -> float:
        """The processor time that threads of the store have used; what it does in the event loop is not in it."""

    async def close(self) -> None:
        """Closes the store; what was saved is kept."""
