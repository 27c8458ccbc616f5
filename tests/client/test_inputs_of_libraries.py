"""Rows and frames of libraries that the client knows nothing of: they are read by their names."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.test_inputs import FEATURES, IN_ORDER, NAN, TABLE, bits
from tidegate.client import InvalidTimestep
from tidegate.client.inputs import columns, pack


@pytest.fixture(scope="module")
def pandas() -> Any:
    """The library, where it is installed."""
    return pytest.importorskip("pandas")


def test_tables_of_pyarrow_are_read_by_name() -> None:
    """What is null there is missing."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"c": [3, None], "a": [1.0, 4.0], "b": [2.5, None]})
    for x in (table, table.to_batches()[0]):
        values, _ = columns(x, None, 2, FEATURES)
        np.testing.assert_array_equal(values, np.array([[1.0, 2.5, 3.0], [4.0, NAN, NAN]], np.float32))
    with pytest.raises(InvalidTimestep, match=r"got column a of .*expected columns of numbers"):
        columns(pyarrow.table({"a": ["x"]}), None, 1, FEATURES)


@given(order=st.permutations([0, 1, 2]), values=st.lists(st.floats(width=64), min_size=3, max_size=3))
def test_any_order_of_labels_of_pandas_gives_the_same_bytes(pandas: Any, order: list[int], values: list[float]) -> None:
    """A Series, a row of a frame in both ways to iterate, a frame."""
    names = [FEATURES[place].name for place in order]
    expected = pack(values, FEATURES)
    series = pandas.Series([values[place] for place in order], index=names)
    frame = pandas.DataFrame([series, series])
    assert pack(series, FEATURES) == expected
    assert pack(frame.iloc[0], FEATURES) == expected
    assert [pack(row, FEATURES) for row in frame.itertuples()] == [expected] * 2
    assert [pack(row, FEATURES) for _, row in frame.iterrows()] == [expected] * 2
    assert columns(frame, None, 2, FEATURES)[0].tobytes() == expected * 2
    assert columns([series, series], None, 2, FEATURES)[0].tobytes() == expected * 2
    assert pack(frame.to_records(index=False)[0], FEATURES) == expected


def test_default_labels_of_pandas_mean_the_order(pandas: Any) -> None:
    """Those that are left of a longer Series mean nothing."""
    assert pack(pandas.Series(IN_ORDER), FEATURES) == bits(*IN_ORDER)
    assert columns(pandas.DataFrame(TABLE), None, 2, FEATURES)[0].tolist() == TABLE.tolist()
    for series in (pandas.Series(IN_ORDER * 2)[3:], pandas.Series(IN_ORDER, index=[2, 1, 0])):
        with pytest.raises(InvalidTimestep, match="values: got labels"):
            pack(series, FEATURES)


def test_numbers_of_pandas_that_may_be_missing_are_read(pandas: Any) -> None:
    """They are no numbers of numpy."""
    frame = pandas.DataFrame(
        {
            "c": pandas.array([1, None], dtype="Int64"),
            "a": pandas.array([None, 2.5], dtype="Float64"),
            "b": pandas.array([True, None], dtype="boolean"),
        }
    )
    expected = np.array([[NAN, 1.0, 1.0], [2.5, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(columns(frame, None, 2, FEATURES)[0], expected)
    assert pack(frame[["a", "c"]].iloc[1], FEATURES) == bits(2.5, NAN, NAN)
    mixed = pandas.DataFrame({"c": [3.5], "site": ["north"], "a": [1.5]}).iloc[0]
    assert pack(mixed[["c", "a"]], FEATURES) == bits(1.5, NAN, 3.5)
    with pytest.raises(InvalidTimestep, match="no feature is called site"):
        pack(mixed, FEATURES)
