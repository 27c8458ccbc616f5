import re
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.core.errors import StoreUnavailable
from tidegate.store import MemoryStore, SqliteStore, make_store
from tidegate.store.redis_address import parse_redis_address


def test_memory_is_a_store_in_memory() -> None:
    """`memory:` is a store in the memory of the process."""
    store = make_store("memory:")
    assert isinstance(store, MemoryStore)
    assert store.survives == "a broken connection"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("sqlite:///data/streams.db", "/data/streams.db"),
        ("sqlite:////data/streams.db", "/data/streams.db"),
        ("sqlite:///data/a%20b%3F.db", "/data/a b?.db"),
    ],
)
def test_sqlite_is_a_file(address: str, path: str) -> None:
    """`sqlite:///path` has an absolute path; a fourth slash is allowed, as other programs write it."""
    store = make_store(address)
    assert isinstance(store, SqliteStore)
    assert repr(store) == f"<SqliteStore {Path(path)}: closed>"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("redis://cache", "redis://cache:6379/0"),
        ("redis://cache:7000/", "redis://cache:7000/0"),
        ("redis://user:se%40cret@cache:7000/3", "redis://cache:7000/3"),
        ("redis://:secret@[::1]:7000/3", "redis://[::1]:7000/3"),
        ("rediss://user:secret@cache:7000/3?ca=/ca.pem&cert=/a.pem&key=/a.key", "rediss://cache:7000/3"),
        ("redis+sentinel://:secret@a,b:7000/main", "redis+sentinel://a:26379,b:7000/main/0"),
        ("rediss+sentinel://[::1],b/main/2?sentinel-password=secret", "rediss+sentinel://[::1]:26379,b:26379/main/2"),
    ],
)
def test_redis_is_a_server(address: str, name: str) -> None:
    """`redis://host:port/db` is a server, `redis+sentinel://` one that fails over. Its `repr` has no password."""
    assert repr(make_store(address)) == f"<RedisStore {name}>"
    assert "secret" not in repr(parse_redis_address(address))


@pytest.mark.parametrize(
    ("address", "user", "password", "replicas"),
    [
        ("redis://cache", None, None, 0),
        ("redis://ann:a%40b%2Fc%3F@cache?replicas=2", "ann", "a@b/c?", 2),
        ("redis://:a:b@cache", None, "a:b", 0),
        ("redis+sentinel://ann:x@a/main", "ann", "x", 1),
        ("redis+sentinel://a/main?replicas=0", None, None, 0),
    ],
)
def test_login_and_replicas(address: str, user: str | None, password: str | None, replicas: int) -> None:
    """User and password are unquoted. With sentinels one replica must have a write, else none."""
    parsed = parse_redis_address(address)
    assert (parsed.user, parsed.password, parsed.replicas) == (user, password, replicas)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "memory",
        "memory://",
        "memory:x",
        "sqlite:",
        "sqlite:streams.db",
        "sqlite://streams.db",
        "sqlite://host/streams.db",
        "sqlite:///",
        "sqlite:///a.db?mode=ro",
        "redis:",
        "redis://",
        "redis:///3",
        "redis://cache:port",
        "redis://cache:70000",
        "redis://cache/three",
        "redis://cache/0?ssl=true",
        "redis://cache/0/1",
        "redis://cache/0#a",
        "redis://cache?ca=/ca.pem",
        "redis://cache?replicas=-1",
        "redis://cache?replicas=1&replicas=2",
        "redis://a,b/0",
        "redis://[::1",
        "rediss://cache?ca=",
        "rediss://cache?cert=/a.pem",
        "rediss://cache?sentinel-user=ann",
        "redis+sentinel://a,b",
        "redis+sentinel://a,/main",
        "redis+sentinel://a/main/three",
        "redis+cluster://cache",
        "postgres://cache/0",
        "/data/streams.db",
    ],
)
def test_anything_else_is_refused(address: str) -> None:
    """The error for any other address says what was expected."""
    with pytest.raises(ValueError, match="expected memory:, sqlite:///absolute/path or redis://"):
        make_store(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:secret@cache/three", "redis://cache/three"),
        ("redis://:secret@cache:x", "redis://cache:x"),
        ("http://me:secret@cache", "http://cache"),
        ("rediss://cache/0?sentinel-password=secret", "rediss://cache/0"),
        ("redis://cache/0?pass=secret", "redis://cache/0"),
        ("redis://:secret/secret@cache", "redis://..."),
        ("redis://:secret?secret@cache", "redis://..."),
        ("redis://:secret#secret@cache", "redis://..."),
        ("redis://:secret@secret?a@cache", "redis://..."),
        ("redis://:secret@secret@cache:x", "redis://..."),
    ],
)
def test_a_refusal_hides_the_password(address: str, shown: str) -> None:
    """Errors show an address without login and options, and none of it when a password may have been cut apart."""
    with pytest.raises(ValueError, match=re.escape(f"{shown}: ")) as refused:
        make_store(address)
    assert "secret" not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redis address without the package: the error says what to install."""
    for module in ("tidegate.store.redis", "tidegate.store.redis_client"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StoreUnavailable, match=r"store redis://cache:6379/0: .* pip install 'tidegate\[redis\]'"):
        make_store("redis://:secret@cache")


def test_the_package_is_loaded_only_for_redis() -> None:
    """Other stores do not import the package `redis`."""
    script = "import sys, tidegate.store as s; s.make_store('memory:'); s.make_store('sqlite:///x'); assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
