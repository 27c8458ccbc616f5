"""Which version is the default: promoted, rolled back, listed, and followed."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.graphs import write_model
from tests.moves import GRAPHS
from tests.oracle import sensor_rows
from tests.servers import address_of, run_command, run_server, serve
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ModelNotFound, StreamRefused
from tidegate.core.errors import ContractBroken
from tidegate.runtime.model_settings import ModelSettings, read_settings
from tidegate.runtime.promotion import BEFORE_MAX, Promotion, read_promotion, write_promotion
from tidegate.runtime.server import Server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three versions of one model; the newest is the default."""
    for version, graph in {**GRAPHS, "3": GRAPHS["1"]}.items():
        write_model(tmp_path / "models", graph, version=version)
    return tmp_path / "models"


async def version_of_a_new_stream(client: Client) -> str:
    """What a client gets that names no version."""
    async with client.open() as stream:
        return stream.version


def default(server: Server) -> str:
    """The default version as a server has it now."""
    found = server.repository.default("toy")
    return "" if found is None else found.spec.version


async def test_promote_and_rollback(root: Path) -> None:
    """New streams follow at once. A rollback undoes the last promotion, then goes on to older versions."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        assert await version_of_a_new_stream(client) == "3"
        change = await client.promote("toy", "1")
        assert (change.version, change.previous_version) == ("1", "3")
        assert await version_of_a_new_stream(client) == "1"
        assert (await client.promote("", "2")).previous_version == "1"
        assert (await client.rollback("toy")).version == "1"
        assert (await client.rollback("toy")).version == "3"
        assert (await client.rollback("toy")).version == "2"  # nothing is left to undo: the version before
        assert await version_of_a_new_stream(client) == "2"
        assert (await client.promote("toy", "")).version == "3"
        assert read_promotion(root / "toy").version == ""


async def test_what_cannot_be_promoted_changes_nothing(root: Path) -> None:
    """A version that is not served, a model that is not, and a rollback from the oldest version."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        with pytest.raises(ModelNotFound, match="toy/9"):
            await client.promote("toy", "9")
        with pytest.raises(ModelNotFound):
            await client.promote("other", "1")
        assert not (root / "toy" / "promoted.json").exists()
        write_promotion(root / "toy", Promotion("1"))
        await eventually(lambda: default(server) == "1", "following")
        with pytest.raises(ModelNotFound, match="before 1"):
            await client.rollback("toy")


async def test_a_folder_that_cannot_be_written_is_told(root: Path) -> None:
    """With the folder and the reason; the default stays."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        write_promotion(root / "toy", Promotion("1"))
        await eventually(lambda: default(server) == "1", "following")
        await server.admin_service.model("toy", "2")
        (root / "toy").rename(root / "away")
        try:
            with pytest.raises(StreamRefused, match="cannot be written: No such file or directory"):
                await client.promote("toy", "2")
        finally:
            (root / "away").rename(root / "toy")
        assert await version_of_a_new_stream(client) == "1"


async def test_another_process_is_followed(root: Path) -> None:
    """A second server on the folder, or a deployment tool that writes the file, needs no call."""
    async with run_server(root) as server, run_server(root) as other, Client(address_of(other)) as client:
        await client.promote("toy", "1")
        assert default(other) == "1"
        await eventually(lambda: default(server) == "1", "following")


async def test_a_promotion_outlives_a_restart_and_a_missing_version(root: Path, tmp_path: Path) -> None:
    """While the promoted version is not there, the newest is the default."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        await client.promote("toy", "2")
    async with run_server(root) as server, Client(address_of(server)) as client:
        assert await version_of_a_new_stream(client) == "2"
    (root / "toy" / "2").rename(tmp_path / "gone")
    async with run_server(root) as server, Client(address_of(server)) as client:
        assert await version_of_a_new_stream(client) == "3"


async def test_a_damaged_choice_changes_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What held before holds, and the log says what to do."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        await client.promote("toy", "1")
        (root / "toy" / "promoted.json").write_text("1")
        await server.version_watch.look()
        assert await version_of_a_new_stream(client) == "1"
    assert "promoted.json: " in caplog.text
    assert "what held before holds" in caplog.text


async def test_versions_are_listed_with_their_streams(root: Path) -> None:
    """Live and parked ones, by version."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        async with client.open("a", version="1") as stream:
            await stream.step(sensor_rows(1)[0])
        async with client.open("b", version="1"), client.open("c"), client.open("d"):
            await client.promote("toy", "3")
            counts: dict[str, tuple[int, int]] = {}
            async with asyncio.timeout(TIMEOUT_S):
                while counts != {"3": (2, 0), "2": (0, 0), "1": (1, 1)}:  # the store learns soon that one is parked
                    found = {version.version: version for version in await client.versions("toy")}
                    counts = {name: (each.live_streams, each.parked_streams) for name, each in found.items()}
        assert {name: (each.is_default, each.is_promoted, each.policy) for name, each in found.items()} == {
            "3": (True, True, "pin"),
            "2": (False, False, "pin"),
            "1": (False, False, "pin"),
        }
        with pytest.raises(ModelNotFound):
            await client.versions("other")


def test_the_command_line_promotes_lists_and_goes_back(root: Path) -> None:
    """One line says what is the default now; a table says what is served."""
    with serve(root, "--swap-policy", "rewarm", "--rewarm-steps", "5") as process:
        address = ("--address", process.address)
        assert run_command("promote", "toy", "1", *address).stdout == "default version of toy: 1, before 3\n"
        table = run_command("models", *address).stdout
        rows = {words[1]: words for words in map(str.split, table.splitlines()[1:]) if words}
        assert rows["1"][2:8] == ["promoted", "0", "live,", "0", "parked", "rewarm"]
        listed = json.loads(run_command("models", "--json", *address).stdout)
        assert [(each["version"], each["is_default"], each["rewarm_steps"]) for each in listed] == [
            ("3", False, 5), ("2", False, 5), ("1", True, 5),
        ]  # fmt: skip
        assert run_command("rollback", "toy", *address).stdout == "default version of toy: 3, before 1\n"
        assert run_command("promote", "toy", "newest", *address).stdout == "default version of toy: 3 already\n"
        refused = run_command("promote", "toy", "7", *address)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "toy/7" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_the_history_is_short(tmp_path: Path) -> None:
    """It does not grow with the number of promotions."""
    write_promotion(tmp_path, Promotion("9", tuple(map(str, range(100)))))
    assert read_promotion(tmp_path).before == tuple(map(str, range(100 - BEFORE_MAX, 100)))
    assert [path.name for path in tmp_path.iterdir()] == ["promoted.json"]


def test_all_mistakes_of_a_settings_file_are_told_at_once(tmp_path: Path) -> None:
    """Each with its field, what it has and what was expected."""
    path = tmp_path / "serving.toml"
    path.write_text('policy = "swap"\nrewarm_steps = 0\nshadows = 1\n[shadow]\nshare = 2.0\nwarm = 1\n')
    with pytest.raises(ContractBroken) as caught:
        read_settings(tmp_path, ModelSettings())
    message = str(caught.value)
    assert str(path) in message
    for words in (
        "policy: got 'swap': input should be 'pin', 'rewarm' or 'reset'",
        "rewarm_steps: got 0: input should be greater than or equal to 1",
        "shadows: is not known, expected one of policy, rewarm_steps, shadow",
        "shadow.share: got 2.0: input should be less than or equal to 1",
        "shadow.warm: is not known, expected one of share, version, warmup",
    ):
        assert words in message
    path.write_text("policy = [")
    with pytest.raises(ContractBroken, match="is not TOML"):
        read_settings(tmp_path, ModelSettings())


def test_a_settings_file_overrules_the_options(tmp_path: Path) -> None:
    """Field by field."""
    options = ModelSettings(policy="rewarm", rewarm_steps=9)
    assert read_settings(tmp_path, options) is options
    (tmp_path / "serving.toml").write_text('policy = "reset"\n[shadow]\nshare = 0.5\n')
    read = read_settings(tmp_path, options)
    assert (read.policy, read.rewarm_steps, read.shadow.share, read.raw_steps) == ("reset", 9, 0.5, 0)
    (tmp_path / "serving.toml").write_text("rewarm_steps = 3\n")
    assert read_settings(tmp_path, options).raw_steps == 3


async def test_promote_and_rollback_under_load(root: Path) -> None:
    """A promotion back and forth, many times: no caller gets an error, and each stream keeps its number."""
    (root / "toy" / "serving.toml").write_text('policy = "rewarm"\nrewarm_steps = 4\n')
    async with run_server(root) as server, Client(address_of(server)) as client:
        done = asyncio.Event()

        async def run(name: str) -> int:
            count = 0
            async with client.open(name) as stream:
                while not done.is_set():
                    prediction = await stream.step(sensor_rows(1, seed=count)[0])
                    count += 1
                    assert prediction.step == count
            return count

        streams = [asyncio.create_task(run(f"s{place}")) for place in range(12)]
        for version in "1212121":
            await client.promote("toy", version)
            await asyncio.sleep(0.05)
            await client.rollback("toy")
        done.set()
        assert min([await stream for stream in streams]) > 10
