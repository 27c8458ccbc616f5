"""Who sends timesteps to this worker: whether a call that sends blocks is alone.

A chunk of a block holds up everyone else on the event loop. A call that is alone holds up nobody, so its chunks may be
longer: each has a fixed cost.
"""

from math import inf

# A call is alone when nobody else has sent for so long. Then the next timestep of a sensor with a long period may wait
# for one long chunk, which it does not notice.
QUIET_SECONDS = 2.0
# The sender of timesteps that come one at a time, whoever sends them.
SINGLE_TIMESTEPS = 0


class Senders:
    """The last sender, and when another one has sent. All batchers of a worker share it."""

    def __init__(self) -> None:
        self._last = SINGLE_TIMESTEPS
        self._last_at = self._other_at = -inf

    def __repr__(self) -> str:
        return f"<Senders: last {self._last} at {self._last_at:.3f} s, another one at {self._other_at:.3f} s>"

    def note(self, sender: int, now: float) -> None:
        """Notes that a sender has sent; `now` is by `perf_counter`. A call is known by the id of its handle table."""
        if sender != self._last:
            self._last, self._other_at = sender, self._last_at
        self._last_at = now

    def is_alone(self, sender: int, now: float) -> bool:
        """Whether nobody but this sender has sent lately."""
        other_at = self._other_at if sender == self._last else self._last_at
        return now - other_at >= QUIET_SECONDS
