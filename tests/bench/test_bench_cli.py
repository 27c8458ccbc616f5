"""`tidegate bench` against real servers, in separate processes."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import Started, start
from tests.graphs import lstm, running_sum, write_model
from tests.oracle import sensor_rows
from tests.root import ROOT
from tests.sensor_files import write_csv
from tests.servers import Process, environment, refused, run_command, serve
from tests.timeouts import TIMEOUT_S
from tidegate.bench.result import FORMAT, Result
from tidegate.cli import app as cli
from tidegate.cli import bench as bench_command
from tidegate.client import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of the LSTM."""
    with serve(write_model(tmp_path_factory.mktemp("models"), lstm(), "lake", "3")) as process:
        yield process


def bench(server: Process, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a short bench with few streams, unless the options change that."""
    short = ["--streams", "8", "--seconds", "1", "--warmup", "0.2", "--processes", "1", "--connections", "1"]
    return run_command("bench", "--address", server.address, *short, *options, **variables)


def metrics_of(server: Process) -> str:
    """Returns the URL of the metrics, from the ready line."""
    return server.ready_line.split("metrics=")[1].split()[0]


async def bench_streams(server: Process) -> list[str]:
    """Lists the bench streams that the server still has."""
    async with Client(server.address) as client:
        return [info.stream_id async for info in client.streams(prefix="bench-")]


def test_a_closed_loop_is_measured_and_written(server: Process, tmp_path: Path) -> None:
    """As a table, as JSON and as a picture, with progress on stderr. No stream is left behind."""
    pytest.importorskip("matplotlib", reason="it is in the extra plot")
    file, picture = tmp_path / "a.json", tmp_path / "picture"
    ended = bench(
        server, "--processes", "2", "--metrics", metrics_of(server), "--json", str(file), "--png", str(picture)
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("lake/3, 8 streams, single calls, closed loop\n")
    for word in ("achieved", "p99.9", "client CPU", "server CPU", "server batches", "server medians"):
        assert word in ended.stdout
    assert "8 streams are open, in 2 processes" in ended.stderr
    result = Result.model_validate_json(file.read_text())
    assert result.format == FORMAT
    assert (result.settings.streams, result.settings.processes, result.settings.rate) == (8, 2, None)
    assert (result.model.name, result.model.version, result.model.features) == ("lake", "3", 8)
    assert result.seconds == pytest.approx(1.0, abs=0.1)
    assert result.timesteps.answered == sum(bucket.count for bucket in result.histogram) > 100
    assert result.achieved_per_s == pytest.approx(result.timesteps.answered / result.seconds, rel=0.5)
    latency = result.latency
    assert latency.p50 and latency.p90 and latency.p99 and latency.p99_9 and latency.max  # noqa: PT018
    assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.p99_9 <= latency.max
    assert [second.second for second in result.series] == [0]
    assert result.clients.busy[0] > 0
    assert len(result.clients.busy) == 2
    assert result.server
    assert result.server.steps > 100  # the measurement may begin late on a busy machine
    assert result.server.cpu_s_per_step
    assert 1 <= (result.server.batch_size or 0) <= 8
    assert result.streams.opened == 8
    assert result.streams.left == 0
    assert not result.failures
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert asyncio.run(bench_streams(server)) == []


def test_a_proxy_of_the_environment_is_ignored(server: Process) -> None:
    """Neither for timesteps nor for metrics."""
    ended = bench(
        server, "--seconds", "0.2", "--metrics", metrics_of(server), http_proxy="http://127.0.0.1:1", no_proxy=""
    )
    assert ended.returncode == 0, ended.stderr


def test_an_open_loop_offers_the_rate(server: Process, tmp_path: Path) -> None:
    """The offered and achieved rates are reported, and how late the clients were. Values may be missing."""
    file = tmp_path / "a.json"
    ended = bench(server, "--rate", "200", "--arrivals", "constant", "--missing", "0.5", "--json", str(file))
    assert ended.returncode == 0, ended.stderr
    result = Result.model_validate_json(file.read_text())
    # Not more than the rate. On a busy machine it may be less: what is sent after the measured time belongs to no second of it.
    assert 0 <= result.offered_per_s <= 210
    assert 0 <= result.achieved_per_s <= 1.05 * 200
    assert result.clients.late
    assert "client lateness" in ended.stdout
    assert "steps/s of" in ended.stderr


def test_a_file_is_sent(server: Process, tmp_path: Path) -> None:
    """With missing values, if the model accepts them."""
    file = write_csv(tmp_path / "a.csv", sensor_rows(20, missing=0.1))
    ended = bench(server, "--values", str(file), "--seconds", "0.3")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ((), "8 streams, single calls, Python client"),
        (("--block", "4", "--ahead", "2"), "8 streams, blocks of 4, Python client"),
        (("--unary",), "8 streams, a call a timestep, Python client"),
        (("--think", "0.05"), "8 streams, single calls, Python client"),
    ],
)
def test_the_python_client_is_measured(server: Process, tmp_path: Path, options: tuple[str, ...], title: str) -> None:
    """With the same numbers. Its streams are deleted too."""
    file = tmp_path / "a.json"
    ended = bench(server, "--client", "python", *options, "--json", str(file))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith(f"lake/3, {title}, closed loop")
    result = Result.model_validate_json(file.read_text())
    assert result.timesteps.answered == sum(bucket.count for bucket in result.histogram) > 0
    assert result.clients.cpu_s_per_step
    assert (result.streams.opened, result.streams.left) == (8, 0)
    assert asyncio.run(bench_streams(server)) == []


def test_the_python_client_reports_refusals(sum_root: Path) -> None:
    """By reason, once it has given up: exit code 1."""
    with serve(sum_root, "--streams-max", "5") as process:
        ended = bench(process, "--client", "python", "--seconds", "0.3")
    assert ended.returncode == 1
    assert "failed: 3 streams could not be opened: TOO_MANY_STREAMS 3" in ended.stdout


def test_streams_that_are_refused_are_reported(sum_root: Path, tmp_path: Path) -> None:
    """Those that could be opened run. The others are counted by reason, and the exit code is 1."""
    file = tmp_path / "a.json"
    with serve(sum_root, "--streams-max", "5") as process:
        ended = bench(process, "--seconds", "0.3", "--json", str(file))
    assert ended.returncode == 1
    assert "failed: 3 streams could not be opened: TOO_MANY_STREAMS 3" in ended.stdout
    result = Result.model_validate_json(file.read_text())
    assert (result.streams.opened, result.streams.refused) == (5, {"TOO_MANY_STREAMS": 3})
    assert result.timesteps.answered > 0


def test_a_full_queue_is_reported(sum_root: Path, tmp_path: Path) -> None:
    """An open loop counts refusals by reason. They are measurements, so the exit code is 0."""
    file = tmp_path / "a.json"
    with serve(sum_root, "--queue-max", "1") as process:
        more = ["--streams", "32", "--seconds", "0.5"]
        ended = bench(process, *more, "--rate", "3000", "--arrivals", "poisson", "--json", str(file))
        closed = bench(process, *more, "--json", str(tmp_path / "b.json"))
    assert ended.returncode == 0, ended.stdout
    result = Result.model_validate_json(file.read_text())
    assert set(result.timesteps.refused) == {"OVERLOADED"}
    assert "OVERLOADED" in ended.stdout
    assert closed.returncode == 0, closed.stdout
    again = Result.model_validate_json((tmp_path / "b.json").read_text())
    assert not again.timesteps.refused
    assert again.timesteps.again > 0


def test_ctrl_c_ends_early_and_reports(server: Process, tmp_path: Path) -> None:
    """The exit code is 0, and the streams are deleted."""
    with running(server, "--seconds", "600", "--warmup", "0", "--json", str(tmp_path / "a.json")) as popen:
        until_says(popen, "1 s of 600 s")
        popen.send_signal(signal.SIGINT)
        out, err = popen.communicate(timeout=TIMEOUT_S)
    assert popen.returncode == 0, err
    assert "interrupted" in out
    result = Result.model_validate_json((tmp_path / "a.json").read_text())
    assert result.interrupted
    assert 1 <= result.seconds < TIMEOUT_S
    assert result.timesteps.answered > 0
    assert asyncio.run(bench_streams(server)) == []


def test_ctrl_c_before_any_measurement_is_reported(server: Process) -> None:
    """The exit code is 130, as for any program. The streams are deleted too."""
    with running(server, "--warmup", "600") as popen:
        until_says(popen, "streams are open")
        popen.send_signal(signal.SIGINT)
        _, err = popen.communicate(timeout=TIMEOUT_S)
    assert popen.returncode == 130, err
    assert "interrupted before anything was measured" in err
    assert asyncio.run(bench_streams(server)) == []


def test_a_client_process_that_dies_ends_the_bench(sum_root: Path) -> None:
    """With exit code 1 and one line that says how. The others delete their streams and end."""
    with serve(sum_root) as process:
        with running(process, "--seconds", "600", "--processes", "2") as popen:
            until_says(popen, "streams are open")
            first, second = children(popen.pid)
            os.kill(first, signal.SIGKILL)
            _, err = popen.communicate(timeout=TIMEOUT_S)
        assert popen.returncode == 1
        assert f"error: client process {first} ended by signal 9" in err
        assert not Path(f"/proc/{second}").exists()
        assert len(asyncio.run(bench_streams(process))) == 4


def test_client_processes_end_when_their_parent_is_killed(server: Process) -> None:
    """They delete their streams before."""
    with running(server, "--seconds", "600", "--processes", "2") as popen:
        until_says(popen, "streams are open")
        left = children(popen.pid)
        popen.kill()
        popen.communicate(timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline, "they are still running"
        time.sleep(0.01)
    assert asyncio.run(bench_streams(server)) == []


def test_a_server_that_is_killed_ends_the_bench(sum_root: Path) -> None:
    """With exit code 1. The report has what was measured."""
    with serve(sum_root) as process, running(process, "--seconds", "600", "--warmup", "0") as popen:
        until_says(popen, "1 s of 600 s")
        process.popen.kill()
        out, err = popen.communicate(timeout=TIMEOUT_S)
    assert popen.returncode == 1, err
    assert "failed: 8 streams were lost: UNAVAILABLE 8" in out
    assert "8 streams could not be closed" in out


@contextmanager
def running(server: Process, *options: str) -> Iterator[Started]:
    """Runs a bench until the context ends."""
    command = [sys.executable, "-m", "tidegate", "bench", "--address", server.address, "--streams", "8", *options]
    popen = start(command, env=environment(), cwd=ROOT)
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


def until_says(popen: Started, words: str) -> None:
    """Waits for a line on its stderr."""
    assert popen.stderr is not None
    assert any(words in line for line in popen.stderr), f"it never printed {words}"


def children(pid: int) -> list[int]:
    """Returns the child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--streams", "0"], ["--streams", "0"]),
        (["--streams", "100001"], ["--streams", "100001", "100000"]),
        (["--processes", "65"], ["--processes", "64"]),
        (["--rate", "-5"], ["--rate", "-5"]),
        (["--rate", "nan"], ["--rate", "nan"]),
        (["--rate", "often"], ["--rate", "number"]),
        (["--seconds", "0"], ["--seconds"]),
        (["--arrivals", "random", "--rate", "5"], ["--arrivals", "constant", "poisson"]),
        (["--arrivals", "poisson"], ["--arrivals", "--rate"]),
        (["--think", "1", "--rate", "5"], ["--think", "--rate"]),
        (["--ahead", "2", "--rate", "5"], ["--ahead", "--rate"]),
        (["--client", "grpc"], ["--client", "light", "python"]),
        (["--client", "python", "--rate", "5"], ["--client", "--rate"]),
        (["--unary"], ["--unary", "--client"]),
        (["--client", "python", "--unary", "--block", "2"], ["--unary", "--block"]),
        (["--block", "200"], ["--block", "200", "--streams", "128"]),
        (["--missing", "1"], ["--missing", "1"]),
        (["--metrics", "localhost:9464"], ["--metrics", "http://"]),
        (["--json", "absent/file"], ["absent/file"]),
        (["--values", "absent.csv", "--missing", "0.1"], ["--missing", "--values"]),
    ],
)
def test_a_bad_option_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    """With exit code 2 and one line that names it, before a request to the server."""
    monkeypatch.delattr(bench_command, "_fetch_model")
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *options])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--model", "pond"], ["'pond' is not served", "lake/3"]), (["--values", "absent.csv"], ["absent.csv"])],
)
def test_what_does_not_fit_the_server_is_refused(server: Process, options: list[str], words: list[str]) -> None:
    """With exit code 2 and one line, before any stream is opened."""
    refused(bench(server, *options), 2, *words)


def test_without_matplotlib_a_picture_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With exit code 2 and one line that says what to install, before the load."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--png", str(tmp_path / "a.png")])
    assert caught.value.code == 2
    assert "tidegate[plot]" in capsys.readouterr().err


def test_missing_values_for_a_model_that_cannot_have_them_are_refused(sum_root: Path, tmp_path: Path) -> None:
    """Random ones and those of a file: exit code 2 and one line."""
    file = tmp_path / "a.csv"
    file.write_text("x\n1\nnan\n3\n")
    with serve(sum_root) as process:
        refused(bench(process, "--missing", "0.1"), 2, "--missing", "toy/1")
        refused(bench(process, "--values", str(file)), 2, "a.csv", "row 2", "toy/1")


def test_metrics_of_another_program_are_refused(server: Process) -> None:
    """Before the load: exit code 1 and one line with the address."""
    url = metrics_of(server).replace("/metrics", "/metrics?name[]=python_info")
    refused(bench(server, "--metrics", url), 1, url, "serves lake/3")


def test_an_unreachable_server_is_a_failure() -> None:
    """Exit code 1 and one line with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused(run_command("bench", "--address", f"127.0.0.1:{port}"), 1, f"127.0.0.1:{port}")


def test_a_full_server_is_a_failure(tmp_path: Path) -> None:
    """Exit code 1 and one line with the reason."""
    root = write_model(tmp_path / "models", running_sum())
    with serve(root, "--streams-max", "1") as process:
        asyncio.run(_take_the_last_place(process))
        refused(bench(process), 1, "no stream could be opened", "TOO_MANY_STREAMS")


async def _take_the_last_place(server: Process) -> None:
    async with Client(server.address) as client, client.open("first"):
        pass
