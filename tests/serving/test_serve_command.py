"""`tidegate serve`, in separate processes: its ready line, and what it refuses to start with."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.graphs import lstm, picky, running_sum, write_model
from tests.servers import Process, refused, run_command, serve


def start(root: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Starts a server that is expected to refuse."""
    ports = [] if "--port" in options else ["--port", "0"]
    ports += [] if "--metrics-port" in options else ["--metrics-port", "0"]
    return run_command("serve", "--models", str(root), "--host", "127.0.0.1", *ports, *options)


def test_serve_prints_exactly_the_ready_line(server: Process) -> None:
    """One line on stdout, in the format for other programs, with the actual ports."""
    assert re.fullmatch(
        r"ready: grpc=127\.0\.0\.1:[1-9]\d* metrics=http://127\.0\.0\.1:[1-9]\d*/metrics models=lake/3",
        server.ready_line,
    )


def test_serve_lists_several_models_in_the_ready_line(tmp_path: Path) -> None:
    """By name, newest version first."""
    write_model(tmp_path, running_sum(), "toy", "9")
    write_model(tmp_path, running_sum(), "toy", "10")
    write_model(tmp_path, lstm(), "lake")
    with serve(tmp_path, "--load", "lake", "--load", "toy/9", "--load", "toy/10") as process:
        assert process.ready_line.endswith(" models=lake/1,toy/10,toy/9")


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_on_a_taken_port_is_refused(sum_root: Path, tmp_path: Path, option: str, workers: str) -> None:
    """Exit code 3 and one line with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start(sum_root, option, str(port), "--workers", workers, "--state", f"sqlite://{tmp_path / 'x.db'}")
        refused(ended, 3, f"127.0.0.1:{port}")


def test_serve_a_model_that_no_worker_can_serve_is_refused(tmp_path: Path) -> None:
    """Exit code 3 and the line of one of them."""
    root = write_model(tmp_path, b"rubbish")
    ended = start(root, "--workers", "2", "--state", f"sqlite://{tmp_path / 'x.db'}")
    refused(ended, 3, "toy/1: onnxruntime cannot load the graph")


def test_serve_from_memory_is_one_process(tmp_path: Path, sum_root: Path) -> None:
    """With any number of cores: streams in memory belong to one process."""
    with serve(sum_root) as process:
        pid = process.popen.pid
        assert not Path(f"/proc/{pid}/task/{pid}/children").read_text()


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (b"rubbish", "toy/1: onnxruntime cannot load the graph"),
        (running_sum(contract=2), "contract: got 2, this server reads 1"),
        (
            running_sum(outputs=[{"name": "sum", "shape": ["batch", 7]}, {"name": "steps", "shape": ["batch"]}]),
            "output 'sum' has shape [batch, 1], expected [batch, 7]",
        ),
        (picky(low=50.0, high=60.0), "toy/1"),
    ],
)
def test_serve_a_model_that_cannot_be_served_is_refused(tmp_path: Path, graph: bytes, words: str) -> None:
    """Exit code 3 and one line that names it."""
    refused(start(write_model(tmp_path, graph)), 3, words)


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_serve_an_empty_folder_is_refused(tmp_path: Path, folder: str) -> None:
    """Exit code 3 and one line that says what was expected where."""
    (tmp_path / "empty").mkdir()
    refused(start(tmp_path / folder), 3, str(tmp_path / folder), "<name>/<version>/model.onnx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], ["--port", "70000"]),
        (["--port", "many"], ["--port", "integer"]),
        (["--batch-max", "0"], ["--batch-max", "0"]),
        (["--drain-after", "-1"], ["--drain-after", "-1"]),
        (["--log-level", "loud"], ["--log-level", "loud"]),
        (["--colour", "blue"], ["--colour"]),
        (["--workers", "-1"], ["--workers", "-1"]),
        (["--workers", "some"], ["--workers", "integer"]),
        (["--workers", "2"], ["--workers", "2", "memory:", "--workers 1", "sqlite:///PATH"]),
    ],
)
def test_serve_with_a_bad_option_is_refused(sum_root: Path, options: list[str], words: list[str]) -> None:
    """Exit code 2 and one line that names the option and the value."""
    refused(start(sum_root, *options), 2, *words)
