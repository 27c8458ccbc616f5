"""The options of `serve`, which are made from the settings."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tidegate.cli import app as cli
from tidegate.runtime.config import InvalidSetting, ServerConfig

# No settings of a server.
OWN = ("config_file", "log_level", "log_format", "check")


def serve_options() -> dict[str, Any]:
    """The options of `serve` by name, without those of the command line itself."""
    group: Any = typer.main.get_command(cli.app)
    return {option.name: option for option in group.commands["serve"].params if option.name not in OWN}


def test_every_setting_is_an_option() -> None:
    """With its name, its environment variable and its help, in the same order."""
    options = serve_options()
    assert list(options) == [field.name for field in fields(ServerConfig)]
    for field in fields(ServerConfig):
        option = options[field.name]
        assert option.opts == [f"--{field.name.replace('_', '-')}"]
        assert option.envvar == f"TIDEGATE_{field.name.upper()}"
        assert option.help == field.metadata["setting"].help


def test_the_defaults_of_the_options_are_those_of_the_settings() -> None:
    """Durations have the form in which a user types them."""
    defaults = {name: option.default for name, option in serve_options().items()}
    assert ServerConfig(**defaults) == ServerConfig()
    assert (defaults["checkpoint_every"], ServerConfig().checkpoint_every) == ("200ms", 0.2)
    assert defaults["models"] == Path("models")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"port": 65536}, "port: got 65536: expected at most 65535"),
        ({"batch_max": 0}, "batch_max: got 0: expected at least 1"),
        ({"park_after": "soon"}, "park_after: got 'soon': expected a number with a unit"),
        ({"park_after": float("nan")}, "park_after: got nan: expected at least 0"),
        ({"checkpoint_every": "0s"}, "checkpoint_every: got '0s': expected at least"),
        ({"host": "a b:1"}, "host: got 'a b:1': "),
        ({"metrics_host": "unix:/run/s"}, "metrics_host: got 'unix:/run/s': "),
    ],
)
def test_a_bad_setting_is_refused(setting: dict[str, Any], problem: str) -> None:
    """The message has its name, what was got and what was expected."""
    with pytest.raises(InvalidSetting) as caught:
        ServerConfig(**setting)
    assert str(caught.value).startswith(problem)
