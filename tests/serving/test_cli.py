"""The command line, in separate processes: what all commands share, `health`, `models` and the training commands."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Process, environment, refused, run_command
from tests.timeouts import TIMEOUT_S
from tidegate.cli import app as cli
from tidegate.cli.connection import default_address

# Options and their variables


def test_every_option_has_an_environment_variable(sum_root: Path) -> None:
    """A container is configured by them."""
    ended = subprocess.run(
        [sys.executable, "-m", "tidegate", "serve"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment() | {"TIDEGATE_MODELS": str(sum_root), "TIDEGATE_PORT": "70000"},
    )
    refused(ended, 2, "--port", "70000")


# What is done instead of the command's work: for one call, never for an environment.
ACTIONS = {"--help", "--check"}


def test_every_option_of_every_command_names_its_environment_variable() -> None:
    """TIDEGATE_ and the option's name; with the command's name in between where commands differ."""
    import typer.main

    group = typer.main.get_command(cli.app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not ACTIONS.intersection(parameter.opts):
                name = parameter.opts[0].lstrip("-").replace("-", "_").upper()
                allowed = (f"TIDEGATE_{name}", f"TIDEGATE_{command.name.upper()}_{name}")
                assert parameter.envvar in allowed, f"{command.name} {parameter.opts[0]}"


def test_an_unknown_command_is_refused() -> None:
    """Exit code 2 and one line."""
    refused(run_command("swim"), 2, "swim")


@pytest.mark.parametrize("port", ["tcp://10.0.0.1:50051", "tcp://[fd00::1]:50051"])
def test_the_service_port_variable_of_kubernetes_is_not_a_setting(sum_root: Path, port: str) -> None:
    """A Kubernetes service called `tidegate` sets this variable in every container of its namespace, also in the server's."""
    ended = run_command("serve", "--models", str(sum_root), "--workers", "-1", TIDEGATE_PORT=port)
    refused(ended, 2, "--workers", "-1")


# Where the server is


# Nothing listens there.
PROXY = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}


def port_of(server: Process) -> str:
    """Its gRPC port."""
    return server.address.rpartition(":")[2]


@pytest.mark.parametrize("command", [["health"], ["models"], ["streams", "list"]])
def test_commands_ask_the_server_of_their_environment(server: Process, command: list[str]) -> None:
    """In a container they use TIDEGATE_PORT, as the server does, so that its health check finds it."""
    ended = run_command(*command, TIDEGATE_PORT=port_of(server))
    assert ended.returncode == 0, ended.stderr


def test_an_address_wins_over_a_port(server: Process) -> None:
    """It is more specific."""
    ended = run_command("health", TIDEGATE_PORT="1", TIDEGATE_ADDRESS=server.address)
    assert ended.stdout == "SERVING\n"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "localhost:50051"),
        ({"TIDEGATE_PORT": "7"}, "localhost:7"),
        ({"TIDEGATE_PORT": "0"}, "localhost:50051"),
        ({"TIDEGATE_HOST": "0.0.0.0", "TIDEGATE_PORT": "7"}, "localhost:7"),
        ({"TIDEGATE_HOST": "::", "TIDEGATE_PORT": "7"}, "localhost:7"),
        ({"TIDEGATE_HOST": "::1", "TIDEGATE_PORT": "7"}, "[::1]:7"),
        ({"TIDEGATE_HOST": "10.0.0.1"}, "10.0.0.1:50051"),
        ({"TIDEGATE_HOST": "unix:/run/s", "TIDEGATE_PORT": "7"}, "unix:/run/s"),
    ],
)
def test_the_address_is_where_the_server_of_an_environment_listens(variables: dict[str, str], address: str) -> None:
    """All addresses include this machine."""
    assert default_address(variables) == address


@pytest.mark.parametrize("command", [["health"], ["models"], ["streams", "list"]])
def test_a_proxy_of_the_environment_is_not_asked(server: Process, command: list[str]) -> None:
    """Docker's client sets one in containers, but localhost is not behind it."""
    ended = run_command(*command, "--address", server.address, **PROXY)
    assert ended.returncode == 0, ended.stderr


def test_a_proxy_that_is_meant_for_grpc_is_asked(server: Process) -> None:
    """It has its own variable."""
    refused(run_command("health", "--address", server.address, grpc_proxy="http://127.0.0.1:1"), 1, server.address)


@pytest.mark.parametrize(
    ("command", "environment", "words"),
    [
        (["health", "--address", "localhost:99999"], {}, ["--address", "99999", "65535"]),
        (["models"], {"TIDEGATE_ADDRESS": "localhost:0"}, ["--address", "port 0"]),
        (["models", "--address", "localhost"], {}, ["address: got 'localhost', expected HOST:PORT"]),
        (["streams", "list"], {"TIDEGATE_PORT": "http"}, ["TIDEGATE_PORT: got 'http'"]),
        (["health", "--timeout", "-1"], {}, ["--timeout"]),
        (["health", "--timeout", "nan"], {}, ["--timeout"]),
        (["streams", "describe", ""], {}, ["stream_id: got ''"]),
        (["streams", "list", "--prefix", "a" * 257], {}, ["prefix: got 'aaa"]),
        (["stream", "x.csv", "--rate", "nan"], {}, ["--rate"]),
    ],
)
def test_a_client_that_is_called_wrongly_is_refused(
    command: list[str], environment: dict[str, str], words: list[str]
) -> None:
    """Before any connection: one line that names the error."""
    refused(run_command(*command, **environment), 2, *words)


# health, models


def test_health_of_a_server_is_yes(server: Process) -> None:
    """Exit code 0."""
    ended = run_command("health", "--address", server.address)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "SERVING\n", "")


@pytest.mark.parametrize("command", ["health", "models"])
def test_a_server_that_is_not_there_is_no(command: str) -> None:
    """Exit code 1 and one line with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused(run_command(command, "--address", f"127.0.0.1:{port}"), 1, f"127.0.0.1:{port}")


def test_models_prints_a_table(server: Process) -> None:
    """The outputs of each, and the period."""
    ended = run_command("models", "--address", server.address)
    assert ended.returncode == 0, ended.stderr
    row = ended.stdout.splitlines()[1]
    for word in ("lake", "3", "forecast", "3600 s", "8", "forecast of s0 at 1/3", "in any batch"):
        assert word in row


def test_models_prints_json(server: Process) -> None:
    """All fields, for programs."""
    ended = run_command("models", "--address", server.address, "--json")
    (model,) = json.loads(ended.stdout)
    assert (model["name"], model["version"], model["task"], model["period_s"]) == ("lake", "3", "forecast", 3600.0)
    assert model["features"][0] == {"name": "s0", "unit": "V", "low": -2.0, "high": 2.0}
    assert model["outputs"][0]["shape"] == [2, 1]
    assert model["outputs"][0]["horizons"] == [1, 3]
    assert len(model["fingerprint"]) == 64


# The training commands


@pytest.mark.parametrize("command", ["train", "backtest", "evaluate", "export", "datasets"])
@pytest.mark.parametrize("missing", ["entry point", "torch"])
def test_a_training_command_without_the_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, missing: str
) -> None:
    """Whether the package or one of its dependencies is missing: exit code 2 and one line."""

    class Point:
        @staticmethod
        def load() -> None:
            raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(cli, "entry_points", lambda **_: [] if missing == "entry point" else [Point])
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 2
    assert re.fullmatch(f"error: '{command}' needs .*tidegate\\[training\\]\n", capsys.readouterr().err)


def test_a_training_command_is_handed_over_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name and all its arguments."""
    got: list[list[str]] = []

    class Point:
        @staticmethod
        def load() -> Any:
            return got.append

    monkeypatch.setattr(cli, "entry_points", lambda **_: [Point])
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--epochs", "3", "--help"])
    assert caught.value.code == 0
    assert got == [["train", "--epochs", "3", "--help"]]


def test_the_help_lists_every_command() -> None:
    """Including those of the training package."""
    ended = run_command("--help")
    assert ended.returncode == 0
    for command in (
        "serve",
        "stream",
        "models",
        "health",
        "bench",
        "train",
        "backtest",
        "evaluate",
        "export",
        "datasets",
    ):
        assert re.search(rf"^\s*{command}\s", ended.stdout, re.MULTILINE), command
