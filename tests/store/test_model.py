"""Random operations on every store, compared with a plain dictionary."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.examples import examples
from tests.store.support import (
    MODEL,
    MS,
    OTHER_MODEL,
    Clock,
    Place,
    memory_place,
    redis_place,
    scan,
    sqlite_place,
)
from tidegate.core.spec import Checkpoint, Key, ModelId
from tidegate.store import Holder, Record, Residency, ResidencyUpdate, ScanScope, StreamMetadata, Tombstone

# Few keys, so that operations collide. The ids differ only in their bytes.
KEYS = [Key(tenant, stream_id) for tenant, stream_id in (("a", "x"), ("a", "xé"), ("a", "y"), ("a:b", "x"))]
keys = st.sampled_from(KEYS)
models = st.sampled_from([MODEL, OTHER_MODEL])
owners = st.sampled_from(["", "ann", "bób"])
# The difference between a caller's epoch and the true one; usually 0.
drifts = st.sampled_from([0, 0, 0, 0, -1, -1, 1])


@dataclass
class Stream:
    """The model of a stream."""

    epoch: int
    model: ModelId
    created: int
    updated: int
    step: int = 0
    kept: Checkpoint | None = None
    tombstone: Tombstone = Tombstone.NONE
    writer: int = 0  # the opening of the store that has claimed it; 0: nobody may write
    mark: Residency = Residency.RELEASED
    asked: int = 0
    answered: int = 0
    owner: str = ""
    looked_at: int = 0  # when a sweep last found it live; redis counts its silence from then

    @property
    def silent_since(self) -> int:
        """The beginning of its silence."""
        return max(self.updated, self.looked_at)

    def record(self, key: Key, me: int) -> Record:
        """The metadata that a store should return to the opening with that number; earlier openings are dead."""
        size = len(self.kept.payload) if self.kept else 0
        head = StreamMetadata(key, self.epoch, self.step, self.model, self.created, self.updated, size, self.tombstone)
        if self.held(me):
            head = replace(head, holder=Holder.SELF, live=self.mark is Residency.LIVE)
        head = replace(head, is_ours=self.writer == me)
        return Record(replace(head, save_requests=self.asked, save_answers=self.answered, owner=self.owner), self.kept)

    def held(self, me: int) -> bool:
        """Whether a living writer has it in memory."""
        return bool(self.mark) and self.writer == me and not self.tombstone

    def bury(self, tombstone: Tombstone) -> None:
        """Leaves a tombstone."""
        self.epoch, self.kept, self.tombstone = self.epoch + 1, None, tombstone
        self.writer, self.mark, self.owner = 0, Residency.RELEASED, ""


class StoreMachine(RuleBasedStateMachine):
    """Runs the operations of servers in any order, and compares the store with the model after each step."""

    make_place: Callable[[Path], Place]
    looks_once = False  # a sweep that finds an old stream live checks it again only after the same time

    @initialize()
    def begin(self) -> None:
        """Opens an empty store."""
        self.streams: dict[Key, Stream] = {}
        self.highest = 0  # of the epochs of streams that are gone
        self.me = 0  # how often the store was opened
        self.folder = TemporaryDirectory()
        self.place = type(self).make_place(Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self._open()

    def _open(self) -> None:
        self.me += 1
        self.opened = AsyncExitStack()
        self.store = self.run(self.opened.enter_async_context(self.place.open()))

    @property
    def clock(self) -> Clock:
        """The clock of the store."""
        return self.place.clock

    @rule(key=keys, drift=drifts, model=models, owner=owners)
    def claim(self, key: Key, drift: int, model: ModelId, owner: str) -> None:
        """Returns the next epoch to a caller with the current one, None to others."""
        stream = self.streams.get(key)
        seen = (stream.epoch if stream else 0) + drift
        record = self.run(self.store.claim(key, seen, model, owner))
        if drift:
            assert record is None
            return
        now = self.clock.now
        if stream is None or stream.tombstone:
            stream = self.streams[key] = Stream((seen or self.highest) + 1, model, now, now)
        else:
            stream.epoch, stream.model, stream.updated = seen + 1, model, now
        stream.writer, stream.mark, stream.asked, stream.answered = self.me, Residency.LIVE, 0, 0
        stream.owner = owner
        assert record == stream.record(key, self.me)

    @rule(key=keys, drift=drifts, step=st.integers(1, 2**62), payload=st.binary(max_size=64))
    def plant(self, key: Key, drift: int, step: int, payload: bytes) -> None:
        """Creates a stream where there is none, for a caller that knows that."""
        stream = self.streams.get(key)
        seen = (stream.epoch if stream else 0) + drift
        record = self.run(self.store.create(Checkpoint(key, 7, step, MODEL, 4, payload), seen))
        if drift or (stream and not stream.tombstone):
            assert record is None
            return
        epoch, now = (seen or self.highest) + 1, self.clock.now
        stream = self.streams[key] = Stream(epoch, MODEL, now, now, step, writer=self.me)
        assert record is not None
        assert record.checkpoint is not None
        stream.kept = replace(record.checkpoint, key=key, step=step, payload=payload)
        assert record == stream.record(key, self.me)

    @rule(key=keys, epoch=st.integers(1, 5), step=st.integers(1, 2**62), owner=owners)
    def restore(self, key: Key, epoch: int, step: int, owner: str) -> None:
        """Restores a stream that the store cannot have deleted."""
        restored = self.run(self.store.restore(Checkpoint(key, epoch, step, MODEL, 4, b"restored"), owner))
        assert restored == (key not in self.streams and epoch > self.highest)
        if restored:
            now = self.clock.now
            kept = Checkpoint(key, epoch, step, MODEL, 4, b"restored")
            self.streams[key] = Stream(
                epoch, MODEL, now, now, step, kept, writer=self.me, mark=Residency.LIVE, owner=owner
            )

    @rule(key=keys, drift=drifts, mark=st.sampled_from(Residency), answered=st.integers(0, 3))
    def mark(self, key: Key, drift: int, mark: Residency, answered: int) -> None:
        """Records whether a stream is in memory, if its writer says so."""
        stream = self.streams.get(key)
        self.run(
            self.store.set_residency([ResidencyUpdate(key, (stream.epoch if stream else 1) + drift, mark, answered)])
        )
        if stream and not stream.tombstone and stream.writer == self.me and not drift:
            stream.mark, stream.answered = mark, max(answered, stream.answered)

    @rule(key=keys, drift=drifts)
    def ask(self, key: Key, drift: int) -> None:
        """Counts how often the holder of a stream was asked to save it."""
        stream = self.streams.get(key)
        number = self.run(self.store.request_save(key, (stream.epoch if stream else 1) + drift))
        if stream is None or drift:
            assert number is None
        else:
            stream.asked += 1
            assert number == stream.asked

    @rule(
        writes=st.lists(
            st.tuples(keys, drifts, st.integers(1, 2**62), st.binary(max_size=64)), max_size=4, unique_by=lambda w: w[0]
        )
    )
    def save(self, writes: list[tuple[Key, int, int, bytes]]) -> None:
        """Saves the checkpoints with the current epoch."""
        checkpoints, expected = [], []
        for key, drift, step, payload in writes:
            stream = self.streams.get(key)
            checkpoints.append(
                Checkpoint(key, max((stream.epoch if stream else 1) + drift, 0), step, MODEL, 4, payload)
            )
            mine = stream is not None and not stream.tombstone and stream.writer == self.me
            expected.append(mine and drift == 0)
        assert self.run(self.store.save(checkpoints)) == expected
        for checkpoint, kept in zip(checkpoints, expected, strict=True):
            if kept:
                stream = self.streams[checkpoint.key]
                stream.step, stream.kept, stream.updated = checkpoint.step, checkpoint, self.clock.now

    @rule(key=keys, drift=drifts)
    def forget(self, key: Key, drift: int) -> None:
        """Deletes a stream for a caller that knows its epoch."""
        stream = self.streams.get(key)
        dropped = self.run(self.store.delete(key, (stream.epoch if stream else 1) + drift))
        assert dropped == (stream is not None and stream.tombstone is not Tombstone.DELETED and drift == 0)
        if stream is not None and dropped:
            stream.bury(Tombstone.DELETED)
            stream.updated, stream.looked_at = self.clock.now, 0

    @rule(passed_ms=st.integers(1, 5))
    def tick(self, passed_ms: int) -> None:
        """Advances the clock."""
        self.clock.now += passed_ms * MS

    @rule(age_ms=st.integers(0, 6), more_ms=st.integers(0, 6), deleted_ms=st.integers(0, 6))
    def expire(self, age_ms: int, more_ms: int, deleted_ms: int) -> None:
        """Expires streams beyond one age that nobody has in memory, and deletes tombstones beyond others."""
        before = self.clock.now - age_ms * MS
        purge_before = {
            Tombstone.EXPIRED: before - more_ms * MS,
            Tombstone.DELETED: self.clock.now - deleted_ms * MS,
        }
        for key, stream in list(self.streams.items()):
            if stream.tombstone and stream.silent_since < purge_before[stream.tombstone]:
                self.highest = max(self.highest, stream.epoch)
                del self.streams[key]
        old = []
        for stream in self.streams.values():
            if stream.tombstone or stream.silent_since >= before:
                continue
            if not (stream.held(self.me) and stream.mark is Residency.LIVE):
                old.append(stream)
            elif type(self).looks_once:
                stream.looked_at = self.clock.now
        for stream in old:
            stream.bury(Tombstone.EXPIRED)
        assert self.run(self.store.expire(before, *purge_before.values())) == len(old)

    @rule()
    def reopen(self) -> None:
        """Closes the store and opens another one at the same place, if the kind allows it."""
        if type(self).make_place is not make_memory:
            self.run(self.opened.aclose())
            self._open()

    @invariant()
    def is_as_the_model(self) -> None:
        """Everything that the store returns agrees with the model."""
        for key in KEYS:
            stream = self.streams.get(key)
            assert self.run(self.store.load(key)) == (stream and stream.record(key, self.me))
        for tenant in ("a", "a:b"):
            known = sorted(
                (key for key, stream in self.streams.items() if key.tenant == tenant),
                key=lambda key: key.stream_id.encode(),
            )
            heads = [self.streams[key].record(key, self.me).metadata for key in known]
            heads = [head for head in heads if head.tombstone is not Tombstone.DELETED]
            assert self.run(scan(self.store, tenant, "", "", 10)) == heads
            narrow = [head for head in heads if head.key.stream_id.startswith("x") and head.key.stream_id > "x"]
            assert self.run(scan(self.store, tenant, "x", "x", 1)) == narrow[:1]
            expired = [head for head in heads if head.tombstone]
            held = [head for head in heads if head.holder is Holder.SELF]
            for wanted, those in ((ScanScope.EXPIRED, expired), (ScanScope.IN_MEMORY, held)):
                assert self.run(scan(self.store, tenant, "", "", 10, wanted)) == those
        assert self.run(self.store.count()) == sum(not stream.tombstone for stream in self.streams.values())

    def teardown(self) -> None:
        """Closes what `begin` opened."""
        self.run(self.opened.aclose())
        self.runner.close()
        self.folder.cleanup()


def make_memory(_: Path) -> Place:
    """A place in this process."""
    return memory_place()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_a_store_does_what_its_model_does(kind: str, request: pytest.FixtureRequest) -> None:
    """Claims, saves, late writes, expiry and reopening in any order have the same effect on a store and on a dictionary."""
    match kind:
        case "memory":
            make = make_memory
        case "sqlite":
            make = sqlite_place
        case _:
            server = request.getfixturevalue("redis_server")

            def make(_: Path) -> Place:
                return redis_place(server)

    machine = type("Machine", (StoreMachine,), {"make_place": staticmethod(make), "looks_once": kind == "redis"})
    # One example opens files or connections: the disk sets its pace.
    slow = settings(max_examples=examples(12), stateful_step_count=50, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=slow)
