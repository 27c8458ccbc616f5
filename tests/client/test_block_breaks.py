"""Disconnects of a call with many streams: lost timesteps are sent again, answers are not delivered twice."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import MODEL, NAMES, BlockCall, closing, column, connected, sums
from tests.timeouts import eventually
from tidegate.client import AnswerLost, DataLost, Diverged, InvalidTimestep, ModelMismatch, TakenOver
from tidegate.v1 import tidegate_pb2 as pb


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN", "RESOURCE_EXHAUSTED"])
async def test_a_disconnect_is_not_seen(code: str) -> None:
    """What was not answered is sent again, and answered once."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.read_block()
        await call.end(code=code)

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("a", 2, 4.0), ("b", 2, 5.0), ("c", 2, 6.0)]
        await closing(call)

    async with connected(first, second) as (client, _, time):
        async with client.block(NAMES) as block:
            assert await sums(block, [1, 2, 3]) == [1.0, 2.0, 3.0]
            assert await sums(block, [4, 5, 6]) == [5.0, 7.0, 9.0]
            assert block.reconnects == 1
        assert time.slept == [0.0]


async def test_lost_answers_come_once() -> None:
    """The server applied them before the disconnect, only for one stream: they are repeats, and callers notice nothing."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.rows = call.rows[:1]
        call.apply()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert await call.serve_block() == [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 3.0)]
        await closing(call)

    async with connected(first, second) as (client, server, _), client.block(NAMES) as block:
        assert await sums(block, [1, 2, 3]) == [1.0, 2.0, 3.0]
        assert list(server.histories.values()) == [[1.0], [2.0], [3.0]]


async def test_a_forgotten_answer_is_reported() -> None:
    """The timestep counts; only its prediction is gone."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.apply()
        await call.end()

    async def second(call: BlockCall) -> None:
        call.remembered = 0
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        answer = await block.step(column(1))
        assert isinstance(answer.errors[0], AnswerLost)
        assert (answer.steps.tolist(), answer.duplicates.tolist()) == ([1], [True])


async def test_what_a_crash_took_is_sent_again() -> None:
    """Each stream from where the server goes on; rows of several blocks are packed anew; nothing is delivered twice."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        for stored in ({}, {"a": 1, "b": 1}, {}):
            await call.read_block()
            errors = call.apply()
            call.server.stored.update(stored)
            await call.answer_block(errors)
        await call.read_block()
        call.server.stored["b"] = 2
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        rows = await call.serve_block()
        assert [(name, step) for name, step, _ in rows] == [
            ("c", 1), ("a", 2), ("c", 2), ("a", 3), ("b", 3), ("c", 3), ("a", 4), ("b", 4), ("c", 4)
        ]  # fmt: skip
        await closing(call)

    async with connected(first, second) as (client, server, _), client.block(NAMES) as block:
        for step in (1, 2, 3, 4):
            assert await sums(block, [1, 2, 3]) == [step, 2 * step, 3 * step]
        assert server.histories == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}


async def test_what_a_crash_lost_is_sent_again_without_a_caller() -> None:
    """Everything was delivered and the user does nothing: the server gets back what it lost all the same."""
    restored = asyncio.Event()

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        restored.set()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        await restored.wait()


async def test_an_open_after_a_disconnect_has_resume_from_of_each_stream() -> None:
    """The first timestep that can be sent again: of one that is all here, one that was stored, one whose beginning others sent."""

    async def first(call: BlockCall) -> None:
        call.server.histories["c"] = [1.0] * 7
        await call.open_streams()
        await call.read_block()
        errors = call.apply()
        call.server.stored["b"] = 1
        await call.answer_block(errors)
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert call.opens == [
            pb.OpenStreams(
                stream_ids=NAMES, resume_from=[1, 2, 8], model="toy", version="1", durability=pb.DURABILITY_SYNC,
                owner=block.owner, kept_max=70, independent=True,
            )
        ]  # fmt: skip
        await closing(call)

    async with (
        connected(first, second, buffer_max=70) as (client, _, _),
        client.block(NAMES, sync=True) as block,
    ):
        await block.step(column(1, 2, 3))
        await eventually(lambda: block.reconnects == 1, "the reconnect")


async def test_streams_that_were_not_yet_opened_are_opened_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call broke between two lots: those of the first are resumed, the others are begun."""
    monkeypatch.setattr("tidegate.client.session_streams.NAMES_MAX", 1)

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        for _ in NAMES:
            await call.open_streams()
        assert [(list(ask.stream_ids), ask.existence, list(ask.resume_from)) for ask in call.opens] == [
            (["a"], pb.EXISTENCE_UNSPECIFIED, [1]),
            (["b"], pb.EXISTENCE_MUST_BE_NEW, []),
            (["c"], pb.EXISTENCE_MUST_BE_NEW, []),
        ]
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(NAMES, existence="must_be_new") as block:
        assert block.kinds == ["new"] * 3


async def test_a_stream_whose_state_was_lost_is_the_only_one_lost() -> None:
    """The others go on."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        errors = call.apply()
        call.server.stored.update(a=1, b=1, c=1)
        await call.answer_block(errors)
        await call.end()

    async def second(call: BlockCall) -> None:
        call.server.histories["a"].clear()
        await call.open_streams()
        await call.serve_block()
        assert await call.close_streams() == ["b", "c"]

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        await block.step(column(1, 2, 3))
        answer = await block.step(column(4, 5, 6))
        assert {row: type(error) for row, error in answer.errors.items()} == {0: DataLost}
        assert answer["sum"].ravel().tolist() == [0.0, 7.0, 9.0]


async def test_a_stream_that_another_client_has_opened_is_the_only_one_lost() -> None:
    """Whether it has advanced the stream or not: the open shows it for each stream; the others continue."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await call.end()

    async def second(call: BlockCall) -> None:
        call.server.histories["a"].append(9.0)
        call.server.owners.update(a="another", b="another")
        await call.open_streams()
        await call.serve_block()
        assert await call.close_streams() == ["c"]

    async with connected(first, second) as (client, _, _), client.block(NAMES) as block:
        answer = await block.step(column(1, 2, 3))
        assert {row: type(error) for row, error in answer.errors.items()} == {0: TakenOver, 1: TakenOver}
        assert answer["sum"].ravel().tolist() == [0.0, 0.0, 3.0]


async def test_our_own_opens_are_not_taken_for_anothers() -> None:
    """Two opens were seen by the server and their answers lost: the owner is the same."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        call.apply()
        await call.end()

    async def lost(call: BlockCall) -> None:
        await call.read_streams()
        await call.end()

    async def last(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await closing(call)

    async with connected(first, lost, lost, last) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0]) == [1.0]


@pytest.mark.parametrize("invariant", [True, False])
async def test_another_history_than_was_delivered_is_reported(invariant: bool) -> None:
    """A replay of one stream is answered with other bits; a server that promises no bits is not held to them."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        call.server.stored["b"] = 1
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        model = pb.Model()
        model.CopyFrom(MODEL)
        model.batch_invariant = invariant
        await call.open_streams(model=model)
        assert [name for name, _, _ in await call.read_block()] == ["a"]
        await call.answer_block(call.apply(), bits=0.5)
        await call.serve_block()
        await closing(call)

    async with connected(first, second) as (client, _, _), client.block(["a", "b"]) as block:
        assert await sums(block, [1.0, 2.0]) == [1.0, 2.0]
        await eventually(lambda: block.reconnects == 1 and block._window.drained, "the replay")
        assert list(block.lost) == ([0] if invariant else [])
        answer = await block.step(column(3, 4))
        assert [type(error) for error in answer.errors.values()] == ([Diverged] if invariant else [])
        assert answer["sum"].ravel().tolist() == [0.0 if invariant else 4.0, 6.0]


async def test_a_stream_that_diverges_and_is_refused_is_lost_once() -> None:
    """Both in one answer; the other row of its stream gets the error."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.serve_block()
        await call.read_block()
        call.server.lose_unstored()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams()
        assert [step for _, step, _ in await call.read_block()] == [1, 2]
        await call.answer_block(call.apply(), bits=0.5)
        assert await call.read() is None

    async with connected(first, second) as (client, _, _), client.block(["a"]) as block:
        assert await sums(block, [1.0]) == [1.0]
        answer = await block.step(column(-2))
        assert isinstance(answer.errors[0], Diverged)


async def test_another_model_under_the_same_name_is_reported() -> None:
    """Old state is never fed to new weights: that concerns them all."""

    async def first(call: BlockCall) -> None:
        await call.open_streams()
        await call.end()

    async def second(call: BlockCall) -> None:
        await call.open_streams(model=pb.Model(fingerprint="e" * 64))
        await call.gone()

    async with connected(first, second) as (client, _, _):
        with pytest.raises(ModelMismatch, match="ffffffffffff, and the server has eeeeeeeeeeee"):
            async with client.block(NAMES) as block:
                await block.step(column(1, 2, 3))


# All at once -----------------------------------------------------------------------------------------------------------


class Haunted:
    """A server that answers, and now and then stores, refuses, breaks, crashes and moves; as a script."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    async def __call__(self, call: BlockCall) -> None:
        """Plays one call."""
        call.remembered = 4
        while (request := await call.read()) is not None:
            if self.dice.random() < 0.02:
                await call.end()
            kind = request.WhichOneof("kind")
            if kind == "open":
                await call.answer_open(request.open, {})
            elif kind == "close":
                await self.close(call, request.close)
            else:
                await self.block(call, request.block)
                if self.dice.random() < 0.03:
                    await call.move()
                    return

    async def block(self, call: BlockCall, request: pb.Block) -> None:
        """Answers a block, or not; and may store some streams."""
        call.take_block(request)
        fate = self.dice.random()
        if fate < 0.1:
            await call.refuse_block("OVERLOADED", retry_after_ms=1)
            return
        busy = {row: "OVERLOADED" for row in range(len(call.rows)) if self.dice.random() < 0.05}
        errors = call.apply(busy)
        if fate < 0.2:
            call.server.lose_unstored()
        if fate < 0.3:
            await call.end()
        await call.answer_block(errors)
        if fate > 0.7:
            names = [name for name in call.names if self.dice.random() < 0.5]
            await call.tell_durable(**{name: len(call.server.histories[name]) for name in names})

    async def close(self, call: BlockCall, request: pb.CloseStreams) -> None:
        """Closes streams, and stores them."""
        names = [call.names[handle - 1] for handle in request.handles]
        steps = [len(call.server.histories[name]) for name in names]
        call.server.stored.update(zip(names, steps, strict=True))
        await call.write(closed=pb.ClosedStreams(steps=steps, durable_steps=steps))


@pytest.mark.parametrize("seed", range(8))
async def test_a_haunted_server_changes_nothing(seed: int) -> None:
    """Breaks, crashes, moves and refusals at any moment: every good timestep is applied and answered once, in order."""
    dice = random.Random(seed)
    server_dice = random.Random(-seed - 1)
    streams = [f"s{number}" for number in range(7)]
    expected: dict[str, list[float]] = {name: [] for name in streams}

    async def work(block: Any) -> None:
        for _ in range(15):
            rows = [dice.randrange(len(streams)) for _ in range(dice.randrange(1, 20))]
            values = [float(dice.randrange(1, 50) * (-1 if dice.random() < 0.1 else 1)) for _ in rows]
            asked.append((rows, values, asyncio.create_task(block.step(np.array(values).reshape(-1, 1), rows))))
            if dice.random() < 0.5:
                await asked[-1][2]

    asked: list[Any] = []
    async with connected(*[Haunted(server_dice)] * 1000) as (client, server, _):
        async with client.block(streams) as block:
            await work(block)
            await asyncio.wait([task for _, _, task in asked])
        for rows, values, task in asked:
            answer = task.result()
            for row, (stream, value) in enumerate(zip(rows, values, strict=True)):
                if value < 0:
                    assert isinstance(answer.errors[row], InvalidTimestep)
                    continue
                history = expected[streams[stream]]
                history.append(value)
                assert row not in answer.errors
                assert (answer.steps[row], answer["count"][row]) == (len(history), len(history))
                assert answer["sum"][row] == sum(history)
        assert server.histories == {name: history for name, history in expected.items() if name in server.histories}
        assert block.durable_steps.tolist() == [len(expected[name]) for name in streams]
        server.scripts.clear()
