"""Connections to a redis: plain or with TLS, to a server or to the primary that sentinels name."""

import asyncio
import ssl
from contextlib import suppress
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tidegate.store.redis_address import RedisAddress, Tls

# Connections of this process. An operation holds one for a round trip. If none is free it waits, within its timeout.
CONNECTIONS_MAX = 16
# The part of an operation's timeout that one sentinel may take. So an operation finds the third when two hang.
SENTINEL_PART = 0.25


class NotReplicated(Exception):
    """Fewer replicas than asked for have a write."""


class _TlsConnection(Connection):
    """A connection with TLS. It reads the files anew, so certificates may be replaced while the server runs."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Any:
        return {**super()._connection_arguments(), "ssl": self._tls.context()}


class _PrimaryTlsConnection(_TlsConnection, SentinelManagedConnection):
    """The same to the primary that sentinels name."""


class _Sentinels(Sentinel):
    """The sentinels. The one that answered last is asked first.

    The library's own search asks for all primaries and passes over those that are down, so that it finds none until all
    replicas have changed over. And it forgets sentinels when several callers search at once.
    """

    def __init__(self, sentinels: list[Redis]) -> None:
        super().__init__(())  # type: ignore[no-untyped-call]
        self.sentinels = sentinels
        self._lock = asyncio.Lock()

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary. Raises MasterNotFoundError when no sentinel tells."""
        async with self._lock:
            for sentinel in list(self.sentinels):
                with suppress(RedisConnectionError, RedisTimeoutError):
                    found: Any = await sentinel.sentinel_get_master_addr_by_name(service_name)
                    if found:
                        return str(found[0]), int(found[1])
                self.ask_another()
        raise MasterNotFoundError

    def ask_another(self) -> None:
        """Asks this one last from now on: it does not answer, or what it told is out of date."""
        self.sentinels.append(self.sentinels.pop(0))


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary that sentinels name. A caller waits when all are in use."""

    async def forget(self) -> None:
        """Closes idle connections, and asks another sentinel next. Does not wait: a primary that is frozen never answers the end of a TLS connection."""
        self.sentinel_manager.ask_another()
        for connection in list(self._available_connections):
            with suppress(Exception):  # it is given up in any case
                await connection.disconnect(nowait=True)


def make_client(address: RedisAddress, timeout_s: float) -> Redis:
    """A client that connects when it is used. `close_client` closes it."""
    options = {**_options(address.tls, timeout_s), "db": address.database}
    options |= {"username": address.user, "password": address.password}
    options |= {"max_connections": CONNECTIONS_MAX, "timeout": timeout_s}
    if not address.service:
        ((host, port),) = address.nodes
        kind = _TlsConnection if address.tls else Connection
        return Redis(connection_pool=BlockingConnectionPool(connection_class=kind, host=host, port=port, **options))
    sentinel = _Sentinels(_sentinels(address, timeout_s * SENTINEL_PART))
    managed = _PrimaryTlsConnection if address.tls else SentinelManagedConnection
    pool = _PrimaryPool(address.service, sentinel, connection_class=managed, **options)  # type: ignore[no-untyped-call]
    return Redis(connection_pool=pool)


def _sentinels(address: RedisAddress, timeout_s: float) -> list[Redis]:
    options = _options(address.tls, timeout_s)
    options |= {"username": address.sentinel_user, "password": address.sentinel_password, "decode_responses": True}
    kind = _TlsConnection if address.tls else Connection
    pools = (
        BlockingConnectionPool(connection_class=kind, timeout=timeout_s, host=host, port=port, **options)
        for host, port in address.nodes
    )
    return [Redis(connection_pool=pool) for pool in pools]


def _options(tls: Tls | None, timeout_s: float) -> dict[str, Any]:
    """The options of all connections."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # Callers retry if they still need the result. A connection that died while it was in the pool is
        # detected when it is taken, and replaced.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # supported by all versions of both
        **({"tls": tls} if tls else {}),
    }


async def close_client(client: Redis) -> None:
    """Closes the connections, also those to sentinels."""
    pool = client.connection_pool
    pools = [pool]
    if isinstance(pool, _PrimaryPool):
        pools += [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    for each in pools:
        with suppress(RedisError):  # a server that is frozen does not answer the end of a TLS connection
            await each.disconnect()


async def forget_primary(client: Redis) -> None:
    """Closes idle connections to a primary that sentinels have named, so that they are asked again."""
    if isinstance(client.connection_pool, _PrimaryPool):
        await client.connection_pool.forget()


def explained(error: Exception, timeout_s: float, tls: Tls | None) -> str:
    """What is wrong with the server, and what to do about it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError) and getattr(cause, "filename", None) is None:
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted ({cause.verify_message}); see the option ca and the host in its address"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({cause.reason or cause}); see ca and the options cert and key in its address"
    if isinstance(cause, OSError):
        return f"the file {cause.filename} cannot be read ({cause.strerror}); see the options ca, cert and key in its address"
    meaning = next(
        (meaning for kind, meaning in _MEANINGS if isinstance(error, kind)),
        "refused a command: {error}" if isinstance(error, RedisError) else "the connection failed: {error!r}",
    )
    if tls and tls.cert is None and meaning.startswith("cannot be reached"):
        meaning += ", without a client certificate (the options cert and key)"
    return meaning.format(error=error, seconds=timeout_s)


# The first match counts: the library's timeouts and refusals are connection errors too.
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "did not answer within {seconds:g} s"),
    (RedisTimeoutError, "did not answer within {seconds:g} s"),
    (NotReplicated, "{error}; see that its replicas run and are connected"),
    (AuthenticationError, "does not let this user in ({error}); correct the user name and the password in its address"),
    # The library's text of this one has the options of connections, in some versions with passwords.
    (
        MasterNotFoundError,
        "its sentinels name no primary that is up; see that they run, know this name, and accept this login and its TLS",
    ),
    (BusyLoadingError, "is still loading its data after a start; wait"),
    (RedisConnectionError, "cannot be reached ({error}); see that it runs and listens there"),
    (OSError, "cannot be reached ({error}); see that it runs and listens there"),
    (ReadOnlyError, "is a replica, which cannot be written; name the primary"),
    (OutOfMemoryError, "its memory is full; nothing was written: raise maxmemory"),
)
