"""A redis that fails over: a primary, its replicas and three sentinels, all real."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT

from tests.ports import free_port
from tests.store.support import RedisServer
from tests.timeouts import TIMEOUT_S
from tests.tls import Certificates

SERVICE = "main"
# A primary is down when it has been silent for so long. Tests wait for it, and a busy machine must not exceed it often.
DOWN_AFTER_MS = 1000
# Without the first, a replica waits five seconds for others before it is copied to.
SETTINGS = ("--repl-diskless-sync-delay", "0", "--appendonly", "yes", "--appendfsync", "always")


class Sentinels:
    """The servers, and the sentinels that watch them.

    Attributes:
        nodes: the servers. The first is the primary at first.
        watchers: the sentinels.
        address: the address of the store, without options.

    """

    def __init__(self, folder: Path, replicas: int, certificates: Certificates | None, more: Sequence[str]) -> None:
        self._folder = folder
        self._certificates = certificates
        self.nodes: list[RedisServer] = []
        self._ports: list[int] = []  # of the nodes, for their clients
        for number in range(1 + replicas):
            port = free_port()
            settings = [*SETTINGS, *self._tls(port), *more]
            if number:
                settings += ["--replicaof", "127.0.0.1", str(self._ports[0])]
            (folder / f"node-{number}").mkdir()
            self.nodes.append(RedisServer(folder / f"node-{number}", *settings))
            self._ports.append(port if certificates else self.nodes[-1].port)
        self._sentinel_ports = [free_port() for _ in range(3)]
        self.watchers: list[RedisServer] = []
        scheme = "rediss" if certificates else "redis"
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._sentinel_ports)
        self.address = f"{scheme}+sentinel://{hosts}/{SERVICE}"

    def start(self) -> None:
        """Waits until all replicas are connected and all sentinels know each other."""
        for node in self.nodes:
            node.start()
        self.wait_for(self.nodes[0], "INFO replication", f"connected_slaves:{len(self.nodes) - 1}")
        for number, port in enumerate(self._sentinel_ports):
            (self._folder / f"sentinel-{number}").mkdir()
            path = self._folder / f"sentinel-{number}" / "sentinel.conf"
            tls = "\n".join(_lines(self._tls(port)))
            watched = f"sentinel monitor {SERVICE} 127.0.0.1 {self._ports[0]} 2\n"
            watched += f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            watched += f"sentinel failover-timeout {SERVICE} 5000\n"
            path.write_text(f"{tls}\n{watched}")
            sentinel = RedisServer(path.parent, config=path, port=None if self._certificates else port)
            self.watchers.append(sentinel)
            sentinel.start()
        for sentinel in self.watchers:
            self.wait_for(sentinel, f"SENTINEL MASTER {SERVICE}", "num-other-sentinels\r\n$1\r\n2\r\n")
            self.wait_for(sentinel, f"SENTINEL MASTER {SERVICE}", f"num-slaves\r\n$1\r\n{len(self.nodes) - 1}\r\n")

    def wait_for(self, server: RedisServer, command: str, answer: str) -> None:
        """Waits until a command to a server has this in its answer."""
        deadline = time.monotonic() + TIMEOUT_S
        while answer.encode() not in server.command(*command.split()):
            assert time.monotonic() < deadline, server.command(*command.split()).decode()
            time.sleep(0.02)

    def failed_over(self) -> RedisServer:
        """Waits until another server is the primary and all sentinels say so. Returns it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for node in self.nodes[1:]:
                if b"role:master" in node.command("INFO", "replication"):
                    port = str(self._ports[self.nodes.index(node)])
                    for watcher in self.watchers:
                        self.wait_for(watcher, f"SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}", f"\r\n{port}\r\n")
                    return node
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        """Kills everything."""
        for server in (*self.watchers, *self.nodes):
            with suppress(AssertionError):
                server.signal(SIGCONT)
            server.kill()

    def _tls(self, port: int) -> list[str]:
        """The settings for TLS on this port; empty without certificates."""
        if (files := self._certificates) is None:
            return []
        settings = ["--tls-port", str(port), "--tls-ca-cert-file", str(files.ca), "--tls-replication", "yes"]
        settings += ["--tls-cert-file", str(files.server_cert), "--tls-key-file", str(files.server_key)]
        # Servers are clients of each other.
        return [
            *settings,
            "--tls-client-cert-file",
            str(files.client_cert),
            "--tls-client-key-file",
            str(files.client_key),
        ]


def _lines(settings: list[str]) -> Iterator[str]:
    """The lines of a configuration file for settings of a command line."""
    for name, value in zip(settings[::2], settings[1::2], strict=True):
        yield f"{name.removeprefix('--')} {value}"


@contextmanager
def sentinels(
    folder: Path, replicas: int, certificates: Certificates | None = None, more: Sequence[str] = ()
) -> Iterator[Sentinels]:
    """A running redis that fails over; `more` are further settings of its servers."""
    running = Sentinels(folder, replicas, certificates, more)
    try:
        running.start()
        yield running
    finally:
        running.close()
