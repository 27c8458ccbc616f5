"""The file of `tidegate serve --config`: TOML with the settings by their names.

models = "/models"
batch_max = 128
park_after = "5m"

An option wins over a variable, a variable over this file, and the file over the default.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tidegate.cli.errors import EXIT_USAGE, CommandError
from tidegate.runtime.config import ServerConfig, Setting, validated

VARIABLE = "TIDEGATE_CONFIG"
# Where a server listens.
PLACES = ("host", "port", "metrics_host", "metrics_port")
# The settings of the log, which are no settings of a server: the values that each may have.
LOG_SETTINGS = {"log_level": ("debug", "info", "warning", "error"), "log_format": ("auto", "text", "json")}
# What a user writes for each type.
WORDS = {str: "text", Path: "text", int: "a whole number", float: "a number", bool: "true or false"}


def use_settings_file(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of a file the defaults of the other options: what typer calls for the option."""
    if path is not None and not context.resilient_parsing:
        context.default_map = {**read_settings_file(path)}
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=VARIABLE,
        metavar="FILE",
        is_eager=True,
        callback=use_settings_file,
        help="TOML file with these settings by their names, as in batch_max = 128. Options and variables win.",
    ),
]


def read_settings_file(path: Path) -> Mapping[str, Any]:
    """Reads and checks a file. Returns the values that options take.

    Raises:
        CommandError: the file cannot be read, or has mistakes. The message has all of them.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise CommandError(f"--config: {path} cannot be read: {error.strerror}", EXIT_USAGE) from None
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise CommandError(f"--config: {path} is not TOML: {error}", EXIT_USAGE) from None
    known = {field.name: field for field in fields(ServerConfig)}
    problems = []
    for name, value in found.items():
        try:
            if name in LOG_SETTINGS:
                _check_choice(value, LOG_SETTINGS[name])
            elif name in known:
                _check(value, known[name].type, known[name].metadata["setting"])
            else:
                problems.append(f"{name}: {_unknown(name, (*known, *LOG_SETTINGS))}")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise CommandError(f"--config: {path}: {'; '.join(problems)}", EXIT_USAGE)
    return found


def server_environment(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Adds where a server listens that takes its settings from the same variables and the file that they name.

    So commands in its container find it. Raises CommandError as `read_settings_file` does.
    """
    path = environment.get(VARIABLE, "")
    found = read_settings_file(Path(path)) if path else {}
    places = {f"TIDEGATE_{name.upper()}": str(found[name]) for name in PLACES if name in found}
    # An empty variable counts as not set: the value of the file stays.
    return {**places, **{name: value for name, value in environment.items() if value or name not in places}}


def _check(value: object, kind: Any, about: Setting) -> None:
    """Raises ValueError unless it is a value that the setting can have."""
    if about.duration:
        is_right, expected = isinstance(value, str), f'text with a unit, such as "{about.duration}"'
    elif kind == tuple[str, ...]:
        is_right = isinstance(value, list) and all(isinstance(each, str) for each in value)
        expected = "a list of texts"
    else:
        types = {float: (int, float), Path: (str,)}.get(kind, (kind,))
        is_right = isinstance(value, types) and isinstance(value, bool) == (kind is bool)
        expected = WORDS[kind]
    if not is_right:
        raise ValueError(f"got {_shown(value)}, expected {expected}")
    try:
        validated(value, kind, about)
    except ValueError as error:
        raise ValueError(f"got {_shown(value)}, {error}") from None


def _check_choice(value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless it is one of the choices."""
    if not isinstance(value, str) or value.lower() not in choices:
        raise ValueError(f"got {_shown(value)}, expected one of {', '.join(choices)}")


def _unknown(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_").lower(), known, 1)
    return "there is no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _shown(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else repr(value)
