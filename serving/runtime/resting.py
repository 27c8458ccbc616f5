"""Streams that no call has open and that stay in their slots, because the next single call is likely to come soon.

A single call opens its stream, has one timestep answered and lets go. If the stream left its slot each time, the next call would
claim it in the store and read it again, for every timestep. One that rests is stored like any other; it leaves its slot after the
usual silence, or when too many rest.
"""

from collections.abc import Callable

from serving.core.slots import Slots
from serving.core.streams import Stream

# Of the slots of a model, one in so many may be taken by streams that rest: the others are for calls that stream.
SHARE = 4


class Resting:
    """The streams that rest, those that came last at the end; `leave` has one leave its slot."""

    def __init__(self, leave: Callable[[Stream], None]) -> None:
        self._leave = leave
        self._streams: dict[Slots, dict[Stream, None]] = {}

    def __repr__(self) -> str:
        return f"<Resting: {len(self)} streams>"

    def __len__(self) -> int:
        """How many rest."""
        return sum(map(len, self._streams.values()))

    def __contains__(self, stream: Stream) -> bool:
        """Whether a stream rests."""
        return stream in self._streams.get(stream.slots, {})

    def add(self, stream: Stream) -> None:
        """Lets a live stream rest; when too many do, the one that came first leaves."""
        streams = self._streams.setdefault(stream.slots, {})
        streams[stream] = None
        if len(streams) > max(1, stream.slots.capacity // SHARE):
            first = next(iter(streams))
            del streams[first]
            self._leave(first)

    def discard(self, stream: Stream) -> None:
        """A stream rests no longer, if it did: a call has opened it, or it is held no more."""
        self._streams.get(stream.slots, {}).pop(stream, None)

    def leave(self) -> None:
        """Has all leave their slots."""
        for streams in self._streams.values():
            while streams:
                self._leave(streams.popitem()[0])
