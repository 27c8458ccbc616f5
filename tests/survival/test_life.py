"""The life cycle of a stream on a real server: durability, silence, expiry, administration, stores that fail."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import RawCall, pack, raw_channel
from tests.engines import Gate, key
from tests.fleet import Fleet, ServerProcess, rows_of
from tests.graphs import lstm, running_sum, write_model
from tests.oracle import replay, same_bits
from tests.servers import address_of, batcher_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    Client,
    ClientError,
    ModelMismatch,
    StreamExists,
    StreamNotFound,
    StreamRefused,
    TakenOver,
)
from tidegate.core.errors import InvalidField, StoreUnavailable, TooManyStreams
from tidegate.core.spec import STEP_MAX, Checkpoint, Key, Timestep
from tidegate.core.streams import OpenOptions, checkpoint_rows
from tidegate.runtime.server import Server
from tidegate.store import MemoryStore, decode, encode
from tidegate.v1 import tidegate_pb2 as pb

SERVICE = "tidegate.v1.TidegateService"


def sqlite(folder: Path) -> str:
    """A store in a file."""
    return f"sqlite://{folder / 'state.db'}"


async def test_an_answer_of_a_sync_stream_is_durable_when_it_arrives(lstm_root: Path, tmp_path: Path) -> None:
    """The store has the step before its client has the prediction."""
    async with (
        run_server(lstm_root, state=sqlite(tmp_path), checkpoint_every="30s") as server,
        asyncio.timeout(TIMEOUT_S),
        Client(address_of(server)) as client,
        client.open("a", sync=True) as stream,
    ):
        for row in rows_of(0, 5):
            prediction = await stream.step(row)
            assert prediction.durable_step == prediction.step
            assert (await client.describe_stream("a")).durable_step == prediction.step


async def test_a_half_closed_stream_is_stored_before_its_call_ends_well(lstm_root: Path, tmp_path: Path) -> None:
    """Once its client has read OK, another server on the same store continues where it was."""
    state, rows = sqlite(tmp_path), rows_of(0, 8)
    async with (
        run_server(lstm_root, state=state, checkpoint_every="30s") as here,
        run_server(lstm_root, state=state, checkpoint_every="30s") as there,
        raw_channel(here) as one,
        raw_channel(there) as other,
        asyncio.timeout(TIMEOUT_S),
    ):
        for number, row in enumerate(rows, 1):
            call = RawCall(one if number % 2 else other)
            assert (await call.open("a")).next_step == number
            await call.step(*row.tolist(), step=number)
            await call.call.done_writing()
            assert (await call.ending()).code is grpc.StatusCode.OK


async def test_a_half_closed_stream_that_cannot_be_stored_does_not_end_well(sum_root: Path) -> None:
    """Its client learns that the store has failed, and when to retry."""
    async with run_server(sum_root, checkpoint_every="10ms", lag_max="50ms") as server, raw_channel(server) as channel:
        store = BrokenStore(server)
        call = RawCall(channel)
        await call.open("a")
        store.broken = True
        await call.step(1, step=1)
        await call.call.done_writing()
        ending = await call.ending()
        assert (ending.code, ending.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        store.broken = False
        await eventually(lambda: live(server) == 0, "parking")


async def test_durable_step_never_runs_ahead_of_the_store(lstm_root: Path, tmp_path: Path) -> None:
    """The store has at least the timestep that an answer reports as durable."""
    async with run_server(lstm_root, state=sqlite(tmp_path), checkpoint_every="5ms") as server:
        store = server.stream_service._store
        async with Client(address_of(server)) as client, client.open("a") as stream, asyncio.timeout(TIMEOUT_S):
            seen = 0
            for row in rows_of(0, 300):
                prediction = await stream.step(row)
                record = await store.load(Key("default", "a"))
                assert record is not None
                assert prediction.durable_step <= record.metadata.step
                assert prediction.durable_step >= seen
                seen = prediction.durable_step
            assert seen > 0


async def test_a_waiting_client_is_notified_of_durable_steps(sum_root: Path) -> None:
    """When no prediction is pending, `durable` comes by itself before half of the client's buffer is stored timesteps."""
    async with run_server(sum_root, checkpoint_every="20ms") as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="a", kept_max=4)))
        await call.read()
        for number in range(1, 5):
            known = (await call.step(1, step=number)).prediction.durable_step
        async with asyncio.timeout(TIMEOUT_S):
            while 2 * (4 - known) >= 4:  # on a slow machine the answers say all of it
                before, known = known, (await call.read()).durable.durable_step
                assert known >= before + 2


async def test_a_silent_stream_leaves_memory_and_wakes(lstm_root: Path, tmp_path: Path) -> None:
    """A silent open stream leaves its slot. Its next timestep is answered as before."""
    rows = rows_of(3, 20)
    truth = replay(lstm(), rows)
    async with (
        run_server(lstm_root, state=sqlite(tmp_path), checkpoint_every="10ms", park_after="30ms", live_max=1) as server,
        Client(address_of(server)) as client,
        client.open("a") as one,
        asyncio.timeout(TIMEOUT_S),
    ):
        for row, expected in zip(rows[:10], truth, strict=False):
            assert same_bits(await one.step(row), expected)
        await eventually(lambda: live(server) == 0, "parking")
        async with client.open("b") as two:  # the only slot
            await two.step(rows[0])
        await eventually(lambda: live(server) == 0, "parking")
        for row, expected in zip(rows[10:], truth[10:], strict=True):
            assert same_bits(await one.step(row), expected)


async def test_thousands_of_parked_streams_cost_nothing_live(lstm_root: Path, tmp_path: Path) -> None:
    """2,000 streams that were opened, stepped and closed leave no slot in use.

    A random hundred wake with the right state.
    """
    rows = rows_of(7, 3)
    truth = replay(lstm(), rows)
    async with run_server(lstm_root, state=sqlite(tmp_path), checkpoint_every="20ms", live_max=4096) as server:
        async with Client(address_of(server)) as client, asyncio.timeout(TIMEOUT_S):
            gate = asyncio.Semaphore(200)

            async def visit(name: int, place: int) -> None:
                async with gate, client.open(f"s{name}") as stream:
                    assert stream.next_step == place + 1
                    assert same_bits(await stream.step(rows[place]), truth[place])

            await asyncio.gather(*(visit(name, 0) for name in range(2000)))
            await eventually(lambda: live(server) == 0, "parking")
            chosen = np.random.default_rng(1).choice(2000, 100, replace=False)
            await asyncio.gather(*(visit(int(name), 1) for name in chosen))


async def forget(server: Server, client: Client, stream_id: str) -> None:
    """Makes an hour of silence pass for the server's streams, and waits until that one has expired."""
    while (await client.describe_stream(stream_id)).state != "expired":
        await server.registry.sweeper._forget(time.time_ns() + 3600 * 1_000_000_000)
        await asyncio.sleep(0.02)


async def test_a_late_client_gets_the_error_of_a_forgotten_stream(sum_root: Path, tmp_path: Path) -> None:
    """After long silence an open is refused with the last step. Only an open with MUST_BE_NEW begins a new stream."""
    async with run_server(sum_root, state=sqlite(tmp_path), checkpoint_every="10ms", forget_after="1h") as server:
        async with Client(address_of(server), reconnect_s=0) as client, asyncio.timeout(TIMEOUT_S):
            async with client.open("a") as stream:
                await stream.step([1])
                await stream.step([2])
            await forget(server, client, "a")
            with pytest.raises(StreamRefused, match="its last timestep was 2") as caught:
                async with client.open("a"):
                    pass
            assert caught.value.reason == "STREAM_EXPIRED"
            async with client.open("a", existence="must_be_new") as stream:
                assert stream.next_step == 1
                assert (await stream.step([5]))["sum"] == 5


async def test_an_open_stream_that_was_forgotten_is_reported(sum_root: Path, tmp_path: Path) -> None:
    """Its call was open but silent for too long: the next timestep is not applied to a zero state."""
    settings = {"checkpoint_every": "10ms", "park_after": "20ms", "forget_after": "1h"}
    async with run_server(sum_root, state=sqlite(tmp_path), **settings) as server, asyncio.timeout(TIMEOUT_S):
        async with raw_channel(server) as channel, Client(address_of(server)) as client:
            call = RawCall(channel)
            await call.open("a")
            await call.step(1)
            await eventually(lambda: live(server) == 0, "parking")
            await forget(server, client, "a")
            await call.send(pb.PredictRequest(timestep=pb.Timestep(step=2, values=np.float32(1).tobytes())))
            assert (await call.ending()).reason == "STREAM_EXPIRED"


async def test_a_stream_is_not_opened_under_other_weights(tmp_path: Path) -> None:
    """The same name and version with other weights is refused, after a restart too."""
    state = sqlite(tmp_path)
    async with run_server(write_model(tmp_path / "old", lstm(seed=0)), state=state) as server:
        async with Client(address_of(server)) as client, client.open("a") as stream:
            await stream.step(rows_of(0, 1)[0])
    async with run_server(write_model(tmp_path / "new", lstm(seed=1)), state=state) as server:
        async with Client(address_of(server), reconnect_s=0) as client:
            with pytest.raises(ModelMismatch, match="fingerprint"):
                async with client.open("a"):
                    pass


async def test_a_list_of_few_among_many_asks_the_store_once(sum_root: Path, tmp_path: Path) -> None:
    """A page of one expired stream, with none among a thousand others, is one scan, not one for each."""
    async with run_server(sum_root, state=sqlite(tmp_path)) as server, Client(address_of(server)) as client:
        store: Any = server.stream_service._store
        model = server.repository.find("toy", "").spec.id
        planted = [store.create(Checkpoint(key(str(place)), 0, 1, model, 4, b""), 0) for place in range(1000)]
        assert all(await asyncio.gather(*planted))
        scan, looks = store.scan, 0

        async def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal looks
            looks += 1
            return await scan(*arguments, **named)

        store.scan = counted
        assert [each async for each in client.streams(state="expired", page_size=1)] == []
        assert looks == 1


async def test_streams_are_listed_page_by_page(sum_root: Path, tmp_path: Path) -> None:
    """All streams once, in the order of their ids, for any page size; by prefix and by state."""
    names = sorted(f"pump-{number}" for number in range(25))
    async with run_server(sum_root, state=sqlite(tmp_path), checkpoint_every="10ms") as server:
        async with Client(address_of(server)) as client, asyncio.timeout(TIMEOUT_S):
            for name in [*names, "valve"]:
                async with client.open(name) as stream:
                    await stream.step([1])
            await eventually(lambda: live(server) == 0, "parking")
            async with client.open("pump-3"):
                assert [info.stream_id async for info in client.streams(page_size=7)] == [*names, "valve"]
                assert [info.stream_id async for info in client.streams("pump-", page_size=5)] == names
                assert [info.stream_id async for info in client.streams(state="live")] == ["pump-3"]
                assert len([info async for info in client.streams(state="parked", page_size=4)]) == 25


async def test_a_deleted_stream_is_gone_and_its_call_ends(sum_root: Path) -> None:
    """The call that has it open ends NOT_FOUND, and its name is free."""
    async with run_server(sum_root) as server, Client(address_of(server), reconnect_s=0) as client:
        async with raw_channel(server) as channel, asyncio.timeout(TIMEOUT_S):
            call = RawCall(channel)
            await call.open("a")
            await call.step(3)
            assert (await client.delete_stream("a")).step == 1
            assert (await call.ending()).reason == "STREAM_NOT_FOUND"
            with pytest.raises(StreamNotFound):
                await client.describe_stream("a")
            assert (await RawCall(channel).open("a")).next_step == 1


async def test_an_exported_state_continues_at_another_server(lstm_root: Path, tmp_path: Path) -> None:
    """Only a file is moved. The predictions are those of one uninterrupted stream."""
    rows = rows_of(5, 30)
    truth = replay(lstm(), rows)
    async with run_server(lstm_root) as here, run_server(lstm_root, state=sqlite(tmp_path)) as there:
        async with Client(address_of(here)) as source, Client(address_of(there)) as target, asyncio.timeout(TIMEOUT_S):
            async with source.open("a") as stream:
                for row in rows[:15]:
                    await stream.step(row)
                record = await source.export_stream("a")
                await stream.step(rows[15])  # the original continues
            info = await target.import_stream(record, "b")
            assert (info.stream_id, info.step, info.state) == ("b", 15, "parked")
            with pytest.raises(StreamExists):
                await target.import_stream(record, "b")
            async with target.open("b") as moved:
                assert moved.next_step == 16
                for row, expected in zip(rows[15:], truth[15:], strict=True):
                    assert same_bits(await moved.step(row), expected)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
async def test_a_damaged_state_is_not_imported(lstm_root: Path, damage: str) -> None:
    """Each is refused with the reason, and no stream is created."""
    async with run_server(lstm_root) as server, Client(address_of(server)) as client, asyncio.timeout(TIMEOUT_S):
        async with client.open("a") as stream:
            await stream.step(rows_of(0, 1)[0])
            record = await client.export_stream("a")
        damaged = {
            "truncated": record[:-5],
            "flipped": record[:40] + bytes([record[40] ^ 1]) + record[41:],
            "foreign": b"PK\x03\x04" + record[4:],
        }[damage]
        with pytest.raises(ClientError) as caught:
            await client.import_stream(damaged, "b")
        assert caught.value.reason == "INVALID_FIELD"
        with pytest.raises(StreamNotFound):
            await client.describe_stream("b")


async def test_a_fork_runs_ahead_without_touching_the_original(lstm_root: Path) -> None:
    """Two streams with one past. Timesteps of the copy do not change the original."""
    rows = rows_of(6, 20)
    truth = replay(lstm(), rows)
    async with run_server(lstm_root) as server, Client(address_of(server)) as client, asyncio.timeout(TIMEOUT_S):
        async with client.open("a") as stream:
            for row in rows[:10]:
                await stream.step(row)
            info = await client.fork_stream("a", "what-if")
            assert info.step == 10
            async with client.open("what-if") as copy:
                assert same_bits(await copy.step(rows[10]), truth[10])
                await copy.step(np.full(8, 9.0))
            for row, expected in zip(rows[10:], truth[10:], strict=True):
                assert same_bits(await stream.step(row), expected)


async def test_a_damaged_record_is_refused_and_never_a_silent_zero_state(
    site: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """A flipped bit in the database: the open ends DATA_LOSS, and the record is not changed."""
    one = site()
    await one.start()
    async with asyncio.timeout(TIMEOUT_S):
        async with Client(one.address) as client, client.open("a") as stream:
            for row in rows_of(0, 5):
                await stream.step(row)
        assert await one.stop() == 0
        with sqlite3.connect(tmp_path / "state.db") as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            (table,) = [name for name in tables if "record" in _columns(database, name)]
            (record,) = database.execute(f"SELECT record FROM {table}").fetchone()
            flipped = record[:100] + bytes([record[100] ^ 4]) + record[101:]
            database.execute(f"UPDATE {table} SET record = ?", (flipped,))
        database.close()
        await one.start()
        async with Client(one.address, reconnect_s=0) as client:
            with pytest.raises(ClientError) as caught:
                async with client.open("a"):
                    pass
            assert caught.value.reason == "STATE_UNREADABLE"


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


class BrokenStore:
    """The store of a server, which can be made to fail."""

    def __init__(self, server) -> None:
        self._store = server.stream_service._store
        self._save = self._store.save
        self.broken = False
        self._store.save = self.save

    async def save(self, checkpoints):
        """Fails while broken."""
        if self.broken:
            raise StoreUnavailable("test", "is broken")
        return await self._save(checkpoints)


async def test_a_failed_store_has_no_effect_at_first(lstm_root: Path) -> None:
    """Predictions continue, unsaved.

    The lag and the failures are metrics. When the store is back, everything is saved.
    """
    rows = rows_of(0, 60)
    truth = replay(lstm(), rows)
    async with run_server(lstm_root, checkpoint_every="10ms") as server, asyncio.timeout(TIMEOUT_S):
        store = BrokenStore(server)
        async with Client(address_of(server)) as client, client.open("a") as stream:
            await stream.step(rows[0])
            store.broken = True
            for row, expected in zip(rows[1:30], truth[1:], strict=False):
                assert same_bits(await stream.step(row), expected)
            await eventually(lambda: server.stream_service._metrics.checkpoints["failed"] > 0, "a failed checkpoint")
            assert server.stream_service.checkpointer.unsaved_seconds() > 0
            store.broken = False
            for row, expected in zip(rows[30:], truth[30:], strict=True):
                assert same_bits(await stream.step(row), expected)
        assert (await server.stream_service._store.load(Key("default", "a"))).metadata.step == 60
        assert server.stream_service.checkpointer.unsaved_seconds() == 0


async def test_a_server_whose_store_is_gone_is_not_healthy(sum_root: Path, tmp_path: Path) -> None:
    """Health of the process turns NOT_SERVING when the database is removed: only a restart helps, which health checks trigger."""
    async with (
        run_server(sum_root, state=sqlite(tmp_path), checkpoint_every="10ms") as server,
        raw_channel(server) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        call = RawCall(channel)
        await call.open("a")
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        (tmp_path / "state.db").rename(tmp_path / "elsewhere.db")
        await call.step(1)
        async with asyncio.timeout(TIMEOUT_S):
            while (
                await health.Check(health_pb2.HealthCheckRequest())
            ).status == health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)
        (tmp_path / "elsewhere.db").rename(tmp_path / "state.db")  # so that the server can stop cleanly


async def test_a_stream_that_the_store_has_older_than_it_was_stored_is_lost(sum_root: Path) -> None:
    """The process remembers what it has stored of streams that have left it.

    A new open gets one error, and it is counted.
    """
    async with run_server(sum_root, checkpoint_every="10ms") as server, raw_channel(server) as channel:
        store = server.stream_service._store
        assert isinstance(store, MemoryStore)
        for number in range(1, 21):
            call = RawCall(channel)
            await call.open("a")
            await call.step(1, step=number)
            await call.call.done_writing()
            await call.ending()
            if number == 10:
                older = await store.load(key("a"))
        await eventually(lambda: live(server) == 0, "parking")
        newest = await store.load(key("a"))
        assert older is not None
        assert newest is not None
        store._keep(replace(older, metadata=replace(older.metadata, epoch=newest.metadata.epoch)))
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="a")))
        ending = await call.ending()
        assert (ending.reason, "stored up to timestep 10, but was reported as stored up to 20" in ending.message) == (
            "STATE_LOST",
            True,
        )
        assert server.stream_service._metrics.state_lost == 1
        assert (await RawCall(channel).open("a")).next_step == 11


async def test_a_deleted_stream_that_begins_anew_is_not_lost(sum_root: Path) -> None:
    """An earlier step than this process knows is no loss when the stream has a higher epoch."""
    async with run_server(sum_root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        call = RawCall(channel)
        await call.open("a")
        for _ in range(5):
            await call.step(1)
        await call.call.done_writing()
        await call.ending()
        await client.delete_stream("a")
        for next_step in (1, 2):
            call = RawCall(channel)
            assert (await call.open("a")).next_step == next_step
            await call.step(1)
            await call.call.done_writing()
            await call.ending()
        assert server.stream_service._metrics.state_lost == 0


async def test_a_limit_on_streams_holds_for_all_that_begin_at_once(sum_root: Path, tmp_path: Path) -> None:
    """Concurrent opens, forks and imports never exceed the limit, and each beyond it is refused."""
    async with run_server(sum_root, state=sqlite(tmp_path), streams_max=20) as server, asyncio.timeout(TIMEOUT_S):
        keeper = server.stream_service
        lease = (await keeper.open(key("source"), "", "", OpenOptions())).lease
        await keeper.queue(lease).submit(lease, Timestep(0, pack(1)))
        record, _ = await server.admin_service.export(key("source"))
        begun = await asyncio.gather(
            *(keeper.open(key(f"open-{place}"), "", "", OpenOptions()) for place in range(20)),
            *(server.admin_service.fork(key("source"), f"fork-{place}") for place in range(20)),
            *(server.admin_service.import_("default", record, f"import-{place}") for place in range(20)),
            return_exceptions=True,
        )
        assert {type(each) for each in begun if isinstance(each, BaseException)} == {TooManyStreams}
        # A stream that begins during a count may count twice until the next count.
        assert 19 <= await keeper._store.count() <= 20


async def test_a_server_far_behind_is_not_ready(sum_root: Path) -> None:
    """Health of the service turns NOT_SERVING while the store lags, and back. That of the process stays."""
    async with run_server(sum_root, checkpoint_every="10ms", ready_lag="50ms") as server, asyncio.timeout(TIMEOUT_S):
        store = BrokenStore(server)
        async with raw_channel(server) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            async def status(service: str) -> int:
                return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status

            call = RawCall(channel)
            await call.open("a")
            store.broken = True
            await call.step(1)
            while await status(SERVICE) == health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)
            assert await status("") == health_pb2.HealthCheckResponse.SERVING
            store.broken = False
            while await status(SERVICE) != health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)


async def test_what_cannot_be_kept_is_refused_and_not_left_unprotected(sum_root: Path) -> None:
    """Beyond the largest lag new timesteps are refused with a retry time. When the store is back they are accepted."""
    async with run_server(sum_root, checkpoint_every="10ms", lag_max="50ms") as server, asyncio.timeout(TIMEOUT_S):
        store = BrokenStore(server)
        async with raw_channel(server) as channel:
            call = RawCall(channel)
            await call.open("a")
            store.broken = True
            number = 1
            while not (answer := await call.step(1, step=number)).HasField("error"):
                number += 1
                await asyncio.sleep(0.01)
            assert answer.error.reason == pb.Error.REASON_STORE_UNAVAILABLE
            assert answer.error.retry_after.ToMilliseconds() > 0
            assert answer.error.next_step == number
            store.broken = False
            while (answer := await call.step(1, step=number)).HasField("error"):
                await asyncio.sleep(0.02)
            assert answer.prediction.step == number


async def test_a_take_over_at_another_process_is_fenced_in_the_store(lstm_root: Path, tmp_path: Path) -> None:
    """Two servers share a file: what the old holder does after a take-over is in no history."""
    rows = rows_of(8, 20)
    truth = replay(lstm(), rows)
    state = sqlite(tmp_path)
    async with run_server(lstm_root, state=state, checkpoint_every="20ms") as old:
        async with run_server(lstm_root, state=state, checkpoint_every="20ms") as new, asyncio.timeout(TIMEOUT_S):
            async with Client(address_of(old)) as left, Client(address_of(new)) as right:
                before = await left.open("a").__aenter__()
                for row in rows[:5]:
                    await before.step(row)
                while (await left.describe_stream("a")).durable_step < 5:
                    await asyncio.sleep(0.01)
                async with right.open("a") as after:
                    assert after.next_step == 6
                    for row, expected in zip(rows[5:15], truth[5:], strict=False):
                        assert same_bits(await after.step(row), expected)
                    with pytest.raises(TakenOver):
                        for place in range(10_000):
                            await before.step(rows[place % 20])
                    for row, expected in zip(rows[15:], truth[15:], strict=True):
                        assert same_bits(await after.step(row), expected)


async def test_the_default_store_is_a_file_in_the_data_folder(
    site: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Without --state, streams are stored in SQLite under --data-dir, and survive the process."""
    one = site("--data-dir", str(tmp_path / "data"), state="")
    await one.start()
    fleet = Fleet([one.address], streams=3, steps=5)
    async with asyncio.timeout(TIMEOUT_S):
        await fleet.run()
        assert await one.stop() == 0
        assert (tmp_path / "data" / "tidegate.db").exists()
        await one.start()
        async with Client(one.address) as client, client.open("stream-1", existence="must_exist") as stream:
            assert stream.next_step == 6


async def test_running_sums_count_each_timestep_once(tmp_path: Path) -> None:
    """A running sum shows a timestep that was lost or applied twice as a wrong integer.

    Over disconnects there is none.
    """
    root = write_model(tmp_path / "models", running_sum())
    async with run_server(root, state=sqlite(tmp_path), checkpoint_every="5ms") as server, asyncio.timeout(TIMEOUT_S):
        total = 0
        for visit in range(10):
            async with Client(address_of(server)) as client, client.open("a") as stream:
                for value in range(visit + 1):
                    total += value
                    assert (await stream.step([value]))["sum"] == total


@pytest.mark.parametrize("state", ["memory:", "sqlite"])
@pytest.mark.parametrize("step", [STEP_MAX, STEP_MAX + 1, STEP_MAX + 2, 2**64 - 1])
async def test_a_record_with_a_number_that_cannot_be_one_is_refused(tmp_path: Path, state: str, step: int) -> None:
    """It is invalid, and nothing of it is used."""
    address = state if state == "memory:" else f"sqlite://{tmp_path / 'x.db'}"
    async with run_server(write_model(tmp_path / "m", running_sum()), state=address) as server:
        keeper = server.stream_service
        lease = (await keeper.open(key("a"), "", "", OpenOptions())).lease
        await keeper.queue(lease).submit(lease, Timestep(0, pack(1)))
        record, _ = await server.admin_service.export(key("a"))
        forged = encode(replace(decode(record, ""), step=step))
        with pytest.raises(InvalidField, match="checkpoint: "):
            await server.admin_service.import_("default", forged, "b")
        assert await keeper._store.load(key("b")) is None


async def test_a_stream_that_is_fenced_while_it_is_opened_is_dropped_once(tmp_path: Path) -> None:
    """The checkpointer and an open both detect a take-over: the open continues, and the server lives."""
    async with run_server(write_model(tmp_path / "m", running_sum())) as server:
        keeper, batcher = server.stream_service, batcher_of(server)
        lease = (await keeper.open(key("a"), "", "", OpenOptions())).lease
        await keeper.queue(lease).submit(lease, Timestep(0, pack(1)))
        other = (await keeper.open(key("b"), "", "", OpenOptions())).lease
        gate = Gate(batcher)
        running = keeper.queue(other).submit(other, Timestep(0, pack(1)))
        await gate.entered()
        # another server takes it over; the checkpointer detects it while a batch runs, and so does an open
        assert await keeper._store.claim(key("a"), lease.stream.epoch, lease.stream.slots.spec.id, "")
        (checkpoint,) = checkpoint_rows([lease.stream])
        fenced = asyncio.create_task(keeper.checkpointer._handle_refused(lease.stream, checkpoint))
        await asyncio.sleep(0)
        opening = asyncio.create_task(keeper.open(key("a"), "", "", OpenOptions()))
        await asyncio.sleep(0.05)
        gate.open()
        await running
        await fenced
        assert (await opening).lease.ended is None
