"""A store that lasts as long as the process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from serving.core.spec import Checkpoint, Key, ModelId
from serving.store.store import Head, Record


class MemoryStore:
    """Keeps checkpoints in a dictionary."""

    survives = "a broken connection"

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._records: dict[Key, Record] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} streams>"

    async def start(self) -> None:
        """Nothing to open."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream."""
        return self._records.get(key)

    async def claim(self, key: Key, seen_epoch: int, model: ModelId) -> int | None:
        """Raises the epoch if it still is `seen_epoch`, else None."""
        record = self._records.get(key)
        now = self._clock()
        if record is None:
            if seen_epoch:
                return None
            record = Record(Head(key, 0, 0, model, now, now, 0, expired=False), None)
        if record.head.epoch != seen_epoch:
            return None
        head = replace(record.head, epoch=seen_epoch + 1, model=model, updated_unix_nano=now)
        if head.expired:
            head = replace(head, step=0, created_unix_nano=now, expired=False)
        self._records[key] = Record(head, record.checkpoint)
        return head.epoch

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs."""
        now = self._clock()
        return [self._save(checkpoint, now) for checkpoint in checkpoints]

    async def forget(self, key: Key, epoch: int) -> bool:
        """Drops a stream unless its epoch is another."""
        record = self._records.get(key)
        if record is None or record.head.epoch != epoch:
            return False
        del self._records[key]
        return True

    async def scan(self, tenant: str, prefix: str, after: str, limit: int) -> list[Head]:
        """Heads in the order of their ids."""
        heads = [
            record.head
            for key, record in self._records.items()
            if key.tenant == tenant and key.stream_id.startswith(prefix) and key.stream_id.encode() > after.encode()
        ]
        return sorted(heads, key=lambda head: head.key.stream_id.encode())[:limit]

    async def expire(self, before_unix_nano: int, purge_before_unix_nano: int) -> int:
        """Turns old streams into tombstones, drops old tombstones."""
        expired = 0
        for key, record in list(self._records.items()):
            head = record.head
            if head.expired and head.updated_unix_nano < purge_before_unix_nano:
                del self._records[key]
            elif not head.expired and head.updated_unix_nano < before_unix_nano:
                self._records[key] = Record(replace(head, epoch=head.epoch + 1, state_bytes=0, expired=True), None)
                expired += 1
        return expired

    async def count(self) -> int:
        """The streams that are known and not expired."""
        return sum(not record.head.expired for record in self._records.values())

    async def newest_unix_nano(self) -> int:
        """When a stream that is not expired was last updated."""
        return max(
            (record.head.updated_unix_nano for record in self._records.values() if not record.head.expired), default=0
        )

    def cpu_seconds(self) -> float:
        """It has no thread."""
        return 0.0

    async def close(self) -> None:
        """Nothing to close."""

    def _save(self, checkpoint: Checkpoint, now: int) -> bool:
        record = self._records.get(checkpoint.key)
        if record is None or record.head.expired or record.head.epoch != checkpoint.epoch:
            return False
        head = replace(record.head, step=checkpoint.step, updated_unix_nano=now, state_bytes=len(checkpoint.payload))
        self._records[checkpoint.key] = Record(head, checkpoint)
        return True
