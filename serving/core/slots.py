"""The slabs of state: one row a live stream, in arrays as long as the server may hold live streams.

A slot is a row number. Beside the state tensors a row holds the number of the last applied timestep, the last few answers, so
that a repeated timestep can be answered without the model, and a hash of each of their timesteps' values, so that a repeat is
known from another timestep under the same number. What belongs to one timestep is written
together: a reader never sees the state of one step with the number of another.

The slabs are allocated at start; the system backs a row with memory when it is first written.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.core.spec import Arrays, Ints, Key, Spec
from serving.core.value_hash import UNKNOWN, Hashes

# The step of a row that nobody has: no timestep has it, and a row that is taken again is seen to have changed.
FREE = -1
NO_ROWS: Ints = np.empty(0, np.int64)


class Slots:
    """Rows for up to `capacity` live streams of one model, each remembering its last `answers` answers."""

    def __init__(self, spec: Spec, capacity: int, answers: int) -> None:
        assert capacity > 0
        assert answers > 0
        self.spec = spec
        self.capacity = capacity
        self.answers = answers
        self.state: Arrays = tuple(np.zeros((capacity, *tensor.shape), tensor.dtype) for tensor in spec.state)
        self.step: Ints = np.full(capacity, FREE, np.int64)
        self.saved: Ints = np.zeros(capacity, np.int64)  # the last timestep whose state is stored
        # The first timestep whose answer is remembered: what was packed by a smaller ring has fewer than this one holds.
        self._since: Ints = np.ones(capacity, np.int64)
        self.keys: list[Key | None] = [None] * capacity  # whose each row is
        self.holder: Ints = np.zeros(capacity, np.int64)  # number of the lease on each row, 0 when nobody has one
        # The answer to timestep s stands at place s % answers.
        self._answers: Arrays = tuple(
            np.zeros((capacity, answers, *output.shape), output.dtype) for output in spec.outputs
        )
        # The hash of the values of timestep s stands at the same place; see `core.value_hash`. Places come first here: streams that
        # step together then write side by side, where a row each would cost a cache line each. UNKNOWN is 0.
        self._hashes: Hashes = np.zeros((answers, capacity), np.uint64)
        # The same slabs as bytes, and how many a row has: one row is copied so while numpy would still look for the way.
        self._state_bytes = [(slab.data.cast("B"), slab[:1].nbytes) for slab in self.state]
        self._answer_bytes = [(slab.data.cast("B"), slab[:1, :1].nbytes) for slab in self._answers]
        self._steps: memoryview[int] = self.step.data
        self._hash_numbers: memoryview[int] = self._hashes.reshape(-1).data
        self._all: Ints = np.arange(capacity)
        self._checked = tuple(np.issubdtype(tensor.dtype, np.floating) for tensor in spec.state)
        self._untouched = 0  # rows from here on were never used
        self._free: list[int] = []
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Slots {self.spec.title}: {self._taken} of {self.capacity} taken>"

    def __len__(self) -> int:
        """The slots that are taken."""
        return self._taken

    @property
    def full(self) -> bool:
        """Whether `acquire` would fail."""
        return self._taken == self.capacity

    def acquire(self, key: Key) -> int:
        """Takes a slot for a stream and gives it the model's initial state at step 0. Only when not `full`."""
        assert not self.full
        if self._free:
            slot = self._free.pop()
            for slab in self._answers:
                slab[slot] = 0  # what another stream was answered is in no record of this one
            self._hashes[:, slot] = UNKNOWN
        else:
            slot = self._untouched
            self._untouched += 1
        assert self.keys[slot] is None
        self.keys[slot] = key
        self._taken += 1
        self.step[slot] = self.saved[slot] = 0
        self._since[slot] = 1
        for slab, tensor in zip(self.state, self.spec.state, strict=True):
            slab[slot] = tensor.initial
        return slot

    def release(self, slot: int) -> None:
        """Gives a slot back; what was not stored is gone."""
        assert self.keys[slot] is not None
        self.keys[slot] = None
        self._taken -= 1
        self.step[slot], self.saved[slot], self.holder[slot] = FREE, 0, 0
        self._free.append(slot)

    def unsaved(self) -> Ints:
        """The slots whose last timestep is not stored, in ascending order."""
        return np.flatnonzero(self.step[: self._untouched] > self.saved[: self._untouched])

    def store_again(self) -> None:
        """Takes the last timestep of every row for one that is not stored."""
        self.saved[:] = np.minimum(self.saved, np.maximum(self.step - 1, 0))

    def pack(self, slots: Ints) -> npt.NDArray[np.uint8]:
        """Copies the content of many rows, (batch, bytes) each.

        A row is the number of the first timestep whose answer it remembers, the state tensors, then the answers, place by
        place: that to timestep s at place s % answers; then the hashes of their values in the same order.
        """
        # Into an array that is there: to join a thousand rows of a KB at the end takes four times as long, most of it for new pages.
        packed = np.empty((len(slots), self.row_bytes(self.answers)), np.uint8)
        begin = 0
        for slab in (self._since, *self.state, *self._answers, self._hashes.T):
            part = np.ascontiguousarray(slab[slots]).reshape(len(slots), -1).view(np.uint8)
            packed[:, begin : begin + part.shape[1]] = part
            begin += part.shape[1]
        return packed

    def unpack(self, slot: int, step: int, answers: int, payload: bytes) -> None:
        """Fills a row with what `pack` gave, by slots that remember `answers` answers, when the row was at `step`."""
        assert len(payload) == self.row_bytes(answers)
        self.step[slot] = self.saved[slot] = step
        (first,) = np.frombuffer(payload, np.int64, 1).tolist()
        since = self._since[slot] = max(first, step - min(answers, self.answers) + 1)
        whole, begin = memoryview(payload), self._since.itemsize
        for slab, size in self._state_bytes:
            slab[slot * size : (slot + 1) * size] = whole[begin : begin + size]
            begin += size
        if answers == self.answers:  # as it nearly always is: the ring is taken as it stands
            for slab, size in self._answer_bytes:
                ring = answers * size
                slab[slot * ring : (slot + 1) * ring] = whole[begin : begin + ring]
                begin += ring
            self._hashes[:, slot] = np.frombuffer(payload, np.uint64, answers, begin)
        else:
            self._unpack_ring(slot, np.arange(since, step + 1), answers, payload, begin)

    def _unpack_ring(self, slot: int, kept: Ints, answers: int, payload: bytes, begin: int) -> None:
        """Fills a row with the answers to the timesteps `kept`, and their hashes, from where they begin in a payload."""
        for slab in self._answers:
            shape = (answers, *slab.shape[2:])
            ring = np.frombuffer(payload, slab.dtype, int(np.prod(shape)), begin).reshape(shape)
            slab[slot, kept % self.answers] = ring[kept % answers]
            begin += ring.nbytes
        hashes = np.frombuffer(payload, np.uint64, answers, begin)
        self._hashes[kept % self.answers, slot] = hashes[kept % answers]

    def row_bytes(self, answers: int) -> int:
        """The size of a row's content, remembering so many answers."""
        state = sum(slab[:1].nbytes for slab in self.state)
        ring = self._hashes.itemsize + sum(slab[:1, :1].nbytes for slab in self._answers)
        return self._since.itemsize + state + answers * ring

    def gather(self, slots: Ints, room: Arrays | None = None) -> Arrays:
        """Copies the state of many rows: one array (batch, *shape) a tensor, in `room` if that is given."""
        if room is None:
            return tuple([slab.take(slots, axis=0) for slab in self.state])
        for slab, part in zip(self.state, room, strict=True):
            slab.take(
                slots, axis=0, out=part, mode="clip"
            )  # what checks them has no use for `out`; there is nothing to clip
        return room

    def scatter(self, slots: Ints, next_state: Arrays, outputs: Arrays, hashes: Hashes) -> Ints:
        """Writes the outcome of one timestep of many rows, each once: state, number, answer and hash together.

        Rows whose next state is not finite are left as they were; returns their places in the batch, mostly none.
        """
        poisoned = self._not_finite(next_state)
        if poisoned.size:
            healthy = np.setdiff1d(np.arange(slots.size), poisoned)
            slots = slots[healthy]
            next_state = tuple(rows[healthy] for rows in next_state)
            outputs = tuple(rows[healthy] for rows in outputs)
            hashes = hashes[healthy]
        where = self._in_a_row(slots)
        for slab, rows in zip(self.state, next_state, strict=True):
            slab[where] = rows
        step = self.step[where] + 1
        place: int | Ints
        if step.tobytes() == step[:1].tobytes() * len(step):  # they step together, as streams of one client mostly do
            place = int(step[0]) % self.answers if len(step) else 0
        else:
            place, where = step % self.answers, slots
        for slab, rows in zip(self._answers, outputs, strict=True):
            slab[where, place] = rows
        self._hashes[place, where] = hashes
        self.step[where] = step
        return poisoned

    def _in_a_row(self, slots: Ints) -> slice | Ints:
        """The same rows as a slice, if they stand in a row: so they are copied at once. Streams that are opened together do."""
        if not slots.size:
            return slots
        rows = slice(int(slots[0]), int(slots[0]) + slots.size)
        return rows if slots.tobytes() == self._all[rows].tobytes() else slots

    def gather_row(self, slot: int, state: Sequence[memoryview]) -> int:
        """Copies the state of one row to where the model wants it; gives the number of its last timestep."""
        for (slab, size), part in zip(self._state_bytes, state, strict=True):
            part[:] = slab[slot * size : (slot + 1) * size]
        return self._steps[slot]

    def scatter_row(
        self, slot: int, next_state: Sequence[memoryview], outputs: Sequence[memoryview], value_hash: int
    ) -> None:
        """Writes the outcome of one timestep of one row: state, number, answer and hash together. The state is finite."""
        for (slab, size), part in zip(self._state_bytes, next_state, strict=True):
            slab[slot * size : (slot + 1) * size] = part
        step = self._steps[slot] + 1
        turn = step % self.answers
        place = slot * self.answers + turn
        for (slab, size), part in zip(self._answer_bytes, outputs, strict=True):
            slab[place * size : (place + 1) * size] = part
        self._hash_numbers[turn * self.capacity + slot] = value_hash
        self._steps[slot] = step

    def answer(self, slot: int, step: int) -> tuple[bytes, ...]:
        """The packed answer to a timestep that was applied, or nothing when it is no longer remembered."""
        last = int(self.step[slot])
        assert 0 < step <= last
        if step <= last - self.answers or step < self._since[slot]:
            return ()
        return tuple(slab[slot, step % self.answers].tobytes() for slab in self._answers)

    def remembered(self, slots: Ints, steps: Ints) -> tuple[npt.NDArray[np.bool_], Arrays]:
        """The answers to timesteps that were applied, one a row, and which of them are still remembered.

        Returns (batch,) booleans and one array (batch, *shape) an output; what is not remembered is zero.
        """
        last = self.step[slots]
        assert ((steps > 0) & (steps <= last)).all()
        known = (steps > last - self.answers) & (steps >= self._since[slots])
        answers = tuple(slab[slots, steps % self.answers] for slab in self._answers)
        for rows in answers:
            rows[~known] = 0
        return known, answers

    def differ(self, slots: Ints, steps: Ints, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these timesteps, one a row, are remembered to have been applied with values of another hash."""
        last = self.step[slots]
        known = (steps > last - self.answers) & (steps >= self._since[slots])
        applied = self._hashes[steps % self.answers, slots]
        differ: npt.NDArray[np.bool_] = known & (applied != UNKNOWN) & (applied != hashes)
        return differ

    def _not_finite(self, state: Arrays) -> Ints:
        """Places of rows with a value that is not finite."""
        suspects = [
            rows
            for rows, checked in zip(state, self._checked, strict=True)
            # One dot product a tensor costs half a microsecond and is finite unless a value is not, or is beyond 1e19.
            if checked and not math.isfinite(np.vdot(rows, rows))
        ]
        if not suspects:
            return NO_ROWS
        healthy = np.logical_and.reduce([np.isfinite(rows).reshape(len(rows), -1).all(axis=1) for rows in suspects])
        return np.flatnonzero(~healthy)
