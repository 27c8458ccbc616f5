"""Streams on an old version, and a new default: real servers, real clients, real stores."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, pack, raw_channel
from tests.engines import key
from tests.graphs import running_sum, write_model
from tests.moves import GRAPHS, Answer, K, answer, check_answers, spread
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import Scrape, address_of, live, park_after, run_server, scrape
from tests.timeouts import eventually
from tidegate.client import Client, ModelMismatch
from tidegate.rpc.predict_blocks import MOVED_AT_ONCE_MAX
from tidegate.runtime import version_watch
from tidegate.runtime.promotion import Promotion, write_promotion
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

Root = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Makes a folder with two versions, the first of them promoted."""

    def make(policy: str = "rewarm", **more: Any) -> Path:
        models = tmp_path / "models"
        for version, graph in GRAPHS.items():
            write_model(models, graph, version=version)
        lines = [f'policy = "{policy}"', f"rewarm_steps = {K}", *(f"{name} = {value}" for name, value in more.items())]
        (models / "toy" / "serving.toml").write_text("\n".join(lines))
        write_promotion(models / "toy", Promotion("1"))
        return models

    return make


async def promote(server: Server, version: str = "2") -> None:
    """Makes a version the default, as another process would, and has the server notice it."""
    write_promotion(server.config.models / "toy", Promotion(version))
    await server.version_watch.look()


def moves(metrics: Scrape, version: str = "2") -> dict[str, float]:
    """The moves to a version, by outcome; those that are not 0."""
    counts = {
        outcome: metrics("tidegate_moves_total", model="toy", version=version, outcome=outcome)
        for outcome in ("rewarmed", "reset", "failed")
    }
    return {outcome: count for outcome, count in counts.items() if count}


@pytest.mark.parametrize("policy", ["pin", "rewarm", "reset"])
@pytest.mark.parametrize("streams", [1, 5])
async def test_a_new_default_appears_while_streams_are_in_use(root: Root, policy: str, streams: int) -> None:
    """No caller gets an error, and every answer has the bits of the version that the client says its stream is on."""
    rows = [sensor_rows(60, seed=seed, missing=0.05) for seed in range(streams)]
    got: list[list[Answer]] = [[] for _ in rows]

    async def run(client: Client, place: int) -> str:
        async with client.open(f"s{place}") as stream:
            for row in rows[place]:
                got[place].append(answer(await stream.step(row), stream.version))
            return stream.moved

    async with run_server(root(policy)) as server, Client(address_of(server)) as client:
        running = [asyncio.create_task(run(client, place)) for place in range(streams)]
        await eventually(lambda: min(map(len, got)) >= 20)
        await promote(server)
        moved = [await task for task in running]
        counted = moves(await scrape(server))
    assert [check_answers(rows[place], got[place], policy) for place in range(streams)] == [""] * streams
    kinds = {"pin": "", "rewarm": "rewarmed", "reset": "reset"}
    assert moved == [kinds[policy]] * streams
    assert counted == ({} if policy == "pin" else {kinds[policy]: streams})
    assert {answers[-1].version for answers in got} == {"1" if policy == "pin" else "2"}


@pytest.mark.parametrize("policy", ["pin", "rewarm", "reset"])
async def test_streams_of_a_block_move_together(root: Root, policy: str) -> None:
    """Between two blocks: in each row the version has answered that the client says."""
    rows = np.stack([sensor_rows(30, seed=seed, missing=0.05) for seed in range(7)])
    got: list[list[Answer]] = [[] for _ in rows]
    async with run_server(root(policy)) as server, Client(address_of(server)) as client:
        async with client.block([f"s{place}" for place in range(7)]) as block:
            for step in range(30):
                if step == 17:
                    await promote(server)
                answers = await block.step(rows[:, step])
                assert not answers.errors
                for place, version in enumerate(block.versions):
                    outputs = {name: column[place] for name, column in answers.items()}
                    got[place].append(Answer(int(answers.steps[place]), outputs, version, duplicate=False))
        assert block.versions == ["1" if policy == "pin" else "2"] * 7
    assert [check_answers(rows[place], got[place], policy) for place in range(7)] == [""] * 7
    assert got[0][17].version == ("1" if policy == "pin" else "2")  # at once, not some time later


@pytest.mark.parametrize("policy", ["rewarm", "reset"])
@pytest.mark.parametrize("state", ["memory:", "sqlite"])
async def test_a_parked_stream_moves_when_it_is_opened(root: Root, tmp_path: Path, policy: str, state: str) -> None:
    """Its number goes on, and a repeat from before the move gets the answer of the old version."""
    rows, got = sensor_rows(30), []
    state = state if state == "memory:" else f"sqlite:///{tmp_path / 'state.db'}"
    async with run_server(root(policy), state=state) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            got += [answer(await stream.step(row), stream.version) for row in rows[:20]]
        await promote(server)
        async with client.open("a") as stream:
            assert (stream.kind, stream.version, stream.next_step) == ("resumed", "2", 21)
            assert stream.moved == {"rewarm": "rewarmed", "reset": "reset"}[policy]
            again = await stream.step(rows[18], step=19)
            assert again.duplicate
            assert same_bits(dict(again), got[18].outputs)
            got += [answer(await stream.step(row), stream.version) for row in rows[20:]]
    assert check_answers(rows, got, policy) == ""


async def test_a_stream_that_was_parked_on_an_open_call_moves_when_it_wakes(root: Root) -> None:
    """Silence parks it; its next timestep comes from the new version."""
    rows, got = sensor_rows(12), []
    models = root("rewarm")
    async with (
        run_server(models, checkpoint_every=0.01) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        got += [answer(await stream.step(row), stream.version) for row in rows[:8]]
        park_after(server, 0)
        await eventually(lambda: not live(server))
        park_after(server, 3600)
        await promote(server)
        got += [answer(await stream.step(row), stream.version) for row in rows[8:]]
        assert (stream.version, stream.moved) == ("2", "rewarmed")
    assert check_answers(rows, got, "rewarm") == ""


async def test_a_stream_moves_back_and_forth(root: Root) -> None:
    """After a rollback too it is replayed, from the timesteps that the other version has got."""
    rows, got = sensor_rows(40), []
    async with run_server(root("rewarm")) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            for place, row in enumerate(rows):
                if place in (10, 20, 30):
                    await promote(server, {10: "2", 20: "1", 30: "2"}[place])
                got.append(answer(await stream.step(row), stream.version))
        assert moves(await scrape(server)) == {"rewarmed": 2}
    assert [got[place].version for place in (0, 10, 20, 30)] == ["1", "2", "1", "2"]
    assert check_answers(rows, got, "rewarm") == ""


async def test_what_follows_a_replay_is_close_to_the_new_version_from_the_start(tmp_path: Path) -> None:
    """An LSTM forgets: with enough timesteps its forecasts differ by less than a thousandth of their spread."""
    models, rows = tmp_path / "models", sensor_rows(260)
    for version, graph in GRAPHS.items():
        write_model(models, graph, version=version)
    (models / "toy" / "serving.toml").write_text('policy = "rewarm"\nrewarm_steps = 128\n')
    write_promotion(models / "toy", Promotion("1"))
    async with run_server(models) as server, Client(address_of(server)) as client, client.open("a") as stream:
        for row in rows[:200]:
            await stream.step(row)
        await promote(server)
        got = [(await stream.step(row))["forecast"] for row in rows[200:]]
    truth = [outputs["forecast"] for outputs in replay(GRAPHS["2"], rows)[200:]]
    assert np.abs(np.array(got) - truth).max() < 1e-3 * spread(GRAPHS["2"], rows)


async def test_a_client_that_knows_no_moves_keeps_its_version(root: Root) -> None:
    """While it has the stream open, and also when it opens it again: it would take another version for a fault."""
    async with run_server(root("reset")) as server, raw_channel(server) as channel:
        call, blocks = RawCall(channel), RawBlocks(channel)
        await call.open("a")
        (handle,) = (await blocks.open("b")).handles
        rows = sensor_rows(4)
        await call.step(*rows[0].tolist(), step=1)
        await blocks.block([handle], rows[:1])
        await promote(server)
        answered = await call.step(*rows[1].tolist(), step=2)
        blocked = await blocks.block([handle], rows[1:2])
        truth = replay(GRAPHS["1"], rows)
        assert answered.prediction.outputs[0] == truth[1]["forecast"].tobytes()
        assert blocked.outputs[0] == truth[1]["forecast"].tobytes()
        again = await RawCall(channel).open("a", version="1", resume_from=2)
        assert again.model.version == "1"
        assert (await RawCall(channel).open("a", resume_from=2)).model.version == "1"
        # A program that opens it for the first time has seen no version.
        fresh = await RawCall(channel).open("a")
        assert (fresh.model.version, fresh.new_state, fresh.next_step) == ("2", pb.NEW_STATE_RESET, 3)
        rows_of_b = await RawBlocks(channel).open("b")
        assert (rows_of_b.model.version, list(rows_of_b.reset_rows), list(rows_of_b.errors)) == ("2", [0], [])


async def test_a_move_is_told_before_the_first_answer_of_the_new_version(root: Root) -> None:
    """On a call of one stream too."""
    async with run_server(root("reset")) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        assert (await call.open("a", accept_move=True)).model.version == "1"
        rows = sensor_rows(2)
        await call.step(*rows[0].tolist())
        await promote(server)
        told = await call.step(*rows[1].tolist())
        assert (told.moved.model.version, told.moved.new_state) == ("2", pb.NEW_STATE_RESET)
        answered = (await call.read()).prediction
        assert (answered.step, answered.outputs[0]) == (2, replay(GRAPHS["2"], rows[1:])[0]["forecast"].tobytes())


async def test_single_calls_move_a_stream_unless_they_name_a_version(root: Root) -> None:
    """`PredictOne` says which version has answered, and how the stream came to it."""
    async with run_server(root("rewarm")) as server, raw_channel(server) as channel:
        stub = pb_grpc.TidegateServiceStub(channel)
        rows = sensor_rows(10)

        async def step(number: int, version: str = "") -> tuple[str, int, bytes]:
            request = pb.PredictOneRequest(
                stream_id="a", step=number, values=pack(*rows[number - 1].tolist()), version=version
            )
            answered = await stub.PredictOne(request)
            return answered.version, answered.new_state, answered.prediction.outputs[0]

        for number in range(1, 9):
            assert (await step(number))[:2] == ("1", pb.NEW_STATE_UNSPECIFIED)
        await promote(server)
        assert (await step(9, "1"))[:2] == ("1", pb.NEW_STATE_UNSPECIFIED)
        truth = replay(GRAPHS["2"], rows[9 - K :])[K]["forecast"].tobytes()
        assert await step(10) == ("2", pb.NEW_STATE_REWARMED, truth)


async def test_a_version_that_is_named_is_kept(root: Root) -> None:
    """Whoever asks for a version gets it or an error, whatever the default is."""
    async with run_server(root("reset")) as server, Client(address_of(server)) as client:
        async with client.open("a", version="1") as stream:
            await stream.step(sensor_rows(1)[0])
            await promote(server)
            await stream.step(sensor_rows(1)[0])
            assert (stream.version, stream.moved) == ("1", "")
        async with client.open("new") as stream:
            assert stream.version == "2"
        with pytest.raises(ModelMismatch):
            async with client.open("new", version="1"):
                pass


async def test_streams_that_find_no_room_stay_and_move_later(root: Root) -> None:
    """A block then has streams of both versions, and each row is answered by its own."""
    rows = np.stack([sensor_rows(16, seed=seed) for seed in range(4)])
    got: list[list[Answer]] = [[] for _ in rows]
    async with run_server(root("reset"), live_max=4) as server, Client(address_of(server)) as client:
        pinned = [client.open(f"full{number}", version="2") for number in range(2)]
        held = [await opening.__aenter__() for opening in pinned]
        async with client.block([f"s{place}" for place in range(4)]) as block:
            for step in range(16):
                if step == 4:
                    await promote(server)
                if step == 10:
                    for stream in held:
                        await stream.close()
                    await eventually(lambda: not server.repository.find("toy", "2").slots.full)
                    server.stream_service.mover._paused_until = 0.0
                answers = await block.step(rows[:, step])
                assert not answers.errors
                for place, version in enumerate(block.versions):
                    outputs = {name: column[place] for name, column in answers.items()}
                    got[place].append(Answer(int(answers.steps[place]), outputs, version, duplicate=False))
                if step == 5:
                    assert sorted(block.versions) == ["1", "1", "2", "2"]
            assert block.versions == ["2"] * 4
    assert [check_answers(rows[place], got[place], "reset") for place in range(4)] == [""] * 4


async def test_a_block_moves_only_some_of_its_streams_at_once(root: Root) -> None:
    """It waits for these only; the others are answered by their old version, and move before the next block."""
    count = MOVED_AT_ONCE_MAX + 9
    models = root("rewarm")
    async with (
        run_server(models, live_max=64) as server,
        Client(address_of(server)) as client,
        client.block(count) as block,
    ):
        x = np.stack([sensor_rows(1)[0]] * count)
        await block.step(x)
        await promote(server)
        assert not (await block.step(x)).errors
        assert block.versions.count("2") == MOVED_AT_ONCE_MAX
        assert not (await block.step(x)).errors
        assert block.versions.count("2") == count
        assert set(block.moved) == {"rewarmed"}


async def test_versions_with_other_outputs_keep_their_streams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The remembered answers would not fit. The log says what differs."""
    write_model(tmp_path, GRAPHS["1"], version="1")
    write_model(tmp_path, running_sum(), version="2")
    (tmp_path / "toy" / "serving.toml").write_text('policy = "reset"')
    write_promotion(tmp_path / "toy", Promotion("1"))
    async with run_server(tmp_path) as server, Client(address_of(server)) as client, client.open("a") as stream:
        await stream.step(sensor_rows(1)[0])
        await promote(server)
        await stream.step(sensor_rows(1)[0])
        assert stream.version == "1"
    assert "streams stay on toy/1: features: toy/1 has s0 [V]" in caplog.text


async def test_the_move_is_stored_before_the_first_answer_of_the_new_version(root: Root) -> None:
    """At once, and not at the next checkpoint. The state in the store says which version made it, and is that of its step."""
    models = root("rewarm")
    async with (
        run_server(models, checkpoint_every=3600) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        for row in sensor_rows(10):
            await stream.step(row)
        await promote(server)
        epoch = stream.epoch
        prediction = await stream.step(sensor_rows(1)[0])
        assert (stream.version, prediction.durable_step) == ("2", 10)
        record = await server.stream_service._store.load(key("a"))
        assert record is not None
        assert record.checkpoint is not None
        assert (record.checkpoint.step, record.model.version, record.metadata.model.version) == (10, "2", "2")
        assert record.metadata.epoch == epoch + 1


async def test_a_ring_that_is_new_is_filled_before_its_stream_moves(root: Root, tmp_path: Path) -> None:
    """A stream from before the policy has no timesteps to replay, and must not lose its state for that."""
    rows, got = sensor_rows(30), []
    state, models = f"sqlite:///{tmp_path / 'state.db'}", root("pin")
    async with (
        run_server(models, state=state) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        got += [answer(await stream.step(row), stream.version) for row in rows[:10]]
    (models / "toy" / "serving.toml").write_text(f'policy = "rewarm"\nrewarm_steps = {K}\n')
    write_promotion(models / "toy", Promotion("2"))
    async with run_server(models, state=state) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            got += [answer(await stream.step(row), stream.version) for row in rows[10:]]
        assert moves(await scrape(server)) == {"rewarmed": 1}
    assert [got[place].version for place in (9, 10 + K - 1, 10 + K)] == ["1", "1", "2"]
    assert check_answers(rows, got, "rewarm") == ""


async def test_a_server_that_has_not_noticed_yet_moves_no_stream_back(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers share folder and store, and one of them promotes."""
    monkeypatch.setattr(version_watch, "POLL_SECONDS", 3600)
    models, state = root("reset"), f"sqlite:///{tmp_path / 'state.db'}"
    async with run_server(models, state=state) as server, run_server(models, state=state) as other:
        async with Client(address_of(server)) as client, client.open("a") as stream:
            await stream.step(sensor_rows(1)[0])
            await client.promote("toy", "2")
            await stream.step(sensor_rows(1)[0])
            assert stream.version == "2"
        async with Client(address_of(other)) as client, client.open("a") as stream:
            assert (stream.version, stream.moved, stream.next_step) == ("2", "", 3)
        assert moves(await scrape(other), "1") == {}


@pytest.mark.parametrize("policy", ["pin", "rewarm", "reset"])
async def test_a_version_that_appears_while_streams_are_in_use(tmp_path: Path, policy: str) -> None:
    """It is loaded, becomes the default, and streams move there; when it is taken away, they move back."""
    models, rows, got = write_model(tmp_path / "models", GRAPHS["1"]), sensor_rows(40), []
    (models / "toy" / "serving.toml").write_text(f'policy = "{policy}"\nrewarm_steps = {K}\n')
    write_model(tmp_path / "new", GRAPHS["2"], version="2")
    async with run_server(models) as server, Client(address_of(server)) as client, client.open("a") as stream:
        for place, row in enumerate(rows):
            if place == 15:
                (tmp_path / "new" / "toy" / "2").rename(models / "toy" / "2")
                assert [change.outcome for change in await client.change_models("load", "toy", "2")] == ["loaded"]
                await server.version_watch.look()
            if place == 30:
                await client.change_models("unload", "toy", "2")
                await server.version_watch.look()
            got.append(answer(await stream.step(row), stream.version))
    assert [got[place].version for place in (14, 15, 30)] == ["1", *(["1", "1"] if policy == "pin" else ["2", "1"])]
    assert check_answers(rows, got, policy) == ""
