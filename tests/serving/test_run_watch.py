"""Runs of a model that take too long: they are ended, and harm neither other streams nor other models."""

import asyncio
import signal
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.graphs import endless, running_sum, write_model
from tests.servers import address_of, batcher_of, run_server, serve
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, ClientError, ModelFailed
from tidegate.runtime import run_watch

SERVING = health_pb2.HealthCheckResponse.SERVING
# The check at the start tries values up to some thousands.
ENDLESS = 2e6
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A model that is endless for values above a million, and another one."""
    write_model(tmp_path, endless(above=1e6), name="endless")
    return write_model(tmp_path, running_sum())


async def health_of(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    """What the server says of a service."""
    status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
    return status


async def test_an_endless_timestep_is_refused(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream keeps its state and goes on."""
    monkeypatch.setattr(run_watch, "LOOP_RUN_SECONDS_MAX", 0.3)
    async with (
        run_server(roots) as server,
        Client(address_of(server)) as client,
        client.open("a", model="endless") as stream,
    ):
        assert (await stream.step([1.0]))["y"] == 1
        with pytest.raises(ModelFailed, match="took too long and was ended"):
            await stream.step([ENDLESS])
        assert (await stream.step([2.0]))["y"] == 2


async def test_the_event_loop_is_blocked_only_once(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on the model runs in the thread: other models and the health checks go on, which tell it."""
    monkeypatch.setattr(run_watch, "LOOP_RUN_SECONDS_MAX", 0.3)
    async with (
        run_server(roots, step_timeout=3.0) as server,
        Client(address_of(server)) as client,
        grpc.aio.insecure_channel(address_of(server)) as channel,
        client.open("a", model="endless") as stream,
        client.open("b", model="toy") as other,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        assert not batcher_of(server, "endless").cost.needs_thread
        with pytest.raises(ModelFailed):
            await stream.step([ENDLESS])
        again = asyncio.create_task(stream.step([ENDLESS]))
        told, total = False, 0
        while not again.done():
            total += 1
            assert (await other.step([1.0]))["sum"] == total
            assert await health_of(health, "toy/1") == SERVING
            assert await health_of(health, "") == SERVING
            told = told or await health_of(health, "endless/1") == NOT_SERVING
        with pytest.raises(ModelFailed):
            await again
        assert told
        async with asyncio.timeout(TIMEOUT_S):
            while await health_of(health, "endless/1") != SERVING:
                pass


async def test_an_endless_row_harms_no_other_row_of_its_batch(roots: Path) -> None:
    """The others run alone."""
    async with run_server(roots, step_timeout=0.3) as server, Client(address_of(server)) as client:
        batcher_of(server, "endless").cost.hung = True  # as after the first one
        async with client.block(["a", "b", "c"], model="endless") as block:
            answer = await block.step([[1.0], [ENDLESS], [3.0]])
            assert answer["y"][[0, 2]].tolist() == [[1.0], [3.0]]
            assert len(answer.errors) == 1


async def test_sigterm_ends_a_server_while_a_run_hangs(roots: Path, tmp_path: Path) -> None:
    """In its time for draining, however long a timestep may take."""
    options = ["--step-timeout", "10m", "--drain-after", "1s", "--state", f"sqlite://{tmp_path / 'x.db'}"]
    with serve(roots, "--workers", "1", *options) as process:
        async with Client(process.address, reconnect_s=0.1) as client:
            stream = await client.open("a", model="endless").__aenter__()
            with pytest.raises(ModelFailed):  # in the event loop, so not for ten minutes
                await stream.step([ENDLESS])
            stepping = asyncio.create_task(stream.step([ENDLESS]))
            await asyncio.to_thread(process.until_busy)
            started = time.monotonic()
            process.signal(signal.SIGTERM)
            code, _, err = await asyncio.to_thread(process.wait)
            assert time.monotonic() - started < TIMEOUT_S / 2
            assert (code, "Traceback" in err) == (0, False), err
            with pytest.raises(ClientError):
                await stepping


async def test_a_process_that_stood_still_has_not_run_for_so_long(roots: Path) -> None:
    """The thread counts its looks: a machine that slept must not fail timesteps."""
    async with run_server(roots) as server:
        batcher = batcher_of(server)
        watch = run_watch.RunWatch(lambda: [batcher], 0.5, pytest.fail)
        batcher.running_since = time.perf_counter() - 1000.0
        for _ in range(4):
            watch.look()
            assert not batcher.cost.hung
        watch.look()
        assert batcher.cost.hung
        batcher.running_since = 0.0


async def test_a_run_that_cannot_be_ended_ends_the_process(roots: Path) -> None:
    """In the event loop, where it stops all else. In the thread it may go on."""
    async with run_server(roots) as server:
        batcher = batcher_of(server)
        reasons: list[str] = []
        watch = run_watch.RunWatch(lambda: [batcher], 0.1, reasons.append)
        batcher.running_since = time.perf_counter()
        for in_thread in (True, False):
            batcher.runs_in_thread = in_thread
            watch._looks.clear()
            for _ in range(100):
                watch.look()
        assert reasons == ["model toy/1: a run in the event loop does not end"]
        batcher.running_since, batcher.runs_in_thread = 0.0, False
        batcher.engine.model.resume()
