"""Keeps the checkpoints of streams that are not in memory, and the epochs that fence their writers."""

from serving.store.address import store_at
from serving.store.codec import decode, encode
from serving.store.memory import MemoryStore
from serving.store.sqlite import SqliteStore
from serving.store.store import Head, Holder, Mark, Marking, Record, Store, Tombstone, Wanted

# RedisStore is not here: importing it needs the package `redis`. `store_at` does so when it is asked for one.
__all__ = [
    "Head",
    "Holder",
    "Mark",
    "Marking",
    "MemoryStore",
    "Record",
    "SqliteStore",
    "Store",
    "Tombstone",
    "Wanted",
    "decode",
    "encode",
    "store_at",
]
