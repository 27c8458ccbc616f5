"""The last durable step of streams that have left this process. They reveal a store that has lost data.

The table keeps the last `STREAMS_MAX` streams. A client that was told a durable step repeats it when it opens its
stream again.
"""

from collections import OrderedDict

from tidegate.core.spec import Key

# About 250 bytes each: 2.5 MB in all, however many streams come and go.
STREAMS_MAX = 10_000


class HighWaterMarks:
    """For each stream, the last timestep that is known to be durable, and the epoch under which it was stored."""

    def __init__(self) -> None:
        self._marks: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<HighWaterMarks of {len(self._marks)} streams>"

    def record(self, key: Key, epoch: int, step: int) -> None:
        """Records that a timestep is durable."""
        self._marks[key] = (epoch, step)
        self._marks.move_to_end(key)
        if len(self._marks) > STREAMS_MAX:
            self._marks.popitem(last=False)

    def find_loss(self, key: Key, epoch: int, step: int) -> int:
        """The known durable step, if it is above `step`; else 0.

        `step` and `epoch` are what the store returned, 0 when it returned nothing. When the store has a higher epoch,
        the stream may have been deleted and begun again, which is no loss. A loss is reported once: the next call
        returns 0.
        """
        known_epoch, known_step = self._marks.get(key, (0, 0))
        if known_step <= step or epoch > known_epoch:
            return 0
        del self._marks[key]
        return known_step
