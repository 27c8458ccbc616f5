"""`tidegate models`, `promote` and `rollback`: the versions of a server, which it loads, and which one is the default."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tidegate.cli.connection import ConnectionSettings, unavailable, with_server_options
from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.options import AsJson

if TYPE_CHECKING:
    from tidegate.client import Client, DefaultChange, Model, Version  # imported when a command connects

T = TypeVar("T")

app = typer.Typer(help="List the models of a server, load versions and unload them.", rich_markup_mode=None)

# What `--json` says of a version beside its model.
VERSION_FIELDS = (
    "is_default", "is_promoted", "policy", "rewarm_steps", "shadow_share", "live_streams", "parked_streams", "on_demand",
)  # fmt: skip

Name = Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")]
Title = Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="The model; without a version, all of them.")]


@app.callback(invoke_without_command=True)
@with_server_options
def models(context: typer.Context, *, connection: ConnectionSettings, as_json: AsJson = False) -> None:
    """List the versions that a server serves: which is the default, its policy, the streams on each; load and unload."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    found = _call(connection, _fetch)
    if as_json:
        print(json.dumps([_fields(*each) for each in found], indent=2))
        return
    table = Table(
        "model", "version", "streams", "policy", "task", "every", "features", "outputs", "same bits", box=None
    )
    for model, version in found:
        table.add_row(*_version_cells(model, version), *([] if model is None else _model_cells(model)))
    Console().print(table)


def _version_cells(model: "Model | None", version: "Version | None") -> list[str]:
    """The columns about a version: its name, streams and policy."""
    if version is None:
        assert model is not None
        return [model.name, model.version, "unknown", ""]
    return [
        version.model,
        version.version + _mark(version),
        f"{version.live_streams} live, {version.parked_streams} parked",
        f"{version.policy} {version.rewarm_steps}" if version.rewarm_steps else version.policy,
    ]


def _model_cells(model: "Model") -> list[str]:
    """The columns about a model that is loaded."""
    outputs = ", ".join(
        f"{output.name} of {'/'.join(output.targets)} at {'/'.join(map(str, output.horizons))}"
        if output.horizons
        else output.name
        for output in model.outputs
    )
    every = f"{model.period_s:g} s" if model.period_s else "irregular"
    bits = "in any batch" if model.batch_invariant else "no"
    return [model.task, every, str(len(model.features)), outputs, bits]


async def _fetch(client: "Client") -> list[tuple["Model | None", "Version | None"]]:
    """The models, each with what is known of its version. There is no model of a version that is loaded on demand."""
    from tidegate.client import ClientError

    found = {(model.name, model.version): model for model in await client.models()}
    try:
        versions = await client.versions()
    except ClientError:  # an older server, or its store does not answer
        return [(model, None) for model in found.values()]
    return [(found.get((version.model, version.version)), version) for version in versions]


def _mark(version: "Version") -> str:
    """What a version is, beside others."""
    if version.on_demand:
        return " on demand"
    if version.is_default:
        return " promoted" if version.is_promoted else " default"
    return f" shadow of {version.shadow_share:.0%}" if version.shadow_share else ""


@app.command()
@with_server_options
def load(title: Title, *, connection: ConnectionSettings) -> None:
    """Load versions from the server's folder, in all workers; exit code 1 when one is refused."""
    _change(connection, "load", title)


@app.command()
@with_server_options
def unload(title: Title, *, connection: ConnectionSettings) -> None:
    """Unload versions: they begin no streams, and leave memory after their last one."""
    _change(connection, "unload", title)


@app.command()
@with_server_options
def reload(*, connection: ConnectionSettings) -> None:
    """Look at the server's folder: load versions that are new, and unload those that are gone."""
    _change(connection, "reload", "")


@with_server_options
def promote(
    name: Name,
    version: Annotated[
        str, typer.Argument(help="The version; 'newest' for the newest, also in future.", metavar="VERSION")
    ],
    *,
    connection: ConnectionSettings,
) -> None:
    """Make a version the default of its model."""
    chosen = "" if version == "newest" else version
    _print_change(name, _call(connection, lambda client: client.promote(name, chosen)))


@with_server_options
def rollback(name: Name, *, connection: ConnectionSettings) -> None:
    """Undo the last promotion: the version before is the default again."""
    _print_change(name, _call(connection, lambda client: client.rollback(name)))


def _print_change(name: str, changed: "DefaultChange") -> None:
    was = f", before {changed.previous_version}" if changed.previous_version != changed.version else " already"
    print(f"default version of {name}: {changed.version}{was}")


def _change(connection: ConnectionSettings, action: str, title: str) -> None:
    name, _, version = title.partition("/")
    changes = _call(connection, lambda client: client.change_models(action, name, version))
    for change in changes:
        print(f"{change.outcome} {change.name}/{change.version}" + (f": {change.reason}" if change.reason else ""))
    if not changes:
        print("nothing has changed")
    if any(change.outcome == "refused" for change in changes):
        raise typer.Exit(EXIT_FAILURE)


def _call(connection: ConnectionSettings, act: "Callable[[Client], Awaitable[T]]") -> T:
    """Connects and does something."""
    from tidegate.client import ClientError, InvalidArgument, ModelNotFound

    try:
        return connection.call(act)
    except (InvalidArgument, ModelNotFound) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise unavailable(connection.address, error) from None


def _fields(model: "Model | None", version: "Version | None") -> dict[str, object]:
    """A model and its version for `--json`."""
    fields: dict[str, object] = {} if model is None else _model_fields(model)
    if version is not None:
        fields |= {"name": version.model, "version": version.version}
        fields |= {name: getattr(version, name) for name in VERSION_FIELDS}
    return fields


def _model_fields(model: "Model") -> dict[str, object]:
    """A model for `--json`."""
    return {
        "name": model.name,
        "version": model.version,
        "fingerprint": model.fingerprint,
        "task": model.task,
        "period_s": model.period_s,
        "features": [
            {"name": field.name, "unit": field.unit, "low": field.low, "high": field.high} for field in model.features
        ],
        "inputs": [
            {"name": field.name, "type": str(field.dtype), "shape": field.shape, "per": field.kind}
            for field in model.inputs
        ],
        "outputs": [
            {
                "name": field.name,
                "shape": field.shape,
                "targets": field.targets,
                "units": field.units,
                "horizons": field.horizons,
                "quantiles": field.quantiles,
            }
            for field in model.outputs
        ],
        "batch_invariant": model.batch_invariant,
    }
