"""`PredictOne`: one timestep for each call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import Ending, RawCall, pack, raw_channel, read_ending
from tests.servers import batcher_of, live, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import StoreUnavailable
from tidegate.core.spec import Key
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


class One:
    """Sends single timesteps, without our client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = pb_grpc.TidegateServiceStub(channel)

    async def ask(self, stream_id: str = "a", **fields: Any) -> pb.PredictOneResponse:
        """The response to a request."""
        return await self._stub.PredictOne(pb.PredictOneRequest(stream_id=stream_id, **fields), timeout=TIMEOUT_S)

    async def sum(self, value: float, step: int = 0, stream_id: str = "a", **fields: Any) -> float:
        """The sum in the answer to a timestep."""
        answer = await self.ask(stream_id, step=step, values=pack(value), **fields)
        return float(np.frombuffer(answer.prediction.outputs[0], np.float32).item())

    async def refusal_error(self, stream_id: str = "a", **fields: Any) -> Ending:
        """The status of a refused request."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(stream_id, **fields)
        error = caught.value
        return read_ending(error.code(), error.details(), error.trailing_metadata())


@asynccontextmanager
async def serve(root: Path, **settings: Any) -> AsyncIterator[tuple[Server, One, grpc.aio.Channel]]:
    """A server, and a client that sends it single timesteps."""
    async with run_server(root, **settings) as server, raw_channel(server) as channel, asyncio.timeout(3 * TIMEOUT_S):
        yield server, One(channel), channel


def count(server: Server, operation: str) -> list[str]:
    """Records how often a server's store gets an operation from now on."""
    store: Any = server.stream_service._store
    inner = getattr(store, operation)
    calls: list[str] = []

    async def noted(*arguments: Any) -> Any:
        calls.append(operation)
        return await inner(*arguments)

    setattr(store, operation, noted)
    return calls


async def test_a_stream_begins_and_continues(sum_root: Path) -> None:
    """Each call applies one timestep after the last. The answer names the model, and is durable."""
    async with serve(sum_root) as (_, one, _):
        assert [await one.sum(value, step) for step, value in enumerate([1, 10, 100], 1)] == [1, 11, 111]
        answer = await one.ask(step=4, values=pack(1000))
        assert (answer.prediction.step, answer.prediction.durable_step, answer.prediction.duplicate) == (4, 4, False)
        assert (answer.model, answer.version) == ("toy", "1")


async def test_an_idle_stream_is_not_claimed_again(sum_root: Path) -> None:
    """Why a timestep is cheap: the stream is claimed once, and then only saved."""
    async with serve(sum_root) as (server, one, _):
        claims, loads = count(server, "claim"), count(server, "load")
        for step in range(1, 6):
            await one.sum(1, step)
        assert (len(claims), len(loads)) == (1, 1)


async def test_a_repeat_is_applied_once(sum_root: Path) -> None:
    """A client that missed the answer asks again, and gets it."""
    async with serve(sum_root) as (_, one, _):
        assert [await one.sum(5, 1), await one.sum(6, 2), await one.sum(6, 2), await one.sum(7, 3)] == [5, 11, 11, 18]
        again = await one.ask(step=2, values=pack(6))
        assert (again.prediction.duplicate, again.prediction.step) == (True, 2)


async def test_a_repeat_with_other_values_is_refused(sum_root: Path) -> None:
    """It is another client's timestep, and its answer is another client's."""
    async with serve(sum_root) as (_, one, _):
        await one.sum(5, 1)
        for _ in range(2):  # from an idle stream, and from the store
            ending = await one.refusal_error(step=1, values=pack(6))
            assert (ending.code.name, ending.reason, ending.action) == (
                "ALREADY_EXISTS",
                "VALUES_DIFFER",
                "STREAM_LOST",
            )
        assert await one.sum(6, 2) == 11


async def test_a_stream_that_is_not_known_begins_at_its_first_timestep_only(sum_root: Path) -> None:
    """A client that is further has lost earlier timesteps. No stream is created."""
    async with serve(sum_root) as (server, one, _):
        ending = await one.refusal_error(step=2, values=pack(1))
        assert (ending.code.name, ending.reason) == ("NOT_FOUND", "STREAM_NOT_FOUND")
        assert ending.message.endswith("a stream begins with step 1")
        assert await server.stream_service._store.load(Key("default", "a")) is None
        assert await one.sum(1) == 1  # without a number it may begin


async def test_a_gap_has_the_next_step(sum_root: Path) -> None:
    """In the details, for programs. Nothing is applied."""
    async with serve(sum_root) as (_, one, _):
        await one.sum(5, 1)
        ending = await one.refusal_error(step=4, values=pack(1))
        assert (ending.code.name, ending.reason, ending.next_step) == ("OUT_OF_RANGE", "STEP_GAP", 2)
        assert ending.action == "STREAM_LOST"  # sending it again does not help
        assert await one.sum(6, 2) == 11


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"stream_id": ""}, "INVALID_FIELD", "stream_id: got 0 bytes"),
        ({"values": pack(1, 2)}, "WRONG_WIDTH", "got 2 numbers in 8 bytes, expected 4"),
        ({"values": b"abc"}, "WRONG_WIDTH", "got 3 bytes"),
        ({"values": pack(float("inf"))}, "NOT_FINITE", "'x' is inf"),
        ({"values": pack(1), "numbers": [1]}, "INVALID_FIELD", "numbers: got 1 beside values"),
        ({"values": pack(1), "durability": 77}, "INVALID_FIELD", "durability: got 77"),
        ({"values": pack(1), "output_format": 77}, "INVALID_FIELD", "output_format: got 77"),
        ({"values": pack(1), "model": "pump"}, "MODEL_NOT_FOUND", "'pump' is not served"),
        ({"values": pack(1), "step": 2**63 - 1}, "INVALID_FIELD", "step: got"),
    ],
)
async def test_a_bad_request_is_refused(sum_root: Path, fields: dict[str, Any], reason: str, words: str) -> None:
    """With the reasons of a streaming call. The stream continues unaffected."""
    async with serve(sum_root) as (_, one, _):
        await one.sum(5, 1)
        ending = await one.refusal_error(**{"stream_id": "a", "step": 2, **fields})
        assert ending.reason == reason
        assert words in ending.message
        assert await one.sum(6, 2) == 11


async def test_an_answer_is_stored_before_it_leaves(sum_root: Path) -> None:
    """Unless the client asks for an answer at once."""
    async with serve(sum_root, checkpoint_every="60s") as (server, one, _):
        store: Any = server.stream_service._store
        save, may_save = store.save, asyncio.Event()

        async def later(*arguments: Any) -> Any:
            await may_save.wait()
            return await save(*arguments)

        store.save = later
        stored = asyncio.create_task(one.sum(1, 1))
        assert await one.sum(5, 1, "b", durability=pb.DURABILITY_ASYNC) == 5
        assert not stored.done()
        may_save.set()
        assert await stored == 1


async def test_a_timestep_that_cannot_be_stored_may_be_sent_again(sum_root: Path) -> None:
    """It was applied, so the repeat is a duplicate, which also waits for the store."""
    async with serve(sum_root, lag_max="100ms", checkpoint_every="10ms") as (server, one, _):
        await one.sum(1, 1)
        store: Any = server.stream_service._store
        save = store.save

        async def broken(_: object) -> list[bool]:
            raise StoreUnavailable("test", "is broken")

        store.save = broken
        ending = await one.refusal_error(step=2, values=pack(2))
        assert (ending.code.name, ending.reason, ending.action) == ("UNAVAILABLE", "STORE_UNAVAILABLE", "RETRY")
        assert ending.retry_s
        store.save = save
        await eventually(lambda: not server.stream_service.checkpointer.unsaved_seconds(), "storing")
        await eventually(lambda: batcher_of(server).refuse_with is None, "the all-clear")
        again = await one.ask(step=2, values=pack(2))
        assert (again.prediction.duplicate, again.prediction.durable_step) == (True, 2)


async def test_two_at_once_are_one_after_the_other(sum_root: Path) -> None:
    """A client that timed out sends its timestep again while the first is still in flight."""
    async with serve(sum_root) as (_, one, _):
        assert await asyncio.gather(*(one.sum(5, 1) for _ in range(8))) == [5] * 8
        assert await one.sum(6, 2) == 11


async def test_a_stream_that_another_server_went_on_with_is_read_again(tmp_path: Path, sum_root: Path) -> None:
    """The idle stream here is out of date, and this server does not know yet. The store does."""
    state = f"sqlite://{tmp_path / 'state.db'}"
    async with serve(sum_root, state=state) as (here, one, _), serve(sum_root, state=state) as (_, other, _):
        deaf: Any = here.stream_service._store

        async def nothing() -> list[Key]:
            return []

        deaf.notices = nothing
        assert await one.sum(1, 1) == 1
        assert await other.sum(10, 2) == 11
        assert await one.sum(100, 3) == 111  # a gap, by the idle stream here
        assert await other.sum(1000, 4) == 1111
        assert await one.sum(1000, 4) == 1111  # the next one here, and a duplicate in truth
        assert await other.sum(5, 5) == 1116
        ending = await one.refusal_error(step=5, values=pack(6))  # would be applied here
        assert ending.reason == "VALUES_DIFFER"


async def test_a_streaming_call_is_taken_over(sum_root: Path) -> None:
    """A single timestep opens its stream like any other client. The call that has it open ends."""
    async with serve(sum_root) as (_, one, channel):
        call = RawCall(channel)
        await call.open("a")
        await call.step(5, step=1)
        assert await one.sum(6, 2) == 11
        assert (await call.ending()).reason == "TAKEN_OVER"


async def test_an_idle_stream_is_resumed_and_not_taken_over(sum_root: Path) -> None:
    """No call has it open between two calls."""
    async with serve(sum_root) as (_, one, channel):
        await one.sum(5, 1)
        call = RawCall(channel)
        opened = await call.open("a")
        assert (opened.kind, opened.next_step) == (pb.Opened.KIND_RESUMED, 2)
        assert np.frombuffer((await call.step(6, step=2)).prediction.outputs[0], np.float32).item() == 11


async def test_an_owner_learns_that_a_single_call_came_between(sum_root: Path) -> None:
    """Also when its stream has not left memory yet: a single call counts as another client's open."""
    async with serve(sum_root) as (server, one, channel):
        checkpointer = server.registry.checkpointer
        may_park, checkpointer._may_park = checkpointer._may_park, lambda _: False
        call = RawCall(channel)
        await call.open("a", owner="a")
        await call.step(5, step=1)
        await call.call.done_writing()
        assert (await call.ending()).code.name == "OK"
        assert live(server) == 1
        assert await one.sum(6, 2) == 11
        again = RawCall(channel)
        await again.send(pb.PredictRequest(open=pb.Open(stream_id="a", owner="a", resume_from=2)))
        assert (await again.ending()).reason == "TAKEN_OVER"
        checkpointer._may_park = may_park


async def test_a_silent_stream_leaves_memory(sum_root: Path) -> None:
    """Like a silent open stream: after `--park-after`. The next timestep finds it in the store."""
    async with serve(sum_root, park_after="20ms", checkpoint_every="10ms") as (server, one, _):
        await one.sum(5, 1)
        await eventually(lambda: live(server) == 0, "parking")
        assert not len(server.registry.streams)
        assert not len(server.registry.idle_streams)
        assert await one.sum(6, 2) == 11


async def test_only_a_part_of_the_slots_is_idle(sum_root: Path) -> None:
    """A thousand sensors that each send once leave room for streaming calls."""
    async with serve(sum_root, live_max=8, checkpoint_every="10ms") as (server, one, _):
        for number in range(20):
            await one.sum(1, 1, f"s{number}")
        await eventually(lambda: live(server) == 2, "leaving")
        assert await one.sum(1, 2, "s0") == 2


async def test_opens_and_closes_are_counted_in_pairs(sum_root: Path) -> None:
    """A timestep that continues an idle stream is not counted as an open."""
    async with serve(sum_root) as (server, one, _):
        for step in range(1, 4):
            await one.sum(1, step)
        found = await scrape(server)
        assert found("tidegate_streams_opened_total", kind="new") == 1
        assert found("tidegate_streams_closed_total", reason="closed") == 1
        assert found("tidegate_steps_total", outcome="ok", model="toy", version="1") == 3


async def test_numbers_come_back_as_numbers(sum_root: Path) -> None:
    """Unless another format is asked for; packed values likewise."""
    async with serve(sum_root) as (_, one, _):
        answer = (await one.ask(step=1, numbers=[0.5])).prediction
        assert (list(answer.output_numbers[0].numbers), list(answer.outputs)) == ([0.5], [])
        answer = (await one.ask(step=2, numbers=[0.25], output_format=pb.OUTPUT_FORMAT_PACKED)).prediction
        assert (answer.outputs[0], list(answer.output_numbers)) == (pack(0.75), [])
        answer = (await one.ask(step=3, values=pack(1), output_format=pb.OUTPUT_FORMAT_NUMBERS)).prediction
        assert list(answer.output_numbers[0].numbers) == [1.75]


async def test_a_server_that_stops_answers_what_is_under_way(sum_root: Path) -> None:
    """What was applied is stored and answered. Later requests get UNAVAILABLE."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        one = One(channel)
        await one.sum(5, 1)
        store: Any = server.stream_service._store
        save, saving, may_save = store.save, asyncio.Event(), asyncio.Event()

        async def later(*arguments: Any) -> Any:
            saving.set()
            await may_save.wait()
            return await save(*arguments)

        store.save = later
        under_way = asyncio.create_task(one.sum(6, 2))
        await saving.wait()
        stopping = asyncio.create_task(server.stop())
        await eventually(lambda: server._servicer._calls.stopping, "stopping")
        ending = await one.refusal_error(step=3, values=pack(7))
        assert (ending.code.name, ending.action) == ("UNAVAILABLE", "REOPEN")
        may_save.set()
        assert await under_way == 11
        await stopping
