"""Checks a model when it is loaded: whether the bits of a row depend on the batch that it is in.

onnxruntime does not promise that they do not. What is promised to clients is what was checked here: a model runs batches
of the sizes that were checked, and others in parts of these sizes. Small models are checked with every size, large ones
until the budget of time or memory is used up. The runs also warm the model up.

A row that depends on the other rows of its batch (dynamically quantised weights: they are scaled by the largest value in
the batch) would make one stream's answers depend on another's. Such a model runs its rows one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.core.check_rows import CheckRows
from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.model import Model
from tidegate.core.signature import format_shape
from tidegate.core.spec import Array, Arrays, Spec

# A sum in another order changes the last bit of about one value in ten. Among this number of values at least one differs.
VALUES_COMPARED = 1000
STEPS = 3  # timesteps that follow each other: the first state is zero and hides a difference
# What a start may take for it. A model with 64 units needs a quarter of a second for all sizes up to 256; one with two
# layers of 1,024 is done with the powers of two by then, and with some more.
SECONDS_MAX = 2.0
# The arrays of one run: x, state, next state, outputs, and a copy of them.
BYTES_MAX = 256 << 20
COPIES = 4
# Every size up to this one is checked, and above it multiples of a step: only chunks of blocks are so large, and their
# sizes are rounded.
DENSE_MAX = 256
SPARSE_STEP = 64
# Batches of these sizes run with other neighbours: with one, with the kernels' widths, and with rows beyond them.
MIXED_SIZES = (2, 4, 16)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What was found. All values are plain, so that another process can send it.

    Attributes:
        sizes: the batch sizes that were run, 1 included, in ascending order.
        varying: those of them that change bits of a row.
        difference: the largest change, as a part of the standard deviation of the tensor's values; 0 when there is none.
        tensor: the name of the tensor with that change.
        mixes: whether other rows of a batch of the same size change a row.
        random: whether two equal runs differ. Then the rest cannot be told.

    """

    sizes: tuple[int, ...]
    varying: tuple[int, ...] = ()
    difference: float = 0.0
    tensor: str = ""
    mixes: bool = False
    random: bool = False

    @property
    def batch_invariant(self) -> bool:
        """Whether a row has the same bits in any batch that the model runs."""
        return not self.random and (self.mixes or not self.varying)


def check_model(
    model: Model,
    batch_max: int,
    clock: Callable[[], float],
    seconds_max: float = SECONDS_MAX,
    bytes_max: int = BYTES_MAX,
) -> SelfCheck:
    """Compares rows run alone with rows in batches of up to `batch_max`, until `seconds_max` by the clock are over.

    No array of a run has more than a part of `bytes_max`, unless a single row has.

    Raises ContractBroken when the graph cannot be run, or produces other shapes than it declares.
    """
    try:
        return _Check(model, batch_max, clock, seconds_max, bytes_max).run()
    except ModelFailed as error:
        raise ContractBroken(model.spec.title, f"the graph cannot be run: {error}") from error


class _Check:
    """One check."""

    def __init__(
        self, model: Model, batch_max: int, clock: Callable[[], float], seconds_max: float, bytes_max: int
    ) -> None:
        self._model = model
        self._clock = clock
        self._end = clock() + seconds_max
        self._names = [part.name for part in model.spec.outputs]
        self._names += [part.next_name or part.name for part in model.spec.state]
        shapes = [(part.shape, part.dtype.itemsize) for part in model.spec.outputs]
        shapes += [(part.shape, part.dtype.itemsize) for part in model.spec.state]
        self._row_values = sum(math.prod(shape) for shape, _ in shapes)
        row_bytes = sum(math.prod(shape) * size for shape, size in shapes)
        row_bytes += sum(part.nbytes * part.window for part in model.spec.inputs)
        self._size_max = max(1, min(batch_max, bytes_max // (COPIES * row_bytes))) if model.spec.batches else 1
        rows = min(self._size_max, max(MIXED_SIZES[-1], VALUES_COMPARED // (STEPS * self._row_values) + 1))
        self._rows = CheckRows(model.spec, STEPS, rows)
        self._alone = rows  # how many of them run alone
        self._alone_seconds_max = seconds_max / 3
        self._states: list[Arrays] = []
        self._expected: list[Arrays] = []
        self._difference = (0.0, "")

    def run(self) -> SelfCheck:
        if not self._run_alone():
            return SelfCheck(tuple(range(1, self._size_max + 1)), random=True)
        mixes = self._mixes()
        if mixes or self._size_max == 1:
            return SelfCheck((1,), (), *self._difference, mixes=mixes)
        sizes, varying = [1], []
        for size in self._affordable(_order(self._size_max)):
            sizes.append(size)
            if not self._same_alone(size, bound=size in (2, self._size_max)):
                varying.append(size)
        return SelfCheck(tuple(sorted(sizes)), tuple(sorted(varying)), *self._difference)

    def _run_alone(self) -> bool:
        """Runs each row alone, and the first one twice. Returns False when the two differ."""
        state = self._rows.with_stream_inputs(self._model.initial_state(self._alone))
        for step in range(STEPS):
            first, started = self._step_row(step, 0, state), self._clock()
            again = self._step_row(step, 0, state)
            if any(one.tobytes() != other.tobytes() for one, other in zip(first, again, strict=True)):
                return False
            if step == 0:
                seconds = STEPS * (self._clock() - started)
                self._alone = min(self._alone, max(2, int(self._alone_seconds_max / max(seconds, 1e-9))))
                state = _rows(state, slice(0, self._alone))
            results = [first, *(self._step_row(step, row, state) for row in range(1, self._alone))]
            expected = tuple(np.concatenate(parts) for parts in zip(*results, strict=True))
            self._states.append(state)
            self._expected.append(expected)
            count = len(self._model.spec.outputs)
            state = (*expected[count:], *state[len(expected) - count :])
        return True

    def _step_row(self, step: int, row: int, state: Arrays) -> Arrays:
        one = slice(row, row + 1)
        return self._step(self._rows.x[step][one], _rows(state, one))

    def _mixes(self) -> bool:
        """Whether the first or the last row of a batch changes when the others do."""
        step = STEPS - 1
        for size in (size for size in MIXED_SIZES if size <= self._size_max):
            places = np.arange(size) % self._alone
            x, state = self._rows.x[step][places], _rows(self._states[step], places)
            got = self._step(x, state)
            for neighbours in (self._rows.quiet, self._rows.loud):
                for row in (0, size - 1):
                    other = neighbours[np.arange(size) % len(neighbours)]
                    other[row] = x[row]
                    try:
                        differs = self._compare(got, self._step(other, state), slice(row, row + 1))
                    except ModelFailed:  # the graph refuses such values
                        continue
                    if differs:
                        return True
        return False

    def _same_alone(self, size: int, *, bound: bool) -> bool:
        """Whether each row of a batch of that size has the bits that it has alone."""
        same = True
        for steps_left, step in zip(range(STEPS, 0, -1), range(STEPS), strict=True):
            if steps_left > 1 and (steps_left - 1) * size * self._row_values >= VALUES_COMPARED:
                continue  # the remaining timesteps are enough
            places = (np.arange(size) + step) % self._alone
            x, state = self._rows.x[step][places], _rows(self._states[step], places)
            expected = _rows(self._expected[step], places)
            got = self._step(x, state)
            _check_shapes(self._model.spec, got, size)
            same &= not self._compare(expected, got, slice(None))
            if bound:  # bound memory behaves the same for every size
                same &= not self._compare(expected, self._model.step_bound(x, state), slice(None))
        return same

    def _step(self, x: Array, state: Arrays) -> Arrays:
        outputs, next_state = self._model.step(x, state)
        return (*outputs, *next_state)

    def _compare(self, expected: Arrays, got: Arrays, rows: slice) -> bool:
        """Whether rows differ. Notes the largest difference."""
        differs = False
        for name, one, other, typical in zip(self._names, expected, got, self._expected[-1], strict=True):
            if one[rows].tobytes() != other[rows].tobytes():
                differs = True
                size = _difference(one[rows], other[rows], typical)
                if not self._difference[1] or size > self._difference[0]:
                    self._difference = (size, name)
        return differs

    def _affordable(self, sizes: Sequence[int]) -> Iterator[int]:
        """The sizes, until the time is over. The last one shows how long the next one takes."""
        seconds_a_row = 0.0
        for size in sizes:
            started = self._clock()
            if size > 2 and started + seconds_a_row * size > self._end:
                continue  # a smaller one may still fit
            yield size
            seconds_a_row = (self._clock() - started) / size


def describe_check(check: SelfCheck) -> list[str]:
    """What an operator should know of a check, a sentence each; nothing when all is as promised."""
    sentences = []
    if check.random:
        sentences.append(
            "two equal runs differ, so it has a random operator: a timestep that is computed again after a crash has "
            "another answer, and whether batches change bits cannot be told"
        )
    elif check.mixes:
        sentences.append(
            f"a row depends on the other rows of its batch, '{check.tensor}' by up to {_percent(check.difference)} of its "
            "standard deviation, as with dynamically quantised weights: its rows run one by one, which is slower"
        )
    elif check.varying:
        sentences.append(
            f"on this CPU a prediction changes with the size of its batch (batches of {_ranges(check.varying)}), '{check.tensor}' by up to "
            f"{_percent(check.difference)} of its standard deviation; serve with --batch-max 1 if that matters"
        )
    return sentences


def describe_sizes(check: SelfCheck, batch_max: int) -> str:
    """Which batch sizes were checked."""
    if check.sizes == (1,):
        return "rows run one by one"
    if len(check.sizes) == batch_max:
        return f"batches of {_ranges(check.sizes)} checked"
    all_checked = set(check.sizes) == {1, *_order(batch_max)}
    sizes = (
        f"1 to {DENSE_MAX} and, in steps of {SPARSE_STEP}, up to {batch_max}" if all_checked else _ranges(check.sizes)
    )
    return f"batches of {sizes} checked; others run in parts of these sizes"


def _ranges(sizes: Sequence[int]) -> str:
    """Sizes in ascending order, with those that follow each other as a range."""
    starts = [size for size in sizes if size - 1 not in sizes]
    ends = [size for size in sizes if size + 1 not in sizes]
    return ", ".join(
        ", ".join(str(size) for size in range(first, last + 1)) if last - first < 2 else f"{first} to {last}"  # 1, 2
        for first, last in zip(starts, ends, strict=True)
    )


def _order(size_max: int) -> list[int]:
    """The sizes from 2 on: first the powers of two, of which any batch can be made, then the others."""
    powers = [1 << bits for bits in range(1, size_max.bit_length()) if 1 << bits <= size_max]
    others = [*range(2, min(size_max, DENSE_MAX) + 1), *range(DENSE_MAX, size_max + 1, SPARSE_STEP)]
    return [*dict.fromkeys([*powers, size_max, *others])] if size_max > 1 else []


def _rows(arrays: Arrays, places: Array | slice) -> Arrays:
    return tuple([part[places] for part in arrays])


def _difference(one: Array, other: Array, typical: Array) -> float:
    """The largest difference, as a part of the standard deviation of typical values; infinite where that is unknown."""
    with np.errstate(all="ignore"):
        one, other, typical = (part.astype(np.float64) for part in (one, other, typical))
        gap = np.abs(np.where(one == other, 0.0, one - other))  # equal infinities have no difference
        typical = typical[np.isfinite(typical)]
        spread = float(typical.std()) if typical.size else 0.0
        spread = spread or float(np.abs(typical).max(initial=0.0))
    return float(np.nanmax(gap, initial=0.0)) / spread if spread else math.inf


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"


def _check_shapes(spec: Spec, got: Arrays, batch: int) -> None:
    """Checks the shapes of results.

    A graph may declare one shape and produce another; one row for the whole batch would mix streams.
    """
    shapes = [(output.name, output.shape) for output in spec.outputs]
    shapes += [(tensor.next_name, tensor.shape) for tensor in spec.state]
    for (name, row), part in zip(shapes, got, strict=True):
        if part.shape != (batch, *row):
            raise ContractBroken(
                spec.title,
                f"output '{name}' came out with shape {format_shape(part.shape)}, expected {format_shape((batch, *row))}",
            )
