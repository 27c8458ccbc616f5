"""The client library of Triton, unchanged, in programs in the style of its examples: every answer has the bits of our own protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import lstm, write_model
from tests.kserve.triton_programs import FEATURES, values
from tests.root import ROOT
from tests.servers import Process, serve
from tests.timeouts import TIMEOUT_S
from tests.tools import tritonclient_python
from tidegate.blocking import Client

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).with_name("triton_programs.py")
STEPS = 20


def run_program(name: str, address: str, *arguments: str) -> Any:
    """Runs one of the programs in the environment of tritonclient, and returns what it prints."""
    command = [tritonclient_python(), str(PROGRAMS), name, address, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=4 * TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the LSTM."""
    return write_model(tmp_path_factory.mktemp("models"), lstm())


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Process]:
    """A server that all tests of this file may use."""
    with serve(models) as process:
        yield process


def expected(server: Process, sequences: int, steps: int = STEPS) -> list[list[str]]:
    """The answers of our own protocol to the same values, by sequence and step."""
    x = values(sequences, steps)
    assert x.shape == (steps, sequences, 1, FEATURES)
    with Client(server.address) as client, client.block([f"own-{number}" for number in range(sequences)]) as block:
        answers = [np.asarray(block.step(rows[:, 0])["forecast"], "<f4") for rows in x]
        block.close(forget=True)
    return [[answer[number].tobytes().hex() for answer in answers] for number in range(sequences)]


@pytest.mark.parametrize("program", ["streaming", "unary", "asynchronous"])
def test_the_examples_of_sequences(server: Process, program: str) -> None:
    """Two sequences, a number and a text as their ids: streaming, in unary calls, and with asyncio."""
    assert run_program(program, server.address)["outputs"] == expected(server, 2)


def test_many_sequences_over_one_stream(server: Process) -> None:
    """64 sequences, each with 20 timesteps in flight at once; steps and streams are in the parameters."""
    found = run_program("many", server.address)
    assert found["outputs"] == expected(server, 64)
    for number, parameters in enumerate(found["parameters"], 1):
        assert [each["step"] for each in parameters] == list(range(1, STEPS + 1))
        assert {each["stream_id"] for each in parameters} == {str(number)}


def test_what_goes_wrong_is_an_error_of_its_request(server: Process) -> None:
    """The stream goes on. A start on a live sequence begins it anew; an ended one is unknown."""
    found = run_program("errors", server.address)
    missing = "inference request for sequence 5 to model 'toy' must specify the START flag on the first request of the sequence"
    assert found["missing start"] == found["after the end"] == missing
    assert found["start"] == found["start of a live one"] == expected(server, 1, 1)[0][0]
    assert found["end"] != found["start"]
    assert found["shape"] == "inputs: 'x' has shape [1, 7], expected [1, 8]: one timestep of one sequence a request"
    assert "'x' has shape [2, 8], expected [1, 8]" in found["batch"]
    assert found["unary"] == f"StatusCode.INVALID_ARGUMENT {missing.replace('5', '6')}"
    assert found["load"].startswith("StatusCode.NOT_FOUND model: 'other' is not served")


def test_a_cancelled_stream_continues_over_another_one(server: Process) -> None:
    """Without a start: with Triton its state would be lost after a second."""
    assert run_program("cancelled", server.address)["outputs"] == expected(server, 1)


def test_the_calls_of_perf_analyzer(server: Process) -> None:
    """It finds a sequence model whose tensors it can make data for, and statistics that add up."""
    found = run_program("analyzer", server.address)
    assert found["outputs"] == expected(server, 4)
    assert "statistics" in found["server"]["extensions"]
    (tensor,) = found["metadata"]["inputs"]
    assert tensor == {"name": "x", "datatype": "FP32", "shape": ["-1", "8"]}
    config = found["config"]["config"]
    assert "sequence_batching" in config
    assert config["max_batch_size"] > 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["8"]}]
    assert found["index"]["models"] == [{"name": "toy", "version": "1", "state": "READY"}]
    before, after = (found[when]["model_stats"][0]["inference_stats"] for when in ("before", "after"))
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert int(after[name]["count"]) - int(before[name].get("count", 0)) == 4 * STEPS
    for name in ("success", "queue", "compute_infer"):
        assert int(after[name]["ns"]) > int(before[name].get("ns", 0))


@pytest.mark.parametrize("last", [1, 7, 19])
def test_a_server_killed_between_steps_loses_nothing(models: Path, tmp_path: Path, last: int) -> None:
    """`kill -9`, another server on the same store, and the client goes on without a start."""
    state = f"sqlite:///{tmp_path / 'streams.db'}"
    with serve(models, "--state", state) as server:
        before = run_program("part", server.address, "0", str(last))
        server.popen.kill()
        server.popen.wait()
    with serve(models, "--state", state) as server:
        after = run_program("part", server.address, str(last), str(STEPS))
        outputs = [first + rest for first, rest in zip(before["outputs"], after["outputs"], strict=True)]
        assert outputs == expected(server, 2)
        assert [each[0].get("resumed") for each in after["parameters"]] == [True, True]


@pytest.mark.parametrize(
    "order", [("tritonclient.grpc", "tidegate.client"), ("tidegate.client", "tritonclient.grpc")], ids=str
)
def test_both_clients_in_one_process(server: Process, order: tuple[str, str]) -> None:
    """Whichever is imported first: one step by each, of the same stream."""
    (answers,) = run_program("beside", server.address, *order)["outputs"]
    assert answers == expected(server, 1, 2)[0]


@pytest.mark.parametrize(
    "order",
    [("tritonclient.grpc", "tidegate.runtime.server"), ("tidegate.runtime.server", "tritonclient.grpc")],
    ids=str,
)
def test_the_server_beside_the_library_of_triton(order: tuple[str, str]) -> None:
    """Both have messages of the same names, each its own."""
    folder = Path(tritonclient_python()).parents[1]
    (packages,) = folder.glob("lib/python*/site-packages")
    code = (
        f"import sys; sys.path.append({str(packages)!r}); import {order[0]}, {order[1]}\n"
        "from tidegate.rpc.kserve.messages import ModelInferRequest as ours\n"
        "from tritonclient.grpc.service_pb2 import ModelInferRequest as theirs\n"
        "assert ours is not theirs\n"
        "assert theirs.FromString(ours(model_name='toy', id='7').SerializeToString()).id == '7'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
