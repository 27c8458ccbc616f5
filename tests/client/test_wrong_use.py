"""Everything called wrongly: one kind of error, one sentence that names the argument, and nothing that is open notices."""

import asyncio
import inspect
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_blocks import NAMES, BlockCall, ScriptedBlocks, column
from tests.client.scripted_blocks import closing as closing_streams
from tests.client.scripted_blocks import connected as connected_blocks
from tests.client.test_blocking import played
from tests.scripted import closing, connected, scripted, sums
from tests.scripted_calls import Call
from tests.timeouts import eventually
from tidegate import blocking
from tidegate.client import Client, InvalidArgument, InvalidTimestep, StepGap

Wrong = Callable[[Any], Any]

# What a client cannot be made of. (argument, value)
SETTINGS = [
    ("address", 50051),
    ("address", ""),
    ("address", None),
    ("address", "localhost"),
    ("address", "localhost:99999"),
    ("address", "localhost:0"),
    ("address", "localhost:http"),
    ("address", ":50051"),
    ("address", "unix:"),
    ("timeout_s", "10"),
    ("timeout_s", 0),
    ("timeout_s", -1.0),
    ("timeout_s", math.nan),
    ("timeout_s", True),
    ("timeout_s", None),
    ("reconnect_s", "1 min"),
    ("reconnect_s", -0.1),
    ("reconnect_s", math.nan),
    ("buffer_max", 0),
    ("buffer_max", 1.5),
    ("buffer_max", "8"),
    ("buffer_max", True),
    ("buffer_max", 2**32),
    ("backoff", 0.05),
]

# What a client cannot be asked. (argument, question)
QUESTIONS: list[tuple[str, Wrong]] = [
    ("model", lambda client: client.describe(7)),
    ("version", lambda client: client.describe("toy", 9)),
    ("model", lambda client: client.versions(7)),
    ("model", lambda client: client.promote(None, "1")),
    ("version", lambda client: client.promote("toy", 2)),
    ("action", lambda client: client.change_models("explode")),
    ("model", lambda client: client.rollback(7)),
    ("prefix", lambda client: client.streams(7)),
    ("prefix", lambda client: client.streams("a" * 257)),
    ("state", lambda client: client.streams("", "asleep")),
    ("state", lambda client: client.streams("", 2)),
    ("page_size", lambda client: client.streams(page_size=-1)),
    ("page_size", lambda client: client.streams(page_size="10")),
    ("page_size", lambda client: client.streams(page_size=2**32)),
    ("stream_id", lambda client: client.describe_stream(7)),
    ("stream_id", lambda client: client.describe_stream("")),
    ("stream_id", lambda client: client.delete_stream(b"a")),
    ("stream_id", lambda client: client.delete_stream("é" * 129)),
    ("stream_id", lambda client: client.export_stream(None)),
    ("stream_id", lambda client: client.export_stream("\ud800")),
    ("checkpoint", lambda client: client.import_stream("text")),
    ("checkpoint", lambda client: client.import_stream(b"")),
    ("stream_id", lambda client: client.import_stream(b"state", 7)),
    ("source", lambda client: client.fork_stream("")),
    ("source", lambda client: client.fork_stream(7)),
    ("new_id", lambda client: client.fork_stream("a", 7)),
    ("stream_id", lambda client: client.predict_one("", [1.0], step=1)),
    ("stream_id", lambda client: client.predict_one(7, [1.0], step=1)),
    ("step", lambda client: client.predict_one("a", [1.0], step=-1)),
    ("step", lambda client: client.predict_one("a", [1.0], step="3")),
    ("step", lambda client: client.predict_one("a", [1.0], step=True)),
    ("step", lambda client: client.predict_one("a", [1.0], step=2**63)),
    ("model", lambda client: client.predict_one("a", [1.0], step=1, model=None)),
    ("version", lambda client: client.predict_one("a", [1.0], step=1, version=9)),
    ("sync", lambda client: client.predict_one("a", [1.0], step=1, sync="yes")),
    ("values", lambda client: client.predict_one("a", ["1.0"], step=1)),
    ("values", lambda client: client.predict_one("a", [None], step=1)),
    ("values", lambda client: client.predict_one("a", 1.0, step=1)),
]
ASYNC_QUESTIONS: list[tuple[str, Wrong]] = [
    ("token", lambda client: client.streams_page("", "", 10, None)),
]

# How a stream, or many, cannot be opened.
OPENS: list[tuple[str, Wrong]] = [
    ("stream_id", lambda client: client.open(7)),
    ("stream_id", lambda client: client.open("a" * 257)),
    ("model", lambda client: client.open("a", model=7)),
    ("version", lambda client: client.open("a", version=9)),
    ("existence", lambda client: client.open("a", existence="maybe")),
    ("existence", lambda client: client.open("a", existence=["any"])),
    ("sync", lambda client: client.open("a", sync=1)),
    ("owner", lambda client: client.open("a", owner=7)),
    ("owner", lambda client: client.open("a", owner="a" * 257)),
    ("inputs", lambda client: client.open("a", inputs=[1.0])),
    ("inputs", lambda client: client.block(["a"], inputs={1: [1.0]})),
    ("streams", lambda client: client.block("abc")),
    ("streams", lambda client: client.block([])),
    ("streams", lambda client: client.block(["a", "a"])),
    ("streams", lambda client: client.block(["a", 7])),
    ("streams", lambda client: client.block({"a": 1})),
    ("streams", lambda client: client.block(None)),
    ("streams", lambda client: client.block(0)),
    ("streams", lambda client: client.block(1.5)),
    ("streams", lambda client: client.block(True)),
    ("streams", lambda client: client.block(10**9)),
    ("model", lambda client: client.block(["a"], model=7)),
    ("version", lambda client: client.block(["a"], version=9)),
    ("existence", lambda client: client.block(["a"], existence=None)),
    ("sync", lambda client: client.block(["a"], sync=None)),
    ("owner", lambda client: client.block(["a"], owner=b"me")),
]

# What a stream of one feature cannot be given.
VALUES = [
    "1.0",
    b"1.0",
    None,
    1.0,
    ["1.0"],
    [None],
    [object()],
    [1 + 2j],
    [Decimal(1)],
    [10**400],
    [[1.0]],
    [[1.0], [1.0, 2.0]],
    [],
    [1.0, 2.0],
    {1.0},
    {"y": 1.0},
    {"x": "1.0"},
    {"x": None},
    {"x": [1.0]},
    {7: 1.0},
    np.zeros((1, 1)),
    np.zeros(3),
    np.array(["a"]),
    np.array([None]),
    (value for value in [1.0]),
]
STEPS = [-1, "3", 1.0, True, 2**63, [1]]
ROWS: list[Any] = [5, None, 1.5]

# What a block of three streams of one feature cannot be given.
BLOCKS = [
    ("x", "abc", None),
    ("x", None, None),
    ("x", [["1.0"], ["2.0"], ["3.0"]], None),
    ("x", [[None], [2.0], [3.0]], None),
    ("x", [[1.0], [2.0]], None),
    ("x", [1.0, 2.0, 3.0], None),
    ("x", [[1.0], [2.0, 3.0], [4.0]], None),
    ("x", np.zeros((3, 2)), None),
    ("x", np.zeros(3, "M8[s]"), None),
    ("x", {"a": [1.0]}, None),
    ("x", column(1, 2), [0]),
    ("rows", column(1), ["a"]),
    ("rows", column(1), "a"),
    ("rows", column(1), [3]),
    ("rows", column(1), [-1]),
    ("rows", column(1), [0.0]),
    ("rows", column(1), [None]),
    ("rows", column(1), [[0]]),
    ("rows", column(1), [[0], [1, 2]]),
    ("rows", column(1), 0),
    ("rows", column(1), [2**70]),
]


def check(caught: pytest.ExceptionInfo[InvalidArgument], field: str, *, kind: type = InvalidArgument) -> None:
    """One sentence names the argument, what was got, and what was expected."""
    error, message = caught.value, str(caught.value)
    assert type(error) is kind
    assert isinstance(error, ValueError)
    assert error.field == field
    assert message.startswith(f"{field}: ")
    assert ("got " in message and ", expected " in message) or "no feature is called" in message
    assert "\n" not in message
    assert len(message) < 300


async def collect(answers: AsyncIterator[Any], got: list[Any]) -> None:
    """Adds the sums that come to `got`, up to the error."""
    async for answer in answers:
        got.append(answer["sum"].ravel().tolist())  # noqa: PERF401 - what came before an error counts


async def ask_async(server: Any, question: Wrong) -> Any:
    """Asks with the asynchronous client."""
    async with Client(server.address) as client:
        answer = question(client)
        return [item async for item in answer] if hasattr(answer, "__aiter__") else await answer


async def ask_blocking(server: Any, question: Wrong) -> Any:
    """The same with the blocking client."""

    def ask() -> Any:
        with blocking.Client(server.address) as client:
            answer = question(client)
            return list(answer) if hasattr(answer, "__next__") else answer

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize(("field", "value"), SETTINGS)
@pytest.mark.parametrize("make", [Client, blocking.Client], ids=["async", "blocking"])
async def test_a_client_cannot_be_made_of_what_is_wrong(make: Any, field: str, value: Any) -> None:
    """Nothing is left of it."""
    settings = {"address": "localhost:1", field: value}
    with pytest.raises(InvalidArgument) as caught:
        make(settings.pop("address"), **settings)
    check(caught, field)


@pytest.mark.parametrize(
    ("ask", "field", "question"),
    [(ask, *one) for ask in (ask_async, ask_blocking) for one in QUESTIONS]
    + [(ask_async, *one) for one in ASYNC_QUESTIONS],
)
async def test_an_invalid_unary_call_is_not_sent(ask: Any, field: str, question: Wrong) -> None:
    """The server hears nothing of it: it has no answers here."""
    async with scripted() as server:
        with pytest.raises(InvalidArgument) as caught:
            await ask(server, question)
        check(caught, field, kind=InvalidTimestep if field == "values" else InvalidArgument)


@pytest.mark.parametrize(("field", "opening"), OPENS)
async def test_an_invalid_open_is_not_sent(field: str, opening: Wrong) -> None:
    """It is found before anything is entered."""
    async with Client("localhost:1") as client:
        with pytest.raises(InvalidArgument) as caught:
            opening(client)
        check(caught, field)
    with blocking.Client("localhost:1") as other:
        with pytest.raises(InvalidArgument) as caught:
            opening(other)
        check(caught, field)


async def test_a_stream_that_is_used_wrongly_stays_usable() -> None:
    """Nothing of it is sent, and what is right is answered in between."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(*range(1, len(VALUES) + len(STEPS) + 2))
        await closing(call)

    async with connected(script) as (client, server, _), client.open("a") as stream:
        for values in VALUES:
            with pytest.raises(InvalidTimestep) as caught:
                await stream.step(values)
            check(caught, "values", kind=InvalidTimestep)
            assert caught.value.next_step == stream.next_step
            await stream.step([1.0])
        for step in STEPS:
            with pytest.raises(InvalidTimestep) as caught:
                await stream.step([1.0], step=step)
            check(caught, "step", kind=InvalidTimestep)
            await stream.step({"x": 1})
        with pytest.raises(StepGap):
            await stream.step([1.0], step=1000)
        for rows in ROWS:
            with pytest.raises(InvalidArgument) as refused:
                [answer async for answer in stream.predict(rows)]
            check(refused, "rows")
        with pytest.raises(InvalidArgument) as refused:
            await stream.close(forget="yes")
        check(refused, "forget")
        await sums(stream, [1.0])
        assert len(server.history) == len(VALUES) + len(STEPS) + 1


async def test_a_block_that_is_used_wrongly_stays_usable() -> None:
    """Nothing of it is sent, and what is right is answered in between."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        for _ in range(2 * len(BLOCKS)):
            await call.serve_block()
        await closing_streams(call)

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        for field, x, rows in BLOCKS:
            with pytest.raises(InvalidTimestep) as caught:
                await block.step(x, rows)
            check(caught, field, kind=InvalidTimestep)
            await block.step(column(1, 2, 3))
            with pytest.raises(InvalidTimestep) as caught:
                [answer async for answer in block.predict([(x, rows)])]
            check(caught, field, kind=InvalidTimestep)
            await block.step(np.array([[1], [2], [3]]))
        with pytest.raises(InvalidTimestep) as caught:
            [answer async for answer in block.predict([(1, 2, 3)])]
        check(caught, "blocks", kind=InvalidTimestep)
        for blocks in ROWS:
            with pytest.raises(InvalidArgument) as refused:
                [answer async for answer in block.predict(blocks)]
            check(refused, "blocks")
        with pytest.raises(InvalidArgument) as refused:
            await block.close(forget=1)
        check(refused, "forget")


async def test_rows_before_a_wrong_one_are_answered() -> None:
    """Then the error comes, and nothing behind it is applied, nor read."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1, 2, 3)
        await closing(call)

    def rows() -> Iterator[Any]:
        yield from ([1.0], [2.0], ["x"])
        raise AssertionError("read on")

    async with connected(script) as (client, _, _), client.open("a") as stream:
        got: list[Any] = []
        with pytest.raises(InvalidTimestep):
            await collect(stream.predict(rows()), got)
        assert got == [[1.0], [3.0]]
        assert await sums(stream, [3.0]) == [6.0]


async def test_blocks_before_a_wrong_one_are_answered() -> None:
    """As with rows."""

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        while sum(map(len, call.server.histories.values())) < 6:
            await call.serve_block()
        await closing_streams(call)

    def blocks() -> Iterator[Any]:
        yield from (column(1, 2, 3), column(4, 5, 6), column(1))
        raise AssertionError("read on")

    async with connected_blocks(script) as (client, _, _), client.block(NAMES) as block:
        got: list[Any] = []
        with pytest.raises(InvalidTimestep):
            await collect(block.predict(blocks()), got)
        assert got == [[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]]


def test_blocking_rows_before_a_wrong_one_are_answered() -> None:
    """Those that wait for room too; whatever is behind it is not applied."""
    read = threading.Event()

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await eventually(read.is_set, "the reading")
        await call.durable(1)
        await call.serve(2)
        await call.durable(2)
        await closing(call)

    def rows() -> Iterator[Any]:
        yield from ([1.0], [2.0])
        read.set()
        yield from (["x"], [4.0])

    def work(client: blocking.Client) -> None:
        with client.open("a") as stream:
            answers = stream.predict(rows())
            assert [next(answers)["sum"].item() for _ in range(2)] == [1.0, 3.0]
            with pytest.raises(InvalidTimestep):
                next(answers)
            with pytest.raises(InvalidArgument) as caught:
                stream.predict(5)
            check(caught, "rows")

    played(work, script, buffer_max=1)


def test_blocking_blocks_before_a_wrong_one_are_answered() -> None:
    """Nothing behind it is read."""
    read = threading.Event()

    async def script(call: BlockCall) -> None:
        await call.open_streams()
        await call.read_block()
        await eventually(read.is_set, "the reading")
        await call.answer_block(call.apply())
        await closing_streams(call)

    def blocks() -> Iterator[Any]:
        yield column(1)
        read.set()
        yield column(1, 2)
        raise AssertionError("read on")

    def work(client: blocking.Client) -> None:
        with client.block(1) as block:
            answers = block.predict(blocks())
            assert next(answers)["sum"].item() == 1.0
            with pytest.raises(InvalidTimestep):
                next(answers)
            with pytest.raises(InvalidArgument) as caught:
                block.predict(5)
            check(caught, "blocks")

    played(work, script, make=ScriptedBlocks)


def test_nothing_that_can_be_called_is_missing_here() -> None:
    """Each public method with arguments is called wrongly above."""
    source = inspect.getsource(inspect.getmodule(test_nothing_that_can_be_called_is_missing_here))
    for kind in (Client, blocking.Client, blocking.Stream, blocking.Block):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and len(inspect.signature(method).parameters) > 1:
                assert f".{name}(" in source, f"{kind.__qualname__}.{name}"


def test_a_value_is_shown_on_one_short_line() -> None:
    """Whatever it is: an array of a million numbers fills no screen."""

    class Chatty:
        def __repr__(self) -> str:
            return "one\ntwo " * 100

    with pytest.raises(InvalidArgument) as caught:
        Client("localhost:1", backoff=Chatty())
    check(caught, "backoff")
    with pytest.raises(InvalidArgument, match=r"got an array of float64 of shape \(1000, 1000\)"):
        Client("localhost:1", timeout_s=np.zeros((1000, 1000)))
