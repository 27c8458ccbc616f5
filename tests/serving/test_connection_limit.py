"""More clients than file descriptors."""

import asyncio
import logging
import resource
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import RawCall, raw_channel
from tests.servers import run_server, serve
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.runtime import connection_limit as limit_module
from tidegate.runtime import descriptors
from tidegate.runtime.connection_limit import ConnectionLimiter
from tidegate.runtime.descriptors import DESCRIPTORS_MAX, raise_limit, used

HARD = 220
# New processes have a low limit, as in a small container.
FEW_DESCRIPTORS = ("prlimit", f"--nofile=128:{HARD}")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_takes_all_descriptors_that_it_may_have(sum_root: Path, tmp_path: Path, workers: str) -> None:
    """Docker and systemd set a soft limit of 1,024 below a much higher hard one."""
    options = ("--workers", workers, "--state", f"sqlite://{tmp_path / 'x.db'}")
    with serve(sum_root, *options, before=FEW_DESCRIPTORS) as process:
        pid = process.popen.pid
        for one in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()):
            assert resource.prlimit(int(one), resource.RLIMIT_NOFILE) == (HARD, HARD)


def test_no_bound_is_not_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that count up to the limit would take minutes."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, bounds: asked.append(bounds))
    raise_limit()
    assert asked == [(DESCRIPTORS_MAX, resource.RLIM_INFINITY)]


async def test_clients_beyond_the_descriptors_get_an_error_at_once(sum_root: Path) -> None:
    """First RESOURCE_EXHAUSTED, then the connection is closed. No client hangs, and existing ones are served."""
    with serve(sum_root, before=FEW_DESCRIPTORS) as process:
        channels, calls, endings = [], [], []
        for number in range(HARD):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels.append(grpc.aio.insecure_channel(process.address, options=options))
            call = RawCall(channels[-1])
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await call.open(str(number))
                calls.append(call)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, AssertionError):
                endings.append((await call.ending()).code)
            if endings.count(grpc.StatusCode.UNAVAILABLE) == 2:
                break
        assert len(calls) > 90
        assert set(endings) == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
        assert endings == sorted(endings, key=lambda code: code is grpc.StatusCode.UNAVAILABLE)
        for call in calls:
            assert (await call.step(1.0)).prediction.step == 1
        await asyncio.to_thread(process.until_says, "descriptors are used, one a connection")
        for channel in channels:
            await channel.close()


async def test_new_calls_are_refused_while_descriptors_are_nearly_used_up(
    monkeypatch: pytest.MonkeyPatch, sum_root: Path
) -> None:
    """Except health checks. Existing calls continue, and after some connections have closed all is well."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        before = RawCall(channel)
        await before.open("before")
        limiter = server._connection_limiter
        monkeypatch.setattr(limiter, "connections_max", 1)
        monkeypatch.setattr(limiter, "_baseline", used() - 1)
        monkeypatch.setattr(limit_module, "FIRST_MESSAGE_SECONDS", 0.01)
        ending = await RawCall(channel).ending()  # it sends nothing
        assert ending.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "nearly all are used; try again later" in ending.message
        assert (await before.step(1.0)).prediction.step == 1
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        monkeypatch.setattr(limiter, "connections_max", 1000)
        await RawCall(channel).open("after")


async def test_the_log_warns_once_and_reports_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before any call is refused."""
    monkeypatch.setattr(limit_module, "WATCH_SECONDS", 0.001)
    share = 0.89
    limiter = ConnectionLimiter()
    looks = 0

    def look() -> float:
        nonlocal looks
        looks += 1
        return share

    async def looked_at(new: float) -> None:
        nonlocal share
        share, begun = new, looks
        await eventually(lambda: looks > begun + 2, "a look")

    monkeypatch.setattr(limiter, "_usage", look)
    with caplog.at_level(logging.INFO):
        watching = asyncio.create_task(limiter.run())
        await looked_at(0.89)
        assert not caplog.records
        await looked_at(0.91)
        await looked_at(0.85)
        await looked_at(0.91)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        await looked_at(0.7)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        watching.cancel()
        await asyncio.wait([watching])
