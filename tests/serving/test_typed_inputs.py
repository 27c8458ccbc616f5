"""Models with other inputs than one vector of float32, from the client to the graph and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import write_model
from tests.servers import address_of, run_server
from tests.typed_graphs import Toy, replay, toys
from tidegate.client import Client

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
