"""Tests for redis only: what survives which setting, and the errors when it is slow, full, closed or gone."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.client import Pipeline

from tests.store.support import MODEL, MS, Clock, RedisServer, begin, checkpoint, claim, key, redis_place, scan
from tidegate.core.errors import CheckpointBroken, StoreUnavailable
from tidegate.store import Record, Store, StreamMetadata, encode, make_store
from tidegate.store.redis import RedisStore
from tidegate.store.redis_address import parse_redis_address


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[Store]:
    """An open, empty store."""
    async with redis_place(redis_server).open() as store:
        yield store


@pytest.fixture
def server_with(redis_installed: None, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers with their own settings."""
    servers = []

    def start(*settings: str) -> RedisServer:
        server = RedisServer(tmp_path, *settings)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


def impatient(server: RedisServer) -> RedisStore:
    """A store with a short timeout."""
    return RedisStore(parse_redis_address(server.address), timeout_s=0.2)


async def refusal_error(call: Any) -> str:
    """The message of the StoreUnavailable error of a call; always one line."""
    with pytest.raises(StoreUnavailable) as refused:
        await call
    text = str(refused.value)
    assert "\n" not in text
    return text


# --- what survives


async def test_what_was_saved_survives_a_killed_redis(durable_redis: RedisServer) -> None:
    """With AOF always, all that was saved is there after redis was killed and restarted, for the same store."""
    store = make_store(durable_redis.address)
    await store.start()
    assert store.survives == "a killed process, a restart of redis and a power loss"
    await asyncio.gather(*(claim(store, key(str(place)), 0, MODEL) for place in range(100)))
    kept = [checkpoint(str(place), step=place + 1) for place in range(100)]
    assert all(await store.save(kept))
    durable_redis.kill()
    assert "cannot be reached" in await refusal_error(store.save(kept))
    assert "cannot be reached" in await refusal_error(store.load(key("0")))
    durable_redis.start()
    records = [await store.load(each.key) for each in kept]
    assert [record and record.checkpoint for record in records] == kept
    assert await claim(store, key("0"), 1, MODEL) == 2  # the new server does not have the scripts
    assert await store.save([checkpoint("0", 1, step=9)]) == [False]
    await store.close()


@pytest.mark.parametrize(
    ("settings", "survives", "warned"),
    [
        (("--appendonly", "no"), "a killed process, not a restart of redis", True),
        (
            ("--appendonly", "yes", "--appendfsync", "everysec"),
            "a killed process and an orderly restart of redis; a power loss takes the last two seconds",
            False,
        ),
        (
            ("--appendonly", "yes", "--appendfsync", "no"),
            "a killed process and an orderly restart of redis; a power loss takes the last thirty seconds",
            False,
        ),
        (
            ("--appendonly", "yes", "--rename-command", "CONFIG", '""'),
            "a killed process and an orderly restart of redis; a power loss takes the last seconds or more",
            False,
        ),
    ],
    ids=["memory", "everysec", "never", "not told"],
)
async def test_what_survives_is_asked_of_redis(
    server_with: Callable[..., RedisServer],
    caplog: pytest.LogCaptureFixture,
    settings: tuple[str, ...],
    survives: str,
    warned: bool,
) -> None:
    """Start reads what the configuration of redis survives, and warns in one line when that is not even a restart."""
    store = make_store(server_with(*settings).address)
    with caplog.at_level(logging.WARNING, "tidegate.store"):
        await store.start()
    assert store.survives == survives
    assert len(caplog.messages) == warned
    assert all("a restart of redis loses streams; set appendonly yes" in message for message in caplog.messages)
    await store.close()


async def test_a_redis_that_throws_streams_out_is_warned_of(
    server_with: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Start warns of a redis that evicts keys when its memory is full."""
    server = server_with("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    store = make_store(server.address)
    await store.start()
    assert [message.partition("; ")[2] for message in caplog.messages] == ["set maxmemory-policy noeviction"]
    await store.close()


# --- many at once


async def test_many_saves_are_one_round_trip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of a thousand streams is one round trip, in scripts of a bounded size."""
    await asyncio.gather(*(claim(store, key(str(place)), 0, MODEL) for place in range(1000)))
    await store.save([checkpoint("0")])  # so that the script is known
    trips = []
    execute = Pipeline.execute

    async def counted(self: Pipeline, raise_on_error: bool = True) -> list[Any]:
        trips.append(len(self))
        return await execute(self, raise_on_error)

    monkeypatch.setattr(Pipeline, "execute", counted)
    assert all(await store.save([checkpoint(str(place)) for place in range(1000)]))
    assert trips == [4]


async def test_scripts_that_redis_forgot_are_sent_again(store: Store, redis_server: RedisServer) -> None:
    """A redis that has flushed its scripts is not an error."""
    assert await claim(store, key("a"), 0, MODEL) == 1
    assert redis_server.command("SCRIPT FLUSH") == b"+OK\r\n"
    assert await claim(store, key("a"), 1, MODEL) == 2


# --- what is wrong with the server


async def test_a_redis_that_hangs_is_given_up(store: Store, redis_server: RedisServer) -> None:
    """Calls to a redis that does not answer fail after the timeout, and work again when it does."""
    hasty = impatient(redis_server)
    await hasty.start()
    redis_server.signal(signal.SIGSTOP)
    try:
        text = await refusal_error(hasty.claim(key("a"), 0, MODEL, ""))
    finally:
        redis_server.signal(signal.SIGCONT)
    assert text == f"store {redis_server.address}/0: did not answer within 0.2 s"
    assert await claim(hasty, key("b"), 0, MODEL) == 1
    await hasty.close()


async def test_more_calls_than_connections_wait_their_turn(store: Store) -> None:
    """A thousand concurrent calls are all answered, over a bounded number of connections."""
    assert await asyncio.gather(*(claim(store, key(str(place)), 0, MODEL) for place in range(1000))) == [1] * 1000
    assert isinstance(store, RedisStore)
    assert len(await store._redis.client_list()) <= 17


async def test_no_server_is_named(server_with: Callable[..., RedisServer]) -> None:
    """Where nothing listens, the error of start has the address. Start succeeds once there is a server."""
    server = server_with()
    server.kill()
    store = make_store(server.address)
    text = await refusal_error(store.start())
    assert text.startswith(f"store {server.address}/0: cannot be reached (")
    assert text.endswith("; see that it runs and listens there")
    server.start()
    await store.start()
    assert await store.count() == 0
    await store.close()


@pytest.mark.parametrize("user", ["", ":wrong@"])
async def test_a_wrong_password_is_named(server_with: Callable[..., RedisServer], user: str) -> None:
    """The error of start for a wrong password does not contain the password."""
    server = server_with("--requirepass", "right")
    text = await refusal_error(make_store(server.address.replace("//", f"//{user}")).start())
    assert "does not let this user in" in text
    assert "wrong@" not in text
    store = make_store(server.address.replace("//", "//:right@"))
    await store.start()
    await store.close()


async def test_a_replica_is_named(redis_server: RedisServer, server_with: Callable[..., RedisServer]) -> None:
    """Start refuses a replica, which cannot be written."""
    replica = server_with("--replicaof", "127.0.0.1", str(redis_server.port))
    assert "is a replica, which cannot be written; name the primary" in await refusal_error(
        make_store(replica.address).start()
    )


async def test_a_full_memory_is_named(server_with: Callable[..., RedisServer]) -> None:
    """When redis has no memory, writes fail, reads work and saved state stays. It works again once there is memory."""
    server = server_with()
    store = make_store(server.address)
    await store.start()
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a", step=1)])
    assert server.command("CONFIG SET maxmemory 1") == b"+OK\r\n"
    assert "its memory is full; nothing was written: raise maxmemory" in await refusal_error(
        store.save([checkpoint("a", step=2)])
    )
    record = await store.load(key("a"))
    assert record is not None
    assert record.checkpoint == checkpoint("a", step=1)
    assert server.command("CONFIG SET maxmemory 0") == b"+OK\r\n"
    assert await store.save([checkpoint("a", step=2)]) == [True]
    await store.close()


async def test_another_format_is_named(store: Store, redis_server: RedisServer) -> None:
    """Start refuses data in the format of another version."""
    assert redis_server.command("SET tidegate:format 7") == b"+OK\r\n"
    assert "its format b'7' is not 3" in await refusal_error(make_store(redis_server.address).start())


async def test_a_bad_record_is_named(store: Store, redis_server: RedisServer) -> None:
    """A damaged record is never a new stream: the error of load names server and stream."""
    await claim(store, key("a"), 0, MODEL)
    await store.save([checkpoint("a")])
    assert isinstance(store, RedisStore)
    await store._redis.hset("tidegate:stream:7:default:a", "record", encode(checkpoint("a"))[:-1])  # type: ignore[misc]
    with pytest.raises(CheckpointBroken, match=f"{redis_server.address}/0: stream 'a': record: truncated"):
        await store.load(key("a"))


async def test_nothing_is_left_of_a_stream_that_vanished(redis_server: RedisServer) -> None:
    """A deleted or expired stream leaves nothing behind once its tombstone is deleted."""
    place = redis_place(redis_server)
    async with place.open() as store:
        for stream_id in ("forgotten", "expired", "expired too"):
            await begin(store, key(stream_id, "te:nant"))
        assert await store.delete(key("forgotten", "te:nant"), 1)
        place.clock.now += MS
        await store.expire(place.clock.now, 0, 0)
        assert await store.delete(key("expired", "te:nant"), 2)
        place.clock.now += MS
        await store.expire(0, place.clock.now, place.clock.now)
    kept = redis_server.command("KEYS *").decode().split("\r\n")[2::2]
    assert sorted(kept) == ["tidegate:format", "tidegate:highest-epoch"]


async def test_a_stream_that_redis_threw_out_is_not_known(store: Store, redis_server: RedisServer) -> None:
    """Entries that eviction leaves in the indexes are not streams, and do not come back as tombstones."""
    await claim(store, key("a"), 0, MODEL)
    await claim(store, key("b"), 0, MODEL)
    assert redis_server.command("DEL tidegate:stream:7:default:a") == b":1\r\n"
    assert [head.key.stream_id for head in await scan(store, "default", "", "", 1)] == ["b"]
    await store.expire(Clock().now + MS, 0, 0)
    assert await store.load(key("a")) is None
    assert await claim(store, key("a"), 0, MODEL) == 1


async def test_a_cancelled_caller_ends_whatever_the_library_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that the library swallows still ends the caller: else a task of the server would run for ever."""
    assert isinstance(store, RedisStore)
    begun = asyncio.Event()

    async def swallow(_: str) -> int:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(store._redis, "zcard", swallow)
    counting = asyncio.create_task(store.count())
    await begun.wait()
    counting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await counting


async def test_whatever_the_library_raises_the_store_is_unavailable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the event loop about a dead connection is not an error of redis, and ends no task of the server."""
    assert isinstance(store, RedisStore)

    async def fail(_: str) -> int:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    monkeypatch.setattr(store._redis, "zcard", fail)
    assert "the connection failed: RuntimeError('unable to perform" in await refusal_error(store.count())


@pytest.mark.parametrize("form", [1, 2])
async def test_a_stream_of_an_older_format_is_taken_over(redis_server: RedisServer, form: int) -> None:
    """Its state is unchanged. No server has it in memory, it has no owner, and it can be claimed."""
    place = redis_place(redis_server)
    kept = checkpoint("a", 3, step=7)
    async with place.open() as store:
        assert isinstance(store, RedisStore)
        fields = dict(zip(("name", "version", "fingerprint"), MODEL, strict=True))
        record = {"epoch": 3, "step": 7, "created": 1000, "updated": 2000, "bytes": 5, "expired": 0, **fields}
        if form == 2:
            record |= {"writer": 1 << 61, "mark": 0, "asked": 2, "answered": 1}
        await store._redis.hset("tidegate:stream:7:default:a", mapping={**record, "record": encode(kept)})  # type: ignore[misc]
        await store._redis.zadd("tidegate:ids:default", {"a": 0})
        await store._redis.zadd("tidegate:ages", {"7:default:a": 2})
        await store._redis.set("tidegate:format", form)
    async with place.open() as store:
        head = StreamMetadata(key("a"), 3, 7, MODEL, 1000, 2000, 5)
        if form == 2:
            head = replace(head, save_requests=2, save_answers=1)
        assert await store.load(key("a")) == Record(head, kept)
        assert await scan(store, "default", "", "", 10) == [head]
        assert await claim(store, key("a"), 3, owner="ann") == 4
        assert await store.save([checkpoint("a", 4, step=8)]) == [True]
        record_now = await store.load(key("a"))
        assert record_now is not None
        assert record_now.metadata.owner == "ann"
    assert redis_server.command("GET tidegate:format") == b"$1\r\n3\r\n"
