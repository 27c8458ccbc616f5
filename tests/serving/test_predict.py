"""The life cycle of a stream with a real server and the real client."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import uvloop

from tests.calls import RawCall, raw_channel, timestep
from tests.engines import Gate
from tests.graphs import lstm, running_sum, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import address_of, batcher_of, live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    Client,
    ModelMismatch,
    ModelNotFound,
    StreamExists,
    StreamNotFound,
    TakenOver,
)
from tidegate.v1 import tidegate_pb2 as pb


async def test_a_new_stream_begins_at_the_first_timestep(sum_root: Path) -> None:
    """The open reports new, epoch 1, and the first number."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open("a") as stream:
        assert (stream.kind, stream.stream_id, stream.epoch, stream.next_step) == ("new", "a", 1, 1)
        assert (stream.model.name, stream.model.version) == ("toy", "1")


async def test_a_timestep_is_answered_with_named_arrays(sum_root: Path) -> None:
    """Names, dtypes and shapes are those of the model."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open() as stream:
        answer = await stream.step([5.0])
        assert list(answer) == ["sum", "steps"]
        assert (answer["sum"].dtype, answer["sum"].shape) == (np.float32, (1,))
        assert (answer["steps"].dtype, answer["steps"].shape) == (np.int64, ())
        assert (answer.step, answer["sum"].item(), answer["steps"].item()) == (1, 5, 1)


async def test_the_server_keeps_the_state_between_timesteps(sum_root: Path) -> None:
    """Each answer depends on all timesteps before it."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open() as stream:
        assert [(await stream.step([value]))["sum"].item() for value in (1, 2, 3)] == [1, 3, 6]


async def test_an_open_without_a_name_gets_an_unguessable_one(sum_root: Path) -> None:
    """Two such opens get two different long names, and each name resumes its stream."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        async with client.open() as one, client.open() as other:
            assert len({one.stream_id, other.stream_id}) == 2
            assert min(len(one.stream_id), len(other.stream_id)) >= 20
            await one.step([7])
        async with client.open(one.stream_id, existence="must_exist") as again:
            assert (again.kind, (await again.step([1]))["sum"].item()) == ("resumed", 8)


@pytest.mark.parametrize("parked_after", [0, 1, 40])
async def test_a_resumed_stream_continues_with_the_same_bits(lstm_root: Path, parked_after: int) -> None:
    """A disconnect and a resume change nothing: the bits are those of an uninterrupted stream."""
    rows = sensor_rows(60, missing=0.1)
    got = []
    async with run_server(lstm_root) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            got += [await stream.step(row) for row in rows[:parked_after]]
        async with client.open("a") as stream:
            assert (stream.kind, stream.epoch, stream.next_step) == ("resumed", 2, parked_after + 1)
            got += [await stream.step(row) for row in rows[parked_after:]]
    assert all(map(same_bits, got, replay(lstm(), rows)))


async def test_a_repeat_is_answered_without_being_applied(sum_root: Path) -> None:
    """The same answer again, marked as a duplicate, also after a resume."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            for value in (1, 2, 3):
                await stream.step([value])
            again = await stream.step([2], step=2)
            assert (again.duplicate, again.step, again["sum"].item()) == (True, 2, 3)
        async with client.open("a") as stream:
            again = await stream.step([3], step=3)
            assert (again.duplicate, again["sum"].item()) == (True, 6)
            assert (await stream.step([1]))["sum"].item() == 7


async def test_a_repeat_that_is_no_longer_remembered_is_empty(sum_root: Path) -> None:
    """The client learns only that it was applied."""
    async with (
        run_server(sum_root, answers_remembered=2) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        for value in (1, 2, 3):
            await stream.step([value])
        again = await stream.step([99], step=1)
        assert (again.duplicate, dict(again)) == (True, {})


async def test_the_server_numbers_timesteps_without_a_number(sum_root: Path) -> None:
    """For clients that do not need exactly-once."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        opened = await call.open("a")
        assert opened.answers_remembered == 32
        assert [(await call.step(value)).prediction.step for value in (1, 2, 3)] == [1, 2, 3]


async def test_a_client_that_lets_the_server_number_stays_in_step(sum_root: Path) -> None:
    """A timestep without a number raises `next_step`, so that the next one is not taken for a duplicate."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open("a") as stream:
        for value in (1, 2):
            await stream.step([value], step=0)
        answer = await stream.step([4])
        assert (answer.step, answer.duplicate, answer["sum"].item()) == (3, False, 7)


async def test_several_timesteps_under_way_are_answered_in_order(sum_root: Path) -> None:
    """A client need not wait for an answer before it sends the next timestep."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client, client.open("a") as stream:
        answers = await asyncio.gather(*(stream.step([value]) for value in range(1, 51)))
        assert [answer["sum"].item() for answer in answers] == np.cumsum(range(1, 51)).tolist()


async def test_must_exist_refuses_an_unknown_stream(sum_root: Path) -> None:
    """And does not begin it."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        for _ in range(2):
            with pytest.raises(StreamNotFound, match="'a'"):
                async with client.open("a", existence="must_exist"):
                    pass
        assert live(server) == 0


async def test_must_be_new_refuses_a_known_stream(sum_root: Path) -> None:
    """Whether it is parked or live. A live one is not affected."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        async with client.open("a", existence="must_be_new") as stream:
            await stream.step([1])
            with pytest.raises(StreamExists, match="'a'"):
                async with client.open("a", existence="must_be_new"):
                    pass
            assert (await stream.step([2]))["sum"].item() == 3
        with pytest.raises(StreamExists):
            async with client.open("a", existence="must_be_new"):
                pass


async def test_a_take_over_continues_and_ends_the_other_call(sum_root: Path) -> None:
    """The new call has the state and a higher epoch. The old one ends with the reason."""
    async with (
        run_server(sum_root) as server,
        Client(address_of(server)) as one,
        Client(address_of(server)) as other,
        one.open("a") as old,
    ):
        await old.step([5])
        async with other.open("a") as new:
            assert (new.kind, new.epoch, new.next_step) == ("taken_over", 2, 2)
            assert (await new.step([6]))["sum"].item() == 11
            with pytest.raises(TakenOver, match="epoch 2"):
                await old.step([99])
            assert (await new.step([7]))["sum"].item() == 18


async def test_a_take_over_under_a_running_batch_counts_its_timestep(sum_root: Path) -> None:
    """A timestep that runs when the stream changes hands is applied, and the new call continues after it.

    If the new call got the number from before, it would send its own timestep under a used number. Then it would get
    the answer as a duplicate, and its timestep would never be applied.
    """
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        old, new = RawCall(channel), RawCall(channel)
        await old.open("a")
        gate = Gate(batcher_of(server))
        await old.send(timestep(5, step=1))
        await gate.entered()
        opening = asyncio.create_task(new.open("a"))
        # The open gets as far as it can while the batch runs: open already, or waiting for the batch.
        await eventually(lambda: opening.done() or bool(batcher_of(server)._deferred), "the open")
        gate.open()
        opened = await opening
        assert opened.kind == pb.Opened.KIND_TAKEN_OVER
        assert opened.next_step == 2
        answer = (await new.step(6, step=opened.next_step)).prediction
        assert not answer.duplicate
        assert np.frombuffer(answer.outputs[0], np.float32).item() == 11


async def test_a_refusal_after_the_stream_went_away_ends_as_a_take_over(sum_root: Path) -> None:
    """A bad timestep whose stream was taken over and parked during its batch ends its call with that reason."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        old, new = RawCall(channel), RawCall(channel)
        await old.open("a")
        gate = Gate(batcher_of(server))
        await old.send(timestep(5, step=9))  # a gap
        await gate.entered()
        opening = asyncio.create_task(new.open("a"))
        await eventually(lambda: opening.done() or bool(batcher_of(server)._deferred), "the open")
        if opening.done():  # it was opened while the batch runs; now its call ends, and it is parked after the batch
            new.call.cancel()
            await eventually(lambda: bool(batcher_of(server)._deferred), "parking")
        gate.open()
        ending = await old.ending()
        assert ending.reason == "TAKEN_OVER"
        await opening


async def test_streams_taken_over_at_once_by_many_have_one_owner(sum_root: Path) -> None:
    """Of ten calls that open the same stream concurrently one holds it in the end, under the tenth epoch."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        calls = [RawCall(channel) for _ in range(10)]
        opened = await asyncio.gather(*(call.open("a") for call in calls))
        assert sorted(answer.epoch for answer in opened) == list(range(1, 11))
        owner = next(call for call, answer in zip(calls, opened, strict=True) if answer.epoch == 10)
        endings = await asyncio.gather(*(call.ending() for call in calls if call is not owner))
        assert {ending.reason for ending in endings} == {"TAKEN_OVER"}
        assert (await owner.step(5)).prediction.step == 1
        assert live(server) == 1


async def test_a_closed_stream_is_parked(sum_root: Path) -> None:
    """A close is answered with the last step, ends the call OK and releases the slot."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        await call.step(5)
        closed = (await call.ask(pb.PredictRequest(close=pb.Close()))).closed
        assert closed.step == 1
        assert (await call.ending()).code.name == "OK"
        await eventually(lambda: live(server) == 0, "parking")


async def test_a_half_close_parks_the_stream(sum_root: Path) -> None:
    """The call of a client that half-closes ends OK."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a")
        await call.call.done_writing()
        assert (await call.ending()).code.name == "OK"
        await eventually(lambda: live(server) == 0, "parking")
        again = await RawCall(channel).open("a")
        assert again.kind == pb.Opened.KIND_RESUMED


async def test_a_forgotten_stream_begins_anew(sum_root: Path) -> None:
    """Its state is gone and its name is free."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            await stream.step([5])
            await stream.close(forget=True)
        assert live(server) == 0
        async with client.open("a", existence="must_be_new") as stream:
            assert (stream.next_step, (await stream.step([1]))["sum"].item()) == (1, 1)


async def test_two_streams_do_not_mix(sum_root: Path) -> None:
    """Neither on one connection nor on two."""
    async with (
        run_server(sum_root) as server,
        Client(address_of(server)) as one,
        Client(address_of(server)) as other,
        one.open("a") as a,
        one.open("b") as b,
        other.open("c") as c,
    ):
        streams, factors = (a, b, c), (1, 100, 10_000)
        for number in range(1, 6):
            answers = await asyncio.gather(
                *(stream.step([factor * number]) for stream, factor in zip(streams, factors, strict=True))
            )
            total = number * (number + 1) // 2
            assert [answer["sum"].item() for answer in answers] == [total, 100 * total, 10_000 * total]


async def test_the_newest_version_is_served_unless_asked_otherwise(tmp_path: Path) -> None:
    """Versions are numbers: 10 is newer than 9."""
    for version, low in (("9", 0.0), ("10", 1.0)):
        write_model(tmp_path, running_sum(features=[{"name": "x", "low": low}]), "toy", version)
    async with run_server(tmp_path, load=("toy/9", "toy/10")) as server, Client(address_of(server)) as client:
        assert [model.version for model in await client.models()] == ["10", "9"]
        async with client.open() as stream, client.open(version="9") as old:
            assert (stream.model.version, old.model.version) == ("10", "9")


async def test_a_known_stream_continues_under_its_own_version(tmp_path: Path) -> None:
    """An open without a version keeps its version. An open with another one is refused, and the stream stays usable."""
    for version, low in (("1", 0.0), ("2", 1.0)):
        write_model(tmp_path, running_sum(features=[{"name": "x", "low": low}]), "toy", version)
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        async with client.open("a", version="1") as stream:
            await stream.step([5])
        with pytest.raises(ModelMismatch, match="toy/1, not toy/2"):
            async with client.open("a", version="2"):
                pass
        async with client.open("a") as stream:
            assert (stream.model.version, (await stream.step([1]))["sum"].item()) == ("1", 6)


async def test_streams_of_two_models_go_side_by_side(tmp_path: Path) -> None:
    """Each has its own slots and batcher."""
    write_model(tmp_path, running_sum(), "adder")
    write_model(tmp_path, lstm(), "lake")
    row = sensor_rows(1)[0]
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        async with client.open("a", model="adder") as a, client.open("b", model="lake") as b:
            assert (await a.step([5]))["sum"].item() == 5
            assert same_bits(await b.step(row), replay(lstm(), [row])[0])
        with pytest.raises(ModelMismatch):
            async with client.open("a", model="lake"):
                pass


async def test_an_unknown_model_is_refused(sum_root: Path) -> None:
    """The message has the requested and the served models."""
    async with run_server(sum_root) as server, Client(address_of(server)) as client:
        for ask, wanted in (({"model": "pump"}, "pump"), ({"version": "7"}, "toy/7")):
            with pytest.raises(ModelNotFound, match=f"'{wanted}' is not served; served are toy/1"):
                async with client.open("a", **ask):
                    pass


async def test_a_model_is_described_with_its_card(tmp_path: Path) -> None:
    """Everything that a client needs to send timesteps, and the card for people."""
    write_model(tmp_path, lstm(), "lake", "3", card='{"data": "synthetic"}')
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        model, card = await client.describe("lake")
        assert card == '{"data": "synthetic"}'
        assert (model.name, model.version, model.task, model.period_s) == ("lake", "3", "forecast", 3600.0)
        assert [(part.name, part.unit, part.low, part.high) for part in model.features[:1]] == [("s0", "V", -2, 2)]
        assert model.outputs[0].horizons == (1, 3)
        assert model.batch_invariant
        assert (model,) == tuple(await client.models())
        with pytest.raises(ModelNotFound):
            await client.describe("pond")


PARITY_STEPS = 1000


def test_a_thousand_steps_through_a_server_have_the_bits_of_the_graph_alone(lstm_root: Path) -> None:
    """With missing values, among other streams with their own pace, on the event loop of production."""
    rows = sensor_rows(PARITY_STEPS, seed=42, missing=0.15)
    others = [sensor_rows(PARITY_STEPS, seed=seed, missing=0.3) for seed in range(5)]

    async def scenario() -> list:
        async with run_server(lstm_root) as server, Client(address_of(server)) as client:
            done = asyncio.Event()

            async def company(mine: np.ndarray, number: int) -> None:
                async with client.open(f"other-{number}") as stream:
                    expected = replay(lstm(), mine)
                    for row, theirs in zip(mine, expected, strict=True):
                        assert same_bits(await stream.step(row), theirs)
                        if done.is_set():
                            break

            async with asyncio.TaskGroup() as group:
                for number, mine in enumerate(others):
                    group.create_task(company(mine, number))
                async with client.open("a") as stream:
                    got = [await stream.step(row) for row in rows]
                done.set()
            return got

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        got = runner.run(asyncio.wait_for(scenario(), 3 * TIMEOUT_S))
    assert len(got) == PARITY_STEPS
    assert all(map(same_bits, got, replay(lstm(), rows)))
