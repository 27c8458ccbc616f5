"""`tidegate streams list`: which streams it shows."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.graphs import lstm, running_sum, write_model
from tests.servers import Process, run_command, serve
from tidegate.client import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of two models, one in two versions, with two streams of each version."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, running_sum(), "toy", "1")
    write_model(root, running_sum(), "toy", "2")
    write_model(root, lstm(), "lake", "2")

    async def open_streams(address: str) -> None:
        async with Client(address) as client:
            for model, version in (("toy", "1"), ("toy", "2"), ("lake", "2")):
                for number in "ab":
                    async with client.open(f"{number}-{model}-{version}", model=model, version=version):
                        pass

    with serve(root) as process:
        asyncio.run(open_streams(process.address))
        yield process


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ["a-lake-2", "a-toy-1", "a-toy-2", "b-lake-2", "b-toy-1", "b-toy-2"]),
        (["--model", "toy"], ["a-toy-1", "a-toy-2", "b-toy-1", "b-toy-2"]),
        (["--version", "2"], ["a-lake-2", "a-toy-2", "b-lake-2", "b-toy-2"]),
        (["--model", "toy", "--version", "2"], ["a-toy-2", "b-toy-2"]),
        (["--model", "toy", "--version", "2", "--prefix", "b"], ["b-toy-2"]),
        (["--model", "toy", "--limit", "3"], ["a-toy-1", "a-toy-2", "b-toy-1"]),
        (["--model", "pond"], []),
    ],
)
def test_streams_are_selected(server: Process, options: list[str], shown: list[str]) -> None:
    """By model, version and the begin of the id, in the order of their ids; the limit counts what is shown."""
    ended = run_command("streams", "list", "--address", server.address, "--json", *options)
    assert ended.returncode == 0, ended.stderr
    assert [stream["stream_id"] for stream in json.loads(ended.stdout)] == shown
