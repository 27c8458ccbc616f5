"""The streams that one call holds, by handle. A handle is a small number that stands for a stream in blocks.

The table keeps what a block needs in columns, so that thousands of streams are looked up at once. The columns are a
copy of the leases and may be out of date. When a stream was parked, taken over or dropped, `Slots.lease_number` of its
slot is no longer the number of its lease. `refresh` updates the copy.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tidegate.core.errors import InvalidField
from tidegate.core.masks import Mask, all_true, any_true
from tidegate.core.slots import NO_ROWS, Slots
from tidegate.core.spec import Ints, Spec
from tidegate.core.streams import Lease
from tidegate.core.swap_policy import difference

# A call never reuses a handle, and a gateway may open and close streams for as long as its call lasts: 24 MB of
# columns.
HANDLES_MAX = 1 << 20
INITIAL_CAPACITY = 64
# Used when the client does not say how many timesteps above `durable_step` it can buffer.
CLIENT_BUFFER_DEFAULT = 1024
NO_SLOT = -1


class Selection(NamedTuple):
    """Streams of one model that a call holds, one row for each timestep. Valid for as long as the call lasts."""

    table: "HandleTable"
    handles: Ints
    """(rows,) the stream of each row."""
    slots: Slots
    """The slots of their model."""
    order: Ints | None
    """The order in which rows may run; None for the order of the block. It keeps the order of each stream's rows."""
    pass_ends: tuple[int, ...]
    """The ends of the passes in that order. A pass has each stream at most once."""

    def live_mask(self) -> Mask:
        """(rows,) whether each stream is live and still held by the call."""
        return self.table.live_mask(self.handles, self.slots)


class HandleTable:
    """The handles of one call: 1, 2, 3 and so on. Each stands for a lease until it is removed. `count` is how many are held now."""

    def __init__(self) -> None:
        self._leases: list[Lease | None] = [None]  # handle 0 is not used
        self.count = 0
        self._models: list[Slots] = []
        # One column for each fact: the slot of the stream, the number of its lease, the index of its model in
        # `_models`, the last durable step that the client was told, how many timesteps the client can buffer, and
        # whether it accepts a move to another version.
        self._slot: Ints = np.full(INITIAL_CAPACITY, NO_SLOT, np.int64)
        self._lease_number: Ints = np.full(INITIAL_CAPACITY, NO_SLOT, np.int64)
        self._model: Ints = np.zeros(INITIAL_CAPACITY, np.int64)
        self._reported_step: Ints = np.zeros(INITIAL_CAPACITY, np.int64)
        self._client_buffer_max: Ints = np.zeros(INITIAL_CAPACITY, np.int64)
        self._accept_move: Ints = np.zeros(INITIAL_CAPACITY, np.int64)

    def __repr__(self) -> str:
        return f"<HandleTable: {sum(1 for _ in self)} held of {len(self._leases) - 1} assigned>"

    def __iter__(self) -> Iterator[int]:
        """The handles that are held."""
        return (handle for handle, lease in enumerate(self._leases) if lease is not None)

    def __getitem__(self, handle: int) -> Lease | None:
        """The lease behind a handle; None when there is none, or no longer."""
        return self._leases[handle] if 0 < handle < len(self._leases) else None

    @property
    def full(self) -> bool:
        """Whether no more handles can be assigned."""
        return len(self._leases) > HANDLES_MAX

    def live_count(self, spec: Spec | None) -> int:
        """How many held streams of a model are live; without a model, the largest such number over all models."""
        assigned = slice(1, len(self._leases))
        return max(
            (
                int(
                    (
                        (self._model[assigned] == index)
                        & (slots.lease_number[self._slot[assigned]] == self._lease_number[assigned])
                    ).sum()
                )
                for index, slots in enumerate(self._models)
                if spec is None or slots.spec is spec
            ),
            default=0,
        )

    def add(self, lease: Lease, client_buffer_max: int = CLIENT_BUFFER_DEFAULT) -> int:
        """Assigns a handle to a lease.

        The client buffers at most `client_buffer_max` timesteps that are not durable. Only when not `full`.
        """
        assert not self.full
        handle = lease.handle = len(self._leases)
        self._leases.append(lease)
        self.count += 1
        if handle == len(self._slot):
            for name, column in list(vars(self).items()):
                if isinstance(column, np.ndarray):
                    setattr(self, name, np.concatenate([column, np.full(handle, NO_SLOT, np.int64)]))
        self._model[handle] = self._index_of(lease.stream.slots)
        self._lease_number[handle] = lease.number
        self._slot[handle] = lease.stream.slot
        self._reported_step[handle] = lease.durable_step
        self._client_buffer_max[handle] = client_buffer_max
        self._accept_move[handle] = lease.accept_move
        return handle

    def _index_of(self, slots: Slots) -> int:
        if slots not in self._models:
            self._models.append(slots)
        return self._models.index(slots)

    def remove(self, handle: int) -> Lease | None:
        """Removes a handle and returns its lease."""
        lease, self._leases[handle] = self[handle], None
        self.count -= lease is not None
        self._lease_number[handle] = NO_SLOT
        return lease

    def select(self, handles: Ints) -> Selection:
        """Looks up the streams of rows that run under one version of one model.

        Raises:
            InvalidField: as `by_version`, or the streams run under several versions.

        """
        if len(self.by_version(handles)) > 1:
            raise InvalidField("handles", "got streams of several versions, expected one model in a block")
        return Selection(self, handles, self._models[int(self._model[handles[0]])], *_execution_order(handles))

    def by_version(self, handles: Ints) -> list[Ints]:
        """The rows of a block by the version that runs their streams: one part, unless streams move to another version now.

        Raises:
            InvalidField: a handle was never assigned, or the streams run under different models, not versions of one.

        """
        self._check_assigned(handles)
        models = self._model[handles]
        if (models == models[0]).all():
            return [np.arange(len(handles))]
        indices = np.unique(models).tolist()
        specs = [self._models[index].spec for index in indices]
        if any(difference(specs[0], spec) for spec in specs[1:]):
            titles = " and ".join(sorted(spec.title for spec in specs))
            raise InvalidField("handles", f"got streams of {titles}, expected one model in a block")
        return [np.flatnonzero(models == index) for index in indices]

    def _check_assigned(self, handles: Ints) -> None:
        """Raises InvalidField when a handle was never assigned, or when there is none."""
        if not handles.size:
            raise InvalidField("handles", "got none, expected at least one")
        if handles.min() < 1 or handles.max() >= len(self._leases):
            wrong = int(handles[(handles < 1) | (handles >= len(self._leases))][0])
            raise InvalidField(
                "handles", f"got {wrong}, expected 1 to {len(self._leases) - 1}, as assigned in `opened`"
            )

    def accept_moves(self, handles: Ints) -> bool:
        """Whether one of these streams may move to another version."""
        return any_true(self._accept_move[handles] > 0)

    def live_slots(self, handles: Ints, slots: Slots) -> tuple[Ints, Mask]:
        """What `slots_of` and `live_mask` return."""
        found = self._slot[handles]
        return found, slots.lease_number[found] == self._lease_number[handles]

    def slots_of(self, handles: Ints) -> Ints:
        """The slots that the streams had when they were last refreshed."""
        return self._slot[handles]

    def live_mask(self, handles: Ints, slots: Slots) -> Mask:
        """(rows,) whether each stream is live in one of `slots` and still held by the call."""
        return self.live_slots(handles, slots)[1]

    def refresh(self, handle: int) -> Lease | None:
        """Updates the slot of a stream, and its version. Returns its lease, None when the handle was removed."""
        lease = self[handle]
        if lease is not None:
            self._model[handle] = self._index_of(lease.stream.slots)
            self._slot[handle] = lease.stream.slot if lease.ended is None else NO_SLOT
        return lease

    def report_durable(self, handles: Ints, slots: Slots) -> Ints:
        """The durable step of each stream. From now on it counts as reported to the client."""
        rows, is_live = self.live_slots(handles, slots)
        durable: Ints = slots.durable_step[rows]
        if not all_true(is_live):
            not_live = np.flatnonzero(~is_live)
            leases = [self._leases[handle] for handle in handles[not_live].tolist()]
            durable[not_live] = [0 if lease is None else lease.durable_step for lease in leases]
        self._reported_step[handles] = durable
        return durable

    def report_durable_one(self, lease: Lease) -> int:
        """The durable step of one stream that is live, or was until its lease ended.

        From now on it counts as reported.
        """
        slot = lease.stream.slot
        durable = lease.stream.slots.durable_steps[slot] if slot >= 0 and lease.ended is None else lease.durable_step
        self._reported_step[lease.handle] = durable
        return durable

    def is_buffer_half_full(self, lease: Lease, step: int, durable_step: int) -> bool:
        """Whether timesteps that are not durable fill half of the client's buffer for the stream."""
        return bool(2 * (step - durable_step) >= self._client_buffer_max.item(lease.handle))

    def half_full_buffers(self, handles: Ints, steps: Ints, durable_steps: Ints) -> Ints:
        """The streams, each once, for which timesteps that are not durable fill half of the client's buffer."""
        half_full = 2 * (steps - durable_steps) >= self._client_buffer_max[handles]
        return np.unique(handles[half_full]) if any_true(half_full) else NO_ROWS

    def durable_updates(self) -> tuple[Ints, Ints]:
        """The streams whose durable step has risen since the last report, and these steps.

        They count as reported from now on.
        """
        assigned = np.arange(1, len(self._leases))
        live = assigned[(self._slot[assigned] != NO_SLOT) & (self._lease_number[assigned] != NO_SLOT)]
        changed, steps = [], []
        for index, slots in enumerate(self._models):
            handles = live[self._model[live] == index]
            reported = self._reported_step[handles]
            durable = self.report_durable(handles, slots)
            for handle in handles[~self.live_mask(handles, slots)].tolist():
                self.refresh(handle)  # a parked stream has no more updates; it is skipped until it wakes
            changed.append(handles[durable > reported])
            steps.append(durable[durable > reported])
        nothing = np.empty(0, np.int64)
        return np.concatenate([nothing, *changed]), np.concatenate([nothing, *steps])


def _execution_order(handles: Ints) -> tuple[Ints | None, tuple[int, ...]]:
    """Computes `order` and `pass_ends` of a selection."""
    count = len(handles)
    if (handles[1:] > handles[:-1]).all():
        return None, (count,)
    last = np.empty(int(handles.max()) + 1, np.int64)
    last[handles] = np.arange(count)
    if (last[handles] == np.arange(count)).all():  # each stream occurs once
        return None, (count,)
    order = np.argsort(handles, kind="stable")
    grouped = handles[order]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    pass_of_row = np.empty(count, np.int64)  # the index of each row among those of its stream
    pass_of_row[order] = np.arange(count) - np.repeat(starts, np.diff(np.r_[starts, count]))
    return np.argsort(pass_of_row, kind="stable"), tuple(np.cumsum(np.bincount(pass_of_row)).tolist())
