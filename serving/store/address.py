"""Creates the store for an address: `memory:`, `sqlite:///path` or `redis://host:port/db`."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from tidegate.core.errors import StoreUnavailable
from tidegate.store.memory import MemoryStore
from tidegate.store.sqlite import SqliteStore
from tidegate.store.store import Store

EXPECTED = "expected memory:, sqlite:///absolute/path or redis://[user:password@]host[:port][/database]"
REDIS_PORT = 6379


def make_store(address: str, clock: Callable[[], int] = time.time_ns) -> Store:
    """Creates the store for an address. It is not opened yet.

    Raises:
        ValueError: the address is invalid.
        StoreUnavailable: the package for such a store is not installed.

    """
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError as error:
        raise ValueError(f"{_shown(address)}: {error}; {EXPECTED}") from None
    if url.query or url.fragment:
        raise ValueError(f"{_shown(address)}: options after ? or # are not known; {EXPECTED}")
    match url.scheme:
        case "memory" if address == "memory:":
            return MemoryStore(clock)
        case "sqlite" if not url.netloc and url.path.strip("/") and url.path.startswith("/"):
            return SqliteStore(Path("/" + unquote(url.path).lstrip("/")), clock)
        case "redis" if url.hostname:
            return _redis(url, port or REDIS_PORT, clock)
    raise ValueError(f"{_shown(address)}: {EXPECTED}")


def _redis(url: SplitResult, port: int, clock: Callable[[], int]) -> Store:
    database = url.path.strip("/") or "0"
    if not (database.isascii() and database.isdecimal()):
        raise ValueError(f"{_shown(url.geturl())}: database '{database}' is not a number; {EXPECTED}")
    try:
        from tidegate.store.redis import RedisStore  # noqa: PLC0415 (its package is an extra)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise StoreUnavailable(
            _shown(url.geturl()), "the package 'redis' is not installed; run: pip install 'tidegate[redis]'"
        ) from None
    return RedisStore(
        url.hostname or "",
        port,
        int(database),
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        clock=clock,
    )


def _shown(address: str) -> str:
    """The address without its password."""
    scheme, separator, rest = address.partition("://")
    return scheme + separator + rest.rpartition("@")[2]
