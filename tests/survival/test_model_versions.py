"""Versions that come and go under several workers: all serve the same, whatever is on disk and whoever dies."""

import asyncio
import os
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.fleet import Fleet, ServerProcess
from tests.graphs import lstm
from tests.serving.test_live_models import put
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client

WORKERS = ("--workers", "2", "--models-poll", "0", "--park-after", "1h")


def served(site: ServerProcess) -> dict[str, dict[str, str]]:
    """The fingerprint of each version, by worker."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for family in text_string_to_metric_families(site.scrape()):
        for sample in family.samples:
            if sample.name == "tidegate_model_info":
                labels = sample.labels
                found[labels["worker"]][f"{labels['model']}/{labels['version']}"] = labels["fingerprint"]
    return dict(found)


async def until_served(site: ServerProcess, *titles: str) -> set[str]:
    """Waits until both workers serve these versions, and the same ones. Returns the fingerprints."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await asyncio.to_thread(served, site)
            if len(found) == 2 and found["0"] == found["1"] and {*found["0"]} == {*titles}:
                return {*found["0"].values()}
            await asyncio.sleep(0.02)


async def test_all_workers_follow(site: Callable[..., ServerProcess], models: Path) -> None:
    """One SIGHUP to the supervisor; and a call to any worker."""
    one = site(*WORKERS)
    await one.start()
    await until_served(one, "toy/1")
    put(models, lstm(seed=2), "2")
    one.send(signal.SIGHUP)
    assert len(await until_served(one, "toy/1", "toy/2")) == 2
    async with Client(one.address) as client:
        (change,) = await client.change_models("unload", "toy", "1")
        assert change.outcome == "unloading"
        await until_served(one, "toy/2")
        assert [model.version for model in await client.models()] == ["2"]
    assert await one.stop() == 0


async def test_a_worker_that_died_comes_back_with_what_the_others_serve(
    site: Callable[..., ServerProcess], models: Path
) -> None:
    """Beside a broken new version, and although the files of its own have changed."""
    one = site(*WORKERS)
    await one.start()
    before = await until_served(one, "toy/1")
    (models / "toy" / "1" / "model.onnx").write_bytes(lstm(seed=9))
    put(models, b"nonsense", "2")
    one.send(signal.SIGHUP)
    for worker in (0, 1):
        pid = one.workers()[worker]
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT_S):
            while one.workers().get(worker) in (None, pid):
                await asyncio.sleep(0.02)
        assert await until_served(one, "toy/1") == before
    assert await one.stop() == 0


async def test_a_worker_that_starts_meanwhile_catches_up(site: Callable[..., ServerProcess], models: Path) -> None:
    """It is killed as often as versions change, so that it is in any state when they do."""
    one = site(*WORKERS)
    await one.start()
    for version in range(2, 5):
        put(models, lstm(seed=version), str(version))
        shutil.rmtree(models / "toy" / str(version - 1))
        one.send(signal.SIGHUP)
        await asyncio.sleep(0.15 * version)
        for pid in list(one.workers().values())[: version % 2 + 1]:
            os.kill(pid, signal.SIGKILL)
        await until_served(one, f"toy/{version}")
    assert await one.stop() == 0


async def test_a_version_under_load_and_under_kill_9(
    site: Callable[..., ServerProcess], models: Path, graph: bytes
) -> None:
    """Every prediction of every stream is that of its own version, once and in order."""
    one = site("--workers", "2", "--models-poll", "0")
    await one.start()
    fleet = Fleet([one.address], streams=20, steps=60, pause_s=0.01)
    running = asyncio.create_task(fleet.run())
    await fleet.reached(200)
    put(models, lstm(seed=5), "2")
    async with Client(one.address) as client:
        (change,) = await client.change_models("reload")
        assert change.outcome == "loaded"
        os.kill(one.workers()[1], signal.SIGKILL)
        # Those that have begun stay; a new one begins under the new version.
        async with client.open("new") as new:
            await new.step([0.0] * 8)
            assert new.model.version == "2"
    async with asyncio.timeout(3 * TIMEOUT_S):
        await running
    assert fleet.problems(graph) == []
    assert await one.stop() == 0


async def test_a_version_waits_for_the_streams_of_every_worker(
    site: Callable[..., ServerProcess], models: Path
) -> None:
    """Whichever worker has them."""
    put(models, lstm(seed=2), "2")
    one = site(*WORKERS)
    await one.start()
    async with Client(one.address) as client:
        async with client.open("old", version="1") as stream:
            await stream.step([0.0] * 8)
            await client.change_models("unload", "toy", "1")
            await asyncio.sleep(2.0)
            await until_served(one, "toy/1", "toy/2")
            await stream.step([0.0] * 8)
        await until_served(one, "toy/2")
    assert await one.stop() == 0
