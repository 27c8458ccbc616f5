"""A supervisor with workers that misbehave: toy processes that use the protocol of workers and serve nothing."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.runtime import supervisor as supervisor_module
from tidegate.runtime import worker_process as worker_module
from tidegate.runtime.lifecycle import StartFailed, StopFailed
from tidegate.runtime.shared_counters import make_shared_file
from tidegate.runtime.supervisor import Supervisor

TOY = """
import json, os, socket, sys, time
sys.path.insert(0, os.environ["TOY_ROOT"])
from tidegate.runtime.shared_counters import MetricFamily, SharedCounters
number, line = sys.argv[1], socket.socket(fileno=int(sys.argv[2])).makefile("rwb", buffering=0)
settings = json.loads(line.readline())
def ready():
    counters = SharedCounters.create([MetricFamily("toy_lives", "Lives.", "counter", (), [()])], settings["counters_fd"])
    if settings["previous_counters_fd"] is not None:
        counters.continue_from(SharedCounters.read(settings["previous_counters_fd"]))
    counters.numbers("toy_lives", ())[0] += 1
    line.write(b'{"ready": ["toy/1"]}\\n')
def refuse():
    line.write(b'{"refused": "toy/1 is broken"}\\n')
    sys.exit(3)
exec(settings["act"])
"""

# A toy that ends as soon as it serves, except in its first process.
FRAIL = 'ready(); (settings["previous_counters_fd"] is None or number == "1") and line.readline()'


@asynccontextmanager
async def run(act: str, **more: float) -> AsyncIterator[tuple[Supervisor, "asyncio.Task[None]"]]:
    """A supervisor of two toys that do `act`. It is told to stop at the end."""
    supervisor = Supervisor(
        [sys.executable, "-c", TOY],
        {"act": act, "config": {}},
        workers=2,
        host="127.0.0.1",
        port=0,
        metrics_host="127.0.0.1",
        metrics_port=0,
        drain_after_s=more.get("drain_after_s", TIMEOUT_S),
    )
    running = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield supervisor, running
    finally:
        supervisor._stop_requested.set()
        await asyncio.wait([running], timeout=TIMEOUT_S)


@pytest.fixture(autouse=True)
def toy_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where toys find the shared counters."""
    monkeypatch.setenv("TOY_ROOT", str(ROOT))


def open_files() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def counted(supervisor: Supervisor, worker: int) -> float:
    """What a worker has counted over all its processes."""
    return sum(counters.numbers("toy_lives", ())[0] for counters in supervisor._workers[worker].metrics.counters)


async def nothing(_: object) -> None:
    """No answer."""


async def test_the_ready_line_is_printed_once_when_all_are_ready(capfd: pytest.CaptureFixture[str]) -> None:
    """With the actual ports and the models; not again after a restart."""
    async with run("ready(); line.readline()") as (supervisor, running):
        await eventually(lambda: supervisor._ready, "the start")
        os.kill(supervisor._workers[0].metrics.pid, signal.SIGKILL)
        await eventually(lambda: counted(supervisor, 0) == 2, "the restart")
        supervisor._stop_requested.set()
        await running
    assert re.fullmatch(
        r"ready: grpc=127\.0\.0\.1:[1-9]\d* metrics=http://127\.0\.0\.1:[1-9]\d*/metrics models=toy/1\n",
        capfd.readouterr().out,
    )


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("refuse()", "toy/1 is broken"),
        ("refuse() if number == '1' else ready(); line.readline()", "toy/1 is broken"),
        ("sys.exit(7)", "ended with exit code 7 before it was ready"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL before it was ready"),
    ],
)
async def test_a_worker_that_cannot_start_fails_the_start(act: str, words: str) -> None:
    """With its reason, or how it ended. No worker is left."""
    async with run(act) as (supervisor, running):
        with pytest.raises(StartFailed, match=words):
            await running
    assert [child.metrics.pid for child in supervisor._workers] == [0, 0]


async def test_a_worker_that_is_killed_before_it_is_ready_is_started_again(tmp_path: Path) -> None:
    """Perhaps for lack of memory, while others start at the same time: that is no reason not to serve."""
    mark = tmp_path / "mark"
    act = f"""
if number == "1" and not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close()
    os.kill(os.getpid(), 9)
ready()
line.readline()
"""
    async with run(act) as (supervisor, _):
        await eventually(lambda: supervisor._ready, "the start")
        assert [child.metrics.restarts for child in supervisor._workers] == [0, 1]


async def test_a_silent_worker_is_started_a_limited_number_of_times(tmp_path: Path) -> None:
    """Then the start has failed."""
    lives = tmp_path / "lives"
    act = f"open({str(lives)!r}, 'a').write('x') if number == '0' else line.readline(); sys.exit(7)"
    async with run(act) as (_, running):
        with pytest.raises(StartFailed, match=r"exit code 7 before it was ready, 3 times in a row"):
            await running
    assert lives.read_text() == "xxx"


async def test_a_worker_that_cannot_start_again_is_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others continue to serve. It is restarted, and is up again when its models are valid."""
    bad = tmp_path / "bad"
    act = f"refuse() if os.path.exists({str(bad)!r}) else ready(); line.readline()"
    async with run(act) as (supervisor, running):
        await eventually(lambda: supervisor._ready, "the start")
        bad.touch()
        os.kill(supervisor._workers[0].metrics.pid, signal.SIGKILL)
        await eventually(lambda: "toy/1 is broken" in caplog.text, "the refusal")
        assert not supervisor._workers[0].metrics.up
        assert supervisor._workers[1].metrics.up
        bad.unlink()
        await eventually(lambda: supervisor._workers[0].metrics.up, "the restart")
        assert counted(supervisor, 0) == 2  # its counters from before the refusal were kept
        supervisor._stop_requested.set()
        await running


async def test_the_pause_before_a_restart_grows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It doubles up to a bound while a worker keeps dying soon."""
    monkeypatch.setattr(supervisor_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor_module, "PAUSE_SECONDS_MAX", 0.05)
    with caplog.at_level(logging.WARNING):
        async with run(FRAIL) as (one, _):
            await eventually(lambda: one._ready, "the start")
            os.kill(one._workers[0].metrics.pid, signal.SIGKILL)
            await eventually(lambda: one._workers[0].metrics.restarts >= 4, "four restarts")
            assert one._workers[1].metrics.restarts == 0
    pauses = [float(text) for text in re.findall(r"restarted in ([\d.]+) s", caplog.text)]
    assert pauses[:5] == [0.01, 0.02, 0.04, 0.05, 0.05][: len(pauses)]


async def test_the_pause_is_short_again_after_a_long_life(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the cause is not its start."""
    monkeypatch.setattr(supervisor_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor_module, "LIVED_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        async with run(FRAIL) as (one, _):
            await eventually(lambda: one._ready, "the start")
            os.kill(one._workers[0].metrics.pid, signal.SIGKILL)
            await eventually(lambda: one._workers[0].metrics.restarts >= 3, "three restarts")
    assert set(re.findall(r"restarted in ([\d.]+) s", caplog.text)) == {"0.01"}


async def test_a_worker_that_does_not_drain_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time after the time for draining. The error says that it was not clean."""
    monkeypatch.setattr(supervisor_module, "DRAIN_MARGIN_SECONDS", 0.1)
    async with run(
        "ready(); number == '1' and line.readline(); number == '0' and time.sleep(60)", drain_after_s=0.1
    ) as (
        one,
        running,
    ):
        await eventually(lambda: one._ready, "the start")
        one._stop_requested.set()
        with pytest.raises(StopFailed, match=r"^worker 0 was killed by SIGKILL"):
            await running


async def test_a_worker_that_failed_at_its_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code: it could not store everything."""
    async with run("ready(); line.readline(); sys.exit(int(number))") as (one, running):
        await eventually(lambda: one._ready, "the start")
        one._stop_requested.set()
        with pytest.raises(StopFailed, match=r"^worker 1 ended with exit code 1"):
            await running


async def test_a_stop_during_the_start_is_clean() -> None:
    """A signal before the workers are ready ends them. Nothing is printed or restarted."""
    async with run("line.readline()") as (one, running):
        await eventually(lambda: sum(child.metrics.pid > 0 for child in one._workers) == 2, "the start")
        one._stop_requested.set()
        await running
    assert not one._ready


async def test_a_worker_without_a_connection_is_stopped_once_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stop between the spawn and the first message is passed on: the worker need not be killed."""
    connect = asyncio.open_unix_connection

    async def connect_late(**more: Any) -> Any:
        await asked.wait()  # there is a process, and no connection
        await asyncio.sleep(0)  # the stop has its turn
        return await connect(**more)

    monkeypatch.setattr(worker_module.asyncio, "open_unix_connection", connect_late)
    async with run("line.readline(); ready()", drain_after_s=60.0) as (one, running):
        asked = one._stop_requested
        await eventually(lambda: sum(child.metrics.pid > 0 for child in one._workers) == 2, "the start")
        one._stop_requested.set()
        await running


def listen_as_a_worker(root: Path) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """A real worker, and the supervisor's end of its socket pair."""
    ours, theirs = socket.socketpair()
    counters_fd = make_shared_file()
    os.set_inheritable(counters_fd, True)
    popen = subprocess.Popen(
        [sys.executable, "-m", "tidegate.cli.worker", "0", str(theirs.fileno())],
        pass_fds=[theirs.fileno(), counters_fd],
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    theirs.close()
    os.close(counters_fd)
    config = {"models": str(root), "host": "127.0.0.1", "port": 0, "metrics_port": 0, "state": "memory:"}
    settings = {"log_level": "INFO", "log_format": "text", "config": config, "counters_fd": counters_fd}
    settings |= {"previous_counters_fd": None, "previous_counters": []}
    ours.sendall(json.dumps(settings).encode() + b"\n")
    return popen, ours


def test_a_worker_whose_supervisor_dies_with_words_unread_ends(sum_root: Path) -> None:
    """Then the socket breaks with an error: a worker that stayed would keep the port from the next server."""
    popen, ours = listen_as_a_worker(sum_root)
    try:
        ours.settimeout(TIMEOUT_S)
        assert json.loads(ours.recv(1000)) == {"ask": 1, "request": {"do": "versions"}}
        ours.sendall(json.dumps({"answer": 1, "result": {"targets": [], "on_demand": []}}).encode() + b"\n")
        assert json.loads(ours.recv(1000)) == {"ask": 2, "request": {"do": "join"}}
        ours.sendall(json.dumps({"answer": 2, "result": None}).encode() + b"\n")
        assert ours.recv(1, socket.MSG_PEEK)  # it has reported that it is ready, and nobody has read it
        ours.close()
        assert popen.wait(TIMEOUT_S) == 0
    finally:
        popen.kill()
        popen.wait()


async def test_the_time_that_dead_workers_have_used_is_kept() -> None:
    """The sum over its processes; /proc knows only the last."""
    act = "ready(); end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nline.readline()"
    async with run(act) as (one, _):
        await eventually(lambda: one._ready, "the start")
        source = one._workers[0].metrics
        await eventually(lambda: source.process()["process_cpu_seconds"] > 0.2, "computing")
        before = source.process()["process_cpu_seconds"]
        os.kill(source.pid, signal.SIGKILL)
        while source.restarts == 0:
            assert source.process()["process_cpu_seconds"] >= before
            await asyncio.sleep(0.005)
        await eventually(lambda: source.process()["process_cpu_seconds"] > before + 0.2, "computing again")


async def test_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files of dead workers nor their sockets, however often they die."""
    monkeypatch.setattr(supervisor_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor_module, "LIVED_SECONDS", 0.0)
    async with run("ready(); line.readline()") as (one, _):
        await eventually(lambda: one._ready, "the start")
        before = open_files()
        for restarts in range(1, 6):
            os.kill(one._workers[0].metrics.pid, signal.SIGKILL)
            await eventually(lambda: counted(one, 0) == restarts + 1, "the restart")  # noqa: B023 - awaited here
        await eventually(lambda: open_files() <= before, "closing")


async def test_a_taken_port_fails_the_start() -> None:
    """A shared port must not hide a server that listens there already."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for ports in ({"port": port, "metrics_port": 0}, {"port": 0, "metrics_port": port}):
            one = Supervisor(
                ["none"],
                {"config": {}},
                workers=2,
                host="127.0.0.1",
                metrics_host="127.0.0.1",
                drain_after_s=1.0,
                **ports,
            )
            with pytest.raises(StartFailed, match=f"127.0.0.1:{port}"):
                await one.run()


async def test_the_line_is_closed_when_a_life_has_ended() -> None:
    """At once, not in a later turn of the loop: a loop that ends before would leave it to the garbage collector."""
    # It reads its settings, so that the socket ends without an error.
    reads = "import socket, sys; socket.socket(fileno=int(sys.argv[2])).recv(9999)"
    child = worker_module.WorkerProcess(0, [sys.executable, "-c", reads], {}, lambda _: None, nothing)
    sockets: list[Any] = []

    async def live() -> int:
        await child.run()
        return int(sockets[0].fileno())  # in the same turn

    living = asyncio.create_task(live())
    await eventually(lambda: child._writer is not None, "the line")
    assert child._writer is not None
    sockets.append(child._writer.get_extra_info("socket"))
    _, status, used = await asyncio.to_thread(os.wait4, child.metrics.pid, 0)
    child.reaped(status, used.ru_utime)
    assert await living == -1
    child.close()


async def test_the_line_is_closed_however_often_a_life_is_cancelled() -> None:
    """Cancelled again while it waits for the end of a killed process: nothing is left to the garbage collector."""
    child = worker_module.WorkerProcess(
        0, [sys.executable, "-c", "import time; time.sleep(60)"], {}, lambda _: None, nothing
    )
    living = asyncio.create_task(child.run())
    await eventually(lambda: child._writer is not None, "the line")
    assert child._writer is not None
    line = child._writer.get_extra_info("socket")
    pid = child.metrics.pid
    living.cancel()
    await asyncio.sleep(0)  # it waits for an end that nobody reports
    living.cancel()
    await asyncio.wait([living])
    assert line.fileno() == -1
    await asyncio.to_thread(os.waitpid, pid, 0)
    child.close()
