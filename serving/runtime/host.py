"""The host to listen on: a name, an IPv4 or IPv6 address, all addresses, or the path of a unix socket."""

import ipaddress
import socket
import stat
from pathlib import Path

# Each means every address of both families, as for gRPC; in one socket, if the system has both.
WILDCARDS = ("0.0.0.0", "::", "[::]")  # noqa: S104 (compared with, not bound to)
UNIX = "unix:"
# The length of a unix socket's path that the system allows, without the terminating byte.
UNIX_PATH_BYTES_MAX = 107


def checked(host: str) -> str:
    """Returns the host if it is valid; else raises ValueError with the reason."""
    if is_unix(host):
        path = _path(host)
        if not path.name:
            raise ValueError("expected the path of a socket behind unix:, such as unix:/run/tidegate.sock")
        if len(bytes(path)) > UNIX_PATH_BYTES_MAX:
            raise ValueError(f"the path has {len(bytes(path))} bytes, expected at most {UNIX_PATH_BYTES_MAX}")
    elif not _bare(host):
        raise ValueError("expected a name or an address; 0.0.0.0 or :: stand for all of both families")
    elif ":" in host:
        try:
            ipaddress.IPv6Address(_bare(host))
        except ValueError:
            raise ValueError("expected a name, an IPv4 or IPv6 address without a port, or unix:PATH") from None
    return host


def is_unix(host: str) -> bool:
    """Whether it is a unix socket, which has no port."""
    return host.startswith(UNIX)


def is_local(host: str) -> bool:
    """Whether only this machine reaches it: a unix socket, localhost or a loopback address."""
    if is_unix(host) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return False


def with_port(host: str, port: int) -> str:
    """Host and port for gRPC and URLs: an IPv6 address is put in brackets."""
    if is_unix(host):
        return host
    return f"[{_bare(host)}]:{port}" if ":" in host else f"{host}:{port}"


def addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses on which gRPC listens for a host that is not a unix socket, in its order.

    Raises OSError for an unknown name.
    """
    if host not in WILDCARDS:
        addresses_found = socket.getaddrinfo(_bare(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in addresses_found))
    if socket.has_dualstack_ipv6():
        return [(socket.AF_INET6, "::")]
    return [(socket.AF_INET, "0.0.0.0")]  # noqa: S104 (asked for)


def make_socket(family: socket.AddressFamily) -> socket.socket:
    """A socket for one of these addresses. `::` includes IPv4."""
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


def why_not_unix(host: str) -> str:
    """Why the server cannot listen on a unix socket; empty when it can.

    gRPC removes any socket that is there before it listens. It may remove one that a dead server has left, nothing
    else.
    """
    path = _path(host)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "" if path.parent.is_dir() else f"the folder {path.parent} is not there"
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISSOCK(mode):
        return "there is a file that is no socket; remove it, or choose another path"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)  # if the server is alive the system accepts; if it hangs, perhaps nobody does
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return ""
        except OSError as error:
            return str(error.strerror or error)
    return "another server listens there"


def _path(host: str) -> Path:
    """The path, also of unix:///PATH, the form of URLs that gRPC accepts."""
    return Path(host.removeprefix(UNIX).removeprefix("//"))


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
