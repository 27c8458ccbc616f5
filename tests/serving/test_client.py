"""What the client does beyond passing messages on."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.engines import Gate
from tests.graphs import lstm, picky, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import address_of, batcher_of, live, run_server, serve
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    Client,
    InvalidArgument,
    InvalidTimestep,
    ModelFailed,
    Overloaded,
    ServerUnavailable,
    StepGap,
    Stream,
    StreamLost,
    StreamNotFound,
    StreamRefused,
    TakenOver,
    TooManyStreams,
    ValuesDiffer,
)


async def test_values_may_be_named(lstm_root: Path) -> None:
    """In any order. A missing name is a missing value."""
    row = sensor_rows(1)[0]
    row[3] = np.nan
    named = {f"s{number}": float(row[number]) for number in (7, 0, 1, 2, 6, 5, 4)}
    async with run_server(lstm_root) as server, Client(address_of(server)) as client, client.open() as stream:
        assert same_bits(await stream.step(named), replay(lstm(), [row])[0])


async def test_a_name_that_is_no_feature_is_refused_before_it_is_sent(lstm_root: Path) -> None:
    """The message has the name and those of the model. The stream continues."""
    async with run_server(lstm_root) as server, Client(address_of(server)) as client, client.open() as stream:
        with pytest.raises(InvalidTimestep, match=r"no feature is called pressure; the model has s0, s1"):
            await stream.step({"pressure": 1.0})
        assert (await stream.step(sensor_rows(1)[0])).step == 1


async def test_refusals_of_a_timestep_are_typed(tmp_path: Path) -> None:
    """Each error has the position of the stream, and the next timestep is answered."""
    write_model(tmp_path, picky())
    async with run_server(tmp_path) as server, Client(address_of(server)) as client, client.open() as stream:
        for values, step, kind, reason in (
            ([1.0, 2.0], None, InvalidTimestep, "WRONG_WIDTH"),
            ([np.inf], None, InvalidTimestep, "NOT_FINITE"),
            ([1.0], 9, StepGap, "STEP_GAP"),
            ([99.0], None, ModelFailed, "MODEL_FAILED"),
        ):
            with pytest.raises(kind) as caught:
                await stream.step(values, step=step)
            assert caught.value.reason == reason
            assert caught.value.next_step == stream.next_step == 1
        assert (await stream.step([0.0]))["sum"].item() == 1


async def test_a_full_server_sends_retry_after(sum_root: Path) -> None:
    """In seconds. A call has one message in the queue, so it takes several clients to fill it."""
    async with (
        run_server(sum_root, queue_max=1) as server,
        Client(address_of(server), reconnect_s=0) as one,
        Client(address_of(server), reconnect_s=0) as two,
        Client(address_of(server), reconnect_s=0) as three,
        one.open("a") as a,
        two.open("b") as b,
        three.open("c") as c,
    ):
        gate, batcher = Gate(batcher_of(server)), batcher_of(server)
        first = asyncio.create_task(a.step([1]))
        await gate.entered()
        second = asyncio.create_task(b.step([1]))
        await eventually(lambda: len(batcher._queue) == 1, "queueing")
        with pytest.raises(Overloaded) as caught:
            await c.step([1])
        assert caught.value.retry_after_s > 0
        gate.open()
        await asyncio.gather(first, second)
        assert (await c.step([1])).step == 1


async def test_refusals_of_a_stream_are_typed(sum_root: Path) -> None:
    """With the reason of the protocol."""
    async with run_server(sum_root, live_max=1) as server, Client(address_of(server), reconnect_s=0) as client:
        with pytest.raises(InvalidArgument) as caught:
            async with client.open("a\nb"):
                pass
        assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "stream_ids")
        with pytest.raises(StreamRefused):
            async with client.open("c", existence="must_exist"):
                pass
        async with client.open("a"):
            with pytest.raises(TooManyStreams) as full:
                async with client.open("b"):
                    pass
            assert full.value.reason == "TOO_MANY_STREAMS"


async def test_single_timesteps_are_those_of_the_stream(lstm_root: Path) -> None:
    """With the bits of the graph alone, whether the first time, again, by name or in a stream."""
    rows = sensor_rows(4)
    expected = replay(lstm(), rows)
    async with run_server(lstm_root) as server, Client(address_of(server)) as client:
        for step, row in enumerate(rows[:2], start=1):
            assert same_bits(await client.predict_one("a", row, step=step), expected[step - 1])
        again = await client.predict_one("a", rows[1], step=2)
        assert same_bits(again, expected[1])
        assert (again.step, again.durable_step, again.duplicate) == (2, 2, True)
        async with client.open("a") as stream:
            assert same_bits(await stream.step(rows[2]), expected[2])
        named = {f"s{number}": float(value) for number, value in enumerate(rows[3])}
        assert same_bits(await client.predict_one("a", named, step=None), expected[3])


async def test_refusals_of_a_single_timestep_are_typed(tmp_path: Path) -> None:
    """As for streams: a full queue is retried, a wrong number is not."""
    write_model(tmp_path, picky())
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        await client.predict_one("a", [0.0], step=1)
        for values, step, kind, reason in (
            ([1.0, 2.0], 2, InvalidTimestep, "WRONG_WIDTH"),
            ([np.inf], 2, InvalidTimestep, "NOT_FINITE"),
            ([1.0], 9, StepGap, "STEP_GAP"),
            ([99.0], 2, ModelFailed, "MODEL_FAILED"),
            ([7.0], 1, ValuesDiffer, "VALUES_DIFFER"),
        ):
            with pytest.raises(kind) as caught:
                await client.predict_one("a", values, step=step)
            assert caught.value.reason == reason
        with pytest.raises(StreamNotFound):
            await client.predict_one("unknown", [0.0], step=2)
        with pytest.raises(InvalidArgument) as malformed:
            await client.predict_one("a\nb", [0.0], step=1)
        assert (type(malformed.value), malformed.value.field) == (InvalidArgument, "stream_id")
        assert (await client.predict_one("a", [0.0], step=2)).step == 2


async def test_an_old_answer_is_asked_for_with_its_values(sum_root: Path) -> None:
    """Other errors reach only the caller. The stream continues."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open("a") as stream:
        await stream.step([1])
        await stream.step([10])
        with pytest.raises(InvalidTimestep) as caught:
            await stream.step([5], step=1)
        assert caught.value.reason == "VALUES_DIFFER"
        assert (await stream.step([1], step=1))["sum"].item() == 1
        assert (await stream.step([100]))["sum"].item() == 111


async def test_two_owners_do_not_take_a_stream_from_each_other(sum_root: Path) -> None:
    """The second takes it over, and the first gets an error, also for timesteps in flight."""
    async with (
        run_server(sum_root) as server,
        Client(address_of(server)) as one,
        Client(address_of(server)) as other,
        one.open("a") as first,
    ):
        await first.step([1])
        async with other.open("a") as second:
            answers = await asyncio.gather(*(first.step([2]) for _ in range(50)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {TakenOver}
            assert (await second.step([10]))["sum"].item() == 11
            assert (second.kind, second.reconnects) == ("taken_over", 0)


async def test_a_closed_stream_raises_an_error(sum_root: Path) -> None:
    """A step after the end is an error at once; it does not hang."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            pass
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises(StreamLost, match="closed"):
                await stream.step([1])


async def test_leaving_after_an_error_parks_the_stream(sum_root: Path) -> None:
    """Whatever the user's code raises."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        with suppress(ZeroDivisionError):
            async with client.open("a") as stream:
                await stream.step([1])
                raise ZeroDivisionError
        await eventually(lambda: live(server) == 0, "parking")


async def test_a_cancelled_step_does_not_shift_the_answers(sum_root: Path) -> None:
    """The answer to a cancelled timestep does not go to the next one."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open("a") as stream:
        gate = Gate(batcher_of(server))
        given_up = asyncio.create_task(stream.step([1]))
        await gate.entered()
        given_up.cancel()
        await asyncio.wait([given_up])
        next_one = asyncio.create_task(stream.step([10]))
        gate.open()
        async with asyncio.timeout(TIMEOUT_S):
            answer = await next_one
        assert (answer.step, answer["sum"].item()) == (2, 11)


async def test_a_server_that_is_killed_is_reported(sum_root: Path) -> None:
    """Pending calls get an error that says to open the stream again."""
    with serve(sum_root) as process:
        async with Client(process.address, reconnect_s=0) as client, client.open("a") as stream:
            await stream.step([1])
            process.signal(signal.SIGKILL)
            async with asyncio.timeout(TIMEOUT_S):
                with pytest.raises(ServerUnavailable):
                    await step_on(stream)


async def step_on(stream: Stream) -> None:
    """Sends timesteps until an error comes."""
    while True:
        await stream.step([1])
