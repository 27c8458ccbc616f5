"""`tidegate streams`: list, describe, delete, export, import and fork the streams of a server."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tidegate.cli.command_group import CommandGroup
from tidegate.cli.connection import ConnectionSettings, unavailable, with_server_options
from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.options import AsJson
from tidegate.cli.outputs import replacing

if TYPE_CHECKING:
    from tidegate.client import Client, StreamInfo  # imported when a command connects

T = TypeVar("T")

NANOSECONDS = 1_000_000_000

app = typer.Typer(
    help="List and administer the streams of a server.", no_args_is_help=True, cls=CommandGroup, rich_markup_mode=None
)

StreamId = Annotated[str, typer.Argument(help="The stream's id.")]


@app.command("list")
@with_server_options
def list_(
    *,
    connection: ConnectionSettings,
    prefix: Annotated[str, typer.Option(envvar="TIDEGATE_PREFIX", help="Only ids that begin with this.")] = "",
    state: Annotated[str, typer.Option(envvar="TIDEGATE_STREAM_STATE", help="live, parked or expired.")] = "",
    model: Annotated[str, typer.Option(envvar="TIDEGATE_MODEL", help="Only streams of this model.")] = "",
    version: Annotated[str, typer.Option(envvar="TIDEGATE_VERSION", help="Only streams of this version.")] = "",
    limit: Annotated[int, typer.Option(envvar="TIDEGATE_LIMIT", min=0, help="The maximum number; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List streams in the order of their ids."""
    if state not in ("", "live", "parked", "expired"):
        raise CommandError(f"--state: got '{state}', expected live, parked or expired", EXIT_USAGE)

    async def fetch(client: "Client") -> list["StreamInfo"]:
        found: list[StreamInfo] = []
        async for info in client.streams(prefix, state, model=model, version=version):
            found.append(info)
            if len(found) == limit:
                break
        return found

    _print_streams(_call(connection, fetch), as_json=as_json)


@app.command()
@with_server_options
def describe(stream_id: StreamId, *, connection: ConnectionSettings, as_json: AsJson = False) -> None:
    """Describe one stream."""
    _print_streams([_call(connection, lambda client: client.describe_stream(stream_id))], as_json=as_json)


@app.command()
@with_server_options
def delete(stream_id: StreamId, *, connection: ConnectionSettings) -> None:
    """Delete a stream and its state; the call that has it open ends."""
    info = _call(connection, lambda client: client.delete_stream(stream_id))
    print(f"deleted {info.stream_id} at step {info.step}")


@app.command()
@with_server_options
def export(
    stream_id: StreamId,
    file: Annotated[Path, typer.Argument(help="Where to write the state.")],
    *,
    connection: ConnectionSettings,
) -> None:
    """Write a stream's state to a file for another server; the stream continues."""
    record = _call(connection, lambda client: client.export_stream(stream_id))
    with replacing(file) as new:
        new.write_bytes(record)
    print(f"wrote {len(record)} bytes to {file}")


@app.command("import")
@with_server_options
def import_(
    file: Annotated[Path, typer.Argument(help="A file from `tidegate streams export`.")],
    *,
    connection: ConnectionSettings,
    stream_id: Annotated[
        str, typer.Option(envvar="TIDEGATE_STREAM_ID", help="Id of the new stream; empty: the id of the exported one.")
    ] = "",
) -> None:
    """Create a stream from an exported state."""
    try:
        record = file.read_bytes()
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}", EXIT_USAGE) from None
    info = _call(connection, lambda client: client.import_stream(record, stream_id))
    print(f"imported {info.stream_id} at step {info.step}")


@app.command()
@with_server_options
def fork(
    stream_id: StreamId,
    new_stream_id: Annotated[str, typer.Argument(help="Id of the copy; empty: the server chooses one.")] = "",
    *,
    connection: ConnectionSettings,
) -> None:
    """Create a stream with the state of another one."""
    info = _call(connection, lambda client: client.fork_stream(stream_id, new_stream_id))
    print(f"forked {stream_id} to {info.stream_id} at step {info.step}")


def _call(connection: ConnectionSettings, request: "Callable[[Client], Awaitable[T]]") -> T:
    """Connects, makes a request, and turns an error into one line."""
    from tidegate.client import ClientError, InvalidArgument, ServerUnavailable

    try:
        return connection.call(request)
    except ServerUnavailable as error:
        raise unavailable(connection.address, error) from None
    except InvalidArgument as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise CommandError(str(error), EXIT_FAILURE) from None


def _print_streams(streams: "list[StreamInfo]", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        print(json.dumps([asdict(info) for info in streams], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for heading in ("stream", "state", "model", "step", "durable", "epoch", "bytes", "changed (UTC)"):
        left = heading in ("stream", "state", "model")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for info in streams:
        changed = datetime.fromtimestamp(info.updated_unix_nano / NANOSECONDS, UTC)
        table.add_row(
            info.stream_id,
            info.state,
            f"{info.model}/{info.version}",
            f"{info.step:,}",
            f"{info.durable_step:,}",
            str(info.epoch),
            f"{info.state_bytes:,}",
            f"{changed:%Y-%m-%d %H:%M:%S}",
        )
    Console().print(table)
