"""Models that come and go while a server serves: a real server, in this process."""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import endless, lstm, running_sum, write_model
from tests.servers import address_of, run_command, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ModelNotFound
from tidegate.core.block import Block
from tidegate.core.engine import RowStatus
from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import Key
from tidegate.core.streams import OpenOptions
from tidegate.runtime import model_catalog, model_host
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.model_files import VersionFiles
from tidegate.runtime.repository import ModelPhase, ServedModel
from tidegate.runtime.server import Server


def put(root: Path, graph: bytes, version: str, name: str = "toy") -> None:
    """Writes a version as one should: under another name, then renamed."""
    write_model(root / ".new", graph, name=name, version=version)
    (root / name).mkdir(exist_ok=True)
    (root / ".new" / name / version).rename(root / name / version)
    shutil.rmtree(root / ".new")


@asynccontextmanager
async def served(root: Path, **settings: Any) -> AsyncIterator[tuple[Server, Client]]:
    """A server that looks at its models only when it is told, and a client."""
    settings = {"models_poll": 0, **settings}
    async with run_server(root, **settings) as server, Client(address_of(server)) as client:
        async with asyncio.timeout(TIMEOUT_S):
            yield server, client


async def changes(client: Client, action: str, *which: str) -> list[tuple[str, str]]:
    """What has become of each version."""
    return [(f"{each.name}/{each.version}", each.outcome) for each in await client.change_models(action, *which)]


async def loaded(server: Server, version: str) -> ServedModel:
    """A version, which is loaded when it was not asked for before."""
    await server.admin_service.model("toy", version)
    return server.repository.find("toy", version)


@pytest.mark.skipif(usable_cores() < 2, reason="as many at a time as there are cores")
async def test_models_are_loaded_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each load waits here for another one. Whichever ends first, the models are in the order of their folders."""
    for name in "abcd":
        write_model(tmp_path, running_sum(), name)
    both, load = threading.Barrier(2, timeout=TIMEOUT_S), model_host.load_model

    def load_with_another(name: str, *arguments: Any) -> Any:
        both.wait()
        if name in "ac":
            both.wait()  # after the other one
            return load(name, *arguments)
        try:
            return load(name, *arguments)
        finally:
            both.wait()

    monkeypatch.setattr(model_host, "load_model", load_with_another)
    async with run_server(tmp_path) as server:
        assert [each.spec.name for each in server.repository] == [*"abcd"]


async def test_a_new_version_is_served_to_new_streams(sum_root: Path) -> None:
    """Streams that have begun go on under theirs, also when they are opened again."""
    async with served(sum_root) as (server, client):
        async with client.open("old") as old:
            assert (await old.step([1.0]))["sum"] == 1
            put(sum_root, lstm(), "2")
            assert await changes(client, "reload") == [("toy/2", "loaded")]
            assert (await old.step([2.0]))["sum"] == 3
            async with client.open("new") as new:
                assert "forecast" in await new.step([0.0] * 8)
        async with client.open("old") as again:
            assert (await again.step([3.0]))["sum"] == 6
        assert server.titles == ["toy/2", "toy/1"]
        assert (await scrape(server))("tidegate_model_loads_total", version="2", outcome="loaded") == 1


async def test_a_new_version_under_load_harms_no_client(sum_root: Path) -> None:
    """Streams begin, step and end all the time. Each gets its own sums, under one version or the other."""
    async with served(sum_root) as (server, client):
        under: set[str] = set()
        stop = asyncio.Event()

        async def use(number: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                async with client.open(f"s{number}-{turn}") as stream:
                    for step in range(1, 6):
                        assert (await stream.step([1.0]))["sum"] == step
                    under.add(stream.model.version)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(use(number))
            for version in ("2", "3"):
                put(sum_root, running_sum(task=version), version)
                assert await changes(client, "reload") == [(f"toy/{version}", "loaded")]
                await eventually(lambda version=version: version in under, f"a stream under {version}")
            stop.set()
        assert {"1", "2", "3"} <= under
        assert (await scrape(server))("tidegate_state_lost_total") == 0


async def test_a_bad_version_changes_nothing_but_a_count_and_a_line(
    sum_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The old one goes on. It is not tried again until it changes."""
    async with served(sum_root) as (server, client), client.open("old") as old:
        put(sum_root, b"nonsense", "2")
        (change,) = await client.change_models("reload")
        assert change.outcome == "refused"
        assert "onnxruntime cannot load the graph" in change.reason
        assert server.titles == ["toy/1"]
        assert (await old.step([2.0]))["sum"] == 2
        async with client.open("new") as new:
            assert (await new.step([3.0]))["sum"] == 3
        seen = await scrape(server)
        assert seen("tidegate_model_loads_total", version="2", outcome="refused") == 1
        assert not [1 for labels in seen._samples if dict(labels[1]).get("version") == "2" and "steps" in labels[0]]
        (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert line.startswith("model toy/2 is refused, and what is served stays: toy/2: onnxruntime cannot load")
        await server.control._look(settled_only=False)  # type: ignore[attr-defined] # as a look at intervals does
        assert (await scrape(server))("tidegate_model_loads_total", version="2", outcome="refused") == 1


async def test_an_endless_version_is_refused(sum_root: Path) -> None:
    """Meanwhile the server serves."""
    async with served(sum_root, step_timeout=0.5) as (server, client), client.open("old") as old:
        put(sum_root, endless(), "2")
        reloading = asyncio.create_task(client.change_models("reload"))
        total = 0
        while not reloading.done():
            total += 1
            assert (await old.step([1.0]))["sum"] == total
        (change,) = await reloading
        assert "within 0.5 s" in change.reason
        assert server.titles == ["toy/1"]


async def test_a_version_is_found_at_intervals(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And unloaded when it is gone."""
    monkeypatch.setattr(model_catalog, "UNLOAD_SECONDS", 0.02)
    monkeypatch.setattr(model_catalog, "SETTLE_SECONDS", 0.05)
    async with served(sum_root, models_poll=0.02) as (server, _):
        put(sum_root, running_sum(), "2")
        await eventually(lambda: server.titles == ["toy/2", "toy/1"], "the new version")
        shutil.rmtree(sum_root / "toy" / "2")
        await eventually(lambda: server.titles == ["toy/1"], "its end")


async def test_files_that_still_change_are_waited_for(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is copied to its place piece by piece is loaded once, when it is whole."""
    monkeypatch.setattr(model_catalog, "UNLOAD_SECONDS", 0.02)
    monkeypatch.setattr(model_catalog, "SETTLE_SECONDS", 0.5)
    async with served(sum_root, models_poll=0.02) as (server, _):
        folder = sum_root / "toy" / "2"
        folder.mkdir()
        graph = running_sum()
        with (folder / "model.onnx").open("wb", buffering=0) as file:
            for place in range(0, len(graph), len(graph) // 10):
                file.write(graph[place : place + len(graph) // 10])
                await asyncio.sleep(0.1)
        await eventually(lambda: server.titles == ["toy/2", "toy/1"], "the new version")
        seen = await scrape(server)
        assert not [
            1 for labels in seen._samples if dict(labels[1]).get("outcome") == "refused" and "loads" in labels[0]
        ]


async def test_an_empty_folder_unloads_nothing(sum_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is more likely that a disk is missing."""
    async with served(sum_root) as (server, client):
        (sum_root / "toy").rename(sum_root / ".toy")
        assert await changes(client, "reload") == []
        assert server.titles == ["toy/1"]
        assert "those that are loaded stay" in caplog.text


async def test_a_version_that_is_removed_waits_for_its_streams(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins none. Its streams go on, and may be opened again. With the last one its memory and its series go."""
    scan = model_catalog.scan

    def slow_scan(root: Path) -> list[VersionFiles]:
        """A slow disk: whoever sees that the version has gone must not still find its series."""
        time.sleep(0.3)
        return scan(root)

    monkeypatch.setattr(model_catalog, "scan", slow_scan)
    put(sum_root, running_sum(task="two"), "2")
    async with served(sum_root) as (server, client):
        old = await loaded(server, "1")
        async with client.open("old", version="1") as stream:
            await stream.step([1.0])
            shutil.rmtree(sum_root / "toy" / "1")
            assert await changes(client, "reload") == [("toy/1", "unloading")]
            with pytest.raises(ModelNotFound):
                await client.open("other", version="1").__aenter__()
            assert (await stream.step([2.0]))["sum"] == 3
            await asyncio.sleep(3 * model_catalog.UNLOAD_SECONDS)
            assert old.phase is ModelPhase.RETIRING
        await eventually(lambda: old not in list(server.repository), "the end of the version")
        assert old.slots.state == ()
        seen = await scrape(server)
        assert {dict(labels)["version"] for _, labels in seen._samples if "model" in dict(labels)} == {"2"}
        assert not [task for task in asyncio.all_tasks() if "toy/1" in task.get_name()]
        with pytest.raises(ModelNotFound):  # it rests in the store, for a server that has its version
            await client.open("old").__aenter__()
        put(sum_root, running_sum(), "1")
        assert await changes(client, "load", "toy", "1") == [("toy/1", "loaded")]
        async with client.open("old") as again:
            assert (await again.step([3.0]))["sum"] == 6


async def test_a_retiring_version_may_come_back(sum_root: Path) -> None:
    """Nothing is loaded again."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root) as (server, client):
        old = await loaded(server, "1")
        async with client.open("old", version="1") as stream:
            await stream.step([1.0])
            assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
            assert await changes(client, "load", "toy", "1") == [("toy/1", "loaded")]
            assert server.repository.find("toy", "1") is old
            assert old.phase is ModelPhase.SERVING


async def test_a_version_unloaded_by_a_call_stays_out(sum_root: Path) -> None:
    """A look at the folder does not load it; a call does."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root) as (server, client):
        assert await changes(client, "unload", "toy", "2") == [("toy/2", "unloading")]
        await eventually(lambda: server.titles == ["toy/1"], "its end")
        assert await changes(client, "reload") == []
        assert await changes(client, "load", "toy") == [("toy/1", "loaded"), ("toy/2", "loaded")]
        assert server.titles == ["toy/2", "toy/1"]


async def test_the_last_version_is_not_unloaded(sum_root: Path) -> None:
    """A server without a model is of no use."""
    async with served(sum_root) as (server, client):
        (change,) = await client.change_models("unload", "toy")
        assert (change.outcome, server.titles) == ("refused", ["toy/1"])
        with pytest.raises(ModelNotFound):
            await client.change_models("unload", "pond")
        with pytest.raises(ModelNotFound):
            await client.change_models("load", "toy", "7")


async def test_files_of_a_loaded_version_that_change_are_told(sum_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and what is loaded stays."""
    async with served(sum_root) as (server, client), client.open("old") as old:
        before = server.repository.find("toy", "1").spec.fingerprint
        (sum_root / "toy" / "1" / "model.onnx").write_bytes(lstm())
        assert await changes(client, "reload") == []
        assert await changes(client, "reload") == []
        assert caplog.text.count("its files were changed and the loaded ones stay") == 1
        assert await changes(client, "load", "toy", "1") == [("toy/1", "refused")]
        assert server.repository.find("toy", "1").spec.fingerprint == before
        assert (await old.step([2.0]))["sum"] == 2


async def test_only_what_was_chosen_is_served(sum_root: Path) -> None:
    """Names and versions, until a call asks for more."""
    put(sum_root, running_sum(), "2")
    put(sum_root, lstm(), "1", name="pond")
    async with served(sum_root, load=("toy/1",)) as (server, client):
        assert server.titles == ["toy/1"]
        assert await changes(client, "reload") == []
        assert await changes(client, "load", "pond") == [("pond/1", "loaded")]
        assert server.titles == ["pond/1", "toy/1"]


async def test_a_block_of_an_unloaded_model_is_refused_row_by_row(sum_root: Path) -> None:
    """A gateway may send rows of a stream that it holds no more. Its call goes on."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root) as (server, client):
        old, service, table = await loaded(server, "1"), server.stream_service, HandleTable()
        lease = (await service.open(Key("default", "gone"), "toy", "1", OpenOptions())).lease
        selection = table.select(np.array([table.add(lease)]))
        await service.delete(lease)
        assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
        await eventually(lambda: old not in list(server.repository), "the end of the version")
        block = Block(selection, np.array([1]), np.ones((1, 1), np.float32))
        assert (await service.submit_block(block)).statuses.tolist() == [RowStatus.NOT_HELD]
        service.observe_block(block, 0.001)


async def test_a_parked_stream_that_a_call_has_open_keeps_its_version(sum_root: Path) -> None:
    """It is in no slot, and the next timestep wakes it."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root, park_after=0.05) as (server, client):
        old = await loaded(server, "1")
        async with client.open("old", version="1") as stream:
            await stream.step([1.0])
            await eventually(lambda: not len(old.slots), "the parking")
            assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
            await asyncio.sleep(3 * model_catalog.UNLOAD_SECONDS)
            assert (await stream.step([2.0]))["sum"] == 3


async def test_a_stream_that_is_opened_keeps_its_version_in_memory(sum_root: Path) -> None:
    """Between the choice of the version and the slot there are waits for the store."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root) as (server, client):
        old = await loaded(server, "1")
        with old.held():
            assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
            await asyncio.sleep(3 * model_catalog.UNLOAD_SECONDS)
            assert old in list(server.repository)
        await eventually(lambda: old not in list(server.repository), "the end of the version")


async def test_idle_streams_of_single_calls_keep_no_version(sum_root: Path) -> None:
    """They are stored, and leave."""
    put(sum_root, running_sum(), "2")
    async with served(sum_root, park_after=1000.0) as (server, client):
        await client.predict_one("one", [1.0], version="1", step=1)
        old = await loaded(server, "1")
        assert len(old.slots) == 1
        assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
        await eventually(lambda: old not in list(server.repository), "the end of the version")


async def test_the_command_says_what_has_become_of_each_version(sum_root: Path) -> None:
    """One line each; exit code 1 when one is refused, 2 when there is none."""
    async with served(sum_root) as (server, _):

        async def command(*arguments: str) -> tuple[int, str, str]:
            ended = await asyncio.to_thread(run_command, "models", *arguments, "--address", address_of(server))
            return ended.returncode, ended.stdout, ended.stderr

        assert await command("reload") == (0, "nothing has changed\n", "")
        put(sum_root, running_sum(), "2")
        assert await command("reload") == (0, "loaded toy/2\n", "")
        assert await command("unload", "toy/2") == (0, "unloading toy/2\n", "")
        put(sum_root, b"nonsense", "3")
        code, out, _ = await command("load", "toy/3")
        assert (code, out.startswith("refused toy/3: toy/3: onnxruntime cannot load")) == (1, True)
        code, _, err = await command("load", "pond")
        assert (code, err.count("\n")) == (2, 1)
