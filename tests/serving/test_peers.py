"""Servers on one store: heartbeats, notices, and how long one waits for another."""

import asyncio
from dataclasses import replace

import pytest

from tests.engines import key
from tests.timeouts import TIMEOUT_S
from tidegate.core.spec import Key, ModelId
from tidegate.runtime import peers as peers_module
from tidegate.runtime.peers import Peers, PeerUnresponsive
from tidegate.store import Holder, MemoryStore, Record, StreamMetadata

MODEL = ModelId("toy", "1", "f" * 64)


class Restless(MemoryStore):
    """Counts heartbeats, has three notices at once, and returns a new epoch each time a stream is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = 0
        self.noticed = False
        self.epoch = 0

    async def heartbeat(self) -> str:
        """Counts."""
        self.beats += 1
        return ""

    async def take_notices(self) -> list[Key]:
        """Three, the first time."""
        noticed, self.noticed = self.noticed, True
        return [] if noticed else [key("a"), key("b"), key("c")]

    async def load(self, of: Key) -> Record:
        """Each time under another epoch."""
        self.epoch += 1
        head = StreamMetadata(of, self.epoch, 1, MODEL, 0, 0, 0)
        return Record(replace(head, holder=Holder.OTHER, live=True), None)

    async def request_save(self, of: Key, epoch: int) -> int:
        """Does nothing."""
        await asyncio.sleep(0)
        return 1


async def nothing() -> None:
    """The store was not restarted."""


async def test_looking_at_many_streams_delays_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that is due comes before the next notices are handled, not after all of them."""
    monkeypatch.setattr(peers_module, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(peers_module, "CONCURRENT_MAX", 1)
    store, beats, done = Restless(), [], asyncio.Event()

    async def look(_: Key) -> None:
        beats.append(store.beats)
        if len(beats) == 3:
            done.set()

    running = asyncio.create_task(Peers(store, look, lambda: True, nothing).run())
    async with asyncio.timeout(TIMEOUT_S):
        await done.wait()
    running.cancel()
    await asyncio.wait([running])
    assert beats == [2, 3, 4]


async def test_an_ask_ends_also_when_the_owner_changes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a stream that changes hands again and again fails because no server responds."""
    monkeypatch.setattr(peers_module, "SAVE_WAIT_SECONDS", 0.02)

    async def look(_: Key) -> None:
        raise AssertionError

    peers = Peers(Restless(), look, lambda: False, nothing)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(PeerUnresponsive, match=r"^the server that has stream 'a' in memory does not answer"):
            await peers.load_settled(key("a"))
