"""Which streams a shadow sees, and how far its outputs are from the real ones.

A shadow is another version of a model that runs the same timesteps with a state of its own. Nobody sees its outputs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from tidegate.core.errors import ModelFailed
from tidegate.core.model import Model
from tidegate.core.slots import Slots
from tidegate.core.spec import Array, Arrays, Ints, Key
from tidegate.core.swap import advance

HASHES = 2**32


def in_share(key: Key, share: float) -> bool:
    """Whether a stream belongs to a share of all streams: always the same ones, and more of them in a larger share."""
    return crc32(key.stream_id.encode()) < share * HASHES


class Applied(NamedTuple):
    """Timesteps that the real version has applied, each of another stream."""

    keys: Sequence[Key]
    steps: Ints
    x: Array
    outputs: Arrays
    inputs: Arrays
    """The inputs that the streams began with."""


class Tap:
    """Passes the timesteps of a share of the streams on to a shadow. `engine.tap` is one.

    `offer` and `offer_row` are called in the thread of the engine, after the timesteps were applied. They must not raise, nor
    take long.
    """

    def __init__(self, slots: Slots, share: float, on_applied: Callable[[Applied], None]) -> None:
        self._slots = slots
        self._share = share
        self._on_applied = on_applied
        self._keys: list[Key | None] = [None] * slots.capacity  # of the streams for which `_chosen` was computed
        self._chosen: npt.NDArray[np.bool_] = np.zeros(slots.capacity, np.bool_)

    def offer(self, slots: Ints, x: Array, outputs: Arrays) -> None:
        """Takes over the rows of chosen streams from a batch x (batch, ...)."""
        keys = [self._slots.keys[slot] for slot in slots.tolist()]
        rows = [
            row for row, (slot, key) in enumerate(zip(slots.tolist(), keys, strict=True)) if self._is_chosen(slot, key)
        ]
        if rows:
            chosen = slots[rows]
            self._on_applied(
                Applied(
                    [key for row in rows if (key := keys[row]) is not None],
                    self._slots.step[chosen],
                    x[rows],
                    tuple(part[rows] for part in outputs),
                    tuple(slab[chosen] for slab in self._slots.stream_inputs),
                )
            )

    def offer_row(self, slot: int, values: bytes, outputs: Sequence[bytes]) -> None:
        """Takes over a single timestep, if its stream is chosen."""
        if self._is_chosen(slot, self._slots.keys[slot]):
            x = np.frombuffer(values, self._slots.layout.row_dtype)[np.newaxis]
            arrays = [
                np.frombuffer(part, output.dtype).reshape(1, *output.shape)
                for part, output in zip(outputs, self._slots.spec.outputs, strict=True)
            ]
            self.offer(np.array([slot]), x, tuple(arrays))

    def _is_chosen(self, slot: int, key: Key | None) -> bool:
        if self._keys[slot] is not key:  # the slot has another stream now
            self._keys[slot] = key
            self._chosen[slot] = key is not None and in_share(key, self._share)
        return bool(self._chosen[slot])


class Comparison(NamedTuple):
    """What a shadow has made of some timesteps."""

    absolute: list[float]
    """The largest absolute difference of each compared timestep, over all of its outputs."""
    relative: list[float]
    """The same in standard deviations of the real output so far."""
    warming: int
    """How many were not compared, because the shadow had seen too few timesteps of their streams."""
    failed: int
    """How many the shadow could not compute, or gave a value that is not finite where the real one is."""


class ShadowRun:
    """The states of the streams that a shadow has seen, at most `streams_max`. It belongs to one thread.

    A stream begins here with the initial state of the shadow, also after one of its timesteps was missed. It is compared
    when the shadow has seen `warmup` of its timesteps.
    """

    def __init__(self, model: Model, streams_max: int, warmup: int) -> None:
        self._model = model
        self._streams_max = streams_max
        self._warmup = warmup
        self._streams: dict[Key, tuple[int, int, Arrays]] = {}  # last step, timesteps seen, state; the oldest first
        self._scales = [_Scale() for _ in model.spec.outputs]

    def __len__(self) -> int:
        """The number of streams."""
        return len(self._streams)

    def run(self, applied: Applied) -> Comparison:
        """Runs timesteps that the real version has applied, and compares."""
        count = len(applied.keys)
        initial = tuple(tensor.initial for tensor in self._model.spec.state)
        known = [self._streams.pop(key, None) for key in applied.keys]
        seen = np.zeros(count, np.int64)
        states = []
        for row, (found, step) in enumerate(zip(known, applied.steps.tolist(), strict=True)):
            if found is not None and found[0] == step - 1:
                seen[row] = found[1]
                states.append(found[2])
            else:
                states.append(initial)
        state = tuple(np.stack(column) for column in zip(*states, strict=True))
        try:
            outputs, next_state, usable = advance(self._model, applied.x, state, applied.inputs)
        except ModelFailed:
            return Comparison([], [], 0, count)  # these streams begin again
        for row, key in enumerate(applied.keys):
            if usable[row]:
                rest = tuple(part[row].copy() for part in next_state)
                self._streams[key] = int(applied.steps[row]), int(seen[row]) + 1, rest
        while len(self._streams) > self._streams_max:
            del self._streams[next(iter(self._streams))]
        for scale, real in zip(self._scales, applied.outputs, strict=True):
            scale.add(real)
        warm = usable & (seen >= self._warmup)
        absolute, relative = self._differences(applied.outputs, outputs, np.flatnonzero(warm))
        finite = np.isfinite(absolute)
        failed = int((~usable).sum() + (~finite).sum())
        warming = int((usable & ~warm).sum())
        return Comparison(absolute[finite].tolist(), relative[finite].tolist(), warming, failed)

    def _differences(self, real: Arrays, shadow: Arrays, rows: Ints) -> tuple[Array, Array]:
        """(rows,) the largest difference of each row: absolute, and in standard deviations."""
        absolute, relative = np.zeros(len(rows)), np.zeros(len(rows))
        for ours, theirs, scale in zip(real, shadow, self._scales, strict=True):
            if not len(rows) or not ours[:1].size:
                continue
            one, other = (part[rows].reshape(len(rows), -1).astype(np.float64) for part in (ours, theirs))
            differs = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other)).max(axis=1)
            differs = np.where(np.isnan(differs), np.inf, differs)
            absolute = np.maximum(absolute, differs)
            relative = np.maximum(relative, differs / scale.deviation)
        return absolute, relative


class _Scale:
    """The standard deviation of all values of an output so far (Welford 1962, in the form of Chan et al. 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: Array) -> None:
        finite = (
            values[np.isfinite(values)].astype(np.float64) if values.dtype.kind == "f" else values.astype(np.float64)
        )
        if not finite.size:
            return
        mean, count = float(finite.mean()), self._count + finite.size
        delta = mean - self._mean
        self._squares += float(((finite - mean) ** 2).sum()) + delta**2 * self._count * finite.size / count
        self._mean += delta * finite.size / count
        self._count = count

    @property
    def deviation(self) -> float:
        """The deviation; 1 when all values were the same, so that a difference from them stays one."""
        deviation = (self._squares / self._count) ** 0.5 if self._count else 0.0
        return deviation or 1.0
