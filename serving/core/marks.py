"""What a process knows to be stored of streams that it has no longer, so that a store that gives less is found out.

The last `STREAMS_MAX` of them; a client that was told itself says what it was told when it opens its stream again.
"""

from collections import OrderedDict

from serving.core.spec import Key

# Some 250 bytes each: two megabytes and a half, however many streams come and go.
STREAMS_MAX = 10_000


class HighWaterMarks:
    """The last timestep of each stream that is known to be stored, and the epoch under which it was."""

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self._marks: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<HighWaterMarks of {len(self._marks)} streams>"

    def note(self, key: Key, epoch: int, step: int) -> None:
        """Takes note that a timestep is stored."""
        self._marks[key] = (epoch, step)
        self._marks.move_to_end(key)
        if len(self._marks) > self._streams_max:
            self._marks.popitem(last=False)

    def lost(self, key: Key, epoch: int, step: int) -> int:
        """The timestep that was stored, if it is above `step` that a store gives under `epoch`, which is 0 for nothing; else 0.

        A higher epoch than the one that is known may be a stream that was deleted and begun anew, which is no loss. What is
        told once is told: the next call gives 0.
        """
        known_epoch, known_step = self._marks.get(key, (0, 0))
        if known_step <= step or epoch > known_epoch:
            return 0
        del self._marks[key]
        return known_step
