"""A store that lasts as long as the process."""

from serving.core.spec import Checkpoint, Key
from serving.store.store import Record


class MemoryStore:
    """Keeps checkpoints in a dictionary."""

    def __init__(self) -> None:
        self._records: dict[Key, Record] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} streams>"

    def __len__(self) -> int:
        """The streams that are known."""
        return len(self._records)

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream; None when it is not known."""
        return self._records.get(key)

    async def claim(self, key: Key, seen_epoch: int) -> int | None:
        """Raises the epoch if it still is `seen_epoch`, else None."""
        record = self._records.get(key, Record(0, None))
        if record.epoch != seen_epoch:
            return None
        self._records[key] = Record(seen_epoch + 1, record.checkpoint)
        return seen_epoch + 1

    async def save(self, checkpoint: Checkpoint) -> bool:
        """Keeps a checkpoint unless the stream was claimed under a higher epoch, or dropped."""
        record = self._records.get(checkpoint.key)
        if record is None or record.epoch != checkpoint.epoch:
            return False
        self._records[checkpoint.key] = Record(checkpoint.epoch, checkpoint)
        return True

    async def forget(self, key: Key, epoch: int) -> bool:
        """Drops a stream unless it was claimed under a higher epoch."""
        record = self._records.get(key)
        if record is None or record.epoch != epoch:
            return False
        del self._records[key]
        return True
