"""`tidegate models`, `tidegate promote` and `tidegate rollback`: the versions of a server, and which one is the default."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli.connection import ConnectionSettings, unavailable, with_server_options
from tidegate.cli.errors import EXIT_USAGE, CommandError
from tidegate.cli.options import AsJson

if TYPE_CHECKING:
    from tidegate.client import Client, DefaultChange, Model, Version  # imported when a command connects

# What `--json` says of a version beside its model.
VERSION_FIELDS = (
    "is_default", "is_promoted", "policy", "rewarm_steps", "shadow_share", "live_streams", "parked_streams",
)  # fmt: skip

Name = Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")]


@with_server_options
def models(
    *,
    connection: ConnectionSettings,
    as_json: AsJson = False,
) -> None:
    """List the versions that a server serves: which one is the default, its policy, and the streams on each."""
    from rich.console import Console
    from rich.table import Table

    from tidegate.client import ClientError, InvalidArgument

    async def fetch() -> list[tuple["Model", "Version | None"]]:
        async with connection.client() as client:
            found = await client.models()
            try:
                versions = {(version.model, version.version): version for version in await client.versions()}
            except ClientError:  # an older server, or its store does not answer
                versions = {}
            return [(model, versions.get((model.name, model.version))) for model in found]

    try:
        served = asyncio.run(fetch())
    except InvalidArgument as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise unavailable(connection.address, error) from None
    if as_json:
        print(json.dumps([_model_fields(*each) for each in served], indent=2))
        return
    table = Table(
        "model", "version", "streams", "policy", "task", "every", "features", "outputs", "same bits", box=None
    )
    for model, version in served:
        outputs = ", ".join(
            f"{output.name} of {'/'.join(output.targets)} at {'/'.join(map(str, output.horizons))}"
            if output.horizons
            else output.name
            for output in model.outputs
        )
        every = f"{model.period_s:g} s" if model.period_s else "irregular"
        bits = "in any batch" if model.batch_invariant else "no"
        table.add_row(
            model.name,
            model.version + _mark(version),
            f"{version.live_streams} live, {version.parked_streams} parked" if version else "unknown",
            _policy(version),
            model.task,
            every,
            str(len(model.features)),
            outputs,
            bits,
        )
    Console().print(table)


def _mark(version: "Version | None") -> str:
    """What a version is, beside others."""
    if version is None:
        return ""
    if version.is_default:
        return " promoted" if version.is_promoted else " default"
    return f" shadow of {version.shadow_share:.0%}" if version.shadow_share else ""


def _policy(version: "Version | None") -> str:
    """What happens to streams on old versions."""
    if version is None:
        return ""
    return f"{version.policy} {version.rewarm_steps}" if version.rewarm_steps else version.policy


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
    _change(name, connection, lambda client: client.promote(name, "" if version == "newest" else version))


@with_server_options
def rollback(name: Name, *, connection: ConnectionSettings) -> None:
    """Make the version the default again that was it before."""
    _change(name, connection, lambda client: client.rollback(name))


def _change(
    name: str, connection: ConnectionSettings, change: Callable[["Client"], Awaitable["DefaultChange"]]
) -> None:
    """Has a server change the default version, and prints what it is now."""
    from tidegate.client import ClientError, InvalidArgument, ModelNotFound, StreamRefused

    async def run() -> "DefaultChange":
        async with connection.client() as client:
            return await change(client)

    try:
        changed = asyncio.run(run())
    except (InvalidArgument, ModelNotFound, StreamRefused) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise unavailable(connection.address, error) from None
    was = f", before {changed.previous_version}" if changed.previous_version != changed.version else " already"
    print(f"default version of {name}: {changed.version}{was}")


def _model_fields(model: "Model", version: "Version | None") -> dict[str, object]:
    """A model and its version for `--json`."""
    return {
        "name": model.name,
        "version": model.version,
        "fingerprint": model.fingerprint,
        "task": model.task,
        "period_s": model.period_s,
        "features": [
            {"name": field.name, "unit": field.unit, "low": field.low, "high": field.high} for field in model.features
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
        **({} if version is None else {name: getattr(version, name) for name in VERSION_FIELDS}),
    }
