"""Keeps the checkpoints of streams that are not in memory, and the epochs that fence their writers."""

from serving.store.memory import MemoryStore
from serving.store.store import Record, Store

__all__ = ["MemoryStore", "Record", "Store"]
