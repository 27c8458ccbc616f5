"""Streams that stay in their slots after a single call, as connections stay in a connection pool.

A `PredictOne` call opens its stream, applies one timestep and releases the stream. If the stream left its slot each
time, the next call would have to claim it in the store and load it again for every timestep. An idle stream is stored
like any other. It leaves its slot after the usual time of silence, or when there are too many idle streams.
"""

from collections.abc import Callable

from tidegate.core.slots import Slots
from tidegate.core.streams import Stream

# At most one in this number of slots of a model holds an idle stream. The others are for streaming calls.
IDLE_FRACTION = 4


class IdleStreams:
    """The idle streams, the least recently used first. `evict` makes one leave its slot."""

    def __init__(self, evict: Callable[[Stream], None]) -> None:
        self._evict = evict
        self._streams: dict[Slots, dict[Stream, None]] = {}

    def __repr__(self) -> str:
        return f"<IdleStreams: {len(self)} streams>"

    def __len__(self) -> int:
        """The number of idle streams."""
        return sum(map(len, self._streams.values()))

    def __contains__(self, stream: Stream) -> bool:
        """Whether a stream is idle."""
        return stream in self._streams.get(stream.slots, {})

    def add(self, stream: Stream) -> None:
        """Adds a live stream. When there are too many, the least recently used one leaves its slot."""
        streams = self._streams.setdefault(stream.slots, {})
        streams[stream] = None
        if len(streams) > max(1, stream.slots.capacity // IDLE_FRACTION):
            oldest = next(iter(streams))
            del streams[oldest]
            self._evict(oldest)

    def discard(self, stream: Stream) -> None:
        """Removes a stream, if it is there: a call has opened it, or it has left this process."""
        self._streams.get(stream.slots, {}).pop(stream, None)

    def clear(self, slots: Slots | None = None) -> None:
        """Makes all of them leave their slots, or all of one model."""
        for streams in self._streams.values() if slots is None else [self._streams.get(slots, {})]:
            while streams:
                self._evict(streams.popitem()[0])

    def forget(self, slots: Slots) -> None:
        """Frees what is kept for a model that has no streams here."""
        self._streams.pop(slots, None)
