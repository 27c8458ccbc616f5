"""The contract of every store, tested with all three."""

import asyncio
from dataclasses import replace

import pytest

from tests.store.support import (
    MODEL,
    MS,
    OTHER_MODEL,
    Clock,
    Place,
    begin,
    checkpoint,
    claim,
    in_columns,
    key,
    scan,
)
from tidegate.core.spec import Key, ModelId
from tidegate.store import (
    Holder,
    Record,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    ScanScope,
    Store,
    StreamMetadata,
    Tombstone,
    memory,
    redis,
    sqlite_database,
)


@pytest.fixture
def clock(place: Place) -> Clock:
    """The clock of the store."""
    return place.clock


async def test_an_unknown_stream_is_not_held(store: Store) -> None:
    """Load returns None for a stream that was never claimed."""
    assert await store.load(key("a")) is None


async def test_a_first_claim_makes_the_stream_known(store: Store, clock: Clock) -> None:
    """A claim of an unknown stream returns epoch 1. The stream is at step 0 without a checkpoint."""
    assert await claim(store, key("a"), 0, MODEL) == 1
    head = StreamMetadata(key("a"), 1, 0, MODEL, clock.now, clock.now, 0, holder=Holder.SELF, live=True, is_ours=True)
    assert await store.load(key("a")) == Record(head, None)


async def test_a_claim_raises_the_epoch_that_was_seen(store: Store) -> None:
    """Each claim with the current epoch returns the next."""
    assert [await claim(store, key("a"), seen, MODEL) for seen in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seen", [0, 1, 3])
async def test_a_claim_under_another_epoch_changes_nothing(store: Store, clock: Clock, seen: int) -> None:
    """A claim with an older or a future epoch returns None and changes nothing."""
    await claim(store, key("a"), 0, MODEL)
    await claim(store, key("a"), 1, MODEL)
    before = await store.load(key("a"))
    clock.now += MS
    assert await claim(store, key("a"), seen, OTHER_MODEL) is None
    assert await store.load(key("a")) == before


async def test_a_claim_that_saw_an_epoch_of_an_unknown_stream_loses(store: Store) -> None:
    """A claim of a stream that was deleted meanwhile returns None and does not bring it back."""
    assert await claim(store, key("a"), 3, MODEL) is None
    assert await store.load(key("a")) is None


async def test_of_many_claimers_one_wins(store: Store) -> None:
    """Of concurrent claims with the same epoch, exactly one gets the next."""
    epochs = await asyncio.gather(*(claim(store, key("a"), 0, MODEL) for _ in range(20)))
    assert sorted(epochs, key=str) == [1, *[None] * 19]


async def test_a_claim_keeps_the_checkpoint(store: Store) -> None:
    """What was saved before a take-over is there after it, with the epoch under which it was saved."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a", step=7)])
    await claim(store, key("a"), 1, OTHER_MODEL)
    record = await store.load(key("a"))
    assert record is not None
    assert (record.metadata.epoch, record.metadata.step, record.metadata.model) == (2, 7, OTHER_MODEL)
    assert record.checkpoint == checkpoint("a", step=7)


async def test_a_checkpoint_comes_back_as_it_was(store: Store, clock: Clock) -> None:
    """Load returns the last saved checkpoint, whatever its bytes, and the time of the save."""
    await claim(store, key("a"), 0, MODEL)
    clock.now += MS
    kept = checkpoint("a", step=2**62, payload=bytes(range(256)) * 100)
    assert await store.save([kept]) == [True]
    head = StreamMetadata(
        key("a"), 1, 2**62, MODEL, clock.now - MS, clock.now, 25600, holder=Holder.SELF, live=True, is_ours=True
    )
    assert await store.load(key("a")) == Record(head, kept)


async def test_a_checkpoint_of_an_unknown_stream_is_refused(store: Store) -> None:
    """Save returns False for a stream that nobody has claimed, and does not create it."""
    assert await store.save([checkpoint("a")]) == [False]
    assert await store.load(key("a")) is None
    assert await scan(store, "default", "", "", 10) == []


@pytest.mark.parametrize("epoch", [1, 3])
async def test_a_checkpoint_of_another_epoch_is_refused(store: Store, clock: Clock, epoch: int) -> None:
    """Save returns False under an older or a future epoch, and changes nothing."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a", step=7)])
    await claim(store, key("a"), 1, MODEL)
    before = await store.load(key("a"))
    clock.now += MS
    assert await store.save([checkpoint("a", epoch, step=8)]) == [False]
    assert await store.load(key("a")) == before


async def test_a_fenced_checkpoint_does_not_hold_up_the_others(store: Store) -> None:
    """In a save of many streams, each has its own result, in order."""
    for place in range(600):  # more than fit into a statement or a script
        if place % 7:
            await claim(store, key(str(place)), 0, MODEL)
        if place % 7 == 3:
            await claim(store, key(str(place)), 1, MODEL)
    kept = await store.save([checkpoint(str(place), step=9) for place in range(600)])
    assert kept == [place % 7 not in {0, 3} for place in range(600)]
    records = [await store.load(key(str(place))) for place in range(600)]
    assert [record is not None and record.metadata.step == 9 for record in records] == kept


async def test_columns_are_kept_as_each_of_them_would_be(store: Store, clock: Clock) -> None:
    """Checkpoints in columns are saved stream by stream; only those that are fenced or unknown are refused."""
    names = [f"{'é' * (place % 5)}{place}" for place in range(1100)]  # more than fit into a statement or a script
    await asyncio.gather(*(claim(store, key(name), 0, MODEL) for place, name in enumerate(names) if place % 300))
    await asyncio.gather(*(claim(store, key(name), 1, MODEL) for place, name in enumerate(names) if place % 300 == 7))
    clock.now += MS
    sent = [
        checkpoint(name, step=2**53 + 1 + place, payload=place.to_bytes(8, "little"))
        for place, name in enumerate(names)
    ]
    kept = await store.save(in_columns(sent))
    assert kept == [place % 300 not in {0, 7} for place in range(len(names))]
    records = await asyncio.gather(*(store.load(each.key) for each in sent))
    assert [
        record is not None and record.checkpoint == each for record, each in zip(records, sent, strict=True)
    ] == kept
    mine = records[1]
    assert mine is not None
    assert (mine.metadata.step, mine.metadata.updated_unix_nano, mine.metadata.state_bytes) == (2**53 + 2, clock.now, 8)


async def test_saving_nothing_gives_nothing(store: Store) -> None:
    """A save of no checkpoints is allowed."""
    assert await store.save([]) == []


async def test_large_and_empty_states_are_kept(store: Store) -> None:
    """States of no bytes and of megabytes are saved together and come back unchanged."""
    sizes = [0, 3 << 20, 1, 3 << 20, 0, 5 << 20]
    for place in range(len(sizes)):
        await claim(store, key(str(place)), 0, MODEL)
    checkpoints = [checkpoint(str(place), payload=bytes([place]) * size) for place, size in enumerate(sizes)]
    assert all(await store.save(checkpoints))
    records = [await store.load(key(str(place))) for place in range(len(sizes))]
    assert [record and record.checkpoint for record in records] == checkpoints


async def test_the_same_id_of_two_tenants_is_two_streams(store: Store) -> None:
    """Tenant and id identify a stream, also where both joined give the same text."""
    keys = [Key("a", "b:c"), Key("a:b", "c"), Key("a", "c"), Key("b", "c"), Key("", "a:b:c")]
    for step, each in enumerate(keys, start=1):
        assert await claim(store, each, 0, MODEL) == 1
        await store.save([replace(checkpoint(""), key=each, step=step)])
    assert [record and record.metadata.step for record in [await store.load(each) for each in keys]] == [1, 2, 3, 4, 5]
    assert [head.key for head in await scan(store, "a", "", "", 10)] == [keys[0], keys[2]]


async def test_a_stream_is_forgotten_under_its_epoch(store: Store) -> None:
    """Delete drops the state and leaves a tombstone.

    It is not listed and keeps the epoch, and the stream can begin again.
    """
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a")])
    assert await store.delete(key("a"), 1)
    record = await store.load(key("a"))
    assert record is not None
    assert (record.metadata.tombstone, record.metadata.epoch, record.checkpoint) == (Tombstone.DELETED, 2, None)
    assert await scan(store, "default", "", "", 10) == []
    assert await store.count() == 0
    assert not await store.delete(key("a"), 2)
    assert await claim(store, key("a"), 0, MODEL) is None
    assert await claim(store, key("a"), 2, MODEL) == 3
    assert await store.count() == 1


async def test_the_epoch_of_a_deleted_stream_never_comes_back(store: Store, clock: Clock) -> None:
    """A new stream begins above the epochs of streams whose tombstones were deleted."""
    await begin(store, key("a"))
    await begin(store, key("a"), 1)
    await store.delete(key("a"), 2)
    clock.now += MS
    await store.expire(0, 0, clock.now)
    assert await store.load(key("a")) is None
    assert await claim(store, key("a"), 0, MODEL) == 4
    assert await claim(store, key("b"), 0, MODEL) == 4


async def test_a_write_from_before_the_deletion_is_refused(store: Store, clock: Clock) -> None:
    """A writer that was suspended during a delete and a new beginning cannot save the deleted state into the new stream."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a", 1, step=40)])
    await store.delete(key("a"), 1)
    assert await store.save([checkpoint("a", 1, step=41)]) == [False]
    assert await claim(store, key("a"), 2, MODEL) == 3
    assert await store.save([checkpoint("a", 1, step=41)]) == [False]
    record = await store.load(key("a"))
    assert record is not None
    assert (record.metadata.step, record.checkpoint) == (0, None)


async def test_a_claim_gives_what_was_stored_until_then(store: Store) -> None:
    """A claim returns what the last owner saved after the claimer had loaded the record."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a", step=124)])
    seen = await store.load(key("a"))
    await store.save([checkpoint("a", step=125)])
    assert seen is not None
    record = await store.claim(key("a"), seen.metadata.epoch, MODEL, "")
    assert record is not None
    assert record.checkpoint == checkpoint("a", step=125)
    assert record == await store.load(key("a"))


async def test_a_stream_is_planted_with_its_state_or_not_at_all(store: Store, clock: Clock) -> None:
    """Create makes a stream with its first state that no server has in memory. An existing stream stays as it was."""
    record = await store.create(checkpoint("a", 77, step=9), 0)
    assert record is not None
    head = StreamMetadata(key("a"), 1, 9, MODEL, clock.now, clock.now, 5, is_ours=True)
    assert record.metadata == head
    assert record.checkpoint is not None
    assert (record.checkpoint.step, record.checkpoint.payload) == (9, b"state")
    assert await store.load(key("a")) == record
    assert await store.create(checkpoint("a", step=10), 0) is None
    assert await store.create(checkpoint("a", step=10), 1) is None
    assert await store.load(key("a")) == record
    await store.delete(key("a"), 1)
    assert await store.create(checkpoint("a", step=11), 0) is None
    record = await store.create(checkpoint("a", step=11), 2)
    assert record is not None
    assert (record.metadata.epoch, record.metadata.step) == (3, 11)


async def test_a_lost_stream_is_restored_under_its_epoch(store: Store) -> None:
    """Restore stores an unknown stream again for its writer, but not one that exists, was deleted, or may have been."""
    assert await store.restore(checkpoint("a", 3, step=9), "")
    assert await store.save([checkpoint("a", 3, step=10)]) == [True]
    assert not await store.restore(checkpoint("a", 3, step=9), "")
    await store.delete(key("a"), 3)
    assert not await store.restore(checkpoint("a", 3, step=9), "")
    await store.expire(0, 0, 2**60)
    assert not await store.restore(checkpoint("a", 3, step=9), "")
    assert not await store.restore(checkpoint("b", 4, step=9), "")
    assert await store.restore(checkpoint("b", 5, step=9), "")


async def test_marks_show_which_server_has_a_stream(store: Store) -> None:
    """The metadata has the residency that the writer set under the current epoch. Other updates change nothing."""
    await claim(store, key("a"), 0, MODEL)
    for mark, holder, live in (
        (Residency.OPEN_PARKED, Holder.SELF, False),
        (Residency.LIVE, Holder.SELF, True),
        (Residency.RELEASED, Holder.NONE, False),
    ):
        await store.set_residency(
            [ResidencyUpdate(key("a"), 1, mark), ResidencyUpdate(key("a"), 2, Residency.LIVE)][:1]
        )
        record = await store.load(key("a"))
        assert record is not None
        assert (record.metadata.holder, record.metadata.live) == (holder, live)
    await store.set_residency(
        [ResidencyUpdate(key("a"), 2, Residency.LIVE), ResidencyUpdate(key("b"), 1, Residency.LIVE)]
    )
    assert await store.load(key("a")) == record
    assert await store.load(key("b")) is None


async def test_a_live_stream_does_not_expire(store: Store, clock: Clock) -> None:
    """A stream that is live in a living writer never expires. Once it is parked, it does."""
    await claim(store, key("a"), 0, MODEL)
    clock.now += 10_000 * MS
    await store.heartbeat()
    assert await store.expire(clock.now, 0, 0) == 0
    await store.set_residency([ResidencyUpdate(key("a"), 1, Residency.OPEN_PARKED)])
    clock.now += MS  # a store may count its silence from the last sweep
    assert await store.expire(clock.now, 0, 0) == 1


async def test_a_stream_is_not_forgotten_under_another_epoch(store: Store) -> None:
    """Delete returns False with another epoch and for an unknown stream, and changes nothing."""
    await claim(store, key("a"), 0, MODEL)
    await claim(store, key("a"), 1, MODEL)
    before = await store.load(key("a"))
    assert not await store.delete(key("a"), 1)
    assert not await store.delete(key("b"), 1)
    assert await store.load(key("a")) == before


IDS = [
    "",
    "a",
    "a\x00",
    "a\x00b",
    "a/1",
    "aa",
    "b",
    "b'%_\"",
    "é",
    "ÿ",
    "Ā",
    "日",
    "日本",
    "\ue000",
    "\uffff",
    "🜁",
    "\U0010ffff",
]


async def test_a_scan_is_in_the_order_of_the_bytes(store: Store) -> None:
    """Scan returns ids with any characters in the order of their UTF-8 bytes, with the metadata that `load` returns."""
    for stream_id in reversed(IDS):
        await claim(store, key(stream_id), 0, MODEL)
    heads = await scan(store, "default", "", "", 100)
    assert [head.key.stream_id for head in heads] == IDS[1:]
    records = [await store.load(head.key) for head in heads]
    assert heads == [record and record.metadata for record in records]


@pytest.mark.parametrize("prefix", ["a", "a\x00", "b'", "é", "日", "\uffff", "\U0010ffff", "nothing"])
async def test_a_scan_keeps_to_its_prefix(store: Store, prefix: str) -> None:
    """Scan returns only ids with the prefix, which has no wildcards."""
    for stream_id in IDS:
        await claim(store, key(stream_id), 0, MODEL)
    heads = await scan(store, "default", prefix, "", 100)
    assert [head.key.stream_id for head in heads] == [each for each in IDS if each.startswith(prefix)]


@pytest.mark.parametrize("prefix", ["", "s", "s1"])
async def test_pages_of_a_scan_join_to_the_whole(store: Store, prefix: str) -> None:
    """Pages, each after the last id of the one before, have every stream once."""
    for place in range(25):
        await claim(store, key(f"s{place}"), 0, MODEL)
    whole = await scan(store, "default", prefix, "", 100)
    pages, after = [], ""
    while page := await scan(store, "default", prefix, after, 4):
        assert len(page) <= 4
        pages += page
        after = page[-1].key.stream_id
    assert pages == whole
    assert len(whole) == (11 if prefix == "s1" else 25)


async def claim_versions(store: Store) -> dict[str, ModelId]:
    """Sixty streams of a tenant, of two models in two versions each, beside a stream of another tenant."""
    models = [ModelId(name, version, "f") for name in ("toy", "lake") for version in ("1", "2")]
    claimed = {f"s{place:02}": models[place % 4] for place in range(60)}
    for stream_id, model in claimed.items():
        await claim(store, key(stream_id), 0, model)
    await claim(store, Key("other", "s00"), 0, models[0])
    return claimed


@pytest.mark.parametrize(
    ("model", "version"), [("toy", ""), ("", "2"), ("lake", "1"), ("lake", "3"), ("l%", ""), ("'", "''")]
)
@pytest.mark.parametrize("rows", [3, 10_000])
async def test_a_scan_keeps_to_a_model(
    store: Store, monkeypatch: pytest.MonkeyPatch, model: str, version: str, rows: int
) -> None:
    """Whether it looks at few streams at a time or at many; pages join to the whole, and no other tenant's is among them."""
    for module in (memory, redis, sqlite_database):
        monkeypatch.setattr(module, "SCAN_ROWS", rows)
    claimed = await claim_versions(store)
    assert await store.delete(key("s00"), 1)
    del claimed["s00"]
    for prefix in ("", "s1"):
        expected = [key(each) for each, of in claimed.items() if each.startswith(prefix) and of.matches(model, version)]
        for wanted in (ScanScope.ALL, ScanScope.IN_MEMORY):
            of_model = {"model": model, "version": version}
            found = [head.key for head in await scan(store, "default", prefix, "", 100, wanted, **of_model)]
            pages: list[Key] = []
            while page := await scan(store, "default", prefix, pages[-1].stream_id if pages else "", 4, **of_model):
                pages += [head.key for head in page]
            assert found == pages == expected


async def test_a_scan_for_a_model_stops_early(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at a bounded number of streams, and says where to go on, also when none of them matches."""
    for module in (memory, redis, sqlite_database):
        monkeypatch.setattr(module, "SCAN_ROWS", 10)
    await claim_versions(store)
    page, following = await store.scan(ScanFilter("default", model="pond"), "", 100)
    assert (page, following) == ([], "s09")
    page, following = await store.scan(ScanFilter("default", model="toy"), "s09", 100)
    assert ([head.key.stream_id for head in page], following) == (["s12", "s13", "s16", "s17"], "s19")


async def test_a_scan_after_the_prefix_is_empty(store: Store) -> None:
    """Scan after an id beyond the prefix returns nothing; before it, everything."""
    for stream_id in ("a1", "a2", "b"):
        await claim(store, key(stream_id), 0, MODEL)
    assert await scan(store, "default", "a", "b", 10) == []
    assert [head.key.stream_id for head in await scan(store, "default", "a", "A", 10)] == ["a1", "a2"]


async def test_a_silent_stream_becomes_a_tombstone(store: Store, clock: Clock) -> None:
    """Expire deletes the state of a stream that was last updated before the time, raises its epoch, and keeps its last step."""
    await begin(store, key("a"))
    await store.save([checkpoint("a", step=7)])
    saved = clock.now
    clock.now += MS
    assert await store.expire(clock.now, 0, 0) == 1
    head = StreamMetadata(key("a"), 2, 7, MODEL, saved, saved, 0, Tombstone.EXPIRED)
    assert await store.load(key("a")) == Record(head, None)
    assert await scan(store, "default", "", "", 10) == [head]
    assert await store.expire(clock.now, 0, 0) == 0


async def test_a_stream_updated_at_the_time_does_not_expire(store: Store, clock: Clock) -> None:
    """Expire keeps streams that were updated at the time or later. A claim and a save are updates."""
    await begin(store, key("saved"))
    await begin(store, key("claimed"))
    clock.now += MS
    await store.save([checkpoint("saved")])
    await claim(store, key("claimed"), 1, MODEL)
    assert await store.expire(clock.now, clock.now, 0) == 0
    assert await store.count() == 2


async def test_an_expired_stream_takes_no_checkpoint(store: Store, clock: Clock) -> None:
    """Save is refused under the epoch before the tombstone, and under the tombstone's own."""
    await begin(store, key("a"))
    await store.expire(clock.now + MS, 0, 0)
    tombstone = await store.load(key("a"))
    assert await store.save([checkpoint("a", 1)]) == [False]
    assert await store.save([checkpoint("a", 2)]) == [False]
    assert await store.load(key("a")) == tombstone


async def test_a_claim_of_a_tombstone_begins_again(store: Store, clock: Clock) -> None:
    """Of an expired stream only the epoch remains: it begins as a new stream, and checkpoints can be saved."""
    await begin(store, key("a"))
    await store.save([checkpoint("a", step=7)])
    await store.expire(clock.now + MS, 0, 0)
    clock.now += 5 * MS
    assert await claim(store, key("a"), 1, MODEL) is None
    assert await claim(store, key("a"), 2, OTHER_MODEL) == 3
    head = StreamMetadata(
        key("a"), 3, 0, OTHER_MODEL, clock.now, clock.now, 0, holder=Holder.SELF, live=True, is_ours=True
    )
    assert await store.load(key("a")) == Record(head, None)
    assert await store.count() == 1
    assert await store.save([checkpoint("a", 3)]) == [True]


async def test_a_stream_that_began_again_outlives_its_tombstone(store: Store, clock: Clock) -> None:
    """Nothing of the tombstone remains that could expire the new stream with it."""
    await begin(store, key("a"))
    await store.expire(clock.now + MS, 0, 0)
    clock.now += 5 * MS
    await claim(store, key("a"), 2, MODEL)
    assert await store.expire(clock.now, clock.now, 0) == 0
    assert await store.count() == 1
    assert await store.save([checkpoint("a", 3)]) == [True]


async def test_an_old_tombstone_vanishes(store: Store, clock: Clock) -> None:
    """Expire deletes tombstones that were last updated before the second time, and only those."""
    await begin(store, key("old"))
    clock.now += MS
    await begin(store, key("new"))
    assert await store.expire(clock.now + MS, 0, 0) == 2
    assert await store.expire(clock.now + MS, clock.now, 0) == 0
    assert await store.load(key("old")) is None
    assert [head.key.stream_id for head in await scan(store, "default", "", "", 10)] == ["new"]
    assert await claim(store, key("old"), 0, MODEL) == 3


async def test_a_stream_is_a_tombstone_before_it_vanishes(store: Store, clock: Clock) -> None:
    """One call of expire never both expires a stream and deletes its tombstone: its client can learn what happened."""
    await begin(store, key("a"))
    assert await store.expire(clock.now + MS, clock.now + MS, 0) == 1
    record = await store.load(key("a"))
    assert record is not None
    assert record.metadata.tombstone is Tombstone.EXPIRED


async def test_a_tombstone_can_be_forgotten(store: Store, clock: Clock) -> None:
    """Delete turns the tombstone of an expired stream into that of a deleted one, under its epoch."""
    await begin(store, key("a"))
    await store.expire(clock.now + MS, 0, 0)
    assert not await store.delete(key("a"), 1)
    assert await store.delete(key("a"), 2)
    assert await scan(store, "default", "", "", 10) == []
    record = await store.load(key("a"))
    assert record is not None
    assert (record.metadata.tombstone, record.metadata.epoch) == (Tombstone.DELETED, 3)


async def test_calling_again_expires_all(store: Store, clock: Clock) -> None:
    """Expire may stop after some thousand. Called again until it returns 0, it has expired all."""
    for start in range(0, 2500, 500):
        await asyncio.gather(*(begin(store, key(str(start + place))) for place in range(500)))
    turned = []
    while expired := await store.expire(clock.now + MS, 0, 0):
        turned.append(expired)
    assert sum(turned) == 2500
    assert await store.count() == 0


async def test_streams_are_counted(store: Store, clock: Clock) -> None:
    """Count returns the streams of all tenants without tombstones."""
    assert await store.count() == 0
    await begin(store, key("expired"))
    clock.now += MS
    await begin(store, key("a"))
    await claim(store, key("a"), 1, MODEL)
    await claim(store, key("a", "other"), 0, MODEL)
    await store.expire(clock.now, 0, 0)
    assert await store.count() == 2


async def test_the_newest_stamp_is_of_a_stream_that_is_no_tombstone(store: Store, clock: Clock) -> None:
    """From it a server knows for how long no other server ran. It is 0 where there are no streams."""
    assert await store.newest_unix_nano() == 0
    await store.claim(key("a"), 0, MODEL, "")
    clock.now += MS
    await store.save([checkpoint("a")])
    await store.set_residency([ResidencyUpdate(key("a"), 1, Residency.RELEASED)])
    newest = clock.now
    clock.now += MS
    await store.claim(key("deleted"), 0, MODEL, "")
    assert await store.newest_unix_nano() == clock.now
    await store.delete(key("deleted"), 1)
    assert await store.newest_unix_nano() == newest
    assert await store.expire(clock.now, 0, 0) == 1
    assert await store.newest_unix_nano() == 0


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_a_store_finds_what_the_last_one_left(place: Place) -> None:
    """The next store at the same place knows all that was known when a store was closed."""
    async with place.open() as store:
        for stream_id in ("fresh", "saved", "expired"):
            await begin(store, key(stream_id))
        await store.expire(place.clock.now + MS, 0, 0)
        await claim(store, key("fresh"), 2, MODEL)
        await claim(store, key("saved"), 2, MODEL)
        await store.save([checkpoint("saved", 3)])
        await store.set_residency(
            [ResidencyUpdate(key(stream_id), 3, Residency.RELEASED) for stream_id in ("fresh", "saved")]
        )
        before = [await store.load(head.key) for head in await scan(store, "default", "", "", 10)]
    async with place.open() as store:
        after = [await store.load(head.key) for head in await scan(store, "default", "", "", 10)]
    assert [record and replace(record, metadata=replace(record.metadata, is_ours=False)) for record in before] == after
    assert len(after) == 3


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_two_stores_at_one_place_fence_each_other(place: Place) -> None:
    """After one store claims a stream, the other can no longer save it under the epoch before."""
    async with place.open() as ours, place.open() as theirs:
        await claim(ours, key("a"), 0, MODEL)
        assert await ours.save([checkpoint("a", 1, step=3)]) == [True]
        assert await claim(theirs, key("a"), 1, MODEL) == 2
        assert await theirs.save([checkpoint("a", 2, step=4)]) == [True]
        assert await ours.save([checkpoint("a", 1, step=5)]) == [False]
        assert not await ours.delete(key("a"), 1)
        record = await theirs.load(key("a"))
        assert record is not None
        assert record.metadata.step == 4


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_the_same_epoch_of_another_writer_is_fenced(place: Place) -> None:
    """When a store has lost its data and assigns an epoch again, the former writer still cannot save under it."""
    async with place.open() as ours, place.open() as theirs:
        await claim(ours, key("a"), 0, MODEL)
        assert await theirs.save([checkpoint("a", 1, step=5)]) == [False]
        await theirs.set_residency([ResidencyUpdate(key("a"), 1, Residency.RELEASED)])
        record = await ours.load(key("a"))
        assert record is not None
        assert (record.metadata.step, record.metadata.holder) == (0, Holder.SELF)


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_a_writer_is_notified_of_changes_to_its_streams(place: Place) -> None:
    """A claim, a delete and a save request by another writer post one notice for a stream in memory, and for no other."""
    async with place.open() as ours, place.open() as theirs:
        for stream_id in ("claimed", "deleted", "asked", "alone"):
            await claim(ours, key(stream_id), 0, MODEL)
        await begin(ours, key("released"))
        assert await ours.take_notices() == []
        await claim(theirs, key("claimed"), 1, MODEL)
        await theirs.delete(key("deleted"), 1)
        await claim(theirs, key("released"), 1, MODEL)
        assert await theirs.request_save(key("asked"), 2) is None
        assert await theirs.request_save(key("asked"), 1) == 1
        assert {each.stream_id for each in await ours.take_notices()} == {"claimed", "deleted", "asked"}
        assert await ours.take_notices() == []
        await ours.set_residency([ResidencyUpdate(key("asked"), 1, Residency.LIVE, 1)])
        record = await theirs.load(key("asked"))
        assert record is not None
        assert (record.metadata.holder, record.metadata.save_requests, record.metadata.save_answers) == (
            Holder.OTHER,
            1,
            1,
        )


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_what_a_dead_writer_held_counts_no_longer(place: Place) -> None:
    """A writer without a recent heartbeat has nothing in memory, and its streams expire."""
    async with place.open() as ours, place.open() as theirs:
        await claim(ours, key("a"), 0, MODEL)
        place.clock.now += 10_000 * MS
        record = await theirs.load(key("a"))
        assert record is not None
        assert record.metadata.holder is Holder.NONE
        await ours.heartbeat()
        assert await theirs.expire(place.clock.now, 0, 0) == 0
        place.clock.now -= 20_000 * MS  # the clock was wrong at the last heartbeat
        record = await theirs.load(key("a"))
        assert record is not None
        assert record.metadata.holder is Holder.NONE
        place.clock.now += 30_000 * MS
        assert await theirs.expire(place.clock.now, 0, 0) == 1
