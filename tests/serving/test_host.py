"""The addresses of a server: both families, both spellings, and unix sockets."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers import run_command, serve
from tests.timeouts import TIMEOUT_S
from tidegate.runtime.config import InvalidSetting, ServerConfig
from tidegate.runtime.host import UNIX_PATH_BYTES_MAX, checked, with_port
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.reserved_port import ReservedPort
from tidegate.runtime.server import Server


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@asynccontextmanager
async def listening(root: Path, host: str, **more: str) -> AsyncIterator[Server]:
    """A server on a host."""
    server = Server(ServerConfig(models=root, host=host, port=0, metrics_port=0, state="memory:", **more))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def serves(address: str) -> bool:
    """Whether the health service there says SERVING."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = health_pb2.HealthCheckRequest()
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@ipv6
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
async def test_a_wildcard_is_both_families_on_both_ports(sum_root: Path, host: str) -> None:
    """As for gRPC: clients over IPv4 and IPv6 reach predictions and metrics."""
    async with listening(sum_root, host) as server:
        for address in ("127.0.0.1", "[::1]"):
            assert await serves(f"{address}:{server.grpc_port}")
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, server.metrics_port), timeout=TIMEOUT_S).close()


@ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_address_is_listened_on_however_it_is_spelled(sum_root: Path, host: str) -> None:
    """Clients and Prometheus can use the addresses of the ready line unchanged."""
    async with listening(sum_root, host) as server:
        assert server.ready_line.startswith(f"ready: grpc=[::1]:{server.grpc_port} metrics=http://[::1]:")
        assert await serves(f"[::1]:{server.grpc_port}")
        url = urlsplit(server.ready_line.split("metrics=")[1].split()[0])
        socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S).close()


@ipv6
def test_workers_share_an_ipv6_port(sum_root: Path, tmp_path: Path) -> None:
    """As well as one of IPv4."""
    with serve(sum_root, "--host", "::1", "--workers", "2", "--state", f"sqlite://{tmp_path / 'x.db'}") as process:
        assert process.ready_line.startswith("ready: grpc=[::1]:")
        address = process.ready_line.split("grpc=")[1].split()[0]
        assert run_command("health", "--address", address).stdout == "SERVING\n"


@ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]", "[::]"])
def test_an_ipv6_port_that_is_held_is_taken(host: str) -> None:
    """For a second supervisor as well."""
    port = ReservedPort(host, 0)
    with pytest.raises(StartFailed, match=r"\[::1?\]:\d+ for gRPC: the port is taken"):
        ReservedPort(host, port.number)
    port.close()


async def test_metrics_can_be_elsewhere(sum_root: Path) -> None:
    """Predictions for this machine only, metrics for Prometheus on another."""
    async with listening(sum_root, "127.0.0.1", metrics_host="127.0.0.2") as server:
        socket.create_connection(("127.0.0.2", server.metrics_port), timeout=TIMEOUT_S).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.metrics_port), timeout=TIMEOUT_S)
        assert f"metrics=http://127.0.0.2:{server.metrics_port}/metrics" in server.ready_line


# --- unix sockets


async def test_a_unix_socket_is_served_on(sum_root: Path, tmp_path: Path) -> None:
    """`tidegate health` finds it, and metrics are on this machine only."""
    path = tmp_path / "s"
    async with listening(sum_root, f"unix:{path}") as server:
        assert await serves(f"unix:{path}")
        assert server.ready_line.startswith(f"ready: grpc=unix:{path} metrics=http://localhost:")
    assert not path.exists()


def test_health_asks_at_a_unix_socket(sum_root: Path, tmp_path: Path) -> None:
    """Given as an address, or by the server's environment variable."""
    with serve(sum_root, "--host", f"unix:{tmp_path / 's'}"):
        assert run_command("health", "--address", f"unix:{tmp_path / 's'}").stdout == "SERVING\n"
        assert run_command("health", TIDEGATE_HOST=f"unix:{tmp_path / 's'}").stdout == "SERVING\n"


async def test_the_socket_of_a_dead_server_is_no_hindrance(sum_root: Path, tmp_path: Path) -> None:
    """`kill -9` leaves its file behind."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with listening(sum_root, f"unix:{path}"):
        assert await serves(f"unix:{path}")


async def test_the_socket_of_another_server_is_refused(sum_root: Path, tmp_path: Path) -> None:
    """It keeps its socket, which gRPC would remove."""
    path = tmp_path / "s"
    async with listening(sum_root, f"unix:{path}"):
        with pytest.raises(StartFailed, match="another server listens there"):
            await Server(ServerConfig(models=sum_root, host=f"unix:{path}", metrics_port=0, state="memory:")).start()
        assert await serves(f"unix:{path}")


async def test_a_file_that_is_no_socket_is_refused(sum_root: Path, tmp_path: Path) -> None:
    """The file is not changed."""
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartFailed, match="a file that is no socket"):
        await Server(ServerConfig(models=sum_root, host=f"unix:{path}", metrics_port=0, state="memory:")).start()
    assert path.read_text() == "precious"


def test_workers_cannot_share_a_unix_socket() -> None:
    """Saying so is better than having the last one get all."""
    with pytest.raises(InvalidSetting, match="one process alone can listen on a unix socket; say --workers 1"):
        ServerConfig(models=Path(), host="unix:/run/s", workers=2)
    assert ServerConfig(models=Path(), host="unix:/run/s").worker_count == 1


# --- spelling


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "a name or an address"),
        ("localhost:50051", "without a port"),
        ("[::1", "without a port"),
        ("::g", "without a port"),
        ("unix:", "the path of a socket"),
        (f"unix:/{'x' * UNIX_PATH_BYTES_MAX}", "has 108 bytes, expected at most 107"),
    ],
)
def test_a_host_that_cannot_be_is_refused(host: str, words: str) -> None:
    """Before anything is started, with what was expected."""
    with pytest.raises(ValueError, match=words):
        checked(host)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "localhost:7"),
        ("10.0.0.1", "10.0.0.1:7"),
        ("::1", "[::1]:7"),
        ("[::1]", "[::1]:7"),
        ("unix:/run/s", "unix:/run/s"),
    ],
)
def test_an_address_is_as_grpc_and_urls_take_it(host: str, address: str) -> None:
    """IPv6 in brackets; a unix socket without a port."""
    assert with_port(checked(host), 7) == address
