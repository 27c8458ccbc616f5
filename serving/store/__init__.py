"""Stores the checkpoints of streams, and the epochs that fence their writers."""

from tidegate.store.address import make_store, sqlite_path
from tidegate.store.codec import decode, encode
from tidegate.store.memory import MemoryStore
from tidegate.store.sqlite import SqliteStore
from tidegate.store.sqlite_backup import copy_database
from tidegate.store.store import (
    Holder,
    Record,
    Residency,
    ResidencyUpdate,
    ScanFilter,
    ScanScope,
    Store,
    StreamMetadata,
    Tombstone,
)

# RedisStore is not imported here: it needs the package `redis`. `make_store` imports it on demand.
__all__ = [
    "Holder",
    "MemoryStore",
    "Record",
    "Residency",
    "ResidencyUpdate",
    "ScanFilter",
    "ScanScope",
    "SqliteStore",
    "Store",
    "StreamMetadata",
    "Tombstone",
    "copy_database",
    "decode",
    "encode",
    "make_store",
    "sqlite_path",
]
