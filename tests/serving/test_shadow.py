"""A share of the streams also runs another version, unseen."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import key, load
from tests.graphs import inverse, write_model
from tests.moves import GRAPHS
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import Scrape, address_of, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client
from tidegate.core.shadow import Applied, ShadowRun, in_share
from tidegate.runtime import shadow as shadow_module
from tidegate.runtime.promotion import Promotion, write_promotion

VERSIONS = {**GRAPHS, "3": GRAPHS["1"]}


def make(tmp_path: Path, settings: str, versions: str = "12") -> Path:
    """A folder with versions, the first promoted, and these settings of the shadow."""
    models = tmp_path / "models"
    for version in versions:
        write_model(models, VERSIONS[version], version=version)
    (models / "toy" / "serving.toml").write_text(f"[shadow]\n{settings}\n")
    write_promotion(models / "toy", Promotion(versions[0]))
    return models


def outcomes(metrics: Scrape, version: str) -> dict[str, float]:
    """What became of the timesteps of a shadow; those that are not 0."""
    counts = {
        outcome: metrics("tidegate_shadow_steps_total", model="toy", version=version, outcome=outcome)
        for outcome in ("compared", "warming", "dropped", "failed")
    }
    return {outcome: count for outcome, count in counts.items() if count}


def seen(server: Any, version: str, outcome: str = "compared") -> int:
    """The same of a running server."""
    return int(server.repository.find("toy", version).metrics.shadow_steps[outcome])


@pytest.mark.parametrize("many", [False, True], ids=["one", "a block"])
async def test_a_shadow_with_the_same_weights_differs_in_nothing(tmp_path: Path, many: bool) -> None:
    """On every path of a timestep, with missing values, and after its warm-up only."""
    models = make(tmp_path, "share = 1.0\nwarmup = 4", versions="13")
    rows = sensor_rows(20, missing=0.1)
    async with run_server(models) as server, Client(address_of(server)) as client:
        async with client.block(3 if many else 1) as block:
            for row in rows:
                await block.step(np.stack([row] * (3 if many else 1)))
        streams = 3 if many else 1
        await eventually(lambda: seen(server, "3") == 16 * streams, "comparing")
        metrics = await scrape(server)
    assert outcomes(metrics, "3") == {"compared": 16 * streams, "warming": 4 * streams}
    for kind in ("absolute", "relative"):
        assert metrics(f"tidegate_shadow_{kind}_difference_sum", model="toy", version="3") == 0
        assert metrics(f"tidegate_shadow_{kind}_difference_count", model="toy", version="3") == 16 * streams


async def test_the_differences_are_those_of_the_two_versions(tmp_path: Path) -> None:
    """The sum of the largest absolute difference of each timestep, by bare onnxruntime; and the answers are untouched."""
    models, rows = make(tmp_path, "share = 1.0\nwarmup = 0"), sensor_rows(30)
    async with run_server(models) as server, Client(address_of(server)) as client:
        async with client.open("a") as stream:
            got = [dict(await stream.step(row)) for row in rows]
        await eventually(lambda: seen(server, "2") == 30, "comparing")
        metrics = await scrape(server)
    real, shadow = replay(GRAPHS["1"], rows), replay(GRAPHS["2"], rows)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(got, real, strict=True))
    expected = sum(
        float(np.abs(one["forecast"].astype(float) - other["forecast"].astype(float)).max())
        for one, other in zip(real, shadow, strict=True)
    )
    assert metrics("tidegate_shadow_absolute_difference_sum", model="toy", version="2") == pytest.approx(expected)
    assert metrics("tidegate_shadow_relative_difference_sum", model="toy", version="2") > expected


async def test_only_a_share_of_the_streams_is_seen(tmp_path: Path) -> None:
    """By a hash of their ids: the same streams in every process."""
    models, names = make(tmp_path, "share = 0.25\nwarmup = 0"), [f"s{number}" for number in range(200)]
    chosen = [name for name in names if in_share(key(name), 0.25)]
    assert 30 < len(chosen) < 70
    assert {name for name in names if in_share(key(name), 0.1)} < set(chosen)
    assert not any(in_share(key(name), 0.0) for name in names)
    assert all(in_share(key(name), 1.0) for name in names)
    async with run_server(models) as server, Client(address_of(server)) as client:
        async with client.block(names) as block:
            await block.step(np.stack([sensor_rows(1)[0]] * 200))
        await eventually(lambda: seen(server, "2") == len(chosen), "comparing")


async def test_a_shadow_that_is_behind_drops_and_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come while the shadow stands still; what does not fit is counted, and its stream begins again."""
    gate, run = threading.Event(), ShadowRun.run

    def slow(self: ShadowRun, applied: Applied) -> Any:
        assert gate.wait(TIMEOUT_S)
        return run(self, applied)

    monkeypatch.setattr(ShadowRun, "run", slow)
    monkeypatch.setattr(shadow_module, "QUEUE_ROWS_MAX", 5)
    models = make(tmp_path, "share = 1.0\nwarmup = 2")
    async with run_server(models) as server, Client(address_of(server)) as client, client.open("a") as stream:
        for row in sensor_rows(12):
            await stream.step(row)
        gate.set()
        await eventually(lambda: seen(server, "2") + seen(server, "2", "warming") == 5, "the rest")
        for row in sensor_rows(4):
            await stream.step(row)
        await eventually(lambda: seen(server, "2") == 3 + 2, "going on")
        assert outcomes(await scrape(server), "2") == {"compared": 5, "warming": 4, "dropped": 7}


async def test_a_shadow_that_fails_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises is counted and logged once."""

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ShadowRun, "run", fail)
    models = make(tmp_path, "share = 1.0")
    async with run_server(models) as server, Client(address_of(server)) as client, client.open("a") as stream:
        for row in sensor_rows(5):
            await stream.step(row)
        await eventually(lambda: seen(server, "2", "failed") == 5, "failing")


async def test_a_shadow_follows_the_settings_and_the_default(tmp_path: Path) -> None:
    """It ends with its share, and when its version becomes the default the one before may be seen instead."""
    models = make(tmp_path, "share = 1.0\nwarmup = 0")
    async with run_server(models) as server, Client(address_of(server)) as client:
        found = {each.version: each.shadow_share for each in await client.versions("toy")}
        assert found == {"1": 0.0, "2": 1.0}
        await client.promote("toy", "2")
        found = {each.version: each.shadow_share for each in await client.versions("toy")}
        assert found == {"1": 1.0, "2": 0.0}
        async with client.open("a") as stream:
            await stream.step(sensor_rows(1)[0])
        await eventually(lambda: seen(server, "1") == 1, "comparing")
        (models / "toy" / "serving.toml").write_text("[shadow]\nshare = 0.0\n")
        await server.version_watch.look()
        async with client.open("a") as stream:
            await stream.step(sensor_rows(1)[0])
        assert server.repository.find("toy", "2").batcher.engine.tap is None


def test_a_shadow_forgets_the_streams_that_it_saw_longest_ago() -> None:
    """Its memory is bounded, and a stream that missed a timestep begins again."""
    model = load(inverse())
    run = ShadowRun(model, 2, warmup=1)

    def step(name: str, number: int, x: float = 2.0) -> tuple[int, int]:
        rows = np.array([[x]], np.float32)
        applied = Applied([key(name)], np.array([number]), rows, (rows,), ())
        compared = run.run(applied)
        return len(compared.absolute), compared.failed

    assert [step("a", 1), step("a", 2), step("a", 4), step("a", 5)] == [(0, 0), (1, 0), (0, 0), (1, 0)]
    step("b", 1)
    step("c", 1)
    assert len(run) == 2
    assert step("a", 6) == (0, 0)
    assert step("a", 7, x=0.0) == (0, 1)  # 1/0: the shadow would refuse it
