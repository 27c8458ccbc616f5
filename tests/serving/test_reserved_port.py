"""A port that is reserved for workers to share."""

import socket

import pytest

from tests.timeouts import TIMEOUT_S
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.reserved_port import ReservedPort


def listen(port: int, host: str = "127.0.0.1", *, share: bool) -> socket.socket:
    """A listening socket, as gRPC makes it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
def test_port_0_is_a_free_one_that_workers_can_share(host: str) -> None:
    """Two sockets listen on it at the same time, and accept connections."""
    port = ReservedPort(host, 0)
    with listen(port.number, share=True), listen(port.number, share=True):
        socket.create_connection(("127.0.0.1", port.number), timeout=TIMEOUT_S).close()
    port.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("share", [False, True])
def test_a_port_in_use_is_refused(host: str, share: bool) -> None:
    """Also when the other one would share it: it would get half of the connections."""
    with listen(0, share=share) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"{host}:{number} for gRPC: the port is taken"):
            ReservedPort(host, number)


def test_a_port_is_reserved_before_a_server_listens() -> None:
    """A second supervisor that starts at the same time fails, and so does a server without one."""
    port = ReservedPort("127.0.0.1", 0)
    with pytest.raises(StartFailed):
        ReservedPort("127.0.0.1", port.number)
    with pytest.raises(OSError, match="in use"):
        listen(port.number, share=False)
    port.close()


def test_a_closed_port_is_free() -> None:
    """At once."""
    port = ReservedPort("127.0.0.1", 0)
    port.close()
    listen(port.number, share=False).close()


def test_old_connections_of_a_server_that_was_alone_do_not_count() -> None:
    """They would block the port for a minute. Changing --workers must not take so long."""
    with listen(0, share=False) as before:
        number = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number), timeout=TIMEOUT_S) as client:
            accepted, _ = before.accept()
            accepted.close()  # the side that closes first keeps the closing connection
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket() as naive:
        naive.bind(("127.0.0.1", number))
    port = ReservedPort("127.0.0.1", number)
    port.close()


def test_an_address_that_is_not_ours_is_refused() -> None:
    """With the address."""
    with pytest.raises(StartFailed, match=r"192\.0\.2\.1:0"):
        ReservedPort("192.0.2.1", 0)
