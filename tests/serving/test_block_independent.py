"""Independent opens and closes of `PredictBlocks`: one slow stream does not delay the others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, block_request, raw_channel
from tests.engines import Gate, key
from tests.servers import batcher_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import Stopping, StoreUnavailable
from tidegate.rpc import background_queue as queue_module
from tidegate.rpc.predict_blocks import PredictBlocksCall
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

Reason = pb.Error.Reason


class HeldStore:
    """A server's store that can be blocked: then a claim or load of the stream `slow`, or any save, waits."""

    def __init__(self, server: Server) -> None:
        self._store: Any = server.stream_service._store
        self._entered = {name: asyncio.Event() for name in ("claim", "load", "save")}
        self._go_on = {name: asyncio.Event() for name in self._entered}

    def hold(self, name: str) -> None:
        """Blocks this operation from now on."""
        inner = getattr(self._store, name)

        async def held(asked: Any, *more: Any) -> Any:
            if asked == key("slow") or name == "save":
                self._entered[name].set()
                await self._go_on[name].wait()
            return await inner(asked, *more)

        setattr(self._store, name, held)

    async def entered(self, name: str) -> None:
        """Waits until a call is blocked."""
        await self._entered[name].wait()

    def release(self, name: str) -> None:
        """Unblocks the operation for all calls."""
        self._go_on[name].set()

    def record(self, name: str) -> Any:
        """The record of a stream."""
        return self._store._records.get(key(name))

    def close(self) -> None:
        """Unblocks everything."""
        for event in self._go_on.values():
            event.set()


@asynccontextmanager
async def held_server(root: Path, **settings: Any) -> AsyncIterator[tuple[Server, RawBlocks, HeldStore]]:
    """A server, a call on it, and its store."""
    settings = {"checkpoint_every": 0.02, **settings}
    async with run_server(root, **settings) as server, raw_channel(server) as channel:
        store = HeldStore(server)
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                yield server, RawBlocks(channel), store
        finally:
            store.close()  # else the server could not stop


def opening(*stream_ids: str, independent: bool = True, **more: Any) -> pb.PredictBlocksRequest:
    """An open; independent by default."""
    return pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=stream_ids, independent=independent, **more))


def closing(*handles: int, forget: bool = False) -> pb.PredictBlocksRequest:
    """An independent close."""
    return pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles, forget=forget, independent=True))


async def answer(call: RawBlocks) -> pb.PredictBlocksResponse:
    """The next response that is an answer. Notifications before it are in `notifications`."""
    while (response := await call.read()).WhichOneof("kind") in ("durable", "ended"):
        call.notifications.append(response)
    return response


async def read_until(call: RawBlocks, kind: str) -> pb.PredictBlocksResponse:
    """The next response of a kind, whatever comes before it."""
    while (response := await call.read()).WhichOneof("kind") != kind:
        call.notifications.append(response)
    return response


async def round_trips(channel: grpc.aio.Channel) -> None:
    """Lets the server do all that it can: everything sent has arrived by then."""
    for _ in range(3):
        await RawBlocks(channel).open("")


def sums(block: pb.PredictedBlock) -> list[float]:
    """The first output of the toy model."""
    return [float(value) for value in np.frombuffer(block.outputs[0], "<f4")]


# Beside blocks.


async def test_an_open_that_waits_for_the_store_delays_no_block(sum_root: Path) -> None:
    """Other streams continue meanwhile. Its own answer follows, and its handle works."""
    async with held_server(sum_root) as (_, call, store):
        (fast,) = (await call.open("fast")).handles
        store.hold("claim")
        await call.send(opening("slow"))
        await store.entered("claim")
        assert sums(await call.block([fast], [[5]])) == [5]
        store.release("claim")
        (slow,) = (await answer(call)).opened.handles
        assert sums(await call.block([fast, slow], [[1], [2]])) == [6, 2]


async def test_a_close_that_waits_for_the_store_delays_no_block(sum_root: Path) -> None:
    """It is answered once everything is stored."""
    async with held_server(sum_root) as (_, call, store):
        slow, fast = (await call.open("slow", "fast")).handles
        store.hold("save")
        await call.block([slow], [[1]])
        await call.send(closing(slow))
        await store.entered("save")
        assert sums(await call.block([fast], [[5]])) == [5]
        store.release("save")
        closed = (await answer(call)).closed
        assert (list(closed.steps), list(closed.durable_steps), len(closed.errors)) == ([1], [1], 0)


async def test_an_open_that_waits_delays_no_close(sum_root: Path) -> None:
    """They have separate queues."""
    async with held_server(sum_root) as (_, call, store):
        (fast,) = (await call.open("fast")).handles
        store.hold("claim")
        await call.send(opening("slow"))
        await store.entered("claim")
        assert not (await call.ask(closing(fast))).closed.errors


async def test_an_open_that_is_not_independent_is_done_in_its_turn(sum_root: Path) -> None:
    """A block that was sent after it waits, as clients expect that do not know the field."""
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        (fast,) = (await call.open("fast")).handles
        store.hold("claim")
        await call.send(opening("slow", independent=False))
        await store.entered("claim")
        await call.send(block_request([fast], [[5]]))
        await round_trips(other)
        stream = server.stream_service._streams.find(key("fast"))
        assert stream is not None
        assert stream.step == 0
        store.release("claim")
        assert [(await answer(call)).WhichOneof("kind") for _ in range(2)] == ["opened", "block"]


# Order.


async def test_independent_opens_are_answered_in_their_order(sum_root: Path) -> None:
    """Even opens that need not wait for the store come after one that does."""
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        store.hold("claim")
        await call.send(opening("slow"))
        await call.send(opening("fast", "third"))
        await call.send(opening("nowhere", model="nope"))
        await store.entered("claim")
        await round_trips(other)
        store.release("claim")
        answers = [(await answer(call)).opened for _ in range(3)]
        assert [list(opened.stream_ids) for opened in answers] == [["slow"], ["fast", "third"], []]
        assert answers[2].HasField("refused")


async def test_an_open_that_is_not_independent_waits_for_those_before_it(sum_root: Path) -> None:
    """Opens are answered in order, independent or not."""
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        store.hold("claim")
        await call.send(opening("slow"))
        await call.send(opening("fast", independent=False))
        await store.entered("claim")
        await round_trips(other)
        assert server.stream_service._streams.find(key("fast")) is None
        store.release("claim")
        assert [list((await answer(call)).opened.stream_ids) for _ in range(2)] == [["slow"], ["fast"]]


async def test_a_call_whose_line_is_full_reads_nothing_more(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`put` waits until there is room: a client that floods is throttled by flow control, and nothing is lost."""
    monkeypatch.setattr(queue_module, "QUEUE_MAX", 1)
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        (fast,) = (await call.open("fast")).handles
        store.hold("claim")
        await call.send(opening("slow"))
        await store.entered("claim")
        await call.send(opening("second"))
        await call.send(opening("third"))
        await call.send(block_request([fast], [[5]]))
        await round_trips(other)
        stream = server.stream_service._streams.find(key("fast"))
        assert stream is not None
        assert stream.step == 0
        store.release("claim")
        answers = [await answer(call) for _ in range(4)]
        opened = [list(part.opened.stream_ids) for part in answers if part.HasField("opened")]
        assert opened == [["slow"], ["second"], ["third"]]
        assert [sums(part.block) for part in answers if part.HasField("block")] == [[5]]


@pytest.mark.parametrize("kind", ["opened", "closed"])
async def test_half_close_waits_for_what_was_asked(sum_root: Path, kind: str) -> None:
    """It is answered before the call ends, and the call ends OK."""
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        (slow,) = (await call.open("slow")).handles
        held = "claim" if kind == "opened" else "load"
        store.hold(held)
        await call.send(opening("slow") if kind == "opened" else closing(slow, forget=True))
        await store.entered(held)
        await call.call.done_writing()
        await round_trips(other)
        store.release(held)
        assert (await answer(call)).WhichOneof("kind") == kind
        assert (await call.ending()).code is grpc.StatusCode.OK


# Errors in a message.


@pytest.mark.parametrize(
    ("wrong", "reason", "code"),
    [
        ({"model": "nope"}, Reason.REASON_MODEL_NOT_FOUND, grpc.StatusCode.NOT_FOUND),
        ({"durability": 77}, Reason.REASON_INVALID_FIELD, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["no model", "unknown durability"],
)
async def test_an_independent_open_that_makes_no_sense_is_refused_alone(
    sum_root: Path, wrong: dict[str, Any], reason: Reason, code: grpc.StatusCode
) -> None:
    """Nothing was opened, the rest of the answer is empty, and the other streams of the call continue."""
    async with held_server(sum_root) as (server, call, _):
        (fast,) = (await call.open("fast")).handles
        opened = (await call.ask(opening("a", "b", **wrong))).opened
        assert (opened.refused.reason, opened.refused.code) == (reason, code.value[0])
        opened.ClearField("refused")
        assert opened == pb.OpenedStreams()
        assert live(server) == 1
        assert sums(await call.block([fast], [[5]])) == [5]


@pytest.mark.parametrize(
    "request_",
    [
        opening(*[""] * 65_537),
        opening("a", resume_from=[1, 2]),
        closing(*[1] * 65_537),
    ],
    ids=["too many names", "resume_from", "too many handles"],
)
async def test_what_breaks_the_protocol_ends_the_call_all_the_same(
    sum_root: Path, request_: pb.PredictBlocksRequest
) -> None:
    """Wrong counts always end the call."""
    async with held_server(sum_root) as (_, call, __):
        await call.send(request_)
        assert (await call.ending()).code is grpc.StatusCode.INVALID_ARGUMENT


# Ends of calls.


async def _goes(_: Server, call: RawBlocks) -> None:
    call.call.cancel()


async def _breaks_the_protocol(_: Server, call: RawBlocks) -> None:
    await call.send(pb.PredictBlocksRequest())


async def _stops(server: Server, _: RawBlocks) -> None:
    for call in list(server._servicer._calls):
        call.end(Stopping())


@pytest.mark.parametrize(
    ("end", "full"),
    [(_goes, False), (_goes, True), (_breaks_the_protocol, False), (_stops, False), (_stops, True)],
    ids=["gone", "gone, no room", "protocol", "stopping", "stopping, no room"],
)
async def test_a_call_that_ends_releases_what_it_was_opening(
    sum_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Server, RawBlocks], Awaitable[None]],
    full: bool,
) -> None:
    """Whether it reads or waits for room: opened streams are released, an open in progress too, and a queued open never starts."""
    monkeypatch.setattr(queue_module, "QUEUE_MAX", 1)
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        store.hold("claim")
        for names in [("early", "slow"), ("later",), *([("last",)] if full else [])]:
            await call.send(opening(*names))
        await store.entered("claim")
        (serving,) = server._servicer._calls
        assert isinstance(serving, PredictBlocksCall)
        line = serving._opens
        await eventually(lambda: bool(line._queue._putters if full else line._queue.full()), "queueing")  # type: ignore[attr-defined]
        await eventually(lambda: server.stream_service._streams.find(key("early")) is not None, "opening")
        await end(server, call)
        await eventually(lambda: line._task is not None and bool(line._task.cancelling()), "breaking off")
        store.release("claim")
        await eventually(lambda: not server._servicer._calls, "leaving")
        await eventually(lambda: live(server) == 0, "parking")
        opened = await RawBlocks(other).open("early", "slow", "later", "last")
        assert list(opened.kinds[2:]) == [pb.Opened.KIND_NEW] * 2
        assert pb.Opened.KIND_TAKEN_OVER not in opened.kinds


async def test_a_stopping_server_moves_a_call_whose_open_waits(sum_root: Path) -> None:
    """The other streams are stored and their client is durable to move, before the store lets the open complete."""
    async with held_server(sum_root) as (server, call, store):
        (fast,) = (await call.open("fast")).handles
        await call.block([fast], [[1]])
        store.hold("claim")
        await call.send(opening("slow"))
        await store.entered("claim")
        stopping = asyncio.create_task(server._servicer._calls.drain())
        await read_until(call, "move")
        store.release("claim")
        assert (await call.ending()).code is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_a_stopping_server_opens_nothing_more(sum_root: Path) -> None:
    """An open in progress is cancelled at once, although the other streams are still being stored."""
    async with held_server(sum_root, checkpoint_every=3600) as (server, call, store):
        (fast,) = (await call.open("fast")).handles
        await call.block([fast], [[1]])
        store.hold("claim")
        store.hold("save")
        await call.send(opening("slow"))
        await store.entered("claim")
        (serving,) = server._servicer._calls
        assert isinstance(serving, PredictBlocksCall)
        stopping = asyncio.create_task(server._servicer._calls.drain())
        await store.entered("save")
        store.release("claim")
        task = serving._opens._task
        assert task is not None
        await eventually(task.done, "breaking off")
        store.release("save")
        await read_until(call, "move")
        assert not any(response.HasField("opened") for response in call.notifications)
        await stopping


# Notifications.


async def test_an_ended_stream_is_reported_after_its_handle(sum_root: Path) -> None:
    """It was taken over while another stream of its message was being opened."""
    async with held_server(sum_root) as (server, call, store), raw_channel(server) as other:
        (fast,) = (await call.open("fast")).handles
        store.hold("claim")
        await call.send(opening("a", "slow"))
        await store.entered("claim")
        await eventually(lambda: server.stream_service._streams.find(key("a")) is not None, "opening")
        assert (await RawCall(other).open("a")).kind == pb.Opened.KIND_TAKEN_OVER
        await call.block([fast], [[1]])
        assert not any(response.HasField("ended") for response in call.notifications)
        store.release("claim")
        opened = (await read_until(call, "opened")).opened
        assert not any(response.HasField("ended") for response in call.notifications)
        ended = (await read_until(call, "ended")).ended
        assert (list(ended.handles), ended.error.reason) == ([opened.handles[0]], Reason.REASON_TAKEN_OVER)


async def test_durable_steps_of_a_stream_are_reported_after_its_handle(sum_root: Path) -> None:
    """It was stored while another stream of its message was being opened, and other durable steps are reported at once."""
    async with held_server(sum_root, checkpoint_every=3600) as (server, call, store), raw_channel(server) as other:
        (fast,) = (await call.open("fast")).handles
        await call.block([fast], [[1]])
        before = RawBlocks(other)
        (a,) = (await before.open("a")).handles
        await before.block([a], [[1]])
        store.hold("claim")
        await call.send(opening("a", "slow"))
        await store.entered("claim")
        await read_until(before, "ended")
        for name in ("a", "fast"):
            stream = server.stream_service._streams.find(key(name))
            assert stream is not None
            assert stream.lease is not None
            await server.stream_service.wait_durable(stream.lease, 1)
        for notice in server.stream_service.checkpointer.listeners:
            notice()  # as after a checkpoint
        durable = (await read_until(call, "durable")).durable
        assert np.frombuffer(durable.handles, "<u4").tolist() == [fast]
        store.release("claim")
        opened = (await read_until(call, "opened")).opened
        assert (opened.next_steps[0], opened.durable_steps[0]) == (2, 0)
        durable = (await read_until(call, "durable")).durable
        assert np.frombuffer(durable.handles, "<u4").tolist() == [opened.handles[0]]
        assert np.frombuffer(durable.durable_steps, "<u8").tolist() == [1]


async def test_an_idle_call_is_notified_repeatedly(sum_root: Path) -> None:
    """Not only once for each message that it sends."""
    async with held_server(sum_root) as (server, call, _), raw_channel(server) as other:
        handles = (await call.open("a", "b", "c")).handles
        for name, handle in zip("abc", handles, strict=True):
            await RawCall(other).open(name)
            assert list((await read_until(call, "ended")).ended.handles) == [handle]


# Blocks meanwhile.


async def test_a_stream_is_not_closed_while_a_block_wakes_it(sum_root: Path) -> None:
    """The block is answered normally. Rows that come after the close are refused."""
    settings = {"checkpoint_every": 3600, "park_after": 3600}
    async with held_server(sum_root, **settings) as (server, call, store), raw_channel(server) as other:
        slow, unsaved, fast = (await call.open("slow", "unsaved", "fast")).handles
        stream = server.stream_service._streams.find(key("slow"))
        assert stream is not None
        server.stream_service._streams.park(stream)
        await call.block([unsaved], [[1]])
        store.hold("save")
        store.hold("load")
        await call.send(closing(unsaved))
        await store.entered("save")
        await call.send(closing(slow))
        await call.send(block_request([slow, fast], [[1], [2]]))
        await store.entered("load")
        store.release("save")
        await round_trips(other)
        store.release("load")
        answers = [await answer(call) for _ in range(3)]
        assert not any(part.closed.errors for part in answers)
        (block,) = (part.block for part in answers if part.HasField("block"))
        assert (sums(block), len(block.errors)) == ([1, 2], 0)
        again = await call.block([slow, fast], [[1], [2]])
        assert [(part.row, part.error.field) for part in again.errors] == [(0, "handles")]
        assert sums(again) == [0, 4]


async def test_a_stream_may_be_forgotten_while_a_block_steps_it(sum_root: Path) -> None:
    """Its row is applied or refused, the others are answered, and nothing of it remains."""
    async with held_server(sum_root, batch_max=4) as (server, call, store), raw_channel(server) as other:
        handles = list((await call.open(*(f"s{number}" for number in range(11)), "slow")).handles)
        await call.block(handles, np.ones((12, 1)))
        store.hold("load")
        await call.send(closing(handles[-1], forget=True))
        await store.entered("load")
        gate = Gate(batcher_of(server))
        await call.send(block_request(handles, np.ones((12, 1))))
        await gate.entered()
        store.release("load")
        await eventually(
            lambda: store.record("slow") is None or bool(store.record("slow").metadata.tombstone), "forgetting"
        )
        gate.open()
        answers = [await answer(call) for _ in range(2)]
        (block,) = (part.block for part in answers if part.HasField("block"))
        (closed,) = (part.closed for part in answers if part.HasField("closed"))
        assert not closed.errors
        assert sums(block)[:11] == [2] * 11
        assert {part.error.reason for part in block.errors} <= {Reason.REASON_STREAM_NOT_FOUND}
        opened = await RawBlocks(other).open("slow")
        assert (opened.kinds[0], opened.next_steps[0]) == (pb.Opened.KIND_NEW, 1)
        assert sums(await call.block(handles[:11], np.ones((11, 1)))) == [3] * 11


async def test_a_stream_that_could_not_be_forgotten_still_reports_its_end(sum_root: Path) -> None:
    """The store was unreachable: the stream is open, and its client learns of a take-over as usual."""
    async with held_server(sum_root) as (server, call, _), raw_channel(server) as other:
        (a,) = (await call.open("a")).handles
        store: Any = server.stream_service._store
        load = store.load

        async def broken(_: object) -> None:
            raise StoreUnavailable("test", "is broken")

        store.load = broken
        closed = (await call.ask(closing(a, forget=True))).closed
        assert [part.error.reason for part in closed.errors] == [Reason.REASON_STORE_UNAVAILABLE]
        store.load = load
        await RawCall(other).open("a")
        assert list((await read_until(call, "ended")).ended.handles) == [a]
