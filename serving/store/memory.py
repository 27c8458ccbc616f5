"""A store that lasts as long as the process, which is its only writer."""

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat

from serving.core.spec import Checkpoint, Checkpoints, Key, ModelId
from serving.store.store import Head, Holder, Mark, Marking, Record, Tombstone, Wanted

# Streams that one `scan` looks at, and that one `expire` turns: some ten milliseconds.
SCAN_ROWS = 10_000
EXPIRE_ROWS = 10_000
# The epoch under which a tombstone may be stored: no stream has it.
NO_EPOCH = -1

# The last checkpoint without its key: epoch, step, model, answers, payload.
_Saved = tuple[int, int, ModelId, int, bytes]


class _Entry:
    """What is held of a stream: its head as of the last claim or mark, and what the saves since then have changed.

    A round saves thousands, so a save sets these few fields, and the head is brought up to date when somebody asks for it. `epoch`
    is that under which it may be stored.
    """

    __slots__ = ("_head", "epoch", "saved", "updated_unix_nano")

    def __init__(self, record: Record) -> None:
        head, c = record.head, record.checkpoint
        self._head = head
        self.epoch = NO_EPOCH if head.tombstone else head.epoch
        self.saved: _Saved | None = None if c is None else (c.epoch, c.step, c.model, c.answers, c.payload)
        self.updated_unix_nano = head.updated_unix_nano

    @property
    def tombstone(self) -> Tombstone:
        """What is left of the stream, if only that."""
        return self._head.tombstone

    @property
    def head(self) -> Head:
        """The head as it is now."""
        if self.saved is None:
            return self._head
        _, step, _, _, payload = self.saved
        return replace(self._head, step=step, updated_unix_nano=self.updated_unix_nano, state_bytes=len(payload))

    @property
    def record(self) -> Record:
        """All that is held now."""
        return Record(self.head, None if self.saved is None else Checkpoint(self._head.key, *self.saved))


class MemoryStore:
    """Keeps checkpoints in a dictionary."""

    survives = "a broken connection"

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._records: dict[Key, _Entry] = {}
        self._order: dict[str, list[bytes]] = {}  # the ids of each tenant in the order of their bytes
        self._highest = 0  # of the epochs of streams that are gone

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} streams>"

    async def start(self) -> None:
        """Nothing to open."""

    async def load(self, key: Key) -> Record | None:
        """What is held of a stream."""
        return self._record(key)

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Raises the epoch if it still is `seen_epoch`, else None."""
        record = self._record(key)
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
        record = self._record(checkpoint.key)
        if (record.head.epoch if record else 0) != seen_epoch or (record and not record.head.tombstone):
            return None
        now, epoch = self._clock(), self._next_epoch(seen_epoch)
        head = Head(checkpoint.key, epoch, checkpoint.step, checkpoint.model, now, now, len(checkpoint.payload))
        self._keep(Record(replace(head, mine=True), replace(checkpoint, epoch=epoch)))
        return self._record(checkpoint.key)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keeps those whose epoch is still theirs."""
        now, records = self._clock(), self._records
        kept = []
        for key, saved in _columns(checkpoints):
            entry = records.get(key)
            if entry is not None and entry.epoch == saved[0]:
                entry.saved, entry.updated_unix_nano = saved, now
                kept.append(True)
            else:
                kept.append(False)
        return kept

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
            record = self._record(key)
            if record is None or record.head.epoch != epoch or record.head.tombstone:
                continue
            head = replace(
                record.head,
                holder=Holder.SELF if mark else Holder.NOBODY,
                live=mark is Mark.LIVE,
                answered=max(answered, record.head.answered),
            )
            self._keep(replace(record, head=head))

    async def ask(self, key: Key, epoch: int) -> int | None:
        """Counts; nobody else is there to be asked."""
        record = self._record(key)
        if record is None or record.head.epoch != epoch:
            return None
        head = replace(record.head, asked=record.head.asked + 1)
        self._keep(replace(record, head=head))
        return head.asked

    async def forget(self, key: Key, epoch: int) -> bool:
        """Leaves a tombstone of a stream unless its epoch is another."""
        record = self._record(key)
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
        for entry in list(self._records.values()):
            if entry.tombstone:
                if entry.updated_unix_nano < purge_before[entry.tombstone]:
                    self._drop(entry.head)
            elif entry.updated_unix_nano < before_unix_nano and not (head := entry.head).live:
                self._bury(head, Tombstone.EXPIRED, head.updated_unix_nano)
                expired += 1
                if expired == EXPIRE_ROWS:
                    break
        return expired

    async def count(self) -> int:
        """The streams that are known and not tombstones."""
        return sum(not entry.tombstone for entry in self._records.values())

    async def beat(self) -> str:
        """Nobody else listens, and it is never another."""
        return ""

    async def notices(self) -> list[Key]:
        """Nobody else speaks."""
        return []

    async def newest_unix_nano(self) -> int:
        """When a stream that is not a tombstone was last updated."""
        return max((entry.updated_unix_nano for entry in self._records.values() if not entry.tombstone), default=0)

    def cpu_seconds(self) -> float:
        """It has no thread."""
        return 0.0

    async def close(self) -> None:
        """Nothing to close."""

    def _record(self, key: Key) -> Record | None:
        entry = self._records.get(key)
        return None if entry is None else entry.record

    def _next_epoch(self, seen_epoch: int) -> int:
        return (seen_epoch or self._highest) + 1

    def _keep(self, record: Record) -> None:
        key = record.head.key
        if key not in self._records:
            insort(self._order.setdefault(key.tenant, []), key.stream_id.encode())
        self._records[key] = _Entry(record)

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
        self._keep(Record(head, None))

    def _drop(self, head: Head) -> None:
        """Forgets a tombstone, but not that its epoch was had."""
        self._highest = max(self._highest, head.epoch)
        del self._records[head.key]
        order = self._order[head.key.tenant]
        del order[bisect_left(order, head.key.stream_id.encode())]


def _is(head: Head, wanted: Wanted) -> bool:
    if wanted is Wanted.ALL:
        return head.tombstone is not Tombstone.DELETED
    if wanted is Wanted.EXPIRED:
        return head.tombstone is Tombstone.EXPIRED
    return not head.tombstone and (head.holder is Holder.SELF) == (wanted is Wanted.HELD)


def _columns(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[Key, _Saved]]:
    """What is kept of each, by key."""
    if not isinstance(checkpoints, Checkpoints):
        return ((c.key, (c.epoch, c.step, c.model, c.answers, c.payload)) for c in checkpoints)
    c = checkpoints
    width, packed = c.payloads.shape[1], c.payloads.tobytes()
    # Bytes of their own: a view would keep those of all others for as long as one of the streams rests.
    payloads = [packed[begin : begin + width] for begin in range(0, len(packed), width)]
    return zip(c.keys, zip(c.epochs, c.steps.tolist(), repeat(c.model), repeat(c.answers), payloads), strict=True)
