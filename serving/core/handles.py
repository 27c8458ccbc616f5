"""The streams that one call holds, by handle: small numbers that stand for them in blocks.

What a block needs to know of its streams stands in columns, so that thousands of them are looked up at once. The columns
are a copy of what the leases say, and may be out of date: a stream that was parked, taken over or dropped is known by its
row's `holder`, which is no longer the number of its lease. `find` brings the copy up to date.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.core.errors import InvalidField
from serving.core.slots import NO_ROWS, Slots
from serving.core.spec import Ints, Spec
from serving.core.streams import Lease

# A gateway may open and close streams for as long as its call lasts, and a handle is never given twice: 24 MB of columns.
HANDLES_MAX = 1 << 20
ROOM_FIRST = 64
# What a client that does not say is taken to keep above `durable_step`.
KEPT_MAX = 1024
NOWHERE = -1


class Selection(NamedTuple):
    """Streams of one model that a call holds, a row for each timestep; for as long as the call lasts."""

    held: "Handles"
    handles: Ints
    """(rows,) whose each row is."""
    slots: Slots
    """Where the streams of their model live."""
    order: Ints | None
    """In which order the rows may be run, None for that in which they stand. The rows of a stream are in theirs."""
    ends: tuple[int, ...]
    """Places in that order, the last of them its end. Between two of them a stream comes once at most."""

    def live(self) -> npt.NDArray[np.bool_]:
        """(rows,) which of the streams are live, and still the call's own."""
        return self.held.held(self.handles, self.slots)


class Handles:
    """Handles 1, 2, 3, ... of one call, each for a lease until it is dropped; `count` are held now."""

    def __init__(self) -> None:
        self._leases: list[Lease | None] = [None]  # nobody has handle 0
        self.count = 0
        self._models: list[Slots] = []
        # A column each: the row of the stream, the number of its lease, the place of its model in `_models`, the last
        # stored timestep that the client was told of, how many timesteps the client keeps above that.
        self._slot: Ints = np.full(ROOM_FIRST, NOWHERE, np.int64)
        self._number: Ints = np.full(ROOM_FIRST, NOWHERE, np.int64)
        self._model: Ints = np.zeros(ROOM_FIRST, np.int64)
        self._told: Ints = np.zeros(ROOM_FIRST, np.int64)
        self._kept_max: Ints = np.zeros(ROOM_FIRST, np.int64)

    def __repr__(self) -> str:
        return f"<Handles: {sum(1 for _ in self)} held of {len(self._leases) - 1} given>"

    def __iter__(self) -> Iterator[int]:
        """The handles that are held."""
        return (handle for handle, lease in enumerate(self._leases) if lease is not None)

    def __getitem__(self, handle: int) -> Lease | None:
        """The lease that a handle stands for; None when there is none, or no longer."""
        return self._leases[handle] if 0 < handle < len(self._leases) else None

    @property
    def full(self) -> bool:
        """Whether no more can be given."""
        return len(self._leases) > HANDLES_MAX

    def live(self, spec: Spec | None) -> int:
        """How many of the streams that are held are live under a model; without one, under that which has most."""
        given = slice(1, len(self._leases))
        return max(
            (
                int(((self._model[given] == place) & (slots.holder[self._slot[given]] == self._number[given])).sum())
                for place, slots in enumerate(self._models)
                if spec is None or slots.spec is spec
            ),
            default=0,
        )

    def add(self, lease: Lease, kept_max: int = KEPT_MAX) -> int:
        """Gives a handle for a lease, whose client keeps so many timesteps that are not stored. Only when not `full`."""
        assert not self.full
        handle = lease.handle = len(self._leases)
        self._leases.append(lease)
        self.count += 1
        if handle == len(self._slot):
            self._slot, self._number, self._model, self._told, self._kept_max = (
                np.concatenate([column, np.full(handle, NOWHERE, np.int64)])
                for column in (self._slot, self._number, self._model, self._told, self._kept_max)
            )
        slots = lease.stream.slots
        if slots not in self._models:
            self._models.append(slots)
        self._model[handle] = self._models.index(slots)
        self._number[handle] = lease.number
        self._slot[handle] = lease.stream.slot
        self._told[handle] = lease.durable_step
        self._kept_max[handle] = kept_max
        return handle

    def drop(self, handle: int) -> Lease | None:
        """Holds a lease no longer; gives it."""
        lease, self._leases[handle] = self[handle], None
        self.count -= lease is not None
        self._number[handle] = NOWHERE
        return lease

    def select(self, handles: Ints) -> Selection:
        """The streams that rows are for.

        Raises:
            InvalidField: a handle was never given, or the streams run under different models.

        """
        if not handles.size:
            raise InvalidField("handles", "got none, expected at least one")
        if handles.min() < 1 or handles.max() >= len(self._leases):
            wrong = int(handles[(handles < 1) | (handles >= len(self._leases))][0])
            raise InvalidField("handles", f"got {wrong}, expected 1 to {len(self._leases) - 1}, as given in `opened`")
        models = self._model[handles]
        if (models != models[0]).any():
            titles = " and ".join(sorted(self._models[place].spec.title for place in np.unique(models).tolist()))
            raise InvalidField("handles", f"got streams of {titles}, expected one model in a block")
        return Selection(self, handles, self._models[int(models[0])], *_order(handles))

    def slots(self, handles: Ints) -> Ints:
        """The rows that the streams had when they were last found."""
        return self._slot[handles]

    def held(self, handles: Ints, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of the streams are live in the rows that `slots` gives, and still the call's own."""
        held: npt.NDArray[np.bool_] = slots.holder[self._slot[handles]] == self._number[handles]
        return held

    def find(self, handle: int) -> Lease | None:
        """Brings the row of a stream up to date; gives the lease, None when the handle was dropped."""
        lease = self[handle]
        if lease is not None:
            self._slot[handle] = lease.stream.slot if lease.ended is None else NOWHERE
        return lease

    def durable(self, handles: Ints, slots: Slots) -> Ints:
        """The last stored timestep of each stream; the client is told of them now."""
        rows = self._slot[handles]
        durable: Ints = slots.saved[rows]
        held = slots.holder[rows] == self._number[handles]
        if not held.all():
            away = np.flatnonzero(~held)
            leases = [self._leases[handle] for handle in handles[away].tolist()]
            durable[away] = [0 if lease is None else lease.durable_step for lease in leases]
        self._told[handles] = durable
        return durable

    def durable_alone(self, lease: Lease) -> int:
        """The last stored timestep of one stream that is live, or was until its lease ended; the client is told of it now."""
        slot = lease.stream.slot
        durable = int(lease.stream.slots.saved[slot]) if slot >= 0 and lease.ended is None else lease.durable_step
        self._told[lease.handle] = durable
        return durable

    def is_crowded(self, lease: Lease, step: int, durable_step: int) -> bool:
        """Whether the client has used up half of the room for timesteps of the stream that are not stored."""
        return bool(2 * (step - durable_step) >= self._kept_max[lease.handle])

    def crowded(self, handles: Ints, steps: Ints, durable_steps: Ints) -> Ints:
        """Those of the streams, each once, whose clients have used up half of the room for timesteps that are not stored."""
        crowded = 2 * (steps - durable_steps) >= self._kept_max[handles]
        return np.unique(handles[crowded]) if crowded.any() else NO_ROWS

    def news(self) -> tuple[Ints, Ints]:
        """The streams of which more is stored than the client was told, and up to which timestep; it is told now."""
        given = np.arange(1, len(self._leases))
        live = given[(self._slot[given] != NOWHERE) & (self._number[given] != NOWHERE)]
        changed, steps = [], []
        for place, slots in enumerate(self._models):
            handles = live[self._model[live] == place]
            told = self._told[handles]
            durable = self.durable(handles, slots)
            for handle in handles[~self.held(handles, slots)].tolist():
                self.find(handle)  # at rest it has no more news, and is not looked at again until it has woken
            changed.append(handles[durable > told])
            steps.append(durable[durable > told])
        nothing = np.empty(0, np.int64)
        return np.concatenate([nothing, *changed]), np.concatenate([nothing, *steps])


def _order(handles: Ints) -> tuple[Ints | None, tuple[int, ...]]:
    """`order` and `ends` of a selection."""
    count = len(handles)
    if (handles[1:] > handles[:-1]).all():
        return None, (count,)
    last = np.empty(int(handles.max()) + 1, np.int64)
    last[handles] = np.arange(count)
    if (last[handles] == np.arange(count)).all():  # each stream once
        return None, (count,)
    order = np.argsort(handles, kind="stable")
    grouped = handles[order]
    begins = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    turn = np.empty(count, np.int64)  # of each row among those of its stream
    turn[order] = np.arange(count) - np.repeat(begins, np.diff(np.r_[begins, count]))
    return np.argsort(turn, kind="stable"), tuple(np.cumsum(np.bincount(turn)).tolist())
