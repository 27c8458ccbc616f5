"""Opening many streams on one call: what is asked for, and what is refused or tried again."""

from typing import Any

import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, closing, column, connected, error_of, opened_and_closed, sums
from tests.scripted import let_time_out
from tests.timeouts import eventually
from tidegate.client import (
    Client,
    ClientError,
    ServerUnavailable,
    StreamExpired,
    StreamLost,
    StreamNotFound,
    session_streams,
)
from tidegate.v1 import tidegate_pb2 as pb


async def test_an_open_carries_its_options() -> None:
    """Names, model, existence, durability, owner and `kept_max`; and the answer for each stream is there."""

    async def script(call: BlockCall) -> None:
        call.server.histories["b"] = [1.0, 2.0]
        call.server.stored["b"] = 1
        await call.open_streams()
        assert call.opens == [
            pb.OpenStreams(
                stream_ids=NAMES, model="toy", version="1", existence=pb.EXISTENCE_MUST_BE_NEW, durability=pb.DURABILITY_SYNC,
                owner="gate-1", kept_max=70, independent=True,
            )
        ]  # fmt: skip
        await closing(call)

    async with (
        connected(script, buffer_max=70) as (client, _, _),
        client.block(NAMES, model="toy", version="1", existence="must_be_new", sync=True, owner="gate-1") as block,
    ):
        assert block.owner == "gate-1"
        assert (block.stream_ids, block.kinds, block.model.name) == (NAMES, ["new", "resumed", "new"], "toy")
        assert (block.next_steps.tolist(), block.durable_steps.tolist()) == ([1, 3, 1], [0, 1, 0])
        assert (block.window, block.reconnects, block.refused, block.lost) == (32, 0, {}, {})


async def test_a_number_of_streams_is_given_names() -> None:
    """By the server; they are opened again under these."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.end()

    async with connected(first, opened_and_closed) as (client, server, _), client.block(2) as block:
        assert block.stream_ids == ["made-0", "made-1"]
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        await eventually(lambda: block.reconnects == 1, "the reconnect")
        assert list(server.calls[1].opens[0].stream_ids) == ["made-0", "made-1"]


async def test_many_names_go_out_in_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other; the later ones ask for the model that the first were given."""
    monkeypatch.setattr(session_streams, "NAMES_MAX", 3)
    monkeypatch.setattr(session_streams, "NAMES_BYTES_MAX", 40)

    async def script(call: BlockCall) -> None:
        for lot in (["a", "b", "c"], ["d" * 28], ["e", "f"]):
            ask = await call.read_streams()
            assert list(ask.stream_ids) == lot
            assert (ask.model, ask.version) == (("", "") if lot[0] == "a" else ("toy", "1"))
            await call.answer_open(ask, {})
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, _, _), client.block(["a", "b", "c", "d" * 28, "e", "f"]) as block:
        assert await sums(block, [1.0] * 6) == [1.0] * 6


async def test_a_stream_that_is_refused_leaves_the_others_open() -> None:
    """Its rows say why it is."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": error_of("STREAM_EXPIRED", next_step=9)})
        await call.serve_block()
        assert await call.close_streams() == ["a", "c"]

    async with connected(script) as (client, _, _), client.block(NAMES) as block:
        assert list(block.refused) == [1]
        assert isinstance(block.refused[1], StreamExpired)
        assert block.refused[1].next_step == 9
        assert block.kinds == ["new", "", "new"]
        answer = await block.step(column(1, 2, 3))
        assert answer["sum"].ravel().tolist() == [1.0, 0.0, 3.0]
        assert answer.errors == block.refused
        assert block.lost == {}


async def test_a_block_of_which_nothing_can_be_opened_is_refused() -> None:
    """With the reason of the first."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"a": "STREAM_NOT_FOUND", "b": "STREAM_EXPIRED"})
        await call.gone()

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamNotFound):
            async with client.block(["a", "b"], existence="must_exist"):
                pass


async def test_an_open_that_is_refused_as_a_whole_is_reported() -> None:
    """As with one stream."""

    async def script(call: BlockCall) -> None:
        await call.read_streams()
        await call.end("MODEL_NOT_FOUND", "NOT_FOUND")

    async with connected(script) as (client, _, _):
        with pytest.raises(ClientError, match="MODEL_NOT_FOUND"):
            async with client.block(NAMES):
                pass


@pytest.mark.parametrize("reason", ["STORE_UNAVAILABLE", "TOO_MANY_STREAMS"])
async def test_a_stream_for_which_there_is_no_room_yet_is_tried_again(reason: str) -> None:
    """As long as the server may be waited for; the others are open meanwhile."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": error_of(reason, retry_after_ms=1000)})
        await call.open_streams()
        await closing(call)

    async with connected(script) as (client, _, time), client.block(NAMES) as block:
        assert (block.refused, block.kinds) == ({}, ["new"] * 3)
        assert time.slept == [pytest.approx(1.5)]


async def test_trying_to_open_has_an_end() -> None:
    """After `timeout_s` the stream is refused, and the others go on."""

    async def script(call: BlockCall) -> None:
        for _ in range(3):
            await call.open_streams({"b": error_of("STORE_UNAVAILABLE", retry_after_ms=1000)})
        await closing(call)

    async with connected(script, timeout_s=2.0) as (client, _, time), client.block(NAMES) as block:
        assert isinstance(block.refused[1], ServerUnavailable)
        assert time.slept == [pytest.approx(1.5)] * 2


@pytest.mark.parametrize("streams", [[], 0, ["a", "b", "a"], "abc"])
async def test_invalid_names_of_a_block_are_reported(streams: Any) -> None:
    """Before anything is sent."""
    async with Client("localhost:1") as client:
        with pytest.raises(ValueError, match="streams: got"):
            client.block(streams)


async def test_an_open_that_is_not_answered_is_given_up() -> None:
    """After `timeout_s`, like that of a stream."""

    async def script(call: BlockCall) -> None:
        await call.gone()

    async with connected(script, timeout_s=0.5, reconnect_s=0) as (client, _, _):
        with pytest.raises(ServerUnavailable, match="no answer to open"):
            async with client.block(NAMES):
                pass


async def test_every_lot_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is not answered; and when all are, nothing is waited for."""
    monkeypatch.setattr(session_streams, "NAMES_MAX", 2)

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_streams()
        let_time_out(client)
        await call.gone()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await opened_and_closed(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        assert block._session._call._watchdog is None


@pytest.mark.parametrize(
    "opened",
    [
        pb.OpenedStreams(),
        pb.OpenedStreams(
            stream_ids=["a"], handles=[0], kinds=[pb.Opened.KIND_NEW], next_steps=[1], epochs=[1], durable_steps=[0]
        ),
        pb.OpenedStreams(stream_ids=["a"], handles=[1], kinds=[pb.Opened.KIND_NEW], next_steps=[1], epochs=[1]),
    ],
)
async def test_an_answer_that_does_not_fit_the_open_is_reported(opened: pb.OpenedStreams) -> None:
    """The server violates the protocol, so the call ends."""

    async def script(call: BlockCall) -> None:
        await call.read_streams()
        await call.write(opened=opened)
        await call.gone()

    async with connected(script) as (client, _, _):
        with pytest.raises(StreamLost, match=r"not requested|without a handle"):
            async with client.block(["a"]):
                pass


async def test_durable_steps_of_streams_opened_later_are_reported() -> None:
    """Their handles came later."""

    async def script(call: BlockCall) -> None:
        await call.open_streams({"b": "STORE_UNAVAILABLE"})
        call.server.histories["a"] = [1.0] * 5
        await call.tell_durable(a=5)
        await call.open_streams()
        await call.tell_durable(b=7, a=6)
        await call.serve_block()
        await closing(call)

    async with connected(script) as (client, server, _), client.block(["a", "b"]) as block:
        await eventually(lambda: block.durable_steps.tolist() == [6, 7], "the news")
        server.histories["a"].clear()
        await block.step(column(1, 2))
