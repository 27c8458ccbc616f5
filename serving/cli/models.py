"""`tidegate models`: list the models of a server, load versions and unload them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tidegate.cli.connection import ConnectionSettings, unavailable, with_server_options
from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.options import AsJson

if TYPE_CHECKING:
    from tidegate.client import Client, Model  # imported when a command connects

T = TypeVar("T")

app = typer.Typer(help="List the models of a server, load versions and unload them.", rich_markup_mode=None)

Title = Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="The model; without a version, all of them.")]


@app.callback(invoke_without_command=True)
@with_server_options
def models(context: typer.Context, *, connection: ConnectionSettings, as_json: AsJson = False) -> None:
    """List the models that a server serves, load others, and unload some."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    served = _call(connection, lambda client: client.models())
    if as_json:
        print(json.dumps([_model_fields(model) for model in served], indent=2))
        return
    table = Table("model", "version", "task", "every", "features", "outputs", "same bits in any batch", box=None)
    for model in served:
        outputs = ", ".join(
            f"{output.name} of {'/'.join(output.targets)} at {'/'.join(map(str, output.horizons))}"
            if output.horizons
            else output.name
            for output in model.outputs
        )
        every = f"{model.period_s:g} s" if model.period_s else "irregular"
        bits = "yes" if model.batch_invariant else "no"
        table.add_row(model.name, model.version, model.task, every, str(len(model.features)), outputs, bits)
    Console().print(table)


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

    async def run() -> T:
        # The server answers once it has tried the models.
        async with connection.client() as client:
            return await act(client)

    try:
        return asyncio.run(run())
    except (InvalidArgument, ModelNotFound) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise unavailable(connection.address, error) from None


def _model_fields(model: "Model") -> dict[str, object]:
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
