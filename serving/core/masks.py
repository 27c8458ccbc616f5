"""Questions about masks, for the path of a block.

numpy counts the true values of a short mask in 0.3 us; its `all` and `any` take 1.4 us, and a small block asks six times.
"""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def all_true(mask: Mask) -> bool:
    """Whether every value is true; also for a mask without values."""
    return int(np.count_nonzero(mask)) == mask.size


def any_true(mask: Mask) -> bool:
    """Whether a value is true."""
    return bool(np.count_nonzero(mask))
