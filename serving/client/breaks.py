"""Whose timestep it may be that breaks the server: it harms no other stream, and is not sent for ever.

After some breaks timesteps go one at a time, so that the next break tells which one it is. One that was alone in flight at a
break waits behind all others from then on, and is given up when it was tried for too long.
"""

from dataclasses import dataclass

from serving.client.window import Window
from serving.core.spec import Ints

# A network that breaks twice in a row is no rare thing; what breaks a server does so each time.
CAREFUL_TRIES = 2


@dataclass(slots=True)
class Suspect:
    """A timestep of a stream that was in flight at breaks since then; `alone` says whether at one of them nothing else was."""

    step: int
    since: float
    alone: bool = False


class Breaks:
    """What was in flight when calls broke."""

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
        self._suspects = {
            stream: suspect for stream, suspect in self._suspects.items() if self._is_one(stream, suspect)
        }
        for stream, step in unanswered.items():
            self._suspects.setdefault(stream, Suspect(step, now))
        if len(unanswered) == 1 and window.in_use > 1 and window.careful:
            self._suspects[next(iter(unanswered))].alone = True
        window.careful = len(self._suspects) > 1 and tries >= CAREFUL_TRIES
        return [s for s, suspect in self._suspects.items() if suspect.alone and now - suspect.since > limit_s]

    def get_on(self) -> None:
        """There was an answer: timesteps go together again once those that were in flight at the last break are answered."""
        if self._window.careful and not any(
            not suspect.alone and self._is_one(stream, suspect) for stream, suspect in self._suspects.items()
        ):
            self._window.careful = False

    def to_hold(self, streams: Ints) -> list[int]:
        """Which of these streams wait until the others had time to get on."""
        held = [
            stream
            for stream in streams.tolist()
            if (suspect := self._suspects.get(stream)) is not None and suspect.alone and self._is_one(stream, suspect)
        ]
        return held if len(held) < self._window.in_use else []

    def forget(self, stream: int) -> None:
        """Another stream will have this index."""
        self._suspects.pop(stream, None)

    def _is_one(self, stream: int, suspect: Suspect) -> bool:
        """Whether that timestep is still not answered."""
        return bool(self._window.usable[stream] and self._window.answered[stream] < suspect.step)
