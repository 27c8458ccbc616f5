"""Creates the store for an address: `memory:`, `sqlite:///path` or one of redis."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tidegate.core.errors import StoreUnavailable
from tidegate.store import redis_address
from tidegate.store.memory import MemoryStore
from tidegate.store.sqlite import SqliteStore
from tidegate.store.store import Store

EXPECTED = f"expected memory:, sqlite:///absolute/path or {redis_address.EXPECTED}"


def make_store(address: str, clock: Callable[[], int] = time.time_ns) -> Store:
    """Creates the store for an address. It is not opened yet.

    Raises:
        ValueError: the address is invalid.
        StoreUnavailable: the package for such a store is not installed.

    """
    if address.partition("://")[0] in redis_address.SCHEMES:
        return _redis(address, clock)
    path = sqlite_path(address)
    return MemoryStore(clock) if path is None else SqliteStore(path, clock)


def sqlite_path(address: str) -> Path | None:
    """The file of a `sqlite:///path`, None for `memory:` and the addresses of a redis. Raises ValueError for all others."""
    if address == "memory:" or address.partition("://")[0] in redis_address.SCHEMES:
        return None
    try:
        url = urlsplit(address)
    except ValueError:
        raise ValueError(f"{_shown(address)}: {EXPECTED}") from None
    if url.query or url.fragment:
        raise ValueError(f"{_shown(address)}: options after ? or # are not known; {EXPECTED}")
    if url.scheme != "sqlite" or url.netloc or not url.path.strip("/") or not url.path.startswith("/"):
        raise ValueError(f"{_shown(address)}: {EXPECTED}")
    return Path("/" + unquote(url.path).lstrip("/"))


def _redis(address: str, clock: Callable[[], int]) -> Store:
    try:
        parsed = redis_address.parse_redis_address(address)
    except ValueError as error:
        raise ValueError(f"{_shown(address)}: {error}; {EXPECTED}") from None
    try:
        from tidegate.store.redis import RedisStore  # noqa: PLC0415 (its package is an extra)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise StoreUnavailable(
            parsed.name, "the package 'redis' is not installed; run: pip install 'tidegate[redis]'"
        ) from None
    return RedisStore(parsed, clock=clock)


def _shown(address: str) -> str:
    """The address without user, password and options.

    A ? # or @ may be part of a password that was not quoted. Where that is possible nothing is shown.
    """
    scheme, separator, rest = address.partition("://")
    beginning, *options = re.split("[?#]", rest, maxsplit=1)
    login, _, hosts = beginning.rpartition("@")
    hidden = any("@" in option for option in options) or "/" in login or "@" in login
    return scheme + separator + ("..." if hidden else hosts)
