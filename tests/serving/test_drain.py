"""Signals, on a separate process."""

import asyncio
import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import RawCall, timestep
from tests.graphs import counting, lstm, wide, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import serve
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, ServerUnavailable

STREAMS = 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_drains(lstm_root: Path, number: signal.Signals) -> None:
    """Every answer is right, every call ends UNAVAILABLE, health is NOT_SERVING before that, and the exit code is 0."""
    events: list[str] = []
    with serve(lstm_root) as process:
        async with Client(process.address, reconnect_s=0) as client:
            channel = client._connection.channel  # on one connection the messages of the server arrive in order
            ready = asyncio.Event()
            stepping = 0

            async def step_until_notified(name: int) -> int:
                nonlocal stepping
                # timesteps for some seconds; the signal comes in the first
                rows = sensor_rows(1000, seed=name, missing=0.1)
                expected = replay(lstm(), rows)
                answered = 0
                async with client.open(str(name)) as stream:
                    try:
                        for row, theirs in zip(rows, expected, strict=True):
                            assert same_bits(await stream.step(row), theirs)
                            answered += 1
                            if answered == 5:
                                stepping += 1
                                if stepping == STREAMS:
                                    ready.set()
                    except ServerUnavailable as error:
                        events.append(f"a call ended {error.reason}")
                return answered

            async def watch() -> None:
                request = health_pb2.HealthCheckRequest()
                call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=2 * TIMEOUT_S)
                async for answer in call:
                    events.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
                    if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                        break
                call.cancel()

            watching = asyncio.create_task(watch())
            calls = [asyncio.create_task(step_until_notified(name)) for name in range(STREAMS)]
            async with asyncio.timeout(2 * TIMEOUT_S):
                await ready.wait()
                process.signal(number)
                answered = await asyncio.gather(*calls)
                await watching
        code, out, err = await asyncio.to_thread(process.wait)
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert min(answered) >= 5
    assert events[:2] == ["SERVING", "NOT_SERVING"]
    # A write at the end of its call may lose the reason, never the code.
    assert len(events[2:]) == STREAMS
    # grpc.aio reports INTERNAL when the end of a call meets a write of the client.
    assert set(events[2:]) <= {f"a call ended {reason}" for reason in ("STOPPING", "UNAVAILABLE", "INTERNAL")}


async def signal_twice(root: Path) -> tuple[int, str]:
    """Drains a server with a client that does not read, and sends another signal. Returns exit code and stderr."""
    write_model(root, wide())
    with serve(root, "--drain-after", "60", "--live-max", "8") as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            lazy, other = RawCall(channel), RawCall(channel)
            await lazy.open("lazy")
            await other.open("other")
            for _ in range(
                200
            ):  # each answer has 64 KiB: far more than the network buffers for a client that does not read
                await lazy.send(timestep(1))
            process.signal(signal.SIGTERM)
            assert (await other.ending()).reason == "STOPPING"  # it drains, and the slow call remains
            assert process.popen.poll() is None
            process.signal(signal.SIGTERM)
            code, _, err = await asyncio.to_thread(process.wait)
    return code, err


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """With the exit code of the signal, whatever is left to drain."""
    code, err = await signal_twice(tmp_path)
    assert code == 128 + signal.SIGTERM
    assert "ending at once" in err


async def test_a_second_signal_leaves_no_traceback(tmp_path: Path) -> None:
    """The second signal prints no traceback."""
    _, err = await signal_twice(tmp_path)
    assert "Traceback" not in err


async def test_a_second_signal_ends_at_once_while_the_model_runs(tmp_path: Path) -> None:
    """A batch that never ends does not delay the exit."""
    write_model(tmp_path, counting())
    with serve(tmp_path, "--drain-after", "60") as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            call = RawCall(channel)
            await call.open("a")
            for _ in range(3):
                await call.step(50_000)  # slow enough that the next batch runs in the thread
            await call.send(timestep(1e9))
            await asyncio.to_thread(process.until_busy)
            process.signal(signal.SIGTERM)
            await asyncio.to_thread(process.until_says, "draining")
            process.signal(signal.SIGTERM)
            code, _, _ = await asyncio.to_thread(process.wait)
    assert code == 128 + signal.SIGTERM


async def test_an_idle_server_stops_with_exit_code_0(lstm_root: Path) -> None:
    """And prints nothing more on stdout."""
    with serve(lstm_root) as process:
        process.signal(signal.SIGTERM)
        code, out, err = await asyncio.to_thread(process.wait)
    assert (code, out) == (0, "")
    assert "draining" in err


async def test_idle_streams_get_move(lstm_root: Path) -> None:
    """A client that waits for its next reading learns it at once, not when it sends."""
    with serve(lstm_root) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            call = RawCall(channel)
            await call.open("a")
            answer = (await call.step(*np.zeros(8))).prediction
            assert answer.step == 1
            process.signal(signal.SIGTERM)
            assert (await call.read()).WhichOneof("kind") == "move"
            assert (await call.ending()).code is grpc.StatusCode.UNAVAILABLE
        assert (await asyncio.to_thread(process.wait))[0] == 0
