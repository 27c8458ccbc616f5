"""Rows of any inputs: what goes in comes out, and what is not finite is found."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Input

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_]
INPUTS = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=4)


def layout_of(*inputs: Any) -> InputLayout:
    """A layout of inputs a, b, c, ... of these types and shapes."""
    return InputLayout(
        [Input(name, np.dtype(kind), tuple(shape)) for name, (kind, shape) in zip("abcd", inputs, strict=False)]
    )


@given(INPUTS, st.integers(0, 5), st.integers(0, 2**32))
def test_what_is_packed_comes_out(inputs: Any, rows: int, seed: int) -> None:
    """Bit for bit, each input aligned, in rows that are compared as bytes."""
    layout = layout_of(*inputs)
    rng = np.random.default_rng(seed)
    columns = {part.name: (rng.random((rows, *part.shape)) * 100 - 50).astype(part.dtype) for part in layout.timestep}
    x = layout.pack({name: column.tobytes() for name, column in columns.items()}, rows)
    assert x.nbytes == rows * layout.row_bytes
    assert layout.row_bytes % 4 == 0
    for part, got in zip(layout.timestep, layout.unpack(x), strict=True):
        assert got.dtype == part.dtype
        assert got.flags.aligned
        assert got.tobytes() == columns[part.name].tobytes() == layout.column(x, part.name).tobytes()


def test_only_one_float32_input_is_plain() -> None:
    """Its rows are its values, of any shape; an input of a stream is not in them."""
    assert layout_of((np.float32, [2, 3])).plain
    assert layout_of((np.float32, [2, 3])).row_bytes == 24
    speaker = Input("s", np.dtype(np.int64), (9,), kind="stream")
    assert InputLayout([Input("a", np.dtype(np.float32), (2,)), speaker]).row_bytes == 8
    for other in ([(np.float64, [2])], [(np.int64, [1])], [(np.float32, [2]), (np.float32, [1])]):
        assert not layout_of(*other).plain


def test_the_first_float32_input_travels_as_values() -> None:
    """The others by name."""
    layout = layout_of((np.float32, [2]), (np.float32, [1]))
    assert layout.values is layout.timestep[0]
    assert [part.name for part in layout.named] == ["b"]
    layout = layout_of((np.int64, [2]), (np.float32, [1]))
    assert layout.values is None
    assert [part.name for part in layout.named] == ["a", "b"]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found(kind: Any, value: float) -> None:
    """In its row, at its place; NaN only where it is not allowed."""
    layout = layout_of((np.int32, [3]), (kind, [2, 2]))
    numbers = np.ones((3, 2, 2), kind)
    numbers[1, 1, 0] = value
    x = layout.pack({"a": np.arange(9, dtype=np.int32).tobytes(), "b": numbers.tobytes()}, 3)
    assert not layout.finite(x)
    assert layout.finite(x[[0, 2]])
    assert layout.invalid(x, missing_allowed=False).tolist() == [False, True, False]
    assert layout.invalid(x, missing_allowed=True).tolist() == [False, np.isinf(value), False]
    assert layout.missing(x) == np.isnan(value)
    part, place, got = layout.first_invalid(x[1:2], missing_allowed=False)
    assert (part.name, place) == ("b", 2)
    assert np.isnan(got) if np.isnan(value) else got == value


def test_the_largest_numbers_are_finite() -> None:
    """Although their squares are not."""
    for kind in (np.float16, np.float32, np.float64):
        layout = layout_of((kind, [2]))
        x = layout.pack({"a": np.full((1, 2), np.finfo(kind).max, kind).tobytes()}, 1)
        assert layout.finite(x)
