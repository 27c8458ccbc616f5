"""For a test, a forked command behaves as in a new Python."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Forked, start
from tests.servers import environment, run_command, serve
from tests.timeouts import TIMEOUT_S

COMMANDS = {
    "help": ["--help"],
    "bad usage": ["health", "--timeout", "-1"],
    "no server": ["health", "--address", "127.0.0.1:1"],
    "a command of training": ["train", "--epochs", "none"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_ends_as_in_a_new_python(arguments: list[str], tmp_path: Path) -> None:
    """It has the same exit code and the same output."""
    command = [sys.executable, "-m", "tidegate", *arguments]
    variables = {**environment(), "PYTHONPATH": ":".join(sys.path)}
    new = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=tmp_path)
    forked = run_command(*arguments, cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)


def test_a_command_has_its_own_environment_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is neither that of the test, nor that of the process that forks."""
    monkeypatch.setenv("TIDEGATE_ADDRESS", "here:1")
    assert "there:2" in run_command("health", TIDEGATE_ADDRESS="there:2").stderr
    assert "here:1" not in run_command("health").stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)])
def test_a_signal_reaches_a_command(sum_root: Path, number: signal.Signals, code: int) -> None:
    """The parent gets its exit status as from `subprocess`, also when it was killed."""
    with serve(sum_root) as process:
        assert isinstance(process.popen, Forked)
        assert process.popen.poll() is None
        process.signal(number)
        assert process.wait()[0] == code


def test_a_command_that_goes_on_is_waited_for_no_longer_than_asked(sum_root: Path) -> None:
    """As `subprocess` has it."""
    with serve(sum_root) as process, pytest.raises(subprocess.TimeoutExpired):
        process.popen.wait(0.01)


def test_another_command_is_started_as_it_is(tmp_path: Path) -> None:
    """In its folder and environment."""
    popen = start(["sh", "-c", "echo $A; pwd >&2"], env={"A": "a"}, cwd=tmp_path)
    assert popen.communicate(timeout=TIMEOUT_S) == ("a\n", f"{tmp_path}\n")
