"""Many rows as the parameters of one SQL statement, in parts of a bounded size."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from tidegate.core.spec import Checkpoint, Checkpoints, Key

# Rows of a statement: enough to need few calls, and few enough that binding them holds the GIL for less than a
# millisecond.
ROWS = 256
# Checkpoints of a statement. Their records are bound as one value, so a thousand cost no more to bind. And after every
# call into SQLite the thread waits for the GIL, beside a busy event loop for milliseconds.
SAVED_ROWS = 1024
# Bytes of state in a statement, which holds a copy of them: 256 large states would be gigabytes.
CHUNK_BYTES = 4 << 20


def chunks(checkpoints: Sequence[Checkpoint]) -> Iterator[Sequence[Checkpoint]]:
    """Parts of up to SAVED_ROWS checkpoints, or fewer when they are large."""
    if isinstance(checkpoints, Checkpoints):
        rows = max(1, min(SAVED_ROWS, CHUNK_BYTES // max(1, checkpoints.payloads.shape[1])))
        for start in range(0, len(checkpoints), rows):
            yield checkpoints[start : start + rows]
        return
    start = size = 0
    for index, checkpoint in enumerate(checkpoints):
        if index - start == SAVED_ROWS or (size and size + len(checkpoint.payload) > CHUNK_BYTES):
            yield checkpoints[start:index]
            start, size = index, 0
        size += len(checkpoint.payload)
    if start < len(checkpoints):
        yield checkpoints[start:]


@cache  # eleven sizes, six widths
def table(columns: int, rows: int) -> str:
    """A table of parameters for a number of rows, padded."""
    row = f"({','.join('?' * columns)})"
    return "VALUES " + ",".join([row] * _padded(rows))


def flat(rows: Iterator[tuple[Any, ...]], columns: int, count: int) -> list[Any]:
    """The values of `count` rows in one list. The padding is NULL, which is not equal to anything."""
    return [*chain.from_iterable(rows), *([None] * (columns * (_padded(count) - count)))]


def _padded(rows: int) -> int:
    """The next power of two: few sizes mean few statements, which then stay prepared."""
    return 1 << max(rows - 1, 0).bit_length()


def columns(checkpoints: Sequence[Checkpoint]) -> tuple[Sequence[Key], Sequence[int], Sequence[int], Sequence[int]]:
    """The keys, epochs, steps, and sizes of the state in bytes."""
    if isinstance(checkpoints, Checkpoints):
        count, width = checkpoints.payloads.shape
        return checkpoints.keys, checkpoints.epochs, checkpoints.steps.tolist(), [width] * count
    each = [(c.key, c.epoch, c.step, len(c.payload)) for c in checkpoints]
    keys, epochs, steps, sizes = zip(*each, strict=True) if each else ((), (), (), ())
    return keys, epochs, steps, sizes
