"""Graphs that other people exported are served as they are, with the bits of a plain onnxruntime loop.

Each is described by what `tidegate inspect` has written, or by a few lines where it cannot know.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.foreign.graphs import EXPORTED, FOREIGN, Foreign
from tests.foreign.loop import plain_loop, same_numbers
from tests.servers import address_of, run_command, run_server
from tidegate.client import Client, Model

STREAMS, STEPS = 5, 6

slow_if_published = [
    pytest.param(foreign, id=str(foreign), marks=() if foreign in EXPORTED else pytest.mark.slow) for foreign in FOREIGN
]
each_graph = pytest.mark.parametrize("foreign", slow_if_published)


def described(root: Path, foreign: Foreign, cache: Path) -> Path:
    """Writes the graph where a server finds it, with its description. Returns the path of the graph."""
    path = foreign.write(root / "toy" / "1", cache)
    if foreign.toml:
        path.with_name("model.toml").write_text(foreign.toml, "utf-8")
    else:
        ended = run_command("inspect", str(path), *(part for fill in foreign.fill for part in ("--fill", fill)))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return path


def row_of(model: Model, timestep: dict[str, Any]) -> Any:
    """A timestep as the client takes it: one array, or arrays by name."""
    shaped = {part.name: timestep[part.name].reshape(part.shape) for part in model.inputs if part.name in timestep}
    if len(shaped) > 1:
        return shaped
    (only,) = shaped.values()
    return only.reshape(-1) if only.dtype == np.float32 else only


def block_of(model: Model, timesteps: list[dict[str, Any]]) -> Any:
    """The timesteps of several streams as a block takes them."""
    rows = [row_of(model, timestep) for timestep in timesteps]
    if isinstance(rows[0], dict):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


def once(model: Model, values: dict[str, Any]) -> Any:
    """What a stream brings when it is opened."""
    return {part.name: values[part.name].reshape(part.shape) for part in model.inputs if part.name in values} or None


@each_graph
async def test_it_is_served_singly_and_in_blocks(tmp_path: Path, packages_cache: Path, foreign: Foreign) -> None:
    """Streams one after the other on `Predict`, at once on it, and in blocks: each has the bits of its own loop."""
    path = described(tmp_path, foreign, packages_cache)
    rows = [foreign.timesteps(stream, STEPS) for stream in range(STREAMS)]
    starts = [foreign.stream_values(stream) for stream in range(STREAMS)]
    expected = [plain_loop(path, foreign, rows[stream], starts[stream]) for stream in range(STREAMS)]

    def check(got: Any, stream: int, step: int) -> None:
        for name in foreign.outputs:
            assert same_numbers(got(name), expected[stream][step][name]), f"{name} of stream {stream}, step {step}"

    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        (model,) = await client.models()
        async with client.open("single", inputs=once(model, starts[0])) as stream:
            for step in range(STEPS):
                answer = await stream.step(row_of(model, rows[0][step]))
                check(answer.__getitem__, 0, step)
        inputs = {name: np.stack([once(model, start)[name] for start in starts]) for name in starts[0]}
        async with client.block(STREAMS, inputs=inputs or None) as block:
            for step in range(STEPS):
                answers = await block.step(block_of(model, [rows[place][step] for place in range(STREAMS)]))
                assert not answers.errors
                for place in range(STREAMS):
                    check(lambda name, place=place, answers=answers: answers[name][place], place, step)
