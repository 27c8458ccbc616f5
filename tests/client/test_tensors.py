"""What callers may give to models with any inputs, and what is refused before it is sent."""

from typing import Any

import numpy as np
import pytest

from tidegate.client.errors import InvalidArgument, InvalidTimestep
from tidegate.client.tensors import block_rows, convert, row_packer, stream_inputs
from tidegate.client.types import Model
from tidegate.core.spec import Feature, Input


def model(*inputs: Input, features: int = 2) -> Model:
    """A model with these inputs."""
    names = tuple(Feature(f"f{place}") for place in range(features))
    return Model("toy", "1", "f" * 64, "", 0.0, names, (), True, True, inputs)


def one(dtype: Any, *shape: int, name: str = "x", kind: Any = "timestep") -> Input:
    """An input."""
    return Input(name, np.dtype(dtype), shape, kind=kind)


INT64 = model(one(np.int64, 2))
TWO = model(one(np.float32, 2), one(np.int64, 1, name="rate"))
CUBE = model(one(np.float32, 1, 2, 2), features=4)
SPEAKER = model(one(np.float32, 2), one(np.float16, 3, name="voice", kind="stream"))


@pytest.mark.parametrize(
    "values", [[2**53 + 1, -5], (2**53 + 1, -5), np.array([2**53 + 1, -5]), {"x": [2**53 + 1, -5]}]
)
def test_integers_keep_every_bit(values: Any) -> None:
    """They never pass through a floating-point number."""
    assert np.frombuffer(row_packer(INT64)(values), np.int64).tolist() == [2**53 + 1, -5]


@pytest.mark.parametrize(
    ("dtype", "value", "bits"),
    [
        (np.float64, [0.1, 2], np.array([0.1, 2.0])),
        (np.float16, [0.1, 1e9], np.array([0.1, np.inf], np.float16)),
        (np.int32, np.array([1, 2], np.uint8), np.array([1, 2], np.int32)),
        (np.uint64, [2**64 - 1, 0], np.array([2**64 - 1, 0], np.uint64)),
        (np.bool_, [True, False], np.array([True, False])),
        (np.bool_, [1, 0], np.array([True, False])),
        (np.float64, np.ma.array([1.0, 2.0], mask=[True, False]), np.array([np.nan, 2.0])),
    ],
)
def test_a_value_becomes_the_type_of_its_input(dtype: Any, value: Any, bits: Any) -> None:
    """Where that is exact, or a number of another size of the same kind."""
    got = convert("values", value, one(dtype, 2), [(2,)])
    assert got.dtype == bits.dtype
    assert got.tobytes() == bits.tobytes()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([1.0, 2.0], "got float64 for 'x'"),
        ([2**53, 2.0], "got float64 for 'x'"),
        ([2**63, 0], f"got {2**63} in 'x'"),
        ([2**64, 0], f"got {2**64} in 'x'"),
        ([-(2**63) - 1, 0], f"got {-(2**63) - 1} in 'x'"),
        ([2**63, True], "'x'"),
        ([1, None], "got [1, None] for 'x'"),
        ("12", "got '12' for 'x'"),
        ([1, 2, 3], "got shape [3] for 'x'"),
        ([[1, 2], [3]], "got [[1, 2], [3]] for 'x'"),
        (5, "got shape [] for 'x'"),
        ({"y": [1, 2]}, "got 'y'"),
        ({}, "got no 'x'"),
        (np.ma.array([1, 2], mask=[True, False]), "got masked values for 'x'"),
    ],
)
def test_what_is_no_vector_of_int64_is_refused(value: Any, got: str) -> None:
    """With what was got, and what was expected."""
    with pytest.raises(InvalidTimestep) as caught:
        row_packer(INT64)(value)
    assert str(caught.value).startswith("values: ")
    assert "int64" in str(caught.value)
    assert got in str(caught.value)
    assert caught.value.field == "values"


@pytest.mark.parametrize(
    "values",
    [
        {"x": [1.5, 2.5], "rate": [7]},
        {"rate": 7, "x": np.array([1.5, 2.5])},
        {"x": {"f1": 2.5, "f0": 1.5}, "rate": np.int32(7)},
    ],
)
def test_a_timestep_names_its_inputs(values: Any) -> None:
    """In any order; the one of features by name or in order; a single number without brackets."""
    x, rate = TWO.layout.unpack(np.frombuffer(row_packer(TWO)(values), np.uint8)[np.newaxis])
    assert x.tolist() == [[1.5, 2.5]]
    assert rate.tolist() == [[7]]


def test_several_inputs_need_names() -> None:
    """The error lists them."""
    with pytest.raises(InvalidTimestep, match=r"a mapping with 'x' \(float32 \[2\]\), 'rate' \(int64 \[1\]\)"):
        row_packer(TWO)([1.0, 2.0])
    with pytest.raises(InvalidTimestep, match="got no 'rate'"):
        row_packer(TWO)({"x": [1.0, 2.0]})


@pytest.mark.parametrize("shape", [(1, 2, 2), (4,)])
def test_a_row_of_a_higher_rank_may_be_flat(shape: tuple[int, ...]) -> None:
    """As it travels."""
    x = np.arange(4, dtype=np.float32)
    assert row_packer(CUBE)(x.reshape(shape)) == row_packer(CUBE)(x.reshape(shape).tolist()) == x.tobytes()
    rows, _ = block_rows(np.stack([x.reshape(shape)] * 3), None, 3, CUBE)
    assert rows.tolist() == [x.tolist()] * 3


def test_another_shape_of_it_is_refused() -> None:
    """Even if it has as many numbers."""
    with pytest.raises(InvalidTimestep, match=r"shape \(2, 2\)"):
        row_packer(CUBE)(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    "x",
    [
        {"x": [[1, 2], [3, 4]], "rate": [[5], [6]]},
        {"x": np.array([[1, 2], [3, 4]], np.float32), "rate": [5, 6]},
        [{"x": [1, 2], "rate": 5}, {"x": [3, 4], "rate": [6]}],
    ],
)
def test_a_block_has_a_row_for_each_stream(x: Any) -> None:
    """In columns by name, or as a list of timesteps."""
    rows, places = block_rows(x, [1, 0], 2, TWO)
    assert places.tolist() == [1, 0]
    left, right = TWO.layout.unpack(rows)
    assert left.tolist() == [[1, 2], [3, 4]]
    assert right.tolist() == [[5], [6]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"x": [[1, 2]], "rate": [[5]]}, r"got shape \[1, 2\] for 'x', expected float32 of shape \[2, 2\]"),
        ({"x": [[1, 2]] * 2}, "got no 'rate'"),
        ([[1, 2]] * 2, "a mapping with 'x'"),
        ([{"x": [1, 2], "rate": 5}], "got 1 timesteps, expected 2"),
    ],
)
def test_a_block_of_another_shape_is_refused(x: Any, message: str) -> None:
    """The field is x."""
    with pytest.raises(InvalidTimestep, match=message) as caught:
        block_rows(x, None, 2, TWO)
    assert caught.value.field == "x" or "mapping" in message


def test_streams_begin_with_one_value_or_one_each() -> None:
    """An array with a row for each stream, or a value for all."""
    voice = np.array([1, 2, 3], np.float16)
    assert stream_inputs({"voice": [1, 2, 3]}, SPEAKER) == [(("voice", voice.tobytes()),)]
    assert stream_inputs({"voice": voice}, SPEAKER, 2) == 2 * [(("voice", voice.tobytes()),)]
    each = stream_inputs({"voice": [[1, 2, 3], [4, 5, 6]]}, SPEAKER, 2)
    assert [np.frombuffer(packed, np.float16).tolist() for ((_, packed),) in each] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"voice": [1, 2]}, r"inputs: got shape \[2\] for 'voice', expected float16 of shape \[3\]"),
        ({"voice": ["a", "b", "c"]}, "inputs: got .* for 'voice'"),
        ({"face": [1, 2, 3]}, r"inputs: got 'face', expected 'voice' \(float16 \[3\]\)"),
        ({}, "inputs: got no 'voice'"),
    ],
)
def test_wrong_inputs_of_a_stream_are_refused(inputs: Any, message: str) -> None:
    """Before the stream is opened."""
    with pytest.raises(InvalidArgument, match=message) as caught:
        stream_inputs(inputs, SPEAKER)
    assert caught.value.field == "inputs"
    assert not isinstance(caught.value, InvalidTimestep)
