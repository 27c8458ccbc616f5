"""`tidegate token`: makes tokens for the file that `tidegate serve --tokens` reads."""

import secrets
from typing import Annotated

import typer

from tidegate.cli.command_group import CommandGroup
from tidegate.cli.errors import EXIT_USAGE, CommandError

app = typer.Typer(help="Make tokens for the file of `tidegate serve --tokens`.", no_args_is_help=True, cls=CommandGroup)

# As many random bits as a hash without salt needs.
TOKEN_BYTES = 32


@app.command("new")
def new(
    *,
    tenant: Annotated[str, typer.Option(help="Tenant that the token is for; its streams are its own.")],
    admin: Annotated[bool, typer.Option("--admin", help="It may also administer models.")] = False,
) -> None:
    """Print a new token, and the lines for the token file. The token itself is stored nowhere."""
    from tidegate.runtime.token_file import InvalidTokenFile, Tokens, token_hash  # noqa: PLC0415 - as other commands

    token = secrets.token_urlsafe(TOKEN_BYTES)
    entry = f'[[token]]\nsha256 = "{token_hash(token)}"\ntenant = "{tenant}"\nadmin = {str(admin).lower()}\n'
    try:
        Tokens.parse(entry)
    except InvalidTokenFile as error:
        raise CommandError(f"--tenant: got '{tenant}': {error}", EXIT_USAGE) from None
    typer.echo(f"token, for the client: {token}\nfor the token file of the server:\n\n{entry}", nl=False)
