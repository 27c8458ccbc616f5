"""A host to listen on, as people write it: a name, an IPv4 or IPv6 address, all addresses, or the path of a unix socket."""

import ipaddress
import socket
import stat
from pathlib import Path

# Each means every address of both families, as gRPC takes them; in one socket, if the system has both.
WILDCARDS = ("0.0.0.0", "::", "[::]")  # noqa: S104 (compared with, not bound to)
UNIX = "unix:"
# What the system has room for in the address of a unix socket, less the byte that ends it.
UNIX_PATH_BYTES_MAX = 107


def checked(host: str) -> str:
    """The host, if it can be one; ValueError says what is wrong."""
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


def with_port(host: str, port: int) -> str:
    """What gRPC and URLs take: an IPv6 address in brackets."""
    if is_unix(host):
        return host
    return f"[{_bare(host)}]:{port}" if ":" in host else f"{host}:{port}"


def addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """What gRPC listens on for a host that is no unix socket, in its order. Raises OSError for a name that is unknown."""
    if host not in WILDCARDS:
        found = socket.getaddrinfo(_bare(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    if socket.has_dualstack_ipv6():
        return [(socket.AF_INET6, "::")]
    return [(socket.AF_INET, "0.0.0.0")]  # noqa: S104 (asked for)


def make_socket(family: socket.AddressFamily) -> socket.socket:
    """A socket for one of these addresses; `::` is IPv4 as well."""
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


def why_not_unix(host: str) -> str:
    """Why one cannot listen on a unix socket; empty when one can.

    gRPC removes whatever socket is there before it listens. One that a server has left behind it may remove, nothing else.
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
        probe.settimeout(1.0)  # of a server that is alive the system answers, of one that is frozen perhaps nobody
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return ""
        except OSError as error:
            return str(error.strerror or error)
    return "another server listens there"


def _path(host: str) -> Path:
    """Where it is, also of unix:///PATH, as URLs have it and gRPC takes it."""
    return Path(host.removeprefix(UNIX).removeprefix("//"))


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
