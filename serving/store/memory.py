"""A store that lasts as long as the process, which is its only writer."""

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import replace

from serving.core.spec import Checkpoint, Key, ModelId
from serving.store.store import Head, Holder, Mark, Marking, Record, Tombstone, Wanted

# Streams that one `scan` looks at, and that one `expire` turns: some ten milliseconds.
SCAN_ROWS = 10_000
EXPIRE_ROWS = 10_000


class MemoryStore:
    """Keeps checkpoints in a dictionary."""

    survives = "a broken connection"

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._records: dict[Key, Record] = {}
        self._order: dict[str, list[bytes]] = {}  # the ids of each tenant in the order of their bytes
        self._highest = 0  # of the epochs of streams that are gone

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} streams>"

    async def start(self) -> None:
        """Nothing to open."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream."""
        return self._records.get(key)

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Raises the epoch if it still is `seen_epoch`, else None."""
        record = self._records.get(key)
        if (record.head.epoch if record else 0) != seen_epoch:
            return None
        now = self._clock()
        if record is None or record.head.tombstone:
            record = Record(Head(key, self._next_epoch(seen_epoch), 0, model, now, now, 0), None)
        else:
            record = replace(
                record, head=replace(record.head, epoch=seen_epoch + 1, model=model, updated_unix_nano=now)
            )
        record = replace(
            record,
            head=replace(record.head, holder=Holder.SELF, live=True, mine=True, asked=0, answered=0, owner=owner),
        )
        self._keep(record)
        return record

    async def plant(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Makes a stream with its first state, if it still is unknown or that tombstone."""
        record = self._records.get(checkpoint.key)
        if (record.head.epoch if record else 0) != seen_epoch or (record and not record.head.tombstone):
            return None
        now, epoch = self._clock(), self._next_epoch(seen_epoch)
        head = Head(checkpoint.key, epoch, checkpoint.step, checkpoint.model, now, now, len(checkpoint.payload))
        self._keep(Record(replace(head, mine=True), replace(checkpoint, epoch=epoch)))
        return self._records[checkpoint.key]

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs."""
        now = self._clock()
        return [self._save(checkpoint, now) for checkpoint in checkpoints]

    async def restore(self, checkpoint: Checkpoint, owner: str) -> bool:
        """Makes a stream known again under its own epoch, if that is above those of streams that are gone."""
        if checkpoint.key in self._records or checkpoint.epoch <= self._highest:
            return False
        now, size = self._clock(), len(checkpoint.payload)
        head = Head(checkpoint.key, checkpoint.epoch, checkpoint.step, checkpoint.model, now, now, size)
        self._keep(Record(replace(head, holder=Holder.SELF, live=True, mine=True, owner=owner), checkpoint))
        return True

    async def mark(self, markings: Sequence[Marking]) -> None:
        """Notes who has streams in memory."""
        for key, epoch, mark, answered in markings:
            record = self._records.get(key)
            if record is None or record.head.epoch != epoch or record.head.tombstone:
                continue
            head = replace(
                record.head,
                holder=Holder.SELF if mark else Holder.NOBODY,
                live=mark is Mark.LIVE,
                answered=max(answered, record.head.answered),
            )
            self._records[key] = replace(record, head=head)

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Counts; nobody else is there to be asked."""
        record = self._records.get(key)
        if record is None or record.head.epoch != epoch:
            return None
        head = replace(record.head, asked=record.head.asked + 1)
        self._records[key] = replace(record, head=head)
        return head.asked

    async def forget(self, key: Key, epoch: int) -> bool:
        """Leaves a tombstone of a stream unless its epoch is another."""
        record = self._records.get(key)
        if record is None or record.head.epoch != epoch or record.head.tombstone is Tombstone.DELETED:
            return False
        self._bury(record.head, Tombstone.DELETED, self._clock())
        return True

    async def scan(
        self, tenant: str, prefix: str, after: str, limit: int, wanted: Wanted = Wanted.ALL
    ) -> tuple[list[Head], str | None]:
        """Heads in the order of their ids."""
        order, first = self._order.get(tenant, []), prefix.encode()
        last = after.encode()
        begin = bisect_right(order, last) if last >= first else bisect_left(order, first)
        heads: list[Head] = []
        for place in range(begin, min(begin + SCAN_ROWS, len(order))):
            if not order[place].startswith(first):
                return heads, None
            head = self._records[Key(tenant, order[place].decode())].head
            if _is(head, wanted):
                heads.append(head)
            if len(heads) == limit:
                return heads, head.key.stream_id
        end = begin + SCAN_ROWS
        return heads, order[end - 1].decode() if end < len(order) else None

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, drops old tombstones."""
        expired = 0
        purge_before = {
            Tombstone.EXPIRED: purge_before_unix_nano,
            Tombstone.DELETED: purge_deleted_before_unix_nano,
        }
        for record in list(self._records.values()):
            head = record.head
            if head.tombstone:
                if head.updated_unix_nano < purge_before[head.tombstone]:
                    self._drop(head)
            elif head.updated_unix_nano < before_unix_nano and not head.live:
                self._bury(head, Tombstone.EXPIRED, head.updated_unix_nano)
                expired += 1
                if expired == EXPIRE_ROWS:
                    break
        return expired

    async def count(self) -> int:
        """The streams that are known and not tombstones."""
        return sum(not record.head.tombstone for record in self._records.values())

    async def beat(self) -> str:
        """Nobody else listens, and it is never another."""
        return ""

    async def notices(self) -> list[Key]:
        """Nobody else speaks."""
        return []

    async def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated."""
        return max(
            (record.head.updated_unix_nano for record in self._records.values() if not record.head.tombstone), default=0
        )

    def cpu_seconds(self) -> float:
        """It has no thread."""
        return 0.0

    async def close(self) -> None:
        """Nothing to close."""

    def _next_epoch(self, seen_epoch: int) -> int:
        return (seen_epoch or self._highest) + 1

    def _keep(self, record: Record) -> None:
        key = record.head.key
        if key not in self._records:
            insort(self._order.setdefault(key.tenant, []), key.stream_id.encode())
        self._records[key] = record

    def _bury(self, head: Head, tombstone: Tombstone, now: int) -> None:
        """Leaves only the head of a stream, under the next epoch."""
        head = replace(
            head,
            epoch=head.epoch + 1,
            updated_unix_nano=now,
            state_bytes=0,
            tombstone=tombstone,
            holder=Holder.NOBODY,
            live=False,
            mine=False,
            owner="",
        )
        self._records[head.key] = Record(head, None)

    def _drop(self, head: Head) -> None:
        """Forgets a tombstone, but not that its epoch was had."""
        self._highest = max(self._highest, head.epoch)
        del self._records[head.key]
        order = self._order[head.key.tenant]
        del order[bisect_left(order, head.key.stream_id.encode())]

    def _save(self, checkpoint: Checkpoint, now: int) -> bool:
        record = self._records.get(checkpoint.key)
        if record is None or record.head.tombstone or record.head.epoch != checkpoint.epoch:
            return False
        head = replace(record.head, step=checkpoint.step, updated_unix_nano=now, state_bytes=len(checkpoint.payload))
        self._records[checkpoint.key] = Record(head, checkpoint)
        return True


def _is(head: Head, wanted: Wanted) -> bool:
    if wanted is Wanted.ALL:
        return head.tombstone is not Tombstone.DELETED
    if wanted is Wanted.EXPIRED:
        return head.tombstone is Tombstone.EXPIRED
    return not head.tombstone and (head.holder is Holder.SELF) == (wanted is Wanted.HELD)
