"""Three servers behind the real Envoy with the chart's configuration, over one real redis: nothing is lost or doubled."""

import asyncio
import re
import subprocess
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.deploy.chart import RELEASE, deploy_tool, render
from tests.deploy.name_server import NameServer
from tests.fleet import Fleet, ServerProcess
from tests.graphs import lstm, write_model
from tests.ports import free_port
from tests.sentinels import sentinels
from tests.store.support import RedisServer
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, ClientError

# A hundred streams on each server when something happens to it.
STREAMS, STEPS = 300, 100


def envoy_configuration(listen: int, servers: int, name_server: int) -> str:
    """Envoy's configuration from the chart, with the ports of this test and its name server instead of the cluster's."""
    (text,) = re.findall(r"^  envoy\.yaml: \|\n((?:    .*\n|\n)+)", render(), re.MULTILINE)
    text = textwrap.dedent(text)
    text = text.replace("0.0.0.0, port_value: 50051", f"127.0.0.1, port_value: {listen}")
    text = text.replace(f"{RELEASE}-servers, port_value: 50051", f"{RELEASE}-servers.test, port_value: {servers}")
    for port in ("9901", "9902"):
        text = text.replace(f"port_value: {port}", f"port_value: {free_port()}")
    refresh = "          dns_refresh_rate: 2s\n"
    assert refresh in text
    resolver = f"""
    typed_dns_resolver_config:
      name: envoy.network.dns_resolver.cares
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
        resolvers:
          - socket_address: {{protocol: UDP, address: 127.0.0.1, port_value: {name_server}}}
        dns_resolver_options: {{no_default_search_domain: true}}
"""
    return text.replace(refresh, refresh + textwrap.indent(resolver, "      "))


@asynccontextmanager
async def envoy(folder: Path, servers: int, name_server: int) -> AsyncIterator[str]:
    """Envoy in front of servers on this port; yields its address when a call gets through."""
    listen = free_port()
    path = folder / "envoy.yaml"
    path.write_text(envoy_configuration(listen, servers, name_server), "utf-8")
    command = [deploy_tool("envoy"), "-c", str(path), "--log-level", "warning", "--disable-hot-restart"]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        address = f"127.0.0.1:{listen}"
        async with asyncio.timeout(TIMEOUT_S), Client(address, timeout_s=1.0) as client:
            while True:
                try:
                    await client.models()
                    break
                except ClientError:
                    await asyncio.sleep(0.05)
        yield address
    finally:
        process.terminate()
        await process.wait()


async def number_resumed(server: ServerProcess) -> float:
    """How many streams this server has resumed."""
    return (await asyncio.to_thread(server.metrics))['tidegate_streams_opened_total{kind="resumed"}']


@contextmanager
def one_redis(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a redis, and what kills and restarts it."""
    redis = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()

    def restart() -> None:
        redis.kill()
        redis.start()

    try:
        yield f"{redis.address}/0", restart
    finally:
        redis.kill()


@contextmanager
def failing_over(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a redis with two replicas and three sentinels, and what kills its primary."""
    with sentinels(folder, 2) as redis:
        yield redis.address, redis.nodes[0].kill


@pytest.mark.slow
@pytest.mark.parametrize("store", [one_redis, failing_over], ids=["restart", "failover"])
async def test_no_client_sees_what_happens_to_servers_and_redis(
    tmp_path: Path,
    store: Callable[[Path], AbstractContextManager[tuple[str, Callable[[], None]]]],
) -> None:
    """Servers restart one by one, one is killed, one is added, one is removed, redis is killed: every prediction comes once."""
    deploy_tool("envoy")
    graph = lstm()
    models = write_model(tmp_path / "models", graph)
    port = free_port()
    hosts = [f"127.0.0.{last}" for last in range(2, 6)]
    async with AsyncExitStack() as stack:
        state, kill_redis = stack.enter_context(store(tmp_path))
        servers = [ServerProcess(models, state, "--host", host, port=port) for host in hosts]
        for server in servers:
            stack.push_async_callback(server.close)
        await asyncio.gather(*(server.start() for server in servers[:3]))
        names = await stack.enter_async_context(NameServer(hosts[:3]))
        address = await stack.enter_async_context(envoy(tmp_path, port, names.port))
        fleet = Fleet([address], STREAMS, STEPS, pause_s=0.1)
        running = asyncio.create_task(fleet.run(clients=6))
        await fleet.reached(STREAMS)
        for server in servers[:3]:
            await server.stop()
            await server.start()
        await fleet.reached(STREAMS * STEPS // 4)
        await servers[0].kill()
        await servers[0].start()
        await servers[3].start()
        names.addresses.append(hosts[3])
        await fleet.reached(STREAMS * STEPS // 2)
        names.addresses.remove(hosts[1])
        await servers[1].stop()
        await fleet.reached(STREAMS * STEPS * 3 // 4)
        await asyncio.to_thread(kill_redis)
        await running
        assert await number_resumed(servers[0]) + await number_resumed(servers[2]) > 0
    assert fleet.problems(graph) == []
