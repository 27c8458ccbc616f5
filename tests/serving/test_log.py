"""The log: nobody waits for the reader of stderr, and repeated lines are limited."""

import fcntl
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.root import ROOT
from tests.servers import environment, run_command
from tests.timeouts import TIMEOUT_S
from tidegate.runtime import log as log_module
from tidegate.runtime.log import KINDS_MAX, LINES_OF_A_KIND, WAITING_BYTES_MAX, Log, Stderr, lines_dropped
from tidegate.runtime.metrics import Metrics

LINE = "x" * 10_000


class Pipe:
    """A log that writes to a pipe, which is read only when a test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.log = Log(self.writing)

    def say(self, *lines: str, logger: str = "toy") -> None:
        """Logs lines, each of another kind."""
        for line in lines:
            self.log.handle(logging.LogRecord(logger, logging.INFO, "", 0, line, None, None))

    def read_until(self, words: str) -> str:
        """The output up to some words."""
        return self.read_while(lambda text: words not in text)

    def read_while(self, condition: Callable[[str], bool]) -> str:
        """The output for as long as the condition holds."""
        text = ""
        while condition(text):
            readable, _, _ = select.select([self.reading], [], [], TIMEOUT_S)
            assert readable, f"nothing more came behind {text[-200:]!r}"
            text += os.read(self.reading, 65536).decode()
        return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A log that is closed at the end."""
    made = Pipe()
    yield made
    made.log.flush()
    os.close(made.reading)


def full_pipe() -> tuple[int, int]:
    """A pipe that is full until it is read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b".")
    except BlockingIOError:
        os.set_blocking(writing, True)
    return reading, writing


def test_who_logs_does_not_wait_for_the_reader(pipe: Pipe) -> None:
    """Lines beyond the bound are dropped and counted. When the pipe is read again, the number is logged."""
    lines = 2 * WAITING_BYTES_MAX // len(LINE)
    pipe.say(*(f"{number} {LINE}" for number in range(lines)))  # a log that waits never gets beyond the sixth
    dropped = pipe.log.dropped
    assert lines / 3 < dropped < lines
    # In one message, or in two if the log wrote in between.
    dropped_line = re.compile(r"^(\d+) lines were dropped: stderr was not read$", re.MULTILINE)
    text = pipe.read_while(lambda text: sum(map(int, dropped_line.findall(text))) < dropped)
    assert text.startswith("0 xxx")
    assert sum(map(int, dropped_line.findall(text))) == dropped


def test_lines_come_in_order_when_they_are_read(pipe: Pipe) -> None:
    """Each once."""
    pipe.say("one", "two", "three")
    assert pipe.read_until("three\n") == "one\ntwo\nthree\n"
    assert pipe.log.dropped == 0


def test_many_lines_of_a_kind_are_a_few_and_a_number(pipe: Pipe) -> None:
    """Of one logger and one message, whatever its arguments. Other lines are written as usual."""
    for number in range(25):
        pipe.log.handle(logging.LogRecord("toy", logging.WARNING, "", 0, "stream %d is taken", (number,), None))
    pipe.say("another")
    pipe.log.flush()
    lines = pipe.read_until("more in").splitlines()
    assert lines[:LINES_OF_A_KIND] == [f"stream {number} is taken" for number in range(LINES_OF_A_KIND)]
    assert lines[LINES_OF_A_KIND] == "another"
    assert re.fullmatch(r"15 more in [\d.]+ s: stream %d is taken", lines[LINES_OF_A_KIND + 1])


def test_the_number_comes_when_the_period_is_over(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another log call. Then the next lines of that kind are written again."""
    monkeypatch.setattr(log_module, "PERIOD_SECONDS", 0.05)
    pipe.say(*["again"] * 12)
    assert pipe.read_until("2 more in").count("again\n") >= LINES_OF_A_KIND
    pipe.say("again")
    assert pipe.read_until("again\n")


def test_kinds_do_not_fill_the_memory(pipe: Pipe) -> None:
    """Messages that differ each time soon count as one kind for their logger."""
    pipe.say(*(f"new {number}" for number in range(KINDS_MAX + 50)))
    assert len(pipe.log._kinds) == KINDS_MAX + 1
    pipe.log.flush()
    assert "40 more in" in pipe.read_until("other messages")


def test_the_end_does_not_wait_for_ever(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, or as long as the bound says, although nobody reads."""
    monkeypatch.setattr(log_module, "FLUSH_SECONDS", 0.05)
    pipe.say(*(LINE for _ in range(9)))
    pipe.log.flush()  # pytest's own timeout would end it
    assert pipe.log._waiting


def test_a_reader_that_has_gone_is_no_error() -> None:
    """The lost lines are counted."""
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(writing)
    log.handle(logging.LogRecord("toy", logging.INFO, "", 0, "to nobody", None, None))
    log.flush()
    assert log.dropped == 1


def test_printing_to_stderr_does_not_block_either(pipe: Pipe) -> None:
    """Line by line: it replaces sys.stderr, to which Python writes tracebacks and warnings."""
    stderr = Stderr(pipe.log)
    print("half a line,", end=" ", file=stderr)
    print("the other half", file=stderr)
    assert pipe.read_until("\n") == "half a line, the other half\n"


def test_dropped_lines_are_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all processes of a worker."""
    log = Log(os.open(os.devnull, os.O_WRONLY))
    monkeypatch.setattr(logging.getLogger(), "handlers", [log])
    first = Metrics({})
    last = first.create_counters()
    log.dropped = 3
    first.refresh()
    assert lines_dropped() == 3
    log.dropped = 2  # the next process
    counters = Metrics({}).create_counters(None, [last])
    assert counters.numbers("tidegate_log_lines_dropped", ()).tolist() == [5.0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_with_an_unread_stderr_serves_and_stops(sum_root: Path, tmp_path: Path, workers: str) -> None:
    """Every line of its log waits, and nothing else: it becomes ready, answers, and stops at SIGTERM with exit code 0."""
    reading, writing = full_pipe()
    command = [
        *(sys.executable, "-m", "tidegate", "serve", "--models", str(sum_root), "--host", "127.0.0.1", "--port", "0"),
        *("--metrics-port", "0", "--workers", workers, "--state", f"sqlite://{tmp_path / 'x.db'}"),
    ]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True, env=environment(), cwd=ROOT)
    assert popen.stdout is not None
    try:
        line = read_line(popen, 2 * TIMEOUT_S)
        assert line.startswith("ready: grpc="), "it waits for the reader of its log"
        address = line.split("grpc=")[1].split()[0]
        assert run_command("health", "--address", address).stdout == "SERVING\n"
        popen.terminate()
        assert popen.wait(TIMEOUT_S) == 0
    finally:
        popen.kill()
        popen.wait()
        popen.stdout.close()  # not read to its end: workers that still run have it open as well
        os.close(reading)
        os.close(writing)


def read_line(popen: "subprocess.Popen[str]", seconds: float) -> str:
    """The first line of stdout; empty when none comes in time."""
    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout], [], [], seconds)
    return popen.stdout.readline() if ready else ""


def test_an_unread_refusal_has_its_exit_code(tmp_path: Path) -> None:
    """The line is lost, but the command ends."""
    reading, writing = full_pipe()
    command = [
        sys.executable,
        "-m",
        "tidegate",
        "serve",
        "--models",
        str(tmp_path),
        "--port",
        "0",
        "--metrics-port",
        "0",
    ]
    ended = subprocess.run(command, stderr=writing, env=environment(), cwd=ROOT, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 3
    os.close(reading)
    os.close(writing)
