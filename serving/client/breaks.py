"""Whose timestep it may be that breaks the server: it harms no other stream, and is not sent for ever.

After some breaks timesteps go one at a time, so that the next break tells which one it is. One that was alone in flight at a
break waits behind all others from then on, and is given up when it was tried for too long.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serving.client.window import Window

# A network that breaks twice in a row is no rare thing; what breaks a server does so each time.
CAREFUL_TRIES = 2


@dataclass(slots=True)
class Suspect:
    """A timestep of a stream that was in flight at breaks since then; `alone` says whether at one of them nothing else was."""

    step: int
    since: float
    alone: bool = False


class Breaks:
    """What was in flight when calls broke, and is not answered since."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._suspects: dict[int, Suspect] = {}

    def note(self, now: float, tries: int, limit_s: float) -> list[int]:
        """A call has broken, before `Window.cut`; gives the streams to be given up.

        Args:
            now: the time, in seconds.
            tries: how many calls before it were in vain.
            limit_s: how long a timestep that breaks the server is tried.

        """
        window, unanswered = self._window, self._window.unanswered()
        self._forget_answered()
        for stream, step in unanswered.items():
            self._suspects.setdefault(stream, Suspect(step, now))
        if len(unanswered) == 1 and window.in_use > 1 and window.careful:
            self._suspects[next(iter(unanswered))].alone = True
        window.careful = len(self._suspects) > 1 and tries >= CAREFUL_TRIES
        return [s for s, suspect in self._suspects.items() if suspect.alone and now - suspect.since > limit_s]

    def get_on(self) -> None:
        """There was an answer: timesteps go together again once those that were in flight at the last break are answered."""
        if self._window.careful:
            self._forget_answered()
            self._window.careful = not all(suspect.alone for suspect in self._suspects.values())

    def to_hold(self, streams: Iterable[int]) -> list[int]:
        """Which of these streams wait until the others had time to get on."""
        self._forget_answered()
        held = [stream for stream in streams if stream in self._suspects and self._suspects[stream].alone]
        return held if len(held) < self._window.in_use else []

    def forget(self, stream: int) -> None:
        """Another stream will have this index."""
        self._suspects.pop(stream, None)

    def _forget_answered(self) -> None:
        window = self._window
        self._suspects = {
            stream: suspect
            for stream, suspect in self._suspects.items()
            if window.usable[stream] and window.answered[stream] < suspect.step
        }
