"""`tidegate backup`: a copy of the streams in SQLite, while servers use them."""

from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.outputs import replacing
from tidegate.cli.settings_file import ConfigFile
from tidegate.runtime.config import InvalidSetting, ServerConfig


def backup(
    file: Annotated[Path, typer.Argument(help="The copy. A file of that name is replaced when the copy is complete.")],
    *,
    config_file: ConfigFile = None,  # noqa: ARG001 - its values are the defaults of the others
    state: Annotated[
        str, typer.Option(envvar="TIDEGATE_STATE", help="The server's --state; empty for the default.")
    ] = "",
    data_dir: Annotated[Path, typer.Option(envvar="TIDEGATE_DATA_DIR", help="The server's --data-dir.")] = Path("data"),
) -> None:
    """Copy the streams in SQLite while servers use them; needs the disk of the server, not its port."""
    from tidegate.core.errors import StoreUnavailable  # noqa: PLC0415 - loaded when it is used
    from tidegate.store import copy_database, sqlite_path  # noqa: PLC0415

    try:
        source = sqlite_path(ServerConfig(state=state, data_dir=data_dir).state_address)
    except InvalidSetting as error:
        raise CommandError(f"--{error.name.replace('_', '-')}: {error.problem}", EXIT_USAGE) from None
    except ValueError as error:
        raise CommandError(f"--state: {error}", EXIT_USAGE) from None
    if source is None:
        raise CommandError(
            "--state: only SQLite is copied by this command; copy a redis with redis-cli --rdb, see docs/operating.md",
            EXIT_USAGE,
        )
    if file.exists() and not file.is_file():
        raise CommandError(f"{file}: is not a file; name one", EXIT_USAGE)
    if file.exists() and source.exists() and file.samefile(source):
        raise CommandError(f"{file}: is the file that is to be copied; name another one", EXIT_USAGE)
    try:
        with replacing(file) as new:
            new.unlink(missing_ok=True)  # of a copy that was killed
            count = copy_database(source, new)
            size = new.stat().st_size
    except StoreUnavailable as error:
        raise CommandError(str(error), EXIT_FAILURE) from None
    typer.echo(f"wrote {count:,} streams, {size:,} bytes, to {file}")
