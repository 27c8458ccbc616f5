"""Models with other inputs than one vector of float32, from the client to the graph and back."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import write_model
from tests.servers import address_of, run_server
from tests.typed_graphs import Toy, replay, toys
from tidegate import blocking
from tidegate.client import Client, InvalidTimestep

TOYS = toys()
each_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS.keys())


def same(got: Any, expected: Any) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    return bool(got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes())


def given(row: Any) -> Any:
    """A timestep as callers write it: one array where there is one input."""
    return row["x"] if len(row) == 1 else dict(row)


@each_toy
async def test_a_stream_has_the_bits_of_a_plain_loop(tmp_path: Path, toy: Toy) -> None:
    """Timestep by timestep, and again in one go."""
    async with run_server(write_model(tmp_path, toy.graph)) as server, Client(address_of(server)) as client:
        expected = list(replay(toy))
        async with client.open("a", inputs=toy.stream or None) as stream:
            for row, answer in zip(toy.rows, expected, strict=True):
                assert same((await stream.step(given(row)))["sum"], answer)
        async with client.open("b", inputs=toy.stream or None) as stream:
            answers = [answer async for answer in stream.predict([given(row) for row in toy.rows])]
        assert all(same(got["sum"], answer) for got, answer in zip(answers, expected, strict=True))


@each_toy
async def test_a_unary_call_has_the_bits_of_a_plain_loop(tmp_path: Path, toy: Toy) -> None:
    """The inputs of the stream come with the first timestep only."""
    async with run_server(write_model(tmp_path, toy.graph)) as server, Client(address_of(server)) as client:
        for number, (row, answer) in enumerate(zip(toy.rows, replay(toy), strict=True), 1):
            inputs = toy.stream if toy.stream and number == 1 else None
            got = await client.predict_one("a", given(row), step=number, inputs=inputs)
            assert same(got["sum"], answer)


@each_toy
async def test_a_block_has_the_bits_of_plain_loops(tmp_path: Path, toy: Toy) -> None:
    """Many streams, each with inputs of its own, in columns."""
    streams = 5
    async with run_server(write_model(tmp_path, toy.graph)) as server, Client(address_of(server)) as client:
        own = [{name: value * (place + 1) for name, value in toy.stream.items()} for place in range(streams)]
        inputs = {name: np.array([row[name] for row in own]) for name in toy.stream}
        expected = [list(replay(toy, one)) for one in own]
        async with client.block(streams, inputs=inputs or None) as block:
            for number, row in enumerate(toy.rows):
                x = {name: np.array([value] * streams) for name, value in row.items()}
                answer = await block.step(given(x))
                assert not answer.errors
                assert all(same(answer["sum"][place], expected[place][number]) for place in range(streams))


@each_toy
async def test_a_client_without_an_event_loop_has_the_same_bits(tmp_path: Path, toy: Toy) -> None:
    """One after the other, sent ahead, in blocks, and in unary calls."""
    expected = [answer.tobytes() for answer in replay(toy)]
    rows = [given(row) for row in toy.rows]
    blocks = [given({name: np.array([value]) for name, value in row.items()}) for row in toy.rows]

    def run(address: str) -> list[list[Any]]:
        inputs = toy.stream or None
        with blocking.Client(address) as client:
            with client.open("a", inputs=inputs) as stream:
                single = [stream.step(row) for row in rows]
            with client.open("b", inputs=inputs) as stream:
                ahead = list(stream.predict(rows))
            with client.block(1, inputs=inputs) as block:
                columns = list(block.predict(blocks))
            unary = [client.predict_one("c", row, step=step, inputs=inputs) for step, row in enumerate(rows, 1)]
        return [single, ahead, columns, unary]

    async with run_server(write_model(tmp_path, toy.graph)) as server:
        for answers in await asyncio.to_thread(run, address_of(server)):
            assert [answer["sum"].tobytes() for answer in answers] == expected


async def test_what_does_not_fit_a_model_is_not_sent(tmp_path: Path) -> None:
    """The stream stays usable, and no number is used up."""
    toy = TOYS["two inputs"]
    async with (
        run_server(write_model(tmp_path, toy.graph)) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        for wrong in ([1.0, 2.0], {"x": [1.0, 2.0]}, {"x": [1.0, 2.0], "scale": 1.5}, {"x": [1.0], "scale": 1}):
            with pytest.raises(InvalidTimestep, match="values: "):
                await stream.step(wrong)
        assert stream.next_step == 1
        assert (await stream.step({"x": [1.0, 2.0], "scale": 3}))["sum"].tolist() == [3, 6]


async def test_a_repeat_has_the_same_answer(tmp_path: Path) -> None:
    """With the same inputs; with others it is refused, however small the difference."""
    toy = TOYS["two integers"]
    async with (
        run_server(write_model(tmp_path, toy.graph)) as server,
        Client(address_of(server)) as client,
        client.open("a") as stream,
    ):
        first = await stream.step({"x": [2**53, 0], "scale": 1})
        again = await stream.step({"x": [2**53, 0], "scale": 1}, step=1)
        assert (again.duplicate, again["sum"].tolist()) == (True, first["sum"].tolist())
        for other in ({"x": [2**53 + 1, 0], "scale": 1}, {"x": [2**53, 0], "scale": 2}):
            with pytest.raises(InvalidTimestep, match="other values"):
                await stream.step(other, step=1)
