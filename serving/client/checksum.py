"""Checksums of many answers at once, so that a replay can be held against what was delivered without keeping it."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.core.spec import Array, Ints


def checksums(outputs: Sequence[Array], rows: Ints) -> npt.NDArray[np.uint64]:
    """One number for the bits of each row's outputs: a sum of its words, each times an odd number of its own.

    Rows that differ in one word never have the same; others by a chance of one in 2 ** 32 or less, as long as a word has no
    more than 32 bits.
    """
    sums = np.zeros(len(rows), np.uint64)
    words = 0
    for output in outputs:
        flat = output[rows].reshape(len(rows), math.prod(output.shape[1:]))
        bits = flat.view(np.uint8 if flat.dtype.itemsize == 1 else np.uint32)
        sums += bits.astype(np.uint64) @ _odd(words, bits.shape[1])
        words += bits.shape[1]
    return sums


def _odd(begin: int, count: int) -> npt.NDArray[np.uint64]:
    """Odd numbers without a pattern: splitmix64 of their places."""
    mixed = np.arange(begin + 1, begin + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
