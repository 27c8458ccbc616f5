"""One client never harms another: not by disconnecting, not by bad input, not by reading slowly."""

import asyncio
import logging
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawCall, raw_channel, timestep
from tests.engines import Gate, key
from tests.graphs import lstm, wide, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import address_of, batcher_of, live, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ClientError, StreamLost
from tidegate.core.errors import StoreUnavailable
from tidegate.v1 import tidegate_pb2 as pb

STREAMS = 64
STEPS = 40


class Crowd:
    """64 streams: 40 behave well, the others disconnect at random moments or send bad requests.

    The batcher is also stopped and released at random. So events meet queued timesteps, batches in the thread, and
    batches in the event loop.
    """

    def __init__(self, server: Any, clients: list[Client], seed: int) -> None:
        self.server = server
        self.clients = clients
        self.random = random.Random(seed)
        self.good_left = 40
        self.cancelled = 0
        self.refused = 0
        self.storms = 0

    async def good(self, number: int) -> None:
        """Sends all timesteps and compares every answer with the oracle."""
        rows = sensor_rows(STEPS, seed=number, missing=0.1)
        expected = replay(lstm(), rows)
        async with self.clients[number % len(self.clients)].open(f"good-{number}") as stream:
            for row, theirs in zip(rows, expected, strict=True):
                assert same_bits(await stream.step(row), theirs)
                if self.random.random() < 0.1:
                    await asyncio.sleep(0)
        self.good_left -= 1

    async def leaver(self, number: int) -> None:
        """Opens, sends timesteps, and is cancelled at a random point; comes back and continues where the server says."""
        rows = sensor_rows(10 * STEPS, seed=number, missing=0.1)
        expected = replay(lstm(), rows)
        while self.good_left:
            task = asyncio.create_task(self._some_steps(f"leaver-{number}", number, rows, expected))
            for _ in range(self.random.randrange(60)):
                await asyncio.sleep(0.0005)
                if task.done():
                    break
            self.cancelled += task.cancel()
            with suppress(asyncio.CancelledError, StreamLost):
                await task

    async def _some_steps(self, name: str, number: int, rows: Any, expected: Any) -> None:
        async with self.clients[number % len(self.clients)].open(name) as stream:
            for place in range(stream.next_step - 1, len(rows)):
                assert same_bits(await stream.step(rows[place]), expected[place])
            await asyncio.Event().wait()  # it has nothing left to send, and waits to be cancelled

    async def troublemaker(self, number: int) -> None:
        """Sends infinity, gaps, duplicates, wrong widths and NaN.

        Its own good timesteps have the right bits nevertheless.
        """
        rows = sensor_rows(10 * STEPS, seed=number, missing=0.5)
        expected = replay(lstm(), rows)
        async with self.clients[number % len(self.clients)].open(f"bad-{number}") as stream:
            place = 0
            while self.good_left and place < len(rows):
                bad, step = self.random.choice(
                    [
                        (np.full(8, np.inf), None),
                        (rows[place], place + 5),
                        (rows[place][:3], None),
                        (np.full(8, -np.inf), place + 9),
                        (np.zeros(0), None),
                    ]
                )
                try:
                    await stream.step(bad, step=step)
                except ClientError:
                    self.refused += 1
                assert same_bits(await stream.step(rows[place], step=place + 1), expected[place])
                place += 1

    async def vandal(self, number: int) -> None:
        """Breaks the protocol again and again."""
        async with raw_channel(self.server) as channel:
            while self.good_left:
                call = RawCall(channel)
                await call.open(f"vandal-{number}")
                for request in self.random.choice(
                    [
                        [b"\xff\xff"],
                        [pb.PredictRequest()],
                        [pb.PredictRequest(open=pb.Open())],
                        [timestep(1, step=1)] * 9,
                    ]
                ):
                    await call.send(request)
                if self.random.random() < 0.5:
                    call.call.cancel()
                else:
                    await call.call.done_writing()
                    await call.ending()

    async def weather(self) -> None:
        """Holds batches in the thread at random moments."""
        batcher = batcher_of(self.server)
        inner = batcher.engine.run
        while self.good_left:
            gate = Gate(batcher)
            await gate.entered()
            self.storms += 1
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0.0005)
            gate.open()
            batcher.engine.run = inner  # type: ignore[method-assign]
            batcher.cost.single_row_seconds = 0.0
            for _ in range(self.random.randrange(40)):
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", [1, 2])
async def test_well_behaved_streams_get_the_right_bits_among_others_that_are_not(lstm_root: Path, seed: int) -> None:
    """Of 64 streams some disconnect and some send bad requests: no bit of the others changes, and no call hangs."""
    async with run_server(lstm_root, queue_max=128) as server, asyncio.timeout(3 * TIMEOUT_S):
        clients = [Client(address_of(server)) for _ in range(4)]
        crowd = Crowd(server, clients, seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.weather())
            for number in range(40):
                group.create_task(crowd.good(number))
            for number in range(40, 50):
                group.create_task(crowd.leaver(number))
            for number in range(50, 60):
                group.create_task(crowd.troublemaker(number))
            for number in range(60, STREAMS):
                group.create_task(crowd.vandal(number))
        assert crowd.cancelled > 10
        assert crowd.refused > 100
        assert crowd.storms > 10
        for client in clients:
            await client.close()
        await eventually(lambda: live(server) == 0, "parking")
        metrics = await scrape(server)
        assert metrics("tidegate_batch_size_sum") > metrics("tidegate_batch_size_count")  # there were real batches


async def test_a_call_cancelled_while_its_timestep_is_queued(lstm_root: Path) -> None:
    """The timestep is not applied, its slot becomes free, and the others in the queue are answered."""
    rows = sensor_rows(3, seed=9)
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        calls = [RawCall(channel) for _ in range(4)]
        for name, call in zip("abcd", calls, strict=True):
            await call.open(name)
        batcher = batcher_of(server)
        gate = Gate(batcher)
        await calls[0].send(timestep(*rows[0]))
        await gate.entered()
        for call in calls[1:]:
            await call.send(timestep(*rows[0]))
        await eventually(lambda: len(batcher._queue) == 3, "queueing")
        calls[2].call.cancel()
        await eventually(lambda: any(entry.future.done() for entry in batcher._queue), "the cancellation")
        gate.open()
        expected = replay(lstm(), rows[:1])[0]["forecast"].tobytes()
        for call in (calls[0], calls[1], calls[3]):
            assert (await call.read()).prediction.outputs[0] == expected
        await eventually(lambda: live(server) == 3, "parking")
        assert (await scrape(server))("tidegate_steps_total", outcome="abandoned") == 1
        assert (await RawCall(channel).open("c")).next_step == 1


async def test_a_call_cancelled_while_its_batch_runs(lstm_root: Path) -> None:
    """The timestep is applied, its answer is remembered, and its slot is free only after the batch.

    Its neighbour is answered.
    """
    rows = sensor_rows(2, seed=9)
    expected = [answer["forecast"].tobytes() for answer in replay(lstm(), rows)]
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        calls = [RawCall(channel) for _ in range(3)]
        for name, call in zip("abc", calls, strict=True):
            await call.open(name)
        batcher = batcher_of(server)
        gate = Gate(batcher)
        await calls[0].send(timestep(*rows[0]))
        await gate.entered()
        for call in calls[1:]:
            await call.send(timestep(*rows[0]))
        await eventually(lambda: len(batcher._queue) == 2, "queueing")
        gate.let_one()
        await gate.entered()  # now b and c are in the thread together
        calls[2].call.cancel()
        # The server parks the stream of a call that has ended, but only after the batch.
        await eventually(lambda: bool(batcher._deferred), "the cancellation")
        assert live(server) == 3
        gate.open()
        for call in calls[:2]:
            assert (await call.read()).prediction.outputs[0] == expected[0]
        await eventually(lambda: live(server) == 2, "parking")
        again = RawCall(channel)
        assert (await again.open("c")).next_step == 2
        repeat = (await again.step(*rows[0], step=1)).prediction
        assert (repeat.duplicate, repeat.outputs[0]) == (True, expected[0])
        assert (await again.step(*rows[1], step=2)).prediction.outputs[0] == expected[1]


async def test_a_closed_connection_parks_its_streams(lstm_root: Path) -> None:
    """All of them, and they continue where they were."""
    rows = sensor_rows(2, seed=1)
    async with run_server(lstm_root) as server:
        async with raw_channel(server) as channel:
            for name in "abc":
                call = RawCall(channel)
                await call.open(name)
                await call.step(*rows[0])
            assert live(server) == 3
        await eventually(lambda: live(server) == 0, "parking")
        async with Client(address_of(server)) as client, client.open("b") as stream:
            assert same_bits(await stream.step(rows[1]), replay(lstm(), rows)[1])


async def test_a_cancelled_call_frees_its_slot_for_another(sum_root: Path) -> None:
    """If there is one slot only, the next client gets it."""
    async with run_server(sum_root, live_max=1) as server, raw_channel(server) as channel:
        for name in range(5):
            call = RawCall(channel)
            await call.open(str(name))
            await call.step(1)
            call.call.cancel()
            await eventually(lambda: live(server) == 0, "parking")


async def test_a_call_cancelled_while_its_stream_is_being_opened(sum_root: Path) -> None:
    """Its claim is completed nevertheless, the reserved slot becomes free, and the name can be opened again."""
    async with run_server(sum_root, live_max=1) as server, raw_channel(server) as channel:
        inner, asked, answer = server.stream_service._store.claim, asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any) -> Any:
            asked.set()
            await answer.wait()  # a slow store
            return await inner(*arguments)

        server.stream_service._store.claim = slow  # type: ignore[method-assign]
        call = RawCall(channel)
        await call.send(pb.PredictRequest(open=pb.Open(stream_id="a")))
        await asyncio.wait_for(asked.wait(), TIMEOUT_S)
        assert live(server) == 1
        (theirs,) = server._servicer._calls
        call.call.cancel()
        await eventually(lambda: bool(theirs._task.cancelling()), "the cancellation")
        answer.set()
        await eventually(lambda: live(server) == 0, "the release of the slot")
        server.stream_service._store.claim = inner  # type: ignore[method-assign]
        opened = await RawCall(channel).open("a")
        assert (opened.kind, opened.next_step) == (pb.Opened.KIND_RESUMED, 1)


async def test_a_call_cancelled_while_it_takes_a_stream_over_releases_it(lstm_root: Path) -> None:
    """The take-over waits for a batch and its caller disconnects: the stream is parked, not held for ever."""
    rows = sensor_rows(2, seed=9)
    expected = [answer["forecast"].tobytes() for answer in replay(lstm(), rows)]
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        first, second = RawCall(channel), RawCall(channel)
        await first.open("a")
        batcher = batcher_of(server)
        gate = Gate(batcher)
        await first.send(timestep(*rows[0]))
        await gate.entered()
        await second.send(pb.PredictRequest(open=pb.Open(stream_id="a")))
        await eventually(lambda: bool(batcher._deferred), "the take-over")
        (theirs,) = [call for call in server._servicer._calls if call.lease is None]
        second.call.cancel()
        await eventually(lambda: bool(theirs._task.cancelling()), "the cancellation")
        gate.open()
        assert (await first.ending()).reason == "TAKEN_OVER"
        await eventually(lambda: live(server) == 0, "parking")
        again = RawCall(channel)
        assert (await again.open("a")).next_step == 2
        assert (await again.step(*rows[1])).prediction.outputs[0] == expected[1]


async def test_a_call_cancelled_while_it_claims_a_live_stream_loses_none_of_its_steps(lstm_root: Path) -> None:
    """The store has the new epoch although its caller was cancelled: unsaved state is stored under that epoch."""
    rows = sensor_rows(2, seed=9)
    expected = [answer["forecast"].tobytes() for answer in replay(lstm(), rows)]
    async with run_server(lstm_root, checkpoint_every=60) as server, raw_channel(server) as channel:
        first, second = RawCall(channel), RawCall(channel)
        await first.open("a")
        await first.step(*rows[0])
        inner, claimed, answer = server.stream_service._store.claim, asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any) -> int | None:
            epoch = await inner(*arguments)
            claimed.set()
            await answer.wait()
            return epoch

        server.stream_service._store.claim = slow  # type: ignore[method-assign]
        await second.send(pb.PredictRequest(open=pb.Open(stream_id="a")))
        await asyncio.wait_for(claimed.wait(), TIMEOUT_S)
        (theirs,) = [call for call in server._servicer._calls if call.lease is None]
        second.call.cancel()
        await eventually(lambda: bool(theirs._task.cancelling()), "the cancellation")
        answer.set()
        server.stream_service._store.claim = inner  # type: ignore[method-assign]
        await eventually(lambda: live(server) == 0, "parking")
        again = RawCall(channel)
        assert (await again.open("a")).next_step == 2
        assert (await again.step(*rows[1])).prediction.outputs[0] == expected[1]


async def test_a_take_over_that_fails_after_its_call_is_logged(
    sum_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No caller is left to get the error. The call that has the stream keeps it."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        first, second = RawCall(channel), RawCall(channel)
        await first.open("a")
        inner, asked, answer = server.stream_service._store.claim, asyncio.Event(), asyncio.Event()

        async def broken(*_: object) -> int:
            asked.set()
            await answer.wait()
            raise StoreUnavailable("memory:", "gone for a while")

        server.stream_service._store.claim = broken  # type: ignore[method-assign]
        await second.send(pb.PredictRequest(open=pb.Open(stream_id="a")))
        await asyncio.wait_for(asked.wait(), TIMEOUT_S)
        (theirs,) = [call for call in server._servicer._calls if call.lease is None]
        second.call.cancel()
        await eventually(lambda: bool(theirs._task.cancelling()), "the cancellation")
        answer.set()
        await eventually(lambda: "gone for a while" in caplog.text, "the line in the log")
        server.stream_service._store.claim = inner  # type: ignore[method-assign]
        assert (await first.step(1)).prediction.step == 1


async def test_a_thousand_cancelled_calls_leave_nothing_behind(sum_root: Path) -> None:
    """No slot stays in use, no task alive, no call registered, whenever the call is cancelled."""
    async with run_server(sum_root, live_max=64) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("first")
        tasks = len(asyncio.all_tasks())

        async def come_and_go(number: int) -> None:
            call = RawCall(channel)
            stage = number % 4
            if stage:
                await call.send(pb.PredictRequest(open=pb.Open(stream_id=f"s{number % 100}")))
            if stage >= 2:
                await call.read()
            if stage == 3:
                await call.send(timestep(1))
            call.call.cancel()

        for begin in range(0, 1000, 50):
            await asyncio.gather(*(come_and_go(number) for number in range(begin, begin + 50)), return_exceptions=True)
        await eventually(lambda: live(server) == 1, "parking")
        await eventually(lambda: len(server._servicer._calls) == 1, "the end of the calls")
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks + 1, "the end of the tasks")
        assert not len(server.registry._locks)
        assert np.frombuffer((await call.step(5)).prediction.outputs[0], np.float32).item() == 5


async def test_a_client_that_does_not_read_does_not_affect_others(tmp_path: Path) -> None:
    """Its own call blocks with one timestep in flight. Others are answered meanwhile."""
    write_model(tmp_path, wide())
    async with run_server(tmp_path, live_max=8) as server, raw_channel(server) as mine, raw_channel(server) as theirs:
        lazy, busy = RawCall(mine), RawCall(theirs)
        await lazy.open("lazy")
        await busy.open("busy")
        flood = asyncio.create_task(asyncio.wait_for(_flood(lazy, 500), 2 * TIMEOUT_S))
        stream = server.stream_service._streams.find(key("lazy"))
        assert stream is not None
        for number in range(1, 101):
            answer = (await busy.step(1, step=number)).prediction
            assert np.frombuffer(answer.outputs[0], np.float32)[-1] == number
        assert stream.step < 500  # flow control holds the flood back
        for number in range(1, 501):
            answer = (await lazy.read()).prediction
            assert np.frombuffer(answer.outputs[0], np.float32)[0] == number
        await flood


async def test_a_client_that_goes_while_it_is_written_to_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stream is parked. The log of a server with many clients is for errors."""
    write_model(tmp_path, wide())
    async with run_server(tmp_path, live_max=8) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("lazy")
        flood = asyncio.create_task(_flood(call, 500))
        stream = server.stream_service._streams.find(key("lazy"))
        assert stream is not None
        before = -1
        while stream.step > before:  # until flow control holds the answers back
            before = stream.step
            await asyncio.sleep(0.1)
        assert stream.step < 500
        call.call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await flood
        await eventually(lambda: live(server) == 0, "parking")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def _flood(call: RawCall, count: int) -> None:
    for _ in range(count):
        await call.call.write(timestep(1).SerializeToString())
