"""A client's books on one stream: which timesteps have which number, what to send next, and whose an answer is.

It decides and does nothing: no asyncio, no grpc, no clock. `serving.client.stream` sends what `take` gives, and tells it what
came back.

Laws:
1. Timesteps stand in one line, `kept` before `pending`: kept ones were answered and are not durable, pending ones were not
   answered. Numbers follow from the place in the line; so a timestep that is refused leaves no hole, and those behind it
   move up.
2. A timestep leaves the line when it is durable and answered, or when it was refused for good. Nothing else removes one.
3. What is under way on a call is answered in the order it was sent. When one is refused, the server refuses those
   numbered behind it as a gap: those answers are ignored, and the timesteps are sent again.
4. A timestep is handed to its caller when it moves from `pending` to `kept`, and never again.
5. At most `window` timesteps are under way, as many as the server remembers answers for: so an answer that got lost can
   always be had again.
"""

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from serving.client.errors import Diverged, StreamLost


class Group:
    """Timesteps that belong together: when one is refused for good, those behind it in the line fall with it."""

    __slots__ = ("fallen",)

    def __init__(self) -> None:
        self.fallen = False


class Entry:
    """One timestep in the line.

    `ticket` is whatever its caller waits for, None once it has been answered. `repeat` is its number when it asks again
    for an old answer, else 0. `check` is a checksum of its answer. `until` is when to give up on it, set at its first
    refusal.
    """

    __slots__ = ("check", "group", "repeat", "ticket", "until", "values")

    def __init__(self, values: bytes, ticket: Any, group: Group | None = None, repeat: int = 0) -> None:
        self.values = values
        self.ticket = ticket
        self.group = group
        self.repeat = repeat
        self.check: int | None = None
        self.until: float | None = None


class Journal:
    """The line of one stream's timesteps.

    Attributes:
        answered: number of the last timestep whose answer was handed to its caller.
        durable_step: the largest that the server has told.
        window: how many may be under way.

    """

    def __init__(self) -> None:
        self.answered = 0
        self.durable_step = 0
        self.window = 1
        self._kept: deque[Entry] = deque()  # numbers answered - len(kept) + 1 to answered
        self._pending: deque[Entry] = deque()  # numbers from answered + 1
        self._repeats: deque[Entry] = deque()  # asked for again, not sent
        # Since the last open; None stands where the answer is to be ignored.
        self._under_way: deque[tuple[int, Entry | None]] = deque()
        self._cursor = 1  # number of the next timestep to send
        self._applied = 0  # the last timestep that the server is known to have applied

    def __repr__(self) -> str:
        return (
            f"<Journal: {len(self._kept)} kept, {len(self._pending)} pending, {len(self._under_way)} under way, "
            f"answered {self.answered}, durable {self.durable_step}>"
        )

    @property
    def first_step(self) -> int:
        """Number of the first timestep in the line."""
        return self.answered - len(self._kept) + 1

    @property
    def next_step(self) -> int:
        """The number that the next timestep will have."""
        return self.answered + len(self._pending) + 1

    @property
    def idle(self) -> bool:
        """Whether everything has been sent and answered."""
        return not (self._under_way or self.unsent)

    @property
    def unsent(self) -> bool:
        """Whether something is left to be sent on this call."""
        return self._cursor <= self.answered + len(self._pending) or bool(self._repeats)

    @property
    def waiting(self) -> bool:
        """Whether a caller waits for an answer."""
        return bool(self._pending or self._repeats or any(entry and entry.repeat for _, entry in self._under_way))

    def begin(self, next_step: int, durable_step: int, window: int) -> None:
        """The stream begins here; what was before is others' business."""
        self.clear()
        self.answered = next_step - 1
        self.durable_step = durable_step
        self.resume(next_step, window)

    def resume(self, next_step: int, window: int) -> None:
        """The stream was opened again, and the server goes on at `next_step`: nothing is under way any more.

        It was told `first_step`, and has refused if it does not have what is before, or if another client has written meanwhile.
        """
        self.window = max(1, window)
        self._cursor = min(next_step, self.answered + 1)
        self._applied = next_step - 1
        again = [entry for _, entry in self._under_way if entry is not None and entry.repeat]
        self._repeats.extendleft(reversed(again))
        self._under_way.clear()

    def add(self, entry: Entry) -> None:
        """Puts a timestep at the end of the line."""
        self._pending.append(entry)

    def ask_again(self, entry: Entry) -> None:
        """Asks again for the answer of `entry.repeat`, which has been answered."""
        assert 0 < entry.repeat <= self.answered
        self._repeats.append(entry)

    def take(self) -> tuple[int, bytes] | None:
        """What to send now, number and values; None when nothing may be sent."""
        if len(self._under_way) >= self.window:
            return None
        self._cursor = max(self._cursor, self.first_step)
        if self._cursor <= self.answered:
            entry = self._kept[self._cursor - self.first_step]
        elif self._repeats and self._repeats[0].repeat <= self._applied:
            # Only then: one that the server has not applied yet would be applied with the values that are asked with.
            entry = self._repeats.popleft()
            self._under_way.append((entry.repeat, entry))
            return entry.repeat, entry.values
        elif self._cursor < self.next_step:
            entry = self._pending[self._cursor - self.answered - 1]
        else:
            return None
        number = self._cursor
        self._cursor += 1
        self._under_way.append((number, entry))
        return number, entry.values

    def predicted(self, step: int, outputs: Sequence[bytes], *, comparable: bool) -> Entry | None:
        """A prediction came; gives the timestep whose caller shall have it, None when nobody shall.

        Raises:
            Diverged: `comparable`, and it differs from what was delivered for the same timestep.
            StreamLost: it answers nothing.

        """
        entry = self._answers(step)
        if entry is None:
            return None
        if entry.repeat:
            return entry
        self._applied = max(self._applied, step)
        if step > self.answered:
            self._settle(entry)
            if step > self.durable_step:
                entry.check = _checksum(outputs)
            return entry
        if comparable and outputs and entry.check is not None and entry.check != _checksum(outputs):
            raise Diverged(
                f"timestep {step}, sent again, was answered otherwise than before: what was delivered since timestep "
                f"{self.durable_step} is not what the server goes on from; open the stream again to go on with the server's",
                "DIVERGED",
            )
        return None

    def refused(self, step: int, next_step: int) -> Entry | None:
        """A timestep was refused; gives it, None when that is to be ignored.

        Then comes one of `send_again`, `give_up`, or the end.
        """
        entry = self._answers(step)
        if entry is not None and next_step > step:
            self._applied = max(self._applied, next_step - 1)
        return entry

    def send_again(self, step: int) -> None:
        """Sends a refused timestep, and what is behind it, once more."""
        self._under_way = deque(
            (number, entry if entry is not None and entry.repeat else None) for number, entry in self._under_way
        )
        self._cursor = step

    def give_up(self, step: int, entry: Entry) -> list[Entry]:
        """Lets a refused timestep go; gives those that fall with it, itself first.

        One that had been applied all the same (its answer was lost on the way) keeps its number.

        Raises:
            Diverged: its answer was delivered before.

        """
        if entry.repeat:
            return [entry]
        if step <= self.answered:
            raise Diverged(
                f"timestep {step} was answered before, and is refused now that the server has lost it: what was delivered "
                f"since timestep {step - 1} is not what the server goes on from; open the stream again to go on with the "
                "server's",
                "DIVERGED",
            )
        self.send_again(step)
        if self.had_been_applied(step):
            self._settle(entry)
            self._cursor = step + 1
            return [entry]
        first = self._pending.popleft()
        assert first is entry
        fallen = [entry]
        if entry.group is not None:
            entry.group.fallen = True
            fallen += [other for other in self._pending if other.group is entry.group]
            self._pending = deque(other for other in self._pending if other.group is not entry.group)
        return fallen

    def had_been_applied(self, step: int) -> bool:
        """Whether the server is known to have applied that timestep."""
        return step <= self._applied

    def durable(self, step: int) -> int:
        """The server has told what is durable; gives how many timesteps have left the line."""
        self.durable_step = max(self.durable_step, step)
        left = 0
        while self._kept and self.first_step <= self.durable_step:
            self._kept.popleft()
            left += 1
        return left

    def clear(self) -> list[Entry]:
        """Drops everything; gives those whose callers wait."""
        waiting = [*self._pending, *self._repeats]
        waiting += [entry for _, entry in self._under_way if entry is not None and entry.repeat]
        for line in (self._kept, self._pending, self._repeats, self._under_way):
            line.clear()
        return waiting

    def _settle(self, entry: Entry) -> None:
        """Moves the first pending timestep to the kept ones."""
        first = self._pending.popleft()
        assert first is entry
        self.answered += 1
        self._kept.append(entry)

    def _answers(self, step: int) -> Entry | None:
        """The timestep that an answer is for, None when the answer is to be ignored."""
        if not self._under_way:
            raise StreamLost(f"the server answered timestep {step}, and nothing was under way", "WRONG_ORDER")
        number, entry = self._under_way.popleft()
        if step != number:
            raise StreamLost(f"the server answered timestep {step}, and {number} was due", "WRONG_ORDER")
        return entry


def _checksum(outputs: Sequence[bytes]) -> int:
    return zlib.crc32(b"".join(outputs))
