"""Timesteps in every form that callers have them: what has names is read by its names, whatever its order."""

import sqlite3
import struct
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.test_blocking import played
from tests.client.test_single import answer, answering
from tests.scripted import closing, connected, scripted
from tests.scripted_calls import Call
from tidegate.client import Client, InvalidTimestep
from tidegate.client.inputs import Packer, columns, has_names, pack, rows_in_order, split_block
from tidegate.core.spec import Feature

FEATURES = tuple(Feature(name) for name in ("a", "b", "c"))
IN_ORDER = [1.5, 2.5, 3.5]
NAN = float("nan")


class Turned(NamedTuple):
    """A row in another order than the features."""

    c: float
    a: float
    b: float


@dataclass(frozen=True)
class Reading:
    """As `Turned`; what belongs to the class is no measurement."""

    c: float
    a: float
    b: float
    unit: ClassVar[str] = "V"


class Series:
    """What the client uses of a pandas Series, for a machine without pandas."""

    def __init__(self, values: Sequence[Any], index: Sequence[Any]) -> None:
        self.array, self.index = np.asarray(values), index

    def keys(self) -> Sequence[Any]:
        """The labels."""
        return self.index

    def to_numpy(self) -> Any:
        """The values."""
        return self.array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array.tolist())

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("a Series takes numbers for positions, or for labels; nobody knows")


class Frame:
    """What the client uses of a DataFrame of polars or pandas."""

    def __init__(self, columns: Sequence[Any], table: Sequence[Sequence[float]]) -> None:
        self._columns, self.table = list(columns), np.asarray(table, np.float64).reshape(-1, len(columns))

    def __repr__(self) -> str:
        return f"Frame({self._columns})"

    @property
    def columns(self) -> list[Any]:
        """The names."""
        return self._columns

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, name: Any) -> Any:
        return self.table[:, self._columns.index(name)]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.table

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a frame iterates over its columns")


def bits(*values: float) -> bytes:
    """One timestep as it travels."""
    return struct.pack(f"<{len(values)}f", *values)


def row(names: Sequence[str], *values: Any) -> Any:
    """A namedtuple, as `DataFrame.itertuples` makes it."""
    return namedtuple("Pandas", names, rename=True)(*values)  # noqa: PYI024 - its names are known only here


def database_row() -> Any:
    """As a query gives it."""
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    row = database.execute("select 3.5 as c, 1.5 as a, 2.5 as b").fetchone()
    database.close()
    return row


def structured(*rows: tuple[float, ...], names: str = "cab") -> Any:
    """An array of rows with names."""
    return np.array(list(rows), [(name, "f8") for name in names])


NAMED: dict[str, Any] = {
    "dict": {"c": 3.5, "a": 1.5, "b": 2.5},
    "ordered": OrderedDict([("c", 3.5), ("b", 2.5), ("a", 1.5)]),
    "mapping": MappingProxyType({"b": 2.5, "a": 1.5, "c": 3.5}),
    "namedtuple": Turned(3.5, 1.5, 2.5),
    "itertuples": row(["Index", "c", "a", "b"], "Monday", 3.5, 1.5, 2.5),
    "dataclass": Reading(3.5, 1.5, 2.5),
    "series": Series([3.5, 1.5, 2.5], ["c", "a", "b"]),
    "series of objects": Series(np.array([3.5, 1.5, 2.5], np.object_), ["c", "a", "b"]),
    "void": structured((3.5, 1.5, 2.5))[0],
    "record": structured((3.5, 1.5, 2.5)).view(np.recarray)[0],
    "structured": structured((3.5, 1.5, 2.5)).reshape(()),
    "database": database_row(),
}

PLAIN: dict[str, Any] = {
    "list": IN_ORDER,
    "tuple": tuple(IN_ORDER),
    "float32": np.array(IN_ORDER, np.float32),
    "float64": np.array(IN_ORDER),
    "big-endian": np.array(IN_ORDER, ">f4"),
    "strided": np.array([IN_ORDER, IN_ORDER]).T.copy().T[1],
    "numbers of numpy": list(np.array(IN_ORDER)),
    "float32s of numpy": list(np.array(IN_ORDER, np.float32)),
    "series": Series(IN_ORDER, range(3)),
}

ODD_NUMBERS: list[Any] = [
    [1, 2, 3],
    [True, False, True],
    [2**60 + 2**36 + 1, 1, 1],
    [2**53 + 1, 1.5, 2.5],
    [1e300, -1e300, 1.0],
    [3.4028235677973366e38, 1.0, 1.0],
    [1e-46, -0.0, NAN],
    [float("inf"), -float("inf"), 1.0],
    (np.float32(1.5), 2, True),
    np.array([1e300, 1.0, 1.0]),
    np.array([1, 2, 3]),
    np.array([1, 2, 3], np.uint8),
    np.array([1.5, 2.5, 3.5], np.float16),
]

NO_TIMESTEPS: list[Any] = [
    [Decimal(1), 1.0, 1.0],
    [1.0, None, 1.0],
    ["1", 1.0, 1.0],
    [2**70, 1, 1],
    [1.0, 2.0],
    [1.0, 2.0, 3.0, 4.0],
    np.zeros(2),
    np.zeros((1, 3)),
    np.zeros((1, 3), np.float32),
    structured((3.5, 1.5, 2.5)),
    Frame("abc", [IN_ORDER]),
    {"a": "1"},
    {"a": [1.0]},
    Reading,
]

WRONG_NAMES: dict[str, tuple[Any, str]] = {
    "mapping": ({"a": 1.0, "d": 2.0}, "no feature is called d; the model has a, b, c; left out: b, c"),
    "key": ({1: 1.0}, "no feature is called 1; the model has a, b, c$"),
    "series": (Series([1.0, 2.0], ["a", "A"]), "no feature is called A; the model has a, b, c; left out: b, c"),
    "none fits": (Series([1.0, 2.0, 3.0], ["x", "y", "z"]), "no feature is called x, y, z; the model has a, b, c$"),
    "twice": (Series([1.0, 2.0, 3.0], ["a", "b", "a"]), "got a more than once, expected each name once"),
    "dates": (Series([1.0, 2.0], [np.datetime64("2026-01-01"), "a"]), "got labels 2026-01-01, a, expected names"),
    "numbers": (Series([1.0, 2.0, 3.0], [2, 0, 1]), r"got labels 2, 0, 1, expected names .* to_numpy\(\)"),
    "a part": (Series([1.0, 2.0, 3.0], [7, 8, 9]), "got labels 7, 8, 9, expected names of features"),
    "namedtuple": (row(["a", "d"], 1.0, 2.0), "no feature is called d"),
    "only an index": (row(["Index"], 1.0), "got no names, expected those of features"),
    "index of a mapping": ({"Index": 1.0, "a": 2.0}, "no feature is called Index"),
    "index elsewhere": (row(["a", "Index"], 1.0, 2.0), "no feature is called Index"),
    "renamed": (row(["Index", "_1"], 0, 2.0), "no feature is called _1"),
    "structured": (structured((1.0, 2.0), names="ad")[0], "no feature is called d"),
}


@pytest.mark.parametrize("values", NAMED.values(), ids=NAMED)
def test_a_row_with_names_is_read_by_its_names(values: Any) -> None:
    """The same bytes as the numbers in the model's order."""
    assert has_names(values)
    assert pack(values, FEATURES) == bits(*IN_ORDER)


@pytest.mark.parametrize("values", PLAIN.values(), ids=PLAIN)
def test_a_row_without_names_is_read_by_its_order(values: Any) -> None:
    """With and without knowledge of the features."""
    assert not has_names(values)
    assert pack(values, FEATURES) == pack(values, None) == bits(*IN_ORDER)


@given(st.permutations([0, 1, 2]), st.lists(st.floats(width=64), min_size=3, max_size=3))
def test_any_order_of_names_gives_the_same_bytes(order: list[int], values: list[float]) -> None:
    """Whatever the numbers are."""
    names = [FEATURES[place].name for place in order]
    turned = [values[place] for place in order]
    expected = pack(values, FEATURES)
    assert pack(Series(turned, names), FEATURES) == expected
    assert pack(dict(zip(names, turned, strict=True)), FEATURES) == expected
    assert rows_in_order(Frame(names, [turned]), FEATURES).tobytes() == expected  # type: ignore[attr-defined]


@given(st.lists(st.floats(width=64) | st.integers(-(2**63), 2**63 - 1) | st.booleans(), max_size=80))
def test_packing_one_by_one_gives_what_an_array_gives(values: list[Any]) -> None:
    """The quick way rounds as the slow one does."""
    features = [Feature(f"f{place}") for place in range(len(values))]
    with np.errstate(over="ignore"):
        assert pack(values, features) == np.asarray(values).astype("<f4").tobytes()
        assert pack(np.asarray(values, np.float64), features) == np.asarray(values, np.float64).astype("<f4").tobytes()


@pytest.mark.parametrize("values", ODD_NUMBERS, ids=str)
def test_odd_numbers_are_rounded_as_in_an_array(values: Any) -> None:
    """What float32 cannot hold becomes infinite, without a warning; the server refuses it."""
    with np.errstate(over="ignore"):
        expected = np.asarray(values).astype("<f4").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack(values, FEATURES) == expected


@pytest.mark.parametrize("values", NO_TIMESTEPS, ids=repr)
def test_what_is_no_timestep_is_refused(values: Any) -> None:
    """Also what only looks like a number when it is packed one by one."""
    with pytest.raises(InvalidTimestep, match=r"values: got .*expected 3 numbers: a, b, c; NaN means missing"):
        pack(values, FEATURES)


@pytest.mark.parametrize(("values", "message"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_names_that_do_not_fit_are_refused(values: Any, message: str) -> None:
    """One sentence names the unknown and the missing ones."""
    with pytest.raises(InvalidTimestep, match=f"^values: {message}") as caught:
        pack(values, FEATURES)
    assert caught.value.field == "values"


@pytest.mark.parametrize(
    "values",
    [{"b": 2.5}, Series([2.5], ["b"]), row(["b"], 2.5), structured((2.5,), names="b")[0]],
    ids=["mapping", "series", "namedtuple", "structured"],
)
def test_a_name_not_given_is_missing(values: Any) -> None:
    """As it is in a mapping, so everywhere."""
    assert pack(values, FEATURES) == bits(NAN, 2.5, NAN)


def test_an_empty_mapping_is_a_timestep_without_a_measurement() -> None:
    """A gateway that gathers what has come sends what there is."""
    assert pack({}, FEATURES) == bits(NAN, NAN, NAN)


def test_an_index_is_read_where_a_feature_is_called_so() -> None:
    """Otherwise the label of a row that pandas adds is left aside."""
    labelled = row(["Index", "a"], 7.0, 1.0)
    assert pack(labelled, [Feature("a"), Feature("Index")]) == bits(1.0, 7.0)
    assert pack(labelled, [Feature("a")]) == bits(1.0)


@pytest.mark.parametrize("values", NAMED.values(), ids=NAMED)
def test_names_are_never_read_by_their_order(values: Any) -> None:
    """Where the features are not known they are refused."""
    with pytest.raises(InvalidTimestep, match="the model's features are not known"):
        pack(values, None)


def test_a_label_is_no_attribute() -> None:
    """A Series shows its labels as attributes, and one may be called as what makes a frame."""
    series: Any = Series([1.5, 2.5], ["b", "columns"])
    series.columns = 2.5
    assert pack(series, [Feature("columns"), Feature("b")]) == bits(2.5, 1.5)


def test_what_a_mask_hides_is_missing() -> None:
    """It is not sent."""
    masked = np.ma.MaskedArray([1.5, 2.5, 3.5], [False, True, False])
    assert pack(masked, FEATURES) == bits(1.5, NAN, 3.5)
    assert pack(masked.astype(np.float32), FEATURES) == bits(1.5, NAN, 3.5)


def test_a_packer_serves_a_model_of_any_width() -> None:
    """From none to more than are packed one by one."""
    for width in (1, 2, 63, 64, 65, 1000):
        values = np.random.default_rng(width).normal(size=width)
        packer = Packer([Feature(f"f{place}") for place in range(width)])
        assert packer(values) == packer(values.tolist()) == values.astype("<f4").tobytes()


# Blocks --------------------------------------------------------------------------------------------------------------

TABLE = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
TURNED = TABLE[:, [2, 0, 1]]

NAMED_TABLES: dict[str, Callable[[], Any]] = {
    "frame": lambda: Frame("cab", TURNED.tolist()),
    "structured": lambda: structured(*map(tuple, TURNED.tolist())),
    "dicts": lambda: [dict(zip("cab", row, strict=True)) for row in TURNED.tolist()],
    "series": lambda: [Series(row, "cab") for row in TURNED.tolist()],
    "namedtuples": lambda: tuple(Turned(*row) for row in TURNED.tolist()),
    "voids": lambda: list(structured(*map(tuple, TURNED.tolist()))),
    "some with names": lambda: [TABLE[0], Turned(*TURNED[1].tolist())],
    "some without": lambda: [Turned(*TURNED[0].tolist()), TABLE[1].tolist()],
}


@pytest.mark.parametrize("make", NAMED_TABLES.values(), ids=NAMED_TABLES)
def test_a_block_with_names_is_read_by_its_names(make: Callable[[], Any]) -> None:
    """Columns with names, and rows with names."""
    values, indices = columns(make(), None, 2, FEATURES)
    assert values.dtype == np.float32
    assert values.tolist() == TABLE.tolist()
    assert indices.tolist() == [0, 1]


@pytest.mark.parametrize(
    "x",
    [TABLE, TABLE.tolist(), list(TABLE), Frame(range(3), TABLE.tolist())],
    ids=["array", "lists", "arrays", "frame"],
)
def test_a_block_without_names_is_read_by_its_order(x: Any) -> None:
    """Also a frame with default column labels."""
    values, indices = columns(x, [1, 0], 2, FEATURES)
    assert values.tolist() == TABLE.tolist()
    assert indices.tolist() == [1, 0]


def test_a_column_not_given_is_missing() -> None:
    """As a name of a row."""
    values, _ = columns(Frame("b", [[1.0], [2.0]]), None, 2, FEATURES)
    np.testing.assert_array_equal(values, [[NAN, 1.0, NAN], [NAN, 2.0, NAN]])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Frame(["time", "a"], [[1.0, 2.0]] * 2), "x: no feature is called time; the model has a, b, c; left out: b, c"),
        (Frame("aba", [IN_ORDER] * 2), "x: got a more than once, expected each name once"),
        (Frame([1, 2, 3], [IN_ORDER] * 2), "x: got labels 1, 2, 3, expected names of features"),
        (Frame("abc", [IN_ORDER]), r"x: got shape \(1, 3\), expected numbers of shape \(2, 3\)"),
        (structured((1.0, 2.0), (3.0, 4.0), names="ad"), "x: no feature is called d"),
        ([{"a": 1.0}, {"d": 1.0}], "x: no feature is called d"),
        ([Series(IN_ORDER, "abc"), [1.0, 2.0]], "x: got 2 numbers, expected 3 numbers: a, b, c"),
        ([{"a": "1"}, {"a": 1.0}], "x: got {'a': '1'}, expected 3 numbers"),
        (np.array([("x", 1.0)] * 2, [("a", "U1"), ("b", "f4")]), "x: got column a of <U1, expected columns of numbers"),
        (Series(IN_ORDER, "abc"), r"x: got shape \(3,\)"),
        (Turned(*IN_ORDER), r"x: got shape \(3,\)"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(x: Any, message: str) -> None:
    """One sentence has the reason."""
    with pytest.raises(InvalidTimestep, match=message) as caught:
        columns(x, None, 2, FEATURES)
    assert caught.value.field == "x"


def test_a_frame_of_rows_becomes_numbers_and_anything_else_is_returned() -> None:
    """A frame iterates over its columns, not its rows."""
    assert rows_in_order(Frame("cab", TURNED.tolist()), FEATURES).tolist() == TABLE.tolist()  # type: ignore[attr-defined]
    rows: list[Any] = [iter([]), [Turned(*IN_ORDER)], TABLE, NAMED, {}]
    assert all(rows_in_order(given_rows, FEATURES) is given_rows for given_rows in rows)
    with pytest.raises(InvalidTimestep, match="rows: no feature is called d"):
        rows_in_order(Frame("d", [[1.0]]), FEATURES)


def test_a_block_with_rows_is_distinguished_from_a_frame() -> None:
    """A tuple of two is x and rows."""
    frame = Frame("a", [[1.0]])
    assert split_block(frame) == (frame, None)
    assert split_block((frame, [0])) == (frame, [0])


# Streams -------------------------------------------------------------------------------------------------------------


async def test_a_stream_takes_rows_by_name() -> None:
    """One at a time, and from a frame, whose rows are sent and not its columns."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2, 3, 4)
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        await stream.step(Series([1.0], ["x"]))
        assert [answer["sum"].item() async for answer in stream.predict(Frame("x", [[2.0], [3.0]]))] == [3.0, 6.0]
        with pytest.raises(InvalidTimestep, match="rows: no feature is called y"):
            [answer async for answer in stream.predict(Frame("y", [[2.0]]))]
        with pytest.raises(InvalidTimestep, match="values: no feature is called y"):
            await stream.step(Series([1.0], ["y"]))
        await stream.step([4.0])
        assert server.history == [1.0, 2.0, 3.0, 4.0]


def test_a_blocking_stream_takes_rows_by_name() -> None:
    """The same as the asynchronous one."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2)
        await closing(call)

    def work(client: Any) -> Any:
        with client.open("a") as stream:
            return [answer["sum"].item() for answer in stream.predict(Frame("x", [[2.0], [3.0]]))]

    assert played(work, script) == [2.0, 5.0]


async def test_a_single_timestep_is_read_by_name() -> None:
    """The model is asked for where there are names, and only there."""
    async with scripted() as server, Client(server.address) as client:
        asked = answering(server, answer(1, 1.0, 2.0, version="2"), answer(2, 1.0, 2.0, version="2"))
        await client.predict_one("new", row(["x", "y"], 1.0, 2.0), step=1)
        del server.replies["DescribeStreamRequest"]
        await client.predict_one("new", (2.0, 1.0), step=2)
    assert [request.values for request in asked] == [bits(2.0, 1.0)] * 2
