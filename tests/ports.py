"""Ports for programs that must be told theirs: redis, Envoy, Prometheus, a server that is started again."""

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# How many ports below those that the system gives out by itself are ours to choose from.
CHOICE = 12_000
FIRST = 1024  # those below are for the system

_held: list[IO[bytes]] = []  # locks that last until this process ends


def free_port() -> int:
    """A port that nobody else gets while this process lives: no other test, and no connection of the system.

    A port that was free a moment ago is not enough: before the program listens, another one may have it.
    """
    folder = Path(tempfile.gettempdir()) / "tidegate-test-ports"
    folder.mkdir(exist_ok=True)
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    for port in random.sample(range(max(FIRST, end - CHOICE), end), min(CHOICE, end - FIRST)):
        lock = (folder / str(port)).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise AssertionError("no port is free")
