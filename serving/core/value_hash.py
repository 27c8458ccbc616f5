"""A hash of a timestep's values. It tells a true repeat from another timestep with the same number.

A packed row is read as 32-bit words v and hashed to sum(v * k) mod 2**64, with one odd 64-bit factor k for each word. This is multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014). Two
timesteps that differ in one value never have the same hash; others collide with a probability of about 2**-64. The hash
is stored with streams, so the factors never change.
"""

from functools import cache
from operator import mul
from struct import Struct

import numpy as np
import numpy.typing as npt

from tidegate.core.spec import Array

Hashes = npt.NDArray[np.uint64]

# Stands for an unknown hash: the timestep was stored before hashes were introduced. No timestep has it.
UNKNOWN = 0
MASK = 2**64 - 1
QUIET_NAN = 0x7FC00000


class ValueHash:
    """The hash for rows of a number of words."""

    def __init__(self, words: int) -> None:
        self._factors: Hashes = _split_mix(words) | np.uint64(1)
        self._numbers: tuple[int, ...] = tuple(self._factors.tolist())
        self._unpack = Struct(f"<{words}I").unpack

    def rows(self, x: Array, *, finite: bool = False) -> Hashes:
        """The hash of each row of x: float32 (batch, words), or with `finite` any packed rows.

        All NaN are equal. `finite` tells that x has none.
        """
        values = np.ascontiguousarray(x).view(np.uint32)
        if not finite and (missing := np.isnan(x)).any():
            values = np.where(missing, np.uint32(QUIET_NAN), values)
        hashes: Hashes = values @ self._factors
        if np.count_nonzero(hashes) < len(hashes):
            hashes[hashes == UNKNOWN] = 1
        return hashes

    def row(self, values: bytes) -> int:
        """The hash of one packed timestep without NaN; equal to that of `rows`."""
        return sum(map(mul, self._unpack(values), self._numbers)) & MASK or 1


@cache
def value_hash(words: int) -> ValueHash:
    """The hash for rows of a number of words. The cache has one entry for each width."""
    return ValueHash(words)


def _split_mix(count: int) -> Hashes:
    """The first numbers of SplitMix64 from seed 0.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
