"""The client without an event loop gives the same answers and errors as the asynchronous one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import lstm, write_model
from tests.oracle import replay, same_bits, sensor_rows
from tests.servers import Process, serve
from tidegate.blocking import Client
from tidegate.client import ModelNotFound, ServerUnavailable, StepGap, StreamNotFound


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in its own process."""
    with serve(write_model(tmp_path_factory.mktemp("models"), lstm(), "lake")) as process:
        yield process


def test_a_stream_steps_and_resumes(server: Process) -> None:
    """With the bits of the graph alone."""
    rows = sensor_rows(20, missing=0.1)
    with Client(server.address) as client:
        with client.open("a") as stream:
            assert (stream.kind, stream.stream_id, stream.next_step, stream.epoch) == ("new", "a", 1, 1)
            got = [stream.step(row) for row in rows[:12]]
        with client.open("a") as stream:
            assert (stream.kind, stream.next_step, stream.durable_step) == ("resumed", 13, 12)
            got += [stream.step(row) for row in rows[12:]]
            stream.close(forget=True)
    assert all(map(same_bits, got, replay(lstm(), rows)))


def test_models_are_listed_and_described(server: Process) -> None:
    """As by the asynchronous client."""
    with Client(server.address) as client:
        assert client.models() == [client.describe()[0]]
        with pytest.raises(ModelNotFound):
            client.describe("pond")


def test_errors_are_those_of_the_asynchronous_client(server: Process) -> None:
    """And a stream continues after a refusal."""
    with Client(server.address) as client:
        with pytest.raises(StreamNotFound), client.open("unknown", existence="must_exist"):
            pass
        with client.open() as stream:
            with pytest.raises(StepGap):
                stream.step(np.zeros(8), step=7)
            assert stream.step(np.zeros(8)).step == 1


def test_threads_may_share_a_client(server: Process) -> None:
    """Each with its own stream."""

    def run(seed: int) -> bool:
        rows = sensor_rows(30, seed=seed)
        with client.open() as stream:
            return all(
                same_bits(stream.step(row), expected) for row, expected in zip(rows, replay(lstm(), rows), strict=True)
            )

    with Client(server.address) as client, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


def test_a_closed_client_leaves_no_thread(server: Process) -> None:
    """It may be closed twice."""
    client = Client(server.address)
    client.models()
    client.close()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tidegate-client")]


def test_a_missing_server_is_reported(tmp_path: Path) -> None:
    """A missing answer becomes an error."""
    with Client("127.0.0.1:1", timeout_s=1.0) as client, pytest.raises(ServerUnavailable):
        client.models()
