"""Start, health, stop, and failures of a server."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.calls import RawCall, raw_channel, timestep
from tests.engines import Gate, key
from tests.foreign_graphs import by_size
from tests.graphs import inverse, picky, running_sum, wide, write_model
from tests.servers import address_of, batcher_of, live, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Client, ServerUnavailable
from tidegate.core.errors import ContractBroken
from tidegate.runtime.config import InvalidSetting, ServerConfig
from tidegate.runtime.server import Server, StartFailed, StopFailed
from tidegate.v1 import tidegate_pb2 as pb

SERVICE = "tidegate.v1.TidegateService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    """The health status."""
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)).status


def watch(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall:
    """Every change of health."""
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=2 * TIMEOUT_S)


@asynccontextmanager
async def server_with_a_stuck_call(root: Path) -> AsyncIterator[Server]:
    """A server with a call whose client does not read."""
    async with run_server(root, drain_after=0.2, live_max=8) as server, raw_channel(server) as channel:
        lazy = RawCall(channel)
        await lazy.open("lazy")
        stream = server.stream_service._streams.find(key("lazy"))
        assert stream is not None

        async def flood() -> None:
            while True:
                await lazy.call.write(timestep(1).SerializeToString())

        task = asyncio.create_task(flood())
        last = -1
        while last != stream.step:  # until it is blocked
            last = stream.step
            await asyncio.sleep(0.1)
        try:
            yield server
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_serving(sum_root: Path, service: str) -> None:
    """For the whole server and for the service by name."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert await health_of(channel, service) == SERVING


async def test_health_does_not_know_other_services(sum_root: Path) -> None:
    """NOT_FOUND, as the health protocol says."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "tidegate.v1.Tide")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_not_serving_before_the_start_is_complete(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked during the start, when the port is open and the metrics port is not."""
    seen: list[int] = []
    inner = Server._start_metrics

    def look(self: Server, *arguments: object) -> object:
        seen.append(self._health._server_status[""])
        return inner(self, *arguments)

    monkeypatch.setattr(Server, "_start_metrics", look)
    async with run_server(sum_root) as server:
        assert seen == [NOT_SERVING]
        assert server._health._server_status[""] == SERVING


async def test_reflection_lists_the_services(sum_root: Path) -> None:
    """Tools can describe the services without the proto file."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S
        )
        async for response in call:
            names = {service.name for service in response.list_services_response.service}
            break
        call.cancel()
        assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_reflection_describes_the_service(sum_root: Path) -> None:
    """The file that defines it is available."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)]), timeout=TIMEOUT_S
        )
        async for response in call:
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(data)
                for data in response.file_descriptor_response.file_descriptor_proto
            ]
            break
        call.cancel()
        assert any(method.name == "Predict" for file in files for part in file.service for method in part.method)


async def test_the_ready_line_has_all_addresses(sum_root: Path) -> None:
    """In the format for other programs."""
    async with run_server(sum_root) as server:
        assert server.ready_line == (
            f"ready: grpc=127.0.0.1:{server.grpc_port} "
            f"metrics=http://127.0.0.1:{server.metrics_port}/metrics models=toy/1"
        )
        assert min(server.grpc_port, server.metrics_port) > 0


async def test_a_taken_grpc_port_fails_the_start(sum_root: Path) -> None:
    """It is not silently shared with the server that has it."""
    async with run_server(sum_root) as first:
        config = ServerConfig(models=sum_root, host="127.0.0.1", port=first.grpc_port, metrics_port=0, batch_max=4)
        with pytest.raises(StartFailed, match=f"127.0.0.1:{first.grpc_port}"):
            await Server(config).start()


async def test_a_taken_metrics_port_fails_the_start(sum_root: Path) -> None:
    """The error names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(ServerConfig(models=sum_root, host="127.0.0.1", port=0, metrics_port=port, state="memory:"))
        with pytest.raises(StartFailed, match=f"127.0.0.1:{port} for metrics"):
            await server.start()


async def test_a_server_that_could_not_start_leaves_nothing_open(sum_root: Path) -> None:
    """It does not answer on its other port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(ServerConfig(models=sum_root, host="127.0.0.1", port=port, metrics_port=0, state="memory:"))
        with pytest.raises(StartFailed, match=f"127.0.0.1:{port} for gRPC"):
            await server.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.metrics_port), timeout=TIMEOUT_S).close()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no model found"),
        ({"toy/1/model.onnx": b"rubbish"}, "toy/1: onnxruntime cannot load"),
        ({"toy/one/model.onnx": running_sum()}, "version 'one' is not a decimal number"),
        ({"a/1/model.onnx": running_sum(), "b/1/model.onnx": b"rubbish"}, "b/1: onnxruntime cannot load"),
        ({"toy/1/model.onnx": b"rubbish", "toy/1/model.toml": b"\xff\xfe"}, "toy"),
        ({"toy/1/model.onnx": running_sum(), "toy/1/card.json": b"\xff\xfe"}, "card.json"),
    ],
)
async def test_a_model_that_cannot_be_served_fails_the_start(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    """One bad model is enough: a server without it would fail its clients later."""
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with pytest.raises(ContractBroken, match=words):
        async with run_server(tmp_path):
            pass


async def test_a_model_that_fails_its_warm_up_fails_the_start(tmp_path: Path) -> None:
    """Reported as a model that cannot be served, not as a bug of the server."""
    write_model(tmp_path, picky(low=50.0, high=60.0))
    with pytest.raises(ContractBroken, match="toy/1"):
        async with run_server(tmp_path):
            pass


async def test_a_model_that_depends_on_its_batch_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log, the metric and the description report it."""
    write_model(tmp_path, by_size())
    with caplog.at_level(logging.WARNING):
        async with run_server(tmp_path, batch_max=4) as server, Client(address_of(server)) as client:
            assert not (await client.models())[0].batch_invariant
            assert (await scrape(server))("tidegate_batch_invariant") == 0
    assert "batches of 2 to 4" in caplog.text


async def test_stopping_answers_what_runs_and_ends_every_call(sum_root: Path) -> None:
    """Health first, then the answers, then `move`, then UNAVAILABLE."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        watcher = watch(channel)
        assert (await watcher.read()).status == SERVING
        running, idle = RawCall(channel), RawCall(channel)
        await running.open("a")
        await idle.open("b")
        gate = Gate(batcher_of(server))
        await running.send(timestep(5, step=1))
        await gate.entered()
        stopping = asyncio.create_task(server.stop())
        assert (await watcher.read()).status == NOT_SERVING
        assert (await idle.read()).WhichOneof("kind") == "move"
        ending = await idle.ending()
        assert (ending.code.name, ending.reason) == ("UNAVAILABLE", "STOPPING")
        assert not stopping.done()
        gate.open()
        assert np.frombuffer((await running.read()).prediction.outputs[0], np.float32).item() == 5
        assert (await running.read()).WhichOneof("kind") == "move"
        assert (await running.ending()).reason == "STOPPING"
        watcher.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            await stopping
        assert live(server) == 0
        server.stop = _nothing  # type: ignore[method-assign] - it has stopped


async def _nothing() -> None:
    """Does not stop anything."""


async def test_a_call_that_comes_while_stopping_is_refused(sum_root: Path) -> None:
    """UNAVAILABLE with the reason, so that the client goes to another server."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        running = RawCall(channel)
        await running.open("a")
        gate = Gate(batcher_of(server))
        await running.send(timestep(5, step=1))
        await gate.entered()
        stopping = asyncio.create_task(server.stop())
        await eventually(lambda: server._servicer._calls.stopping, "stopping")
        late = RawCall(channel)
        ending = await late.ending()
        assert (ending.code.name, ending.reason) == ("UNAVAILABLE", "STOPPING")
        gate.open()
        async with asyncio.timeout(TIMEOUT_S):
            await stopping
        server.stop = _nothing  # type: ignore[method-assign] - it has stopped


async def test_a_client_that_does_not_read_does_not_hold_up_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its call is cancelled when the time for draining is over, and that is logged."""
    write_model(tmp_path, wide())
    async with server_with_a_stuck_call(tmp_path) as server:
        async with asyncio.timeout(TIMEOUT_S):
            await server.stop()
        assert "are cancelled" in caplog.text
        assert live(server) == 0
        server.stop = _nothing  # type: ignore[method-assign] - it has stopped


async def test_the_client_gets_the_error_of_a_stopped_server(sum_root: Path) -> None:
    """Our client has an error for it, and the stream can be opened again elsewhere."""
    async with run_server(sum_root) as server, Client(address_of(server), reconnect_s=0) as client:
        async with client.open("a") as stream:
            await stream.step([1])
            await server.stop()
            # A write that meets the end of the call would hide its status.
            await eventually(stream._ended_event.is_set, "the end of the stream")
            with pytest.raises(ServerUnavailable, match="stopping"):
                await stream.step([2])
        server.stop = _nothing  # type: ignore[method-assign] - it has stopped


async def test_a_missing_server_is_reported(sum_root: Path) -> None:
    """A missing answer becomes the same error."""
    async with run_server(sum_root) as server:
        address = address_of(server)
    async with Client(address, timeout_s=1.0) as client:
        with pytest.raises(ServerUnavailable):
            await client.models()
        with pytest.raises(ServerUnavailable):
            async with client.open("a"):
                pass


async def test_a_dead_batcher_is_not_kept_secret(sum_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Health becomes NOT_SERVING, `wait` raises the error, calls end, and the process can exit non-zero."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        watcher = watch(channel)
        assert (await watcher.read()).status == SERVING
        call, other = RawCall(channel), RawCall(channel)
        await call.open("a")
        await other.open("b")

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug of ours")

        batcher_of(server).engine.run = batcher_of(server).engine.run_one = broken  # type: ignore[method-assign,assignment]
        waiting = asyncio.create_task(server.wait())
        error = (await call.step(1, step=1)).error
        assert error.reason == pb.Error.REASON_MODEL_FAILED
        assert "a bug of ours" not in error.message
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises(RuntimeError, match="ended") as caught:
                await waiting
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert "a bug of ours" in caplog.text  # at once: while the server stops, another error may look like the cause
        assert (await watcher.read()).status == NOT_SERVING
        await other.send(timestep(1, step=1))
        assert (await other.ending()).code is grpc.StatusCode.UNAVAILABLE
        watcher.cancel()


async def test_a_store_that_fails_is_not_kept_secret(sum_root: Path) -> None:
    """An error that no store may raise is a failure of the server, not only a log line.

    The unsaved state is reported.
    """
    server = Server(ServerConfig(models=sum_root, host="127.0.0.1", port=0, metrics_port=0, state="memory:"))
    await server.start()

    async def broken(_: object) -> list[bool]:
        raise OSError("disk full")

    server.stream_service._store.save = broken  # type: ignore[method-assign]
    async with raw_channel(server) as channel:
        waiting = asyncio.create_task(server.wait())
        call = RawCall(channel)
        await call.open("a")
        await call.step(1)
        call.call.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises(RuntimeError) as caught:
                await waiting
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StopFailed, match="did not save all state"):
        await server.stop()


async def test_two_servers_live_side_by_side(tmp_path: Path) -> None:
    """There are no globals: neither streams nor metrics."""
    one, other = write_model(tmp_path / "1", running_sum()), write_model(tmp_path / "2", inverse())
    async with (
        run_server(one) as first,
        run_server(other) as second,
        raw_channel(first) as here,
        raw_channel(second) as there,
    ):
        a, b = RawCall(here), RawCall(there)
        await a.open("a")
        await b.open("a")
        await a.step(5)
        assert (await b.step(5)).prediction.step == 1
        assert (await scrape(first))("tidegate_steps_total", outcome="ok") == 1


@pytest.mark.parametrize(
    "setting", [{"port": 65536}, {"port": -1}, {"batch_max": 0}, {"queue_max": 0}, {"drain_after": -1}, {"color": 1}]
)
def test_a_bad_setting_is_refused_when_it_is_made(setting: dict[str, int]) -> None:
    """Not when it is used."""
    with pytest.raises((InvalidSetting, TypeError), match=next(iter(setting))):
        ServerConfig(**{"models": Path("models"), **setting})
