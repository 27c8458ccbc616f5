"""The state of live streams: one row for each, in arrays with a row for every live stream that the server allows.

A slot is a row number. Beside the state tensors, a row holds the inputs that the stream began with, the number of the
last applied timestep, the last few answers, and a hash of the values of each of these timesteps. With the answers the server answers a repeated timestep
without the model. With the hashes it tells a repeat from another timestep with the same number. All that belongs to one
timestep is written together: a reader never sees the state of one step with the number of another.

The arrays are allocated at start. The system backs a row with memory when it is first written.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tidegate.core.input_layout import InputLayout, StreamInputs
from tidegate.core.raw_ring import RawRing, is_ring
from tidegate.core.spec import Array, Arrays, Ints, Key, Spec
from tidegate.core.value_hash import UNKNOWN, Hashes

# The step of a free row. No timestep has it, so a row that is acquired again is seen to have changed.
FREE_SLOT_STEP = -1
NO_ROWS: Ints = np.empty(0, np.int64)


class Slots:
    """Rows for up to `capacity` live streams of one model. Each remembers its last `answers` answers.

    With `raw_steps` it also keeps the values of the last timesteps, from which a stream can be replayed into another
    version.
    """

    def __init__(self, spec: Spec, capacity: int, answers: int, raw_steps: int = 0) -> None:
        assert capacity > 0
        assert answers > 0
        self.spec = spec
        self.layout = InputLayout(spec.inputs)
        self.capacity = capacity
        self.answers = answers
        self.state: Arrays = tuple(np.zeros((capacity, *tensor.shape), tensor.dtype) for tensor in spec.state)
        # What is given once for each stream: the model reads it like state, and does not return it.
        self.stream_inputs: Arrays = tuple(np.zeros((capacity, *part.shape), part.dtype) for part in self.layout.stream)
        self._gathered: Arrays = (*self.state, *self.stream_inputs)
        self.step: Ints = np.full(capacity, FREE_SLOT_STEP, np.int64)
        self.durable_step: Ints = np.zeros(capacity, np.int64)  # the last timestep whose state is stored
        # The same numbers, to read or write one of them.
        self.steps: memoryview[int] = self.step.data
        self.durable_steps: memoryview[int] = self.durable_step.data
        # The first timestep whose answer is remembered. A checkpoint of a smaller ring has fewer answers than this one
        # can hold.
        self._since: Ints = np.ones(capacity, np.int64)
        self.keys: list[Key | None] = [None] * capacity  # the stream of each row
        # the number of the lease on each row, 0 when no call holds it
        self.lease_number: Ints = np.zeros(capacity, np.int64)
        # The answer to timestep s is at index s % answers.
        self._answers: Arrays = tuple(
            np.zeros((capacity, answers, *output.shape), output.dtype) for output in spec.outputs
        )
        # The hash of the values of timestep s is at the same index; see `core.value_hash`. The ring index comes first
        # here: streams that step together then write adjacent memory. With the row first, each write would touch its
        # own cache line. UNKNOWN is 0.
        self._hashes: Hashes = np.zeros((answers, capacity), np.uint64)
        self.raw = RawRing(self.layout.row_bytes, capacity, raw_steps) if raw_steps else None
        # The same arrays as bytes, and the bytes of one row. To copy one row this way is faster than numpy's dispatch.
        self._state_bytes = [(slab.data.cast("B"), slab[:1].nbytes) for slab in self.state]
        self._gathered_bytes = [(slab.data.cast("B"), slab[:1].nbytes) for slab in self._gathered]
        self._answer_bytes = [(slab.data.cast("B"), slab[:1, :1].nbytes) for slab in self._answers]
        self._hash_numbers: memoryview[int] = self._hashes.reshape(-1).data
        self._all: Ints = np.arange(capacity)
        self._checked = tuple(tensor.is_checked for tensor in spec.state)
        self.draining = False  # streams that may are to move to another version before their next timestep
        self._untouched = 0  # rows from here on were never used
        self._free: list[int] = []
        self._used = 0
        self.used_by_tenant: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Slots {self.spec.title}: {self._used} of {self.capacity} used>"

    def __len__(self) -> int:
        """The number of used slots."""
        return self._used

    def free(self) -> None:
        """Frees the states and answers. A call may keep this object long after its last stream has ended."""
        assert not self._used
        self.state, self._answers = (), ()
        self._state_bytes, self._answer_bytes = [], []
        self._hashes = np.zeros((self.answers, 0), np.uint64)
        self._hash_numbers = self._hashes.reshape(-1).data
        self.raw = None

    @property
    def full(self) -> bool:
        """Whether `acquire` would fail."""
        return self._used == self.capacity

    def acquire(self, key: Key) -> int:
        """Acquires a slot for a stream and sets the model's initial state at step 0. Only when not `full`."""
        assert not self.full
        if self._free:
            slot = self._free.pop()
            for slab in self._answers:
                slab[slot] = 0  # a checkpoint of this stream must not contain the answers of another
            self._hashes[:, slot] = UNKNOWN
            if self.raw is not None:
                self.raw.clear(slot)
        else:
            slot = self._untouched
            self._untouched += 1
        assert self.keys[slot] is None
        self.keys[slot] = key
        self.used_by_tenant[key.tenant] = self.used_by_tenant.get(key.tenant, 0) + 1
        self._used += 1
        self.step[slot] = self.durable_step[slot] = 0
        self._since[slot] = 1
        for slab, tensor in zip(self.state, self.spec.state, strict=True):
            slab[slot] = tensor.initial
        return slot

    def release(self, slot: int) -> None:
        """Releases a slot. State that was not stored is lost."""
        key = self.keys[slot]
        assert key is not None
        self.used_by_tenant[key.tenant] -= 1
        self.keys[slot] = None
        self._used -= 1
        self.step[slot], self.durable_step[slot], self.lease_number[slot] = FREE_SLOT_STEP, 0, 0
        self._free.append(slot)

    def set_stream_inputs(self, slot: int, values: StreamInputs) -> None:
        """Sets the inputs that a stream begins with: the packed values of each, in the order of `layout.stream`."""
        for slab, part, packed in zip(self.stream_inputs, self.layout.stream, values, strict=True):
            slab[slot] = np.frombuffer(packed, part.dtype).reshape(part.shape)

    def get_stream_inputs(self, slot: int) -> StreamInputs:
        """The inputs that a stream began with, as `set_stream_inputs` takes them."""
        return tuple(slab[slot].tobytes() for slab in self.stream_inputs)

    def read_stream_inputs(self, payload: bytes) -> StreamInputs:
        """The inputs that a stream began with, from the result of `pack`."""
        offset = self._since.itemsize + sum(slab[:1].nbytes for slab in self.state)
        values = []
        for part in self.layout.stream:
            values.append(payload[offset : offset + part.nbytes])
            offset += part.nbytes
        return tuple(values)

    def unsaved(self) -> Ints:
        """The slots whose last timestep is not stored, in ascending order."""
        return np.flatnonzero(self.step[: self._untouched] > self.durable_step[: self._untouched])

    def mark_unsaved(self) -> None:
        """Marks the last timestep of every row as not stored."""
        self.durable_step[:] = np.minimum(self.durable_step, np.maximum(self.step - 1, 0))

    def pack(self, slots: Ints) -> npt.NDArray[np.uint8]:
        """Copies the content of many rows to (batch, bytes).

        A row consists of the number of the first timestep whose answer it remembers, the state tensors, the inputs that
        the stream began with, then the answers by ring index (that to timestep s at index s % answers), then the hashes
        of their values in the same order, then the ring of values where there is one.
        """
        # Writes into one array. To concatenate a thousand rows of 1 KB takes four times as long, most of it for new
        # pages.
        packed = np.empty((len(slots), self.row_bytes(self.answers)), np.uint8)
        offset = 0
        for slab in (self._since, *self._gathered, *self._answers, self._hashes.T):
            part = np.ascontiguousarray(slab[slots]).reshape(len(slots), -1).view(np.uint8)
            packed[:, offset : offset + part.shape[1]] = part
            offset += part.shape[1]
        if self.raw is not None:
            packed[:, offset:] = self.raw.pack(slots)
        return packed

    def unpack(self, slot: int, step: int, answers: int, payload: bytes) -> None:
        """Fills a row from the result of `pack`, for a row at `step` in slots that remember `answers` answers."""
        assert self.fits(payload, answers)
        if self.raw is not None:
            self.raw.unpack(slot, step, payload[self.core_bytes(answers) :])
        self.step[slot] = self.durable_step[slot] = step
        (first,) = np.frombuffer(payload, np.int64, 1).tolist()
        since = self._since[slot] = max(first, step - min(answers, self.answers) + 1)
        content, offset = memoryview(payload), self._since.itemsize
        for slab, size in self._gathered_bytes:
            slab[slot * size : (slot + 1) * size] = content[offset : offset + size]
            offset += size
        if answers == self.answers:  # the usual case: the ring is copied as a whole
            for slab, size in self._answer_bytes:
                ring = answers * size
                slab[slot * ring : (slot + 1) * ring] = content[offset : offset + ring]
                offset += ring
            self._hashes[:, slot] = np.frombuffer(payload, np.uint64, answers, offset)
        else:
            self._unpack_ring(slot, np.arange(since, step + 1), answers, payload, offset)

    def _unpack_ring(self, slot: int, kept: Ints, answers: int, payload: bytes, offset: int) -> None:
        """Fills a row with the answers to the timesteps `kept` and their hashes.

        They begin at `offset` in the payload.
        """
        for slab in self._answers:
            shape = (answers, *slab.shape[2:])
            ring = np.frombuffer(payload, slab.dtype, int(np.prod(shape)), offset).reshape(shape)
            slab[slot, kept % self.answers] = ring[kept % answers]
            offset += ring.nbytes
        hashes = np.frombuffer(payload, np.uint64, answers, offset)
        self._hashes[kept % self.answers, slot] = hashes[kept % answers]

    def row_bytes(self, answers: int) -> int:
        """The size of a row's content when it remembers a number of answers."""
        return self.core_bytes(answers) + (self.raw.row_bytes if self.raw is not None else 0)

    def fits(self, payload: bytes, answers: int) -> bool:
        """Whether a row's content has the right size: with a ring of values of any length behind it, or without."""
        rest = len(payload) - self.core_bytes(answers)
        return rest >= 0 and is_ring(payload[len(payload) - rest :], self.layout.row_bytes)

    def core_bytes(self, answers: int) -> int:
        """The size of a row's content without the ring of values."""
        state = sum(slab[:1].nbytes for slab in self._gathered)
        ring = self._hashes.itemsize + sum(slab[:1, :1].nbytes for slab in self._answers)
        return self._since.itemsize + state + answers * ring

    def gather(self, slots: Ints, out: Arrays | None = None) -> Arrays:
        """Copies the state of many rows: one array (batch, *shape) for each tensor, into `out` if it is given.

        The inputs that the streams began with follow.
        """
        if out is None:
            return tuple([slab.take(slots, axis=0) for slab in self._gathered])
        for slab, part in zip(self._gathered, out, strict=True):
            slab.take(
                slots, axis=0, out=part, mode="clip"
            )  # the default mode checks the indices in a copy of `out`; there is nothing to clip
        return out

    def scatter(self, slots: Ints, next_state: Arrays, outputs: Arrays, hashes: Hashes, x: Array | None = None) -> Ints:
        """Writes the result of one timestep x of many rows, each once: state, number, answer and hash together.

        Slots without a ring of values need no x.

        A row whose next state is not finite keeps its old state. Returns the indices of these rows in the batch;
        usually there are none.
        """
        non_finite = self._non_finite_rows(next_state)
        if non_finite.size:
            finite = np.setdiff1d(np.arange(slots.size), non_finite)
            slots = slots[finite]
            next_state = tuple(rows[finite] for rows in next_state)
            outputs = tuple(rows[finite] for rows in outputs)
            hashes, x = hashes[finite], None if x is None else x[finite]
        where = self._as_slice(slots)
        for slab, rows in zip(self.state, next_state, strict=True):
            slab[where] = rows
        step = self.step[where] + 1
        index: int | Ints
        if step.tobytes() == step[:1].tobytes() * len(step):  # the streams of one client usually step together
            index = int(step[0]) % self.answers if len(step) else 0
        else:
            index, where = step % self.answers, slots
        for slab, rows in zip(self._answers, outputs, strict=True):
            slab[where, index] = rows
        self._hashes[index, where] = hashes
        if self.raw is not None:
            assert x is not None
            self.raw.record(slots, step, x)
        self.step[where] = step
        return non_finite

    def _as_slice(self, slots: Ints) -> slice | Ints:
        """The slots as a slice, if they are contiguous.

        A slice is copied at once. Streams that were opened together are contiguous.
        """
        if not slots.size:
            return slots
        rows = slice(int(slots[0]), int(slots[0]) + slots.size)
        return rows if slots.tobytes() == self._all[rows].tobytes() else slots

    def gather_row(self, slot: int, state: Sequence[memoryview]) -> int:
        """Copies what `gather` does, of one row, into the model's memory. Returns the number of its last timestep."""
        for (slab, size), part in zip(self._gathered_bytes, state, strict=True):
            part[:] = slab[slot * size : (slot + 1) * size]
        return self.steps[slot]

    def scatter_row(
        self,
        slot: int,
        next_state: Sequence[memoryview],
        outputs: Sequence[memoryview],
        value_hash: int,
        values: bytes = b"",
    ) -> None:
        """Writes the result of one timestep of one row, whose state must be finite. `values` are packed.

        State, number, answer and hash are written together.
        """
        for (slab, size), part in zip(self._state_bytes, next_state, strict=True):
            slab[slot * size : (slot + 1) * size] = part
        step = self.steps[slot] + 1
        ring_index = step % self.answers
        index = slot * self.answers + ring_index
        for (slab, size), part in zip(self._answer_bytes, outputs, strict=True):
            slab[index * size : (index + 1) * size] = part
        self._hash_numbers[ring_index * self.capacity + slot] = value_hash
        if self.raw is not None:
            self.raw.record_row(slot, step, values)
        self.steps[slot] = step

    def find_answer(self, slot: int, step: int) -> tuple[bytes, ...]:
        """The packed answer to an applied timestep; empty when it is no longer remembered."""
        last = int(self.step[slot])
        assert 0 < step <= last
        if step <= last - self.answers or step < self._since[slot]:
            return ()
        return tuple(slab[slot, step % self.answers].tobytes() for slab in self._answers)

    def find_answers(self, slots: Ints, steps: Ints) -> tuple[npt.NDArray[np.bool_], Arrays]:
        """The answers to applied timesteps, one for each row, and which of them are still remembered.

        Returns (batch,) booleans and one array (batch, *shape) for each output; answers that are not remembered are
        zero.
        """
        last = self.step[slots]
        assert ((steps > 0) & (steps <= last)).all()
        is_remembered = (steps > last - self.answers) & (steps >= self._since[slots])
        answers = tuple(slab[slots, steps % self.answers] for slab in self._answers)
        for rows in answers:
            rows[~is_remembered] = 0
        return is_remembered, answers

    def values_differ(self, slots: Ints, steps: Ints, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """(batch,) whether each timestep is remembered with another hash of its values."""
        last = self.step[slots]
        is_remembered = (steps > last - self.answers) & (steps >= self._since[slots])
        applied = self._hashes[steps % self.answers, slots]
        differ: npt.NDArray[np.bool_] = is_remembered & (applied != UNKNOWN) & (applied != hashes)
        return differ

    def _non_finite_rows(self, state: Arrays) -> Ints:
        """The indices of rows with a value that is not finite."""
        suspects = [
            rows
            for rows, checked in zip(state, self._checked, strict=True)
            # One dot product for each tensor costs half a microsecond. It is finite unless a value is not, or is beyond
            # 1e19.
            if checked and not math.isfinite(np.vdot(rows, rows))
        ]
        if not suspects:
            return NO_ROWS
        finite = np.logical_and.reduce([np.isfinite(rows).reshape(len(rows), -1).all(axis=1) for rows in suspects])
        return np.flatnonzero(~finite)
