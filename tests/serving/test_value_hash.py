import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.value_hash import UNKNOWN, value_hash

WIDTHS = [1, 2, 8, 576]


@pytest.mark.parametrize("features", WIDTHS)
def test_one_row_has_the_hash_that_it_has_among_others(features: int) -> None:
    """The hash is the same for a single timestep and for a row of a block."""
    x = np.random.default_rng(1).normal(size=(7, features)).astype(np.float32)
    one = value_hash(features)
    assert one.rows(x).tolist() == [one.row(row.tobytes()) for row in x]


def test_the_hash_never_changes() -> None:
    """It is stored with streams, and later servers compare with it.

    Computed by hand from SplitMix64's first numbers.
    """
    first, second = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4 | 1
    values = np.array([1.0, -2.0], np.float32)
    expected = (0x3F800000 * first + 0xC0000000 * second) % 2**64
    assert value_hash(2).row(values.tobytes()) == expected


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 31))
def test_one_changed_bit_changes_the_hash(values: list[float], place: int, bit: int) -> None:
    """The factors are odd, so values that differ in one feature never have the same hash."""
    x = np.array([values, values], np.float32)
    x.view(np.uint32)[1, place] ^= np.uint32(1 << bit)
    if np.isnan(x).any():
        return  # all NaN are equal
    one, other = value_hash(4).rows(x).tolist()
    assert one != other


def test_all_missing_values_are_alike() -> None:
    """Clients encode NaN in many ways: JSON has one, a processor another."""
    x = np.array([[1, np.nan], [1, np.nan]], np.float32)
    x.view(np.uint32)[1, 1] = 0xFFC00001
    one, other = value_hash(2).rows(x).tolist()
    assert one == other


def test_a_hash_is_never_that_of_what_is_not_known() -> None:
    """Values that are all zero would have it."""
    zero = np.zeros((1, 3), np.float32)
    assert value_hash(3).rows(zero).tolist() == [value_hash(3).row(zero.tobytes())] != [UNKNOWN]
