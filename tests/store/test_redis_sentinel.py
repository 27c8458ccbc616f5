"""A redis that fails over, with real replicas and sentinels: what was confirmed is kept, and what is told of the rest."""

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from tests.ports import free_port
from tests.sentinels import sentinels
from tests.store.support import MODEL, RedisServer, checkpoint, claim, key
from tests.timeouts import TIMEOUT_S
from tests.tls import make_certificates
from tidegate.core.errors import StoreUnavailable
from tidegate.store import Store, make_store

STREAMS = 200


class Saver:
    """Saves all streams again and again, with a step more each time. `confirmed` is the last that the store confirmed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.confirmed = 0
        self.errors: list[str] = []
        self.saving = asyncio.Lock()  # who holds it stops the saves

    async def run(self) -> None:
        """Saves until it is cancelled."""
        step = 0
        while True:
            step += 1
            kept = [checkpoint(str(number), step=step, payload=b"%d" % step) for number in range(STREAMS)]
            try:
                async with self.saving:
                    assert all(await self._store.save(kept))
                self.confirmed = step
            except StoreUnavailable as error:
                self.errors.append(str(error))
                await asyncio.sleep(0.02)
            await asyncio.sleep(0)

    async def reached(self, step: int) -> None:
        """Waits until this step is confirmed."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.confirmed < step:  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0.002)


@asynccontextmanager
async def saving(store: Store) -> AsyncIterator[Saver]:
    """Saves in the background."""
    await asyncio.gather(*(claim(store, key(str(number)), 0, MODEL) for number in range(STREAMS)))
    saver = Saver(store)
    running = asyncio.create_task(saver.run())
    try:
        yield saver
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_was_confirmed_survives_a_failover(
    redis_installed: None, tmp_path: Path, how: signal.Signals, tls: bool
) -> None:
    """The primary of two replicas goes while 200 streams are saved: the same store goes on, and no confirmed step is lost."""
    certificates = make_certificates(tmp_path) if tls else None
    options = f"?ca={tmp_path}/ca.pem&cert={tmp_path}/client.pem&key={tmp_path}/client.key" if tls else ""
    with sentinels(tmp_path, 2, certificates) as redis:
        store = make_store(redis.address + options)
        await store.start()
        assert store.survives.endswith("; a failover to a replica that has it, as 1 must before it counts as stored")
        async with saving(store) as saver:
            await saver.reached(20)
            redis.nodes[0].signal(how)
            async with saver.saving:  # a later save would hide that an earlier one was lost
                at_loss = saver.confirmed
                await asyncio.to_thread(redis.failed_over)
                assert min([await until_reachable(store, str(number)) for number in range(STREAMS)]) >= at_loss
            await saver.reached(at_loss + 20)
            redis.nodes[0].signal(signal.SIGCONT)
            await saver.reached(saver.confirmed + 20)
        assert min([await until_reachable(store, str(number)) for number in range(STREAMS)]) >= saver.confirmed
        await store.close()


@pytest.mark.slow
async def test_what_died_with_the_primary_was_not_confirmed(redis_installed: None, tmp_path: Path) -> None:
    """The replicas are away for the last saves before the primary is killed: when one is promoted, it has all that was confirmed."""
    with sentinels(tmp_path, 2) as redis:
        store = make_store(redis.address)
        await store.start()
        primary, *replicas = redis.nodes
        async with saving(store) as saver:
            await saver.reached(20)
            async with saver.saving:
                # Both replicas have every confirmed save. Otherwise one could have a save that the other lacks, and either may be promoted.
                with Redis(port=primary.port) as client:
                    client.set("last", 1)
                    assert client.wait(2, round(TIMEOUT_S * 1000)) == 2
                for replica in replicas:
                    replica.kill()
            await asyncio.sleep(0.3)  # the primary takes saves
            async with saver.saving:  # a later save would hide that an earlier one was lost
                at_loss = saver.confirmed
                primary.kill()
                for replica in replicas:
                    replica.start()
                await asyncio.to_thread(redis.failed_over)
                assert min([await until_reachable(store, str(number)) for number in range(STREAMS)]) >= at_loss
            await saver.reached(at_loss + 20)
        await store.close()


@pytest.mark.slow
async def test_a_primary_that_is_cut_off_confirms_nothing(redis_installed: None, tmp_path: Path) -> None:
    """It still answers the store, but neither replicas nor sentinels: the store leaves it for the one that was promoted."""
    with sentinels(tmp_path, 2, more=["--user", "ann", "on", ">secret", "~*", "&*", "+@all"]) as redis:
        store = make_store(redis.address.replace("://", "://ann:secret@"))
        await store.start()
        async with saving(store) as saver:
            await saver.reached(20)
            # Replicas and sentinels are the default user.
            redis.nodes[0].command("ACL SETUSER default off\r\nCLIENT KILL USER default")
            await asyncio.to_thread(redis.failed_over)
            assert any("0 of the 1 replicas" in error for error in saver.errors)
            at_failover = saver.confirmed
            await saver.reached(at_failover + 20)
        assert min([await until_reachable(store, str(number)) for number in range(STREAMS)]) >= saver.confirmed
        await store.close()


async def until_reachable(store: Store, stream_id: str) -> int:
    """The stored step of a stream, however often the store has to be asked."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                record = await store.load(key(stream_id))
            except StoreUnavailable:
                await asyncio.sleep(0.02)
                continue
            assert record is not None
            assert record.checkpoint is not None
            assert record.checkpoint.payload == b"%d" % record.checkpoint.step
            return record.checkpoint.step


async def test_no_sentinel_is_forgotten(redis_installed: None, tmp_path: Path) -> None:
    """After many calls at once, of which each had to pass over a dead sentinel, each of the three alone is enough."""
    with sentinels(tmp_path, 0) as redis:
        [primary], watchers = redis.nodes, redis.watchers
        store = make_store(f"{redis.address}?replicas=0")
        await store.start()
        for alive in (1, 2), (0,), (1,), (2,):
            for number, watcher in enumerate(watchers):
                watcher.kill()
                if number in alive:
                    watcher.start()
            primary.kill()  # so that new connections are needed
            primary.start()
            await asyncio.gather(*(store.count() for _ in range(16)), return_exceptions=True)
            async with asyncio.timeout(TIMEOUT_S):
                assert await count(store) == 0
        await store.close()


async def count(store: Store) -> int:
    """The number of streams, however often the store has to be asked."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await store.count()
        await asyncio.sleep(0.02)


async def test_sentinels_and_redis_have_their_own_logins(redis_installed: None, tmp_path: Path) -> None:
    """The login before the @ is for redis, `sentinel-password` for the sentinels; a wrong one is told."""
    primary = RedisServer(tmp_path, "--requirepass", "inner")
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"requirepass outer\nsentinel monitor main 127.0.0.1 {primary.port} 1\nsentinel auth-pass main inner\n"
    )
    watcher = RedisServer(tmp_path, config=config)
    address = f"redis+sentinel://:inner@127.0.0.1:{watcher.port}/main?replicas=0&sentinel-password="
    try:
        primary.start()
        watcher.start()
        store = make_store(f"{address}outer")
        await store.start()
        assert await claim(store, key("a"), 0, MODEL) == 1
        await store.close()
        with pytest.raises(StoreUnavailable, match="its sentinels name no primary that is up"):
            await make_store(f"{address}inner").start()
    finally:
        watcher.kill()
        primary.kill()


async def test_sentinels_that_name_no_primary_are_told(redis_installed: None) -> None:
    """In a line without the login."""
    port = free_port()
    with pytest.raises(StoreUnavailable) as refused:
        await make_store(f"redis+sentinel://:secret@127.0.0.1:{port}/main?sentinel-password=secret").start()
    assert str(refused.value).startswith(
        f"store redis+sentinel://127.0.0.1:{port}/main/0: its sentinels name no primary that is up; see that"
    )
    assert "secret" not in str(refused.value)


async def test_what_no_replica_has_is_not_confirmed(
    redis_installed: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Claims, saves and deletes fail while the replica is frozen, and are confirmed when it is back."""
    (tmp_path / "replica").mkdir()
    primary = RedisServer(tmp_path, "--repl-diskless-sync-delay", "0")
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary.port))
    try:
        primary.start()
        store = make_store(f"{primary.address}?replicas=1")
        with caplog.at_level(logging.WARNING):
            await store.start()
        assert "nothing counts as stored until 1 replicas are connected; 0 are" in caplog.text
        replica.start()
        async with asyncio.timeout(TIMEOUT_S):
            for number in itertools.count():  # a replica that is connected takes a second until it confirms
                with contextlib.suppress(StoreUnavailable):
                    await claim(store, key(f"early {number}"), 0, MODEL)
                    break
        assert await claim(store, key("a"), 0, MODEL) == 1
        assert await store.save([checkpoint("a")]) == [True]
        replica.signal(signal.SIGSTOP)
        for call in (
            claim(store, key("b"), 0, MODEL),
            store.save([checkpoint("a", step=2)]),
            store.delete(key("a"), 9),
        ):
            with pytest.raises(StoreUnavailable, match="0 of the 1 replicas that must have a write confirmed it; see"):
                await call
        assert await store.load(key("a")) is not None  # what is read needs no replica
        replica.signal(signal.SIGCONT)
        assert await store.save([checkpoint("a", step=3)]) == [True]
        await store.close()
    finally:
        replica.kill()
        primary.kill()


async def test_a_failover_that_may_lose_is_warned_of(
    redis_installed: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With sentinels and `replicas=0`, start says that a failover loses what only the primary has."""
    with sentinels(tmp_path, 0) as redis:
        store = make_store(f"{redis.address}/0?replicas=0")
        with caplog.at_level(logging.WARNING):
            await store.start()
        await store.close()
    assert caplog.messages == [f"{redis.address}/0: a failover loses what only the primary has; set replicas=1 or more"]
