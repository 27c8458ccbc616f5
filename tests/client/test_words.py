"""Words of a feature that was text in the training: a client sends the word, and the model gets its number."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.graphs import write_model
from tests.servers import serve
from tests.typed_graphs import word_echo
from tidegate.client import Client, InvalidTimestep
from tidegate.client.inputs import Packer, columns, rows_in_order
from tidegate.core.spec import Feature

STATUS = Feature("status", categories=("fail", "idle", "ok"))
FEATURES = (Feature("temp"), STATUS)
NAN = float("nan")


class Row(NamedTuple):
    """A row in another order than the features."""

    status: Any
    temp: float


def numbers(packed: bytes) -> list[float]:
    """The packed values."""
    return np.frombuffer(packed, "<f4").tolist()


@pytest.mark.parametrize(
    "row",
    [
        {"status": "ok", "temp": 21.5},
        Row("ok", 21.5),
        [21.5, "ok"],
        np.array([21.5, "ok"], object),
        {"status": 2, "temp": 21.5},
        [21.5, 2.0],
    ],
)
def test_a_word_is_sent_as_its_number(row: Any) -> None:
    """By name or in order; who knows the number may go on to send it."""
    assert numbers(Packer(FEATURES)(row)) == [21.5, 2.0]


def test_a_missing_word_is_nan() -> None:
    """Left out or NaN, as any other value; None is refused, as ever."""
    assert np.isnan(numbers(Packer(FEATURES)({"temp": 1.0}))[1])
    assert np.isnan(numbers(Packer(FEATURES)({"temp": 1.0, "status": NAN}))[1])
    with pytest.raises(InvalidTimestep):
        Packer(FEATURES)({"temp": 1.0, "status": None})


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"temp": 1.0, "status": "broken"}, "got 'broken' for status, expected one of its words: fail, idle, ok; NaN"),
        ({"temp": "warm", "status": "ok"}, "got 'warm' for temp, expected a number"),
        (["ok", 1.0], "got 'ok' for temp, expected a number"),
        ([1.0, "ok", 3.0], "expected 2 numbers"),
    ],
)
def test_another_word_is_refused(row: Any, told: str) -> None:
    """The words that there are, are named: to take the word for a missing value would hide a typing error."""
    with pytest.raises(InvalidTimestep, match=told):
        Packer(FEATURES)(row)


def test_many_words_are_not_all_listed() -> None:
    """A dozen tells what they are like."""
    names = tuple(f"w{number:02}" for number in range(40))
    with pytest.raises(InvalidTimestep, match=r"w11, \.\.\.; NaN"):
        Packer((Feature("state", categories=names),))({"state": "x"})


def test_a_model_without_categories_takes_no_words() -> None:
    """Its error is the one that it has always been."""
    with pytest.raises(InvalidTimestep, match="expected 1 number: temp"):
        Packer((Feature("temp"),))(["ok"])


@pytest.mark.parametrize(
    "table",
    [
        [{"status": "ok", "temp": 1.0}, {"status": "fail", "temp": 2.0}],
        [[1.0, "ok"], [2.0, "fail"]],
        np.array([[1.0, "ok"], [2.0, "fail"]], object),
        np.array([("ok", 1.0), ("fail", 2.0)], [("status", "U4"), ("temp", "f4")]),
    ],
)
def test_blocks_take_words_too(table: Any) -> None:
    """A row for each stream."""
    values, _ = columns(table, None, 2, FEATURES)
    assert values.tolist() == [[1.0, 2.0], [2.0, 0.0]]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_columns_of_words_of_a_frame(library: str) -> None:
    """What the frame marks as missing is NaN; an unknown word is refused."""
    module = pytest.importorskip(library)
    make = module.table if library == "pyarrow" else module.DataFrame
    values = rows_in_order(make({"status": ["idle", None, "ok"], "temp": [1.0, 2.0, 3.0]}), FEATURES)
    np.testing.assert_array_equal(values, np.array([[1, 1], [2, NAN], [3, 2]], np.float32))
    with pytest.raises(InvalidTimestep, match="got 'x' for status"):
        rows_in_order(make({"status": ["x"], "temp": [1.0]}), FEATURES)


def test_categories_of_pandas() -> None:
    """Its own type of categories, and its own NA."""
    pandas = pytest.importorskip("pandas")
    for dtype in ("category", "string"):
        frame = pandas.DataFrame({"status": pandas.Series(["ok", None], dtype=dtype)})
        np.testing.assert_array_equal(rows_in_order(frame, FEATURES)[:, 1], np.array([2, NAN], np.float32))


async def test_a_server_tells_the_words(tmp_path: Path) -> None:
    """From the metadata of the graph to the client: what a stream is sent by name comes back as its number."""
    with serve(write_model(tmp_path / "models", word_echo(STATUS.categories))) as server:
        async with Client(server.address) as client, client.open(model="toy") as stream:
            assert stream.model.features[0].categories == STATUS.categories
            assert (await stream.step({"status": "ok"}))["y"].tolist() == [2.0]
            with pytest.raises(InvalidTimestep, match="fail, idle, ok"):
                await stream.step({"status": "off"})
            assert (await stream.step({"status": "fail"}))["y"].tolist() == [0.0]
            answer = await client.predict_one("one", {"status": "idle"}, step=1, model="toy")
            assert answer["y"].tolist() == [1.0]
