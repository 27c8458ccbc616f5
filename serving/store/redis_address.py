"""The address of a redis: `redis://`, `rediss://` with TLS, and both with `+sentinel` for a redis that fails over."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

EXPECTED = (
    "redis://[user:password@]host[:port][/database] or redis+sentinel://host[:port],.../service[/database], "
    "with TLS rediss:// or rediss+sentinel://"
)
SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
REDIS_PORT = 6379
SENTINEL_PORT = 26379
TLS_OPTIONS = ("ca", "cert", "key")
SENTINEL_OPTIONS = ("sentinel-user", "sentinel-password")
OPTIONS = ("replicas", *TLS_OPTIONS, *SENTINEL_OPTIONS)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class Tls:
    """The files of a TLS connection, in PEM.

    Attributes:
        ca: the authorities that are trusted; None for those of the system.
        cert: the certificate of the client, None without one.
        key: the key of the client.

    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A new context, with the files as they are now. Raises OSError, with its name, when one cannot be used."""
        for path in filter(None, (self.ca, self.cert, self.key)):
            path.open().close()  # the errors of ssl do not name the file
        # With a CA file, the authorities of the system are not trusted.
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True)
class RedisAddress:
    """Where a redis is, and how to connect to it. Its `repr` and `name` have no secrets.

    Attributes:
        nodes: host and port of the server, or those of the sentinels.
        database: the number of the database.
        service: the name under which the sentinels know the primary; empty without sentinels.
        user: None for the default user.
        password: None if none is needed.
        sentinel_user: the same for the sentinels.
        sentinel_password: the same for the sentinels.
        tls: None without TLS.
        replicas: how many replicas must have a write before it counts as stored.

    """

    nodes: tuple[tuple[str, int], ...]
    database: int = 0
    service: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    replicas: int = 0

    @property
    def name(self) -> str:
        """The address without user, password and options."""
        scheme = ("rediss" if self.tls else "redis") + ("+sentinel" if self.service else "")
        nodes = ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.nodes)
        return f"{scheme}://{nodes}/{f'{self.service}/' if self.service else ''}{self.database}"


def parse_redis_address(address: str) -> RedisAddress:
    """Reads an address of one of SCHEMES.

    Raises ValueError, without any part of the address that might be secret.
    """
    try:
        url = urlsplit(address)
    except ValueError:
        raise ValueError("a host in brackets is not an IPv6 address") from None
    if url.fragment:
        raise ValueError("it has a #; write %23 for one in a password")
    has_sentinels, has_tls = url.scheme.endswith("+sentinel"), url.scheme.startswith("rediss")
    options = _options(url.query, has_sentinels=has_sentinels, has_tls=has_tls)
    login, _, hosts = url.netloc.rpartition("@")
    user, _, password = login.partition(":")
    nodes = tuple(_node(host, SENTINEL_PORT if has_sentinels else REDIS_PORT) for host in hosts.split(","))
    if len(nodes) > 1 and not has_sentinels:
        raise ValueError("several hosts are the sentinels of a redis+sentinel:// address; a cluster is not supported")
    service, database = _path(url.path, has_sentinels=has_sentinels)
    ca, cert, key = (Path(options[name]) if name in options else None for name in TLS_OPTIONS)
    if (cert is None) != (key is None):
        raise ValueError("cert and key belong together; give both or none")
    # Without sentinels nothing fails over by itself. With them, a write that only the primary has is lost with it.
    replicas = options.get("replicas", "1" if has_sentinels else "0")
    if not re.fullmatch("[0-9]{1,2}", replicas):
        raise ValueError("replicas is not a number from 0 to 99")
    return RedisAddress(
        nodes,
        database,
        service,
        unquote(user) or None,
        unquote(password) or None,
        options.get("sentinel-user"),
        options.get("sentinel-password"),
        Tls(ca, cert, key) if has_tls else None,
        int(replicas),
    )


def _options(query: str, *, has_sentinels: bool, has_tls: bool) -> dict[str, str]:
    """The options after the ?."""
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("an option after ? is given twice")
    for name, value in options.items():
        if name not in OPTIONS:
            raise ValueError(f"an option after ? is not known; these are: {', '.join(OPTIONS)}")
        if not value:
            raise ValueError(f"the option {name} is empty")
        if name in TLS_OPTIONS and not has_tls:
            raise ValueError(f"the option {name} needs TLS; write rediss instead of redis")
        if name in SENTINEL_OPTIONS and not has_sentinels:
            raise ValueError(f"the option {name} needs redis+sentinel://")
    return options


def _node(text: str, default_port: int) -> tuple[str, int]:
    """A host and its port."""
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("a host or its port is not valid; in a password, write / ? # @ as %2F %3F %23 %40")
    port = int(found[2] or default_port)
    if not 0 < port < 65_536:
        raise ValueError("a port is not between 1 and 65535")
    return found[1].strip("[]"), port


def _path(path: str, *, has_sentinels: bool) -> tuple[str, int]:
    """The service and the number of the database."""
    parts = [unquote(part) for part in path.split("/") if part]
    if has_sentinels and not parts:
        raise ValueError("the name of the service is missing after the sentinels")
    service = parts.pop(0) if has_sentinels else ""
    if len(parts) > 1:
        raise ValueError("too many parts after the host; in a password, write / as %2F")
    database = parts[0] if parts else "0"
    if not (database.isascii() and database.isdecimal()):
        raise ValueError("the database is not a number")
    return service, int(database)
