"""Serves a foreign graph and compares every answer with the plain loop."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tests.fleet import ServerProcess
from tests.foreign.graphs import Foreign
from tests.foreign.loop import plain_loop, same_numbers
from tests.servers import address_of, run_command, run_server
from tidegate.client import Client, Model

STREAMS, STEPS = 5, 6


def described(root: Path, foreign: Foreign, cache: Path, name: str = "toy") -> Path:
    """Writes the graph where a server finds it under a name, with its description. Returns the path of the graph."""
    path = foreign.write(root / name / "1", cache)
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


class Streams:
    """Streams of a graph, what they send, and what the plain loop says of each."""

    def __init__(self, path: Path, foreign: Foreign) -> None:
        self.foreign = foreign
        self.rows = [foreign.timesteps(stream, STEPS) for stream in range(STREAMS)]
        self.starts = [foreign.stream_values(stream) for stream in range(STREAMS)]
        self.expected = [
            plain_loop(path, foreign, rows, start) for rows, start in zip(self.rows, self.starts, strict=True)
        ]

    def check(self, stream: int, step: int, got: Mapping[str, Any]) -> None:
        """Checks one answer, bit for bit."""
        for name in self.foreign.outputs:
            expected = self.expected[stream][step][name]
            assert same_numbers(got[name], expected), (
                f"{self.foreign}: {name} of stream {stream}, step {step}: {got[name]}, {expected}"
            )

    def check_block(self, step: int, answers: Any) -> None:
        """Checks the answer to a block of all streams."""
        assert not answers.errors, self.foreign
        for stream in range(STREAMS):
            self.check(stream, step, {name: answers[name][stream] for name in self.foreign.outputs})

    def block_inputs(self, model: Model) -> dict[str, Any] | None:
        """What the streams of a block bring when they are opened."""
        starts = [once(model, start) or {} for start in self.starts]
        return {name: np.stack([start[name] for start in starts]) for name in starts[0]} or None

    def block(self, model: Model, step: int) -> Any:
        """One timestep of all streams."""
        return block_of(model, [rows[step] for rows in self.rows])


async def check_served(tmp_path: Path, packages_cache: Path, foreign: Foreign) -> None:
    """One stream alone, several at once on `Predict`, and several in blocks."""
    streams = Streams(described(tmp_path, foreign, packages_cache), foreign)
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        (model,) = await client.models()

        async def run(name: str, number: int) -> None:
            async with client.open(name, inputs=once(model, streams.starts[number])) as stream:
                for step in range(STEPS):
                    streams.check(number, step, await stream.step(row_of(model, streams.rows[number][step])))

        await run("alone", 0)
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(run(f"beside-{number}", number))
        async with client.block(STREAMS, inputs=streams.block_inputs(model)) as block:
            for step in range(STEPS):
                streams.check_block(step, await block.step(streams.block(model, step)))


async def check_survival(tmp_path: Path, packages_cache: Path, *foreign: Foreign) -> None:
    """`kill -9` of a server process with these graphs, between two timesteps of a stream and of a block of each."""
    graphs = {
        f"graph-{place}": Streams(described(tmp_path / "models", each, packages_cache, f"graph-{place}"), each)
        for place, each in enumerate(foreign)
    }
    server = ServerProcess(tmp_path / "models", f"sqlite:///{tmp_path / 'state.db'}")
    await server.start()
    try:
        async with Client(server.address) as client, AsyncExitStack() as stack:
            models = {model.name: model for model in await client.models()}
            enter = stack.enter_async_context
            opened = {}
            for name, streams in graphs.items():
                begin = once(models[name], streams.starts[0])
                single = await enter(client.open(f"single-{name}", model=name, inputs=begin))
                begin = streams.block_inputs(models[name])
                opened[name] = single, await enter(client.block(STREAMS, model=name, inputs=begin))
            for step in range(STEPS):
                if step == STEPS // 2:
                    await server.kill()
                    await server.start()
                for name, (single, block) in opened.items():
                    model, streams = models[name], graphs[name]
                    streams.check(0, step, await single.step(row_of(model, streams.rows[0][step])))
                    streams.check_block(step, await block.step(streams.block(model, step)))
        assert server.metrics()["tidegate_state_lost_total"] == 0
    finally:
        await server.close()
