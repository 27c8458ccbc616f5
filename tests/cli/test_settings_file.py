"""The file of `tidegate serve --config`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.root import ROOT
from tests.servers import run_command
from tidegate.cli import app as cli
from tidegate.cli.connection import default_address
from tidegate.cli.errors import EXIT_USAGE, CommandError
from tidegate.cli.settings_file import LOG_SETTINGS, read_settings_file, server_environment
from tidegate.runtime.config import ServerConfig


def as_toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'


def write(folder: Path, text: str) -> Path:
    """A file of settings."""
    path = folder / "tidegate.toml"
    path.write_text(text)
    return path


def problems(path: Path) -> str:
    """What is said of a bad file."""
    with pytest.raises(CommandError) as caught:
        read_settings_file(path)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_can_be_in_the_file(tmp_path: Path) -> None:
    """By its name, a duration as text."""
    defaults = {each.name: each.metadata["setting"].duration or each.default for each in fields(ServerConfig)}
    defaults |= {name: choices[0] for name, choices in LOG_SETTINGS.items()}
    path = write(tmp_path, "\n".join(f"{name} = {as_toml(value)}" for name, value in defaults.items()))
    read = {**read_settings_file(path)}
    assert read.keys() == defaults.keys()
    assert ServerConfig(**{name: read[name] for name in read.keys() - LOG_SETTINGS.keys()}) == ServerConfig()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("batch_max = 0", "batch_max: got 0, expected at least 1"),
        ('batch_max = "8"', "batch_max: got '8', expected a whole number"),
        ("batch_max = 8.0", "batch_max: got 8.0, expected a whole number"),
        ("port = true", "port: got true, expected a whole number"),
        ("state = 3", "state: got 3, expected text"),
        ("models = {}", "models: got a table, expected text"),
        ("park_after = 60", 'park_after: got 60, expected text with a unit, such as "60s"'),
        ('park_after = "soon"', "park_after: got 'soon', expected a number with a unit, such as 200ms"),
        ('load = "lake"', "load: got 'lake', expected a list of texts"),
        ("load = [1]", "load: got [1], expected a list of texts"),
        ('log_level = "loud"', "log_level: got 'loud', expected one of debug, info, warning, error"),
        ("batch-max = 8", "batch-max: there is no such setting; did you mean batch_max?"),
        ("colour = 8", "colour: there is no such setting"),
        ("[serve]", "serve: there is no such setting"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, line: str, problem: str) -> None:
    """With the file, the setting, what was got and what was expected."""
    path = write(tmp_path, line)
    assert problems(path).startswith(f"--config: {path}: {problem}")


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    """Whoever mends them needs one start, not one for each."""
    said = problems(write(tmp_path, 'batch_max = 0\ncolour = "red"\nport = "x"'))
    assert all(f"{name}: " in said for name in ("batch_max", "colour", "port"))


@pytest.mark.parametrize(
    "content", [b"batch_max 8", b"\xff\xfe", b"a = " + b"[" * 100_000], ids=["no", "bytes", "deep"]
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    """In one line."""
    path = write(tmp_path, "")
    path.write_bytes(content)
    assert f"{path} is not TOML: " in problems(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With the reason."""
    assert "absent.toml cannot be read: No such file" in problems(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("options", "variables", "used"),
    [
        ([], {}, 3),
        ([], {"TIDEGATE_BATCH_MAX": "2"}, 2),
        (["--batch-max", "1"], {"TIDEGATE_BATCH_MAX": "2"}, 1),
    ],
)
def test_an_option_wins_over_a_variable_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], variables: dict[str, str], used: int
) -> None:
    """And the file wins over the default, whether an option or a variable names it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = write(tmp_path, 'batch_max = 3\nload = ["lake", "toy/2"]\npark_after = "5m"')
    serve: Any = typer.main.get_command(cli.app)
    by_option = serve.commands["serve"].make_context("serve", ["--config", str(path), *options]).params
    monkeypatch.setenv("TIDEGATE_CONFIG", str(path))
    by_variable = serve.commands["serve"].make_context("serve", [*options]).params
    for params in (by_option, by_variable):
        assert (params["batch_max"], params["park_after"], params["queue_max"]) == (used, "5m", 4096)
        assert [*params["load"]] == ["lake", "toy/2"]


def test_a_server_uses_the_file(sum_root: Path, tmp_path: Path) -> None:
    """And says so in its log."""
    path = write(tmp_path, f'models = "{sum_root}"\nlog_level = "info"\nstate = "memory:"\nbatch_max = 7')
    ended = run_command("serve", "--check", TIDEGATE_CONFIG=str(path))
    assert ended.returncode == 0, ended.stderr
    assert "batches of 1 to 7 checked" in ended.stdout
    assert f"settings are read from {path}" in ended.stderr


def test_a_bad_file_ends_the_start(tmp_path: Path) -> None:
    """With exit code 2 and one line."""
    ended = run_command("serve", "--config", str(write(tmp_path, "colour = 1")))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --config: ")
    assert ended.stderr.count("\n") == 1


def test_the_example_of_the_docs_is_right(tmp_path: Path) -> None:
    """As it stands there."""
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    assert read_settings_file(write(tmp_path, example))["batch_max"] == 128


def test_commands_find_the_server_of_the_file(tmp_path: Path) -> None:
    """A health check in its container has the same variables. They win, when they are not empty."""
    path = write(tmp_path, 'host = "::1"\nport = 7\nmetrics_port = 8\nbatch_max = 9')
    variables = {"TIDEGATE_CONFIG": str(path), "TIDEGATE_PORT": "6", "TIDEGATE_METRICS_PORT": ""}
    found = server_environment(variables)
    assert {**found} == {**variables, "TIDEGATE_HOST": "::1", "TIDEGATE_METRICS_PORT": "8"}
    assert default_address(found) == "[::1]:6"


@pytest.mark.parametrize(("command", "port"), [(["health"], 7), (["health", "--http"], 8), (["streams", "list"], 7)])
def test_a_command_asks_where_the_file_says(tmp_path: Path, command: list[str], port: int) -> None:
    """Nobody listens there, and the error tells where it asked."""
    path = write(tmp_path, 'host = "127.0.0.1"\nport = 7\nmetrics_port = 8')
    ended = run_command(*command, TIDEGATE_CONFIG=str(path))
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr


def test_a_health_check_of_no_port_is_refused() -> None:
    """In one line."""
    ended = run_command("health", "--http", TIDEGATE_METRICS_PORT="http")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: TIDEGATE_METRICS_PORT: got 'http', expected a number from 0 to 65535\n",
    )
