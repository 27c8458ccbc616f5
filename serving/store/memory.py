"""A store in the memory of the process, which is its only writer."""

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat

from tidegate.core.spec import Checkpoint, Checkpoints, Key, ModelId
from tidegate.store.store import (
    Holder,
    Record,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    ScanScope,
    StreamMetadata,
    Tombstone,
)

# How many streams one `scan` reads, and how many one `expire` changes: about ten milliseconds.
SCAN_ROWS = 10_000
EXPIRE_ROWS = 10_000
# The epoch under which a tombstone could be saved: no stream has it.
NO_EPOCH = -1

# The last checkpoint without its key: epoch, step, model, answers, payload.
_Saved = tuple[int, int, ModelId, int, bytes]


class _Entry:
    """A stored stream: its metadata as of the last claim or residency update, and the changes by saves since then.

    A checkpoint round saves thousands of streams. So a save sets only these few fields, and the metadata is computed
    when it is read. A save must have `epoch`.
    """

    __slots__ = ("_metadata", "epoch", "saved", "updated_unix_nano")

    def __init__(self, record: Record) -> None:
        metadata, c = record.metadata, record.checkpoint
        self._metadata = metadata
        self.epoch = NO_EPOCH if metadata.tombstone else metadata.epoch
        self.saved: _Saved | None = None if c is None else (c.epoch, c.step, c.model, c.answers, c.payload)
        self.updated_unix_nano = metadata.updated_unix_nano

    @property
    def tombstone(self) -> Tombstone:
        """The tombstone, if the stream is gone."""
        return self._metadata.tombstone

    @property
    def metadata(self) -> StreamMetadata:
        """The metadata as of now."""
        if self.saved is None:
            return self._metadata
        _, step, _, _, payload = self.saved
        return replace(self._metadata, step=step, updated_unix_nano=self.updated_unix_nano, state_bytes=len(payload))

    @property
    def record(self) -> Record:
        """The whole record as of now."""
        return Record(self.metadata, None if self.saved is None else Checkpoint(self._metadata.key, *self.saved))


class MemoryStore:
    """Stores checkpoints in a dictionary."""

    survives = "a broken connection"

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._records: dict[Key, _Entry] = {}
        self._order: dict[str, list[bytes]] = {}  # the ids of each tenant in the order of their bytes
        self._highest = 0  # the highest epoch of streams that are gone

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} streams>"

    async def start(self) -> None:
        """Does nothing."""

    async def load(self, key: Key) -> Record | None:
        """The record of a stream."""
        return self._record(key)

    async def claim(self, key: Key, seen_epoch: int, model: ModelId, owner: str) -> Record | None:
        """Claims a stream if its epoch is still `seen_epoch`; else returns None."""
        record = self._record(key)
        if (record.metadata.epoch if record else 0) != seen_epoch:
            return None
        now = self._clock()
        if record is None or record.metadata.tombstone:
            record = Record(StreamMetadata(key, self._next_epoch(seen_epoch), 0, model, now, now, 0), None)
        else:
            record = replace(
                record, metadata=replace(record.metadata, epoch=seen_epoch + 1, model=model, updated_unix_nano=now)
            )
        record = replace(
            record,
            metadata=replace(
                record.metadata,
                holder=Holder.SELF,
                live=True,
                is_ours=True,
                save_requests=0,
                save_answers=0,
                owner=owner,
            ),
        )
        self._keep(record)
        return record

    async def create(self, checkpoint: Checkpoint, seen_epoch: int) -> Record | None:
        """Creates a stream with its first state, if it is unknown or a tombstone of that epoch."""
        record = self._record(checkpoint.key)
        if (record.metadata.epoch if record else 0) != seen_epoch or (record and not record.metadata.tombstone):
            return None
        now, epoch = self._clock(), self._next_epoch(seen_epoch)
        metadata = StreamMetadata(
            checkpoint.key, epoch, checkpoint.step, checkpoint.model, now, now, len(checkpoint.payload)
        )
        self._keep(Record(replace(metadata, is_ours=True), replace(checkpoint, epoch=epoch)))
        return self._record(checkpoint.key)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Saves the checkpoints whose epoch is current."""
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
        """Stores a lost stream under its own epoch, if that is above the epochs of streams that are gone."""
        if checkpoint.key in self._records or checkpoint.epoch <= self._highest:
            return False
        now, size = self._clock(), len(checkpoint.payload)
        metadata = StreamMetadata(checkpoint.key, checkpoint.epoch, checkpoint.step, checkpoint.model, now, now, size)
        self._keep(Record(replace(metadata, holder=Holder.SELF, live=True, is_ours=True, owner=owner), checkpoint))
        return True

    async def set_residency(self, updates: Sequence[ResidencyUpdate]) -> None:
        """Records which streams are in memory."""
        for key, epoch, residency, save_answers in updates:
            record = self._record(key)
            if record is None or record.metadata.epoch != epoch or record.metadata.tombstone:
                continue
            metadata = replace(
                record.metadata,
                holder=Holder.SELF if residency else Holder.NONE,
                live=residency is Residency.LIVE,
                save_answers=max(save_answers, record.metadata.save_answers),
            )
            self._keep(replace(record, metadata=metadata))

    async def request_save(self, key: Key, epoch: int) -> int | None:
        """Counts the request; there is no other server."""
        record = self._record(key)
        if record is None or record.metadata.epoch != epoch:
            return None
        metadata = replace(record.metadata, save_requests=record.metadata.save_requests + 1)
        self._keep(replace(record, metadata=metadata))
        return metadata.save_requests

    async def delete(self, key: Key, epoch: int) -> bool:
        """Replaces a stream by a tombstone if it has that epoch."""
        record = self._record(key)
        if record is None or record.metadata.epoch != epoch or record.metadata.tombstone is Tombstone.DELETED:
            return False
        self._bury(record.metadata, Tombstone.DELETED, self._clock())
        return True

    async def scan(self, wanted: ScanFilter, after: str, limit: int) -> tuple[list[StreamMetadata], str | None]:
        """Metadata in the order of the ids."""
        ids, prefix_bytes = self._order.get(wanted.tenant, []), wanted.prefix.encode()
        last = after.encode()
        start = bisect_right(ids, last) if last >= prefix_bytes else bisect_left(ids, prefix_bytes)
        found: list[StreamMetadata] = []
        for index in range(start, min(start + SCAN_ROWS, len(ids))):
            if not ids[index].startswith(prefix_bytes):
                return found, None
            metadata = self._records[Key(wanted.tenant, ids[index].decode())].metadata
            if _is(metadata, wanted.scope) and metadata.model.matches(wanted.model, wanted.version):
                found.append(metadata)
            if len(found) == limit:
                return found, metadata.key.stream_id
        end = start + SCAN_ROWS
        return found, ids[end - 1].decode() if end < len(ids) else None

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Turns old streams into tombstones, and deletes old tombstones."""
        expired = 0
        purge_before = {
            Tombstone.EXPIRED: purge_before_unix_nano,
            Tombstone.DELETED: purge_deleted_before_unix_nano,
        }
        for entry in list(self._records.values()):
            if entry.tombstone:
                if entry.updated_unix_nano < purge_before[entry.tombstone]:
                    self._drop(entry.metadata)
            elif entry.updated_unix_nano < before_unix_nano and not (metadata := entry.metadata).live:
                self._bury(metadata, Tombstone.EXPIRED, metadata.updated_unix_nano)
                expired += 1
                if expired == EXPIRE_ROWS:
                    break
        return expired

    async def count(self) -> int:
        """The number of streams without tombstones."""
        return sum(not entry.tombstone for entry in self._records.values())

    async def heartbeat(self) -> str:
        """Does nothing: there is no other server, and no restart."""
        return ""

    async def take_notices(self) -> list[Key]:
        """Always empty: there is no other server."""
        return []

    async def newest_unix_nano(self) -> int:
        """When a stream without a tombstone was last updated."""
        return max((entry.updated_unix_nano for entry in self._records.values() if not entry.tombstone), default=0)

    def cpu_seconds(self) -> float:
        """Always 0: there is no thread."""
        return 0.0

    async def close(self) -> None:
        """Does nothing."""

    def _record(self, key: Key) -> Record | None:
        entry = self._records.get(key)
        return None if entry is None else entry.record

    def _next_epoch(self, seen_epoch: int) -> int:
        return (seen_epoch or self._highest) + 1

    def _keep(self, record: Record) -> None:
        key = record.metadata.key
        if key not in self._records:
            insort(self._order.setdefault(key.tenant, []), key.stream_id.encode())
        self._records[key] = _Entry(record)

    def _bury(self, metadata: StreamMetadata, tombstone: Tombstone, now: int) -> None:
        """Replaces a stream by a tombstone, under the next epoch."""
        metadata = replace(
            metadata,
            epoch=metadata.epoch + 1,
            updated_unix_nano=now,
            state_bytes=0,
            tombstone=tombstone,
            holder=Holder.NONE,
            live=False,
            is_ours=False,
            owner="",
        )
        self._keep(Record(metadata, None))

    def _drop(self, metadata: StreamMetadata) -> None:
        """Deletes a tombstone, but remembers the highest epoch."""
        self._highest = max(self._highest, metadata.epoch)
        del self._records[metadata.key]
        ids = self._order[metadata.key.tenant]
        del ids[bisect_left(ids, metadata.key.stream_id.encode())]


def _is(metadata: StreamMetadata, scope: ScanScope) -> bool:
    if scope is ScanScope.ALL:
        return metadata.tombstone is not Tombstone.DELETED
    if scope is ScanScope.EXPIRED:
        return metadata.tombstone is Tombstone.EXPIRED
    return not metadata.tombstone and metadata.holder is Holder.SELF


def _columns(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[Key, _Saved]]:
    """The saved fields of each checkpoint, by key."""
    if not isinstance(checkpoints, Checkpoints):
        return ((c.key, (c.epoch, c.step, c.model, c.answers, c.payload)) for c in checkpoints)
    c = checkpoints
    width, packed = c.payloads.shape[1], c.payloads.tobytes()
    # Each payload is a copy: a view would keep all others in memory for as long as one of the streams exists.
    payloads = [packed[start : start + width] for start in range(0, len(packed), width)]
    return zip(c.keys, zip(c.epochs, c.steps.tolist(), repeat(c.model), repeat(c.answers), payloads), strict=True)
