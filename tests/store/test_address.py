import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.core.errors import StoreUnavailable
from tidegate.store import MemoryStore, SqliteStore, make_store


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
    ],
)
def test_redis_is_a_server(address: str, name: str) -> None:
    """`redis://host:port/db` is a server. Its `repr` has no password."""
    assert repr(make_store(address)) == f"<RedisStore {name}>"


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
        "rediss://cache",
        "postgres://cache/0",
        "/data/streams.db",
    ],
)
def test_anything_else_is_refused(address: str) -> None:
    """The error for any other address says what was expected."""
    with pytest.raises(ValueError, match="expected memory:, sqlite:///absolute/path or redis://"):
        make_store(address)


@pytest.mark.parametrize(
    "address", ["redis://:secret@cache/three", "redis://:secret@cache:x", "rediss://me:secret@cache"]
)
def test_a_refusal_hides_the_password(address: str) -> None:
    """Errors show an address without the part before the @."""
    with pytest.raises(ValueError, match="://cache") as refused:
        make_store(address)
    assert "secret" not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redis address without the package: the error says what to install."""
    monkeypatch.delitem(sys.modules, "tidegate.store.redis", raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StoreUnavailable, match=r"store redis://cache: .* pip install 'tidegate\[redis\]'"):
        make_store("redis://:secret@cache")


def test_the_package_is_loaded_only_for_redis() -> None:
    """Other stores do not import the package `redis`."""
    script = "import sys, tidegate.store as s; s.make_store('memory:'); s.make_store('sqlite:///x'); assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
