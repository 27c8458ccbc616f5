"""The commands of docs/operating.md do what the page says: they are run as they stand there, beside clients that check each bit."""

import asyncio
import csv
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.deploy.chart import deploy_tool
from tests.fleet import Delivered, check_predictions
from tests.operating.page import Shell, blocks_to_run, open_shell, page_blocks
from tests.oracle import replay
from tests.root import ROOT
from tests.timeouts import eventually
from tests.tools import find_tool, missing
from tidegate.client import Client, DataLost, Stream, Unauthenticated

pytestmark = pytest.mark.slow

MODELS = ROOT / "models"
GRAPH = (MODELS / "appliances" / "1" / "model.onnx").read_bytes()
FEATURES = [
    feature["name"] for feature in json.loads((MODELS / "appliances" / "1" / "card.json").read_text())["features"]
]
ROWS = np.random.default_rng(0).uniform(0, 50, (400, len(FEATURES))).astype(np.float32)
# A client that streams while commands run sends as many rows as are needed.
MANY_ROWS = np.random.default_rng(1).uniform(0, 50, (20_000, len(FEATURES))).astype(np.float32)
START, FIRST_STREAM, STOP = blocks_to_run("A process")
# The sections whose blocks the tests of this file run, in the repository too.
COVERED = {
    *("A process", "Kubernetes", "Watch", "Load", "Upgrade the server", "Upgrade a model", "SQLite", "Redis"),
    "Renew certificates and tokens",
}


def test_every_command_is_run_or_says_why() -> None:
    """Each block of commands is marked, and the sections that are run are those of this file."""
    commands = [block for block in page_blocks() if block.language == "sh"]
    assert [block.text for block in commands if not block.mark] == []
    assert [block.text for block in commands if block.mark == "not run" and not block.reason] == []
    assert {block.section for block in commands if block.mark.startswith("run")} == COVERED
    assert {block.language for block in page_blocks()} == {"sh", "ini", "toml", "yaml"}


@asynccontextmanager
async def prepared(folder: Path) -> AsyncIterator[Shell]:
    """A shell with the models of the repository, a table of rows, and version 2 of the model beside."""
    shutil.copytree(MODELS, folder / "models")
    shutil.copytree(MODELS / "appliances" / "1", folder / "appliances-2")
    (folder / "appliances-2" / "model.onnx").write_bytes(other_weights())
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([FEATURES, *ROWS.tolist()])
    async with open_shell(folder) as shell:
        yield shell


def other_weights() -> bytes:
    """The same graph with weights that differ by a thousandth: version 2."""
    graph = onnx.load_from_string(GRAPH)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    return graph.SerializeToString()


class Sensor:
    """A client that sends rows to a stream, in the background or until told to stop, and keeps each answer."""

    def __init__(self, shell: Shell, stream_id: str, **client: Any) -> None:
        self._client = Client(f"localhost:{shell.port}", **client)
        self._opening = self._client.open(stream_id, model="appliances")
        self._stop = False
        self._task: asyncio.Task[None] | None = None
        self.answers: list[tuple[int, Any]] = []
        self.next_step = 0
        self.version = ""

    async def __aenter__(self) -> Self:
        stream = await self._opening.__aenter__()
        self.next_step = stream.next_step
        self.version = stream.model.version
        self._task = asyncio.create_task(self._send(stream))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        try:
            if self._task is not None and not self._task.done():
                await self._task
        finally:
            await self._client.close()

    async def _send(self, stream: Stream) -> None:
        for row in MANY_ROWS[self.next_step - 1 :]:
            if self._stop:
                return
            prediction = await stream.step(row)
            self.answers.append((prediction.step, dict(prediction)))
            await asyncio.sleep(0.005)

    async def goes_on(self, count: int = 30) -> None:
        """Waits for more answers."""
        wanted = len(self.answers) + count
        await eventually(lambda: len(self.answers) >= wanted or bool(self._task and self._task.done()), "an answer")
        assert len(self.answers) >= wanted, await self.error()

    async def error(self) -> BaseException:
        """Waits for the error that ends it."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=60)
        error = self._task.exception()
        assert error is not None
        return error

    def problem(self, graph: bytes = GRAPH) -> str:
        """What is wrong with the answers; empty when each came once, with the bits of the graph alone."""
        last = self.next_step + len(self.answers) - 1
        return check_predictions(graph, Delivered(MANY_ROWS[:last], self.answers, self.next_step))


def check_table(path: Path, graph: bytes, first: int, last: int) -> None:
    """The predictions that `tidegate stream` wrote are those of the graph alone for these timesteps."""
    with path.open() as file:
        written = list(csv.DictReader(file))
    truth = replay(graph, ROWS[:last])[first - 1 :]
    assert len(written) == len(truth)
    names = [name for name in written[0] if name.startswith("forecast")]
    assert names
    for line, outputs in zip(written, truth, strict=True):
        got = np.array([line[name] for name in names], np.float32)
        np.testing.assert_array_equal(got, outputs["forecast"].ravel()[: len(got)])


def sample(shell: Shell, name: str) -> float:
    """The sum of a metric over the workers."""
    with urllib.request.urlopen(f"http://localhost:{shell.metrics_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


async def test_a_process_is_started_measured_and_drained(tmp_path: Path) -> None:
    """The first commands of the page lead to predictions, those of the bench to figures, and the last to a clean end."""
    async with prepared(tmp_path) as shell:
        assert "ok: appliances/1" in await shell.run(START)
        assert "house-7" in await shell.run(FIRST_STREAM)
        check_table(tmp_path / "predictions.csv", GRAPH, 1, 100)
        for block in blocks_to_run("Load"):
            assert "latency" in await shell.run(block)
        assert json.loads((tmp_path / "bench.json").read_text())
        await shell.run(STOP)
    assert (tmp_path / "tidegate.out").read_text().startswith("ready: ")


async def test_an_upgrade_of_the_server_loses_nothing(tmp_path: Path) -> None:
    """A client that streams meanwhile gets every prediction once, bit for bit."""
    async with prepared(tmp_path) as shell:
        await shell.run(START)
        async with Sensor(shell, "boiler") as sensor:
            await sensor.goes_on()
            for block in blocks_to_run("Upgrade the server"):
                await shell.run(block)
            await sensor.goes_on()
        assert sensor.problem() == ""
    assert (tmp_path / "before-upgrade.db").stat().st_size > 0


async def followed(shell: Shell, block: str, event: str) -> None:
    """Runs commands, and waits until every worker of the server has logged what they ask for."""

    def lines(text: str) -> int:
        return (shell.folder / "tidegate.log").read_text().count(text)

    workers, before = lines("checkpoints are stored in"), lines(event)
    await shell.run(block)
    await eventually(lambda: lines(event) == before + workers, f"'{event}' of {workers} workers")


async def test_an_upgrade_of_a_model_leaves_its_streams_as_they_were(tmp_path: Path) -> None:
    """Old streams stay with their weights; new ones begin under the new version, and after the rollback under the old."""
    second = (other_weights(),)
    put, attempt, promote, undo = blocks_to_run("Upgrade a model")
    async with prepared(tmp_path) as shell:
        await shell.run(START)
        async with Sensor(shell, "old") as old:
            await old.goes_on()
            await shell.run(put)
            await shell.run(attempt)
            check_table(tmp_path / "predictions-2.csv", second[0], 1, 100)
            async with Sensor(shell, "before") as before:
                await before.goes_on()
            await followed(shell, promote, "appliances/2 is the default")
            async with Sensor(shell, "new") as new:
                await new.goes_on()
            await followed(shell, undo, "appliances/1 is the default")
            async with Sensor(shell, "after") as after:
                await after.goes_on()
            await old.goes_on()
    assert [each.version for each in (old, before, new, after)] == ["1", "1", "2", "1"]
    assert [old.problem(), before.problem(), new.problem(second[0]), after.problem()] == [""] * 4


async def tell_the_losses(shell: Shell, folder: Path, backup: str, restore: str, again: str) -> None:
    """Backs up between timesteps, restores, and checks what each kind of client sees.

    `again` sends the first 200 rows of a table that had 100 when the backup was made.
    """
    await shell.run(FIRST_STREAM)
    async with Sensor(shell, "boiler", reconnect_s=None) as boiler:
        await boiler.goes_on()
        await shell.run(backup)
        await boiler.goes_on(100)
        await shell.run(again.format(out="after.csv"))
        assert "house-7" in (listed := await shell.run(restore))
        assert " 100 " in next(line for line in listed.splitlines() if "house-7" in line)
        lost = await boiler.error()
        assert isinstance(lost, DataLost), lost
        assert 1 < lost.next_step < len(boiler.answers)
        assert sample(shell, "tidegate_state_lost_total") >= 1
        assert boiler.problem() == ""
    await shell.run(again.format(out="again.csv"))
    assert (folder / "again.csv").read_bytes() == (folder / "after.csv").read_bytes()
    check_table(folder / "again.csv", GRAPH, 101, 200)
    async with Sensor(shell, "boiler") as reopened:
        assert reopened.next_step == lost.next_step
        await reopened.goes_on()
    assert reopened.problem() == ""


AGAIN = "tidegate stream rows.csv --stream-id house-7 --limit 200 --out {out}"


async def test_sqlite_is_backed_up_and_restored(tmp_path: Path) -> None:
    """A killed server goes on by itself; after a restore the same rows give the same bits, and a loss is told and counted."""
    backup, restore = blocks_to_run("SQLite")
    async with prepared(tmp_path) as shell:
        await shell.run(START)
        async with Sensor(shell, "killed") as killed:
            await killed.goes_on()
            await shell.run("kill -9 $(cat tidegate.pid)\nwait $(cat tidegate.pid) || true\n" + START)
            await killed.goes_on()
        assert killed.problem() == ""
        await tell_the_losses(shell, tmp_path, backup, restore, AGAIN)
        await shell.run(STOP)


async def test_redis_is_backed_up_and_restored(tmp_path: Path) -> None:
    """The same with the real redis, whose append-only file has the restored streams when it is killed and started again."""
    find_tool("redis-server", "apt-get install redis-server")
    start, backup, restore = blocks_to_run("Redis")
    async with prepared(tmp_path) as shell:
        await shell.run(start)
        await tell_the_losses(shell, tmp_path, backup, restore, AGAIN)
        await shell.run(STOP)
        redis = start[start.index("redis-server") : start.index("TIDEGATE_STATE")]
        kill = "kill -9 $(redis-cli -p 6379 info server | sed -n 's/^process_id:\\([0-9]*\\).*/\\1/p')\nsleep 0.2\n"
        await shell.run(kill + redis + start[start.index("TIDEGATE_STATE") :])
        assert "house-7" in await shell.run("tidegate streams list")
        assert json.loads(await shell.run("tidegate streams describe house-7 --json"))[0]["step"] == 200


async def test_certificates_and_tokens_are_renewed_while_it_serves(tmp_path: Path) -> None:
    """Calls that are open go on, new handshakes get the new certificate, and a token that is removed ends its calls."""
    if shutil.which("openssl") is None:
        missing("openssl is missing: apt-get install openssl")
    authority, start, certificate, token = blocks_to_run("Renew certificates and tokens")
    async with prepared(tmp_path) as shell:
        await shell.run(authority)
        await shell.run(start)
        credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())

        def login(name: str) -> Sequence[tuple[str, str]]:
            return [("authorization", f"Bearer {(tmp_path / name).read_text().strip()}")]

        async with Sensor(shell, "boiler", credentials=credentials, metadata=login("plant-1.token")) as old:
            await old.goes_on()
            serials = [line for line in (await shell.run(certificate)).splitlines() if line.startswith("serial=")]
            assert len(serials) == 2
            assert serials[0] == serials[1]
            await old.goes_on()
            assert "house-7" in await shell.run(token)
            ended = await old.error()
            assert isinstance(ended, Unauthenticated)
        assert old.problem() == ""
        async with Sensor(shell, "boiler", credentials=credentials, metadata=login("plant-1-new.token")) as new:
            assert new.next_step == len(old.answers) + 1
            await new.goes_on()
        assert new.problem() == ""
        await shell.run(STOP)


@pytest.mark.parametrize(("section", "tool"), [("Kubernetes", "helm"), ("Watch", "promtool")])
async def test_commands_in_the_repository(tmp_path: Path, section: str, tool: str) -> None:
    """Helm and promtool accept what the page has them check."""
    found = (
        deploy_tool("helm") if tool == "helm" else Path(find_tool("promtool", "it is in the Debian package prometheus"))
    )
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    async with open_shell(tmp_path, [found.parent]) as shell:
        for block in blocks_to_run(section, "run in the repository"):
            await shell.run(block)
