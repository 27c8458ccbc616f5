"""What `tidegate` says of itself: its help, its versions, and its commands to a shell that completes them."""

import re
from importlib.metadata import version

import pytest

from tests.servers import run_command
from tidegate.cli import app as cli
from tidegate.cli.command_group import HEADINGS


def test_the_version_names_what_a_report_needs() -> None:
    """Of Tidegate, of the libraries that run and serve a model, and of Python."""
    ended = run_command("--version")
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["tidegate", "onnxruntime", "grpcio", "Python"]
    assert f"tidegate {version('tidegate')}\n" in ended.stdout


@pytest.mark.parametrize(("group", "lists"), [([], "serve"), (["streams"], "fork"), (["token"], "new")])
def test_a_group_alone_prints_its_help(group: list[str], lists: str) -> None:
    """Readable: one line for each command, not one error. The exit code is that of bad usage."""
    ended = run_command(*group)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == run_command(*group, "--help").stdout
    assert re.search(rf"^  {lists} +[A-Z]", ended.stderr, re.MULTILINE)


def test_the_help_lists_the_commands_under_headings() -> None:
    """Each command once, under a heading that says when it is needed."""
    text = run_command("--help").stdout
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == ["Options", *HEADINGS[:-1]]
    listed = re.findall(r"^  ([a-z]+) {2,}\S", text, re.MULTILINE)
    assert sorted(listed) == sorted({*listed}), "a command is listed twice"
    assert {"serve", "health", "stream", "streams", "models", "token", *cli.TRAINING_COMMANDS} <= {*listed}


def test_a_shell_completes_commands() -> None:
    """With what --show-completion tells it to ask."""
    # Else typer would ask which shell has started it.
    script = run_command("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TIDEGATE_COMPLETE=complete_bash" in script.stdout, script.stderr
    ended = run_command(_TIDEGATE_COMPLETE="complete_bash", COMP_WORDS="tidegate str", COMP_CWORD="1")
    assert ended.stdout.split() == ["stream", "streams"]
