"""Options that several commands share, and options that are made from the fields of a settings class."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

ModelName = Annotated[str, typer.Option(envvar="TIDEGATE_MODEL", help="Model; empty for the only one.")]
ModelVersion = Annotated[str, typer.Option(envvar="TIDEGATE_VERSION", help="Its version; empty for the newest.")]
AsJson = Annotated[bool, typer.Option("--json", envvar="TIDEGATE_JSON", help="As JSON, for programs.")]


def with_options_of(settings: type[Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Adds an option for each field of a settings class to a command, which gets them as keyword arguments.

    A field `batch_max` becomes --batch-max and the environment variable TIDEGATE_BATCH_MAX. Its metadata is a
    `tidegate.runtime.config.Setting`. A duration stays text until the settings class parses it.
    """

    def add_options(command: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(command)
        options = []
        for field in fields(settings):
            about = field.metadata["setting"]
            option = typer.Option(envvar=f"TIDEGATE_{field.name.upper()}", help=about.help)
            options.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=about.duration or ([] if field.default == () else field.default),
                    annotation=Annotated[str if about.duration else _option_type(field.type), option],
                )
            )
        own = [part for part in signature.parameters.values() if part.kind is not part.VAR_KEYWORD]
        # typer reads the options from the signature.
        command.__signature__ = signature.replace(parameters=[*options, *own])  # type: ignore[attr-defined]
        return command

    return add_options


def _option_type(kind: Any) -> Any:
    """What typer calls the type of an option that may be repeated."""
    return list[str] if kind == tuple[str, ...] else kind
