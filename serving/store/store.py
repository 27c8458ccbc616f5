"""What a store promises; the one interface behind which the stores differ."""

from dataclasses import dataclass
from typing import Protocol

from serving.core.spec import Checkpoint, Key


@dataclass(frozen=True, slots=True)
class Record:
    """What a store holds of a stream: the epoch of its last opener, and its last checkpoint, None before the first."""

    epoch: int
    checkpoint: Checkpoint | None


class Store(Protocol):
    """Keeps checkpoints by key."""

    def __len__(self) -> int:
        """The streams that are known."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream; None when it is not known."""

    async def claim(self, key: Key, seen_epoch: int) -> int | None:
        """Makes the caller the stream's only writer.

        Raises the epoch by one if it still is `seen_epoch` (0: the stream was not known) and returns it; returns None,
        and changes nothing, when somebody else was faster.
        """

    async def save(self, checkpoint: Checkpoint) -> bool:
        """Keeps a checkpoint; False, and nothing is changed, when the stream has been claimed under a higher epoch."""

    async def forget(self, key: Key, epoch: int) -> bool:
        """Drops a stream; False, and nothing is changed, when it has been claimed under a higher epoch."""
