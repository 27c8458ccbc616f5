"""Signals at any moment, and the duties of the first process of a container."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.root import ROOT
from tests.servers import environment, run_command, serve
from tests.timeouts import TIMEOUT_S

# Like `tidegate`, but it prints when it has set its signal handlers up, before it loads its libraries.
SERVE = """
import sys
from tidegate import cli
take = cli.take_signals
def taken(**serves):
    take(**serves)
    print("here", flush=True)
    # STOP
cli.take_signals = taken
cli.main(sys.argv[1:])
"""
# It waits there until it is told to go on.
SERVE_STOPPED = SERVE.replace("# STOP", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
# Runs in its own namespaces: the process is their first, as in a container.
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def can_be_first() -> bool:
    """Whether this machine allows a PID namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False, timeout=TIMEOUT_S).returncode == 0


as_first = pytest.mark.skipif(not can_be_first(), reason="this machine does not let us make a PID namespace")


def children(pid: int) -> list[int]:
    """The child processes of a process, including orphans and zombies."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


@contextmanager
def begun(root: Path, *before: str, program: str = SERVE) -> Iterator["subprocess.Popen[str]"]:
    """A server that has set its signal handlers up."""
    options = ["--models", str(root), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    command = [*before, sys.executable, "-c", program, "serve", *options]
    popen = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(), cwd=ROOT
    )
    try:
        assert popen.stdout is not None
        assert popen.stdout.readline() == "here\n"
        yield popen
    finally:
        popen.kill()
        popen.communicate()


# While libraries are loaded and models warmed up.
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2, 0.4, 0.8])
@as_first
def test_sigterm_ends_the_first_process_of_a_container_whenever_it_comes(sum_root: Path, delay_s: float) -> None:
    """For that process the system drops a signal without a handler. In one unlucky moment it would never stop."""
    with begun(sum_root, *ALONE) as popen:
        (first,) = children(popen.pid)
        time.sleep(delay_s)
        os.kill(first, signal.SIGTERM)
        assert popen.wait(TIMEOUT_S) in (0, 128 + signal.SIGTERM)  # it had begun to serve, or not yet


def test_sigterm_at_the_start_ends_a_process_by_that_signal(sum_root: Path) -> None:
    """Service managers can tell it from a failure."""
    with begun(sum_root, program=SERVE_STOPPED) as popen:
        os.waitid(os.P_PID, popen.pid, os.WSTOPPED)  # else it may serve by the time of the signal
        popen.terminate()
        popen.send_signal(signal.SIGCONT)
        assert popen.wait(TIMEOUT_S) == -signal.SIGTERM


@as_first
def test_a_lone_server_leaves_no_zombies(sum_root: Path) -> None:
    """The first process gets all orphans, from before its start and later."""
    with begun(sum_root, *ALONE, "sh", "-c", '(sleep 0 &) ; (sleep 0.4 &) ; exec "$@"', "sh") as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline().startswith("ready: ")
        (first,) = children(popen.pid)
        deadline = time.monotonic() + TIMEOUT_S
        while children(first):
            assert time.monotonic() < deadline, "what has ended is still there"
            time.sleep(0.01)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_does_not_end_a_server(sum_root: Path, tmp_path: Path, workers: str) -> None:
    """Any of its processes has the models looked at, continues to serve, and drains at SIGTERM."""
    with serve(sum_root, "--workers", workers, "--state", f"sqlite://{tmp_path / 'x.db'}") as process:
        for pid in (process.popen.pid, *children(process.popen.pid)):
            os.kill(pid, signal.SIGHUP)
            process.until_says("SIGHUP: looking at the models")
        assert run_command("health", "--address", process.address).stdout == "SERVING\n"
        process.signal(signal.SIGTERM)
        code, _, err = process.wait()
    assert code == 0
    assert "Traceback" not in err


def test_sighup_at_the_start_does_not_end_a_server(sum_root: Path) -> None:
    """Also before its event loop runs."""
    with begun(sum_root) as popen:
        os.kill(popen.pid, signal.SIGHUP)
        assert popen.stdout is not None
        assert popen.stdout.readline().startswith("ready: ")


# --- standard files


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("closed", ["at its other end", "from the start"])
def test_a_server_that_cannot_print_the_ready_line_serves(
    sum_root: Path, tmp_path: Path, workers: str, closed: str
) -> None:
    """It is logged, and the exit code is that of a clean stop."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        *("sh", "-c", 'exec "$@" >&-' if closed == "from the start" else 'exec "$@"', "sh"),
        *(sys.executable, "-m", "tidegate", "serve", "--models", str(sum_root), "--host", "127.0.0.1", "--port", "0"),
        *("--metrics-port", "0", "--workers", workers, "--state", f"sqlite://{tmp_path / 'x.db'}"),
    ]
    popen = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)
    os.close(writing)
    too_late = threading.Timer(2 * TIMEOUT_S, popen.kill)  # else the test waits for a line that never comes
    too_late.start()
    try:
        assert popen.stderr is not None
        line = next((line for line in popen.stderr if "stdout cannot be written" in line), "")
        assert "; ready: grpc=127.0.0.1:" in line
        address = line.split("grpc=")[1].split()[0]
        assert run_command("health", "--address", address).stdout == "SERVING\n"
        popen.terminate()
        assert popen.wait(TIMEOUT_S) == 0
        assert "Traceback" not in popen.stderr.read()
    finally:
        too_late.cancel()
        popen.kill()
        popen.communicate()
