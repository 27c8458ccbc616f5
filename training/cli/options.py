"""Settings as command-line options: each field of a settings class defines the name, the help and the bounds of an option.

A field `learning_rate` is `--learning-rate` and the environment variable TIDEGATE_LEARNING_RATE; its help is the field's
description. What is typed reaches the settings as text: they check it, and their complaint names the option.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def option(name: str, about: str, **more: Any) -> Any:
    """An option `--name` that can also be given as the environment variable TIDEGATE_NAME; `off` adds `--no-name`."""
    word = name.replace("_", "-")
    shown = f"--{word}/--no-{word}" if more.pop("off", False) else f"--{word}"
    return typer.Option(shown, envvar=f"TIDEGATE_{name.upper().replace('-', '_')}", help=about, **more)


def options_of(*settings: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add to a command with `**values` an option for each field of the classes that has a description.

    What is not given is None, and `build` leaves the default to the class.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        fields = {name: field for each in settings for name, field in _own_first(each).items() if field.description}
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _cli_type(field),
                    # A flag that is on by default needs a way to turn it off.
                    option(
                        name,
                        _help(field),
                        show_default=False,
                        metavar=_metavar(field),
                        off=field.default is True or field.annotation == bool | None,
                    ),
                ],
            )
            for name, field in fields.items()
        ]
        written = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        command.__signature__ = own.replace(parameters=[*written, *added])  # type: ignore[attr-defined]  # read by inspect
        return command

    return decorate


def build(settings_class: type[SettingsT], values: dict[str, Any], **more: Any) -> SettingsT:
    """The settings of a class from the typed values.

    Raises:
        ValidationError: a value is not what its field allows.
    """
    given = {name: values[name] for name in settings_class.model_fields if values.get(name) is not None}
    return settings_class.model_validate(given | more)


def _own_first(settings: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a class before those that it inherits: the help begins with what is asked for most."""
    own = settings.__annotations__
    return dict(sorted(settings.model_fields.items(), key=lambda item: item[0] not in own))


def _cli_type(field: FieldInfo) -> Any:
    """The type that the command line parses: flags and paths; the settings parse all other values from text."""
    if field.annotation in (bool, bool | None):
        return bool | None
    return Path | None if field.annotation in (Path, Path | None) else str | None


def _metavar(field: FieldInfo) -> str | None:
    """The placeholder of the value; None, the default, for flags and paths."""
    if _cli_type(field) != str | None:
        return None
    if get_origin(field.annotation) is Literal:
        return f"<{'|'.join(get_args(field.annotation))}>"
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((f"<{kind.__name__}>" for kind in kinds if kind in (int, float)), "<text>")


def _help(field: FieldInfo) -> str:
    default = field.get_default()
    if field.is_required() or default is None or default in ((), {}) or isinstance(default, bool):
        return str(field.description)
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    return f"{field.description} [default: {shown}]"
