"""Values that a description gives a tensor: one number, or a flat list of a row. Nothing is converted in silence."""

import math
from typing import Any

import numpy as np

from tidegate.core.spec import Array


class NotAValueError(ValueError):
    """The numbers cannot be the values of the tensor. The message says why, and what is expected."""


def read_values(numbers: Any, dtype: np.dtype[Any], shape: tuple[int, ...], *, finite: bool) -> Array:
    """An array of that dtype and shape: of one number everywhere, or of a flat list in order.

    Raises:
        NotAValueError: a number is not one of the dtype, there are more or fewer than the shape has, or one is not finite
            and `finite` is set.

    """
    if not isinstance(numbers, tuple):
        return np.full(shape, _convert(numbers, dtype, finite=finite))
    if len(numbers) != math.prod(shape):
        sizes = ", ".join(str(size) for size in shape)
        raise NotAValueError(
            f"{len(numbers)} initial values, expected {math.prod(shape)} for [{sizes}], or one for all"
        )
    return np.array([_convert(number, dtype, finite=finite) for number in numbers], dtype).reshape(shape)


def _convert(number: bool | float, dtype: np.dtype[Any], *, finite: bool) -> Any:
    """One number of the dtype."""
    if dtype.kind == "b":
        if number not in (0, 1):
            raise NotAValueError(f"the value {number}, expected true or false")
    elif isinstance(number, bool):
        raise NotAValueError(f"the value {str(number).lower()}, expected a number")
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not math.isfinite(number) or number != int(number) or not limits.min <= number <= limits.max:
            raise NotAValueError(
                f"the value {number}, expected a whole number from {limits.min} to {limits.max}, for the tensor is {dtype}"
            )
    elif not math.isfinite(number):
        if finite:
            raise NotAValueError(f"the value {number}, expected a finite number")
    elif abs(number) > float(np.finfo(dtype).max):
        raise NotAValueError(f"the value {number}, which does not fit into {dtype}")
    return dtype.type(number)
