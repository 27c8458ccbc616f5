"""The owner of a stream: the contract of every store about the owner of the last claim."""

import asyncio

import pytest

from tests.store.support import MODEL, MS, OTHER_MODEL, Place, RedisServer, begin, checkpoint, claim, key, scan
from tidegate.core.spec import Key
from tidegate.store import Residency, ResidencyUpdate, ScanScope, Store, Tombstone, make_store

# The longest owner, with all that a text may contain: quotes, a NUL, characters of one to four bytes.
ODD = "'%_\"\\\x00\n" + "é日🜁" * 13 + "e"


async def owners(store: Store, of: Key) -> list[str]:
    """The owner of a stream, by `load` and by `scan`."""
    record = await store.load(of)
    assert record is not None
    heads = [head for head in await scan(store, of.tenant, "", "", 1000) if head.key == of]
    return [record.metadata.owner, *(head.owner for head in heads)]


@pytest.mark.parametrize("owner", ["ann", "", ODD], ids=["ann", "none", "odd"])
async def test_the_owner_of_a_claim_is_kept(store: Store, owner: str) -> None:
    """Claim, load and scan return the owner of the first claim, whatever its characters."""
    record = await store.claim(key("a"), 0, MODEL, owner)
    assert record is not None
    assert record.metadata.owner == owner
    assert await owners(store, key("a")) == [owner, owner]


@pytest.mark.parametrize("owner", ["bob", "ann", ""], ids=["bob", "ann", "none"])
async def test_a_claim_replaces_the_owner(store: Store, owner: str) -> None:
    """The owner of a claim replaces the former one, also when it is empty.

    The record loaded before has the former one.
    """
    await claim(store, key("a"), 0, owner="ann")
    await store.save([checkpoint("a", step=7)])
    seen = await store.load(key("a"))
    assert seen is not None
    record = await store.claim(key("a"), seen.metadata.epoch, OTHER_MODEL, owner)
    assert record is not None
    assert (seen.metadata.owner, record.metadata.owner) == ("ann", owner)
    assert (record.metadata.epoch, record.checkpoint) == (2, checkpoint("a", step=7))
    assert await owners(store, key("a")) == [owner, owner]


@pytest.mark.parametrize("seen", [0, 1, 3])
async def test_a_claim_that_is_not_granted_leaves_the_owner(store: Store, seen: int) -> None:
    """A claim with another epoch does not change the owner."""
    await claim(store, key("a"), 0, owner="ann")
    await claim(store, key("a"), 1, owner="bob")
    assert await claim(store, key("a"), seen, owner="cid") is None
    assert await owners(store, key("a")) == ["bob", "bob"]


async def test_only_a_claim_changes_the_owner(store: Store) -> None:
    """Saves, residency updates and save requests keep it, and so do claims of other streams."""
    await asyncio.gather(*(claim(store, key(str(place)), 0, owner=f"owner {place}") for place in range(300)))
    await store.save([checkpoint(str(place), step=3) for place in range(300)])
    await store.set_residency([ResidencyUpdate(key(str(place)), 1, Residency.OPEN_PARKED) for place in range(300)])
    assert await store.request_save(key("7"), 1) == 1
    assert [await owners(store, key(str(place))) for place in (0, 7, 299)] == [
        [f"owner {place}"] * 2 for place in (0, 7, 299)
    ]


@pytest.mark.parametrize("wanted", [ScanScope.ALL, ScanScope.IN_MEMORY])
async def test_each_head_of_a_scan_has_its_own_owner(store: Store, wanted: ScanScope) -> None:
    """Owners of other streams, and streams without an owner, are not mixed up."""
    names = {"a": "ann", "b": "", "c": "cid", "d": "ann"}
    for stream_id, owner in names.items():
        await claim(store, key(stream_id), 0, owner=owner)
    heads = await scan(store, "default", "", "", 10, wanted)
    assert {head.key.stream_id: head.owner for head in heads} == names


async def test_a_deleted_stream_has_no_owner(store: Store) -> None:
    """The tombstone has no owner, and a claim of it only its own."""
    await claim(store, key("a"), 0, owner="ann")
    assert await store.delete(key("a"), 1)
    assert await owners(store, key("a")) == [""]  # no scan lists it
    assert await claim(store, key("a"), 2) == 3
    assert await owners(store, key("a")) == ["", ""]


async def test_an_expired_stream_has_no_owner(store: Store, place: Place) -> None:
    """The tombstone has no owner, and a claim of it only its own."""
    await claim(store, key("a"), 0, owner="ann")
    await store.set_residency([ResidencyUpdate(key("a"), 1, Residency.RELEASED)])
    assert await store.expire(place.clock.now + MS, 0, 0) == 1
    record = await store.load(key("a"))
    assert record is not None
    assert record.metadata.tombstone is Tombstone.EXPIRED
    assert await owners(store, key("a")) == ["", ""]
    assert await claim(store, key("a"), 2) == 3
    assert await owners(store, key("a")) == ["", ""]


async def test_a_planted_stream_has_no_owner(store: Store) -> None:
    """A created stream has no owner, whether it is new or follows a deleted one."""
    record = await store.create(checkpoint("new"), 0)
    assert record is not None
    assert record.metadata.owner == ""
    await claim(store, key("old"), 0, owner="ann")
    await store.delete(key("old"), 1)
    assert await store.create(checkpoint("old"), 2) is not None
    assert await owners(store, key("old")) == ["", ""]


@pytest.mark.parametrize("owner", ["ann", ""], ids=["ann", "none"])
async def test_a_lost_stream_is_restored_with_its_owner(store: Store, owner: str) -> None:
    """Restore stores the owner with the state. A refused restore changes nothing."""
    assert await store.restore(checkpoint("a", 3, step=9), owner)
    assert not await store.restore(checkpoint("a", 4, step=9), "bob")
    assert await owners(store, key("a")) == [owner, owner]


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_the_next_store_finds_the_owner(place: Place) -> None:
    """The next store at the same place returns owners too."""
    async with place.open() as store:
        await claim(store, key("claimed"), 0, owner="ann")
        assert await store.restore(checkpoint("restored", 3, step=9), "bob")
    async with place.open() as store:
        assert [await owners(store, key(each)) for each in ("claimed", "restored")] == [["ann"] * 2, ["bob"] * 2]


async def test_a_killed_redis_keeps_the_owner(durable_redis: RedisServer) -> None:
    """With AOF always, the owner of a granted claim is there after redis was killed and restarted."""
    place = Place(lambda clock: make_store(durable_redis.address, clock))
    async with place.open() as store:
        await claim(store, key("a"), 0, owner="ann")
        durable_redis.kill()
    durable_redis.start()
    async with place.open() as store:
        assert await owners(store, key("a")) == ["ann", "ann"]


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_of_two_stores_that_race_one_owner_stands(place: Place) -> None:
    """Of two claims from two stores with the same record, one is granted, and its owner is stored with its epoch."""
    keys = [key(str(number)) for number in range(200)]
    async with place.open() as ann, place.open() as bob:
        for each in keys:
            await begin(ann, each)
        for round_ in range(1, 4):
            claims = [
                asyncio.gather(ann.claim(each, round_, MODEL, "ann"), bob.claim(each, round_, MODEL, "bob"))
                for each in keys
            ]
            for each, (by_ann, by_bob) in zip(keys, await asyncio.gather(*claims), strict=True):
                assert (by_ann is None) != (by_bob is None)
                won = by_ann or by_bob
                assert won is not None
                assert (won.metadata.epoch, won.metadata.owner) == (round_ + 1, "ann" if by_ann else "bob")
                assert [await owners(store, each) for store in (ann, bob)] == [[won.metadata.owner] * 2] * 2


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("first", ["ann", "bob"])
async def test_the_owner_that_was_seen_is_the_one_that_is_replaced(place: Place, first: str) -> None:
    """When another writer claims between load and claim, the claim is not granted, and nobody acts on the former owner."""
    async with place.open() as ours, place.open() as theirs:
        await claim(ours, key("a"), 0, owner="ann")
        seen = await ours.load(key("a"))
        assert seen is not None
        assert await claim(theirs, key("a"), 1, owner=first) == 2
        assert await claim(ours, key("a"), seen.metadata.epoch, owner="ann") is None
        assert await owners(ours, key("a")) == [first, first]
