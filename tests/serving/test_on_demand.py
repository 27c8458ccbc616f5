"""Old versions are loaded when somebody asks for them: a real server, in this process or with workers."""

import asyncio
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.calls import raw_channel
from tests.graphs import running_sum, write_model
from tests.kserve.calls import ask, infer
from tests.servers import Scrape, address_of, run_command, run_server, serve
from tests.serving.test_live_models import changes, put, served
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ModelNotFound
from tidegate.runtime import model_host
from tidegate.runtime.current_versions import current_versions
from tidegate.runtime.model_files import scan
from tidegate.runtime.promotion import Promotion, write_promotion

STREAMS = 20


@pytest.fixture
def three(sum_root: Path) -> Path:
    """A folder with three versions of a model."""
    for version in ("2", "10"):
        put(sum_root, running_sum(task=version), version)
    return sum_root


@pytest.mark.parametrize(
    ("promoted", "settings", "named", "current"),
    [
        ("", "", (), {"10"}),
        ("1", "", (), {"10", "1"}),
        ("7", "", (), {"10"}),
        ("", "[shadow]\nshare = 0.1", (), {"10", "2"}),
        ("", '[shadow]\nshare = 0.1\nversion = "1"', (), {"10", "1"}),
        ("", '[shadow]\nversion = "1"', (), {"10"}),
        ("2", "[shadow]\nshare = 0.1", (), {"10", "2"}),
        ("", "", ("toy/1", "toy/2"), {"10", "1", "2"}),
        ("", "share = ", (), {"10"}),
    ],
)
def test_current_versions(three: Path, promoted: str, settings: str, named: tuple[str, ...], current: set[str]) -> None:
    """The newest by its number, the promoted one, the shadow, and what an operator names."""
    if promoted:
        write_promotion(three / "toy", Promotion(promoted))
    if settings:
        (three / "toy" / "serving.toml").write_text(settings)
    assert current_versions(three, named, scan(three)) == {f"toy/{version}" for version in current}


async def test_a_stream_of_an_old_version_goes_on_after_a_restart(three: Path, tmp_path: Path) -> None:
    """Its version is not loaded when the server is ready, and is when the stream is opened."""
    state = f"sqlite:///{tmp_path / 'state.db'}"
    async with (
        run_server(three, state=state) as server,
        Client(address_of(server)) as client,
        client.open("old", version="2") as stream,
    ):
        await stream.step([1.0])
    async with run_server(three, state=state) as server, Client(address_of(server)) as client:
        assert server.titles == ["toy/10"]
        async with client.open("old") as stream:
            assert (await stream.step([2.0]))["sum"] == 3
            assert stream.version == "2"
        assert server.titles == ["toy/10", "toy/2"]


def test_every_worker_loads_a_version_that_one_was_asked_for(three: Path, tmp_path: Path) -> None:
    """Once, for all streams that come at the same time."""

    async def step_all(address: str, value: float, version: str) -> list[float]:
        async def step(client: Client, number: int) -> float:
            async with client.open(f"s{number}", version=version) as stream:
                return float((await stream.step([value]))["sum"][0])

        async with Client(address, calls=4) as client:
            return await asyncio.gather(*(step(client, number) for number in range(STREAMS)))

    options = ("--workers", "2", "--state", f"sqlite:///{tmp_path / 'state.db'}")
    with serve(three, *options) as process:
        assert asyncio.run(step_all(process.address, 1.0, "2")) == [1.0] * STREAMS
    with serve(three, *options) as process:
        assert asyncio.run(step_all(process.address, 2.0, "")) == [3.0] * STREAMS
        metrics = process.ready_line.split("metrics=")[1].split()[0]
        with urlopen(metrics, timeout=TIMEOUT_S) as response:
            seen = Scrape(response.read().decode())
        assert {version: seen("tidegate_model_loads_total", version=version) for version in ("2", "10")} == {
            "2": 1, "10": 1,
        }  # fmt: skip


async def test_an_open_waits_while_its_version_is_loaded(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one does not load it again, and streams of other versions wait for neither."""
    going_on, load = threading.Event(), model_host.load_model
    loading: list[str] = []

    def load_slowly(name: str, version: str, *arguments: Any) -> Any:
        if version == "1":
            loading.append(version)
            going_on.wait(TIMEOUT_S)
        return load(name, version, *arguments)

    monkeypatch.setattr(model_host, "load_model", load_slowly)
    async with served(three) as (server, client), Client(address_of(server)) as other:

        async def sum_of(stream_id: str) -> float:
            async with client.open(stream_id, version="1") as stream:
                return float((await stream.step([1.0]))["sum"][0])

        waiting = [asyncio.create_task(sum_of(name)) for name in "ab"]
        await eventually(lambda: bool(loading), "the load")
        async with other.open("new") as stream:
            assert (await stream.step([5.0]))["sum"] == 5
        assert not any(task.done() for task in waiting)
        going_on.set()
        assert await asyncio.gather(*waiting) == [1.0, 1.0]
        assert loading == ["1"]


async def test_a_caller_that_goes_does_not_stop_a_load(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes must get the same."""
    going_on, load = threading.Event(), model_host.load_model
    loading = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load_slowly(name: str, version: str, *arguments: Any) -> Any:
        if version == "1":
            loop.call_soon_threadsafe(loading.set)
            going_on.wait(TIMEOUT_S)
        return load(name, version, *arguments)

    monkeypatch.setattr(model_host, "load_model", load_slowly)
    async with served(three) as (server, _):
        asking = asyncio.create_task(server.admin_service.model("toy", "1"))
        await loading.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        going_on.set()
        await eventually(lambda: "toy/1" in server.titles, "the load")


async def test_an_old_version_that_is_broken_is_found_when_it_is_asked_for(
    sum_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server starts. Whoever asks is refused, the log says why, and it is not tried again until it changes."""
    put(sum_root, running_sum(task="two"), "2")
    (sum_root / "toy" / "1" / "model.onnx").write_bytes(b"nonsense")
    async with served(sum_root) as (server, client):
        for _ in range(2):
            with pytest.raises(ModelNotFound, match="toy/1"):
                await client.open("old", version="1").__aenter__()
        assert caplog.text.count("model toy/1 is refused") == 1
        assert server.titles == ["toy/2"]
        put(sum_root / "mended", running_sum(), "1")
        (sum_root / "mended" / "toy" / "1" / "model.onnx").replace(sum_root / "toy" / "1" / "model.onnx")
        await changes(client, "reload")
        async with client.open("old", version="1") as stream:
            assert (await stream.step([1.0]))["sum"] == 1


async def test_an_old_version_that_was_removed_is_not_found(three: Path) -> None:
    """Nobody has looked at the folder since. Other streams go on."""
    async with served(three) as (_, client), client.open("new") as stream:
        assert (await stream.step([1.0]))["sum"] == 1
        shutil.rmtree(three / "toy" / "1")
        with pytest.raises(ModelNotFound, match="toy/1"):
            await client.open("old", version="1").__aenter__()
        assert (await stream.step([1.0]))["sum"] == 2


def test_a_check_tries_old_versions_too(sum_root: Path) -> None:
    """Whoever checks before a start wants to know all that is wrong."""
    put(sum_root, running_sum(), "2")
    (sum_root / "toy" / "1" / "model.onnx").write_bytes(b"nonsense")
    ended = run_command("serve", "--models", str(sum_root), "--check")
    assert ended.returncode != 0
    assert "toy/1: onnxruntime cannot load" in ended.stderr


@pytest.mark.parametrize("how", ["removed", "unloaded"])
async def test_the_version_before_takes_the_place_of_the_newest(three: Path, how: str) -> None:
    """It is loaded before the newest retires, so that there is a default version at any time."""
    async with served(three) as (server, client):
        if how == "removed":
            (three / "toy" / "10").rename(three / "toy" / ".10")
            assert await changes(client, "reload") == [("toy/2", "loaded"), ("toy/10", "unloading")]
        else:
            assert await changes(client, "unload", "toy", "10") == [("toy/10", "unloading")]
        default = server.repository.default("toy")
        assert default is not None
        assert default.spec.title == "toy/2"
        async with client.open() as stream:
            assert stream.version == "2"


async def test_an_operator_keeps_a_version_from_being_loaded(three: Path) -> None:
    """No stream gets it until it is loaded by a call."""
    async with served(three) as (_, client):
        assert await changes(client, "unload", "toy", "1") == [("toy/1", "unloading")]
        for _ in range(2):
            with pytest.raises(ModelNotFound, match="toy/1"):
                await client.open("old", version="1").__aenter__()
            await changes(client, "reload")
        assert await changes(client, "load", "toy", "1") == [("toy/1", "loaded")]
        await (client.open("old", version="1")).__aenter__()


@pytest.mark.parametrize("how", ["promoted", "shadow"])
async def test_a_version_that_a_file_chooses_is_loaded(three: Path, how: str) -> None:
    """Another program, or a server that shares the folder, writes the file. Nobody looks for new versions meanwhile."""
    async with served(three) as (server, _):
        if how == "promoted":
            write_promotion(three / "toy", Promotion("1"))
        else:
            (three / "toy" / "serving.toml").write_text('[shadow]\nshare = 0.1\nversion = "1"')
        await eventually(lambda: "toy/1" in server.titles, "the load")


async def test_a_version_that_was_not_chosen_is_not_loaded(three: Path) -> None:
    """`--load` says what streams may get."""
    async with served(three, load=("toy/10", "toy/2")) as (server, client):
        assert server.titles == ["toy/10", "toy/2"]
        with pytest.raises(ModelNotFound, match="toy/1"):
            await client.open("old", version="1").__aenter__()


async def test_a_new_old_version_waits(three: Path) -> None:
    """A version that appears with a smaller number than the newest is not loaded, and can be asked for."""
    async with served(three) as (server, client):
        put(three, running_sum(task="nine"), "9")
        assert await changes(client, "reload") == []
        assert server.titles == ["toy/10"]
        async with client.open(version="9") as stream:
            assert stream.model.task == "nine"


async def test_versions_stay_on_demand_while_the_folder_is_looked_at(three: Path) -> None:
    """A look does not forget those that it sees for the first time."""
    async with run_server(three, models_poll=0.05) as server, Client(address_of(server)) as client:
        looks = asyncio.Event()
        catalog: Any = server.control
        look = catalog._look

        async def watched(**how: Any) -> Any:
            found = await look(**how)
            looks.set()
            return found

        catalog._look = watched
        await looks.wait()
        async with client.open(version="1") as stream:
            assert (await stream.step([1.0]))["sum"] == 1


async def test_an_exported_stream_of_an_old_version_is_imported(three: Path, tmp_path: Path) -> None:
    """Its version is loaded for it."""
    async with served(three) as (_, client):
        async with client.open("old", version="1") as stream:
            await stream.step([1.0])
        record = await client.export_stream("old")
    async with served(three, data_dir=tmp_path / "other") as (_, client):
        await client.import_stream(record)
        async with client.open("old") as stream:
            assert (await stream.step([2.0]))["sum"] == 3


async def test_what_is_on_demand_is_listed(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the streams on it, also over the KServe protocol, and in the log of the start."""
    caplog.set_level(logging.INFO)
    state = three / "state.db"
    async with (
        run_server(three, state=f"sqlite:///{state}") as server,
        Client(address_of(server)) as client,
        client.open("old", version="2") as stream,
    ):
        await stream.step([1.0])
    caplog.clear()
    async with run_server(three, state=f"sqlite:///{state}") as server, Client(address_of(server)) as client:
        assert "older versions are loaded when somebody asks for them: toy/1, toy/2" in caplog.text
        found = await client.versions()
        assert [(each.version, each.on_demand, each.parked_streams) for each in found] == [
            ("10", False, 0), ("2", True, 1), ("1", True, 0),
        ]  # fmt: skip
        assert [model.version for model in await client.models()] == ["10"]
        async with raw_channel(server) as channel:
            index = (await ask(channel, "RepositoryIndex")).models
            assert {(model.version, model.state) for model in index} == {
                ("10", "READY"), ("2", "UNAVAILABLE"), ("1", "UNAVAILABLE"),
            }  # fmt: skip
            assert [*(await ask(channel, "ModelMetadata", name="toy")).versions] == ["1", "2", "10"]
            assert (await infer(channel, 7, 1.0, start=True, version="1")).model_version == "1"
            assert len((await ask(channel, "ModelStatistics", name="toy")).model_stats) == 2


def test_the_command_lists_what_is_on_demand(three: Path) -> None:
    """In the table, and as JSON without what is known only of loaded versions."""
    with serve(three) as process:
        rows = [line.split() for line in run_command("models", "--address", process.address).stdout.splitlines()]
        assert ["toy", "2", "on", "demand", "0", "live,", "0", "parked", "pin"] in rows
        listed = json.loads(run_command("models", "--json", "--address", process.address).stdout)
        assert [(each["version"], each["on_demand"], "features" in each) for each in listed] == [
            ("10", False, True), ("2", True, False), ("1", True, False),
        ]  # fmt: skip


async def test_memory_is_taken_for_versions_in_use_only(tmp_path: Path) -> None:
    """Thirty old versions of a model cost a start nothing but a look at them."""
    for version in range(1, 31):
        write_model(tmp_path, running_sum(), version=str(version))
    async with run_server(tmp_path) as server:
        assert [served.spec.title for served in server.repository] == ["toy/30"]
