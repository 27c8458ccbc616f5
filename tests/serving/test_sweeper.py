"""Expiry with both clocks set by hand: whatever the wall clock does, no recently used stream expires."""

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import key
from tidegate.core.spec import Checkpoint, ModelId
from tidegate.runtime.sweeper import NANOSECONDS, SWEEP_SECONDS, TOMBSTONE_FACTOR, SilenceClock, Sweeper
from tidegate.store import MemoryStore, Residency, ResidencyUpdate

MODEL = ModelId("toy", "1", "f" * 64)
DAY = 86_400.0
FORGET_AFTER = 7 * DAY
BEGIN = 1_800_000_000 * NANOSECONDS


@dataclass
class Clocks:
    """A wall clock and a monotonic clock."""

    wall: int = BEGIN
    steady: int = 5 * NANOSECONDS

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.wall += round(seconds * NANOSECONDS)
        self.steady += round(seconds * NANOSECONDS)

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock by so much."""
        self.wall += round(seconds * NANOSECONDS)


@dataclass
class World:
    """Servers, one after another, on one store."""

    clocks: Clocks = field(default_factory=Clocks)
    known: int = -1

    def __post_init__(self) -> None:
        self.store = MemoryStore(lambda: self.clocks.wall)
        self.start()

    def start(self, forget_after_s: float = FORGET_AFTER) -> None:
        """Another server."""

        def note(known: int) -> None:
            self.known = known

        self.sweeper = Sweeper(
            self.store, forget_after_s, note, wall=lambda: self.clocks.wall, monotonic=lambda: self.clocks.steady
        )

    async def use(self, *names: str) -> None:
        """Stores streams now."""
        for name in names:
            record = await self.store.load(key(name)) or await self.store.claim(key(name), 0, MODEL, "")
            assert record is not None
            epoch = record.metadata.epoch
            await self.store.save([Checkpoint(key(name), epoch, 1, MODEL, 4, b"state")])
            await self.store.set_residency([ResidencyUpdate(key(name), epoch, Residency.RELEASED)])

    async def sweep(self) -> None:
        """One sweep."""
        await self.sweeper.sweep()

    async def live_through(self, seconds: float, every_s: float = DAY / 2) -> None:
        """So much time passes, with a sweep at intervals."""
        while seconds > 0:
            self.clocks.advance(min(every_s, seconds))
            seconds -= every_s
            await self.sweep()

    async def has(self, name: str) -> bool:
        """Whether a stream's state is still there."""
        record = await self.store.load(key(name))
        return record is not None and not record.metadata.tombstone


@pytest.fixture
async def world() -> World:
    """A new server, with a stream that was just used."""
    world = World()
    await world.use("a")
    await world.sweep()
    return world


async def test_a_stream_is_forgotten_after_long_silence(world: World) -> None:
    """Not before; and a stream that is used meanwhile never."""
    await world.use("b")
    await world.live_through(6 * DAY)
    await world.use("b")
    assert await world.has("a")
    await world.live_through(1.5 * DAY)
    assert not await world.has("a")
    assert await world.has("b")
    assert world.known == 1


async def test_a_clock_that_jumps_ahead_forgets_nothing(world: World) -> None:
    """Eight days ahead because of a wrong time server: a stream of a minute ago stays, also in later sweeps."""
    world.clocks.advance(SWEEP_SECONDS)
    world.clocks.set_wall(8 * DAY)
    await world.sweep()
    assert await world.has("a")
    await world.live_through(6.5 * DAY)
    assert await world.has("a")


async def test_a_jump_ahead_does_not_keep_a_silent_stream_for_ever(world: World) -> None:
    """The time that passes after it counts as before."""
    world.clocks.set_wall(8 * DAY)
    await world.live_through(7.5 * DAY)
    assert not await world.has("a")


async def test_what_is_used_after_a_jump_ahead_is_forgotten_in_time(world: World) -> None:
    """Once the clock has run evenly for long enough it is trusted, and its stamps with it."""
    world.clocks.set_wall(8 * DAY)
    await world.live_through(DAY)
    await world.use("b")
    await world.live_through(6.5 * DAY)
    assert await world.has("b")
    await world.live_through(DAY)
    assert not await world.has("b")


async def test_a_clock_that_is_put_right_again_forgets_nothing(world: World) -> None:
    """Streams used before, in and after the wrong time stay for as long as they should."""
    world.clocks.set_wall(8 * DAY)
    await world.live_through(DAY)
    await world.use("within")
    world.clocks.set_wall(-8 * DAY)
    await world.sweep()
    await world.use("after")
    await world.live_through(5.5 * DAY)
    assert [await world.has(name) for name in ("a", "within", "after")] == [True, True, True]
    await world.live_through(2 * DAY)
    assert [await world.has(name) for name in ("a", "after")] == [False, False]
    await world.live_through(8 * DAY)  # a stamp from the future is trusted
    assert not await world.has("within")


async def test_a_server_that_starts_in_the_wrong_time_forgets_nothing(world: World) -> None:
    """The clock is eight days ahead before its first sweep: the sweeper's clock starts at the stamps in the store."""
    world.clocks.set_wall(8 * DAY)
    world.start()
    await world.sweep()
    await world.live_through(6.5 * DAY)
    assert await world.has("a")
    await world.live_through(DAY)
    assert not await world.has("a")


async def test_a_server_that_started_in_the_wrong_time_is_put_right(world: World) -> None:
    """Streams that it stored after that do not look older than they are."""
    world.clocks.set_wall(8 * DAY)
    world.start()
    await world.sweep()
    await world.live_through(DAY)
    world.clocks.set_wall(-8 * DAY)
    await world.use("b")
    await world.live_through(6.5 * DAY)
    assert await world.has("b")


async def test_a_server_that_starts_in_the_past_forgets_nothing() -> None:
    """A single-board computer without a clock starts in 1970, and learns the time a minute later."""
    world = World(Clocks(wall=1000 * NANOSECONDS))
    await world.use("a")
    await world.sweep()
    world.clocks.advance(SWEEP_SECONDS)
    world.clocks.set_wall(50 * 365 * DAY)
    await world.use("b")
    await world.live_through(6.5 * DAY)
    assert [await world.has(name) for name in "ab"] == [True, True]
    await world.live_through(DAY)
    assert [await world.has(name) for name in "ab"] == [False, False]


async def test_the_time_in_which_no_server_ran_is_no_silence(world: World) -> None:
    """During a month without a server no client could have come. A week later, streams without use expire."""
    world.clocks.advance(30 * DAY)
    world.start()
    await world.sweep()
    await world.live_through(6.5 * DAY)
    assert await world.has("a")
    await world.live_through(DAY)
    assert not await world.has("a")


async def test_a_clock_that_is_slewed_is_followed() -> None:
    """A few milliseconds at each read are not a jump: the clock does not fall behind more and more."""
    clocks = Clocks()
    account = SilenceClock(0, round(FORGET_AFTER * NANOSECONDS), lambda: clocks.wall, lambda: clocks.steady)
    for _ in range(1000):
        clocks.advance(SWEEP_SECONDS)
        clocks.set_wall(0.03)
        assert account.now() == clocks.wall


@pytest.mark.parametrize("forget_after_s", [0.2, 3600.0])
async def test_a_jump_is_seen_however_short_silence_may_be(forget_after_s: float) -> None:
    """Half of the allowed time of silence is a jump, not a slewed clock."""
    world = World()
    world.start(forget_after_s)
    await world.use("a")
    await world.sweep()
    world.clocks.advance(0.6 * forget_after_s)
    world.clocks.set_wall(0.5 * forget_after_s)
    await world.sweep()
    assert await world.has("a")


class SomeAtATime(MemoryStore):
    """Expires a thousand streams in each call, as shared stores do."""

    calls = 0

    async def expire(
        self, before_unix_nano: int, purge_before_unix_nano: int, purge_deleted_before_unix_nano: int
    ) -> int:
        """Expires the first thousand."""
        self.calls += 1
        old = set([key for key, record in self._records.items() if not record.metadata.tombstone][:1000])
        kept = {key: self._records.pop(key) for key in list(self._records) if key not in old}
        expired = await super().expire(before_unix_nano, purge_before_unix_nano, purge_deleted_before_unix_nano)
        self._records |= kept
        return expired


async def test_all_that_is_old_is_forgotten_in_one_sweep() -> None:
    """However many the store expires in a call: else a server with many short-lived streams would fill up for ever."""
    world = World()
    world.store = SomeAtATime(lambda: world.clocks.wall)
    world.start()
    await world.use(*(f"s{number}" for number in range(3500)))
    await world.sweep()
    assert world.known == 3500
    world.store.calls = 0
    await world.live_through(FORGET_AFTER + DAY, FORGET_AFTER + DAY)
    assert world.known == 0
    assert world.store.calls == 5


async def test_tombstones_go_in_time(world: World) -> None:
    """They tell a late client what happened for ten times as long as the state was kept."""
    await world.live_through(8 * DAY)
    assert await world.store.load(key("a")) is not None
    await world.live_through((TOMBSTONE_FACTOR - 1) * FORGET_AFTER)
    assert await world.store.load(key("a")) is None


async def test_who_forgets_nothing_counts_all_the_same() -> None:
    """`--forget-after 0`."""
    world = World()
    world.start(0)
    await world.use("a", "b")
    world.clocks.advance(1000 * DAY)
    await world.sweep()
    assert world.known == 2


events = st.one_of(
    st.tuples(st.just("advance"), st.floats(0.01, 3)),
    st.tuples(st.just("jump"), st.floats(-20, 20).filter(lambda days: abs(days) > 0.01)),
    st.tuples(st.just("use"), st.integers(0, 2)),
)


@settings(max_examples=300, derandomize=True)
@given(st.lists(events, min_size=10, max_size=40))
async def test_no_clock_makes_a_server_forget_what_was_used_lately(story: list) -> None:
    """Any jumps of the wall clock, each seen by a sweep: no stream expires early by the clock that never jumps."""
    world = World()
    await world.sweep()
    used: dict[str, int] = {}
    for what, detail in story:
        match what:
            case "advance":
                world.clocks.advance(detail * DAY)
            case "jump":
                world.clocks.set_wall(detail * DAY)
            case "use":
                name = str(detail)
                if name not in used or await world.has(name):
                    await world.use(name)
                    used[name] = world.clocks.steady
        await world.sweep()
        for name, at in used.items():
            if world.clocks.steady - at < FORGET_AFTER * NANOSECONDS:
                assert await world.has(name)


def test_the_clocks_are_those_of_the_machine_unless_others_are_given() -> None:
    """One tells the date, the other only runs forward."""
    sweeper = Sweeper(MemoryStore(), 1, lambda _: None)
    assert (sweeper._wall, sweeper._monotonic) == (time.time_ns, time.monotonic_ns)
