"""Every store against a plain dictionary, driven at random."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serving.core.spec import Checkpoint, Key, ModelId
from serving.store import Head, Record
from tests.store.support import MODEL, MS, OTHER_MODEL, Clock, Place, memory_place, redis_place, sqlite_place

# Few, so that operations meet; the ids are told apart by their bytes alone.
KEYS = [Key(tenant, stream_id) for tenant, stream_id in (("a", "x"), ("a", "xé"), ("a", "y"), ("a:b", "x"))]
keys = st.sampled_from(KEYS)
models = st.sampled_from([MODEL, OTHER_MODEL])
# How far the epoch that a caller knows is from the true one: mostly not at all.
drifts = st.sampled_from([0, 0, 0, 0, -1, -1, 1])


@dataclass
class Stream:
    """What the model knows of a stream."""

    epoch: int
    model: ModelId
    created: int
    updated: int
    step: int = 0
    kept: Checkpoint | None = None
    expired: bool = False

    def record(self, key: Key) -> Record:
        """What a store should say."""
        size = len(self.kept.payload) if self.kept else 0
        head = Head(key, self.epoch, self.step, self.model, self.created, self.updated, size, expired=self.expired)
        return Record(head, self.kept)


class StoreMachine(RuleBasedStateMachine):
    """Does to a store what servers do, in any order, and compares it with the model after each step."""

    make_place: Callable[[Path], Place]

    @initialize()
    def begin(self) -> None:
        """Opens an empty store."""
        self.streams: dict[Key, Stream] = {}
        self.folder = TemporaryDirectory()
        self.place = type(self).make_place(Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self._open()

    def _open(self) -> None:
        self.opened = AsyncExitStack()
        self.store = self.run(self.opened.enter_async_context(self.place.open()))

    @property
    def clock(self) -> Clock:
        """The clock of the store."""
        return self.place.clock

    @rule(key=keys, drift=drifts, model=models)
    def claim(self, key: Key, drift: int, model: ModelId) -> None:
        """Gives the next epoch to who saw the last, and nothing to others."""
        stream = self.streams.get(key)
        seen = (stream.epoch if stream else 0) + drift
        epoch = self.run(self.store.claim(key, seen, model))
        if drift:
            assert epoch is None
            return
        assert epoch == seen + 1
        if stream is None or stream.expired:
            self.streams[key] = Stream(epoch, model, self.clock.now, self.clock.now)
        else:
            stream.epoch, stream.model, stream.updated = epoch, model, self.clock.now

    @rule(
        writes=st.lists(
            st.tuples(keys, drifts, st.integers(1, 2**62), st.binary(max_size=64)), max_size=4, unique_by=lambda w: w[0]
        )
    )
    def save(self, writes: list[tuple[Key, int, int, bytes]]) -> None:
        """Keeps the checkpoints of those whose epoch is the last."""
        checkpoints, expected = [], []
        for key, drift, step, payload in writes:
            stream = self.streams.get(key)
            checkpoints.append(
                Checkpoint(key, max((stream.epoch if stream else 1) + drift, 0), step, MODEL, 4, payload)
            )
            expected.append(stream is not None and not stream.expired and drift == 0)
        assert self.run(self.store.save(checkpoints)) == expected
        for checkpoint, kept in zip(checkpoints, expected, strict=True):
            if kept:
                stream = self.streams[checkpoint.key]
                stream.step, stream.kept, stream.updated = checkpoint.step, checkpoint, self.clock.now

    @rule(key=keys, drift=drifts)
    def forget(self, key: Key, drift: int) -> None:
        """Drops a stream for who knows its epoch."""
        stream = self.streams.get(key)
        dropped = self.run(self.store.forget(key, (stream.epoch if stream else 1) + drift))
        assert dropped == (stream is not None and drift == 0)
        if dropped:
            del self.streams[key]

    @rule(passed_ms=st.integers(1, 5))
    def tick(self, passed_ms: int) -> None:
        """Lets time pass."""
        self.clock.now += passed_ms * MS

    @rule(age_ms=st.integers(0, 6), more_ms=st.integers(0, 6))
    def expire(self, age_ms: int, more_ms: int) -> None:
        """Turns what is older than one age, and drops tombstones older than another."""
        before = self.clock.now - age_ms * MS
        purge_before = before - more_ms * MS
        old = [stream for stream in self.streams.values() if not stream.expired and stream.updated < before]
        self.streams = {
            key: stream
            for key, stream in self.streams.items()
            if not (stream.expired and stream.updated < purge_before)
        }
        for stream in old:
            stream.epoch, stream.kept, stream.expired = stream.epoch + 1, None, True
        assert self.run(self.store.expire(before, purge_before)) == len(old)

    @rule()
    def reopen(self) -> None:
        """Closes the store and opens another at the same place, where there is one."""
        if type(self).make_place is not make_memory:
            self.run(self.opened.aclose())
            self._open()

    @invariant()
    def is_as_the_model(self) -> None:
        """Everything that a store tells is what the model knows."""
        for key in KEYS:
            stream = self.streams.get(key)
            assert self.run(self.store.load(key)) == (stream and stream.record(key))
        for tenant in ("a", "a:b"):
            known = sorted(
                (key for key in self.streams if key.tenant == tenant), key=lambda key: key.stream_id.encode()
            )
            heads = [self.streams[key].record(key).head for key in known]
            assert self.run(self.store.scan(tenant, "", "", 10)) == heads
            narrow = [head for head in heads if head.key.stream_id.startswith("x") and head.key.stream_id > "x"]
            assert self.run(self.store.scan(tenant, "x", "x", 1)) == narrow[:1]
        assert self.run(self.store.count()) == sum(not stream.expired for stream in self.streams.values())

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
    """Claims, saves, late writes, expiry and reopening in any order leave a store as they leave a dictionary."""
    match kind:
        case "memory":
            make = make_memory
        case "sqlite":
            make = sqlite_place
        case _:
            server = request.getfixturevalue("redis_server")

            def make(_: Path) -> Place:
                return redis_place(server)

    machine = type("Machine", (StoreMachine,), {"make_place": staticmethod(make)})
    # One example opens files or connections: its pace is the disk's.
    slow = settings(max_examples=30, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=slow)
