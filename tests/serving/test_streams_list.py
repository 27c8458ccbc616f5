"""`tidegate streams list`: which streams it shows."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.graphs import lstm, running_sum, write_model
from tests.servers import Process, address_of, run_command, run_server, serve
from tidegate.client import Client
from tidegate.runtime import admin_service
from tidegate.store import memory
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


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


async def test_the_server_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends no stream of another model; a page for which it would look for too long ends early, and the next goes on."""
    monkeypatch.setattr(admin_service, "SCANS_OF_A_PAGE", 2)
    monkeypatch.setattr(memory, "SCAN_ROWS", 3)
    write_model(tmp_path, running_sum(), "toy", "1")
    write_model(tmp_path, running_sum(), "pond", "1")
    async with run_server(tmp_path) as server, Client(address_of(server)) as client:
        for number in range(20):
            async with client.open(f"s{number:02}", model="pond" if number in (13, 14) else "toy"):
                pass
        pages, token = [], "s"
        async with grpc.aio.insecure_channel(address_of(server)) as channel:
            while token:
                request = pb.ListStreamsRequest(model="pond", page_token=token)
                page = await pb_grpc.TidegateServiceStub(channel).ListStreams(request)
                pages.append([stream.stream_id for stream in page.streams])
                token = page.next_page_token
        assert pages == [[], [], ["s13", "s14"], []]
        assert [info.stream_id async for info in client.streams(model="pond")] == ["s13", "s14"]
        assert [info.stream_id async for info in client.streams(model="pond", page_size=1)] == ["s13", "s14"]
        assert [info.stream_id async for info in client.streams(version="2")] == []
